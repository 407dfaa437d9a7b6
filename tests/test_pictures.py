"""Pictures and measures work wherever training works: every function in every situation, or a declared sentence

The situations differ in loaders, channels, targets and images. After each picture model, random states and loaders are
what they were. Then the numbers: what is drawn is what was seen.
"""
import random, re
from types import SimpleNamespace
import matplotlib.pyplot as plt
import pytest
import torch.utils.data as tud
from fastai.vision.all import *
from fastai_featreg.all import *
from fastai_featreg.methods.drop_effects import dropped_errors
from fastai_featreg.methods.drop_functions import spatial_dropout
from fastai_featreg.maps import caam_cam_distance, pointing_game
from fastai_featreg.methods.view_head import find_views, install_views
from fastai_featreg.batches import as_batch, batch_to_look_at, first_images
from fastai_featreg.look import channel_note, decoded_images, is_right, label_text

for name in [o for o in globals() if o.startswith('test')]: del globals()[name] # pytest would take fastai's helpers

check = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
views = dict(k=3, sizes=(1, 3))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


# -- situations --------------------------------------------------------------------------------------------------------

class FromBytes(nn.Module):
    "Scales bytes, and takes floats as they are, as many published networks do"
    def forward(self, x): return x if x.is_floating_point() else x.float()/255

def net(c=3, n_out=4, first=nn.Identity):
    block = lambda i,o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    body = nn.Sequential(first(), block(c, 8), block(8, 8), block(8, 16))
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, n_out)))

class Pairs(tud.Dataset):
    "Images with a target, or without, as torch has them"
    def __init__(self, *columns): self.columns = columns
    def __len__(self): return len(self.columns[0])
    def __getitem__(self, i):
        if i>=len(self): raise IndexError
        return tuple(o[i] for o in self.columns)

class Stream(tud.IterableDataset):
    "A data set without positions"
    def __init__(self, pairs): self.pairs = pairs
    def __iter__(self): return iter([self.pairs[i] for i in range(len(self.pairs))])

class Counted(Stream):
    "One whose length is known; fastai's loop needs it"
    def __len__(self): return len(self.pairs)

one_output = ('value', 'binary', 'binary column', 'whole')

def targets(kind, n):
    y = torch.arange(n)%4
    if kind=='none': return ()
    made = dict(classes=y, multi=(torch.rand(n, 4)>.5).float(), soft=torch.rand(n, 4).softmax(1),
                value=torch.rand(n, 1), ignored=torch.where(y==3, -100, y), binary=(y%2).float(), whole=y%2)
    made['binary column'] = made['binary'][:,None]
    return (made[kind],)

def loss_of(kind):
    if kind=='whole': return lambda p,t: F.binary_cross_entropy_with_logits(p[:,0], t.float())
    if kind=='value': return MSELossFlat()
    return BCEWithLogitsLossFlat() if kind in ('multi', *one_output) else nn.CrossEntropyLoss()

def images(n, c, size, scale):
    x = torch.rand(n, c, *size)
    if scale=='turned': return torch.rand(n, *size, c).permute(0, 3, 1, 2) # not contiguous
    return dict(unit=x, normal=2*x - 1, whole=(255*x).round(), bytes=(255*x).byte())[scale]

def loaders(kind, train, valid, bs):
    generator = torch.Generator().manual_seed(1)
    if kind=='torch': return [tud.DataLoader(train, bs, shuffle=True, generator=generator), tud.DataLoader(valid, bs)]
    if kind=='sampler':
        batches = [tud.BatchSampler(tud.RandomSampler(o), bs, False) for o in (train, valid)]
        return [tud.DataLoader(o, batch_sampler=b) for o,b in zip((train, valid), batches)]
    if kind=='stream': return [tud.DataLoader(Stream(o), bs) for o in (train, valid)]
    if kind=='counted': return [tud.DataLoader(Counted(o), bs) for o in (train, valid)]
    if kind=='lists': return [list(tud.DataLoader(o, bs)) for o in (train, valid)]
    cls = DataLoader if kind=='fastai, plain' else TfmdDL
    return [cls(train, bs=bs, shuffle=True, num_workers=0), cls(valid, bs=bs, num_workers=0)]

