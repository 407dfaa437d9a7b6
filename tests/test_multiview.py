"""The multi-view head in a learner: it is part of the model, whichever way it came in and wherever the model goes; what
every method has to stand is in the conformance suite"""
import subprocess, sys, textwrap
from copy import deepcopy
from functools import partial
import pytest, timm
from torchvision import models as tv
from fastai_featreg.methods.multiview import *
from fastai_featreg.methods.view_head import *
from fastai_featreg.methods.views import *
from tiny import *
from fastai_featreg.methods.distill_losses import kd_loss
from fastai_featreg.nets import resnet8

views = partial(MVFeaAug, k=3, sizes=(1, 3), seed=0)


def run(cbs=None, epochs=2, **kwargs):
    learn = tiny_learner(cbs, **kwargs)
    learn.fit(epochs, 1e-2)
    assert_clean(learn)
    return learn


def in_order(learn):
    "The optimiser has each of the model's parameters once, those of the head in the last group"
    groups = [[id(p) for p in g] for g in learn.opt.param_lists]
    assert sorted(sum(groups, []))==sorted(id(p) for p in learn.model.parameters())
    assert set(groups[-1])=={id(p) for p in learn.model[-1].parameters()}


ways = dict(
    fit=lambda l, cb: l.fit(2, 1e-2, cbs=cb),
    one_cycle=lambda l, cb: l.fit_one_cycle(2, 1e-2, cbs=cb),
    fine_tune=lambda l, cb: l.add_cb(cb).fine_tune(1, 1e-2),
    frozen=lambda l, cb: (l.freeze(), l.add_cb(cb), l.fit(1), l.unfreeze(), l.fit(1, slice(1e-3, 1e-2))),
    lr_find=lambda l, cb: (l.add_cb(cb), l.lr_find(num_it=4, show_plot=False), l.fit(1)),
    again=lambda l, cb: (l.fit(1), l.fit(1, cbs=cb), l.fit(1, cbs=cb)),
)


@pytest.mark.parametrize('classifier', [None, 'mlp'])
@pytest.mark.parametrize('opt', [Adam, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)])
@pytest.mark.parametrize('way', ways)
def test_every_way_in(way, opt, classifier):
    learn = tiny_learner(opt_func=opt)
    cb = views(classifier=classifier)
    ways[way](learn, cb)
    in_order(learn)
    assert_clean(learn)
    head = find_views(learn.model)
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1, 1e-2, cbs=cb if cb.learn is None else [])
    moved = [not torch.equal(p, q) for p,q in zip(before, learn.model.parameters())]
    assert all(moved), 'every parameter is trained'
    assert (head.k, head.sizes)==(3, (1, 3))


def test_frozen_bodies_stay_and_views_train():
    learn = tiny_learner()
    learn.freeze()
    body = {k: v.clone() for k,v in learn.model[0].named_parameters() if v.ndim>1}
    learn.add_cb(views(classifier='linear'))
    head = {k: v.clone() for k,v in learn.model[1].named_parameters()}
    learn.fit(1)
    assert all(torch.equal(v, dict(learn.model[0].named_parameters())[k]) for k,v in body.items())
    assert not any(torch.equal(v, dict(learn.model[1].named_parameters())[k]) for k,v in head.items()) and len(head)==4
    assert learn.opt.frozen_idx==1


def test_layers_frozen_by_hand_stay_frozen_and_momentum_stays():
    learn = tiny_learner()
    learn.fit(1)
    learn.model[0][0][0].weight.requires_grad_(False)
    learn.model[0][0][0].weight.grad = None # fastai's optimiser steps where there is a gradient, be it zero
    before,state = learn.model[0][0][0].weight.clone(),learn.opt.state[learn.model[0][1][0].weight]
    learn.add_cb(views(classifier='mlp'))
    assert learn.opt.state[learn.model[0][1][0].weight] is state
    learn.fit(1)
    assert torch.equal(before, learn.model[0][0][0].weight)
    in_order(learn)


def own_opt(params, **kwargs):
    return OptimWrapper(opt=torch.optim.SGD(list(built_for.parameters()), lr=.1, momentum=.9))

def three_groups(m): return L(m[0], m[1][:2], m[1][2:]).map(params) # indices that do not know of the new layer

@pytest.mark.parametrize('how', ['built before', 'splitter', 'built before, another classifier'])
def test_parameters_that_the_optimiser_does_not_know(how):
    global built_for
    learn = tiny_learner()
    built_for = learn.model
    if how=='splitter': learn.splitter = three_groups
    else: learn.opt_func = own_opt
    if 'another' in how: learn.fit(1)
    learn.add_cb(views(classifier='linear' if 'another' in how else None))
    before = {k: v.clone() for k,v in learn.model.named_parameters()}
    learn.fit(2, .1)
    assert not any(torch.equal(v, dict(learn.model.named_parameters())[k]) for k,v in before.items()), (
        'a parameter was not trained')
    assert_clean(learn)


