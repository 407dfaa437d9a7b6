"Runs side by side are the same runs: in two processes, in two commands, killed, on a full disk, in jobs, in ranks"
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sent
import torch

from fastai_featreg.comparison import jobs
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.rows import read_results

posix = pytest.mark.skipif(os.name=='nt', reason='signals')
tiny = dict(data='digits', arch='test_resnet', size=64, epochs=1, n_train=32, n_valid=20, bs=16, bars=False)
same = 'accuracy valid_loss train_loss curve train_curve term_share error n_threads data_id method_id'.split()


def rows(out):
    "Rows in one order"
    df = read_results(Path(out)/'results.csv')
    return df.sort_values(['method', 'seed']).reset_index(drop=True)

def assert_equal_rows(a, b):
    "Equal to the last digit"
    one,other = [rows(out)[['method', 'seed', *same]] for out in (a, b)]
    pd.testing.assert_frame_equal(one, other, check_exact=True)

def workers(out):
    "Processes that train for this folder, by what stands in their environment"
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try: env,line = (p/'environ').read_bytes(),(p/'cmdline').read_bytes()
        except OSError: continue
        if f'FEATREG_TEST_OUT={out}'.encode() in env and b'import work' in line: found.append(int(p.name))
    return found

def command(out, *words, **env):
    "`featreg compare` in a process of its own"
    code = 'import sys, sent; from fastai_featreg.comparison.command import main; sys.exit(main(sys.argv[1:]))'
    given = [w for k,v in tiny.items() if k!='bars' for w in (f'--{k.replace("_", "-")}', str(v))]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', FEATREG_TEST_OUT=str(out)) | env
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, 'compare', *given, '--out', str(out), *words],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

def wait_until(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time()<end, 'not in time'
        time.sleep(0.05)

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "One after another, in this process and one thread"
    out,n = tmp_path_factory.mktemp('alone'),torch.get_num_threads()
    torch.set_num_threads(1)
    try: compare(**tiny, methods='feature_mining,own_method', seeds=2, out=out, say=lambda text: None)
    finally: torch.set_num_threads(n)
    return out


@posix
def test_two_jobs_give_the_rows_of_one(alone, tmp_path, monkeypatch):
    monkeypatch.setenv('FEATREG_TEST_OUT', str(tmp_path))
    lines = []
    df = compare(**tiny, methods='feature_mining,own_method', seeds=2, out=tmp_path, jobs=2, say=lines.append)
    assert_equal_rows(alone, tmp_path)
    assert len(df)==6 and not workers(tmp_path)
    assert [l[:4] for l in lines if re.match(r'\d/6 ', l)]==[f'{i}/6 ' for i in range(1, 7)], lines
    assert sum('minus plain' in l for l in lines)==1, 'one report'
    files = {'results.csv', '.results.csv.lock', 'comparison.png', 'curves.png', 'predictions'}
    assert {p.name for p in tmp_path.iterdir()}==files

@posix
@pytest.mark.slow
def test_killed_and_resumed(alone, tmp_path):
    two = ['--methods', 'feature_mining,own_method', '--seeds', '2', '--jobs', '2']
    # a worker: the other does its part, and the command says what has happened
    p = command(tmp_path/'worker', *two)
    wait_until(lambda: (tmp_path/'worker'/'results.csv').exists() and len(workers(tmp_path/'worker'))==2)
    os.kill(workers(tmp_path/'worker')[0], signal.SIGKILL)
    out,_ = p.communicate(timeout=300)
    assert p.returncode==0 and 'was killed (SIGKILL' in out, out
    assert_equal_rows(alone, tmp_path/'worker')
    # the command: nothing is left, and what had ended stays
    folder = tmp_path/'command'
    p = command(folder, *two)
    wait_until(lambda: (folder/'results.csv').exists())
    p.send_signal(signal.SIGINT)
    out,_ = p.communicate(timeout=60)
    wait_until(lambda: not workers(folder), 20)
    assert p.returncode==130 and 'goes on from there' in out and 'Traceback' not in out, out
    kept = rows(folder)
    assert len(kept)>=1 and command(folder, *two).wait(300)==0
    again = kept.merge(rows(folder), on=['method', 'seed', 'seconds'])
    assert len(again)==len(kept), 'a finished run was trained again'
    assert_equal_rows(alone, folder)

@posix
@pytest.mark.slow
def test_two_commands_share_the_work(alone, tmp_path):
    both = [command(tmp_path, '--methods', 'feature_mining,own_method', '--seeds', '2', '--jobs', n) for n in '21']
    said = [p.communicate(timeout=300)[0] for p in both]
    assert [p.returncode for p in both]==[0, 0], said
    assert_equal_rows(alone, tmp_path)
    ended = [len(re.findall(r'^\d/6 ', s, re.M)) for s in said]
    assert sum(ended)==6, f'a run was trained twice: {said}'

@posix
@pytest.mark.slow
def test_rows_that_a_process_cannot_write_are_written_by_the_command(alone, tmp_path, monkeypatch):
    monkeypatch.setenv('FEATREG_TEST_FULL', '1')
    compare(**tiny, methods='feature_mining,own_method', seeds=2, out=tmp_path, jobs=2, say=lambda text: None)
    assert_equal_rows(alone, tmp_path)

@posix
@pytest.mark.slow
def test_a_run_that_kills_its_process_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv('FEATREG_TEST_WORKER', '1')
    lines = []
    df = compare(**tiny, methods='deadly', seeds=1, out=tmp_path, jobs=2, say=lines.append)
    errors = dict(zip(df.method, df.error))
    assert errors['plain']=='' and 'was killed (SIGKILL' in errors['Deadly()'], lines
    assert rows(tmp_path).error.tolist()==df.sort_values('method').error.tolist()

def test_what_cannot_be_sent_is_trained_here(tmp_path, monkeypatch):
    monkeypatch.setattr(sent.OwnMethod, '__module__', '__main__')
    lines = []
    df = compare(**tiny, methods='own_method', seeds=1, out=tmp_path, jobs=2, say=lines.append)
    assert len(df)==2 and sum('OwnMethod cannot be sent to other processes' in l for l in lines)==1, lines

def test_mistakes_are_sentences(tmp_path, capsys):
    out = ['--out', str(tmp_path/'out')]
    assert main(['compare', '--jobs', 'many', *out])==2
    assert main(['compare', '--launcher', 'submitit', '--launcher-args', 'gpu', *out])==2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors)==2 and "from 0 to 1000 or 'auto'" in errors[0] and 'launcher_args must be text' in errors[1]
    assert not (tmp_path/'out').exists()

