"The drops: their functions on random shapes and values, and what their callbacks do in a learner"
import warnings
from functools import partial
import matplotlib, pandas as pd, pytest, timm
from fastai.vision.learner import create_vision_model
from hypothesis import given, settings, strategies as st
from tiny import *
from fastai_featreg.methods.drop import DropCallback
from fastai_featreg.methods.drop_effects import dropped_errors
from fastai_featreg.methods.drop_functions import SelectDrop2d, SelectScale2d, Selectout2d, select_drop, select_scale
from fastai_featreg.methods.drop_functions import selectout, spatial_dropout, spatial_scale, top_channels
from fastai_featreg.methods.drop_layers import plan_drops
from fastai_featreg.nets import resnet20, resnet56, resnet8, resnext29_8x64d, wrn16_4
from fastai_featreg.heads import isolated_rng
import fastai_featreg.methods.drop
from fastai_featreg.channels import channel_readers, has_running_stats, is_norm
from fastai_featreg.methods.drop_functions import channel_scores
from fastai_featreg.nets import nets

sizes = st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 5), st.integers(1, 5))
rates = st.floats(0, 1)
seeds = st.integers(0, 10**6)


def draw_map(size, seed, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)

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
    for drop in (partial(spatial_dropout, p=.5), partial(spatial_scale, retain=0.),
                 partial(select_scale, top_rate=.2, retain=0.), partial(selectout, top_rate=.2, p=.9)):
        with isolated_rng(1): out = drop(f)
        with isolated_rng(1): full = drop(f.float())
        assert out.dtype==dtype and out.isfinite().all()
        torch.testing.assert_close(out.float(), full, rtol=.02, atol=.02)


six = dict(
    feature_dropout=lambda **k: FeatureDropout(.5, **k),
    spatial_dropout=lambda **k: SpatialDropout(.5, **k),
    drop_block=lambda **k: DropBlock(.8, block_size=3, **k),
    spatial_scale=lambda **k: SpatialScale(0., **k),
    selectout=lambda **k: Selectout(.3, .8, **k),
    select_scale=lambda **k: SelectScale(.3, 0., **k),
)


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


@pytest.mark.parametrize('name', [
    'resnet26t', 'mobilenetv3_small_050', 'densenet121', 'regnety_002', 'efficientnet_lite0', 'resnetv2_50',
    'ghostnet_050', 'seresnet18', 'test_vit', 'nf_resnet26', 'vgg11', 'convnext_atto'])
def test_where_on_timm_networks(name):
    """In the last two stages something is found; scaling one channel there scales no single channel of a BatchNorm's
    input; and a training step works"""
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
    learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=2, device='cpu', num_workers=0), model,
                    loss_func=CrossEntropyLossFlat(), cbs=SelectScale())
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
    def __init__(self, n):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(n))
        self.register_buffer('running_var', torch.ones(n))
    def forward(self, x): return (x - self.running_mean[:,None,None])/self.running_var[:,None,None].sqrt()

class ByHand(nn.Module):
    "Functional convolution, channels put together by assignment, a gate"
    def __init__(self):
        super().__init__()
        self.conv1,self.abn,self.conv2,self.weight = (
            nn.Conv2d(3, 8, 3, 2, 1), Renorm(8), nn.Conv2d(8, 8, 3, 2, 1), nn.Parameter(torch.randn(8, 8, 3, 3)*.1))
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
        monkeypatch.setattr(fastai_featreg.methods.drop, 'rank_distrib', lambda: rank)
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


# ---- which channels ----

@settings(deadline=None, max_examples=100)
@given(sizes, seeds, rates, st.sampled_from(list(channel_scores)))
def test_scores(size, seed, t, score):
    "The score of every channel, value by value"
    f,k = draw_map(size, seed),max(1, round(t*size[1]))
    top = top_channels(f, t, score)
    for image,chosen in zip(f, top):
        values = [c.flatten().tolist() for c in image]
        kept = [[max(v, 0.) for v in c] if 'relu' in score else [abs(v) for v in c] for c in values]
        each = [max(c) if 'max' in score else sum(c)/len(c) for c in kept]
        inside,outside = ([v for v,o in zip(each, chosen) if o==yes] for yes in (True, False))
        assert len(inside)==k and min(inside) >= max(outside, default=0) - 1e-6