def test_what_callbacks_of_default_order_add_to_the_loss_counts():
    class Penalty(Callback):
        run_valid = False
        def after_loss(self): self.learn.loss_grad = self.learn.loss_grad + 10*self.model[0][0][0].weight.pow(2).sum()
    a,b = run(views()),run([views(), Penalty()])
    assert b.model[0][0][0].weight.norm()<.9*a.model[0][0][0].weight.norm()


def test_without_the_callback_the_auxiliary_classifier_rests():
    learn = tiny_learner()
    learn.fit(1, cbs=views())
    before = learn.model[1].aux.weight.clone()
    learn.fit(2)
    assert torch.equal(before, learn.model[1].aux.weight) and not torch.equal(before, torch.zeros_like(before))


def test_another_classifier_for_a_head_that_has_views_is_refused():
    learn = tiny_learner()
    learn.fit(1, cbs=views(classifier='linear'))
    learn.fit(1, cbs=views(classifier='linear'))
    with pytest.raises(ValueError, match='remove_views'): learn.fit(1, cbs=views(classifier='mlp'))
    assert not any(isinstance(cb, MVFeaAug) for cb in learn.cbs)


def test_nothing_is_half_done_where_it_raises():
    head,net = create_head(6, 4),nn.DataParallel(tiny_model())
    with pytest.raises(ValueError, match='k must be'): MultiViewHead.from_head(head, 6, 4, k=0)
    assert type(head) is nn.Sequential and 'aux' not in head._modules
    with pytest.raises(ValueError, match='DataParallel'): install_views(net)
    assert find_views(net) is None
    with pytest.raises(ValueError, match='k must be'): install_views(net.module, k=0)
    assert find_views(net) is None


def make_dls(size=64, n=8, n_out=4):
    set_seed(0)
    x,y = torch.rand(n, 3, size, size),torch.arange(n)%n_out
    pairs = Pairs(zip(map(TensorImage, x), y))
    dls = DataLoaders.from_dsets(pairs, pairs, bs=4, device='cpu', num_workers=0)
    dls.c,dls.vocab = n_out,list('abcd')
    return dls


heads = dict(default={}, gap=dict(concat_pool=False, lin_ftrs=[], ps=0.), hidden=dict(concat_pool=False, lin_ftrs=[16]))

@pytest.mark.parametrize('arch', [tv.resnet18, 'resnet10t', 'convnext_atto', Truncated(tv.resnet18),
                                  Truncated('mobilenetv3_small_050')])
@pytest.mark.parametrize('head', heads)
def test_vision_learner(arch, head):
    learn = vision_learner(make_dls(), arch, pretrained=False, loss_func=CrossEntropyLossFlat(), cbs=MVFeaAug(k=4),
                           normalize=False, **heads[head])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    keys = [k for k in learn.model.state_dict() if not k.startswith('1.aux')]
    assert keys==list(vision_learner(make_dls(), arch, pretrained=False, loss_func=CrossEntropyLossFlat(),
                                     normalize=False, **heads[head]).model.state_dict())
    learn.fine_tune(1)
    in_order(learn)
    assert np.isfinite(learn.recorder.values[-1]).all() and find_views(learn.model).is_affine()==(head=='gap')


@pytest.mark.parametrize('make', [
    partial(tv.resnet18, num_classes=4),
    partial(tv.densenet121, num_classes=4),
    partial(tv.mobilenet_v2, num_classes=4),
    partial(timm.create_model, 'convnext_atto', num_classes=4),
    partial(timm.create_model, 'mobilenetv3_small_050', num_classes=4),
    partial(timm.create_model, 'efficientnet_b0', num_classes=4),
    partial(resnet8, 4),
])
def test_plain_networks_in_two_parts(make):
    net = make()
    learn = Learner(make_dls(), net, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match=r'body_head\(model\)'): learn.add_cb(MVFeaAug())
    assert learn.model is net and not hasattr(learn, 'mv_fea_aug')
    x = torch.randn(2, 3, 64, 64)
    plain = net.eval()(x)
    learn = Learner(make_dls(), body_head(net), loss_func=CrossEntropyLossFlat(),
                    cbs=MVFeaAug(k=1, sizes=(99,))).remove_cb(ProgressCallback)
    # one view that is the whole map changes nothing
    torch.testing.assert_close(learn.model.eval()(x), plain, rtol=1e-3, atol=1e-4)
    find_views(learn.model).set_views(k=4, sizes=(3,))
    learn.logger = noop
    learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()