def test_a_failed_run_is_not_tried_again_by_a_fellow(tmp_path):
    from fastai_featreg.comparison.jobs import is_there
    from fastai_featreg.comparison.rows import write_row
    row = jobs.lost_row('OSError: no') | dict(method='A', seed=0, method_id='m', seconds=2.)
    write_row(tmp_path/'results.csv', row)
    before = jobs.failures(read_results(tmp_path/'results.csv'))
    assert len(before)==1 and not is_there(tmp_path/'results.csv', row, before), 'the next command tries it again'
    assert is_there(tmp_path/'results.csv', row, frozenset()), 'it has failed since this command began'
    write_row(tmp_path/'results.csv', row | dict(seconds=3.))
    assert is_there(tmp_path/'results.csv', row, before)

def test_a_process_that_is_started_starts_none(tmp_path, monkeypatch):
    "By default the digits train side by side: each process would do the same again, without end"
    import importlib

    from fastai_featreg.comparison.plan import parse_methods
    from fastai_featreg.comparison.setting import jobs_of
    monkeypatch.setattr(jobs, 'n_places', lambda: 8)
    assert jobs_of(None, dict(data=None))==8
    training = importlib.import_module('fastai_featreg.comparison.training')
    here = []
    def side(*args): raise AssertionError('a process has started processes')
    monkeypatch.setattr(training, 'train_beside', side)
    monkeypatch.setattr(training, 'train_all', lambda todo, *args: here.extend(todo) or [])
    given = dict(data='digits', methods='plain', seeds=2, out=tmp_path)
    package = jobs.packed(given, dict(parse_methods('plain')))
    for told in (package['given'], {k: v for k,v in package['given'].items() if k!='jobs'}):
        here.clear()
        with jobs.as_part(jobs.Part(tell=here.append, check=lambda *mine: None)): compare(**told, say=print, bars=False)
        assert here==[(0, 'plain'), (1, 'plain')]
    # the same comparison, started by a user
    with pytest.raises(AssertionError, match='has started processes'): compare(**given, say=lambda text: None)

def test_do_part_of_the_default_data(tmp_path, monkeypatch):
    import importlib

    from fastai_featreg.comparison.plan import parse_methods
    training = importlib.import_module('fastai_featreg.comparison.training')
    monkeypatch.setattr(jobs, 'n_places', lambda: 8)
    def side(*args): raise AssertionError('a process has started processes')
    monkeypatch.setattr(training, 'train_beside', side)
    monkeypatch.setattr(training, 'train_all', lambda todo, *args: [])
    monkeypatch.setattr(jobs, 'expect', lambda *args: lambda *mine: None)
    package = jobs.packed(dict(methods='plain', seeds=1, out=tmp_path), dict(parse_methods('plain')))
    jobs.do_part(package | dict(configs={}, methods={}, failed=frozenset()), lambda kind, what: None)