def quiet(learn):
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def learner(kind='classes', dl='torch', c=3, size=(32, 40), bs=4, n=12, n_valid=8, scale='normal', model=noop,
            valid=True):
    set_seed(0)
    train,held = [Pairs(images(o, c, size, scale), *targets(kind, o)) for o in (n, n_valid)]
    dls = loaders(dl, train, held, bs)
    if valid is not True: dls = dls[:1] + ([None] if valid is None else [])
    first = FromBytes if scale=='bytes' else nn.Identity
    network = model(net(c, 1 if kind in one_output else 4, first))
    return quiet(Learner(DataLoaders(*dls), network, loss_func=loss_of(kind)))

class Blank(Transform):
    "An augmentation that nobody can overlook"
    split_idx,order = 0,99
    def encodes(self, x:TensorImage): return torch.zeros_like(x)

def arrays(n, size, c):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (*size, 3) if c==3 else size, dtype=np.uint8) for _ in range(n)]

def block(target=CategoryBlock, c=3, norm=True, n=12, n_valid=6, size=(32, 40), tfms=()):
    "Loaders of a DataBlock"
    set_seed(0)
    pixels,cls = arrays(n, size, c),PILImage if c==3 else PILImageBW
    ys = {CategoryBlock: lambda i: 'ab'[i%2], RegressionBlock: lambda i: i/10,
          MultiCategoryBlock: lambda i: [['a'], ['a', 'b'], []][i%3]}
    normalise = [Normalize.from_stats([.4]*c, [.3]*c, cuda=False)] if norm else []
    data = DataBlock((ImageBlock(cls), target), get_x=lambda i: cls.create(pixels[i]), get_y=ys[target],
                     splitter=IndexSplitter(range(n - n_valid, n)), batch_tfms=[*normalise, *tfms])
    dls = data.dataloaders(range(n), bs=4, num_workers=0)
    losses = {CategoryBlock: CrossEntropyLossFlat, RegressionBlock: MSELossFlat,
              MultiCategoryBlock: BCEWithLogitsLossFlat}
    return quiet(Learner(dls, net(c, dls.c), loss_func=losses[target]()))

def exported():
    learn = block()
    learn.dls = learn.dls.new_empty()
    return learn

def digits():
    set_seed(0)
    dls = digits_dls(n_train=16, n_valid=8, bs=4, size=32)
    return quiet(Learner(dls, net(3, 10), loss_func=CrossEntropyLossFlat()))

kinds_of_loader = ('torch', 'sampler', 'stream', 'counted', 'lists', 'fastai', 'fastai, plain')
some_kinds = dict(torch=('multi', 'soft', 'ignored', *one_output), fastai=('multi', 'value'))
some_channels = dict(torch=(1, 2, 4, 5), fastai=(2,))

situations = {
    'digits with boxes': digits, 'exported': exported,
    'block': block, 'block, grey': partial(block, c=1), 'block, not normalised': partial(block, norm=False),
    'block, multi': partial(block, MultiCategoryBlock), 'block, value': partial(block, RegressionBlock),
    'block, no validation': partial(block, n_valid=0),
    **{f'loaders {k}': partial(learner, dl=k) for k in kinds_of_loader},
    **{f'{dl}, {k} validation': partial(learner, dl=dl, **kw) for dl in ('torch', 'fastai') for k,kw in
       dict(no=dict(valid=False), empty=dict(n_valid=0), none=dict(valid=None)).items()},
    **{f'{dl}, {c} channels': partial(learner, dl=dl, c=c) for dl,o in some_channels.items() for c in o},
    **{f'scale {k}': partial(learner, scale=k) for k in ('unit', 'whole', 'bytes', 'turned')},
    **{f'{dl}, {k}': partial(learner, k, dl) for dl,o in some_kinds.items() for k in o},
    'torch, none': partial(learner, 'none'),
    'batches of one': partial(learner, n=4, n_valid=1, bs=1), 'one image': partial(learner, n_valid=1),
    'half': partial(learner, model=lambda m: m.bfloat16()),
    'frozen': partial(learner, model=lambda m: m.requires_grad_(False)),
    'channels_last': partial(learner, model=lambda m: m.to(memory_format=torch.channels_last)),
    'square': partial(learner, size=(32, 32)), 'tall': partial(learner, size=(64, 24)),
}


