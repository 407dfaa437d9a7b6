"CAM-loss and NegativeCAM in a learner: what they reach, what they leave alone, and every way to run"
import logging
import re
import pytest, timm
from tiny import *
from fastai_featreg.class_maps import ClassWeights
import fastai_featreg.methods.cam_loss as module
from fastai_featreg.methods.cam_loss import RunningAccuracy
from fastai_featreg.class_maps import CamCallback


def run(cbs=None, n=48, **kwargs):
    learn = tiny_learner(cbs, n=n, **kwargs)
    learn.fit(2, 1e-2)
    assert_clean(learn)
    return learn


class Grads(Callback):
    "Gradients of the first batch, before the step"
    order = 50
    def before_step(self):
        if hasattr(self.learn, 'noted'): return
        self.learn.noted = {n: p.grad.clone() for n,p in self.model.named_parameters()}


makers = dict(cam=lambda: CAMLoss(start=0), grad_cam=lambda: CAMLoss(start=0, cam='grad_cam'),
              grad_cam_pp=lambda: CAMLoss(start=0, cam='grad_cam_pp'),
              negative=lambda: NegativeCAM(), negative_grad=lambda: NegativeCAM(cam='grad_cam'),
              uniform=lambda: NegativeCAM(mode='uniform'),
              uniform_grad=lambda: NegativeCAM(cam='grad_cam', mode='uniform'))


@pytest.mark.parametrize('name', makers)
def test_the_term_reaches_the_backbone_and_not_the_classifier(name):
    plain,with_term = run(Grads()).noted,run([makers[name](), Grads()]).noted
    for n in plain:
        same = torch.equal(plain[n], with_term[n])
        close = torch.allclose(plain[n], with_term[n], rtol=1e-4, atol=1e-7)
        if n.startswith('1.'): assert close, f'the classifier got a gradient: {n}'
        else: assert not same, f'no gradient at {n}'


@pytest.mark.parametrize('start,begins', [(0, 0), (1, 4), (.5, 4), (.25, 2)])
def test_start(start, begins):
    class Watch(Callback):
        run_valid,order = False,60
        def after_batch(self): self.learn.seen.append(self.cam_loss._fit.columns.counts['cam_loss'])
    learn = tiny_learner([CAMLoss(start=start), Watch()], n=32)
    learn.seen = []
    learn.fit(2)
    terms = [c>0 for c in learn.seen]
    assert terms==[i>=begins for i in range(8)], learn.seen


class Starts(Callback):
    "For each training batch: has the term started, and how many images does the accuracy count?"
    run_valid,order = False,60
    def before_fit(self): self.learn.starts = []
    def after_batch(self):
        cb = self.learn.cam_loss
        self.learn.starts.append((cb.started is not None, cb.accuracy and cb.accuracy.seen()))


@pytest.fixture
def never(monkeypatch):
    "An accuracy that no network reaches"
    monkeypatch.setattr(module, 'start_accuracy', lambda n_out: 1.)


@pytest.mark.parametrize('latest,begins', [(0, 0), (.25, 2), (.5, 4), (1, 4), (5, 8), (None, 8)])
def test_latest_start(never, latest, begins, caplog):
    learn = tiny_learner([CAMLoss(latest=latest), Starts()], n=32)
    with caplog.at_level(logging.INFO, 'fastai_featreg'): learn.fit(2, 0.)
    assert [s for s,_ in learn.starts]==[i>=begins for i in range(8)]
    cb,lines = learn.cam_loss,[m for m in caplog.messages if 'CAMLoss acts' in m]
    if begins<8:
        accuracy = f'{cb.accuracy.share():.1%} over the last {cb.accuracy.seen()} images' if begins else 'not known yet'
        assert cb.started==f'since epoch {begins//4}, batch {begins%4}: latest start, accuracy was {accuracy}'
        assert lines==[f'CAMLoss acts {cb.started}'] and cb.idle=='' and cb.started in repr(cb)
        assert learn.recorder.values[-1][2]>0
    else:
        assert cb.started is None and not lines and np.isnan(learn.recorder.values[-1][2])
        assert f'of the last 32 training images were right, latest={latest}' in cb.idle
        assert cb.idle.removeprefix('CAMLoss ') in repr(cb)
        assert cb.report()['note']==cb.idle.replace('CAMLoss ', 'CAMLoss: ', 1)


def test_waiting_is_plain_training(never):
    assert_same(weights(run()), weights(run(CAMLoss(latest=None))))


def test_the_window_is_an_epoch():
    "Of a loader that keeps its smaller last batch the window has just the images of an epoch, wherever it begins"
    x,y = torch.randn(30, 3, 16, 16),torch.randint(0, 10, (30,))
    dl = torch.utils.data.DataLoader(list(zip(x, y)), batch_size=8)
    cbs = [CAMLoss(latest=None), Starts()]
    learn = Learner(DataLoaders(dl, dl), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 0.)
    assert [n for _,n in learn.starts]==[8, 16, 24, 30, *[30]*8]


