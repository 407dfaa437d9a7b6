"CS-KD: its loaders on the ways fastai makes them, what is left behind, pairs within a batch, and what it needs"
import random
from copy import copy
from unittest import mock
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import (Callback, CancelFitException, CategoryBlock, DataBlock, DataLoaders, IndexSplitter, L,
                               Learner, RegressionBlock, TransformBlock, aug_transforms, nn, set_seed)
from fastai_featreg.all import (CSKD, FeatureDropout, ManifoldMixup, ShakeDrop, SpatialDropout, StochDepth, digits_dls)
from fastai_featreg.methods.cs_kd import cs_kd_loss, stats_kept
from fastai_featreg.pairs import PairedDL, Pairing, batch_partners, dataset_labels
from tiny import CpuMixedPrecision, assert_same, tiny_learner, tiny_model, weights


def paired(learn): return isinstance(learn.dl, PairedDL)


class Seen(Callback):
    "What trains: the loader, the labels and those of the partners"
    order, run_valid = 20, False
    def before_fit(self): self.batches, self.paired = [], []
    def after_batch(self):
        self.paired.append(paired(self.learn))
        if self.paired[-1]: self.batches.append((self.y.clone(), self.learn.dl.partners[1].clone()))


class StopAt(Callback):
    order, run_valid = 30, False
    def __init__(self, event, exc): self.event, self.exc = event, exc
    def __call__(self, name):
        if name==self.event and self.learn.training and getattr(self.learn, 'iter', 0)>=1: raise self.exc('stop')


def test_every_image_is_once_the_first_of_a_pair():
    learn, seen = tiny_learner(CSKD(), n=48, bs=8), Seen()
    learn.fit(3, cbs=seen)
    assert all(seen.paired) and len(seen.batches)==18
    assert all(torch.equal(y, partners) for y, partners in seen.batches)
    labels = sorted(dataset_labels(learn.dls.train_ds).tolist())
    for epoch in range(3):
        assert sorted(torch.cat([y for y, _ in seen.batches[6*epoch:6*epoch+6]]).tolist())==labels


