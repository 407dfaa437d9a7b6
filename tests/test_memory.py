"Batches from memory: the pixels and order of fastai's loader, whatever is asked of them"
import random
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import AdaptiveAvgPool, Flatten, Learner, MixUp, TfmdDL, load_learner, nn
from fastai_featreg import boxes
from fastai_featreg.data import digits_dls, folder_dls, pad_crop_flip
from fastai_featreg.memory import MemoryDL, fits_memory


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root,rng = tmp_path_factory.mktemp('photos'),np.random.default_rng(0)
    for c in 'ab':
        (root/c).mkdir()
        for i in range(20): Image.fromarray(rng.integers(0, 255, (40,40,3), dtype=np.uint8)).save(root/c/f'{i}.png')
    return root


def opened(photos, **kwargs): return folder_dls(photos, size=32, bs=8, say=lambda text: None, **kwargs)


def epochs(dls):
    "Two epochs of training and one of validation, from the same seeds"
    torch.manual_seed(0)
    dls.train.rng = random.Random(4)
    return [*dls.train, *dls.train, *dls.valid]


@pytest.mark.parametrize('n_workers', [0, 2])
def test_folder_from_memory_gives_the_batches_of_the_item_loader(photos, n_workers):
    kept,items = opened(photos),opened(photos, in_memory=False, num_workers=n_workers)
    assert type(kept.train) is MemoryDL and type(items.train) is TfmdDL
    for a,b in zip(epochs(kept), epochs(items), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert kept.train._stack[0].dtype==torch.uint8


def test_digits_and_their_items():
    dls = digits_dls(n_train=40, n_valid=20, size=32, bs=8, batch_tfms=[pad_crop_flip()])
    for a in dls.loaders:
        b,res = a.new(cls=TfmdDL),[]
        for dl in (a, b):
            dl.rng = random.Random(1)
            torch.manual_seed(0)
            res.append(list(dl))
        for (x,y),(x2,y2) in zip(*res, strict=True): assert torch.equal(x, x2) and torch.equal(y, y2)


@pytest.mark.parametrize('shape, size, fits', [((40, 40), 96, True), ((40, 40), 97, False), ((40, 41), 32, False)])
def test_what_is_kept(tmp_path, shape, size, fits):
    Image.new('RGB', shape).save(tmp_path/'1.png')
    assert fits_memory([tmp_path/'1.png'], size)==fits


def test_learner_from_memory(photos, tmp_path):
    "MixUp, lr_find, export, and pictures of another shape"
    net = nn.Sequential(AdaptiveAvgPool(), Flatten(), nn.Linear(3, 2))
    learn = Learner(opened(photos), net, path=tmp_path, cbs=MixUp())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.lr_find(num_it=20, show_plot=False)
    learn.dls.show_batch(max_n=2)
    learn.export()
    Image.new('RGB', (60, 40), 'red').save(tmp_path/'wide.png')
    again = load_learner(tmp_path/'export.pkl')
    preds = again.get_preds(dl=again.dls.test_dl([tmp_path/'wide.png']))[0]
    items = Learner(opened(photos, in_memory=False), again.model)
    with items.no_bar(): expected = items.get_preds(dl=items.dls.test_dl([tmp_path/'wide.png'], num_workers=0))[0]
    assert torch.equal(preds, expected)


def test_pixels_rest_on_a_gpu_only_where_nobody_else_takes_them(monkeypatch):
    "With a sixteenth of its memory, unless workers take the batches or the memory is pinned"
    gpu,stack = torch.device('cuda'),(torch.zeros(10, 10, dtype=torch.uint8),)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (1600, 99999))
    def place(device, stack=stack, num_workers=0, pin_memory=False):
        loader = SimpleNamespace(num_workers=num_workers, pin_memory=pin_memory)
        return boxes.ArrayDL._place(SimpleNamespace(_stack=stack, device=device, fake_l=loader)).type
    assert place(gpu)=='cuda'
    others = [place(gpu, num_workers=2), place(gpu, pin_memory=True), place(torch.device('cpu')), place(None)]
    assert others==['cpu']*4 and place(gpu, stack*2)=='cpu'
    # where it is already, it is not held against itself; the device without memory stands for a GPU
    there = torch.device('meta')
    resting = torch.zeros(10, device=there),
    assert (place(there, resting), place(there), place(there, resting, num_workers=2))==('meta', 'cpu', 'cpu')


def test_a_sixteenth_of_the_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (1600, 99999))
    assert [boxes.rests_on(torch.device('cuda'), n) for n in (100, 101)]==[True, False]
    assert not boxes.rests_on(torch.device('cpu'), 1) and not boxes.rests_on(None, 1)
