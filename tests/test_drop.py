"The drops: their functions on random shapes and values, and what their callbacks do in a learner"
import random
from copy import deepcopy
from functools import partial
import subprocess, sys, textwrap
import pytest, timm
import torch.utils.checkpoint
from hypothesis import given, settings, strategies as st
from tiny import *
from fastai_featreg.core import isolated_rng
import fastai_featreg.drop
from fastai_featreg.drop import channel_readers, has_running_stats, is_norm

sizes = st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 5), st.integers(1, 5))
rates = st.floats(0, 1)
seeds = st.integers(0, 10**6)


def draw_map(size, seed, dtype=torch.float32): return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)

def factors(drop, f):
    "The factor of each channel, from a map and what a drop makes of it"
    out = drop(f)
    m = (out/f).flatten(2)
    torch.testing.assert_close(m, m[:,:,:1].expand_as(m), rtol=1e-5, atol=1e-5)
    return m[:,:,0]


@settings(deadline=None, max_examples=200)
@given(sizes, seeds, rates, st.booleans())
def test_top_channels(size, seed, t, dead):
    f = draw_map(size, seed)
    if dead: f = f.relu()*(torch.rand(size[:2])<.5)[:,:,None,None] # ties at zero
    top,k = top_channels(f, t),max(1, round(t*size[1]))
    assert top.dtype==torch.bool and top.shape==size[:2] and (top.sum(1)==k).all()
    scores = f.abs().flatten(2).max(2).values
    for s,chosen in zip(scores, top): assert chosen.all() or s[chosen].min() >= s[~chosen].max()
    last = f.to(memory_format=torch.channels_last)
    if not dead: assert torch.equal(top_channels(last, t), top)


@settings(deadline=None, max_examples=200)
@given(sizes, seeds, rates, rates)
def test_select_scale_is_the_identity_outside_and_in_range_inside(size, seed, t, retain):
    f = draw_map(size, seed).abs() + .1
    m,top = factors(partial(select_scale, top_rate=t, retain=retain), f),top_channels(f, t)
    assert (m[~top]==1).all() and (m>=retain-1e-5).all() and (m<=2-retain+1e-5).all()
    with isolated_rng(seed): a = spatial_scale(f, retain)
    with isolated_rng(seed): u = 1. if retain==1 else retain + 2*(1-retain)*torch.rand(size[:2])[:,:,None,None]
    torch.testing.assert_close(a, f*u)


