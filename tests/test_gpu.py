"The script for a GPU and the options it asks of the cost benchmark, tried on a CPU"
import argparse, importlib, math, re, shutil, sys, time
from dataclasses import replace
from pathlib import Path
import gpu, gpu_claims, overhead, pandas as pd, pytest, torch
from fastai_featreg.comparison import cost
from fastai_featreg.comparison.holds import all_runs, asked_cells, questions
from fastai_featreg.comparison.published import block_named, published_gain, read_table
from fastai_featreg.comparison.reproduce import n_runs, plan_of

results = Path(__file__).parent.parent/'nbs'/'results'
few = '--arch resnet8 --size 16 --bs 4 --rounds 2 --warmup 1 --trial --device cpu'.split()


def call(main, monkeypatch, *args):
    "Exit status of a script"
    monkeypatch.setattr(sys, 'argv', ['script', *map(str, args)])
    return main()


def test_costs_of_one_callback(tmp_path, monkeypatch):
    "The columns are those of the committed files, and the device"
    how = ['--uint8', '--channels-last', '--burst', '2']
    args = [*few, '--methods', '^feature_mining$|^ccm$', *how, '--out', tmp_path]
    assert call(overhead.main, monkeypatch, *args)==0
    df = pd.read_csv(tmp_path/'overhead_cpu_resnet8_16px_bs4_channels_last_uint8_burst2.csv')
    committed = pd.read_csv(results/'overhead_cpu_resnet56_32px_bs128.csv')
    assert set(df)==set(committed) | {'device'} and (df.device=='cpu').all() and (df.rounds==2).all()
    assert df.method.tolist()==['plain', 'plain again', 'feature_mining', 'knowledge_distillation', 'ccm']
    assert (df[['step_ms', 'memory_mb', 'ratio_median']]>0).all(axis=None)


def test_a_candidate_that_fails_or_is_late_is_left_out(tmp_path, monkeypatch, capsys):
    "The others are written, and the exit status says so"
    candidates = overhead.candidates
    def fail(): raise ValueError('no such thing\nmore')
    monkeypatch.setattr(overhead, 'candidates', lambda arch: candidates(arch) | {'feature_mining': [fail]})
    assert call(overhead.main, monkeypatch, *few, '--methods', '^feature_mining$|^selectout$', '--out', tmp_path)==1
    assert 'left out: feature_mining: ValueError: no such thing more\n' in capsys.readouterr().out
    df = pd.read_csv(tmp_path/'overhead_cpu_resnet8_16px_bs4.csv')
    assert df.method.tolist()==['plain', 'plain again', 'selectout']
    assert call(overhead.main, monkeypatch, *few, '--methods', '^selectout$', '--seconds', '0')==1
    assert 'left out: selectout: no time was left for it' in capsys.readouterr().out


class Tick:
    "A stepper that takes as long on a clock of its own"
    now = 0.
    def step(self):
        Tick.now += 1
        return dict(ms=1000., cpu_ms=1000.)

@pytest.mark.parametrize('seconds,rounds', [(math.inf, 9), (23, 8), (13, 4), (0, 2)])
def test_rounds_end_in_time(monkeypatch, seconds, rounds):
    "Two candidates of a second each, up to three rounds of warming up; two rounds are made in any case"
    Tick.now = 0.
    monkeypatch.setattr(cost.time, 'perf_counter', lambda: Tick.now)
    df = cost.timed(dict(a=Tick(), b=Tick()), 9, 3, seconds)
    assert df['round'].nunique()==rounds and len(df)==2*rounds
    assert Tick.now <= max(seconds, 2*(1 + rounds)) # with one round of warming up at least