# -- functions, and what may be refused --------------------------------------------------------------------------------

def batch_of(l):
    b = first(l.dls.train)
    return b if isinstance(b, (tuple, list)) else (b,)

def measured(l, measure, target):
    l.metrics = L(CamMetric(measure, target=target))
    try: return l.validate()
    finally: l.metrics = L()

functions = {
    'cams': lambda l: l.cams(),
    'cams, target': lambda l: l.cams(target='target'),
    'cams, predicted': lambda l: l.cams(target='predicted'),
    'cams, grad_cam': lambda l: l.cams(method='grad_cam'),
    'cams, positions': lambda l: l.cams([0, 0]),
    'cams, batch': lambda l: l.cams(batch_of(l)),
    'cams, loader': lambda l: l.cams(l.dls.train),
    'cams, many': lambda l: l.cams(n=99),
    'show_cams': lambda l: l.show_cams(max_n=2),
    'show_cams, two': lambda l: show_cams({'a': l, 'b': l}, max_n=1),
    'show_cam_loss': lambda l: show_cam_loss(l, max_n=2),
    'show_mining': lambda l: show_mining(l, n=2),
    'plot_activations': lambda l: plot_activations({'a': l}),
    'show_drop_layers': lambda l: show_drop_layers(l),
    'dropped_errors': lambda l: dropped_errors(l, retain=(1., .5), seeds=1),
    'localisation': lambda l: localisation(l),
    'CamMetric, distance': lambda l: measured(l, caam_cam_distance, 'predicted'),
    'CamMetric, boxes': lambda l: measured(l, pointing_game, 'predicted'),
    'show_boxes': lambda l: show_boxes(l.dls, 2),
    'get_views': lambda l: get_views(with_views(l)),
    'show_views': lambda l: show_views(with_views(l), max_n=2),
}

def with_views(l):
    if find_views(l.model) is None: install_views(l.model, **views)
    return l

no_classes = 'multi|soft|value|binary|whole|none$'
refused = [ # function, situation, sentence
    ('cams, positions', 'exported', 'positions outside'),
    ('cams, positions', 'loaders (stream|counted|lists)', 'positions need a data set'),
    ('cams, loader', 'exported', 'x is empty'),
    ('cams(?!, (batch|loader|positions))|show_(?!drop_layers)|plot|get', 'exported', 'no images'),
    ('cams, target', f'.*({no_classes})', 'needs one class an image'),
    ('cams, target', '.*ignored', 'target must be'),
    ('dropped_errors|localisation', 'exported|.*(no|empty|none) validation', 'no validation images'),
    ('dropped_errors', 'loaders stream', 'must have a length'),
    ('dropped_errors', '.*none$', 'without labels'),
    ('dropped_errors', f'.*({no_classes})', 'one class per image'),
    ('show_boxes', '(?!digits)', 'no validation images with a box'),
    ('localisation|CamMetric, boxes', '(?!digits|loaders sampler)', 'without a box'),
    ('localisation|CamMetric, boxes', 'loaders sampler', 'shuffles'),
]
impossible = [ # fastai itself fails there, or has nothing to validate
    ('CamMetric', '.*(no|none|empty) validation|.*none$|half|.*stream|exported'), ('cams, batch', 'exported'),
]

def sentences(function, situation):
    return [s for f,where,s in refused if re.match(f, function) and re.match(where, situation)]


