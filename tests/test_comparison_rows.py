"A comparison beside other commands, other data, damaged tables and closed outputs; a run is replaced by an instant one"
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.callback.core import Callback
from PIL import Image

import fastai_featreg.all # noqa: F401 - registers the methods
from fastai_featreg import core
from fastai_featreg.comparison import report, runs, training
from fastai_featreg.comparison.command import main # noqa: F401 - for the commands that import this module
from fastai_featreg.comparison.report import summarise
from fastai_featreg.comparison.rows import beside, bests, doings, looks, measures, read_results

module = sys.modules['fastai_featreg.comparison.compare']
small = dict(arch='test_resnet', size=64, bs=8, epochs=1, seeds=2, pretrained=False, bars=False)


def instant_run(dls, make_cbs=list, seed=0, **kwargs):
    "What a run of a moment returns"
    row = dict.fromkeys(measures, 1.) | dict.fromkeys(looks + bests, np.nan) | dict.fromkeys(doings, '')
    return row | dict(accuracy=0.5 + 0.01*seed, curve='0.5', error='')

@pytest.fixture
def trained(monkeypatch):
    "Seeds of the runs that were trained"
    seeds = []
    def run(dls, make_cbs=list, seed=0, **kwargs):
        seeds.append(seed)
        return instant_run(dls, make_cbs, seed)
    monkeypatch.setattr(training, 'run_once', run)
    monkeypatch.setattr(module, 'check_methods', lambda *args: None)
    return seeds

@pytest.fixture
def photos(tmp_path):
    "Images of noise, a folder for each class"
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path/'photos'/name).mkdir(parents=True)
        for i in range(12): noise(rng).save(tmp_path/'photos'/name/f'{name}{i}.png')
    return tmp_path/'photos'

def noise(rng): return Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))

def compare(data, out, said=None, methods='mixup', **kwargs):
    "Rows and lines of a comparison"
    said = [] if said is None else said
    return module.compare(data, methods=methods, out=out, say=said.append, **(small | kwargs)),said

def files(photos): return sorted(photos.rglob('*.png'))


# ---- is a row that is there the same run?

def another_image(photos): noise(np.random.default_rng(1)).save(files(photos)[3])
def another_label(photos):
    files(photos)[3].rename(photos/'dog'/'moved.png')
    files(photos)[-2].rename(photos/'cat'/'moved.png')
def another_name(photos): files(photos)[3].rename(files(photos)[3].with_name('cat9z.png'))
def one_byte(photos): files(photos)[3].write_bytes(files(photos)[3].read_bytes() + b' ')
def swapped(photos):
    a,b = files(photos)[0],files(photos)[-1]
    one,two = a.read_bytes(),b.read_bytes()
    a.write_bytes(two), b.write_bytes(one)

@pytest.mark.parametrize('change', [another_image, another_label, another_name, one_byte, swapped])
def test_other_images_of_the_same_number_are_other_data(photos, tmp_path, trained, change):
    compare(photos, tmp_path/'out')
    change(photos)
    df,said = compare(photos, tmp_path/'out')
    assert len(trained)==8 and len(df)==4
    assert len(read_results(tmp_path/'out'/'results.csv'))==8, 'the old rows stay'
    line, = [l for l in said if ' of the same method' in l]
    assert '4 rows of the same methods and seeds differ in images, labels, split or transforms (data_id)' in line
    assert '\n' not in line

@pytest.mark.parametrize('change', [
    lambda p: None, lambda p: os.utime(files(p)[0], (1, 1)), lambda p: (p/'cat'/'notes.txt').write_text('x')])
def test_the_same_images_are_the_same_data(photos, tmp_path, trained, change):
    compare(photos, tmp_path/'out')
    change(photos)
    _,said = compare(photos, tmp_path/'out')
    assert len(trained)==4 and not [l for l in said if ' of the same method' in l]

def edit(out, **columns):
    path = out/'results.csv'
    df = pd.read_csv(path, dtype=str, keep_default_na=False)
    for c,v in columns.items(): df[c] = v(df[c]) if callable(v) else v
    df.to_csv(path, index=False)