@settings(deadline=None, max_examples=200)
@given(sizes, seeds, rates, rates)
def test_selectout_drops_exactly_so_many_candidates(size, seed, t, share):
    f,p = draw_map(size, seed).abs() + .1,1 - share*t
    m,top,n = factors(partial(selectout, top_rate=t, p=p), f),top_channels(f, t),max(1, round((1-p)*size[1]))
    if p==1: assert (m==1).all()
    else:
        assert ((m==0).sum(1)==n).all() and not (m==0)[~top].any()
        torch.testing.assert_close(m[m!=0], torch.full_like(m[m!=0], 1/max(p, 1e-9)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    f = 100*draw_map((8, 20, 6, 6), 0, dtype)
    for drop in (partial(spatial_dropout, p=.5), partial(spatial_scale, retain=0.), partial(select_scale, top_rate=.2, retain=0.), partial(selectout, top_rate=.2, p=.9)):
        with isolated_rng(1): out = drop(f)
        with isolated_rng(1): full = drop(f.float())
        assert out.dtype==dtype and out.isfinite().all()
        torch.testing.assert_close(out.float(), full, rtol=.02, atol=.02)


six = dict(feature_dropout=lambda **k: FeatureDropout(.5, **k), spatial_dropout=lambda **k: SpatialDropout(.5, **k), drop_block=lambda **k: DropBlock(.8, block_size=3, **k),
           spatial_scale=lambda **k: SpatialScale(0., **k), selectout=lambda **k: Selectout(.3, .8, **k), select_scale=lambda **k: SelectScale(.3, 0., **k))


class Checkpointed(nn.Module):
    "Runs its module again in the backward pass"
    def __init__(self, m, reentrant): super().__init__(); self.m,self.reentrant = m,reentrant
    def forward(self, x): return torch.utils.checkpoint.checkpoint(self.m, x.requires_grad_(), use_reentrant=self.reentrant)


def fitted(cb, checkpoint=None, epochs=2, **kwargs):
    learn = tiny_learner(cb, **kwargs)
    for m in learn.model.modules(): # a BatchNorm that runs twice updates its statistics twice
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0.
    body = learn.model[0]
    if checkpoint is not None: learn.model[0] = Checkpointed(body, checkpoint=='reentrant')
    learn.fit(epochs, 1e-2)
    assert_clean(learn)
    return {k.replace('0.m.', '0.'): v for k,v in weights(learn).items() if 'num_batches' not in k}


@pytest.mark.parametrize('name', six)
@pytest.mark.parametrize('kind', ['reentrant', 'other'])
def test_checkpointing_draws_once(name, kind):
    "Training is the same with the layers run once or twice"
    plain,acted = fitted(None),fitted(six[name](seed=3))
    assert not torch.equal(plain['0.0.0.weight'], acted['0.0.0.weight'])
    assert_same(acted, fitted(six[name](seed=3), kind))


@pytest.mark.parametrize('name', six)
@pytest.mark.parametrize('extra', [MixUp, CutMix, CpuMixedPrecision, partial(GradientAccumulation, 16), partial(GradientClip, .1), BnFreeze])
def test_beside_other_callbacks(name, extra):
    "It acts, the losses are finite, and the global random numbers are those of a run without it"
    def run(cb):
        learn = tiny_learner([o for o in (cb, extra()) if o])
        learn.fit(2, 1e-2)
        return learn,torch.rand(1)
    (plain,a),(learn,b) = run(None),run(six[name]())
    assert not torch.equal(weights(plain)['0.0.0.weight'], weights(learn)['0.0.0.weight']), 'it did not act'
    assert np.isfinite([v for row in learn.recorder.values for v in row]).all() and torch.equal(a, b)
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'time']
    assert_clean(learn)


@pytest.mark.parametrize('name', six)
def test_resumed_equals_uninterrupted(name, tmp_path):
    "Model, optimiser and the callback's state saved after one fit, loaded into a fresh learner"
    def start(): return tiny_learner(six[name](seed=3), path=tmp_path)
    learn = start()
    learn.fit(1, 1e-2)
    learn.save('half')
    state = deepcopy(getattr(learn, name).state_dict())
    set_seed(5)
    learn.dls.rng,learn.dls.train.rng = random.Random(5),random.Random(5)
    learn.fit(1, 1e-2)
    again = start()
    again.load('half')
    getattr(again, name).load_state_dict(state)
    set_seed(5)
    again.dls.train.rng = random.Random(5)
    again.fit(1, 1e-2)
    assert_same(weights(learn), weights(again))


@pytest.mark.parametrize('name', six)
def test_validation_and_prediction_are_untouched(name):
    "Beside a callback that predicts in the middle of training, too"
    class Predict(Callback):
        run_valid = False
        def after_batch(self):
            x = self.x
            with torch.no_grad():
                a = self.model.eval()(x)
                b = self.model(x)
            self.model.train()
            assert torch.equal(a, b), 'a drop acted in evaluation mode'
    learn = tiny_learner([six[name](), Predict()])
    learn.fit(1)
    before = learn.validate()
    assert learn.validate()==before
    learn.remove_cb(type(getattr(learn, name)))
    assert learn.validate()==before


def test_a_reader_sees_the_changed_map():
    class Read(FeatureCallback):
        def loss_term(self, maps): self.learn.seen.append(first(maps.values()).detach().clone())
    class Zero(DropCallback):
        def drop(self, f, strength): return f*0
    for cbs in ([Read(['0.2']), Zero(['0.2'])], [Zero(['0.2']), Read(['0.2'])]):
        learn = tiny_learner(cbs)
        learn.seen = []
        learn.fit(1)
        assert len(learn.seen)==6 and not any(o.any() for o in learn.seen)


def test_export_in_a_fresh_process(tmp_path):
    learn = tiny_learner([SelectScale(layers=norms, curriculum=True, strength=.5), DropBlock()], path=tmp_path)
    learn.fit(1)
    learn.export('a.pkl')
    learn.validate()
    code = f"""
        import sys; sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})
        from tiny import *
        learn = load_learner({str(tmp_path/'a.pkl')!r})
        assert repr(learn.select_scale)=="SelectScale(layers=norms, strength=0.5, curriculum=True)", learn.select_scale
        assert not any(m._forward_hooks for m in learn.model.modules())
    """
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], check=True)