def fingerprint(learn):
    "Everything that looking must leave alone"
    m = learn.model
    holders = [o for dl in learn.dls.loaders for o in (dl, getattr(dl, 'sampler', None))]
    generators = [g for o in holders if (g := getattr(o, 'generator', None)) is not None]
    kinds_of_hook = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks'
    return SimpleNamespace(
        weights={k: v.clone() for k,v in m.state_dict().items()},
        flags=[o.training for o in m.modules()],
        hooks=[[len(getattr(o, k)) for k in kinds_of_hook] for o in m.modules()],
        keys=[set(o.__dict__) for o in m.modules()],
        grads=[(p.requires_grad, p.grad is None) for p in m.parameters()],
        generators=[g.get_state().tolist() for g in generators],
        loaders=[dl.rng.getstate() for dl in learn.dls.loaders if hasattr(dl, 'rng')],
        torch=torch.get_rng_state().tolist(), numpy=np.random.get_state()[1].tolist(), python=random.getstate())

def same(a, b, function):
    for k,v in vars(a).items():
        w = getattr(b, k)
        if k=='weights': assert v.keys()==w.keys() and all(torch.equal(v[i], w[i]) for i in v), f'{function}: weights'
        elif v!=w: pytest.fail(f'{function}: {k}')


@pytest.mark.parametrize('situation', situations)
def test_pictures_are_as_wide_as_training(situation):
    learn = situations[situation]()
    learn.model.train()
    learn.model[0].eval() # flags that differ
    for function,draw in functions.items():
        if any(re.match(f, function) and re.match(s, situation) for f,s in impossible): continue
        if 'views' in function: with_views(learn)
        foreign = re.match('cams, batch|CamMetric', function) # the caller, or fastai, iterates the loader
        before = fingerprint(learn)
        try: draw(learn)
        except ValueError as e:
            assert any(re.search(o, str(e)) for o in sentences(function, situation)), f'{function}: {e}'
        except Exception as e: pytest.fail(f'{function}: {type(e).__name__}: {e}')
        if not foreign: same(before, fingerprint(learn), function)
        plt.close('all')


methods = {'FeatureMining': FeatureMining, 'CAMLoss': partial(CAMLoss, start=0), 'SelectScale': SelectScale,
           'MVFeaAug': partial(MVFeaAug, **views)}
no_second = [f'{dl}, {k} validation' for dl in ('torch', 'fastai') for k in ('no', 'none')]
cannot_train = ['exported', 'loaders stream', 'half', 'frozen', 'torch, none', *no_second] # nor does plain fastai

@pytest.mark.parametrize('situation', [o for o in situations if o not in cannot_train])
def test_training_is_refused_by_a_sentence_only(situation):
    "The first column of the matrix: what trains is drawn (above), and nothing fails but by a sentence"
    for name,method in methods.items():
        learn = situations[situation]()
        learn.add_cb(method())
        try: learn.fit(1, 1e-3)
        except ValueError as e:
            assert name in ('CAMLoss', 'FeatureMining') and re.search(no_classes, situation), f'{name}: {e}'


# -- numbers -----------------------------------------------------------------------------------------------------------

def drawn(ax): return torch.as_tensor(np.asarray(ax.images[0].get_array()))

def shown(learn):
    axs = plt.subplots(2, 3)[1].flatten()
    learn.show_cams(ctxs=axs, max_n=2)
    return axs