@pytest.mark.parametrize('model,why', [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
        'body_head'),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                           nn.Sequential(nn.Linear(4, 10))),
        'gives no map'),
])
@pytest.mark.parametrize('early', [True, False])
def test_refused_networks_are_left_alone(model, why, early):
    learn = tiny_learner()
    learn.model = model()
    before,types = weights(learn),[type(m) for m in learn.model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=why): learn.add_cb(views()) if early else learn.fit(1, cbs=views())
    assert_same(before, weights(learn))
    assert types==[type(m) for m in learn.model.modules()] and torch.equal(state, torch.get_rng_state())
    assert not any(isinstance(cb, MVFeaAug) for cb in learn.cbs)


def test_checkpoints_of_the_plain_network_load():
    plain,learn = run(),tiny_learner(views())
    missing = learn.model.load_state_dict(plain.model.state_dict(), strict=False)
    assert missing.missing_keys==['1.aux.weight', '1.aux.bias'] and missing.unexpected_keys==[]


def test_metrics_predictions_and_augmented_predictions_use_the_ensemble():
    learn = run(views(), metrics=accuracy)
    x,y = [torch.stack(list(o)) for o in zip(*learn.dls.valid_ds)]
    head = learn.model[1].eval()
    seen = []
    with torch.no_grad():
        with head.ensemble.register_forward_hook(lambda m, inp, out: seen.append(inp[0])): learn.model(x)
    expected = seen[0].mean(1)
    preds,_,losses = learn.get_preds(with_loss=True, act=noop)
    torch.testing.assert_close(preds, expected)
    torch.testing.assert_close(losses, F.cross_entropy(expected, y, reduction='none'))
    assert learn.validate()[1]==pytest.approx((expected.argmax(1)==y).float().mean().item())
    assert_clean(learn)


def test_distillation_takes_its_share_of_the_views_loss():
    "beta*(L_global + L_local) + (1-beta)*L_kd, by hand"
    teacher = tiny_model().eval()
    def step(cbs):
        learn = tiny_learner(cbs, n=8, opt_func=SGD, wd=0., moms=(0, 0, 0), seed=3)
        learn.model[1][2].p = 0.
        learn.fit(1, 0.1)
        return learn
    learn = step([views(), KnowledgeDistillation(teacher, beta=.3)])
    by_hand = tiny_learner(views(), n=8, seed=3)
    by_hand.model[1][2].p = 0.
    net = by_hand.model.train()
    x,y = first(by_hand.dls.train)
    got = []
    with net[1].ensemble.register_forward_hook(lambda m, inp, out: got.extend(inp)): pred = net(x)
    loss = F.cross_entropy(got[1], y) + F.cross_entropy(got[0].flatten(0, 1), y.repeat_interleave(got[0].shape[1]))
    with torch.no_grad(): answers = teacher(x)
    (.3*loss + .7*kd_loss(pred, answers)).backward()
    for p,q in zip(net.parameters(), learn.model.parameters()):
        torch.testing.assert_close(p - .1*p.grad, q, rtol=1e-4, atol=1e-5)


def test_a_callback_that_comes_to_a_compiled_network():
    learn = tiny_learner()
    learn.model.compile(backend='eager')
    learn.get_preds()
    learn.add_cb(views())
    learn.fit(2, 1e-2)
    plain = tiny_learner()
    plain.add_cb(views())
    plain.get_preds()
    plain.fit(2, 1e-2)
    for k,v in weights(plain).items(): torch.testing.assert_close(v, learn.model.state_dict()[k])


def test_copies_and_removal():
    learn = run(views())
    copy = deepcopy(learn)
    before = weights(learn)
    copy.fit(1)
    assert_same(before, weights(learn))
    assert find_views(copy.model) is not find_views(learn.model)
    copy.mv_fea_aug.remove()
    in_order(copy)
    copy.fit(1)
    assert find_views(copy.model) is None and find_views(learn.model) is not None
    assert list(copy.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'time']
    with pytest.raises(ValueError, match='no multi-view head'): remove_views(copy)


def test_other_views_for_a_head_that_has_some():
    learn = run(views())
    learn.remove_cb(MVFeaAug)
    head,before = find_views(learn.model),weights(learn)
    learn.add_cb(MVFeaAug(k=2, sizes=(3,)))
    assert find_views(learn.model) is head and (head.k, head.sizes)==(2, (3,))
    assert_same(before, weights(learn))


def test_a_head_that_is_gone_is_told():
    learn = run(views())
    remove_views(learn)
    with pytest.raises(ValueError, match='lost its multi-view head'): learn.fit(1)


