"BYOT in a learner: who learns what, the exits and their ensemble after the fit, and every kind of target"
import math
from copy import deepcopy
from functools import partial
import pytest, timm
from fastai_featreg.methods import self_distill
from conformance import Row, accumulated, entries
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.data import digits_dls
from fastai_featreg.methods.self_distill import EnsembleAccuracy, ShallowExit, byot_loss, ensemble, hint_loss
from tiny import *

for name in [o for o in globals() if o.startswith('test')]: del globals()[name] # fastcore's helpers are no tests


def run(cbs=None, n=16, epochs=1, **kwargs):
    learn = tiny_learner(cbs, n=n, **kwargs)
    learn.fit(epochs, 1e-2)
    assert_clean(learn)
    return learn


class Grads(Callback):
    "Gradients of the first batch, of the network and of the exits"
    order,run_valid = 60,False
    def before_step(self):
        if hasattr(self.learn, 'noted'): return
        self.learn.noted = {n: p.grad.clone() for n,p in self.model.named_parameters()}
        exits = getattr(self.learn, 'byot', None)
        self.learn.of_exits = {} if exits is None else {
            n: p.grad.clone() for n,p in exits.aux_heads.named_parameters() if p.grad is not None}


def grads_of(*cbs):
    learn = run([*cbs, Grads()])
    return learn.noted,learn.of_exits


# ---- who learns what ----

@pytest.mark.parametrize('kwargs', [dict(), dict(alpha=1.), dict(alpha=0., hint=1.), dict(hint=1., positions='sum'),
                                    dict(hint=1., positions='mean')])
def test_the_last_stage_and_the_classifier_take_the_plain_step(kwargs):
    "The teacher does not come down to its pupils: neither answers nor last map carry a gradient"
    plain,_ = grads_of()
    taught,exits = grads_of(BYOT(**kwargs))
    for n in plain:
        assert torch.equal(plain[n], taught[n])==n.startswith(('0.2', '1.')), n
    assert all(g.isfinite().all() and g.any() for g in exits.values())


def test_what_each_part_of_the_loss_teaches():
    "The hint alone teaches the bottlenecks and no classifier; the labels alone what they teach without teacher"
    def exits(**kwargs): return grads_of(BYOT(seed=0, **kwargs))[1]
    by_labels,with_hint = exits(alpha=0., hint=0.),exits(alpha=0., hint=1.)
    for n in by_labels:
        if 'classifier' in n: assert torch.equal(by_labels[n], with_hint[n]), n
        else: assert not torch.equal(by_labels[n], with_hint[n]), n
    assert not torch.equal(by_labels['0.classifier.weight'], exits(hint=0.)['0.classifier.weight'])


def test_one_step_is_the_gradient_of_the_equation():
    "Of the network and of the exits, from scratch, from the maps and the batch of the first step"
    kept = {}
    class Keep(Callback):
        order,run_valid = 4,False # after taps have given the maps, before the loss is changed
        def after_loss(self):
            cb = self.learn.byot
            kept.update(maps=list(cb._fit.taps.maps.values()), y=self.y, pred=self.pred,
                        exits=deepcopy(cb.aux_heads), plain=self.learn.loss_grad)
    learn = tiny_learner([BYOT(alpha=.4, tau=2., hint=.1), Keep()], n=8)
    added = []
    class Look(Callback):
        order,run_valid = 6,False
        def after_loss(self): added.append((self.learn.loss_grad - kept['plain']).item())
    learn.add_cb(Look())
    learn.fit(1, 0.)
    *shallow,last = kept['maps']
    total = 0.
    for exit,f in zip(kept['exits'], shallow, strict=True):
        logits,m = exit(f, last.shape[2:])
        soft,own = (kept['pred']/2).softmax(1),(logits/2).log_softmax(1)
        total += .6*F.cross_entropy(logits, kept['y']) + .4*(soft*(soft.log() - own)).sum(1).mean()
        total += .1*(m - last).mean((2, 3)).square().sum(1).mean()
    assert added==[pytest.approx(total.item(), rel=1e-5)]


@pytest.mark.parametrize('weight', [0., lambda pct: 0.])
def test_weight_0_is_plain_training_to_the_last_bit(weight):
    assert_same(weights(run(epochs=2)), weights(run(BYOT(weight=weight), epochs=2)))


def test_exits_grouped_by_image_do_not_care_how_a_batch_is_divided():
    entry = entries['byot']
    accumulated(Row('byot', 'byot', entry, partial(BYOT, norm='group')))


# ---- beside others, any loss ----

def hot(y): return F.one_hot(y, 10).float()

