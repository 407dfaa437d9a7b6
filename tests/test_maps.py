"Maps against the equations, against pytorch-grad-cam and torchvision, and what a learner must not notice of them"
import numpy as np
import pytest
import timm
import torchvision
from hypothesis import given, settings, strategies as st
from fastai.vision.all import *
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.batches import *
from fastai_featreg.class_maps import *
from fastai_featreg.heads import isolated_rng
from fastai_featreg.boxes import get_boxes
from fastai_featreg.data import digits_dls
from fastai_featreg.localise import *
from fastai_featreg.look import *
from fastai_featreg.maps import *
from fastai_featreg.nets import resnet20
from tiny import tiny_learner, tiny_model, weights, assert_same

# pytest would take fastai's helpers for tests
for name in [o for o in globals() if o.startswith('test')]: del globals()[name]

sizes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 10**6)
halves = st.sampled_from([torch.float16, torch.bfloat16])
check = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


def randn(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def literal_cam(f, w):
    "Equation 2, channel after channel, in double precision"
    out = torch.zeros(len(f), *f.shape[2:], dtype=torch.float64)
    for k in range(f.shape[1]): out += w[:,k,None,None].double()*f[:,k].double()
    return out


@settings(deadline=None, max_examples=150)
@given(sizes, seeds, st.integers(1, 4), st.booleans())
def test_cam_and_caam_equal_the_sums(size, seed, k, last):
    f,w = 3*randn(seed, *size),randn(seed + 1, size[0], k, size[1])
    layout = f.to(memory_format=torch.channels_last) if last else f
    expected = torch.stack([literal_cam(f, o) for o in w.unbind(1)] + [literal_cam(f, torch.ones_like(w[:,0]))], 1)
    check(cam_and_caam(layout, w), expected.float())
    check(cam(layout, w), expected[:,:-1].float())
    check(cam(layout, w[:,0]), expected[:,0].float())
    check(caam(layout), expected[:,-1].float())
    torch.testing.assert_close(cam_and_caam(f.double(), w[:,0]), expected[:,[0,-1]], rtol=1e-10, atol=1e-10)
    both = cam_and_caam(layout, w[:,0])
    check(both[:,0], cam(layout, w[:,0]))
    check(both[:,1], caam(layout))


@settings(deadline=None, max_examples=100)
@given(sizes, seeds, halves, st.booleans())
def test_half_precision_is_finite_and_near(size, seed, dtype, autocast):
    f,w = (1000*randn(seed, *size)).to(dtype),randn(seed + 1, size[0], size[1]).to(dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): got,a,sums = cam_and_caam(f, w),cam(f, w),caam(f)
    expected = torch.stack([literal_cam(f, w), literal_cam(f, torch.ones_like(w))], 1).float()
    for o,e in ((got, expected), (a, expected[:,0]), (sums, expected[:,1])):
        assert o.dtype==torch.float32 and o.isfinite().all()
        check(o, e, atol=1e-4*max(1, e.abs().max().item()))


@settings(deadline=None, max_examples=200)
@given(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), seeds, st.floats(-3, 3), st.floats(-5, 5),
       st.booleans())
def test_minmax(size, seed, exponent, shift, relu):
    a = randn(seed, *size).relu() if relu else randn(seed, *size)
    a = (a*10**exponent + shift).requires_grad_()
    got = minmax(a)
    assert got.isfinite().all() and got.min()>=0 and got.max()<=1
    for one,o in zip(a.detach(), got.detach()):
        if one.max()-one.min() > 4e-6*one.abs().max():
            check(o, (one - one.min())/(one.max() - one.min()), atol=1e-5)
            assert o.max()==1 and o.min()==0
        elif one.max()==one.min(): assert not o.any()
    check(minmax(got.detach()), got.detach(), atol=1e-5)
    (got*randn(seed + 1, *size)).sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize('value', [0., 1e-38, 1e-20, .1, 1e30, -7.])
