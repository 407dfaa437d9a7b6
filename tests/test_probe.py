"""A probe is not the user's pass: it has their shape, their hooks do not see it, and it leaves nothing on a module or a
parameter"""
from functools import partial
import pytest, timm
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization
import conformance
from tiny import *
from fastai_featreg.methods.drop_layers import plan_drops
from fastai_featreg.methods import feature_mining
from fastai_featreg.anatomy import lay_out
from fastai_featreg.channels import channel_readers,like_last
from fastai_featreg.parting import cut_after
from fastai_featreg.probe import untouched
from fastai_featreg.stages import Trace
from fastai_featreg.class_maps import CamMaker, ClassWeights, class_weights
from fastai_featreg.methods.guide import Guide
from fastai_featreg.heads import isolated_rng
from fastai_featreg.methods.drop_layers import show_drop_layers
from fastai_featreg.look import get_cams

rows = conformance.rows() + conformance.rows(variants=True)
methods = dict(argvalues=rows, ids=[r.name for r in rows])


def learner_of(model, batches, cbs=None, n_out=10):
    "A learner whose training batches are noise of these shapes (N,C,H,W)"
    with isolated_rng(0): data = [(torch.randn(s), torch.randint(0, n_out, s[:1])) for s in batches]
    dls = DataLoaders(DataLoader(data, bs=None), DataLoader(data[:1], bs=None))
    learn = Learner(dls, model, CrossEntropyLossFlat(), cbs=cbs, opt_func=SGD)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


# ---- the shape ----

def vit(depth=2, **kwargs):
    with isolated_rng(0):
        return timm.create_model('vit_tiny_patch16_224', depth=depth, num_classes=10, dynamic_img_size=True,
                                 global_pool='avg', **kwargs)

shapes = [(32, 128), (128, 32), (64, 64), (48, 96), (16, 64), (80, 48)]