def test_ranks_need_no_jobs_by_default(monkeypatch):
    from fastai_featreg.comparison.setting import jobs_of
    monkeypatch.setattr(jobs, 'n_places', lambda: 8)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert jobs_of(None, {})==1 and jobs_of(4, {})==4, 'asked for, it is refused by join_ranks'

def test_a_launcher_sends_no_more_jobs_than_runs(tmp_path, monkeypatch):
    import importlib
    module,sent_jobs = importlib.import_module('fastai_featreg.comparison.compare'),[]
    def send(package, n, *args):
        sent_jobs.append(n)
        return []
    monkeypatch.setattr(module, 'send', send)
    given = dict(methods='plain', seeds=2, out=tmp_path, launcher='submitit', launcher_args='wait=False')
    for n in (None, 1, 50): compare(**given, jobs=n)
    assert sent_jobs==[1, 1, 2]


# ---- jobs of a launcher

@pytest.mark.slow
def test_submitits_local_executor(alone, tmp_path):
    pytest.importorskip('submitit')
    lines = []
    df = compare(**tiny, methods='feature_mining,own_method', seeds=2, out=tmp_path, jobs=2, launcher='submitit',
                 launcher_args='cluster=local timeout=10', say=lines.append)
    assert len(df)==6 and any('2 jobs sent to local' in l for l in lines), lines
    assert_equal_rows(alone, tmp_path)

def test_without_submitit_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert main(['compare', '--launcher', 'submitit', '--out', str(tmp_path/'out')])==2
    line, = capsys.readouterr().err.splitlines()
    assert 'pip install fastai_featreg[launch]' in line


# ---- ranks

rank = """import os, sys, torch, torch.distributed as dist, fastai.distributed as fd
fd.DistributedDL._broadcast = lambda self, t, rank: (dist.broadcast(t := torch.as_tensor(t), rank), t.tolist())[1]
from fastai_featreg.comparison.command import main
sys.exit(main(sys.argv[1:]))"""

def test_two_ranks_train_together_and_the_first_writes(tmp_path):
    pytest.importorskip('accelerate')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    given = [w for k,v in tiny.items() if k!='bars' for w in (f'--{k.replace("_", "-")}', str(v))]
    words = [sys.executable, '-W', 'ignore', '-c', rank, 'compare', *given, '--methods', 'feature_mining',
             '--seeds', '1', '--out', str(tmp_path)]
    env = os.environ | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port, OMP_NUM_THREADS='1',
                            ACCELERATE_USE_CPU='true', PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    both = [subprocess.Popen(words, env=env | dict(RANK=r, LOCAL_RANK=r), stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.STDOUT) for r in '01']
    said = [p.communicate(timeout=300)[0] for p in both]
    assert [p.returncode for p in both]==[0, 0], said
    df = rows(tmp_path)
    assert list(df.method)==['FeatureMining()', 'plain'] and list(df.error)==['', ''], df.error.tolist()
    assert set(df.device)=={'2 x cpu'} and np.isfinite(df.accuracy).all()
    assert 'minus plain' in said[0] and 'minus plain' not in said[1] and 'FeatureMining' not in said[1]


# ---- forty runs

@posix
@pytest.mark.slow
def test_forty_runs_killed_at_random_moments_beside_another_command_on_a_full_disk(tmp_path):
    methods = ['--methods', 'feature_mining,own_method,mixup', '--seeds', '10']
    assert command(tmp_path/'whole', *methods).wait(1800)==0
    rng,out,kept = np.random.default_rng(0),tmp_path/'out',pd.DataFrame()
    keys = ['method', 'seed', *same]
    for i,sign in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]*3):
        full = dict(FEATREG_TEST_FULL='0.3') if i%2 else {}
        n = len(kept)
        ps = [command(out, *methods, '--jobs', '2', **full)] + [command(out, *methods)]*(i%3==0)
        wait_until(lambda n=n, ps=ps: all(p.poll() is not None for p in ps)
                   or out.exists() and len(read_results(out/'results.csv'))>n)
        time.sleep(rng.uniform(0, 5))
        for p in ps: p.send_signal(sign)
        for p in ps: p.communicate(timeout=60)
        wait_until(lambda: not workers(out), 20)
        now = read_results(out/'results.csv')
        before = kept.merge(now[keys], on=keys) if len(kept) else kept
        assert len(before)==len(kept), 'a finished row is gone'
        kept = now.loc[now.error=='', keys]
    assert command(out, *methods, '--jobs', '2').wait(1800)==0
    assert len(rows(out))==40
    assert_equal_rows(tmp_path/'whole', out)