def test_flat_maps_are_zeros_with_finite_gradients(value):
    a = torch.full((2, 5, 5), value)
    rough = a*(1 + 1.2e-7*(randn(0, 2, 5, 5)>0)) # the last bit only
    for o in (a, rough):
        o = o.clone().requires_grad_()
        assert not minmax(o).any()
        (minmax(o)*randn(1, 2, 5, 5)).sum().backward()
        assert not o.grad.any()


@settings(deadline=None, max_examples=40)
@given(st.floats(-37, -25), seeds)
def test_gradients_of_nearly_vanished_maps_are_finite(exponent, seed):
    a = (randn(seed, 1, 4, 4).abs()*10**exponent).requires_grad_()
    caam_cam_distance(a, randn(seed + 1, 1, 4, 4)).sum().backward()
    assert a.grad.isfinite().all()


class Head(nn.Module):
    def __init__(self, d, c, hidden, seed):
        super().__init__()
        with isolated_rng(seed):
            self.layers = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, c)) if hidden else nn.Linear(d, c)
    def forward(self, f): return self.layers(f.mean((2, 3)))


def one_by_one(head, f, y, pp):
    "Each image by itself, in double precision, the formulas written out"
    res = []
    for i in range(len(f)):
        one = f[i:i+1].detach().double().requires_grad_()
        g = torch.autograd.grad(head.double()(one)[0,y[i]], one)[0][0]
        head.float()
        a = one.detach()[0]
        alpha = g**2/(2*g**2 + a.sum((1, 2), keepdim=True)*g**3)
        weight = (torch.nan_to_num(alpha)*g.clamp(min=0)).sum((1, 2)) if pp else g.mean((1, 2))
        res.append((weight[:,None,None]*a).sum(0))
    return torch.stack(res).float()


@settings(deadline=None, max_examples=80)
@given(sizes, seeds, st.booleans(), st.booleans())
def test_grad_cam_equals_a_loop_over_images(size, seed, hidden, pp):
    f,y = (randn(seed, *size).relu().requires_grad_(),
           torch.randint(0, 4, (size[0],), generator=torch.Generator().manual_seed(seed)))
    head = Head(size[1], 4, hidden, seed)
    fn,score = (grad_cam_pp if pp else grad_cam),head(f)[range(len(y)),y]
    expected = one_by_one(head, f, y, pp)
    check(fn(f, score, relu=False), expected, atol=1e-5)
    check(fn(f, score), expected.relu(), atol=1e-5)
    if not hidden and not pp: check(fn(f, score, relu=False)*size[2]*size[3], cam(f, head.layers.weight[y]))
    got = fn(f, score, relu=False)
    got.sum().backward()
    assert all(p.grad is None for p in head.parameters()), 'the channel weights are constants'


@settings(deadline=None, max_examples=60)
@given(sizes, seeds, halves, st.booleans())
def test_grad_cam_in_half_precision(size, seed, dtype, pp):
    w = randn(seed + 1, size[1])
    f = (10*randn(seed, *size)).relu().to(dtype)
    low,high = f.clone().requires_grad_(),f.float().requires_grad_()
    fn = grad_cam_pp if pp else grad_cam
    with torch.autocast('cpu', torch.bfloat16): got = fn(low, low.mean((2, 3))@w.to(dtype))
    assert got.dtype==torch.float32 and got.isfinite().all()
    expected = fn(high, high.mean((2, 3))@w.to(dtype).float())
    check(got, expected, rtol=.05, atol=.05*max(1e-3, expected.abs().max().item()))


# -- pytorch-grad-cam --------------------------------------------------------------------------------------------------

nets = {
    'torchvision': lambda: torchvision.models.resnet18(num_classes=10),
    'timm': lambda: timm.create_model('convnext_atto', num_classes=10),
    'timm, exact': lambda: timm.create_model('resnet10t', num_classes=10),
    'cifar': lambda: resnet20(n_out=10),
}