def rows_of_tokens(model, x, layer):
    "The tokens of `layer`, put one by one where their patch is in the image"
    out = []
    with model.get_submodule(layer).register_forward_hook(lambda m, i, o: out.append(o)), torch.no_grad():
        model.eval()(x)
    tokens,(h, w) = out[0][:,model.num_prefix_tokens:],(x.shape[2]//16, x.shape[3]//16)
    res = torch.empty(len(x), tokens.shape[2], h, w)
    for i in range(h):
        for j in range(w): res[:,:,i,j] = tokens[:,i*w+j]
    return res


@pytest.mark.parametrize('size', shapes)
def test_tokens_lie_where_their_patches_do(size):
    model,x = vit(),torch.randn(2, 3, *size)
    expected = rows_of_tokens(model, x, 'blocks.0')
    assert torch.equal(feature_maps(model, x, 'blocks.0')['blocks.0'], expected)
    assert get_anatomy(model, x=x, check_cam=False).find('blocks.0')[0].size==expected.shape[2:]


class Seen(FeatureCallback):
    "Keeps the map of each batch and the batch"
    column = 'seen'
    def loss_term(self, maps):
        self.kept = getattr(self, 'kept', []) + [(self.learn.x.detach(), maps['blocks.0'].detach())]
        return 0.*maps['blocks.0'].sum()

def test_each_batch_of_a_fit_is_laid_out_by_its_own_shape():
    "16 tokens in each of the first three, 24 in the last"
    model = vit(depth=1)
    learn = learner_of(model, [(2, 3, *s) for s in ((32, 128), (128, 32), (64, 64), (64, 96))], Seen('blocks.0'))
    learn.fit(1, 0.)
    assert len(learn.seen.kept)==4
    for x,f in learn.seen.kept: torch.testing.assert_close(f, rows_of_tokens(model, x, 'blocks.0'))


@pytest.mark.parametrize('method', ['auto', 'grad_cam'])
def test_one_maker_and_images_of_several_shapes(method):
    model = vit()
    make = CamMaker(model, method)
    for size in shapes: assert make(torch.randn(2, 3, *size))['maps'].shape[1:]==(size[0]//16, size[1]//16)


def test_a_teacher_of_tokens_is_laid_out_too():
    cb = CCM(vit(), cam='grad_cam')
    learn = learner_of(tiny_model(), [(2, 3, 32, 128), (2, 3, 128, 32)], cb)
    seen = []
    old = type(cb).loss_term
    def watch(self, maps):
        term = old(self, maps)
        seen.append(self.guide.anatomy.last.size)
        return term
    cb.loss_term = partial(watch, cb)
    learn.fit(1)
    assert seen==[(2, 8), (8, 2)]


def test_a_guess_is_refused():
    model = vit()
    stage = get_anatomy(model, x=torch.randn(2, 3, 32, 128)).last
    with pytest.raises(ValueError,
                       match='gave 36 tokens, where the images that were probed give 2x8.*would be a guess'):
        stage.to_nchw(torch.randn(1, 37, 192))
    fixed = timm.create_model('vit_tiny_patch16_224', depth=1, img_size=64)
    with pytest.raises(ValueError, match='rows and columns are unknown for images of'):
        lay_out(fixed, [get_anatomy(fixed).last], torch.randn(2, 3, 32, 128))


class Views(nn.Module):
    "Flattens by a number of columns, so that images of another size become other rows"
    def __init__(self, rows=-1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1),
                                  nn.ReLU())
        self.fc,self.rows = nn.Linear(8*4*8, 10),rows
    def forward(self, x): return self.fc(self.body(x).view(self.rows, 8*4*8))

takers = dict(feature_mining=FeatureMining, select_scale=SelectScale, cam_loss=partial(CAMLoss, start=0),
              attention=lambda: AttentionTransfer(Views(), cam='grad_cam'), kd=lambda: KnowledgeDistillation(Views()))

@pytest.mark.parametrize('make', takers.values(), ids=takers)
def test_networks_of_one_size_train(make):
    learn = learner_of(Views(), [(4, 3, 16, 32)]*2, make())
    learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('n', [2, 4, 8])
def test_networks_of_one_number_of_images(n):
    a = get_anatomy(Views(n), x=torch.randn(n, 3, 16, 32))
    assert (a.n_images, a.input_size, a.last.size, a.cam_exact)==(n, (3, 16, 32), (4, 8), False)
    assert channel_readers(a)['body.0']=={'body.1'}
    learner_of(Views(n), [(n, 3, 16, 32)]*2, [FeatureMining(), SelectScale()]).fit(1)


class ChannelsLast(nn.Module):
    "As many channels as rows and columns, last"
    def __init__(self):
        super().__init__()
        self.conv,self.norm,self.block,self.fc = (
            nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Sequential(nn.Tanh()), nn.Linear(8, 10))
    def forward(self, x): return self.fc(self.block(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))

def test_a_tie_of_layouts_goes_by_what_made_the_map():
    taps = get_anatomy(ChannelsLast(), x=torch.randn(2, 3, 8, 8)).taps
    assert {n: s.layout for n,s in taps.items()}==dict(conv='NCHW', norm='NHWC', block='NHWC', **{'block.0': 'NHWC'})


@pytest.mark.parametrize('size', [16, 32, 64, (32, 128)])
def test_maps_too_small_to_tell_apart_are_found_at_a_usual_size(size):
    from torchvision.models import resnet18
    a = get_anatomy(resnet18(num_classes=10), x=torch.randn(2, 3, *(size if is_listy(size) else (size, size))))
    assert (a.last.name, a.cam_exact, a.doubt)==('layer4', True, '')


# ---- hooks ----

def watched(model, seen):
    "A hook of each kind, of no module of the model; `seen` has a line for each call"
    def note(kind): return lambda *args: seen.append(kind)
    res,part = [],[m for n,m in model.named_modules() if n.startswith('0')]
    for m in part:
        res += [
            m.register_forward_hook(lambda m, i, o: seen.append((m.training, tuple(o.shape), torch.is_grad_enabled()))),
            m.register_forward_pre_hook(note('pre'), with_kwargs=True)]
    res.append(part[1].register_full_backward_hook(note('back')))
    res.append(part[1].register_full_backward_pre_hook(note('before back')))
    res += [p.register_hook(note('gradient')) for p in list(model.parameters())[:2]]
    return res

def plain_calls(**kwargs):
    learn,seen = tiny_learner(**kwargs),[]
    watched(learn.model, seen)
    learn.fit(1)
    return seen

# these are no silent guests: a second pass of other images in training, or layers of the network itself
more_passes,own_layers = {'cs_kd'},{'se', 'cbam', 'gc', 'sk'}

@pytest.mark.parametrize('row', **methods)
def test_a_hook_sees_what_it_would_without_the_method(row):
    if row.name in more_passes | own_layers: pytest.skip('its passes or layers are part of the training')
    learn,seen = tiny_learner(row.make()),[]
    watched(learn.model, seen)
    learn.fit(1)
    expected = plain_calls()
    assert len(seen)>100 and seen==expected


def test_global_hooks_see_no_probe():
    seen,where = [],torch.nn.modules.module
    handles = [where.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__)),
               where.register_module_forward_pre_hook(lambda m, i: seen.append('pre')),
               where.register_module_full_backward_hook(lambda m, i, o: seen.append('back'))]
    try:
        before = [list(d.items())
                  for d in (where._global_forward_hooks, where._global_forward_pre_hooks, where._global_backward_hooks)]
        model = tiny_model()
        a = get_anatomy(model)
        class_weights(model)
        plan_drops(a)
        assert not seen
        assert before==[list(d.items()) for d in (where._global_forward_hooks, where._global_forward_pre_hooks,
                                                  where._global_backward_hooks)]
        with torch.no_grad(): model(torch.randn(2, 3, 16, 16))
        assert seen, 'otherwise the test could not fail'
    finally:
        for h in handles: h.remove()