@pytest.mark.parametrize('exc', [CancelFitException, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('event', ['before_train', 'before_batch', 'after_pred', 'after_loss', 'after_batch',
                                   'after_train'])
def test_nothing_is_left_behind(event, exc):
    cb = CSKD()
    learn = tiny_learner(cb, n=32)
    loaders, training = list(learn.dls.loaders), vars(learn.dls.train).copy()
    try: learn.fit(2, cbs=StopAt(event, exc))
    except (RuntimeError, KeyboardInterrupt): pass
    assert not paired(learn) and all(a is b for a, b in zip(learn.dls.loaders, loaders, strict=True))
    own = vars(learn.dls.train).keys() - {'_n_inp', '_types'} # which fastai notes when it splits the first batch
    assert own==training.keys() and learn.dls.train.bs==8
    assert cb._pairing is None and cb._known is None
    assert all(m.track_running_stats for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d))
    seen = Seen()
    learn.fit(1, cbs=seen)
    assert all(seen.paired)


def test_it_is_removed_in_the_middle_of_an_epoch():
    class Remove(Callback):
        run_valid = False
        def after_batch(self):
            if self.iter==1: self.learn.remove_cb(CSKD)
            self.last = paired(self.learn)
    learn, remove, seen = tiny_learner(CSKD(), n=32), Remove(), Seen()
    learn.fit(1, cbs=[remove, seen])
    assert seen.paired==[True, False, False, False] and not remove.last


def order(learn):
    "What the learner's loader and the generators give next"
    return [y.tolist() for _, y in learn.dls.train], random.random(), np.random.rand(), torch.rand(1).item()


def test_the_users_loader_goes_on_as_after_plain_training():
    plain, ours = tiny_learner(), tiny_learner(CSKD())
    found = []
    for learn in (plain, ours):
        set_seed(3)
        learn.fit(2)
        found.append(order(learn))
    assert found[0]==found[1]


def test_images_and_their_augmentation_are_those_of_plain_training():
    def images(cbs):
        class Keep(Callback):
            run_valid = False
            def before_fit(self): self.kept = []
            def after_batch(self): self.kept.append(self.x.clone())
        set_seed(0)
        dls = digits_dls(n_train=48, n_valid=10, bs=16, size=24, batch_tfms=aug_transforms(size=24))
        learn = Learner(dls, tiny_model(), loss_func=nn.CrossEntropyLoss(), cbs=[Keep(), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.)
        return learn.keep.kept
    for a, b in zip(images([]), images([CSKD()]), strict=True): assert torch.equal(a, b)


def test_weight_0_has_no_second_loader():
    for weight, is_paired in ((0., False), (0, False), (lambda pct: 0., True)):
        learn, seen = tiny_learner(CSKD(weight), n=16), Seen()
        learn.fit(1, cbs=seen)
        assert set(seen.paired)=={is_paired}
        plain = tiny_learner(n=16)
        plain.fit(1)
        assert_same(weights(learn), weights(plain))


def test_labels_are_read_once_a_fit_and_again_in_the_next():
    learn = tiny_learner(CSKD(), n=16)
    with mock.patch('fastai_featreg.methods.cs_kd.dataset_labels', side_effect=dataset_labels) as read:
        learn.fit(3)
        assert read.call_count==1
        learn.dls.train_ds[:] = [(x, (y+1)%10) for x, y in learn.dls.train_ds]
        seen = Seen()
        learn.fit(1, cbs=seen)
        learn.validate()
        assert read.call_count==2 and all(torch.equal(*b) for b in seen.batches)


def test_a_class_of_one_image_is_its_own_partner():
    learn, seen = tiny_learner(CSKD(), n=8), Seen()
    learn.dls.train_ds[:] = [(x, torch.tensor(i)) for i, (x, _) in enumerate(learn.dls.train_ds)]
    learn.fit(1, cbs=seen)
    assert len(seen.batches)==1 and torch.equal(*seen.batches[0])


def test_lr_find_and_half_precision():
    cb = CSKD(seed=4)
    learn = tiny_learner([cb, CpuMixedPrecision()], n=32)
    learn.lr_find(num_it=6, show_plot=False)
    assert not paired(learn) and cb.generator is None
    learn.fit(1)
    assert 0<learn.recorder.values[0][2]<50


def test_distributed_loaders_deal_pairs_out():
    distributed = pytest.importorskip('fastai.distributed')
    learn = tiny_learner(n=48)
    labels, dealt = dataset_labels(learn.dls.train_ds), []
    with mock.patch.object(distributed.DistributedDL, '_broadcast', lambda self, t, rank: torch.tensor(t).tolist()):
        for rank in range(2):
            user = learn.dls.train
            user.rng = random.Random(0)
            learn.dl = distributed.DistributedDL(user, rank=rank, world_size=2)
            inner, n = learn.dl.dl, len(learn.dl)
            pairing = Pairing(learn, labels, torch.Generator().manual_seed(0))
            batches = [(y, pairing.partners[1]) for _, y in learn.dl]
            assert len(batches)==n and all(torch.equal(*b) for b in batches)
            dealt += [y for y, _ in batches]
            pairing.end()
            assert learn.dl.dl is inner is user
    assert sorted(torch.cat(dealt).tolist())==sorted(labels)


def test_pairs_within_a_batch_by_hand():
    "Whoever is alone in its batch has no term; a batch without pairs has none at all"
    learn, cb = tiny_learner(n=8), CSKD(pairs='batch', seed=2, tau=3.)
    classes = torch.tensor([0, 1, 0, 2, 2, 3, 0, 4])
    pred = torch.randn(8, 10)
    at = batch_partners(classes, torch.Generator().manual_seed(3))
    found = [i for i in range(8) if at[i]>=0]
    assert found==[0, 2, 3, 4, 6]
    expected = sum(9*F.kl_div((pred[i]/3).log_softmax(0), (pred[at[i]]/3).softmax(0), reduction='sum') for i in found)/5
    cb.learn = learn
    cb._fit = mock.Mock(form='logits')
    cb.generator = torch.Generator().manual_seed(3)
    learn.pred, learn.yb = pred, (classes,)
    torch.testing.assert_close(cb.term(), expected)
    learn.yb = (torch.arange(8),)
    assert cb.term() is None
    cb._fit = None


def test_pairs_within_a_batch_have_no_second_loader():
    learn, seen = tiny_learner(CSKD(pairs='batch'), n=32, bs=16), Seen()
    learn.fit(1, cbs=seen)
    assert not any(seen.paired) and learn.recorder.values[0][2]>0


@pytest.mark.parametrize('pairs', ['loader', 'batch'])
def test_several_labels_are_refused(pairs):
    learn = tiny_learner(CSKD(pairs=pairs), n=16)
    learn.dls.train_ds[:] = [(x, F.one_hot(torch.tensor([1, 2]), 10).sum(0).float()) for x, _ in learn.dls.train_ds]
    learn.loss_func = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError, match='must.*one class an image'): learn.fit(1)
    assert not paired(learn)


def test_numbers_to_predict_are_refused():
    block = DataBlock((TransformBlock, RegressionBlock), get_x=lambda i: torch.rand(3, 8, 8), get_y=lambda i: i/7,
                      splitter=IndexSplitter([0]))
    dls = block.dataloaders(list(range(20)), bs=4, num_workers=0)
    with pytest.raises(ValueError, match='must have one class an image'): dataset_labels(dls.train_ds)


def test_a_list_of_batches_needs_pairs_within_a_batch():
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8)%3) for _ in range(2)]
    def learner(**kwargs):
        dls = DataLoaders(batches, batches)
        return Learner(dls, tiny_model(), loss_func=nn.CrossEntropyLoss(), cbs=CSKD(**kwargs))
    learn = learner()
    with pytest.raises(ValueError, match="pairs='batch'"), learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn = learner(pairs='batch')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.values[0][2]>0