@pytest.mark.parametrize('again, columns', [
    (0, dict(torch=lambda c: c.str.replace(r'^(\d+\.\d+)\..*', r'\1.99', regex=True))), (0, dict(mine='a note')),
    (0, dict(pretrained='FALSE', fp16='FALSE')), (0, dict(lr=lambda c: c + '0')), (0, dict(seed=lambda c: c + '.0')),
    (4, dict(torch='1.13.1')), (4, dict(data_id='')), (4, dict(method_id='')),
    (2, dict(method_id=lambda c: [c[0], *['m0']*2, c[3]])),
    (4, dict(lr='0.5')), (4, dict(device='cuda'))])
def test_which_cells_make_another_run(tmp_path, trained, again, columns):
    compare('digits', tmp_path, n_train=16, n_valid=10)
    edit(tmp_path, **columns)
    df,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(trained)==4 + again and len(df)==4
    lines = [l for l in said if ' of the same method' in l]
    assert len(lines)==bool(again) and all(list(columns)[0] in l for l in lines), said

class Method(Callback):
    "A method of a user, twice made"
    def after_pred(self): return 1

class Changed(Callback):
    "A method of a user, twice made"
    def after_pred(self): return 2

def test_another_source_is_another_method(tmp_path, trained, monkeypatch):
    ids = lambda: {m: i for m,i in read_results(tmp_path/'results.csv')[['method', 'method_id']].values}
    monkeypatch.setitem(core.methods, 'method', Method)
    compare('digits', tmp_path, methods='method', n_train=16, n_valid=10)
    changed = lambda *classes, old=runs.source_id: old(*[Changed if c is Method else c for c in classes])
    monkeypatch.setattr(runs, 'source_id', changed)
    before = ids()
    _,said = compare('digits', tmp_path, methods='method', n_train=16, n_valid=10)
    assert len(trained)==6 and ids()['plain']==before['plain'] and ids()['Method()']!=before['Method()']
    assert '2 rows of the same methods and seeds differ in source of the method (method_id)' in ''.join(said)
    with pytest.raises(ValueError, match='differ in method_id'): summarise(read_results(tmp_path/'results.csv'))

def test_duplicates_count_once_and_are_told(tmp_path, trained):
    df,_ = compare('digits', tmp_path, n_train=16, n_valid=10)
    path = tmp_path/'results.csv'
    head,*lines = path.read_text().splitlines()
    path.write_text('\n'.join([head, *lines, *lines[:2]]))
    again,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(trained)==4 and len(again)==4 and sum('has 2 runs more than once' in l for l in said)==1
    assert len(read_results(path))==6
    pd.testing.assert_frame_equal(summarise(read_results(path)), summarise(df), check_like=True)


# ---- what goes wrong meanwhile

def damage(path): path.write_text('somebody was here')
def remove(path): path.unlink()
def make_folder(path): path.unlink(), path.mkdir()

@pytest.mark.parametrize('what, kept', [(damage, 3), (remove, 0), (make_folder, 3)])
def test_a_table_that_is_damaged_meanwhile(tmp_path, trained, monkeypatch, what, kept):
    run,path = training.run_once,tmp_path/'results.csv'
    def spoils(*args, **kwargs):
        if len(trained)==1: what(path)
        return run(*args, **kwargs)
    monkeypatch.setattr(training, 'run_once', spoils)
    df,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(trained)==4 and len(df)==4 and (df.error=='').all(), 'the report has all runs'
    assert len(beside(path))==kept
    assert sum('taken in' in l for l in said)==kept and any('minus plain' in l for l in said)
    assert (tmp_path/'comparison.png').exists()

def test_rows_beside_are_taken_in_by_the_next_comparison(tmp_path, trained, monkeypatch):
    with monkeypatch.context() as m:
        def refuses(a, b, old=os.replace):
            if Path(b).name=='results.csv': raise PermissionError(errno.EACCES, 'in use')
            return old(a, b)
        m.setattr(os, 'replace', refuses)
        first,_ = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(beside(tmp_path/'results.csv'))==4 and len(first)==4
    again,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(trained)==4 and 'has taken in 4 rows' in said[0] and not beside(tmp_path/'results.csv')
    pd.testing.assert_frame_equal(again, first)