losses = {
    'label smoothing': (LabelSmoothingCrossEntropyFlat(), noop), 'focal': (FocalLossFlat(), noop),
    'several labels': (BCEWithLogitsLossFlat(), lambda y: (hot(y) + hot((y+3)%10)).clamp(max=1)),
    'soft': (nn.CrossEntropyLoss(), lambda y: .8*hot(y) + .02), 'squares of one-hot': (nn.MSELoss(), hot)}

@pytest.mark.parametrize('mix', [None, MixUp, CutMix])
@pytest.mark.parametrize('name', losses)
def test_any_loss(name, mix):
    loss,target = losses[name]
    if mix and name in ('soft', 'squares of one-hot'): return # fastai mixes classes
    learn = tiny_learner([BYOT(), *([mix()] if mix else [])], n=16)
    for dl in learn.dls: dl.dataset[:] = [(x, target(y)) for x,y in dl.dataset]
    learn.loss_func = loss
    learn.fit(2, 1e-2)
    assert all(0<v[2]<math.inf for v in learn.recorder.values)
    assert 0<=get_exits(learn).accuracy['ensemble']<=1


def with_head(head, loss, target, n_out):
    "A learner whose network ends otherwise"
    learn = tiny_learner(BYOT(), n=16)
    learn.model = nn.Sequential(tiny_model(n_out), head) if head else tiny_model(n_out)
    learn.splitter = trainable_params
    for dl in learn.dls: dl.dataset[:] = [(x, target(y)) for x,y in dl.dataset]
    learn.loss_func = loss
    learn.fit(2, 1e-2)
    return learn

@pytest.mark.parametrize('head,loss,target,n_out', [
    (nn.LogSoftmax(1), nn.NLLLoss(), noop, 10), (nn.Sigmoid(), nn.BCELoss(), hot, 10),
    (None, BCEWithLogitsLossFlat(), lambda y: (y>4).float()[None], 1),
    (nn.Flatten(0), nn.BCEWithLogitsLoss(), lambda y: (y>4).float(), 1)],
    ids=['log-probabilities', 'probabilities', 'one output', 'one output without an axis'])
def test_any_form_of_answers(head, loss, target, n_out):
    learn = with_head(head, loss, target, n_out)
    found = get_exits(learn)
    assert {o.shape for o in found.logits.values()}=={(8, n_out)} and found.accuracy.between(0, 1).all()
    assert all(0<v[2]<math.inf for v in learn.recorder.values)


def test_numbers_are_refused():
    with pytest.raises(ValueError, match='BYOT: the targets must be classes, got numbers'):
        with_head(None, nn.MSELoss(), lambda y: y.float()[None]/3, 1)


def test_beside_feature_mining():
    "Table 2 of Feature Mining: both terms, each in its column; the exits are as without, in the first batch"
    learn = run([FeatureMining(layers=2), BYOT()])
    assert list(learn.recorder.metric_names)[3:-1]==['fm_loss', 'byot_loss']
    alone = run(BYOT(), epochs=1)
    assert_same({k: torch.zeros(0) for k in alone.byot.aux_heads.state_dict()},
                {k: torch.zeros(0) for k in learn.byot.aux_heads.state_dict()})


@pytest.mark.parametrize('half', [CpuMixedPrecision, fp16])
@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_in_half_precision(half, norm):
    learn = run([BYOT(norm=norm), half()])
    assert 0<learn.recorder.values[-1][2]<math.inf
    assert all(p.isfinite().all() for p in learn.byot.aux_heads.parameters())
    assert {p.dtype for p in learn.byot.aux_heads.parameters()}=={torch.float32}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('scale', [0., 1e-7, 1e-4, 1., 1e2, 1e4])
def test_values_and_gradients_are_finite(scale, dtype):
    g = torch.Generator().manual_seed(0)
    f,other = (scale*torch.randn(2, 4, 5, 3, 3, generator=g)).to(dtype)
    z,t = (scale*torch.randn(2, 4, 6, generator=g)).to(dtype)
    by_labels = partial(F.cross_entropy, target=torch.arange(4))
    for fn,x in (*[(partial(hint_loss, deepest=other, positions=p), f) for p in ('pooled', 'mean', 'sum')],
                 (lambda o: byot_loss([o], t, by_labels), z), (lambda o: byot_loss([o], t, by_labels, binary=True), z)):
        x = x.clone().requires_grad_()
        out = fn(x)
        out.backward()
        assert out.isfinite() and x.grad.isfinite().all()


# ---- exits ----

