"""Center loss, L-softmax and SM-softmax against loops with arccosines, against pytorch-metric-learning, in double and
half precision; what the callbacks do in training"""
import math
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from fastai.vision.all import Callback, CrossEntropyLossFlat, GradientAccumulation, MixUp, SGD, nn
from fastai_featreg.all import *
from fastai_featreg.methods.center_loss import ClassCentres, center_loss
from fastai_featreg.methods.margins import falling_lambda, l_softmax_loss, l_softmax_shift, margin_angle, margin_loss
from fastai_featreg.methods.margins import sm_softmax_loss
from tiny import fp16, tiny_learner, weights

for name in [o for o in globals() if o.startswith('test')]: del globals()[name] # fastcore's helpers are no tests


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def drawn(seed, n=8, d=5, c=4):
    "Embeddings, class vectors, biases, classes"
    y = torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed + 3))
    return randn(seed, n, d),randn(seed + 1, c, d),randn(seed + 2, c),y


# ---- against loops ----

def literal_logit(x, w, b, m, lam):
    "The target's logit, by the angle itself"
    dot,size = sum(p*q for p,q in zip(x, w)),math.hypot(*x)*math.hypot(*w)
    theta = math.acos(dot/size)
    k = min(int(theta*m/math.pi), m - 1)
    psi = (-1)**k*math.cos(m*theta) - 2*k
    return (lam*dot + size*psi)/(1 + lam) + b

def literal_loss(x, w, b, y, m, lam):
    total = 0.
    for row,c in zip(x.tolist(), y.tolist()):
        z = [sum(p*q for p,q in zip(row, v)) + o for v,o in zip(w.tolist(), b.tolist())]
        z[c] = literal_logit(row, w[c].tolist(), float(b[c]), m, lam)
        total += math.log(sum(math.exp(v) for v in z)) - z[c]
    return total/len(x)

@pytest.mark.parametrize('m', range(1, 9))
@pytest.mark.parametrize('lam', [0., .3, 1000.])
def test_l_softmax_equals_the_loop_with_arccosines(m, lam):
    for seed in range(5):
        x,w,b,y = drawn(seed)
        assert l_softmax_loss(x, w, y, m, lam, b).item()==pytest.approx(literal_loss(x, w, b, y, m, lam), rel=1e-9)

@pytest.mark.parametrize('m', range(1, 9))
def test_psi_is_smooth_where_its_pieces_meet(m):
    "Value and slope on either side of an angle of j pi/m, and finite ones at both ends"
    for j in range(m + 1):
        cos = torch.tensor([max(-1., min(1., math.cos(j*math.pi/m) + e)) for e in (-1e-9, 1e-9)], dtype=torch.float64)
        cos.requires_grad_()
        psi = margin_angle(cos, m)
        slope, = torch.autograd.grad(psi.sum(), cos)
        assert psi.isfinite().all() and slope.isfinite().all() and (slope>=-1e-6).all()
        # (-1)^j cos(j pi) - 2j
        assert (psi[0] - psi[1]).abs()<1e-6 and psi[0].item()==pytest.approx(1 - 2*j, abs=1e-6)
        assert (slope[0] - slope[1]).abs()<1e-3*max(1, slope.abs().max())

def test_sm_softmax_equals_torch_on_a_moved_logit():
    x,w,b,y = drawn(0)
    logits = x@w.T + b
    for m in (0., .5, 10.):
        moved = logits.clone()
        for i,c in enumerate(y.tolist()): moved[i,c] -= m
        assert sm_softmax_loss(logits, y, m).item()==pytest.approx(F.cross_entropy(moved, y).item(), rel=1e-12)


# ---- against a peer ----