def test_a_hook_keeps_its_place_and_its_handle():
    model,seen = tiny_model(),[]
    first_one,second,third = [model[0].register_forward_hook(lambda m, i, o, k=k: seen.append(k)) for k in (1, 2, 3)]
    with pytest.raises(RuntimeError), untouched(model):
        model(torch.randn(2, 3, 16, 16))
        second.remove() # somebody removes one in the middle
        raise RuntimeError
    assert not seen
    model(torch.randn(2, 3, 16, 16))
    assert seen==[1, 3]


class OwnHooks(nn.Module):
    "Collects its map by a hook, and computes with it"
    def __init__(self, way):
        super().__init__()
        self.body,self.fc,self.keep = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),nn.Linear(8, 10),Keeper()
        if way=='closure': self.body.register_forward_hook(lambda m, i, o: setattr(self.keep, 'f', o))
        elif way=='method': self.body.register_forward_hook(self._take)
        elif way=='held': self.body.register_forward_hook(self.keep.take)
        elif way=='partial': self.body.register_forward_hook(partial(self._take))
    def _take(self, m, i, o): self.keep.f = o
    def forward(self, x):
        self.body(x)
        return self.fc(self.keep.f.mean((2, 3)))

class Keeper:
    f = None
    def take(self, m, i, o): self.f = o

@pytest.mark.parametrize('way', ['closure', 'method', 'held', 'partial'])
def test_hooks_that_a_network_computes_with_run(way): assert get_anatomy(OwnHooks(way)).last.name=='body.1'


old_ways = dict(
    weight_norm=weight_norm,
    spectral_norm=spectral_norm,
    prune=lambda m: prune.l1_unstructured(m, 'weight', .5),
    new_weight_norm=parametrizations.weight_norm,
    new_spectral_norm=parametrizations.spectral_norm,
)

@pytest.mark.parametrize('wrap', old_ways.values(), ids=old_ways)
def test_weights_made_on_the_way(wrap):
    "The class weights are those of the weight as it would be computed now, and nothing of it moves"
    with isolated_rng(0): model = tiny_model()
    wrap(model[1][3])
    # as an optimiser does; old-style weights lag behind
    with torch.no_grad(): [p.add_(.5) for p in model[1][3].parameters()]
    before = state_of(model)
    w = ClassWeights(model).probed()
    assert_same_state(before, state_of(model))
    model.eval()(torch.randn(1, 3, 16, 16)) # recomputes an old-style weight
    torch.testing.assert_close(w, model[1][3].weight.detach(), rtol=1e-4, atol=1e-5)


# ---- what is left behind ----

def state_of(model):
    "Everything on every module and parameter, and where it stands; tensors with identity, version and value"
    def value(v):
        if isinstance(v, nn.Module): return id(v)
        if isinstance(v, Tensor):
            return (id(v), v._version, v.requires_grad, v.detach().clone(), sorted(v.__dict__),
                    None if v.grad is None else value(v.grad))
        if isinstance(v, dict): return [(k if isinstance(k, (str, int)) else id(k), value(o)) for k,o in v.items()]
        if isinstance(v, (list, tuple, set)): return type(v),[value(o) for o in v]
        return v if isinstance(v, (str, int, float, bool, type(None))) else id(v)
    return {n: {k: (id(v), value(v)) for k,v in m.__dict__.items()} for n,m in model.named_modules()}

