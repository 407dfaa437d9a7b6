"""Few-shot episodes: the literal loop of one episode, answers that are known, what is disjoint; the cosine classifier
and CAM-loss on it"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastai_featreg.archs import make_learner
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.cosine import CosineClassifier, linear_cosines, to_cosine
from fastai_featreg.data import load_data
from fastai_featreg.episodes import (Episodes, draw_episodes, episodes, episodes_of, epoch_order, few_shot_splits,
                                     first_weights, fit_heads, split_classes)
from fastai_featreg.methods.cam_loss import CAMLoss, cam_loss


def literal_episode(x, way, weights, orders, cosine, asked):
    "Chen et al.'s BaselineFinetune, one episode, written out"
    w = weights.clone().requires_grad_()
    extra = (weights.norm(dim=1) if cosine else torch.zeros(way)).requires_grad_()
    def scores(f):
        if not cosine: return f@w.T + extra
        rows = [2*extra[c]*(f@w[c])/(f.norm(dim=1)*w[c].norm()) for c in range(way)]
        return torch.stack(rows, 1)
    shot,buffers = len(x)//way,[None, None]
    labels = torch.arange(way).repeat_interleave(shot)
    for order in orders:
        for i in range(0, len(x), 4):
            chosen = order[i:i + 4]
            loss = F.cross_entropy(scores(x[chosen]), labels[chosen])
            for j,(p,g) in enumerate(zip((w, extra), torch.autograd.grad(loss, (w, extra)))):
                g = g + 1e-3*p.detach()
                buffers[j] = g if buffers[j] is None else .9*buffers[j] + .1*g
                with torch.no_grad(): p -= .01*buffers[j]
    return scores(asked).argmax(1)


@pytest.mark.parametrize('method', ['baseline', 'baseline++'])
def test_accuracies_are_those_of_a_literal_loop(method):
    torch.manual_seed(0)
    labels = np.repeat(range(6), 12)
    x = torch.randn(72, 10) + .8*torch.randn(6, 10)[labels]
    found = episodes_of(x, labels, way=3, shot=2, n=6, query=5, seed=3, method=method, epochs=20)
    support,asked = map(torch.tensor, draw_episodes(labels, 3, 2, 6, 5, 3))
    rng = torch.Generator().manual_seed(3)
    w,orders = first_weights(6, 3, 10, rng),[epoch_order(6, 6, rng) for _ in range(20)]
    right = torch.arange(3).repeat_interleave(5)
    def of_one(e):
        own = [o[e] for o in orders]
        said = literal_episode(x[support[e]], 3, w[e], own, method=='baseline++', x[asked[e]])
        return (said==right).float().mean().item()
    by_hand = [of_one(e) for e in range(6)]
    assert found.accuracies==pytest.approx(by_hand, abs=1e-6)
    assert 1/3<found.mean<1, 'neither all right nor all guessed'


def test_episodes_do_not_meet():
    torch.manual_seed(0)
    x,support = torch.randn(40, 6),torch.tensor([[0, 10], [1, 20], [2, 30]])
    before = fit_heads(x, support, 2, epochs=5)
    other = x.clone()
    other[support[2]] *= torch.randn(6)
    after = fit_heads(other, support, 2, epochs=5)
    assert torch.equal(before.w[0], after.w[0]) and not torch.equal(before.w[2], after.w[2])


def test_no_image_and_no_class_is_on_both_sides():
    labels = np.repeat(range(9), 7)
    support,asked = draw_episodes(labels, 4, 3, n=200, query=4, seed=5)
    for s,q in zip(support, asked):
        assert len({*s, *q})==4*7
        assert len({*labels[s]})==4 and (np.repeat(labels[s][::3], 4)==labels[q]).all()
    for parts in (*few_shot_splits.values(), split_classes(range(100))):
        names = sum(parts.values(), [])
        assert len(names)==len({*names})==100


def test_a_guess_is_covered_by_its_interval_about_as_often_as_it_says():
    rng,covered = np.random.default_rng(0),0
    for _ in range(200):
        e = Episodes(rng.binomial(75, .2, 60)/75, 5, 1, 15, 'guess')
        covered += abs(e.mean - .2)<e.interval
    assert .88<covered/200<.99


def test_known_classes_are_refused():
    data = dict(size=32, bs=8, n_train=40, n_valid=40)
    learn = make_learner(load_data('digits', classes=['0', '1', '2', '3'], **data), 'resnet8', head='linear')
    with pytest.raises(ValueError, match='not trained on, got 3; give a loader of other classes'):
        episodes(learn, load_data('digits', classes=['3', '4', '5'], **data).valid, way=2, n=2, query=2)
    novel = load_data('digits', classes=['4', '5', '6'], **data)
    found = episodes(learn, novel.valid, way=2, n=20, query=3, method='nearest_mean')
    assert found.way==2 and len(found.accuracies)==20
    with pytest.raises(ValueError, match='got one for training'): episodes(learn, novel.train)
    with pytest.raises(ValueError, match='way must be at most the 3 classes, got 5'): episodes(learn, novel.valid)


def test_features_leave_the_network_as_it_was():
    data = dict(size=32, bs=8, n_train=24, n_valid=40)
    learn = make_learner(load_data('digits', classes=['0', '1'], **data), 'resnet8', head='cosine')
    learn.model.train()
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    novel = load_data('digits', classes=['4', '5', '6'], **data)
    rng = torch.get_rng_state()
    episodes(learn, novel.valid, way=2, n=3, query=3, epochs=2)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert learn.model.training and torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_pre_hooks for m in learn.model.modules())


def test_an_estimator_of_scikit_learn():
    linear_model = pytest.importorskip('sklearn.linear_model')
    labels = np.repeat(range(5), 8)
    found = episodes_of(10*torch.eye(5)[labels], labels, way=3, n=5, query=3, method=linear_model.LogisticRegression())
    assert found.mean==1 and found.method=='LogisticRegression'


class Cosine(nn.Module):
    "A convolution, average pooling, a cosine classifier"
    def __init__(self, n_out=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.fc = CosineClassifier(8, n_out)
    def forward(self, x): return self.fc(self.body(x).mean((2, 3)))


def test_cam_of_a_cosine_head_is_its_weights_and_grad_cam_is_not():
    torch.manual_seed(0)
    net,x = Cosine(),torch.randn(4, 3, 32, 32)
    a = get_anatomy(net)
    assert a.cam_exact and a.classifier=='fc' and 'CosineClassifier' in a.cam_why
    f = net.body(x).detach().requires_grad_()
    score = net.fc(f.mean((2, 3)))[torch.arange(4), torch.arange(4)]
    g = torch.autograd.grad(score.sum(), f)[0].sum((2, 3))
    v = net.fc.class_weights()
    # the gradient lacks what points along the features: it is another map
    length = f.mean((2, 3)).norm(dim=1, keepdim=True)
    unit = f.mean((2, 3))/length
    expected = (v - (v*unit).sum(1, keepdim=True)*unit)/length
    assert torch.allclose(g, expected.detach(), atol=1e-5) and not torch.allclose(g*length, v, atol=1e-2)


class Noted(CAMLoss):
    "Keeps its term beside that of the literal formula"
    def loss_term(self, maps):
        self.literal = getattr(self, 'literal', [])
        res,w = super().loss_term(maps),self.learn.model[1][-1].class_weights()
        y = self.learn.y.as_subclass(torch.Tensor)
        self.literal.append((self.method, res.item(), cam_loss(*maps.values(), w[y])))
        return res


@pytest.mark.parametrize('cam', ['cam', 'auto'])
def test_cam_loss_on_a_cosine_head_is_that_of_its_class_weights(cam):
    learn = make_learner(load_data('digits', size=32, bs=8, n_train=24, n_valid=10), 'resnet8', head='cosine')
    cb = Noted(start=0., cam=cam)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-3, cbs=cb)
    assert len(cb.literal)==3
    for method,a,b in cb.literal: assert method=='cam' and a==pytest.approx(b.item(), rel=1e-4)


def test_linear_cosines_ends_with_its_context():
    net = nn.Sequential(nn.Flatten(), CosineClassifier(3, 2))
    with pytest.raises(RuntimeError), linear_cosines(net):
        assert net[1].as_linear
        raise RuntimeError('inside')
    assert not net[1].as_linear and 'as_linear' not in net[1].__dict__
    assert to_cosine(net) is net[1]


@pytest.mark.parametrize('pretrained', [False, True])
def test_the_optimiser_knows_the_cosine_head(pretrained):
    "A frozen learner makes its optimiser at once"
    dls = load_data('digits', size=32, bs=8, n_train=24, n_valid=10)
    learn = make_learner(dls, 'resnet8', head='cosine')
    if pretrained: learn.freeze()
    else: learn.create_opt()
    held = {id(p) for g in learn.opt.param_lists for p in g}
    assert {id(p) for p in learn.model[1][-1].parameters()}<=held
    assert type(learn.model[1][-1]) is CosineClassifier and len(list(learn.model[1][-1].parameters()))==2
