"By which statistics loaders of folders normalise, and that a pretrained network brings its own"
import csv
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Normalize, imagenet_stats
from fastai.vision.learner import _timm_norm
from fastai_featreg.data import boxed_folder_dls, folder_dls

own = dict(mean=(.5, .5, .5), std=(.5, .5, .5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "Two classes of four images, in parts, and a table of boxes"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    rows = []
    for i,part in enumerate(('train', 'train', 'valid', 'valid')):
        for label in 'ab':
            file = tmp_path/part/label/f'{i}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels + np.uint8(i)).save(file)
            rows.append([file.relative_to(tmp_path).as_posix(), label, part, 0, 0, 8, 8])
    with (tmp_path/'labels.csv').open('w', newline='') as f:
        csv.writer(f).writerows(['path label split x0 y0 x1 y1'.split(), *rows])
    return tmp_path


def statistics(dls) -> list:
    found = [t for dl in dls.loaders for t in dl.after_batch.fs if isinstance(t, Normalize)]
    return [(t.mean.flatten().tolist(), t.std.flatten().tolist()) for t in found]


@pytest.mark.parametrize('make', [folder_dls, boxed_folder_dls])
def test_statistics(folder, make):
    args = dict(size=8, bs=2, augment=False, say=lambda text: None, num_workers=0)
    for stats,mean in (({}, imagenet_stats[0]), (dict(stats=([.1]*3, [.2]*3)), [.1]*3)):
        got = statistics(make(folder, **args, **stats))
        assert len(got)==2
        for o in got: torch.testing.assert_close(torch.tensor(o[0]), torch.tensor(mean))
    dls = make(folder, **args, stats=None)
    assert statistics(dls)==[]
    _timm_norm(dls, own, pretrained=True) # what `vision_learner` does
    assert [o[0] for o in statistics(dls)]==[[.5]*3]*2
    # where there are statistics already it does nothing, whatever the network wants
    dls = make(folder, **args)
    _timm_norm(dls, own, pretrained=True)
    torch.testing.assert_close(torch.tensor(statistics(dls)[0][0]), torch.tensor(imagenet_stats[0]))
