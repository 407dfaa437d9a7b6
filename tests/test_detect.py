"Bodies under a detector: maps, anchors, targets, average precision, and that equal seeds give equal detectors"
import random
from functools import partial
import numpy as np, pytest, torch
from fastai.vision.all import Learner, nn
from torchvision.models import densenet121, resnet18, swin_t
from torchvision.ops import box_iou
from fastai_featreg import detect
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.detect import (BoxTargets, StageMaps, anchor_sizes, average_precision, boxes_dls, compare_bodies,
                                   detection_learner, digits_body, retinanet, tiled)
from fastai_featreg.nets import nets
from fastai_featreg.probe import hooked

small = partial(digits_body, arch='test_resnet', epochs=0)


def judge():
    "The package that counts, or a visible skip"
    pytest.importorskip('torchmetrics')
    pytest.importorskip('pycocotools')


@pytest.mark.parametrize('make', [resnet18, nets['resnet8'], densenet121, swin_t, small])
def test_maps_are_those_of_the_network(make):
    net,x,expected = make().eval(),torch.randn(1, 3, 64, 64),{}
    maps = StageMaps(net).eval()
    stages = get_anatomy(net, check_cam=False).find(3)
    def keep(module, inp, out):
        s = next(s for s in stages if s.module is module)
        expected[s.name] = s.to_nchw(out).clone()
    with torch.no_grad(), hooked([s.module for s in stages], keep): net(x)
    with torch.no_grad(): got = maps(x)
    assert list(got)==list(expected)
    for (k,a),c in zip(got.items(), maps.channels):
        assert torch.equal(a, expected[k]) and a.shape[1]==c


def test_what_lies_behind_does_not_run():
    net = resnet18()
    net.fc.register_forward_hook(lambda *_: pytest.fail('the classifier ran'))
    maps = StageMaps(nn.Sequential(net)) # the probe of the anatomy is unwatched
    assert len(maps(torch.randn(2, 3, 64, 64)))==3


def test_the_network_is_not_changed():
    net = resnet18().train()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    detector = retinanet(net, 10, size=64)
    targets = [dict(boxes=torch.tensor([[4., 4, 30, 30]]), labels=torch.tensor([3]))]*2
    loss = sum(detector(torch.rand(2, 3, 64, 64), targets).values())
    loss.backward()
    torch.optim.SGD(detector.parameters(), 1.).step()
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert net.training and all(p.grad is None for p in net.parameters())


def test_anchors_by_hand():
    assert np.allclose(anchor_sizes([8, 16]), [[32, 40.317, 50.797], [64, 80.635, 101.594]], atol=1e-3)
    with pytest.raises(ValueError, match='scale must'): anchor_sizes([8], scale=0)


def test_order_of_layers():
    with pytest.raises(ValueError, match='layers must be in network order'): StageMaps(resnet18(), [-1, -2])


def test_tiles_by_hand():
    images = np.arange(4)[:, None, None]*np.ones((1, 2, 3), int)
    big,labels,boxes = tiled(images, np.arange(4), np.array([[0, 0, 1, 1]]*4))
    assert big[0].tolist()==[[0]*3 + [1]*3]*2 + [[2]*3 + [3]*3]*2
    assert boxes[0].tolist()==[[0, 0, 1, 1], [3, 0, 4, 1], [0, 2, 1, 3], [3, 2, 4, 3]]
    with pytest.raises(ValueError, match='multiple of'): tiled(images[:3], np.arange(3), np.zeros((3, 4)))


def test_boxes_hold_their_digit():
    "Without clutter every lit pixel is in a box"
    for x,y in boxes_dls(n_train=4, n_valid=2, clutter=0).train_ds:
        lit = torch.zeros_like(x[0], dtype=bool)
        for x0,y0,x1,y1 in y['boxes'].int().tolist(): lit[y0:y1, x0:x1] = True
        assert len(y['labels'])==4 and x[0][lit].sum()>0 and (x[0][~lit]==0).all()


def test_average_precision_by_hand():
    judge()
    def boxes(*xs): return torch.tensor([[x, 0., x + 10, 10.] for x in xs])
    truth = [dict(boxes=boxes(0, 50), labels=torch.tensor([3, 3]))]
    found = [dict(boxes=boxes(1, 20, 50), labels=torch.tensor([3, 3, 3]), scores=torch.tensor([.9, .8, .7]))]
    assert abs(average_precision(found, truth) - (51 + 50*2/3)/101)<1e-6
    # the first box has an IoU of 9/11 only
    assert box_iou(found[0]['boxes'][:1], truth[0]['boxes'][:1]).item()<.85
    assert abs(average_precision(found, truth, iou=.85) - 51/101/3)<1e-6
    wrong = [found[0] | dict(labels=torch.tensor([4, 4, 4]))]
    assert average_precision(wrong, truth)==0


def test_without_the_package(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torchmetrics.detection', None)
    with pytest.raises(ValueError, match=r'pip install torchmetrics\[detection\]'): average_precision([], [])


def test_a_detector_is_given_targets_in_training_only():
    seen = []
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))
        def forward(self, images, targets=None):
            seen.append((self.training, targets is not None))
            return dict(a=self.p, b=2*self.p) if targets else [dict(boxes=torch.zeros(0, 4), scores=torch.zeros(0),
                                                                    labels=torch.zeros(0).long())]*len(images)
    judge()
    learn = detection_learner(boxes_dls(n_train=8, n_valid=8), Spy())
    assert isinstance(learn, Learner) and learn.box_targets.__class__ is BoxTargets
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert seen==[(True, True), (False, False)]


def test_equal_seeds_give_equal_detectors(monkeypatch):
    "Judged by the scores of all that is found, for so short a training finds nothing right"
    monkeypatch.setattr(detect, 'average_precision', lambda found, *_: sum(o['scores'].sum().item() for o in found))
    df = compare_bodies(dict(one=small, other=small), seeds=[0, 1], n_train=16, n_valid=8, epochs=1,
                        score_thresh=0.)
    assert list(df.columns)==['body', 'seed', 'ap50'] and df.body.tolist()==['one', 'other']*2
    assert df.ap50[0]==df.ap50[1]>0 and df.ap50[2]==df.ap50[3]!=df.ap50[0]


def test_the_callers_draws_are_left(monkeypatch):
    "Python's, numpy's and torch's generators go on as if nothing had been trained"
    monkeypatch.setattr(detect, 'average_precision', lambda *_: 0.)
    few = partial(digits_body, arch='test_resnet', epochs=1, n_train=32)
    def states(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    before = states()
    compare_bodies(dict(one=few), seeds=[0], n_train=16, n_valid=8, epochs=1)
    assert states()==before


def test_a_body_is_that_of_its_seed():
    "Whatever was drawn before: the order of its batches too"
    few,ends = partial(digits_body, arch='test_resnet', epochs=1, n_train=64),[]
    for start in (1, 2):
        random.seed(start)
        ends.append(few(seed=0).state_dict())
    assert all(torch.equal(v, ends[1][k]) for k,v in ends[0].items())