@pytest.mark.parametrize('score', ['relu_max', 'mean', 'relu_mean', lambda f: f.amin((2, 3))])
def test_every_selecting_form_takes_the_score(score):
    "Function, module and callback change the channels that `top_channels` takes"
    f = draw_map((3, 20, 4, 4), 0)
    chosen = top_channels(f, .2, score)
    assert not torch.equal(chosen, top_channels(f, .2))
    outs = [select_scale(f, .2, 0., score), SelectScale2d(.2, 0., score)(f), SelectScale(.2, 0., score).drop(f, 1.),
            selectout(f, .2, .8, score), Selectout2d(.2, .8, score)(f), Selectout(.2, .8, score).drop(f, 1.),
            select_drop(f, lambda f: 2*f, .2, score), SelectDrop2d(nn.Dropout(1.), .2, score)(f)]
    for out in outs:
        m = (out/f).flatten(2).mean(2)
        assert torch.equal((m-m.median()).abs()>1e-4, chosen)


@pytest.mark.parametrize('recipe', SelectScale.recipes)
def test_recipes(recipe):
    cb = getattr(SelectScale, recipe)()
    assert type(cb) is SelectScale and repr(eval(repr(cb)))==repr(cb)
    learn = tiny_learner(cb)
    learn.fit(1)
    assert list(cb.acts_on.values())==([1., 1., 1.] if recipe=='cifar' else [.5, 1.])
    assert callable(cb.weight)==(recipe=='imagenet') # the curriculum


# ---- where ----

linear = dict(concat_pool=False, lin_ftrs=[], ps=0., first_bn=False)

def in_vision_learner(net, **head): return create_vision_model(net, 10, pretrained=False, **head)

def anatomy_of(net, **head): return get_anatomy(in_vision_learner(net, **head), size=32, check_cam=False)


@pytest.mark.parametrize('net,n', [(resnet20, 19), (resnet56, 55), (wrn16_4, 13)])
def test_every_convolution_of_the_papers_nets(net, n):
    "Behind every convolution with the papers' head; what fastai's head costs is said"
    plan = plan_drops(anatomy_of(net, **linear), 'all')
    assert (len(plan.acts), plan.asked, plan.left_out, plan.idle)==(n, n, {}, '')
    behind = plan_drops(anatomy_of(net), 'all')
    assert behind.asked==n and 0<len(behind.acts)<n and f'acts on {len(behind.acts)} of {n} layers' in behind.idle
    assert not set(behind.acts_on) & set(behind.left_out)


def test_what_is_left_out_is_what_a_BatchNorm_follows():
    "By numbers, with nothing coming through the second convolutions: what is tripled in one channel arrives in one"
    torch.manual_seed(0)
    model,x = in_vision_learner(resnet8),torch.randn(2, 3, 32, 32)
    plan = plan_drops(get_anatomy(model, size=32, check_cam=False), 'all')
    for n,m in model.named_modules():
        if n.endswith('convs.4'): m.weight.data,m.bias.data = torch.zeros_like(m.weight),torch.ones_like(m.bias)
    plain = inputs_of_running_stats(model, x)['1.2']
    def arrived(layer): return (inputs_of_running_stats(model, x, layer)['1.2']!=plain).any(0).sum().item()
    assert len(plan.left_out)==4 and set(plan.left_out.values())=={'1.2'}
    assert {arrived(n) for n in plan.left_out}=={2} # one channel, pooled in two ways
    assert len(plan.acts)==3 and {arrived(n) for n in plan.acts_on}=={0}


@pytest.mark.parametrize('head', [{}, dict(concat_pool=False, lin_ftrs=[], ps=0.), linear],
                         ids=['default', 'gap', 'linear'])