def test_images_held_as_bytes_are_normalised():
    how = dict(amp=None, channels_last=False, uint8=True, burst=1, device='cpu')
    stepper = overhead.stepper([], argparse.Namespace(arch='resnet8', size=16, bs=4, **how))
    held,x = stepper.batch[0],stepper.images()
    assert held.dtype==torch.uint8 and x.dtype==torch.float32
    for i,(mean,std) in enumerate(zip((.485, .456, .406), (.229, .224, .225))):
        torch.testing.assert_close(x[:,i], (held[:,i]/255 - mean)/std)


@pytest.mark.parametrize('args', [['--device', 'cpu'], ['--tiny'], []])
def test_without_a_gpu_it_is_one_sentence(monkeypatch, args):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    sentence = '^gpu.py measures a CUDA GPU, and here is none; try it with --device cpu --tiny$'
    with pytest.raises(SystemExit, match=sentence): call(gpu.main, monkeypatch, *args)


@pytest.mark.parametrize('gib,capability,batch,precision', [(79.1, '9.0', '128', 'bf16'), (15.8, '7.5', '64', 'fp16')])
def test_the_plan_follows_the_card(tmp_path, gib, capability, batch, precision):
    args = argparse.Namespace(parts=['cost'], device='cuda', tiny=False, methods='', out=tmp_path)
    steps = gpu.plan(args, dict(gib=gib, capability=capability))
    assert [s.name for s in steps]==['cost_resnet50', 'cost_resnet56', 'functions']
    command = steps[0].command(100., args)
    after = lambda option: command[command.index(option) + 1]
    assert [after(o) for o in ('--size', '--bs', '--amp', '--seconds')]==['224', batch, precision, '100']
    assert '--trial' not in command and '--channels-last' in command and '--uint8' in command


def test_steps_and_their_ends(tmp_path, monkeypatch, capsys):
    "One that fails, one that does not end and one that is well; the exit status is 1, all is told"
    def step(name, code): return gpu.Step(name, 'cost', 1., lambda seconds, args: [sys.executable, '-c', code], name)
    steps = [step('wrong', 'print("left out: a: b"); raise SystemExit(1)'),
             step('endless', 'import time; time.sleep(60)'), step('well', 'print("fine")')]
    monkeypatch.setattr(gpu, 'plan', lambda args, found: steps)
    assert call(gpu.main, monkeypatch, '--device', 'cpu', '--tiny', '--minutes', .1, '--out', tmp_path)==1
    df = pd.read_csv(tmp_path/'parts.csv', keep_default_na=False)
    assert df.status.tolist()==['failed', 'failed', 'done']
    assert df.why[0]=='left out: a: b' and 'stopped after' in df.why[1] and df.why[2]==''
    assert 'failed: wrong: left out: a: b' in capsys.readouterr().out
    assert (tmp_path/'well.log').read_text()=='fine\n' and pd.read_csv(tmp_path/'machine.csv').torch.notna().all()


xml = """<testsuites><testsuite>
<testcase classname="tests.test_cuda" name="test_cell[a: b]" time="0.5"><properties><property name="method" value="a"/>
<property name="cell" value="b"/><property name="status" value="refused"/><property name="why" value="a sentence"/>
</properties></testcase>
<testcase classname="tests.test_cuda" name="test_cell[a: c]" time="0.5"><properties><property name="method" value="a"/>
<property name="cell" value="c"/></properties><failure message="it did not act&#10;more">text</failure></testcase>
<testcase classname="tests.test_cuda" name="test_x" time="0.1"><skipped message="no time was left"/></testcase>
<testcase classname="tests.test_cuda" name="test_y" time="0.1"/></testsuite></testsuites>"""

def test_what_pytest_found_is_read(tmp_path):
    (tmp_path/'pytest.xml').write_text(xml)
    assert gpu.read_tests(argparse.Namespace(out=tmp_path, device='cuda'))=='1 failed, 1 not reached in time'
    read = lambda name: pd.read_csv(tmp_path/name, keep_default_na=False)
    assert read('pytest_gpu.csv').outcome.tolist()==['passed', 'failed', 'skipped', 'passed']
    cells = [['a', 'b', 'refused', 'a sentence'], ['a', 'c', 'failed', 'it did not act']]
    assert read('conformance_gpu.csv').values.tolist()==cells