def test_l_softmax_equals_pytorch_metric_learning():
    losses = pytest.importorskip('pytorch_metric_learning.losses', reason='pytorch-metric-learning is not installed')
    for m in (1, 2, 3, 4):
        x,w,_,y = drawn(m, 32, 6, 5)
        peer = losses.LargeMarginSoftmaxLoss(num_classes=5, embedding_size=6, margin=m)
        peer.W.data = w.T.contiguous()
        a,b = x.clone().requires_grad_(),x.clone().requires_grad_()
        own,theirs = l_softmax_loss(a, w, y, m),peer(b, y)
        assert own.item()==pytest.approx(theirs.item(), rel=1e-6)
        own.backward(), theirs.backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)

def test_sm_softmax_of_cosines_equals_cosface_of_pytorch_metric_learning():
    "On vectors of length one both take the margin off the same logit"
    losses = pytest.importorskip('pytorch_metric_learning.losses', reason='pytorch-metric-learning is not installed')
    x,w,_,y = drawn(7, 32, 6, 5)
    peer = losses.CosFaceLoss(num_classes=5, embedding_size=6, margin=.35, scale=1)
    peer.W.data = w.T.contiguous()
    cos = F.normalize(x)@F.normalize(w).T
    assert sm_softmax_loss(cos, y, .35).item()==pytest.approx(peer(x, y).item(), rel=1e-6)


# ---- gradients and precision ----

shares = torch.tensor([[.7, .3], [1, 0], [.5, .5], [.2, .8]], dtype=torch.float64)

def test_gradients_in_double_precision():
    x,w,b,_ = drawn(1, 4, 3)
    classes = torch.tensor([[0, 1], [2, 0], [3, 1], [1, 2]])
    soft = torch.zeros(4, 4, dtype=torch.float64).scatter_add_(1, classes, shares)
    for o in (x, w, b): o.requires_grad_()
    for m in (2, 3, 4):
        assert gradcheck(partial(l_softmax_loss, y=classes[:,0], margin=m, lam=.5), (x, w))
        assert gradcheck(lambda b, m=m: l_softmax_loss(x, w, classes[:,0], m, 0., b), (b,))
        assert gradcheck(partial(l_softmax_shift, classes=classes, margin=m), (x, w))
    assert gradcheck(partial(sm_softmax_loss, y=soft), (randn(5, 4, 4).requires_grad_(),))
    assert gradcheck(partial(center_loss, centres=w, classes=classes, shares=shares), (x,))

y = torch.tensor([0, 3, 1, 1])
w4 = randn(2, 4, 5, dtype=torch.float32)
kinds = { # of a tensor in low precision, and of one that is not
    'l_softmax': lambda x, w: l_softmax_loss(x, w, y), 'l_softmax lam': lambda x, w: l_softmax_loss(x, w, y, 3, 2.),
    'l_softmax, vectors': lambda x, w: l_softmax_loss(w, x, y),
    'sm_softmax': lambda x, w: sm_softmax_loss(x, y), 'sm_softmax 100': lambda x, w: sm_softmax_loss(x, y, 100.),
    'center_loss': lambda x, w: center_loss(x, w, y)}
scales = (0., 1e-9, 1e-7, 1e-5, 1e-3, 1., 1e2, 1e4)

@pytest.mark.parametrize('name', kinds)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values_and_gradients_are_finite_and_near(name, dtype):
    for s in scales:
        x = (s*randn(0, 4, 5)).to(dtype).requires_grad_()
        full = x.detach().double().requires_grad_()
        got,expected = kinds[name](x, w4),kinds[name](full, w4.double())
        got.backward(), expected.backward()
        assert got.isfinite() and x.grad.isfinite().all(), s
        assert got.item()==pytest.approx(expected.item(), rel=1e-4, abs=1e-5), s
        eps = torch.finfo(dtype).eps
        assert (x.grad.double() - full.grad).abs().max()<=4*eps*full.grad.abs().max() + 1e-6, s

def test_vectors_that_are_zero_or_lie_on_their_class_have_finite_slopes():
    for x in (0*w4, w4, -w4, 3*w4):
        x = x.clone().requires_grad_()
        l_softmax_loss(x, w4, y.sort().values).backward()
        l_softmax_loss(x, w4, torch.arange(4)).backward()
        assert x.grad.isfinite().all()