def test_running_accuracy_is_the_mean_of_the_last_batches():
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (40,), generator=g).tolist()
    batches = [(int(torch.randint(0, n+1, (), generator=g)), n) for n in sizes]
    for size in (1, 3, 7):
        acc = RunningAccuracy(size)
        for i,b in enumerate(batches):
            last = batches[max(0, i+1-size):i+1]
            share = sum(r for r,_ in last)/sum(n for _,n in last)
            assert acc.add(*b)==(share if i+1>=size else None) and acc.share()==share
    acc.size = 2 # a loader with fewer batches
    assert acc.add(1, 1)==(batches[-1][0] + 1)/(batches[-1][1] + 1) and len(acc.batches)==2


def two_groups(cb):
    learn = tiny_learner([cb, Starts()], n=32)
    learn.splitter = lambda m: [params(m[0]), params(m[1])]
    learn.create_opt()
    return learn


def test_fine_tune_forces_no_start_while_only_the_head_learns(never):
    learn = two_groups(CAMLoss())
    learn.fine_tune(2, freeze_epochs=2)
    assert learn.cam_loss.started.startswith('since epoch 1, batch 0: latest start'), learn.cam_loss.started
    alone = two_groups(CAMLoss())
    alone.freeze()
    alone.fit(2)
    assert alone.cam_loss.started is None and 'latest=0.5 has not come' in alone.cam_loss.idle


def test_accuracy_of_the_frozen_epoch_counts(monkeypatch):
    monkeypatch.setattr(module, 'start_accuracy', lambda n_out: -1.)
    learn = two_groups(CAMLoss())
    learn.fine_tune(1)
    assert re.fullmatch("since epoch 0, batch 0: [0-9.]+% of an epoch's images right", learn.cam_loss.started)
    assert learn.starts[0]==(True, 32), 'known from the frozen epoch'


def test_an_interrupted_wait_goes_on(never):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch==1: raise CancelFitException()
    first = tiny_learner([CAMLoss(latest=.75), Starts()], n=32)
    first.fit(4, cbs=Stop())
    assert first.cam_loss.started is None
    again,fresh = [tiny_learner([CAMLoss(latest=.75), Starts()], n=32) for _ in range(2)]
    again.cam_loss.load_state_dict(first.cam_loss.state_dict())
    for learn in (again, fresh): learn.fit(4, start_epoch=2)
    assert [s for s,_ in again.starts]==[s for s,_ in fresh.starts]==[False]*4 + [True]*4
    assert again.starts[0][1]==32 and fresh.starts[0][1]==8
    late = tiny_learner([CAMLoss(latest=.5), Starts()], n=32)
    late.fit(4, start_epoch=2)
    assert late.cam_loss.started=='since epoch 2, batch 0: latest start, accuracy was not known yet'


def test_lr_find_forces_no_start(never, caplog):
    learn = tiny_learner([CAMLoss(latest=0), Starts()], n=32)
    with caplog.at_level(logging.INFO, 'fastai_featreg'): learn.lr_find(num_it=10, show_plot=False)
    assert len(learn.starts)==10 and not any(s for s,_ in learn.starts) and not caplog.messages
    assert learn.cam_loss.accuracy is None, 'what was counted is forgotten'


def test_c_by_a_schedule():
    "0 is no term in that batch, and a constant function is that constant"
    seen = []
    class Watch(Callback):
        run_valid,order = False,60
        def after_batch(self):
            seen.append((self.pct_train, self.cam_loss._fit.weight, self.cam_loss._fit.columns.counts['cam_loss']))
    learn = tiny_learner([CAMLoss(c=lambda pct: 4*pct if pct<.5 else 0., start=.25), Watch()], n=32)
    learn.fit(2)
    assert [w for _,w,_ in seen]==[0, 0, 1., 1.5, 0, 0, 0, 0] and [n for _,_,n in seen]==[0, 0, 1, 2, 0, 0, 0, 0]
    assert_same(*[weights(run(CAMLoss(c=c, start=0))) for c in (2., lambda pct: 2.)])


@pytest.mark.parametrize('cam', ['cam', 'grad_cam'])
def test_one_path(monkeypatch, cam):
    "The callbacks call the public functions, and nothing but `cam_loss` makes the class-agnostic map"
    calls = Counter()
    def counted(name):
        f = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.update([name]) or f(*args))
    for name in ('cam_loss', 'negative_cam_loss', 'cam_and_caam'): counted(name)
    monkeypatch.setattr(CamCallback, 'class_maps', None)
    tiny_learner([CAMLoss(start=0, cam=cam), NegativeCAM(cam=cam)], n=32).fit(1)
    assert calls==dict(cam_loss=4, negative_cam_loss=4, cam_and_caam=4)


