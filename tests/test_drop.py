"The drops: their functions on random shapes and values, and what their callbacks do in a learner"
from functools import partial
import pytest, timm
from hypothesis import given, settings, strategies as st
from tiny import *
from fastai_featreg.core import isolated_rng
import fastai_featreg.drop
from fastai_featreg.anatomy import channel_readers, has_running_stats, is_norm

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


def test_a_predicate_serves_the_next_network_too():
    cb = SelectScale(layers=lambda name, m: isinstance(m, nn.BatchNorm2d))
    for width in (8, 12):
        learn = tiny_learner()
        learn.model[0].insert(1, nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())) if width==12 else None
        learn.fit(1, cbs=cb)
        assert len(cb.acts_on)==(4 if width==12 else 3)


@pytest.mark.parametrize('cls', [FeatureDropout, SpatialDropout, DropBlock])
def test_p_is_the_share_that_is_kept(cls, recwarn):
    with pytest.warns(UserWarning, match=r"p=0.1 keeps 10% .* Did you mean p=0.9\?"): cls(p=.1)
    recwarn.clear()
    cls(p=.5)
    assert not recwarn