@pytest.mark.parametrize('net', [resnet20, wrn16_4])
def test_the_baselines_of_feature_mining(net, head):
    "They run where the paper has them, and warn if and only if a BatchNorm follows"
    drops = FeatureDropout(layers=['stage2']),SpatialDropout(layers=['stage2']),DropBlock(layers=['stage1', 'stage2'])
    learn = tiny_learner(n=16)
    for dl in learn.dls: dl.dataset[:] = [(F.interpolate(x[None], 32)[0], y) for x,y in dl.dataset]
    learn.model,learn.splitter = in_vision_learner(net, **head),trainable_params
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.fit(1, cbs=list(drops))
    texts = [str(w.message) for w in said if 'BatchNorm' in str(w.message)]
    harmless = net is resnet20 and head is linear
    assert len(texts)==(0 if harmless else 3), texts
    for cb,n in zip(drops, (1, 1, 2)):
        assert cb.asked==n and list(cb.acts_on)==[f'0.0.stage{i}' for i in ((2,) if n==1 else (1, 2))]
        assert (cb.idle=='')==harmless and len(cb.harmful)==(0 if harmless else n)
        assert repr(eval(repr(cb)))==repr(cb).split('  #')[0]
    for t,cb in zip(texts, drops):
        assert t.startswith(type(cb).__name__) and '\n' not in t and 'inference; to avoid it' in t


def test_a_stem_in_front_of_grouped_convolutions_is_left_alone():
    "SelectScale, 3.1: before and after the grouped convolutions only"
    plan = plan_drops(anatomy_of(resnext29_8x64d, **linear), 'all')
    assert len(plan.acts)==18 and not plan.left_out and not any('stem' in n for n in plan.acts_on)


def test_an_end_of_a_name_is_enough_if_there_is_one():
    a = anatomy_of(resnet8)
    assert a.find('stage2')==a.find('0.0.stage2')==a.find([1]) and a.find('stage1.0')[0].name=='0.0.stage1.0'
    with pytest.raises(ValueError, match=r"'convs' is the end of 3 names, '0.0.stage1.0.convs'.*more of the name"):
        a.find('convs')
    assert a.find('0')[0].name=='0' # a whole name wins over ends


def test_the_bars_show_the_plan():
    "As many bars of each colour as the plan has layers"
    a = anatomy_of(resnet20)
    for layers in ('all', 2, 'stage2'):
        plan,ax = plan_drops(a, layers),show_drop_layers(a, layers)
        labels = [t.get_text() for t in ax.get_legend().get_texts()]
        assert any(f'acts on {sum(w==1. for _,w in plan.acts)}, strength 1' in t for t in labels)
        assert any(f'left out: {len(plan.left_out)} ' in t for t in labels)==bool(plan.left_out)
        assert any(f'named: {len(plan.harmful)} ' in t for t in labels)==bool(plan.harmful)
        red = [p for p in ax.patches if p.get_height() and p.get_facecolor()==matplotlib.colors.to_rgba('lightcoral')]
        assert len(red)==len(plan.left_out)
        plt.close(ax.figure)


def test_a_callback_forgets_the_last_plan():
    "asked and idle are those of the last fit"
    cb = SelectScale(layers='all')
    assert cb.asked is None and cb.idle==''
    learn = tiny_learner()
    learn.model[1].insert(2, nn.BatchNorm1d(16))
    learn.fit(1, cbs=cb)
    assert cb.asked==3 and cb.idle=='acts on 2 of 3 layers: the others run into a BatchNorm'
    assert '2 of 3 layers at strength 1' in repr(cb) and "1 runs into a BatchNorm: '0.2.1' into '1.2'" in repr(cb)
    tiny_learner().fit(1, cbs=cb)
    assert cb.asked==3 and cb.idle=='' and 'BatchNorm' not in repr(cb)


def test_places_table():
    "The committed table has every net under three heads, and the papers' places under a linear one"
    table = pd.read_csv(Path(__file__).parent.parent/'nbs/results/drop_places.csv')
    assert set(table.groupby('net')['head'].nunique())=={3} and set(nets)<=set(table.net)
    row = table[(table.net=='resnet20') & (table['head']=='linear')].iloc[0]
    assert (row.norms, row.asked_all, row.acts_all, row.asked_2, row.acts_2)==(19, 19, 19, 12, 12)
    assert table[['feature_dropout', 'spatial_dropout', 'drop_block']].stack().str.startswith('runs').all()