def test_start_is_kept_over_fits_resumed_and_not_made_by_lr_find():
    cb = CAMLoss(start=1)
    learn = tiny_learner(cb)
    learn.fit(1)
    assert cb.started is None
    learn.lr_find(num_it=10, show_plot=False)
    assert cb.started is None, 'a search for a learning rate is no training'
    learn.fit(2)
    assert cb.started.startswith('since epoch 1')
    resumed = cb.state_dict()
    learn.fit(1)
    assert np.isnan(learn.recorder.values[0][2]), 'a start by number is one of each fit'
    cb.load_state_dict(resumed)
    learn.fit(1)
    assert learn.recorder.values[0][2]>0, 'a fit that goes on from a saved state has begun already'
    other = CAMLoss(start=1)
    other.load_state_dict(resumed)
    assert other.started==cb.started
    tiny_learner().fit(1, cbs=cb)
    assert cb.started is None, 'another learner starts afresh'


def test_export_holds_no_network_twice(tmp_path):
    sizes = {}
    for name,cb in (('plain', None), ('cam', CAMLoss(start=0))):
        learn = run(cb, path=tmp_path)
        learn.export(f'{name}.pkl')
        sizes[name] = (tmp_path/f'{name}.pkl').stat().st_size
    assert abs(sizes['cam'] - sizes['plain'])<4000, sizes
    again = load_learner(tmp_path/'cam.pkl')
    assert again.cam_loss.maker is None and again.cam_loss.started is not None


def from_timm(arch, cbs, **kwargs):
    "A learner for four images of noise"
    pairs = Pairs(zip(torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,))))
    dls = DataLoaders.from_dsets(pairs, pairs, bs=4, device='cpu', num_workers=0)
    model = timm.create_model(arch, num_classes=10, **kwargs)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs)


small_swin = dict(img_size=64, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))

@pytest.mark.parametrize('arch,kwargs,method', [
    ('swin_tiny_patch4_window7_224', small_swin, 'cam'), ('convnext_atto', {}, 'grad_cam'), ('resnet10t', {}, 'cam'),
    ('vit_tiny_patch16_224', dict(img_size=64, depth=2, global_pool='avg'), 'grad_cam')])
@pytest.mark.parametrize('cam', ['auto', 'grad_cam'])
def test_layouts_and_heads(arch, kwargs, method, cam):
    "NHWC and token maps, heads with a LayerNorm: the method is chosen rightly, and the step is finite"
    learn = from_timm(arch, [CAMLoss(start=0, cam=cam), NegativeCAM(cam=cam)], **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1)
    assert learn.cam_loss.method==(method if cam=='auto' else cam)
    assert 0<learn.recorder.values[0][2]<1
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert_clean(learn)


@pytest.mark.parametrize('make', [lambda: CAMLoss(start=0), NegativeCAM])
def test_a_class_token_has_no_maps(make):
    "The patches of the last map have no part in the logits, so that Grad-CAM would be zero"
    learn = from_timm('vit_tiny_patch16_224', make(), img_size=64, depth=2)
    before = weights(learn)
    why = "there are no class maps of 'norm'.*class token.*global_pool='avg'"
    with learn.no_bar(), pytest.raises(ValueError, match=why): learn.fit(1)
    assert_same(before, weights(learn))
    assert_clean(learn)


def test_fastai_heads():
    "The default head takes Grad-CAM, an average-pooling head CAM, and cam='cam' refuses the former before any step"
    dls = digits_dls(n_train=32, n_valid=8, bs=16)
    for head,method in ((dict(), 'grad_cam'), (dict(concat_pool=False, lin_ftrs=[]), 'cam')):
        learn = vision_learner(dls, 'resnet10t', pretrained=False, cbs=CAMLoss(start=0), **head)
        learn.remove_cb(ProgressCallback)
        learn.logger = noop
        learn.fit(1)
        assert learn.cam_loss.method==method
    learn = vision_learner(dls, 'resnet10t', pretrained=False, cbs=CAMLoss(cam='cam'))
    learn.remove_cb(ProgressCallback)
    before = weights(learn)
    with pytest.raises(ValueError, match='concat_pool=False'): learn.fit(1)
    assert_same(before, weights(learn))


class TwoPart(nn.Module):
    "A body, and a head with what mixes images in training"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Dropout(.5),
                                  nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10))
    def forward(self, x): return self.head(self.body(x))