def equal(a, b):
    if isinstance(a, Tensor): return torch.equal(a, b)
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(equal, a, b))
    return a==b

def assert_same_state(a, b):
    assert a.keys()==b.keys()
    for n in a:
        assert list(a[n])==list(b[n]), f'{n}: {set(a[n]) ^ set(b[n])}'
        for k in a[n]: assert equal(a[n][k], b[n][k]), f'{n}.{k} has changed'

class Rude(nn.Module):
    "Writes to all it has, in place and anew, as no layer should in a forward pass"
    def __init__(self):
        super().__init__()
        self.register_buffer('count', torch.zeros(1))
        self.register_buffer('mean', torch.zeros(1))
        self.calls,self.seen,self.table,self.plain = 0,[],{},torch.zeros(2)
        self.scale,self.same = nn.Parameter(torch.ones(1)),nn.Identity() # a module's output is a parameter
    def forward(self, x):
        self.count += 1
        self.mean,self.last,self.calls = x.mean().detach(),x,self.calls + 1
        self.seen.append(x.shape)
        self.table[self.calls] = x.shape
        self.plain += 1
        return x*self.same(self.scale)

class Counting(nn.Module):
    "A parametrisation that notes each time it runs"
    def __init__(self):
        super().__init__()
        self.n = 0
    def forward(self, w):
        self.n += 1
        return w*1

def rude_model():
    "With everything that a look could disturb: hooks, gradients, frozen and tied parameters, flags, parametrisations"
    with isolated_rng(0): model = tiny_model()
    model[0] = nn.Sequential(*model[0], Rude())
    register_parametrization(model[0][0][0], 'weight', Counting())
    parametrizations.spectral_norm(model[0][1][0])
    weight_norm(model[0][2][0])
    model[0][1][1].eval()
    model[1][3].bias.requires_grad_(False)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    model[0].register_full_backward_hook(lambda *_: None)
    return model

def no_learner(model): return learner_of(model, [(4, 3, 16, 16)])
looks = dict(
    get_anatomy=get_anatomy,
    channel_readers=lambda m: channel_readers(get_anatomy(m)),
    plan_drops=plan_drops,
    find_drop_layers=find_drop_layers,
    like_last=lambda m: like_last(a := get_anatomy(m), a.stages),
    cut_after=lambda m: cut_after(m, -2),
    body_head=lambda m: body_head(nn.Sequential(m[0], *m[1])),
    feature_maps=lambda m: feature_maps(m, torch.randn(2, 3, 16, 16), 2),
    trace=lambda m: Trace(m, torch.randn(2, 3, 16, 16)),
    class_weights=class_weights,
    probed=lambda m: ClassWeights(m).probed(),
    cam=lambda m: CamMaker(m, 'cam')(torch.randn(2, 3, 16, 16)),
    grad_cam=lambda m: CamMaker(m, 'grad_cam')(torch.randn(2, 3, 16, 16)),
    show_drop_layers=show_drop_layers,
    get_cams=lambda m: get_cams(no_learner(m), torch.randn(2, 3, 16, 16)),
    mined_stages=lambda m: feature_mining.mined_stages(get_anatomy(m), 1),
)

@pytest.mark.parametrize('look', looks.values(), ids=looks)
def test_a_look_leaves_nothing(look):
    model = rude_model()
    before = state_of(model)
    look(model)
    assert_same_state(before, state_of(model))
    model(torch.randn(2, 3, 16, 16))
    with pytest.raises(AssertionError): assert_same_state(before, state_of(model))


def test_a_teacher_is_left_as_it_was():
    teacher = nn.Sequential(nn.Sequential(Rude(), *tiny_teacher()[0]), tiny_teacher()[1])
    before,x = state_of(teacher),torch.randn(2, 3, 16, 16)
    for cam in ('cam', 'grad_cam'): Guide(teacher, tiny_model(), x, cam=cam)(x, lambda f, logits: f)
    assert_same_state(before, state_of(teacher))