def test_a_full_disk_ends_nothing(tmp_path, trained, monkeypatch):
    def full(a, b): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    df,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(trained)==4 and len(df)==4
    assert any('No space' in l for l in said) and any('minus plain' in l for l in said)

@pytest.mark.parametrize('where, error', [
    ('plot_comparison', RuntimeError('no font')), ('plot_comparison', ImportError('no backend')),
    ('plot_gain', OSError(errno.ENOSPC, 'No space'))])
def test_a_picture_that_fails_is_one_line_below_the_table(tmp_path, trained, monkeypatch, where, error):
    def fails(*args, **kwargs): raise error
    monkeypatch.setattr(report, where, fails)
    df,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(df)==4 and 'minus plain' in said[-2] and 'there is no picture' in said[-1] and '\n' not in said[-1]

def test_an_unwritable_picture(tmp_path, trained):
    (tmp_path/'comparison.png').mkdir(parents=True)
    df,said = compare('digits', tmp_path, n_train=16, n_valid=10)
    assert len(df)==4 and 'minus plain' in said[-2] and 'there is no picture' in said[-1]


# ---- processes

command = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_comparison_rows as t
def run(dls, make_cbs=list, seed=0, **kwargs):
    open(sys.argv[3], 'a').write('x')
    time.sleep(0.3)
    return t.instant_run(dls, make_cbs, seed)
t.training.run_once,t.module.check_methods = run,lambda *args: None
small = '--arch test_resnet --size 64 --bs 8 --n-train 16 --n-valid 10 --epochs 1 --seeds 6 --methods mixup'
sys.exit(t.main(['compare', *small.split(), '--out', sys.argv[2]]))
"""

def start(out, log, env=None, **kwargs):
    args = [sys.executable, '-c', command, Path(__file__).parent, out, log]
    return subprocess.Popen([str(a) for a in args], env=os.environ | (env or {}), **kwargs)

def test_two_commands_share_the_runs(tmp_path):
    quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ps = [start(tmp_path/'out', tmp_path/f'{k}.txt', **quiet) for k in range(2)]
    said = [p.communicate(timeout=300)[0] for p in ps]
    assert [p.returncode for p in ps]==[0, 0]
    logs = [f.read_text() for f in tmp_path.glob('*.txt')]
    assert len(''.join(logs))==12, logs
    df = read_results(tmp_path/'out'/'results.csv')
    assert len(df)==12 and not df.duplicated(['method', 'seed']).any()
    assert all('MixUp()' in s and 'over 6 seeds' in s for s in said), 'either command reports all runs'

outputs = {'closed after a line': lambda p: (p.stdout.readline(), p.stdout.close()),
           'closed at once': lambda p: p.stdout.close()}

@pytest.mark.skipif(os.name=='nt', reason='pipes')
@pytest.mark.parametrize('output', outputs)
def test_a_closed_output_ends_nothing(tmp_path, output):
    p = start(tmp_path/'out', tmp_path/'log', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    outputs[output](p)
    assert p.wait(300)==0
    assert len(read_results(tmp_path/'out'/'results.csv'))==12 and (tmp_path/'out'/'comparison.png').exists()

@pytest.mark.skipif(os.name=='nt', reason='descriptors')
def test_ascii_only_and_no_output_at_all(tmp_path):
    ascii_only = dict(env=dict(PYTHONIOENCODING='ascii'), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    p = start(tmp_path/'out', tmp_path/'log', **ascii_only)
    out,_ = p.communicate(timeout=300)
    assert p.returncode==0 and b'+-' in out and out.isascii()
    def close(): os.close(1), os.close(2)
    p = start(tmp_path/'none', tmp_path/'log', preexec_fn=close)
    assert p.wait(300)==0
    assert len(read_results(tmp_path/'none'/'results.csv'))==12