@pytest.mark.parametrize('make,why', [
    (lambda: SelectScale(top_rate=1.5), 'top_rate must be'), (lambda: SelectScale(retain=-1), 'retain must be'), (lambda: SelectScale(retain='0.2'), 'retain must be'),
    (lambda: Selectout(.1, .8), 'raise p or top_rate'), (lambda: FeatureDropout(2), 'p must be'), (lambda: DropBlock(block_size=0), 'block_size'), (lambda: SpatialDropout(True), 'p must be'),
    (lambda: SelectScale(strength=2), 'strength must be'), (lambda: SelectScale(strength=(1, -1)), 'strength must be'), (lambda: SelectScale(curriculum=.5), 'curriculum must be'),
    (lambda: SelectScale(layers=0), 'layers must be'), (lambda: SelectScale(layers=None), 'layers must be'), (lambda: SelectScale(layers=[]), 'layers must be'), (lambda: DropCallback(), 'must define `drop')])
def test_bad_arguments(make, why):
    with pytest.raises(ValueError, match=why): make()


@pytest.mark.parametrize('cb,why', [
    (lambda: SelectScale(layers=9), 'from 1 to'), (lambda: SelectScale(layers='nowhere'), 'did you mean'), (lambda: SelectScale(layers='0.1.0'), "act behind that one: '0.1.1'"),
    (lambda: SelectScale(layers=lambda n, m: False), 'no layer of the network'), (lambda: SelectScale(strength=(1, 1, 1)), 'one for each')])
def test_bad_layers_change_nothing(cb, why):
    learn = tiny_learner(cb())
    before = weights(learn)
    with pytest.raises(ValueError, match=why): learn.fit(1)
    assert_same(before, weights(learn))
    assert_clean(learn)
    learn.remove_cbs(list(learn.cbs.filter(lambda o: isinstance(o, DropCallback))))
    learn.fit(1)


def test_a_misspelt_argument_is_a_type_error():
    with pytest.raises(TypeError, match='curiculum'): SelectScale(curiculum=True)


def inputs_of_running_stats(model, x, layer=None):
    "Input of each layer that keeps running statistics, with the first channel of `layer`'s output (NCHW) tripled"
    seen = {}
    def triple(m, inp, out):
        out = out.clone()
        out[:,0] *= 3
        return out
    def note(name): return lambda m, inp: seen.update({name: inp[0].clone()})
    handles = [m.register_forward_pre_hook(note(n)) for n,m in model.named_modules() if has_running_stats(m)]
    if layer: handles.append(model.get_submodule(layer).register_forward_hook(triple))
    with torch.no_grad(): model.eval()(x)
    for h in handles: h.remove()
    return seen


@pytest.mark.parametrize('name', ['resnet26t', 'mobilenetv3_small_050', 'densenet121', 'regnety_002', 'efficientnet_lite0', 'resnetv2_50', 'ghostnet_050', 'seresnet18', 'test_vit', 'nf_resnet26', 'vgg11', 'convnext_atto'])
def test_where_on_timm_networks(name):
    "In the last two stages something is found; scaling one channel there scales no single channel of a BatchNorm's input; and a training step works"
    if not timm.is_model(name): pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    size = model.default_cfg['input_size'][1] if 'vit' in name else 64
    x,y = torch.randn(2, 3, size, size),torch.randint(0, 10, (2,))
    anatomy = get_anatomy(model, size=size, check_cam=False)
    found = find_drop_layers(anatomy)
    assert len(found)>=2 and {w for _,w in found}=={.5, 1.}
    plain = inputs_of_running_stats(model, x)
    for s in [s for s,_ in found if s.layout=='NCHW']:
        for n,inp in inputs_of_running_stats(model, x, s.name).items():
            changed = (inp!=plain[n]).transpose(0, 1).flatten(1).any(1).sum()
            assert changed!=1, f'{s.name} runs into {n}'
    pairs = Pairs(zip(x, y))
    learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=2, device='cpu', num_workers=0), model, loss_func=CrossEntropyLossFlat(), cbs=SelectScale())
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1)
    assert len(learn.select_scale.acts_on)==len(found)
    assert_clean(learn)


