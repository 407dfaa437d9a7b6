"The table of results: cells, identity, several writers, kills, and what goes wrong while a comparison runs"
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastai_featreg.comparison import rows
from fastai_featreg.comparison.fingerprints import source_id
from fastai_featreg.comparison.rows import (RowKeeper, beside, claim, read_results, safely, same_config, take_in,
                                            write_row)

config = dict(data='digits', arch='resnet18', head='linear', pretrained='False', size='64', bs='32', epochs='5',
              lr='0.003', fp16='False', n_train='1200', n_valid='500', n_classes='10', device='cpu', n_threads='1',
              featreg='0.0.2', torch='2.14.1+cu130', fastai='2.8.12', timm='1.0.31', data_id='d12')
measures = dict(accuracy=0.5, valid_loss=1.25, train_loss=0.75, step_ms=10., seconds=3., peak_mb=100.)

def make_row(seed=0, **changes):
    row = dict(method="FeatureMining(layers=2, mask='box')", seed=seed, curve='0.25;0.5', error='', method_id='m34')
    return row | measures | config | changes

@pytest.fixture
def path(tmp_path):
    "A table of three rows"
    for seed in range(3): write_row(tmp_path/'results.csv', make_row(seed))
    return tmp_path/'results.csv'

def cells(path, **kwargs): return pd.read_csv(path, dtype=str, keep_default_na=False, **kwargs)


# ---- cells

def edited(path, **columns): cells(path).assign(**columns).to_csv(path, index=False)

def semicolons(path):
    df = cells(path)
    numbers = [*measures, 'lr']
    df[numbers] = df[numbers].map(lambda v: v.replace('.', ','))
    df.to_csv(path, index=False, sep=';')

forms = {
    'byte order mark': lambda p: p.write_bytes(b'\xef\xbb\xbf' + p.read_bytes()),
    'CRLF': lambda p: p.write_bytes(p.read_bytes().replace(b'\n', b'\r\n')),
    'CR': lambda p: p.write_bytes(p.read_bytes().replace(b'\n', b'\r')),
    'no last line end': lambda p: p.write_bytes(p.read_bytes().rstrip()),
    'semicolons, decimal commas': semicolons,
    'tabs': lambda p: cells(p).to_csv(p, index=False, sep='\t'),
    'everything quoted': lambda p: cells(p).to_csv(p, index=False, quoting=1),
    'columns turned round': lambda p: cells(p).iloc[:, ::-1].to_csv(p, index=False),
    'empty lines': lambda p: p.write_text(p.read_text() + '\n\n' + ','*20 + '\n'),
    'cut behind the last cell': lambda p: (
        edited(p, notes='', more=''), p.write_text(p.read_text().replace(',,\n', '\n'))),
    'Latin letters': lambda p: (edited(p, notes='für später'), p.write_bytes(p.read_text().encode('cp1252')))[0],
    'FALSE': lambda p: edited(p, pretrained='FALSE', fp16='FALSE'),
    'FALSCH': lambda p: edited(p, pretrained='FALSCH', fp16='falsch'),
    '0.0030': lambda p: edited(p, lr='0.0030'),
    '3E-03': lambda p: edited(p, lr='3E-03'),
    '64.0': lambda p: edited(p, size='64.0', epochs='5.0', n_classes='10.00', seed=[f'{i}.0' for i in range(3)]),
    'spaces': lambda p: edited(p, arch=' resnet18 ', size=' 64'),
    'patch release of torch': lambda p: edited(p, torch='2.14.0+cpu'),
    'header with spaces': lambda p: p.write_text(p.read_text().replace('accuracy,', ' accuracy ,', 1)),
}

@pytest.mark.parametrize('form', forms)
def test_a_table_that_a_spreadsheet_wrote_counts(path, form):
    before = read_results(path)
    forms[form](path)
    df = read_results(path)
    assert same_config(df, make_row(1), 'method', 'seed', 'method_id').tolist()==[False, True, False]
    columns = ['method', 'seed', *measures, 'curve']
    pd.testing.assert_frame_equal(df[columns], before[columns])
    write_row(path, make_row(1, accuracy=0.75))
    write_row(path, make_row(3))
    assert read_results(path).accuracy.tolist()==[0.5, 0.5, 0.75, 0.5], 'replaced and added'

@pytest.mark.parametrize('column, value', [
    ('torch', '2.15.0'), ('lr', '0.03'), ('data_id', 'd13'), ('data_id', ''), ('pretrained', 'True'),
    ('n_train', '120'), ('arch', 'resnet34'), ('device', 'cuda'), ('head', 'gap'), ('n_threads', '2')])