def test_a_gpus_file_beside_those_of_a_cpu_is_not_read(tmp_path, monkeypatch):
    "It can lie there; the reports show it once `evidence.settings` names it"
    monkeypatch.syspath_prepend(str(results))
    evidence = importlib.import_module('evidence')
    before = evidence.overhead()
    for file in results.glob('overhead_cpu_*.csv'): shutil.copy(file, tmp_path)
    gpus = pd.read_csv(results/'overhead_cpu_resnet56_32px_bs128.csv').assign(device='a card', setting='gpu_resnet56')
    gpus.to_csv(tmp_path/'overhead_gpu_resnet56.csv', index=False)
    monkeypatch.setattr(evidence, 'here', tmp_path)
    evidence.overhead.cache_clear()
    pd.testing.assert_frame_equal(evidence.overhead(), before)
    evidence.overhead.cache_clear()
    monkeypatch.setitem(evidence.settings, 'gpu_resnet56', 'ResNet-56, on a GPU')
    assert (evidence.overhead().network=='ResNet-56, on a GPU').sum()==len(gpus)
    evidence.overhead.cache_clear()


@pytest.mark.slow
def test_the_trial_from_end_to_end(tmp_path, monkeypatch):
    args = ['--device', 'cpu', '--tiny', '--methods', '^feature_mining$', '--minutes', 10, '--out', tmp_path]
    assert call(gpu.main, monkeypatch, *args)==0
    names = {p.name for p in tmp_path.glob('*.csv')}
    nets = 'test_resnet_64px_bs2','resnet8_16px_bs4'
    costs = {f'overhead_cpu_{n}_bf16_channels_last_uint8_burst2.csv' for n in nets}
    assert names==costs | {'machine.csv', 'parts.csv', 'pytest_cpu.csv', 'conformance_cpu.csv', 'functions_cpu.csv'}


@pytest.mark.parametrize('name', gpu_claims.forms)
@pytest.mark.parametrize('tiny', [False, True])
def test_a_table_of_the_card_claims_what_the_papers_does(tmp_path, name, tiny):
    "Another quick form of the same table; eight runs at a time come out even"
    library,table = read_table(name),read_table(gpu_claims.write_table(tmp_path, name, tiny))
    assert replace(table, quick=None)==replace(library, quick=None)
    calls = plan_of(table, quick=True)
    for c in calls:
        b = block_named(table, c['block'])
        shown = [k for k in table.claims if {k.method, k.against}<=set(c['arms']) and not k.beside]
        assert shown and all(published_gain(table, k, b) is not None for k in shown)
    if tiny: assert all(c['arguments']['data']=='digits' for c in calls)
    else:
        assert n_runs(calls)%8==0 and all(c['arguments']['jobs']==8 for c in calls)
        assert all(c['arguments']['seeds']>=4 for c in calls)
        # of 128 images: a run that is cut by the end of a piece is lost
        assert all(c['arguments']['n_train']*c['arguments']['protocol'].epochs<=128*8000 for c in calls)


@pytest.mark.parametrize('behind', ['[[claims]]\nmethod = "fm"', '[settings]', '  [quicker]', '[[blocks]]'])
def test_nothing_behind_the_quick_form_is_thrown_away(tmp_path, monkeypatch, behind):
    "Its own sections may go, others not"
    text = (gpu_claims.tables_folder()/'fm-table8.toml').read_text(encoding='utf-8')
    monkeypatch.setattr(gpu_claims, 'tables_folder', lambda: tmp_path)
    own = f'{text}\n[quick.blocks]\n"pair 0.5" = {{}}\n'
    (tmp_path/'fm-table8.toml').write_text(own, encoding='utf-8')
    assert 'pair 0.5" = {}' not in gpu_claims.table_text('fm-table8', False)
    (tmp_path/'fm-table8.toml').write_text(f'{own}\n{behind}\n', encoding='utf-8')
    header = behind.strip().partition('\n')[0]
    said = f'the quick form of fm-table8 must come last, got {header} behind it; move that before [quick]'
    with pytest.raises(ValueError, match=re.escape(said)): gpu_claims.table_text('fm-table8', False)