@pytest.mark.parametrize('make', [lambda: CAMLoss(start=0), lambda: NegativeCAM()])
@pytest.mark.parametrize('head', ['hidden', 'linear'])
def test_frozen_body(make, head):
    "Nothing to learn before the map: no term, no error, also when it thaws in the middle of fine_tune"
    learn = tiny_learner(make())
    linear = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    learn.model = TwoPart() if head=='hidden' else nn.Sequential(TwoPart().body, linear)
    learn.splitter = lambda m: [params(m.body), params(m.head)] if head=='hidden' else [params(m[0]), params(m[1])]
    learn.create_opt()
    learn.freeze()
    learn.fit(1)
    assert np.isnan(learn.recorder.values[0][2])
    learn.unfreeze()
    learn.fit(1)
    assert learn.recorder.values[0][2]>0


def test_training_maps_are_those_of_evaluation():
    "Dropout and BatchNorm behind the map do not touch Grad-CAM's weights; nor does the pass move what it passes"
    from fastai_featreg.class_maps import head_weights
    torch.manual_seed(0)
    model = TwoPart()
    anatomy,x,classes = get_anatomy(model),torch.randn(6, 3, 16, 16),torch.randint(0, 10, (6, 2))
    model(x), model(x)
    before = {k: v.clone() for k,v in model.state_dict().items()},torch.get_rng_state()
    f = model.train().body(x)
    w = head_weights(model, anatomy.last, x, f, classes)
    assert model.training and torch.equal(before[1], torch.get_rng_state()) and not w.requires_grad
    assert_same(before[0], model.state_dict())
    leaf = f.detach().requires_grad_()
    logits = model.eval().head(leaf)
    for k in range(2):
        g = torch.autograd.grad(logits.gather(1, classes)[:,k].sum(), leaf, retain_graph=True)[0].sum((2, 3))
        torch.testing.assert_close(w[:,k], g, rtol=1e-4, atol=1e-6)


def test_folded_weights_of_odd_heads():
    """SyncBatchNorm and parametrised layers are folded; a factor outside all modules is found, though the classifier
    begins at zero"""
    from torch.nn.utils.parametrizations import weight_norm
    body = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    head = lambda *l: nn.Sequential(body(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *l))
    folded = {'sync': head(nn.SyncBatchNorm(8), nn.Linear(8, 5)), 'weight norm': head(weight_norm(nn.Linear(8, 5)))}
    for name,net in folded.items():
        weights = ClassWeights(net)
        assert weights.layers is not None, name
        torch.testing.assert_close(weights(), weights.probed(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights.of(torch.tensor([[1, 3]])), weights()[torch.tensor([[1, 3]])])
    class Factor(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.fc,self.factor = body(),nn.Linear(8, 5),nn.Parameter(torch.ones(8))
            nn.init.zeros_(self.fc.weight)
        def forward(self, x): return self.fc(self.body(x).mean((2, 3))*self.factor)
    net = Factor()
    weights = ClassWeights(net)
    with torch.no_grad(): net.factor.uniform_(1, 2), net.fc.weight.normal_()
    torch.testing.assert_close(weights(), net.fc.weight.detach()*net.factor.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights.of(torch.tensor([4, 0, 4])), weights()[[4, 0, 4]])


def test_plain_torch_loaders_and_dense_soft_targets():
    x,y = torch.randn(32, 3, 16, 16),torch.randint(0, 10, (32,))
    for targets,loss in ((y, CrossEntropyLossFlat()), (torch.randn(32, 10).softmax(1), nn.CrossEntropyLoss())):
        dl = torch.utils.data.DataLoader(list(zip(x, targets)), batch_size=8)
        learn = Learner(DataLoaders(dl, dl), TwoPart(), loss_func=loss, cbs=[CAMLoss(), NegativeCAM()])
        learn.remove_cb(ProgressCallback)
        learn.logger = noop
        learn.fit(1)
        assert learn.recorder.values[0][-1]>0 if y.ndim==1 and targets is y else learn.recorder.values[0][-1]>=0


def test_nothing_holds_the_model_after_a_fit():
    import gc, weakref
    cb = CAMLoss(start=0)
    learn = tiny_learner(cb)
    learn.fit(1)
    learn.remove_cb(cb)
    ref = weakref.ref(learn.model)
    del learn
    gc.collect()
    assert ref() is None


def test_state_is_plain_data(tmp_path):
    "torch.load reads it by its safe default"
    learn = tiny_learner(CAMLoss())
    learn.fit(1)
    torch.save(learn.cam_loss.state_dict(), tmp_path/'state.pt')
    other = CAMLoss()
    other.load_state_dict(torch.load(tmp_path/'state.pt'))
    mine,theirs = learn.cam_loss.accuracy,other.accuracy
    assert list(theirs.batches)==list(mine.batches) and theirs.size==mine.size