def test_export_loads_in_a_fresh_process_and_names_the_library_if_it_is_missing(tmp_path):
    learn = vision_learner(make_dls(), 'resnet10t', pretrained=False, loss_func=CrossEntropyLossFlat(),
                           cbs=MVFeaAug(k=4), path=tmp_path, normalize=False)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1)
    learn.export('views.pkl')
    x = torch.rand(3, 3, 64, 64)
    np.save(tmp_path/'x.npy', x.numpy())
    code = f"""
        import sys
        import numpy as np, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tiny import Pairs
        import __main__
        from fastai.learner import load_learner
        learn = load_learner({str(tmp_path/'views.pkl')!r})
        x = torch.tensor(np.load({str(tmp_path/'x.npy')!r}))
        with torch.no_grad(): np.save({str(tmp_path/'y.npy')!r}, learn.model.eval()(x).numpy())
    """
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], check=True)
    with torch.no_grad(): torch.testing.assert_close(torch.tensor(np.load(tmp_path/'y.npy')), learn.model.eval()(x))
    torch.save(learn.model, tmp_path/'net.pkl')
    missing = f"""
        import sys, torch
        sys.modules['fastai_featreg'] = None
        torch.load({str(tmp_path/'net.pkl')!r}, weights_only=False)
    """
    got = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(missing)], capture_output=True,
                         text=True)
    assert got.returncode and 'fastai_featreg' in got.stderr.splitlines()[-1] and 'ModuleNotFoundError' in got.stderr


kinds = dict(
    linear=lambda: MultiViewHead(8, 5),
    mlp=lambda: MultiViewHead(8, 5, 'mlp'),
    prototype=lambda: MultiViewHead(8, 5, 'prototype'),
    default=lambda: MultiViewHead.from_head(create_head(8, 5), 8, 5),
    gap=lambda: MultiViewHead.from_head(create_head(8, 5, lin_ftrs=[], concat_pool=False), 8, 5),
)

@pytest.mark.parametrize('kind', kinds)
def test_torch_export_and_onnx_give_the_same(kind, tmp_path):
    ort,_ = pytest.importorskip('onnxruntime'),pytest.importorskip('onnxscript')
    set_seed(0)
    net = to_torch(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), kinds[kind]()))
    x,other,shapes = torch.randn(2, 3, 28, 28),torch.randn(5, 3, 28, 28),({0: torch.export.Dim('n')},)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(other), net(other))
    flat = torch.zeros(5, 3, 28, 28) # equal values: the first positions, in the exported program as well
    flat[...,10:] = 1.
    torch.testing.assert_close(program.module()(flat), net(flat))
    torch.onnx.export(net, (x,), tmp_path/'net.onnx', dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = ort.InferenceSession(tmp_path/'net.onnx')
    got = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
    torch.testing.assert_close(torch.tensor(got), net(other), rtol=1e-4, atol=1e-5)


def test_ties_are_broken_alike_in_an_exported_network(tmp_path):
    net = to_torch(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), MultiViewHead(8, 5, k=3, sizes=(1,))))
    x = torch.zeros(1, 3, 6, 6)
    x[...,3:] = torch.randn(3)[:,None,None] # two areas of equal values
    ort,_ = pytest.importorskip('onnxruntime'),pytest.importorskip('onnxscript')
    file = tmp_path/'net.onnx'
    torch.onnx.export(net, (x,), file, dynamo=True, verbose=False)
    session = ort.InferenceSession(file)
    torch.testing.assert_close(torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), net(x))


def test_large_maps_need_no_more_memory_than_masks_of_the_views():
    "56 x 56 positions, 200 views: the table of all windows of all positions would have 39 million numbers"
    sizes = []
    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor): sizes.append(out.numel())
            return out
    f = torch.randn(2, 64, 56, 56)
    idx = anchors(torch.randn(2, 56, 56), 50)
    with Watch(): local_pool(f, idx, (3, 5, 7, 9))
    assert max(sizes)==2*200*56*56
    sizes.clear()
    with Watch(): view_weights(idx, (3, 5, 7, 9), (56, 56))
    assert max(sizes)<=2*200*56


def test_formats_of_memory_give_the_same():
    head = MultiViewHead(8, 5).eval()
    f = torch.randn(2, 8, 14, 14)
    torch.testing.assert_close(head(f.to(memory_format=torch.channels_last)), head(f))
    torch.testing.assert_close(local_pool(f.to(memory_format=torch.channels_last), idx := anchors(f[:,0], 9), (3, 5)),
                               local_pool(f, idx, (3, 5)))
