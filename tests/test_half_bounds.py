"""Values and gradients stay finite in float16, bfloat16 and float32: inputs at 0, at constants, from 1e-9 to 3e4

What stretches its input to a fixed range has a slope of 1/spread, and float16 ends at 65504.
"""
import math
from functools import partial
import pytest, torch
from fastai.vision.all import Callback
from fastai_featreg.all import *
from fastai_featreg.methods.cam_loss import cam_loss,negative_cam_loss
from fastai_featreg.methods.distill_losses import at_loss,binary_kd_loss,cat_loss,ccm_loss,dist_loss,dkd_loss,kd_loss
from fastai_featreg.methods.distill_losses import standardise,standardised_kd_loss
from fastai_featreg.methods.drop_functions import select_scale,selectout,spatial_dropout,spatial_scale
from fastai_featreg.methods.feature_mining import mined_pool
from fastai_featreg.maps import caam,caam_cam_distance,cam,cam_and_caam,grad_cam,grad_cam_pp,minmax,resize_maps
from fastai_featreg.methods.views import local_pool
from tiny import fp16,tiny_learner,tiny_teacher

for name in [o for o in globals() if o.startswith('test')]: del globals()[name] # fastcore's helpers are no tests


def randn(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

half,dtypes = torch.float16,[torch.float16, torch.bfloat16, torch.float32]
t,y,classes = randn(1, 4, 6),torch.arange(4),torch.arange(8).view(4, 2)%6
w,wk,wc,other = randn(2, 4, 5),randn(3, 4, 2, 5),randn(4, 6, 5),randn(5, 4, 5, 3, 3)
up,map_up = randn(6, 4, 6),randn(7, 4, 3, 3)
shares = torch.tensor([[.7, .3], [1, 0], [.5, .5], [0, 0]])

def camlike(fn, f, **kwargs):
    "Grad-CAM of a head whose scores depend on `f` more than linearly"
    return fn(f, (f.float()*w[...,None,None]).mean((1, 2, 3)).tanh(), create_graph=True, **kwargs).sum()

on_logits = {
    'kd': partial(kd_loss, teacher=t), 'kd tau 1e-4': partial(kd_loss, teacher=t, tau=1e-4),
    'binary': partial(binary_kd_loss, teacher=t), 'dkd': partial(dkd_loss, teacher=t, target=y),
    'dkd of two': partial(dkd_loss, teacher=t, target=classes, weights=shares),
    'dist': partial(dist_loss, teacher=t), 'dist tau 4': partial(dist_loss, teacher=t, tau=4.),
    'dist, flat teacher': partial(dist_loss, teacher=t*0), 'dist, loud teacher': partial(dist_loss, teacher=1e4*t),
    'standardised': partial(standardised_kd_loss, teacher=t),
    'standardised, tau 4': partial(standardised_kd_loss, teacher=t, tau=4.),
    'standardised, flat teacher': partial(standardised_kd_loss, teacher=t*0),
    'standardise': lambda z: (standardise(z)*up).mean()}

on_maps = {
    'minmax': lambda a: (minmax(a)*map_up).mean(), 'resize': lambda a: resize_maps(a, 5).mean(),
    **{f'distance {d} {p}': lambda a, d=d, p=p: caam_cam_distance(a, map_up, d, p).mean()
       for d in ('l1', 'l2') for p in ('mean', 'sum')},
    'at, ready maps': lambda a: at_loss(a, None, map_up, None)}

on_features = {
    'cam': lambda f: cam(f, w).mean(), 'caam': lambda f: caam(f).mean(), 'both': lambda f: cam_and_caam(f, wk).mean(),
    **{f'cam_loss {d} {p}': lambda f, d=d, p=p: cam_loss(f, w, d, positions=p) for d in ('l1', 'l2')
       for p in ('mean', 'sum')},
    'cam_loss of two': lambda f: cam_loss(f, wk, weights=shares),
    **{f'at {d} {p}': lambda f, d=d, p=p: at_loss(f, w, other, w, d, p) for d in ('l1', 'l2') for p in ('mean', 'sum')},
    'at of two': lambda f: at_loss(f, wk, other, wk, weights=shares),
    **{f'ccm {p}': lambda f, p=p: ccm_loss(f, other, w, positions=p) for p in ('mean', 'sum')},
    'cat 1': lambda f: cat_loss(f, wc, other, wc + 1, 1), 'cat 2': lambda f: cat_loss(f, wc, other, wc, 2),
    'negative zero': lambda f: negative_cam_loss(f.transpose(0, 1)),
    'negative uniform': lambda f: negative_cam_loss(f.transpose(0, 1), mode='uniform'),
    'grad_cam': partial(camlike, grad_cam), 'grad_cam_pp': partial(camlike, grad_cam_pp),
    'mined_pool': lambda f: mined_pool(f, (map_up[0]>0).float()).mean(),
    'local_pool': lambda f: local_pool(f, y[:,None], (1, 3)).float().mean(),
    'spatial_dropout': lambda f: spatial_dropout(f, .8).float().mean(),
    'spatial_scale': lambda f: spatial_scale(f, .2).float().mean(),
    'select_scale': lambda f: select_scale(f, .5, .2).float().mean(),
    'selectout': lambda f: selectout(f, .5, .6).float().mean()}

def inputs(*shape):
    "Name and input: zeros, constants, noise of many scales, noise round constants, one entry, equal images"
    z,one = randn(0, *shape),torch.zeros(shape)
    one.view(-1)[1] = 1.
    scales = {f'noise {s:g}': z*s for s in (1e-9, 1e-7, 1e-6, 1e-5, 6e-5, 1e-4, 1e-3, 1, 1e2, 1e4)}
    round_ = {f'{c:g} + {s:g}': c + z*s for c in (1, -3e-3, .05) for s in (1e-7, 1e-5, 1e-4, 1e-3)}
    ones = {f'one {s:g}': one*s for s in (1e-7, 1e-5, 1e-4, 1, 3e4)}
    same = {f'equal images {s:g}': z[:1].expand_as(z)*s for s in (1e-7, 1e-4, 1)}
    return {'zeros': z*0, 'ones': z*0 + 1, '-1e4': z*0 - 1e4, **scales, **round_, **ones, **same}

kinds = [(k, fn, shape) for fns,shape in ((on_logits, (4, 6)), (on_maps, (4, 3, 3)), (on_features, (4, 5, 3, 3)))
         for k,fn in fns.items()]

@pytest.mark.parametrize('dtype', dtypes, ids=str)
@pytest.mark.parametrize('name,fn,shape', kinds, ids=[k[0] for k in kinds])
def test_values_and_gradients_are_finite(name, fn, shape, dtype):
    for what,z in inputs(*shape).items():
        x = z.to(dtype).requires_grad_()
        assert x.isfinite().all(), what
        out = fn(x)
        out.backward()
        assert out.isfinite(), f'{name} of {what}: {out.item()}'
        assert x.grad.isfinite().all(), f'{name} of {what}: {x.grad.abs().max().item()}'


smooth = [k for k in kinds if k[0] not in ('spatial_dropout', 'spatial_scale', 'select_scale', 'selectout')]
large_enough = ['noise 0.001', 'noise 1', '1 + 0.001']

@pytest.mark.parametrize('what', large_enough)
@pytest.mark.parametrize('name,fn,shape', smooth, ids=[k[0] for k in smooth])
def test_float16_says_what_float64_says(name, fn, shape, what):
    "Value and gradient of the numbers that float16 holds: no bound begins too early"
    if name in ('kd tau 1e-4', 'cat 1'): return # a step function, and a constant
    x = inputs(*shape)[what].to(half)
    a,b = x.clone().requires_grad_(),x.double().requires_grad_()
    got,expected = fn(a),fn(b)
    for o in (got, expected): o.backward()
    assert got.item()==pytest.approx(expected.item(), rel=5e-3, abs=1e-4*max(1, x.abs().max().item()))
    assert (a.grad.double() - b.grad).abs().max() <= 2e-2*b.grad.abs().max() + 1e-6


# ---- by hand, number by number ----

def literal_minmax(a): return [[(v - min(map(min, a)))/(max(map(max, a)) - min(map(min, a))) for v in r] for r in a]

def literal_standardise(row):
    mean = sum(row)/len(row)
    return [(v - mean)/math.sqrt(sum((u - mean)**2 for u in row)/(len(row) - 1)) for v in row]

def literal_correlation(a, b):
    ma,mb = sum(a)/len(a),sum(b)/len(b)
    dot = lambda p,q,m,n: sum((u - m)*(v - n) for u,v in zip(p, q))
    return dot(a, b, ma, mb)/math.sqrt(dot(a, a, ma, ma)*dot(b, b, mb, mb))

def literal_dist(s, t):
    soft = lambda row: [math.exp(v)/sum(math.exp(u) for u in row) for v in row]
    ps,pt = [soft(r) for r in s],[soft(r) for r in t]
    inter = [1 - literal_correlation(a, b) for a,b in zip(ps, pt)]
    intra = [1 - literal_correlation(a, b) for a,b in zip(zip(*ps), zip(*pt))]
    return sum(inter)/len(inter) + sum(intra)/len(intra)

@pytest.mark.parametrize('scale', [1e-4, 1e-3, 1., 1e3])
@pytest.mark.parametrize('dtype', dtypes, ids=str)
def test_values_against_literal_loops(scale, dtype):
    a,z = (randn(8, 2, 3, 4)*scale).to(dtype),(randn(9, 3, 5)*scale).to(dtype)
    for one,got in zip(a, minmax(a)): assert torch.allclose(got, torch.tensor(literal_minmax(one.tolist())), atol=1e-5)
    for row,got in zip(z, standardise(z)):
        assert torch.allclose(got, torch.tensor(literal_standardise(row.tolist())), atol=1e-4)
    if scale>1: return # probabilities of 1 and 0 only: nothing to correlate
    assert dist_loss(z, t[:3,:5]).item()==pytest.approx(literal_dist(z.tolist(), t[:3,:5].tolist()), abs=5e-3)

def test_below_the_smallest_normal_number_float16_has_a_value_and_no_gradient():
    "2^-14 is 6.1e-5; the value is that of float64 to the last digit that float16 holds"
    for span,moves in ((2**-15, False), (2**-14, True), (2**-13, True)):
        for fn,x in ((minmax, [[[0., 1], [.5, 0]]]), (standardise, [[0., 1, .5]])):
            x = (torch.tensor(x)*span).to(half).requires_grad_()
            out = fn(x)
            assert torch.allclose(out, fn(x.double()).float(), atol=2e-5)
            (out*out).sum().backward() if fn is minmax else (out*torch.tensor([1., 2, 3])).sum().backward()
            assert x.grad.any()==moves, (fn.__name__, span)
    for dtype in (torch.bfloat16, torch.float32): # as wide as float32: no bound
        x = (torch.tensor([[[0., 1], [.5, 0]]])*2**-30).to(dtype).requires_grad_()
        minmax(x).pow(2).sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()

def test_equal_images_have_no_relations():
    "Rounding in a mean over the batch is no relation between images"
    for n in range(2, 40):
        s = randn(n, 1, 7).expand(n, 7).clone().requires_grad_()
        loss = dist_loss(s, randn(n + 1, n, 7), inter=0.)
        loss.backward()
        assert loss.item()==1. and not s.grad.any(), n
    assert dist_loss(s.detach(), randn(1, 1, 7).expand(n, 7), inter=0.).item()==1.

@pytest.mark.parametrize('make', [lambda t: CAMLoss(start=0), AttentionTransfer, CCM, CATKD,
                                  partial(KnowledgeDistillation, loss='dist'),
                                  partial(KnowledgeDistillation, loss='standardised')])
def test_features_of_float16_close_to_zero_in_training(make):
    "A network in float16 whose last map is all but silent: the term's gradient is finite"
    learn = tiny_learner(make(tiny_teacher()), n=16)
    with torch.no_grad():
        for p in learn.model[0][2].parameters(): p.mul_(1e-7)
    grads = []
    class Look(Callback):
        order = 100
        def after_backward(self): grads.extend(p.grad for p in self.learn.model.parameters() if p.grad is not None)
    learn.add_cbs([Look(), fp16(init_scale=1.)])
    learn.fit(1, lr=0.)
    assert grads and all(g.isfinite().all() for g in grads)