def test_another_configuration_does_not_count(path, column, value):
    edited(path, **{column: value})
    df = read_results(path)
    assert not same_config(df, make_row(1)).any()
    assert column in rows.differences(df, [make_row(1)])

@pytest.mark.parametrize('column, value', [
    ('accuracy', '1.5'), ('accuracy', '-0.1'), ('accuracy', '93'), ('accuracy', 'inf'), ('accuracy', ''),
    ('accuracy', 'nan'), ('accuracy', 'good'), ('accuracy', '0,5'), ('valid_loss', '-inf'), ('train_loss', 'inf'),
    ('top5', '2'), ('best_accuracy', '50'), ('pointing_game', '-1'), ('max_box_acc', '1.01'), ('step_ms', '-1'),
    ('seconds', '-0.5'), ('peak_mb', '-3'), ('best_epoch', '-1'), ('seed', '0.5'), ('seed', ''), ('seed', '-1'),
    ('seed', 'first'), ('seed', 'inf'), ('method', ''), ('curve', '0.1;good'), ('curve', 'inf')])
def test_a_cell_that_cannot_be_right_is_refused(path, column, value):
    df = cells(path)
    df.loc[1, column] = value
    df.to_csv(path, index=False)
    before = path.read_bytes()
    for use in (read_results, lambda p: write_row(p, make_row(7))):
        with pytest.raises(ValueError, match=f'row 3, column {column}: must be'): use(path)
    assert path.read_bytes()==before
    clean = path.with_name('clean.csv')
    with pytest.raises(ValueError, match=f'row 2, column {column}: must be'):
        write_row(clean, make_row(**{column: value}))
    assert not clean.exists()

def test_a_failed_run_needs_no_accuracy(path):
    write_row(path, make_row(3, accuracy=np.nan, valid_loss=np.nan, curve='', error='RuntimeError: no memory'))
    write_row(path, make_row(4, accuracy=np.nan, curve='0.1;nan', error='diverged: the loss is not finite'))
    assert read_results(path).accuracy.isna().tolist()==[False]*3 + [True]*2

damages = {
    'empty': lambda p: p.write_bytes(b''),
    'bytes': lambda p: p.write_bytes(b'\x00\x01\xff'),
    'another table': lambda p: p.write_text('a,b\n1,2\n'),
    'cut in a row': lambda p: p.write_text(p.read_text()[:-60]),
    'a cell too many': lambda p: p.write_text(p.read_text().replace('digits', 'digits,x', 1)),
    'an open quote': lambda p: p.write_text(p.read_text().replace('digits', '"digits', 1)),
    'a column twice': lambda p: p.write_text(p.read_text().replace('valid_loss', 'accuracy', 1)),
    'a folder': lambda p: (p.unlink(), p.mkdir()),
}

