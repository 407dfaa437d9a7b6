"What a run keeps of its predictions, and that keeping them changes nothing"
import errno
import os
import random
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import set_seed

import fastai_featreg.all # noqa: F401 - registers the methods
from fastai_featreg.comparison import runs
from fastai_featreg.archs import make_learner
from fastai_featreg.comparison.command import main
from fastai_featreg.data import load_data
from fastai_featreg.comparison.predictions import (is_one_class, KeptPredictions, prediction_mark, PredictionKeeper,
                                        read_predictions, write_predictions)
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.verdicts import packed, unpacked

small = dict(size=64, bs=8, n_train=32, n_valid=20)


def trained(*cbs, bs=8, epochs=2):
    "A learner, from one seed"
    dls = load_data('digits', **small | dict(bs=bs))
    set_seed(0)
    for dl in dls.loaders: dl.rng = random.Random(0)
    learn = make_learner(dls, 'test_resnet', False, 'linear')
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__=='ProgressCallback'])
    learn.logger = lambda *args: None
    learn.add_cbs(cbs)
    learn.fit_one_cycle(epochs, 1e-2)
    return learn

def state(learn):
    return [*learn.model.state_dict().values(), *[o['exp_avg'] for o in learn.opt.state.values() if 'exp_avg' in o]]

@pytest.mark.parametrize('others', [[], [MixUp]])
def test_the_same_training_to_the_last_bit(others):
    a,b = trained(*[o() for o in others]),None
    draws = torch.rand(3),np.random.rand(3),random.random()
    b = trained(KeptPredictions(), *[o() for o in others])
    again = torch.rand(3),np.random.rand(3),random.random()
    assert all(torch.equal(x, y) for x,y in zip(state(a), state(b), strict=True))
    assert torch.equal(draws[0], again[0]) and (draws[1]==again[1]).all() and draws[2]==again[2]
    timeless = lambda learn: [list(v) for v in learn.recorder.values]
    assert timeless(a)==timeless(b)

@pytest.mark.parametrize('bs', [8, 20, 7])
def test_classes_of_the_last_epoch_in_the_order_of_the_loader(bs):
    learn = trained(KeptPredictions(), bs=bs)
    accuracy = learn.recorder.values[-1][2]
    classes,targets = learn.kept_predictions.last
    learn.model.eval()
    with torch.no_grad(): found = [(learn.model(x).argmax(1), y) for x,y in learn.dls.valid]
    assert classes.tolist()==[int(v) for p,_ in found for v in p]
    assert targets.tolist()==[int(v) for _,y in found for v in y]
    assert (classes==targets).mean()==pytest.approx(accuracy, abs=1e-6)

class StopsInValidation(Callback):
    "Ends the last validation pass before its end"
    def after_batch(self):
        if not self.training and self.epoch==1: raise CancelValidException

def test_half_a_pass_is_none():
    assert trained(KeptPredictions(), StopsInValidation()).kept_predictions.last is None

def of_targets(y, n_out, loss):
    "A fit on numbers or on several labels"
    x = torch.randn(16, 4)
    dl = torch.utils.data.DataLoader(list(zip(x, y)), batch_size=8)
    learn = Learner(DataLoaders(dl, dl), torch.nn.Linear(4, n_out), loss_func=loss, cbs=KeptPredictions())
    learn.logger = lambda *args: None
    with learn.no_bar(): learn.fit(1, 1e-2)
    return learn.kept_predictions.last

def test_numbers_and_several_labels_have_no_class():
    assert of_targets(torch.randn(16, 1), 1, torch.nn.MSELoss()) is None
    assert of_targets((torch.rand(16, 3)<0.5).float(), 3, torch.nn.BCEWithLogitsLoss()) is None
    assert len(of_targets(torch.arange(16)%3, 3, torch.nn.CrossEntropyLoss())[0])==16
    assert not is_one_class(torch.zeros(4, 1), (torch.zeros(4, dtype=torch.long),))


# ---- in a row

def test_a_run_says_which_images_were_right():
    dls,seen = load_data('digits', **small),[]
    row = runs.run_once(dls, arch='test_resnet', keep=lambda *o: seen.append(o) or 'mark')
    (classes,targets), = seen
    assert row['right']==packed(classes==targets) and row['predictions']=='mark'
    assert unpacked(row['right']).mean()==pytest.approx(row['accuracy'], abs=1e-6)
    assert runs.run_once(dls, arch='test_resnet')['predictions']==''