# ---- in training ----

def fitted(cb=None, epochs=1, lr=.1, n=16, **kwargs):
    learn = tiny_learner(cb, n=n, opt_func=SGD, wd=0., moms=(0, 0, 0), **kwargs)
    learn.fit(epochs, lr)
    return learn

@pytest.mark.parametrize('cb,loss', [
    (LSoftmax(lam=.5), lambda x, linear, y: l_softmax_loss(x, linear.weight, y, 4, .5, linear.bias)),
    (SMSoftmax(2.), lambda x, linear, y: sm_softmax_loss(linear(x), y, 2.))], ids=repr)
def test_a_step_is_that_of_the_changed_cross_entropy(cb, loss):
    "All parameters, the classifier's too, go down the gradient of the loss with the margin"
    learn,other = [tiny_learner(c, n=8, bs=8, opt_func=SGD, wd=0., moms=(0, 0, 0)) for c in (cb, None)]
    for o in (learn, other): o.model[1][2].p = 0. # the dropout
    x,t = map(torch.stack, zip(*other.dls.train_ds))
    emb = other.model[1][:-1](other.model[0](x))
    loss(emb, other.model[1][-1], t).backward()
    learn.fit(1, .1)
    for p,q in zip(other.model.parameters(), learn.model.parameters()):
        torch.testing.assert_close(p.data - .1*p.grad, q.data, rtol=1e-4, atol=1e-6)

class Watch(Callback):
    "Loss that is differentiated, and what the margin makes of each of MixUp's targets"
    order,run_valid = 6,False
    def __init__(self, loss): self.loss,self.pairs = loss,[]
    def after_loss(self):
        mix = self.learn.mix_up
        a,b = self.loss(self.learn.pred, self.learn.yb[0]),self.loss(self.learn.pred, mix.yb1[0])
        self.pairs.append((self.learn.loss_grad.item(), (mix.lam*a + (1 - mix.lam)*b).mean().item()))

def test_with_mixup_the_loss_is_the_expectation():
    def each(pred, y): return margin_loss(pred, y[:,None], -1.5)[:,0]
    watch = Watch(each)
    learn = tiny_learner([MixUp(), SMSoftmax(1.5), watch], n=16)
    learn.fit(1, 1e-2)
    for got,expected in watch.pairs: assert got==pytest.approx(expected, rel=1e-5)
    assert len(watch.pairs)==2

weighted,summed = CrossEntropyLossFlat(weight=torch.linspace(1, 3, 10)),nn.CrossEntropyLoss(reduction='sum')

@pytest.mark.parametrize('loss', [weighted, summed, nn.CrossEntropyLoss()], ids=['weights', 'sum', 'mean'])
def test_the_sum_is_the_learners_own_loss_of_changed_logits(loss):
    seen = []
    class Look(Callback):
        order,run_valid = 6,False
        def after_loss(self):
            moved = self.learn.pred - 1.5*F.one_hot(self.learn.y, 10)
            seen.append((self.learn.loss_grad.item(), loss(moved, self.learn.y).item()))
    learn = tiny_learner([SMSoftmax(1.5), Look()], n=16)
    learn.loss_func = loss
    learn.fit(1, 1e-3)
    for got,expected in seen: assert got==pytest.approx(expected, rel=1e-5)

def test_half_of_the_weight_is_half_of_the_way():
    def first_loss(weight):
        seen = []
        class Look(Callback):
            order,run_valid = 6,False
            def after_loss(self): seen.append(self.learn.loss_grad.item())
        tiny_learner([SMSoftmax(2., weight=weight), Look()], n=16).fit(1, 0.)
        return seen[0]
    a,b,c = map(first_loss, (0., .5, 1.))
    assert b==pytest.approx((a + c)/2, rel=1e-6) and c>a + 1

