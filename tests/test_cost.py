"The cost of a method: measured apart and once, in the table, and never a reason to lose a comparison"
import math
import pandas as pd, pytest, torch
from fastai.vision.all import Adam, Callback, MixUp, noop
from fastai_featreg import core
from fastai_featreg.comparison import cost
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.cost_table import identity, read_costs, with_cost, write_costs
from fastai_featreg.comparison.protocols import describe, find_protocol
from fastai_featreg.comparison.report import summarise, summary_table
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.saved import report_folder

small = dict(arch='resnet8', methods='feature_mining', epochs=1, seeds=1, size=32, bs=4, n_train=16, n_valid=10,
             bars=False)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch): monkeypatch.setattr(cost, 'most', 3)


def refuse(setting): raise AssertionError('this was measured already')


def test_measured_in_another_process_and_once(tmp_path, monkeypatch):
    "The second command finds the cost in its file; another batch size is another cost"
    said = []
    compare(**small, out=tmp_path, cost=True, say=said.append)
    df = read_costs(tmp_path/'results.csv')
    assert df.method.tolist()==['plain', 'FeatureMining()'] and (df.pairs==3).all() and (df.bs=='4').all()
    assert df.memory_ratio[1]>1 and (df.step_ms>0).all()
    told = '\n'.join(said)
    assert 'Cost, 3 steps of each in turns with plain:' in told
    assert f"{df.step_ms[1]:.1f}" in told, 'the table has the step time that was measured'
    monkeypatch.setattr(cost, 'measure_apart', refuse)
    again = []
    compare(**small, out=tmp_path, cost=True, say=again.append)
    assert again[-2].splitlines()[-1]==told.splitlines()[-2]
    with pytest.raises(AssertionError): compare(**small | dict(bs=8), out=tmp_path, cost=True, say=noop)


@pytest.mark.parametrize('asked', [None, False])
def test_a_short_comparison_is_not_held_up(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(cost, 'measure_apart', refuse)
    said = []
    compare(**small, out=tmp_path, cost=asked, say=said.append)
    assert 'were not measured; --cost' in said[-2] and not (tmp_path/'cost.csv').exists()


class OnlyHere(Callback):
    "A method that another process knows nothing of"
    def after_pred(self): torch.ones(200, 200)@torch.ones(200, 200)


def test_a_method_of_this_process_is_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'methods', core.methods | dict(only_here=OnlyHere))
    said = []
    compare(**small | dict(methods='only_here'), out=tmp_path, cost=True, say=said.append)
    assert any('measured in this process, for a fresh one fails' in line for line in said)
    assert read_costs(tmp_path/'results.csv').method.tolist()==['plain', 'OnlyHere()']


def test_a_measurement_that_fails_leaves_rows_and_report(tmp_path, monkeypatch):
    "One method's failure is a line; the rows were written before"
    def fails(setting):
        good = dict.fromkeys(['step_ms', 'ratio_q1', 'ratio_median', 'ratio_q3', 'memory_mb', 'memory_ratio', 'pairs',
                              'plain_ms', 'again_q1', 'again_median', 'again_q3'], 1.)
        return pd.DataFrame([dict(method='plain', clock='wall', error='', **good),
                             dict(method='FeatureMining()', error='ValueError: no map')])
    monkeypatch.setattr(cost, 'measure_apart', fails)
    said = []
    df = compare(**small, out=tmp_path, cost=True, say=said.append)
    assert (df.error=='').all()
    assert 'The cost of FeatureMining() cannot be measured: ValueError: no map' in said


def test_a_process_that_hangs_is_ended(monkeypatch):
    def hangs(*args, timeout, **kwargs): raise cost.subprocess.TimeoutExpired('python', timeout)
    monkeypatch.setattr(cost.subprocess, 'run', hangs)
    with pytest.raises(TimeoutError, match='it did not end in time'): cost.measure_apart(dict(seconds=1.))


@pytest.mark.parametrize('seconds', [1e-9, math.inf])
def test_the_time_that_is_given_is_kept(seconds):
    "Two rounds are made in any case, and a method that is not reached is named"
    setting = dict(arch='resnet8', head='linear', shape=[4, 3, 16, 16], n_classes=4, fp16=False, recipe='',
                   device='cpu', n_threads=1, methods='mixup', teacher=None, teacher_arch=None, labels=['MixUp()'],
                   pairs=4, seconds=seconds)
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        df = cost.measure_setting(setting).set_index('method')
        assert torch.get_num_threads()==2
    finally: torch.set_num_threads(n)
    assert df.loc['plain', 'pairs']==(4 if seconds==math.inf else 2)
    assert df.loc['MixUp()', 'error']==('' if seconds==math.inf else 'no time was left for it')


def test_the_table_shows_no_step_times_of_different_runs():
    same = dict(accuracy=.5, valid_loss=1., train_loss=1., step_ms=10., seconds=1., peak_mb=100., error='', curve='.5')
    rows = pd.DataFrame([dict(method=m, seed=s, **same) for m in ('plain', 'A()') for s in (0, 1)])
    summary = summarise(rows)
    assert '1.000' in summary_table(summary)
    assert '1.000' not in summary_table(with_cost(summary, read_costs('/no such folder/results.csv')))


def test_the_report_of_a_folder_shows_what_was_measured(tmp_path):
    "Without cost.csv no cost; with it that of its rows, whatever the runs took"
    compare(**small, out=tmp_path, cost=False, say=noop)
    said = []
    report_folder(tmp_path, say=said.append)
    cells = lambda text: {o.split()[0]: o.split()[5:8] for o in text.splitlines()[4:6]}
    assert cells(said[0])=={'plain': ['-']*3, 'FeatureMining()': ['-']*3} and 'were not measured' in said[0], said[0]
    config = read_results(tmp_path/'results.csv')[['method', 'method_id', *identity]]
    same = dict(clock='wall', error='', pairs=12, plain_ms=50., again_q1=.9, again_median=1., again_q3=1.1)
    numbers = dict(step_ms=[50., 60.], ratio_median=[1., 1.2], ratio_q1=1., ratio_q3=1.3)
    numbers |= dict(memory_mb=9., memory_ratio=1.5)
    write_costs(tmp_path/'results.csv', config.assign(**same, **numbers))
    report_folder(tmp_path, say=said.append)
    assert cells(said[2])['FeatureMining()']==['60.0', '1.200', '1.500'] and 'Cost, 12 steps' in said[2], said[2]
    write_costs(tmp_path/'results.csv', config.assign(**same, **numbers, bs='8'))
    report_folder(tmp_path, say=said.append)
    assert said[4]==said[2], 'another batch is another cost'


def test_a_step_is_that_of_the_protocol(monkeypatch):
    "Optimiser and MixUp of the recipe, in all arms"
    seen = []
    def measured(make, methods, **kwargs): seen.append(make())
    monkeypatch.setattr(cost, 'measure_cost', measured)
    setting = dict(arch='resnet8', head='linear', shape=[4, 3, 16, 16], n_classes=4, fp16=False, device='cpu',
                   n_threads=1, labels=[], methods='mixup', teacher=None, teacher_arch=None, pairs=1, seconds=1.)
    recipe = describe(find_protocol('fm_cifar', mixup=.2))
    for text in ('', recipe): cost.measure_setting(setting | dict(recipe=text))
    plain,paper = seen
    assert plain.opt_func is Adam and not any(isinstance(cb, MixUp) for cb in plain.cbs)
    paper.create_opt()
    assert isinstance(paper.opt.opt, torch.optim.SGD) and any(isinstance(cb, MixUp) for cb in paper.cbs)