@pytest.mark.parametrize('name', nets)
@pytest.mark.parametrize('pp', [False, True])
def test_agrees_with_pytorch_grad_cam(name, pp):
    package = pytest.importorskip('pytorch_grad_cam')
    with isolated_rng(0): model,x,y = nets[name]().eval(),torch.randn(3, 3, 96, 96),[1, 7, 3]
    classifier = dict(model.named_modules())[get_anatomy(model).classifier]
    # the package's small constants, 1e-6 and 1e-7, must be small beside the gradients
    with torch.no_grad(): classifier.weight.mul_(1e4 if pp else 100)
    make = CamMaker(model, 'grad_cam_pp' if pp else 'grad_cam')
    ours = minmax(resize_maps(minmax(make(x, y)['maps']), 96))
    theirs = (package.GradCAMPlusPlus if pp else package.GradCAM)(model=model, target_layers=[make.stage.module])
    target = [(lambda out, c=c: out[c]) for c in y]
    check(ours, torch.from_numpy(theirs(input_tensor=x, targets=target)), rtol=1e-3, atol=2e-3)
    assert ours.std()>.05, 'a map that says something'
    assert bool(make.anatomy.cam_exact) == (name!='timm'), make.anatomy.cam_why
    if make.anatomy.cam_exact and not pp:
        check(minmax(CamMaker(model)(x, y)['maps'].relu()), minmax(make(x, y)['maps']), atol=1e-3)


# -- class weights -----------------------------------------------------------------------------------------------------

def head_of(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), *layers)

@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(['bn', 'linear', 'nobias', 'dropout', 'identity']), max_size=4), seeds)
def test_class_weights_of_random_affine_heads(kinds, seed):
    with isolated_rng(seed):
        make = dict(bn=lambda: nn.BatchNorm1d(8), linear=lambda: nn.Linear(8, 8),
                    nobias=lambda: nn.Linear(8, 8, bias=False), dropout=lambda: nn.Dropout(.5), identity=nn.Identity)
        model = head_of(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *[make[k]() for k in kinds], nn.Linear(8, 4))
        for m in model:
            if isinstance(m, nn.BatchNorm1d):
                m.running_mean.normal_()
                m.running_var.uniform_(.5, 2)
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
        x = torch.randn(4, 3, 64, 64)
    anatomy = get_anatomy(model)
    got = ClassWeights(model, anatomy)
    assert got.layers is not None
    check(got(), got.probed())
    assert not got().requires_grad
    model.eval()
    with torch.no_grad(): f,logits = model[:6](x),model(x)
    rest = logits - cam(f, got()[None].expand(4, -1, -1)).mean((2, 3))
    check(rest, rest[:1].expand_as(rest), atol=1e-4*max(1., logits.abs().max().item()))
    with torch.no_grad(): model[-1].weight.mul_(3.)
    check(got(), got.probed()) # as the weights are now


@pytest.mark.parametrize('model', [
    head_of(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4)),
    head_of(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    head_of(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
])
def test_not_exact_has_no_class_weights(model):
    with pytest.raises(ValueError, match='CAM is not exact'): class_weights(model)
    assert CamMaker(model).method=='grad_cam' and 'because' in CamMaker(model).why


class Scaled(nn.Module):
    "An affine head with a parameter of its own, 1 at first: no list of layers shows it"
    def __init__(self):
        super().__init__()
        self.body,self.fc,self.scale = head_of(),nn.Linear(8, 4),nn.Parameter(torch.ones(8))
    def forward(self, x): return self.fc(self.body(x).mean((2, 3))*self.scale)

def test_a_class_token_has_maps_of_earlier_layers_only():
    with isolated_rng(0): vit = timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=64, depth=2)
    for method in ('auto', 'grad_cam', 'grad_cam_pp'):
        with pytest.raises(ValueError, match="there are no class maps of 'norm'.*name an earlier layer"):
            CamMaker(vit, method)
    got = CamMaker(vit, layer='blocks.0', relu=False)(randn(0, 2, 3, 64, 64))
    assert got['maps'].shape==(2, 4, 4) and (got['maps'].flatten(1).std(1)>0).all()