def test_the_curriculum_is_read_in_each_batch():
    seen = []
    def lam(pct):
        seen.append(pct)
        return falling_lambda(pct)
    fitted(LSoftmax(lam=lam), n=32)
    assert len(seen)==4 and seen==sorted(seen) and seen[0]<seen[-1]
    given,default = [fitted(LSoftmax(**kwargs), lr=1e-2) for kwargs in (dict(lam=falling_lambda), {})]
    for p,q in zip(given.model.parameters(), default.model.parameters()): assert torch.equal(p, q)
    with pytest.raises(ValueError, match=r'LSoftmax: lam\(0\) must be a number of at least 0, got -1'):
        fitted(LSoftmax(lam=lambda pct: -1))


# ---- centres ----

def test_centres_follow_the_batches_and_are_nobodys_parameters():
    learn = fitted(cb := CenterLoss(weight=0.5), lr=0., n=16, epochs=3)
    centres = cb.aux_heads.centres
    assert not list(cb.aux_heads.parameters()) and centres.abs().sum()>0
    seen = torch.cat([b[1] for b in learn.dls.train]).unique()
    absent = [c for c in range(10) if c not in seen.tolist()]
    assert (centres[absent]==0).all()

def test_accumulated_batches_move_the_centres_once():
    def centres(bs, *cbs):
        learn = tiny_learner([cb := CenterLoss(weight=.5), *cbs], n=16, bs=bs)
        for m in learn.model.modules(): m.training = m is learn.model
        learn.model.train = lambda mode=True: learn.model
        learn.fit(1, 0.)
        return cb.aux_heads.centres
    torch.testing.assert_close(centres(16), centres(8, GradientAccumulation(16)))
    assert not torch.equal(centres(16), centres(8))

def test_a_skipped_step_moves_no_centre():
    "Gradients overflow in half precision, as 2^60 does"
    learn = tiny_learner([cb := CenterLoss(weight=.5), fp16(2.**60)], n=8)
    learn.fit(1, 1e-2)
    assert (cb.aux_heads.centres==0).all() and cb.aux_heads.sums is None

def test_centres_are_kept_over_fits_and_made_anew_for_other_classes():
    learn = tiny_learner(cb := CenterLoss(weight=.5), n=16)
    learn.fit(1, 0.)
    before = cb.aux_heads
    learn.fit(1, 0.)
    assert cb.aux_heads is before
    learn.model[1][-1] = nn.Linear(16, 12)
    learn.fit(1, 0.)
    assert cb.aux_heads is not before and cb.aux_heads.centres.shape==(12, 16)

def test_a_state_of_other_classes_is_refused():
    fitted(cb := CenterLoss())
    other = tiny_learner(again := CenterLoss(), n=8)
    other.model[1][-1] = nn.Linear(16, 12)
    again.load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match='state is that of heads for other layers or classes'): other.fit(1)

def test_the_module_alone_goes_to_the_means_of_the_classes():
    x,t = randn(0, 40, 3, dtype=torch.float32),torch.arange(40)%4
    module = ClassCentres(4, 3)
    for _ in range(60): module(x, t), module.update()
    torch.testing.assert_close(module.centres, torch.stack([x[t==c].mean(0) for c in range(4)]), rtol=1e-4, atol=1e-4)
    soft = F.one_hot(t, 4).float()
    torch.testing.assert_close(module(x, soft), module(x, t))


# ---- heads of many kinds ----

class ConvHead(nn.Sequential):
    "A 1x1 convolution whose output is averaged: affine in the average of its input"
    def __init__(self): super().__init__(nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def with_head(cb, head):
    learn = tiny_learner(cb, n=16)
    learn.model[1] = head
    return learn

def pooled(*layers): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)
def hidden(): return pooled(nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 10))

@pytest.mark.parametrize('make', [partial(CenterLoss, .1), partial(LSoftmax, lam=0.)])
@pytest.mark.parametrize('head,features', [(ConvHead, 16), (hidden, 7)])
def test_the_embedding_is_the_classifiers_input(make, head, features):
    learn = with_head(cb := make(), head())
    before = weights(learn)
    learn.fit(1, 1e-2)
    assert all(v>0 for v in learn.recorder.values[-1][2:])
    if isinstance(cb, CenterLoss): assert cb.aux_heads.centres.shape==(10, features)
    assert any(not torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items())