@pytest.mark.parametrize('damage', damages)
def test_a_damaged_table_is_left_alone_and_the_row_goes_beside(path, damage):
    damages[damage](path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(ValueError, match='results.csv'): read_results(path)
    said = []
    RowKeeper(path, said.append)(make_row(9))
    assert (path.is_file() and path.read_bytes())==before
    assert len(said)==1 and 'taken in' in said[0]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read_results(path).seed.tolist()==[9]
    take_in(path, said.append)
    assert read_results(path).seed.tolist()==[9] and not beside(path)


# ---- what survives a write

def test_notes_and_unknown_methods_survive(path):
    edited(path, notes=['', 'a, "b"\nc', 'für später'], method=['Mine(x=1)', 'plain', 'plain'])
    before = cells(path)
    write_row(path, make_row(5))
    after = cells(path)
    pd.testing.assert_frame_equal(after[:3], before)
    assert list(after)==list(before) and after.notes[3]==''
    assert read_results(path).notes.tolist()==[*before.notes, '']

def test_files_of_earlier_versions_are_read_and_extended(path):
    cells(path).drop(columns=['data_id', 'method_id', 'top5', 'acted', 'pointing_game']).to_csv(path, index=False)
    df = read_results(path)
    assert list(df)==rows.result_columns and (df.data_id=='').all() and df.top5.isna().all()
    assert not same_config(df, make_row(1)).any(), 'what made them is not known'
    assert 'data_id (unknown, now d12) and' not in rows.differences(df, [make_row(1)])
    assert 'data_id (unknown, now d12), method_id (unknown, now m34)' in rows.differences(df, [make_row(1)])
    write_row(path, make_row(1))
    assert read_results(path).data_id.tolist()==['', '', '', 'd12']

@pytest.mark.skipif(os.name=='nt', reason='links')
@pytest.mark.parametrize('dangling', [False, True])
def test_a_link_stays_a_link(path, tmp_path, dangling):
    target,link = tmp_path/'elsewhere'/'table.csv',tmp_path/'a'/'results.csv'
    for folder in (target.parent, link.parent): folder.mkdir()
    if not dangling: shutil.copy(path, target)
    link.symlink_to(target)
    write_row(link, make_row(8))
    assert link.is_symlink() and len(read_results(target))==1 + 3*(not dangling)
    assert [p.name for p in link.parent.iterdir()]==['results.csv']

@pytest.mark.skipif(os.name=='nt', reason='modes')
def test_permissions_of_the_file_stay(path):
    path.chmod(0o640)
    write_row(path, make_row(8))
    assert path.stat().st_mode & 0o777==0o640

def test_duplicates_stay_in_the_file_and_count_once(path):
    df = cells(path)
    pd.concat([df, df.assign(accuracy='0.75')]).to_csv(path, index=False)
    write_row(path, make_row(8))
    df = read_results(path)
    assert len(df)==7
    assert rows.count_once(df).accuracy.tolist()==[0.75]*3 + [0.5]

def test_a_failure_does_not_replace_a_run_that_ended_well(path):
    bad = dict(accuracy=np.nan, curve='')
    write_row(path, make_row(1, error='OSError: disk', **bad))
    assert (read_results(path).error=='').all()
    write_row(path, make_row(4, error='OSError: disk', **bad))
    write_row(path, make_row(4))
    assert read_results(path).seed.tolist()==[0, 1, 2, 4] and (read_results(path).error=='').all()


# ---- when the table cannot be written

def raises(e):
    def f(*args, **kwargs): raise e
    return f

@contextmanager
def busy(path, timeout=60.):
    raise OSError('another process has held its lock for 60 s')
    yield

failures = {
    'opened by a spreadsheet': ('replace', PermissionError(errno.EACCES, 'in use'), 'in use'),
    'disk full': ('replace', OSError(errno.ENOSPC, 'No space left on device'), 'No space'),
    'no locks': ('acquire', NotImplementedError('flock'), 'has no locks'),
    'no locks left': ('acquire', OSError(errno.ENOLCK, 'No locks available'), 'No locks'),
    'lock held by a stopped process': ('locked', None, 'held its lock'),
}

@pytest.mark.parametrize('failure', failures)
def test_a_run_that_ended_is_never_lost(path, monkeypatch, failure):
    what,error,text = failures[failure]
    said,keep,replace = [],RowKeeper(path, lambda s: said.append(s)),os.replace
    only_table = lambda a, b: raises(error)() if Path(b)==path else replace(a, b)
    with monkeypatch.context() as m:
        if what=='replace': m.setattr(os, 'replace', only_table)
        if what=='acquire': m.setattr(rows.FileLock, 'acquire', raises(error))
        if what=='locked': m.setattr(rows, 'locked', busy)
        for seed in (5, 6): keep(make_row(seed))
        take_in(path, said.append)
    assert len(said)==3 and all(text in s for s in said), said
    assert len(beside(path))==2 and keep.waiting==[]
    assert sorted(read_results(path).seed)==[0, 1, 2, 5, 6]
    keep(make_row(7))
    take_in(path, said.append)
    assert not beside(path) and sorted(cells(path).seed)==['0', '1', '2', '5', '6', '7'] and len(said)==4

def test_nothing_can_be_written_for_a_while(path, monkeypatch):
    said,keep = [],RowKeeper(path, lambda s: said.append(s))
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', raises(OSError(errno.ENOSPC, 'No space left on device')))
        for seed in (5, 6): keep(make_row(seed))
    assert len(keep.waiting)==2 and 'kept and tried again' in said[0]
    keep()
    assert read_results(path).seed.tolist()==[0, 1, 2, 5, 6] and keep.waiting==[]
    assert not list(path.parent.glob('*.part'))

def test_only_our_own_files_beside_are_taken_in(path):
    text = path.read_text()
    mine = [path.with_name(n) for n in ('results-old.csv', 'results-run-2.csv', 'results-copy-run-0123456789ab.csv')]
    for f in mine: f.write_text(text.replace('plain', 'other'))
    bad = path.with_name('results-run-0123456789ab.csv')
    bad.write_text('half a ro')
    said = []
    take_in(path, said.append)
    assert len(said)==1 and bad.name in said[0]
    assert bad.read_text()=='half a ro' and all(f.exists() for f in mine) and len(read_results(path))==3


# ---- several processes


def python(code, *args, **kwargs):
    "Another process, without torch"
    prelude = f"import sys; sys.path[:0] = {sys.path!r}; from fastai_featreg.comparison.rows import *; "
    return subprocess.Popen([sys.executable, '-c', prelude + code, *map(str, args)], **kwargs)

write_many = """
row,path,done = eval(sys.argv[1]),sys.argv[2],open(sys.argv[3], 'a')
for seed in range(*map(int, sys.argv[4:6])):
    write_row(path, row | dict(seed=seed))
    print(seed, file=done, flush=True)
"""

def test_no_torch_is_needed():
    p = python("assert not {'torch', 'fastai', 'matplotlib'} & set(sys.modules)")
    assert p.wait(60)==0

@pytest.mark.parametrize('n', [2, 4])
def test_processes_lose_no_row(tmp_path, n):
    path,each = tmp_path/'new'/'results.csv',200//n
    ps = [python(write_many, make_row(), path, tmp_path/f'{k}.txt', k*each, (k + 1)*each) for k in range(n)]
    assert [p.wait(300) for p in ps]==[0]*n
    assert sorted(read_results(path).seed)==list(range(200))
    assert sorted(p.name for p in path.parent.iterdir())==['.results.csv.lock', 'results.csv']

@pytest.mark.skipif(os.name=='nt', reason='signals')
def test_kills_lose_only_what_had_not_ended(tmp_path):
    path,rng = tmp_path/'results.csv',np.random.default_rng(0)
    start = lambda k: python(write_many, make_row(), path, tmp_path/f'{k}.txt', 100*k, 100*k + 100)
    steady = start(99)
    for k in range(12):
        p = start(k)
        end,log = time.time() + 60,tmp_path/f'{k}.txt'
        while not (log.exists() and log.read_text()) and time.time()<end: time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        p.send_signal(signal.SIGKILL)
        p.wait()
        read_results(path) # whole at any time
    assert steady.wait(300)==0, 'the lock of a dead process held it up'
    ended = {int(s) for f in tmp_path.glob('*.txt') for s in f.read_text().split()}
    found = read_results(path).seed.tolist()
    assert ended<=set(found) and len(found)==len(set(found)) and len(found) - len(ended)<=12
    assert set(range(9900, 10000))<=set(found)
    write_row(path, make_row(7777))
    assert not list(tmp_path.glob('.*.part')), 'left by the dead, swept by the next'

def test_a_claim_is_held_by_one_and_ends_with_its_process(tmp_path):
    hold = "import time\nwith claim(sys.argv[1], ('plain', 0)) as ours: print(ours, flush=True); time.sleep(100)"
    p = python(hold, tmp_path/'results.csv', stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='True\n'
    with claim(tmp_path/'results.csv', ('plain', 0)) as ours: assert not ours
    with claim(tmp_path/'results.csv', ('plain', 1)) as ours: assert ours
    p.kill()
    p.wait()
    with claim(tmp_path/'results.csv', ('plain', 0), wait=True) as ours: assert ours


# ---- saying

closed = [BrokenPipeError(), OSError(errno.EIO, 'gone'), ValueError('I/O operation on closed file')]

@pytest.mark.parametrize('error', closed)
def test_an_output_that_is_gone_is_no_error(error): safely(raises(error))('text')

def test_other_errors_of_say_are_not_hidden():
    with pytest.raises(KeyError): safely(raises(KeyError('x')))('text')


# ---- fingerprints of classes

def test_the_source_of_a_method_is_its_identity(tmp_path, monkeypatch):
    "A module on the path, and a class made by `exec` as in a notebook"
    monkeypatch.syspath_prepend(tmp_path)
    one = '"Lesson"\nclass A:\n    "What it does"\n    def f(self, x): return 2*x # twice\n'
    ids,file = [],tmp_path/'own_methods.py'
    for text in (one, one.replace('Lesson', 'Page').replace('twice', 'double'), one.replace('2*x', '3*x')):
        file.write_text(text)
        ids.append(source_id(importlib.import_module('own_methods').A))
    assert ids[0]==ids[1]!=ids[2]
    made = []
    for text in (one, one.replace('What', 'All'), one.replace('2*x', '3*x')):
        exec(text, space := {'__name__': '__main__'})
        made.append(source_id(space['A']))
    assert made[0]==made[1]!=made[2]