def test_the_numerical_check_can_fail():
    "A layer in front of a BatchNorm is caught by it"
    model = timm.create_model('resnet10t', num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    a,b = inputs_of_running_stats(model, x),inputs_of_running_stats(model, x, 'layer4.0.conv1')
    assert (a['layer4.0.bn1']!=b['layer4.0.bn1']).transpose(0, 1).flatten(1).any(1).sum()==1


class Renorm(nn.Module):
    "A normalisation of somebody's own"
    def __init__(self, n): super().__init__(); self.register_buffer('running_mean', torch.zeros(n)); self.register_buffer('running_var', torch.ones(n))
    def forward(self, x): return (x - self.running_mean[:,None,None])/self.running_var[:,None,None].sqrt()

class ByHand(nn.Module):
    "Functional convolution, channels put together by assignment, a gate"
    def __init__(self):
        super().__init__()
        self.conv1,self.abn,self.conv2,self.weight = nn.Conv2d(3, 8, 3, 2, 1),Renorm(8),nn.Conv2d(8, 8, 3, 2, 1),nn.Parameter(torch.randn(8, 8, 3, 3)*.1)
        self.gate,self.last,self.fc = nn.Conv2d(8, 8, 1),nn.BatchNorm2d(16),nn.Linear(16, 10)
    def forward(self, x):
        x = self.abn(self.conv1(x)).relu()
        x = F.conv2d(x, self.weight, None, 2, 1)
        x = self.conv2(x)
        x = x*self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        both = torch.zeros(len(x), 16, *x.shape[2:], device=x.device)
        both[:,::2],both[:,1::2] = x,x*2
        return self.fc(self.last(both).relu().mean((2, 3)))


def test_where_without_names_to_go_by():
    anatomy = get_anatomy(ByHand(), check_cam=False)
    flow = channel_readers(anatomy)
    assert 'abn' in flow['conv1'] and 'last' in flow['conv2'] and 'last' not in flow['abn'] and is_norm(Renorm(3))
    assert [s.name for s,_ in find_drop_layers(anatomy, 'all')]==['abn', 'last']


def test_gates_are_left_alone():
    "Squeeze-and-excitation in a network without normalisation: no map of one position is chosen"
    anatomy = get_anatomy(timm.create_model('nf_regnet_b1', num_classes=10), size=64, check_cam=False)
    found = [s for s,_ in find_drop_layers(anatomy, 'all')]
    assert found and all(s.size!=(1, 1) for s in found)
    assert any(s.size==(1, 1) and isinstance(s.module, nn.Conv2d) for s in anatomy.taps.values())


def test_several_drops_and_ranks_draw_different_numbers(monkeypatch):
    def first_factors(cbs, rank=0):
        monkeypatch.setattr(fastai_featreg.drop, 'rank_distrib', lambda: rank)
        learn,seen = tiny_learner(cbs, n=8),[]
        for cb in cbs: cb.drop = lambda f, strength: seen.append(torch.rand(3)) or f
        learn.fit(1)
        return seen
    one,again,other_rank = [first_factors([SpatialScale(layers=1)], r)[0] for r in (0, 0, 1)]
    assert torch.equal(one, again) and not torch.equal(one, other_rank)
    a,b = first_factors([SpatialScale(layers=1), SelectScale(layers=1)])
    assert not torch.equal(a, b)


def test_dropped_errors_of_a_compiled_model():
    learn = tiny_learner()
    learn.fit(8, 1e-2)
    dl = learn.dls.train.new(shuffle=False, drop_last=False)
    a = dropped_errors(learn, retain=(1., .3), seeds=1, dl=dl)
    learn.model.compile(backend='eager')
    learn.validate()
    assert a.error.tolist()==dropped_errors(learn, retain=(1., .3), seeds=1, dl=dl).error.tolist()
    assert a.error.nunique()>1


@pytest.mark.parametrize('cb,why', [(lambda: SelectScale(curriculum=lambda p: 2*p + .5), 'curriculum after'), (lambda: type('Nothing', (DropCallback,), dict(drop=lambda self, f, s: None))(), 'drop must give'),
                                    (lambda: type('Half', (DropCallback,), dict(drop=lambda self, f, s: f[:,:,::2]))(), 'drop must give')])
def test_a_wrong_curriculum_or_drop_says_so(cb, why):
    learn = tiny_learner(cb())
    with pytest.raises(ValueError, match=why): learn.fit(1)
    assert_clean(learn)


def test_a_predicate_serves_the_next_network_too():
    cb = SelectScale(layers=lambda name, m: isinstance(m, nn.BatchNorm2d))
    for width in (8, 12):
        learn = tiny_learner()
        learn.model[0].insert(1, nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())) if width==12 else None
        learn.fit(1, cbs=cb)
        assert len(cb.acts_on)==(4 if width==12 else 3)