def test_a_diverged_or_failed_run_keeps_nothing():
    dls,seen = load_data('digits', **small),[]
    for kwargs in (dict(lr=1e30), dict(make_cbs=lambda: [1])):
        row = runs.run_once(dls, arch='test_resnet', keep=lambda *o: seen.append(o), **kwargs)
        assert row['error'] and not row.get('right') and not seen


# ---- beside the table

ids = dict(method='plain', seed=0, lr=0.01, method_id='m1')
classes,targets = np.array([3, 70_000, 1]),np.array([3, 2, 0])

def test_a_file_of_each_run(tmp_path):
    keep = PredictionKeeper(tmp_path/'results.csv')
    mark = keep(ids, classes, targets)
    found = read_predictions(tmp_path/'results.csv', mark)
    assert [o.tolist() for o in found]==[classes.tolist(), targets.tolist()]
    keep(ids, classes%3, targets)
    assert read_predictions(tmp_path/'results.csv', mark)[0].dtype==np.uint16
    assert [p.name for p in (tmp_path/'predictions').iterdir()]==[f'{mark}.npz']

def test_cells_that_mean_the_same_are_the_same_run():
    assert prediction_mark(ids)==prediction_mark(ids | dict(lr='1E-2', seed='0'))
    others = [ids | o for o in (dict(lr=0.1), dict(seed=1), dict(method='MixUp()'), dict(method_id='m2'))]
    assert len({prediction_mark(o) for o in [ids, *others]})==5

@pytest.mark.parametrize('where', ['replace', 'fsync'])
def test_whole_or_not_at_all(tmp_path, monkeypatch, where):
    keep = PredictionKeeper(tmp_path/'results.csv')
    mark = keep(ids, classes, targets)
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError): write_predictions(tmp_path/'predictions'/f'{mark}.npz', classes*0, targets)
    assert read_predictions(tmp_path/'results.csv', mark)[0].tolist()==classes.tolist()
    assert len([*(tmp_path/'predictions').iterdir()])==1, 'no part is left'

def test_a_disk_that_is_full_is_said_once(tmp_path):
    (tmp_path/'predictions').write_text('a file in the way')
    said = []
    keep = PredictionKeeper(tmp_path/'results.csv', said.append)
    assert [keep(ids, classes, targets) for _ in range(3)]==['']*3
    assert len(said)==1 and 'the rows say which images were right' in said[0]

@pytest.mark.parametrize('blocked', [False, True])
def test_a_comparison_keeps_them(tmp_path, capsys, blocked):
    if blocked: (tmp_path/'predictions').write_text('a file in the way')
    args = '--arch test_resnet --size 64 --bs 8 --n-train 32 --n-valid 20 --epochs 1 --seeds 3 --methods mixup'
    assert main(['compare', 'digits', *args.split(), '--out', str(tmp_path)])==0
    out,df = capsys.readouterr().out,read_results(tmp_path/'results.csv')
    assert [unpacked(o).mean() for o in df['right']]==pytest.approx(df['accuracy'].tolist(), abs=1e-6)
    assert set(df['seeds_asked'])=={'3'}
    assert '3 seeds and 20 validation images' in out and 'over 3 seeds and 20 images' in out
    assert out.count('cannot be written')==blocked
    if blocked: assert set(df['predictions'])=={''}
    else:
        for mark,right in zip(df['predictions'], df['right']):
            found,y = read_predictions(tmp_path/'results.csv', mark)
            assert packed(found==y)==right
    # seeds that are added afterwards
    assert main(['compare', 'digits', *args.replace('seeds 3', 'seeds 4').split(), '--out', str(tmp_path)])==0
    assert 'seeds were added after a first look (3, then 4)' in capsys.readouterr().out

def test_a_damaged_cell_is_named_before_anything_is_trained(tmp_path):
    module = sys.modules['fastai_featreg.comparison.rows']
    row = dict(method='plain', seed=0, curve='0.5', error='', right='n5:qA==') | dict.fromkeys(module.measures, 1.)
    module.write_row(tmp_path/'results.csv', row)
    path = tmp_path/'results.csv'
    path.write_text(path.read_text().replace('n5:qA==', '=A1+A2'))
    with pytest.raises(ValueError, match='row 2, column right: must be a number of images and their bits'):
        read_results(path)