def test_classes_of_a_datablock():
    block = DataBlock((TransformBlock, CategoryBlock), get_x=lambda i: torch.rand(3, 8, 8), get_y=lambda i: 'abc'[i%3],
                      splitter=IndexSplitter([0]))
    dls = block.dataloaders(list(range(20)), bs=4, num_workers=0)
    assert dataset_labels(dls.train_ds).tolist()==[i%3 for i in range(1, 20)]


def test_a_frozen_batchnorm_goes_by_its_statistics_in_the_second_pass():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    net[0].eval()
    x = torch.randn(4, 3, 2, 2)*3 + 1
    with stats_kept(net): inside = net(x)
    assert torch.equal(inside, net(x))
    assert L(net).attrgot('track_running_stats')==[True, True]


def test_half_precision_of_the_loss():
    a, b = torch.randn(2, 16, 100)*8
    full = cs_kd_loss(a, b)
    for dtype in (torch.float16, torch.bfloat16):
        assert cs_kd_loss(a.to(dtype), b.to(dtype)).dtype==torch.float32
        torch.testing.assert_close(cs_kd_loss(a.to(dtype), b.to(dtype)), full, rtol=.02, atol=.02)


def changed_maps(cb):
    "What `cb` makes of maps in a batch beside CSKD: [(of the batch?, map, what takes its place or None)]"
    own, found = cb.change_map, []
    def change_map(stage, fmap):
        new = own(stage, fmap)
        found.append((torch.is_grad_enabled(), fmap.detach().clone(), None if new is None else new.detach().clone()))
        return new
    cb.change_map = change_map
    learn = tiny_learner([cb, CSKD(seed=1)], n=8)
    # each image is a class of its own, so its partner is the image itself
    learn.dls.train_ds[:] = [(x, torch.tensor(i)) for i, (x, _) in enumerate(learn.dls.train_ds)]
    learn.fit(1)
    return found


@pytest.mark.parametrize('cb', [StochDepth(.5, layers=['0.1']), StochDepth(.5, layers=['0.1'], mode='batch'),
                                ShakeDrop(.5, layers=['0.1']), FeatureDropout(.5, layers=['0.1']),
                                SpatialDropout(.5, layers=['0.1'])], ids=repr)
def test_images_and_partners_are_dropped_by_masks_of_their_own(cb):
    alike = 0
    for seed in range(4):
        cb.seed = seed
        (own, f, new), (theirs, partner, other) = changed_maps(copy(cb))
        assert (own, theirs)==(True, False) and torch.equal(f, partner)
        alike += torch.equal(new, other)
    # one draw for all 8 images may be the same by chance
    assert alike<4


@pytest.mark.parametrize('layer', ['0.0', '0.2'])
def test_maps_of_partners_are_not_mixed(layer):
    found = changed_maps(ManifoldMixup(layers=[layer], images=False))
    mixed = {own: [new is not None for grad, _, new in found if grad==own] for own in (True, False)}
    assert mixed=={True: [True], False: [False]}


def test_partners_under_manifold_mixup_are_answered_as_without():
    "The same network, images and seed: the mixing has no part in what is said of partners"
    def partners(cbs):
        cb, said = CSKD(seed=1), []
        own = cb.answers
        cb.answers = lambda xs: said.append(own(xs)) or said[-1]
        tiny_learner([*cbs, cb], n=8).fit(1)
        return said
    (a,), (b,) = partners([]), partners([ManifoldMixup(layers=['0.1'], images=False)])
    assert torch.equal(a, b)