@pytest.mark.parametrize('c', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('dl', ['torch', 'fastai'])
def test_images_of_any_channels(c, dl):
    learn = learner(dl=dl, c=c, scale='unit')
    axs,x = shown(learn),learn.dls.valid.dataset.columns[0]
    for i in (0, 1):
        expected = x[i].mean(0) if c<3 else x[i,:3].permute(1, 2, 0)
        check(drawn(axs[3*i]), expected)
        if c<3: assert axs[3*i].images[0].get_cmap().name=='gray' and axs[3*i].images[0].get_clim()==(0, 1)
    assert axs[0].texts[0].get_text()==(channel_note(c) or 'image')

@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('norm', [True, False])
def test_normalisation_is_undone(c, norm):
    learn = block(c=c, norm=norm)
    axs,pixels = shown(learn),torch.from_numpy(np.stack(arrays(12, (32, 40), c)))[6:]/255
    for i in (0, 1): torch.testing.assert_close(drawn(axs[3*i]), pixels[i], rtol=0, atol=1.01/255)

def test_bytes_whole_numbers_and_what_is_out_of_range():
    learn = learner(scale='bytes')
    x = learn.dls.valid.dataset.columns[0][:3]
    for o in (x, x.float(), x.half()): check(torch.stack(decoded_images(learn, o)).as_subclass(Tensor), x/255)
    low = torch.stack([x[0]/255, 9*(x[1]/255) - 4])
    for got,o in zip(decoded_images(learn, low), low): check(got.as_subclass(Tensor), (o - o.min())/(o.max() - o.min()))
    assert torch.equal(learn.cams().x, learn.dls.valid.dataset.columns[0][:4]), 'bytes go to the network as they are'
    with torch.no_grad(): check(learn.cams().logits, learn.model.eval()(learn.dls.valid.dataset.columns[0][:4]))
    with pytest.raises(ValueError, match='does not take images of torch.uint8'): learner().cams(x)

@pytest.mark.parametrize('dl', kinds_of_loader)
def test_every_loader_gives_the_same_maps(dl):
    "The maps are those of the first images one by one, the class shown is the label, the prediction the argmax"
    learn = learner(dl=dl)
    x,y = learner().dls.valid.dataset.columns
    got = learn.cams()
    assert torch.equal(got.x, x[:4]) and torch.equal(got.labels, y[:4]) and torch.equal(got.classes, y[:4])
    with torch.no_grad():
        f = learn.model.eval()[0](x[:4])
        expected = torch.stack([sum(learn.model[1][2].weight[y[i],k]*f[i,k] for k in range(16)) for i in range(4)])
        check(got.maps, expected)
        check(got.logits, learn.model(x[:4]))
    axs = shown(learn)
    for i in (0, 1):
        p = int(got.logits[i].argmax())
        assert axs[3*i].get_title()==str(int(y[i])) and axs[3*i+1].get_title()==f'says {p}'
        assert axs[3*i+1].title.get_color()==('green' if p==y[i] else 'red')

def test_without_validation_images_training_images_are_shown_as_they_are():
    learn = block(n_valid=0, tfms=[Blank()])
    assert not first(learn.dls.train)[0].any()
    pixels = torch.from_numpy(np.stack(arrays(12, (32, 40), 3)))[:4].permute(0, 3, 1, 2)/255
    check(learn.cams().x, (pixels - .4)/.3)
    learn = learner(valid=False)
    assert torch.equal(learn.cams([7, 2]).x, learn.dls.train.dataset.columns[0][[7, 2]])

@pytest.mark.parametrize('dl', ['torch', 'sampler', 'fastai', 'fastai, plain'])
def test_shuffling_goes_on_as_if_nobody_had_looked(dl):
    def order(look):
        learn = learner(dl=dl)
        random.seed(3)
        for o in learn.dls.loaders:
            if hasattr(o, 'rng'): o.rng = random.Random(5)
        if look:
            learn.show_cams(max_n=1)
            learn.cams(learn.dls.train)
            show_mining(learn, n=1)
            dropped_errors(learn, retain=(.5,), seeds=1)
        return [torch.cat([b[1] for b in learn.dls[i]]).tolist() for i in (0, 1)]
    assert order(True)==order(False)

@pytest.mark.parametrize('logits,y,right', [
    ([0., 3, 1], 1, True), ([0., 3, 1], 0, False), ([0., 3, 1], -100, None), ([0., 3, 1], None, None),
    ([0., 3, 1], .5, None), ([2.], 1, None), ([0., 3, 1], [0., 1, 1], True), ([0., 3, 1], [1., 0, 1], False),
    ([0., 3, 1], [0., 0, 0], None), ([0., 3, 1], [.2, .7, .1], True), ([0., 3, 1], [1., 0], None)])
def test_one_rule_for_right_and_wrong(logits, y, right):
    assert is_right(tensor(logits), None if y is None else torch.tensor(y)) is right

def test_titles_of_several_labels_one_output_and_names():
    learn = learner('multi')
    y,logits = learn.dls.valid.dataset.columns[1],learn.cams().logits
    axs = shown(learn)
    for i in (0, 1):
        assert axs[3*i].get_title()==(', '.join(str(j) for j in range(4) if y[i,j]==1) or 'no label')
        assert axs[3*i+1].title.get_color()==('green' if y[i,logits[i].argmax()]==1 else 'red')
    assert axs[1].texts[0].get_text()=='CAM of prediction'
    for kind in one_output:
        learn = learner(kind)
        axs = shown(learn)
        value = learn.cams().logits[0].item()
        assert axs[1].get_title()==f'gives {value:.3g}' and axs[1].title.get_color()=='black'
        assert axs[1].texts[0].get_text()=='CAM of the output'
    learn = learner()
    learn.dls.valid.dataset.classes = ['cat', 'dog', 'owl', 'yak'] # as torchvision's data sets have them
    assert shown(learn)[0].get_title()=='cat' and label_text(learn, tensor([.1, .6, .2, .1]))=='dog 60%'

def test_labels_that_the_loss_ignores_give_the_prediction():
    got = learner('ignored').cams()
    assert torch.equal(got.classes, torch.where(got.labels<0, got.predicted, got.labels)) and (got.labels<0).any()

def test_boxes_are_whole_at_the_border_and_where_they_belong():
    learn = digits()
    items = learn.dls.valid.dataset.items
    items[0].box = (0, 0, 32, 32) # all four sides lie on the border
    axs = shown(learn)
    for i in (0, 1):
        x0,y0,x1,y1 = items[i].box
        for ax in axs[3*i:3*i+3]:
            frame, = ax.patches
            assert not frame.get_clip_on()
            assert (*frame.get_xy(), frame.get_width(), frame.get_height())==(x0-.5, y0-.5, x1-x0, y1-y0)
    assert torch.equal(learn.cams([3, 1]).boxes, tensor([items[3].box, items[1].box]).float())

def test_given_boxes_measure_what_those_of_the_items_do():
    learn = digits()
    x,y = [torch.cat([as_batch(b).x if k==0 else as_batch(b).y for b in learn.dls.valid]) for k in (0, 1)]
    dl,boxes = tud.DataLoader(Pairs(x, y), 3),get_boxes(learn.dls.valid)
    np.testing.assert_allclose(localisation(learn, dl, boxes=boxes), localisation(learn), atol=1e-5)
    with pytest.raises(ValueError, match='each of the'): localisation(learn, dl, boxes=boxes[:3])
    shuffled = tud.DataLoader(Pairs(x, y), 3, shuffle=True)
    with pytest.raises(ValueError, match='shuffles'): localisation(learn, shuffled, boxes=boxes)

def test_half_precision_shows_what_float_shows():
    a,b = learner().cams(target=1),learner(model=lambda m: m.bfloat16()).cams(target=1)
    torch.testing.assert_close(a.maps, b.maps, rtol=.1, atol=.05)
    assert as_batch(torch.ones(1, 3, 4, 4)).on(nn.Linear(1, 1, device='meta')).device.type=='meta'

def test_mining_parts_add_up():
    learn = learner(c=2)
    show_mining(learn, n=2)
    axs = np.array(plt.gcf().axes).reshape(2, 5)
    for row in axs:
        whole,mask,one,two = [torch.as_tensor(np.asarray(ax.images[0].get_array())) for ax in row[1:]]
        check(one + two, whole)
        check(one, whole*mask)
    x = learn.dls.valid.dataset.columns[0][:2]
    with torch.no_grad(): check(drawn(axs[1,1]), learn.model.eval()[0](x)[1].mean(0))
    assert axs[0,0].get_title()=='mean of 2 channels'

def test_cam_loss_picture_shows_the_loss():
    learn = learner()
    show_cam_loss(learn, max_n=2)
    axs,got = np.array(plt.gcf().axes).reshape(2, 4),learn.cams(relu=False)
    expected = caam_cam_distance(got.maps, got.caam)
    assert axs[0,3].get_title()==f'difference, mean {expected[0]:.2f}' and axs[1,3].get_title()==f'{expected[1]:.2f}'
    assert [axs[0,i].get_title() for i in (0, 1)]==['image', "label's CAM"]

@pytest.mark.parametrize('kind', ['classes', 'multi', 'value'])
def test_views_drawn_are_the_surest(kind):
    learn = with_views(learner(kind))
    got = get_views(learn, n=2)
    show_views(learn, n_top=4, max_n=2)
    axs = np.array(plt.gcf().axes).reshape(2, 4)
    for i,row in enumerate(axs):
        c = 0 if kind=='value' else int(got.labels[i]) if kind=='classes' else int(got.predicted[i])
        sure = got.logits[i,:,0] if kind=='value' else got.logits[i].softmax(1)[:,c]
        x0,y0,x1,y1 = got.boxes[i,sure.argmax()].tolist()
        assert [len(ax.patches) for ax in row]==[0, 0, 1, 4] and row[2].patches[0].get_xy()==(x0-.5, y0-.5)
        assert row[2].get_title()==(f'gives {sure.max():.3g}' if kind=='value' else f'{sure.max():.0%} sure')

@pytest.mark.parametrize('n_valid', [1, 3])
def test_fewer_images_than_asked_for(n_valid):
    learn = learner(n_valid=n_valid)
    assert len(learn.cams(n=99))==n_valid and len(get_views(with_views(learner(n_valid=n_valid)), n=99))==n_valid
    for draw,cols in ((learn.show_cams, 3), (partial(show_cam_loss, learn), 4), (partial(show_mining, learn), 5)):
        draw()
        assert len(plt.gcf().axes)==cols*n_valid

def test_drops_of_a_map_of_negative_values():
    show_drops(-torch.rand(1, 6, 3, 3) - 1, {'spatial': partial(spatial_dropout, p=.5)}, n=4)
    for ax in plt.gcf().axes: assert ax.images[0].get_clim()[0]<ax.images[0].get_clim()[1]

def test_dropped_errors_of_any_loader():
    results = [dropped_errors(learner(dl=dl), retain=(1.,)).error[0] for dl in ('torch', 'lists', 'counted', 'fastai')]
    learn = learner()
    x,y = learn.dls.valid.dataset.columns
    with torch.no_grad(): assert results==[(learn.model.eval()(x).argmax(1)!=y).float().mean().item()]*4

@pytest.mark.parametrize('bad,word', [
    (dict(x=[]), 'x is empty'),
    (dict(x=torch.ones(0, 3, 4, 4)), 'x is empty'),
    (dict(x=[99]), 'has 8 images'),
    (dict(x=['a.png']), 'pipeline of a DataBlock'),
    (dict(x=[{'a': 1}]), 'pipeline of a DataBlock'),
    (dict(x=torch.ones(3, 4, 4)), 'x must be a batch'),
    (dict(n=0), 'at least 1'),
    (dict(n=2.), 'whole number'),
])
def test_bad_input(bad, word):
    with pytest.raises(ValueError, match=word): batch_to_look_at(learner(), **bad)

def test_batches_of_something_else():
    learn = learner()
    learn.dls.loaders[1].collate_fn = lambda b: dict(image=b[0])
    with pytest.raises(ValueError, match='a batch must begin with images'): learn.show_cams()
    vectors = tud.DataLoader(Pairs(torch.rand(4, 7)), 2)
    with pytest.raises(ValueError, match='a batch must begin with images'): first_images(vectors)
    with pytest.raises(ValueError, match='ctxs must hold 18 axes'): learner().show_cams(ctxs=plt.subplots(1, 3)[1])