def test_claims_end_in_time_and_go_on(tmp_path, monkeypatch, capsys):
    "The time ends the table that it is in; the next piece asks the same, and all is then done"
    asked = []
    def interrupted(file, **how):
        asked.append((file.parent.name, how['quick'], how['out']))
        if len(asked)==2: raise KeyboardInterrupt
    monkeypatch.setattr(gpu_claims, 'reproduce', interrupted)
    args = ['--out', tmp_path, '--tables', 'fm-table8,fm-table1', '--tiny']
    assert call(gpu_claims.main, monkeypatch, *args)==0
    said = capsys.readouterr().out
    assert 'the time was over in fm-table1' in said and 'there is more to do: 0 runs' in said
    assert call(gpu_claims.main, monkeypatch, *args)==0
    assert 'all tables are done: 0 runs' in capsys.readouterr().out
    assert asked==[(f'{n}-quick', True, tmp_path) for n in ('fm-table8', 'fm-table1')]*2


def test_the_time_of_a_piece_is_as_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        gpu_claims.end_in(.05)
        time.sleep(60)


def test_a_failed_run_of_a_claim_is_told(tmp_path, monkeypatch):
    "One that diverged is a result"
    file = tmp_path/'fm-table8-quick'/'a'/'results.csv'
    file.parent.mkdir(parents=True)
    rows = pd.read_csv(results/'digits15'/'results.csv', dtype=str, keep_default_na=False)[:2]
    monkeypatch.setattr(gpu_claims, 'reproduce', lambda *args, **how: None)
    for error,code in (('diverged: nan', 0), ('OSError: no', 1)):
        rows.assign(error=['', error], accuracy=[rows.accuracy[0], '']).to_csv(file, index=False)
        assert call(gpu_claims.main, monkeypatch, '--out', tmp_path)==code


def test_the_claims_begin_where_an_earlier_piece_ended(tmp_path):
    (tmp_path/'before'/'fm-table8-quick').mkdir(parents=True)
    (tmp_path/'before'/'fm-table8-quick'/'results.csv').write_text('rows')
    out = tmp_path/'out'
    out.mkdir()
    args = argparse.Namespace(parts=['claims'], device='cuda', tiny=False, methods='', out=out, data_at=None,
                              earlier=tmp_path/'before')
    step, = gpu.plan(args, dict(gib=141., capability='9.0'))
    command = step.command(215., args)
    assert command[1:]==[gpu.tables, '--out', str(out/'claims'), '--seconds', '215']
    assert (out/'claims'/'fm-table8-quick'/'results.csv').read_text()=='rows'
    (out/'claims.log').write_text('1\nthere is more to do: 8 runs\n')
    assert step.after(args)==''


@pytest.mark.slow
def test_the_trial_of_the_claims(tmp_path, monkeypatch):
    "Rows that the page of claims reads, and one run for all that has ended"
    args = ['--device', 'cpu', '--tiny', '--parts', 'claims', '--minutes', 10, '--out', tmp_path]
    assert call(gpu.main, monkeypatch, *args)==0
    first = all_runs(tmp_path/'claims')
    assert len(first)==8 and (first['error']=='').all()
    read = {q.table: asked_cells(q, tmp_path/'claims') for q in questions if q.table in gpu_claims.forms}
    assert len(read)==4 and all(c['seeds'].max()==1 for c in read.values())
    assert call(gpu.main, monkeypatch, *args)==0
    pd.testing.assert_frame_equal(all_runs(tmp_path/'claims'), first)