def test_parameters_outside_known_layers_are_probed():
    model = Scaled()
    got = ClassWeights(model)
    check(got(), model.fc.weight.detach())
    with torch.no_grad(): model.scale.mul_(2)
    check(got(), 2*model.fc.weight.detach())


# -- measures ----------------------------------------------------------------------------------------------------------

def draw_boxes(seed, n, size):
    with isolated_rng(seed): a,b = torch.randint(0, size, (n, 2)).float(),torch.randint(1, size + 1, (n, 2)).float()
    low = torch.minimum(a, b - 1).clamp(min=0)
    return torch.cat([low, torch.maximum(a + 1, b)], 1)

@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(8, 20), seeds, st.floats(.01, 1))
def test_measures(n, side, size, seed, threshold):
    a,boxes = randn(seed, n, side, side),draw_boxes(seed, n, size)
    masks = box_masks(boxes, size)
    big = minmax(resize_maps(a, size))
    for i in range(n):
        x0,y0,x1,y1 = boxes[i].int().tolist()
        assert masks[i].sum()==(x1 - x0)*(y1 - y0) and masks[i,y0:y1,x0:x1].all()
        if side>1:
            check(energy_inside(a, boxes, size)[i], big[i,y0:y1,x0:x1].sum()/big[i].sum())
            check(pointing_game(a, boxes, size)[i], (big[i,y0:y1,x0:x1]==1).sum()/(big[i]==1).sum())
            check(mask_iou_at(a, masks, threshold=threshold)[i],
                  ((big[i]>=threshold) & masks[i]).sum()/((big[i]>=threshold) | masks[i]).sum())
    for fn in (pointing_game, energy_inside): check(fn(a, boxes, size), fn(a, masks))
    check(box_iou_at(a, boxes, size, threshold),
          torchvision.ops.box_iou(map_boxes(a, size, threshold), boxes).diagonal())
    if side==1: check(energy_inside(a, boxes, size), masks.float().mean((1, 2)))


@settings(deadline=None, max_examples=60)
@given(st.integers(6, 30), seeds)
def test_a_map_that_is_the_box_finds_the_box(size, seed):
    boxes = draw_boxes(seed, 4, size)
    boxes = boxes[(boxes[:,2:] - boxes[:,:2]).prod(1)<size**2]
    if not len(boxes): return
    a = box_masks(boxes, size).float()
    for fn in (pointing_game, energy_inside, box_iou_at, mask_iou_at): check(fn(a, boxes, size), torch.ones(len(boxes)))
    assert max_box_acc(a, boxes, size)[0]==1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(2, 6), seeds, st.sampled_from(['l1', 'l2']), st.sampled_from(['mean', 'sum']))
def test_distance(n, side, seed, distance, positions):
    a,b = randn(seed, n, side, side),randn(seed + 1, n, side, side)
    got = caam_cam_distance(a, b, distance, positions)
    one,two = [torch.stack([(o - o.min())/(o.max() - o.min()) for o in m]) for m in (a, b)]
    apart = (one - two).abs().pow(1 if distance=='l1' else 2)
    check(got, apart.mean((1, 2)) if positions=='mean' else apart.sum((1, 2)))
    check(caam_cam_distance(2*a + 1, b, distance, positions), got)
    check(caam_cam_distance(b, a, distance, positions), got)
    assert not caam_cam_distance(a, a, distance, positions).any()


# -- learners ----------------------------------------------------------------------------------------------------------

