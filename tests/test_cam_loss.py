"CAM-loss and NegativeCAM in a learner: what they reach, what they leave alone, and every way to run"
from functools import partial
import pytest, timm
from fastai.callback.channelslast import ChannelsLast
from tiny import *


def run(cbs=None, n=48, **kwargs):
    learn = tiny_learner(cbs, n=n, **kwargs)
    learn.fit(2, 1e-2)
    assert_clean(learn)
    return learn


class Grads(Callback):
    "Gradients of the first batch, before the step"
    order = 50
    def before_step(self):
        if not hasattr(self.learn, 'noted'): self.learn.noted = {n: p.grad.clone() for n,p in self.model.named_parameters()}


makers = dict(cam=lambda: CAMLoss(start=0), grad_cam=lambda: CAMLoss(start=0, cam='grad_cam'), grad_cam_pp=lambda: CAMLoss(start=0, cam='grad_cam_pp'), negative=lambda: NegativeCAM(),
              negative_grad=lambda: NegativeCAM(cam='grad_cam'))


@pytest.mark.parametrize('name', makers)
def test_the_term_reaches_the_backbone_and_not_the_classifier(name):
    plain,with_term = run(Grads()).noted,run([makers[name](), Grads()]).noted
    for n in plain:
        same = torch.equal(plain[n], with_term[n])
        if n.startswith('1.'): assert torch.allclose(plain[n], with_term[n], rtol=1e-4, atol=1e-7), f'the classifier got a gradient: {n}'
        else: assert not same, f'no gradient at {n}'


@pytest.mark.parametrize('name', makers)
@pytest.mark.parametrize('extra', [MixUp, CutMix, CpuMixedPrecision, partial(GradientAccumulation, 16), partial(GradientClip, .1), ChannelsLast])
def test_beside_other_callbacks(name, extra):
    learn = run([makers[name](), extra()])
    plain = run(extra())
    assert np.isfinite([v for row in learn.recorder.values for v in row]).all() and learn.recorder.values[-1][2]>0
    assert not torch.equal(weights(plain)['0.0.0.weight'], weights(learn)['0.0.0.weight'])
    assert learn.recorder.metric_names[-2]==('negative_cam' if 'negative' in name else 'cam_loss')


def test_bf16_is_near_float32():
    full,half = run(CAMLoss(start=0)),run([CAMLoss(start=0), CpuMixedPrecision()])
    assert abs(full.recorder.values[0][2] - half.recorder.values[0][2]) < .03


@pytest.mark.parametrize('start,begins', [(0, 0), (1, 4), (.5, 4), (.25, 2)])
def test_start(start, begins):
    class Watch(Callback):
        run_valid,order = False,60
        def after_batch(self): self.learn.seen.append(self.cam_loss._fit.count)
    learn = tiny_learner([CAMLoss(start=start), Watch()], n=32)
    learn.seen = []
    learn.fit(2)
    terms = [c>0 for c in learn.seen]
    assert terms==[i>=begins for i in range(8)], learn.seen


def test_start_is_kept_over_fits_resumed_and_not_made_by_lr_find():
    cb = CAMLoss(start=1)
    learn = tiny_learner(cb)
    learn.fit(1)
    assert cb.started is None
    learn.lr_find(num_it=10, show_plot=False)
    assert cb.started is None, 'a search for a learning rate is no training'
    learn.fit(2)
    assert cb.started.startswith('since epoch 1')
    learn.fit(1)
    assert learn.recorder.values[0][2]>0, 'once started, it acts in the next fit from the beginning'
    other = CAMLoss(start=1)
    other.load_state_dict(cb.state_dict())
    assert other.started==cb.started
    tiny_learner().fit(1, cbs=cb)
    assert cb.started is None, 'another learner starts afresh'


def test_export_holds_no_network_twice(tmp_path):
    sizes = {}
    for name,cb in (('plain', None), ('cam', CAMLoss(start=0))):
        learn = run(cb, path=tmp_path)
        learn.export(f'{name}.pkl')
        sizes[name] = (tmp_path/f'{name}.pkl').stat().st_size
    assert abs(sizes['cam'] - sizes['plain'])<4000, sizes
    again = load_learner(tmp_path/'cam.pkl')
    assert again.cam_loss.maker is None and again.cam_loss.started is not None


@pytest.mark.parametrize('name', ['cam', 'negative'])
def test_compiled(name):
    a,b = run(makers[name]()),tiny_learner(makers[name]())
    b.model.compile(backend='eager')
    b.fit(2, 1e-2)
    assert_same(weights(a), weights(b))


@pytest.mark.parametrize('arch,kwargs,method', [('swin_tiny_patch4_window7_224', dict(img_size=64, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)), 'cam'), ('convnext_atto', {}, 'grad_cam'),
                                               ('resnet10t', {}, 'cam'), ('vit_tiny_patch16_224', dict(img_size=64, depth=2, global_pool='avg'), 'grad_cam')])
@pytest.mark.parametrize('cam', ['auto', 'grad_cam'])
def test_layouts_and_heads(arch, kwargs, method, cam):
    "NHWC and token maps, heads with a LayerNorm: the method is chosen rightly, and the step is finite"
    model = timm.create_model(arch, num_classes=10, **kwargs)
    pairs = Pairs(zip(torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,))))
    learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=4, device='cpu', num_workers=0), model, loss_func=CrossEntropyLossFlat(), cbs=[CAMLoss(start=0, cam=cam), NegativeCAM(cam=cam)])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1)
    assert learn.cam_loss.method==(method if cam=='auto' else cam)
    assert 0<learn.recorder.values[0][2]<1
    assert all(p.isfinite().all() for p in model.parameters())
    assert_clean(learn)


def test_fastai_heads():
    "The default head takes Grad-CAM, an average-pooling head takes CAM, and cam='cam' refuses the former before any step"
    dls = digits_dls(n_train=32, n_valid=8, bs=16)
    for head,method in ((dict(), 'grad_cam'), (dict(concat_pool=False, lin_ftrs=[]), 'cam')):
        learn = vision_learner(dls, 'resnet10t', pretrained=False, cbs=CAMLoss(start=0), **head)
        learn.remove_cb(ProgressCallback)
        learn.logger = noop
        learn.fit(1)
        assert learn.cam_loss.method==method
    learn = vision_learner(dls, 'resnet10t', pretrained=False, cbs=CAMLoss(cam='cam'))
    learn.remove_cb(ProgressCallback)
    before = weights(learn)
    with pytest.raises(ValueError, match='concat_pool=False'): learn.fit(1)
    assert_same(before, weights(learn))


@pytest.mark.parametrize('make,why', [(lambda: CAMLoss(c=float('nan')), 'c must be'), (lambda: CAMLoss(start='soon'), 'start must be'), (lambda: CAMLoss(start=1.5), 'start must be'), (lambda: CAMLoss(start=-1), 'start must be'),
    (lambda: CAMLoss(start=True), 'start must be'), (lambda: CAMLoss(cam='gradcam'), 'cam must be'), (lambda: CAMLoss(distance='l3'), 'distance must be'), (lambda: NegativeCAM(k=0), 'k must be'), (lambda: NegativeCAM(weight='1'), 'weight must be')])
def test_bad_arguments(make, why):
    with pytest.raises(ValueError, match=why): make()
