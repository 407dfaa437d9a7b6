"Batches from memory: the pixels, order and random numbers of fastai's loader and transform, whatever is asked of them"
import itertools, random
from functools import partial
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import (AdaptiveAvgPool, AffineCoordTfm, Flatten, Learner, MixUp, TensorImage, TfmdDL, flip_mat,
                               load_learner, nn)
from fastai_featreg.data import digits_dls, folder_dls, pad_crop_flip, shift_mat
from fastai_featreg.memory import MemoryDL, WholeShifts, fits_memory, whole_shifts


def literal(x, dy, dx, flip, pad, pad_mode):
    "Each pixel of each image, one by one"
    n,c,h,w = x.shape
    def mirrored(i, size): # reflection without repeating the border
        i = abs(i)
        return i if i<size else 2*(size - 1) - i
    out = torch.zeros_like(x)
    for k,i,j in itertools.product(range(n), range(h), range(w)):
        row,col = i + int(dy[k]),(w - 1 - j if flip[k] else j) + int(dx[k])
        if pad_mode=='reflection': row,col = mirrored(row, h),mirrored(col, w)
        if 0<=row<h and 0<=col<w: out[k,:,i,j] = x[k,:,row,col]
    return out


@pytest.mark.parametrize('pad_mode', ['reflection', 'zeros'])
def test_shifts_pixel_by_pixel(pad_mode):
    torch.manual_seed(0)
    x,(dy,dx) = torch.rand(12, 2, 6, 7),torch.randint(-2, 3, (2, 12))
    flip = torch.rand(12)<.5
    assert torch.equal(whole_shifts(x, dy, dx, flip, 2, pad_mode), literal(x, dy, dx, flip, 2, pad_mode))


@pytest.mark.parametrize('size', [(32, 32), (64, 48), (9, 8), (3, 3)])
@pytest.mark.parametrize('pad_mode, flip', itertools.product(['reflection', 'zeros'], [True, False]))
def test_the_same_as_the_general_transform(size, pad_mode, flip):
    "Pixels, and the generator's state afterwards; of 3 pixels the padding is too wide for windows"
    x = TensorImage(torch.rand(16, 3, *size))
    fast = pad_crop_flip(4, pad_mode, flip)
    slow = AffineCoordTfm([partial(shift_mat, pad=4)] + [flip_mat]*flip, mode='nearest', pad_mode=pad_mode,
                          align_corners=True)
    res = []
    for tfm in (fast, slow):
        torch.manual_seed(5)
        res.append((tfm(x, split_idx=0), torch.rand(3), tfm(x, split_idx=1), torch.rand(3)))
    for a,b in zip(*res): assert torch.equal(a, b) and type(a) is type(b)


def test_what_is_composed_into_it_counts():
    tfm = WholeShifts([partial(shift_mat, pad=1)], 1)
    tfm.compose(AffineCoordTfm([lambda x: flip_mat(x, p=1.)]))
    torch.manual_seed(0)
    x = TensorImage(torch.rand(4, 3, 8, 8))
    slow = AffineCoordTfm(tfm.aff_fs, mode='nearest', pad_mode='reflection', align_corners=True)
    out = tfm(x, split_idx=0)
    torch.manual_seed(0)
    torch.rand(4, 3, 8, 8)
    assert torch.equal(out, slow(x, split_idx=0))


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