def digits_learner(metrics=None, **kwargs):
    set_seed(0)
    learn = Learner(digits_dls(n_train=32, n_valid=16, bs=16, size=32), tiny_model(), loss_func=CrossEntropyLossFlat(),
                    metrics=metrics, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def test_metrics_do_not_change_training():
    measured = digits_learner([CamMetric(pointing_game), CamMetric(energy_inside, of='caam', method='grad_cam'),
                               CamMetric(caam_cam_distance)])
    plain = digits_learner()
    for l in (plain, measured):
        set_seed(3)
        l.fit_one_cycle(2, 1e-2)
    assert_same(weights(plain), weights(measured))
    assert list(measured.recorder.metric_names)[3:6]==['pointing_game', 'caam_energy_inside', 'caam_cam_distance']
    table = localisation(measured)
    assert (np.isclose(measured.recorder.values[-1][2], table.pointing_game['cam'], atol=1e-5)
            and np.isclose(measured.recorder.values[-1][4], table.distance_to_cam['caam'], atol=1e-5))

def test_metrics_are_exported(tmp_path):
    learn = digits_learner([CamMetric(pointing_game)])
    learn.validate()
    assert learn.metrics[0]._make is None, 'the metric does not hold the model after validation'
    learn.export(tmp_path/'a.pkl')
    items = learn.dls.valid.dataset.items[:3]
    loaded = load_learner(tmp_path/'a.pkl')
    for target in ('predicted', 'target', 4):
        check(loaded.cams(items, target=target).maps, learn.cams([0, 1, 2], target=target).maps)

@pytest.mark.parametrize('method', ['cam', 'grad_cam', 'grad_cam_pp'])
def test_same_maps_in_every_dress(method):
    learn = digits_learner()
    expected = learn.cams([3, 5], method=method)
    for change in (lambda m: m.train(), lambda m: m.eval(), lambda m: m.to(memory_format=torch.channels_last),
                   lambda m: m.requires_grad_(False), nn.DataParallel, lambda m: m.module,
                   lambda m: m.compile(backend='eager') or m):
        learn.model = change(learn.model)
        got = learn.cams([3, 5], method=method)
        check(got.maps, expected.maps)
        check(got.caam, expected.caam)
        assert torch.equal(got.boxes, expected.boxes)
    with torch.no_grad(): check(learn.cams([3, 5], method=method).maps, expected.maps)
    with torch.autocast('cpu', torch.bfloat16): check(learn.cams([3, 5], method=method).maps, expected.maps)
    learn.model = digits_learner().model.bfloat16()
    low = learn.cams([3, 5], method=method)
    assert low.maps.dtype==torch.float32 and low.maps.isfinite().all()

def test_several_labels_have_no_target():
    learn = tiny_learner()
    x,y = torch.randn(4, 3, 16, 16),(torch.rand(4, 10)>.5).float()
    with pytest.raises(ValueError, match='one class an image'): learn.cams((x, y), target='target')
    assert torch.equal(learn.cams((x, y)).classes, learn.cams((x, y)).predicted)
    assert len(learn.cams((x, y), target='predicted'))==4 and learn.cams((x, y), target=2).labels is None
    assert len(learn.cams())==8 and len(learn.cams([1, 2])) == 2

def test_a_batch_of_maps_is_its_images_one_by_one():
    learn = digits_learner()
    for method in ('cam', 'grad_cam', 'grad_cam_pp'):
        many = learn.cams(range(16), method=method, target='predicted')
        check(many.maps, torch.cat([learn.cams([i], method=method, target='predicted').maps for i in range(16)]))
        assert torch.equal(many.boxes, get_boxes(learn.dls.valid))

@pytest.mark.cuda
def test_on_a_gpu(device):
    learn = digits_learner()
    learn.dls.cpu()
    learn.model.cpu()
    expected = {m: learn.cams([0, 1, 2], method=m) for m in ('cam', 'grad_cam', 'grad_cam_pp')}
    table = localisation(learn)
    learn.dls.to(torch.device(device))
    learn.model.to(device)
    for m,o in expected.items(): check(learn.cams([0, 1, 2], method=m).maps, o.maps, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(localisation(learn), table, atol=1e-2)
    f,w = torch.randn(4, 64, 7, 7, device=device).half(),torch.randn(4, 64, device=device)
    with torch.autocast(device):
        check(cam_and_caam(f, w).cpu(), cam_and_caam(f.cpu(), w.cpu()), rtol=1e-2, atol=1e-2)
    learn.show_cams(max_n=1)