def relu_head(): return nn.Sequential(nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

@pytest.mark.parametrize('make', [CenterLoss, LSoftmax])
@pytest.mark.parametrize('head,sentence', [
    (relu_head, 'answers must be what its last linear layer gives'),
    (lambda: pooled(nn.Linear(16, 10), nn.Tanh()), 'answers must be what its last linear layer gives'),
    (lambda: pooled(nn.Linear(16, 1)), 'at least two classes, got one output'),
    (lambda: nn.Sequential(nn.Conv2d(16, 10, 2), nn.Flatten()), 'got none')])
def test_other_heads_are_refused_early(make, head, sentence):
    learn = with_head(make(), head())
    before = weights(learn)
    with pytest.raises(ValueError, match=sentence): learn.fit(1)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items()) # statistics of BatchNorm, too

def test_softmax_behind_the_classifier_is_no_obstacle():
    learn = with_head(LSoftmax(lam=0.), pooled(nn.Linear(16, 10), nn.LogSoftmax(1)))
    learn.loss_func = nn.NLLLoss()
    learn.fit(1, 1e-2)
    assert learn.recorder.values[-1][2]>0


# ---- soft targets of many classes ----

def soft_targets(n, c, seed=0): return torch.rand(n, c, generator=torch.Generator().manual_seed(seed)).softmax(1)

@pytest.mark.parametrize('c', [3, 21, 100])
def test_without_a_margin_soft_targets_have_the_cross_entropy_of_torch(c):
    x,w,y = randn(0, 6, 8),4*randn(1, c, 8),soft_targets(6, c).double()
    expected = F.cross_entropy(x@w.T, y)
    torch.testing.assert_close(l_softmax_loss(x, w, y, margin=1), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(sm_softmax_loss(x@w.T, y, margin=0), expected, rtol=1e-6, atol=0)

def test_centres_take_soft_targets_whole():
    x,y = randn(0, 6, 3, dtype=torch.float32),soft_targets(6, 40)
    module = ClassCentres(40, 3)
    module.centres.copy_(randn(1, 40, 3, dtype=torch.float32))
    half = torch.cdist(x, module.centres).square()/2
    torch.testing.assert_close(module(x, y), (half*y).sum(1).mean())
    torch.testing.assert_close(module.counts, y.sum(0))

def test_a_callbacks_term_takes_soft_targets_whole():
    seen = []
    class Look(Callback):
        order,run_valid = 6,False
        def after_loss(self):
            each = margin_loss(self.learn.pred, torch.arange(40).expand(8, -1), -1.5)
            loss = (each*self.learn.y).sum(1).mean()
            seen.append((self.learn.loss_grad.item(), loss.item()))
    soft_learner(SMSoftmax(1.5), Look()).fit(1, 1e-3)
    for got,loss in seen: assert got==pytest.approx(loss, rel=1e-5)
    assert len(seen)==2

def soft_learner(*cbs):
    learn = tiny_learner(list(cbs), n=16)
    learn.model[1][-1] = nn.Linear(16, 40)
    learn.loss_func = nn.CrossEntropyLoss()
    for dl in learn.dls: dl.dataset[:] = [(x, y) for (x, _),y in zip(dl.dataset, soft_targets(len(dl.dataset), 40))]
    return learn

def test_center_loss_counts_all_classes_of_soft_targets():
    counts = []
    class Look(Callback):
        order,run_valid = 100,False
        def before_backward(self): counts.append((self.learn.center_loss.aux_heads.counts.clone(), self.learn.y.sum(0)))
    soft_learner(CenterLoss(), Look()).fit(1, 1e-3)
    assert len(counts)==2
    for got,shares in counts: torch.testing.assert_close(got, shares.as_subclass(torch.Tensor))
