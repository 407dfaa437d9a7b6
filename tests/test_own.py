"Callbacks and loaders of one's own in a comparison: what they are given, and that they are part of a row"
import pandas as pd, pytest
from fastai.vision.all import Callback, noop, resnet18
from fastai_featreg.comparison.compare import compare
from fastai_featreg.data import load_data
from fastai_featreg.comparison.rows import read_results

small = dict(arch='test_resnet', methods='mixup', epochs=2, seeds=2, bars=False, say=noop)
images = dict(size=32, bs=8, n_train=32, n_valid=10)


class Notes(Callback):
    "Counts the epochs of a run"
    def __init__(self, log, run): self.log,self.run = log,run
    def after_epoch(self): self.log.append(self.run)


def test_own_callbacks_see_every_run(tmp_path):
    log = []
    df = compare(**small, **images, out=tmp_path, cbs=lambda label, seed: [Notes(log, (label, seed))])
    assert sorted(log)==sorted([(label, seed) for label in ('plain', 'MixUp()') for seed in (0, 1)]*2)
    assert (df.own_cbs=='Notes').all() and (df.error=='').all()


def test_own_callbacks_are_part_of_a_row(tmp_path):
    "With them or without, they are other runs, of the same numbers where the callback only looks"
    bare = compare(**small, **images, out=tmp_path)
    assert (bare.own_cbs=='').all()
    with_notes = compare(**small, **images, out=tmp_path, cbs=lambda label, seed: [Notes([], 0)])
    assert len(read_results(tmp_path/'results.csv'))==8
    pd.testing.assert_series_equal(bare.accuracy, with_notes.accuracy)
    pd.testing.assert_series_equal(bare.train_loss, with_notes.train_loss)


def test_a_callback_that_fails_is_in_its_row(tmp_path):
    class Fails(Callback):
        def after_pred(self): raise ValueError('disk full')
    cbs = lambda label, seed: [Fails()] if (label, seed)==('MixUp()', 1) else []
    df = compare(**small, **images, out=tmp_path, cbs=cbs)
    assert df[df.error!=''][['method', 'seed']].values.tolist()==[['MixUp()', 1]]
    assert 'disk full' in df.error.max()


def test_own_loaders_train_as_the_same_data_by_name(tmp_path):
    "The runs are bit for bit those of the data by name, and are found again by their images"
    named = compare('digits', **small | dict(lr=1e-2), head='linear', pretrained=False, **images, out=tmp_path)
    own = dict(dls=load_data('digits', **images), head='linear', pretrained=False, lr=1e-2)
    df = compare(**small | own, out=tmp_path)
    assert (df.data=='own loaders').all() and df.data_id.tolist()==named.data_id.tolist()
    assert (df['size']=='32').all() and (df.bs=='8').all() and (df.n_train=='32').all()
    pd.testing.assert_frame_equal(df[['accuracy', 'valid_loss', 'curve']], named[['accuracy', 'valid_loss', 'curve']])
    other = compare(**small | own | dict(dls=load_data('digits', **images | dict(n_train=40))), out=tmp_path)
    assert len(read_results(tmp_path/'results.csv'))==12 and not set(other.data_id) & set(df.data_id)


@pytest.mark.parametrize('given, told', [
    (dict(dls=[1]), "dls must be fastai's DataLoaders"), (dict(dls=1, data='digits'), 'data must be left out'),
    (dict(dls=1, size=32), 'size must be left out'), (dict(cbs=[1]), 'cbs must be a function'),
    (dict(cbs=lambda *_: 1), 'cbs must give a list')])
def test_what_cannot_be_is_told_before_training(tmp_path, given, told):
    held = {} if 'dls' in given else images
    with pytest.raises(ValueError, match=told): compare(**small | given, **held, out=tmp_path)
    assert not (tmp_path/'results.csv').exists()


def test_a_function_without_arguments_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match='cbs must be a function of label and seed, got one that fails'):
        compare(**small, out=tmp_path, cbs=lambda: [])


def test_a_network_is_given_by_name(tmp_path):
    with pytest.raises(ValueError, match="arch must be the name of a network, got resnet18; write it as text"):
        compare(**small | dict(arch=resnet18), out=tmp_path)