def test_a_look_that_fails_leaves_nothing():
    model = rude_model()
    model.append(nn.Softmax(dim=7))
    before = state_of(model)
    for look in (get_anatomy, lambda m: feature_maps(m, torch.randn(2, 3, 16, 16))):
        with pytest.raises((ValueError, IndexError)): look(model)
        assert_same_state(before, state_of(model))


def test_a_look_between_forward_and_backward():
    "Buffers that the graph of a batch has saved are not written to"
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('s', torch.ones(1))
        def forward(self, x):
            self.s.add_(1)
            return x*self.s
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Scale(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    loss = model(torch.randn(2, 3, 16, 16)).sum()
    class_weights(model)
    loss.backward()


class AtSetUp(Callback):
    "Everything on the model before and after the set-up of the method, in the first batch"
    order,run_valid = 3,False
    def before_batch(self):
        if self.iter: return
        method = first(cb for cb in self.learn.cbs if isinstance(cb, LossCallback))
        before = state_of(self.model)
        method.set_up()
        assert_same_state(before, state_of(self.model))
        self.done = True

@pytest.mark.parametrize('row', **methods)
def test_a_set_up_leaves_nothing_and_a_fit_no_attribute(row):
    learn = tiny_learner([row.make(), AtSetUp()])
    tracked = dict(learn.model.named_modules())
    keys = {n: sorted(m.__dict__) for n,m in tracked.items()}
    learn.fit(1)
    assert learn.at_set_up.done
    for n,m in tracked.items():
        assert sorted(m.__dict__)==keys[n], n
        assert not any(m.__dict__[k] for k in m.__dict__ if k.endswith('_hooks')), n
        for p in m._parameters.values(): assert p is None or not p.__dict__
    plain = tiny_learner()
    plain.fit(1)
    for p,q in zip(plain.model[0].parameters(), learn.model[0].parameters()): assert p.requires_grad==q.requires_grad


def test_noise_is_not_written_into_parameters(monkeypatch):
    "Not even for a while: what looks at them meanwhile sees what they were"
    model = tiny_model()
    own,values,seen = dict(model.named_parameters()),[p.detach().clone() for p in model.parameters()],[]
    agree = ClassWeights._agree
    def look(self):
        seen.append(all(torch.equal(p, v) for p,v in zip(own.values(), values)))
        return agree(self)
    monkeypatch.setattr(ClassWeights, '_agree', look)
    assert ClassWeights(model).layers and seen==[True]


# ---- what is given ----

takes_any = dict(
    get_anatomy=get_anatomy,
    plan_drops=plan_drops,
    find_drop_layers=find_drop_layers,
    channel_readers=channel_readers,
    like_last=lambda o: like_last(o, []),
    cut_after=lambda o: cut_after(o, 0),
    class_weights=class_weights,
    cam_maker=CamMaker,
    feature_maps=lambda o: feature_maps(o, torch.zeros(2, 3, 16, 16)),
    show_drop_layers=show_drop_layers,
)

@pytest.mark.parametrize('f', takes_any.values(), ids=takes_any)
def test_a_network_and_its_learner_do_alike(f):
    learn = tiny_learner()
    one,other = f(learn.model),f(learn)
    assert type(one) is type(other)
    if isinstance(one, (dict, list)): assert repr(one)==repr(other)
    if isinstance(one, Tensor): assert torch.equal(one, other)

wrong = dict(
    function=tiny_model,
    cls=nn.Conv2d,
    name='resnet18',
    nothing=None,
    number=3,
    tensor=torch.zeros(2, 3, 16, 16),
    loaders=DataLoaders(),
    weights={},
)

@pytest.mark.parametrize('what', wrong.values(), ids=wrong)
@pytest.mark.parametrize('f', [*takes_any.values(), body_head], ids=[*takes_any, 'body_head'])
def test_anything_else_gets_a_sentence(f, what):
    with pytest.raises(ValueError, match='model must be a network') as e: f(what)
    assert '\n' not in str(e.value) and len(str(e.value))<300

def test_the_learner_of_a_network_in_one_part():
    learn = learner_of(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                     nn.Linear(8, 10)),
                       [(2, 3, 16, 16)])
    assert [len(o) for o in body_head(learn)]==[len(o) for o in body_head(learn.model)]
    with pytest.raises(ValueError, match='two parts already'): body_head(tiny_learner())