def test_the_exits_are_asked_as_they_are():
    "By hand on all images at once; twice the same; network, generators and exits are as before"
    learn = run(BYOT(), n=48)
    x,y = [torch.stack(o) for o in zip(*learn.dls.valid_ds)]
    before,exits = weights(learn),deepcopy(learn.byot.aux_heads.state_dict())
    training = [m.training for m in learn.model.modules()]
    rng = torch.get_rng_state()
    found = get_exits(learn)
    assert torch.equal(rng, torch.get_rng_state()) and training==[m.training for m in learn.model.modules()]
    assert_same(before, weights(learn))
    assert_same(exits, learn.byot.aux_heads.state_dict())
    assert list(found.logits)==['0.0', '0.1', 'network'] and torch.equal(found.y, y)
    body,f = learn.model[0].eval(),x
    maps = []
    with torch.no_grad():
        for block in body: maps.append(f := block(f))
        own = learn.model.eval()(x)
        by_hand = [exit.eval()(f, (2, 2))[0] for exit,f in zip(learn.byot.aux_heads, maps)]
    for got,expected in zip(found.logits.values(), [*by_hand, own], strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
    total = (by_hand[0] + by_hand[1] + own)/3
    assert torch.allclose(found.ensemble, total, atol=1e-5)
    assert found.accuracy['ensemble']==(total.argmax(1)==y).float().mean().item()
    assert found.accuracy['network']==(own.argmax(1)==y).float().mean().item()
    torch.testing.assert_close(get_exits(learn).ensemble, found.ensemble, rtol=0, atol=0)
    assert_clean(learn)


def test_a_callback_given_to_fit_is_passed():
    cb = BYOT()
    learn = tiny_learner(n=16)
    learn.fit(1, 1e-2, cbs=cb)
    with pytest.raises(ValueError, match='pass it as `cb`'): get_exits(learn)
    assert len(get_exits(learn, cb=cb).logits)==3


def test_what_is_not_there_is_said(tmp_path):
    learn = tiny_learner(BYOT(), n=16, path=tmp_path)
    with pytest.raises(ValueError, match='the exits must have been trained, got none'): get_exits(learn)
    learn.fit(1)
    learn.export('net.pkl')
    with pytest.raises(ValueError, match='neither checkpoints nor exported learners'):
        get_exits(load_learner(tmp_path/'net.pkl'), learn.dls.valid)
    images = [(torch.randn(4, 3, 16, 16),)]
    found = get_exits(learn, images)
    assert found.ensemble.shape==(4, 10)
    with pytest.raises(ValueError, match='the images must have targets, got none'): print(found.accuracy)


def test_images_of_another_size():
    "The same exits take them; map sizes need not be whole multiples"
    learn = run(BYOT())
    for size in (16, 20, 31):
        found = get_exits(learn, [(torch.randn(4, 3, size, size), torch.zeros(4).long())])
        assert len(found.accuracy)==4 and all(o.isfinite().all() for o in found.logits.values())


class Passes:
    "Batches that the network is given, of anybody"
    def __init__(self): self.n = 0
    def count(self, *_): self.n += 1


def passes(learn, f):
    counter = Passes()
    handle = learn.model.register_forward_pre_hook(counter.count)
    f()
    handle.remove()
    return counter.n


def test_a_report_asks_the_network_nothing():
    learn = run(BYOT(), n=48)
    assert passes(learn, learn.byot.report)==0 and learn.byot.report()['note']==''
    assert passes(learn, partial(get_exits, learn))>0


def test_the_metric_finds_the_exits_once_a_validation(monkeypatch):
    "Not once a batch; and it counts images"
    learn = tiny_learner(BYOT(), n=64, metrics=EnsembleAccuracy())
    found,ask = [],self_distill.get_anatomy
    learn.fit(1, 1e-2)
    monkeypatch.setattr(self_distill, 'get_anatomy', lambda *args, **kwargs: found.append(1) or ask(*args, **kwargs))
    dl = learn.dls.valid.new(bs=3)
    value = learn.validate(dl=dl)[1]
    assert len(dl)>2 and len(found)==1
    learn.validate(dl=dl)
    assert len(found)==2
    asked_now = get_exits(learn, dl)
    assert value==asked_now.right['ensemble']/len(asked_now.y)
    assert asked_now.right.dtype.kind=='i' and (asked_now.accuracy==asked_now.right/len(asked_now.y)).all()


def test_the_metric_is_the_ensemble_of_each_epoch():
    learn = run(BYOT(), n=48, epochs=2, metrics=[accuracy, EnsembleAccuracy()])
    assert list(learn.recorder.metric_names)[3:5]==['accuracy', 'ensemble_accuracy']
    assert learn.recorder.values[-1][3]==pytest.approx(get_exits(learn).accuracy['ensemble'])
    assert learn.recorder.values[-1][2]==pytest.approx(get_exits(learn).accuracy['network'])
    assert_same(weights(learn), weights(run(BYOT(), n=48, epochs=2))) # measuring changes nothing


def test_the_metric_comes_with_all():
    import fastai_featreg.all as names
    assert names.EnsembleAccuracy is EnsembleAccuracy


def test_without_exits_the_metric_is_the_networks_accuracy():
    learn = run(n=48, metrics=[accuracy, EnsembleAccuracy()])
    assert learn.recorder.values[-1][2]==pytest.approx(learn.recorder.values[-1][3])


def test_a_comparison_of_ensembles(tmp_path):
    "As in Table 2 of Feature Mining: the ensemble of the arm that has one, beside the network of the other"
    dls = digits_dls(n_train=64, n_valid=32, bs=32, size=32)
    res = compare(dls=dls, methods='byot', arch='resnet20', epochs=1, seeds=1, metric=EnsembleAccuracy(), out=tmp_path,
                  bars=False, cost=False, say=noop)
    rows = read_results(tmp_path/'results.csv').set_index('method')
    assert set(rows['metric'])=={'ensemble_accuracy'} and (rows['error']=='').all(), res
    assert float(rows.loc['plain', 'scores'])==pytest.approx(rows.loc['plain', 'accuracy'], abs=1e-5)


# ---- layers ----

def test_exits_are_in_network_order_whatever_the_order_they_are_named_in():
    a,b = run(BYOT(layers=['0.1', '0.0'], seed=0)),run(BYOT(layers=['0.0', '0.1'], seed=0))
    assert_same(weights(a), weights(b))
    assert len(run(BYOT(layers=1)).byot.aux_heads)==1
    assert run(BYOT(layers=1)).byot.report()['acted']=='2/2'


def test_the_exits_are_alike_whatever_the_size_of_the_images():
    net = timm.create_model('resnet10t', num_classes=10)
    shapes = []
    for size in (64, 80, 128, 160):
        anatomy,cb = get_anatomy(net, size=size, check_cam=False),BYOT()
        exits = cb.make_heads(cb.find_layers(anatomy), 10)
        shapes.append([tuple(p.shape) for p in exits.parameters()])
        assert [o.shrink for o in exits]==[8, 4, 2]
    assert all(s==shapes[0] for s in shapes)


@pytest.mark.parametrize('layers,said', [
    (['0.2'], "layers must be before the network's last map, that of '0.2', got '0.2'"),
    ([-1], "layers must be before the network's last map"), (0, 'BYOT: layers must be a number of last stages')])
def test_layers_that_cannot_be(layers, said):
    with pytest.raises(ValueError, match=said): run(BYOT(layers=layers))


def test_a_network_of_one_stage():
    learn = tiny_learner(BYOT(), n=16)
    learn.model = nn.Sequential(tiny_model()[0][0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    learn.splitter = trainable_params
    with pytest.raises(ValueError, match='BYOT: the network must have two stages at least'): learn.fit(1)
    assert_clean(learn)


@pytest.mark.parametrize('kwargs', [dict(alpha=-.1), dict(tau=0), dict(hint=-1), dict(positions='max'),
                                    dict(norm='layer'), dict(alpha='a'), dict(hint=math.nan)])
def test_arguments_are_checked(kwargs):
    with pytest.raises(ValueError, match=f'BYOT: {first(kwargs)} must be'): BYOT(**kwargs)


def test_a_module_by_hand():
    "One channel, one output: what each layer does can be followed"
    exit = ShallowExit(1, 1, 1, shrink=2, norm='group')
    conv,norm,_,pool,norm2,_,last = exit.bottleneck
    with torch.no_grad():
        for m in (conv, last, exit.classifier): m.weight.fill_(2.)
        pool.weight.fill_(1.)
        for m in (last, exit.classifier): m.bias.fill_(.5)
    f = torch.tensor([[[[0., 0, 1, 1], [0, 0, 1, 1]]]]) # (1,1,2,4) -> (1,1,1,2)
    logits,m = exit(f, (1, 2))
    # normalised to -1 and 1, ReLU 0 and 1, sums 0 and 4, normalised to -1 and 1, ReLU 0 and 1
    assert torch.allclose(m, torch.tensor([[[[.5, 2.5]]]]), atol=1e-4)
    assert logits.item()==pytest.approx(2*1.5 + .5, abs=1e-3)


def test_ensemble_of_half_precision():
    a = torch.full((1, 2), 6e4, dtype=torch.float16)
    assert torch.equal(ensemble([a, a]), a.float())
