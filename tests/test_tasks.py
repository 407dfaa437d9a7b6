"""Tasks of tables: few-shot and transfer, from a file to a row for each claim; what is there is not repeated"""
import inspect
from functools import partial

import numpy as np
import pandas as pd
import pytest

import fastai_featreg.comparison.compare as comparison
import fastai_featreg.comparison.few_shot as few_shot
from fastai_featreg.comparison.published import read_table, table_ids
from fastai_featreg.comparison.reproduce import cost_of, plan_of, reproduce
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.tasks import parted, task_settings, tasks
from fastai_featreg.data import load_data

of_tasks = [n for n in table_ids() if read_table(n).task in tasks]

start = '''
id = "small"
paper = "CL"
title = "Nothing of a paper"
claim = "None."
source = "nowhere"
seeds = 2
protocol = "{protocol}"
task = "{task}"
[settings]
data = "digits"
size = 32
bs = 16
epochs = 1
n_train = 64
n_valid = 60
arch = "resnet8"
base = 6
val = 0
novel = 4
{settings}
[arms]
plain = "plain"
cam = "CAMLoss(start=0)"
[[blocks]]
name = "1-shot"
{first}
published = {{plain = 50.0, cam = 52.5}}
{second}
[[claims]]
method = "cam"
'''


def test_names_of_settings_are_no_arguments_of_compare():
    given = {p.name for p in inspect.signature(comparison.compare).parameters.values()}
    assert not given & {k for names in task_settings.values() for k in names}


@pytest.mark.parametrize('name', of_tasks)
def test_a_table_of_a_task_has_a_plan_and_a_quick_form(name):
    table = read_table(name)
    known = {p.name for p in inspect.signature(comparison.compare).parameters.values()}
    for quick in (False, True):
        for call in plan_of(table, quick):
            own,rest = parted(table.task, call['arguments'])
            assert own and set(rest)<=known and call['task']==table.task
            assert bool(rest['protocol'].scale)==quick
    full,small = cost_of(table)
    assert full.endswith('runs') and small!='-' and table.quick.seeds>=5


def test_few_shot_from_a_file(tmp_path, monkeypatch):
    file,lines = tmp_path/'small.toml',[]
    second = '[[blocks]]\nname = "2-shot"\nshot = 2\npublished = {plain = 60.0, cam = 61.0}'
    file.write_text(start.format(protocol='cam_loss_few_shot', task='few_shot', first='shot = 1', second=second,
                                 settings='head = "cosine"\nway = 2\nquery = 5\nepisodes = 20\naugment = "none"'))
    # all scenes of four digits are many
    monkeypatch.setattr(few_shot, 'load_data', partial(load_data, n_train=40, n_valid=40))
    run = lambda **more: reproduce(file, out=tmp_path/'out', say=lines.append, **more)
    found = run()
    assert list(found['block'])==['1-shot', '2-shot']
    assert list(found['seeds'])==[2, 2] and list(found['state'])==['', '']
    base,one = (read_results(tmp_path/'out'/'small'/o/'results.csv') for o in ('base', '1-shot'))
    assert len(base)==4, 'both blocks have one training'
    assert set(one['metric'])=={'2-way 1-shot accuracy'} and one['accuracy'].between(.2, 1).all()
    shown = {*one['novel'].iloc[0].split()}
    assert len(shown)==4 and {*map(float, one['n_classes'])}=={6.} and set(one['right'])=={''}
    by_seed = one.pivot_table(index='seed', columns='method', values='accuracy')
    gain = 100*(by_seed.drop(columns='plain').iloc[:, 0] - by_seed['plain']).mean()
    assert found['here'][0]==pytest.approx(gain, abs=1e-6)
    monkeypatch.setattr(few_shot, 'episodes_of_run', lambda *args, **kwargs: pytest.fail('asked again'))
    assert run()['here'].tolist()==pytest.approx(found['here'].tolist())
    assert run(look=True)['here'].tolist()==pytest.approx(found['here'].tolist())


def test_transfer_from_a_file(tmp_path):
    file,lines = tmp_path/'small.toml',[]
    settings = 'source = "digits"\nsource_protocol = "cam_loss_cifar"\nsource_epochs = 1\nsource_n_train = 128'
    file.write_text(start.format(protocol='cam_loss_transfer', task='transfer', first='', second='',
                                 settings=f'{settings}\naugment = "none"\nlr = 0.01'))
    run = lambda **more: reproduce(file, out=tmp_path/'out', say=lines.append, seeds=1, **more)
    found = run()
    rows = read_results(tmp_path/'out'/'small'/'1-shot'/'results.csv')
    bodies = read_results(tmp_path/'out'/'small'/'bodies'/'results.csv')
    assert len(rows)==len(bodies)==2 and set(rows['error'])=={''} and rows['body'].nunique()==2
    assert {*map(float, rows['n_classes'])}=={4.} and {*map(float, bodies['n_classes'])}=={6.}
    assert found['seeds'][0]==1 and not np.isnan(found['here'][0])
    tuned = tmp_path/'out'/'small'/'1-shot'/'tunings'/'results.csv'
    before = tuned.read_bytes()
    assert run()['here'][0]==pytest.approx(found['here'][0]) and tuned.read_bytes()==before


def test_a_run_that_failed_stays_a_failure(tmp_path):
    run = dict(method='plain', seed=0, error='RuntimeError: no', accuracy=np.nan)
    rows = few_shot.few_shot_rows(pd.DataFrame([run]), tmp_path/'results.csv', 'digits', dict(base=[], novel=['1']),
                                  tmp_path/'asked.csv')
    assert rows['error'].tolist()==['RuntimeError: no'] and not (tmp_path/'asked.csv').exists()


def test_a_task_that_there_is_not_is_one_sentence(tmp_path):
    file = tmp_path/'tiny.toml'
    file.write_text(start.format(protocol='cam_loss_few_shot', task='segmentation', first='', second='',
                                 settings=''))
    with pytest.raises(ValueError, match="task of tiny.toml must be one of few_shot, transfer, got 'segmentation'"):
        read_table(file)
