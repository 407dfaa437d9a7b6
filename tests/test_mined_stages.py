"Feature Mining taps maps of one kind, in networks that activate first, last, in place, or by a function"
from functools import partial
import pytest
import timm
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from torchvision import models
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.channels import like_last
from fastai_featreg.methods.feature_mining import FeatureMining, mined_stages
from fastai_featreg.nets import cifar_densenet, cifar_preact_resnet, pyramidnet, resnet20, wrn16_2


class Lowest(FeatureMining):
    "Keeps the smallest value of each map as the loss sees it"
    def loss_term(self, maps):
        self.minima = {n: f.min().item() for n,f in maps.items()}
        return super().loss_term(maps)


def learner(model, layers=2, size=32):
    set_seed(0)
    items = [(torch.randn(3, size, size), i%10) for i in range(8)]
    dls = DataLoaders.from_dsets(items, items, bs=8, device='cpu', num_workers=0)
    return Learner(dls, model, CrossEntropyLossFlat(), cbs=Lowest(layers))


def trained(*args, **kwargs):
    learn = learner(*args, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    return learn.lowest


bn = ['body.stage3.0.before.1', 'body.final']
cases = {'wide': (wrn16_2, bn), 'preact': (partial(cifar_preact_resnet, 11), bn),
         'dense bc': (partial(cifar_densenet, 16, bottleneck=True, compression=.5), ['body.stage3.0.1', 'body.final']),
         'resnet': (resnet20, ['body.stage2', 'body.stage3'])}


@pytest.mark.parametrize('make,names', cases.values(), ids=cases)
def test_all_maps_are_activated(make, names):
    cb = trained(make())
    assert cb.minima==dict.fromkeys(names, 0.)
    assert ('  # taps ' in repr(cb))==(names[0]!='body.stage2')
    assert eval(repr(cb)).layers==2


def test_densenet_activates_in_place_what_is_normalised():
    cb = trained(models.densenet121(num_classes=10), size=64)
    assert cb.minima=={'features.transition3.norm': 0., 'features.norm5': 0.}


@pytest.mark.parametrize('make,name', [(partial(pyramidnet, 14, 24), 'body.stage3.0.convs.0'),
                                       (partial(pyramidnet, 11, 24, bottleneck=True), 'body.stage3.0.convs.0')])
def test_a_pyramid_block_normalises_only(make, name):
    assert trained(make()).minima[name]<0


def test_what_is_named_is_mined_as_named():
    assert trained(wrn16_2(), ['body.stage2', 'body.final']).minima['body.stage2']<0


def test_another_learner_forgets_where():
    cb = trained(wrn16_2())
    learn = learner(resnet20())
    learn.remove_cb(Lowest)
    cb.learn.remove_cb(cb)
    learn.add_cb(cb)
    assert '#' not in repr(cb)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert list(cb.minima)==['body.stage2', 'body.stage3'] and '#' not in repr(cb)


def test_checkpointing_inside_the_stages():
    "The tap is then within a segment that runs twice"
    plain,twice = (timm.create_model('resnetv2_50', num_classes=10) for _ in range(2))
    twice.load_state_dict(plain.state_dict())
    twice.set_grad_checkpointing()
    a,b = (learner(m, size=64) for m in (plain, twice))
    for learn in (a, b):
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert list(b.lowest.minima)==['stages.3.blocks.0.norm1', 'norm']
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', ['resnet10t', 'regnety_002', 'efficientnet_b0', 'mobilenetv3_small_050',
                                  'convnext_atto', 'repvgg_a0', 'swin_tiny_patch4_window7_224'])
def test_networks_that_stay_as_they_are(name):
    a = get_anatomy(timm.create_model(name), check_cam=False)
    assert like_last(a, a.stages)==a.stages==mined_stages(a, len(a.stages))


class Widths(FeatureMining):
    "Keeps the channels of each map, and what the head that meets it takes"
    def loss_term(self, maps):
        self.met = [(f.shape[1], h.part1.in_features) for f,h in zip(maps.values(), self.aux_heads, strict=True)]
        return super().loss_term(maps)


@pytest.mark.parametrize('layers', [['stage1', 'stage3'], ['stage3', 'stage1'], [-1, -2]])
def test_layers_in_any_order_meet_their_heads(layers):
    "Maps come in the order that was asked for, whatever the order of the forward pass"
    learn = learner(resnet20(), 1)
    learn.remove_cb(Lowest)
    learn.add_cb(Widths(layers))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(learn.widths.met)==2 and all(d==n for d,n in learn.widths.met)
