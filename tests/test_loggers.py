"""fastai's loggers and trackers on the columns of every method that has one

Not `WandbCallback`: that of fastai 2.8.12 fails with today's fastcore for a plain learner too."""
import csv, math
import pytest
from conformance import rows, small
from fastai_featreg.nets import resnet8
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from tiny import *

with_column = [row for row in rows() if row.entry.columns]
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')


@pytest.fixture(params=with_column, ids=lambda row: row.name)
def row(request): return request.param


def column_of(learn, name):
    "Values of a column, one an epoch"
    at = list(learn.recorder.metric_names[1:]).index(name)
    return [float(values[at]) for values in learn.recorder.values]


def logged(learn, tmp_path, **kwargs):
    "Tag -> what TensorBoard's files hold of it after two epochs"
    pytest.importorskip('tensorboard', reason='needs TensorBoard: pip install tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn.fit(2, 1e-2, cbs=TensorBoardCallback(tmp_path, **kwargs))
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    return {tag: [o.value for o in found.Scalars(tag)] for tag in found.Tags()['scalars']}


def test_tensorboard(row, tmp_path):
    learn = small(row.make())
    found = logged(learn, tmp_path, trace_model=False, log_preds=False)
    for name in row.entry.columns:
        assert found[name]==pytest.approx(column_of(learn, name), rel=1e-6), name # a file holds float32
        assert all(math.isfinite(v) for v in found[name])


def test_tensorboard_with_graph_and_pictures(tmp_path):
    "As it comes, it traces the network in front of the fit, and runs a batch behind each epoch"
    learn = vision_learner(digits_dls(n_train=32, n_valid=16, bs=16), resnet8, pretrained=False, cbs=FeatureMining())
    with learn.no_bar(), learn.no_logging(): found = logged(learn, tmp_path)
    assert found['fm_loss']==pytest.approx(column_of(learn, 'fm_loss'), rel=1e-6)
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_csv(row):
    learn = small(row.make())
    learn.fit(2, 1e-2, cbs=CSVLogger())
    with open(learn.path/'history.csv', encoding='utf-8') as file: table = list(csv.DictReader(file))
    for name in row.entry.columns:
        assert [float(o[name]) for o in table]==pytest.approx(column_of(learn, name), abs=1e-6)


def test_the_best_model_is_that_of_the_least_term(row):
    for name in row.entry.columns:
        keeper,learn = SaveModelCallback(monitor=name, comp=np.less, with_opt=False),small(row.make())
        learn.fit(3, 1e-2, cbs=keeper)
        assert float(keeper.best)==min(column_of(learn, name))
        assert (learn.path/learn.model_dir/'model.pth').exists()


class OthersFall(Callback):
    "All columns but one are better by far in each epoch"
    order = 55 # between the recorder and what watches it
    def __init__(self, own): self.own = own
    def after_epoch(self):
        names = list(self.recorder.metric_names[1:])
        values = self.recorder.values[-1]
        for i,name in enumerate(names[:len(values)]):
            if name!=self.own: values[i] = -2e9*self.epoch


def test_early_stopping(row):
    "No epoch is better by so much in its own column, so the second is the last; in any other they all would be"
    for name in row.entry.columns:
        stop = EarlyStoppingCallback(monitor=name, comp=np.less, min_delta=1e9, patience=1)
        learn = small(row.make())
        learn.fit(4, 1e-2, cbs=[OthersFall(name), stop])
        assert len(column_of(learn, name))==2


def test_early_stopping_by_another_column():
    "What the test above would see if a callback took another place for its own"
    learn = small(FeatureMining())
    stop = EarlyStoppingCallback(monitor='valid_loss', comp=np.less, min_delta=1e9, patience=1)
    learn.fit(3, 1e-2, cbs=[OthersFall('fm_loss'), stop])
    assert len(column_of(learn, 'fm_loss'))==3
