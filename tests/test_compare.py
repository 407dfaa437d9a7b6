"The command `featreg`: errors in one sentence and exit code 2, interruption and resuming, what is in the CSV"
import hashlib
import os
import signal
import subprocess
import sys
import time
from urllib.error import URLError

import numpy as np
import pandas as pd
from pathlib import Path
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from PIL import Image

import fastai_featreg.all
from fastai_featreg import archs, core
from fastai_featreg.comparison import plan, report, runs, training
from fastai_featreg.comparison import start as starting
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import run_order
from fastai_featreg.data import load_data
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.comparison.rows import config_names, looks, read_results, result_columns

module = sys.modules['fastai_featreg.comparison.compare']
tiny = ('--arch test_resnet --size 64 --bs 8 --n-train 32 --n-valid 20 --epochs 1 --seeds 2 '
        '--methods FeatureMining(),mixup').split()
order = [(0, 'plain'), (0, 'FeatureMining()'), (0, 'MixUp()'), (1, 'FeatureMining()'), (1, 'MixUp()'), (1, 'plain')]


def compare(out, *args): return main(['compare', *tiny, '--out', str(out), *map(str, args)])

def rows(out): return read_results(out/'results.csv')

def make_folder(path, **counts):
    "Images of noise, a folder for each class"
    rng = np.random.default_rng(0)
    for name,n in counts.items():
        (path/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path/name/f'{i}.png')
    return path

def one_sentence(capsys, rc, text):
    "Exit code 2, one line on stderr that says `text`, no traceback"
    out,err = capsys.readouterr()
    lines = [l for l in err.splitlines() if 'Warning' not in l and 'warnings.warn' not in l]
    assert rc==2
    assert len(lines)==1 and lines[0].startswith('featreg: ') and text in lines[0], err
    assert 'Traceback' not in out + err


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A comparison that ran to its end"
    out = tmp_path_factory.mktemp('finished')
    assert compare(out)==0
    return out


def test_rows_and_picture(finished):
    df = rows(finished)
    assert list(zip(df.seed, df.method))==order
    assert df.columns.tolist()==result_columns and (df.error=='').all()
    assert df.accuracy.between(0, 1).all() and (df.step_ms>0).all() and (df.seconds>0).all()
    assert [float(c.split(';')[-1]) for c in df.curve]==pytest.approx(df.accuracy.tolist(), abs=1e-5)
    assert (df[config_names]==df[config_names].iloc[0]).all(axis=None), 'one configuration'
    assert (df[['data', 'arch', 'size', 'bs', 'epochs', 'n_train', 'n_valid', 'n_classes']].iloc[0].tolist()
            ==['digits', 'test_resnet', '64', '8', '1', '32', '20', '10'])
    assert Image.open(finished/'comparison.png').size[0]>1000
    files = ['.results.csv.lock', 'comparison.png', 'curves.png', 'predictions', 'results.csv']
    assert sorted(p.name for p in finished.iterdir())==files, 'no temporary file is left; a lock stays, and is empty'


def test_finished_runs_are_not_repeated(finished, capsys, monkeypatch):
    before = (finished/'results.csv').read_bytes()
    monkeypatch.setattr(training, 'run_once', lambda *a, **k: pytest.fail('trained again'))
    assert compare(finished)==0
    assert (finished/'results.csv').read_bytes()==before
    out = capsys.readouterr().out
    assert '6 of 6 runs' in out and 'MixUp()' in out and 'minus plain' in out


def test_every_seed_begins_with_another_method():
    labels = [label for label,_ in parse_methods('feature_mining,mixup')]
    assert run_order(labels, 2)==order
    firsts = [run_order(labels, 6)[i][1] for i in range(0, 18, 3)]
    assert firsts==[*labels, *labels]
    assert len(set(run_order(labels, 6)))==18


def at_start():
    "In the new process: not done before we look; and it hears Ctrl-C, which a shell's background jobs ignore"
    os.nice(15)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

def start(out):
    "The command in a process of its own"
    code = 'import sys; from fastai_featreg.comparison.command import main; sys.exit(main())'
    return subprocess.Popen([sys.executable, '-c', code, 'compare', *tiny, '--out', str(out)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=at_start)

def wait_for_rows(process, out, n):
    "Wait until `n` runs have ended"
    end = time.time() + 600 # it is nice, so a busy machine may starve it for minutes
    while time.time()<end and process.poll() is None:
        if (out/'results.csv').exists() and len(rows(out))>=n: return
        time.sleep(0.01)
    pytest.fail(f'no {n} rows; the command said {process.communicate()}')


@pytest.mark.skipif(os.name=='nt', reason='signals')
def test_killed_interrupted_resumed(tmp_path, finished):
    process = start(tmp_path)
    wait_for_rows(process, tmp_path, 1)
    process.kill()
    process.communicate()
    first = rows(tmp_path)
    process = start(tmp_path)
    wait_for_rows(process, tmp_path, len(first)+1)
    process.send_signal(signal.SIGINT)
    out,err = process.communicate(timeout=60)
    assert process.returncode==130, err
    assert f'{len(first)} of 6 runs' in out
    second = rows(tmp_path)
    assert len(first)<len(second)<6
    assert f'holds {len(second)} finished runs' in err and 'goes on' in err and 'Traceback' not in err
    pd.testing.assert_frame_equal(second[:len(first)], first)

    assert compare(tmp_path)==0
    df,whole = rows(tmp_path),rows(finished)
    assert list(zip(df.seed, df.method))==order
    same = ['accuracy', 'valid_loss', 'train_loss', 'curve']
    pd.testing.assert_frame_equal(df[same], whole[same], rtol=1e-3) # a run does not depend on those before it


def test_other_configurations_stay(tmp_path):
    assert compare(tmp_path, '--seeds', 1, '--methods', 'mixup')==0
    first = rows(tmp_path)
    assert compare(tmp_path, '--seeds', 1, '--methods', 'mixup', '--lr', 1e-4)==0
    df = rows(tmp_path)
    pd.testing.assert_frame_equal(df[:2], first)
    assert df.lr.tolist()==['0.01']*2 + ['0.0001']*2


def test_method_that_cannot_work_is_told_before_training(tmp_path, capsys):
    # one position is left in the last map, and FeatureMining cannot divide it
    assert compare(tmp_path, '--size', 32, '--seeds', 1)==2
    assert 'FeatureMining() cannot train' in (err := capsys.readouterr().err) and 'one position only' in err
    assert compare(tmp_path, '--seeds', 1, '--methods', "FeatureMining(layers='layer9')")==2
    assert not (tmp_path/'results.csv').exists()


class FailsLate(Callback):
    "Works for a step, fails before the validation"
    def before_validate(self): raise RuntimeError('the disk is full')


def test_failed_run_is_a_row_and_tried_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(core.methods, 'fails_late', FailsLate)
    args = ['--seeds', 1, '--methods', 'fails_late,mixup']
    assert compare(tmp_path, *args)==1
    df = rows(tmp_path)
    assert df.method.tolist()==['plain', 'FailsLate()', 'MixUp()']
    assert (df.error!='').tolist()==[False, True, False] and np.isnan(df.accuracy[1])
    out = capsys.readouterr().out
    assert '1 (1 failed)' in out and 'the disk is full' in out
    assert compare(tmp_path, *args)==1
    assert '2 of 3 runs' in capsys.readouterr().out
    assert len(rows(tmp_path))==3


def test_diverged_run_is_a_row(tmp_path, capsys):
    assert compare(tmp_path, '--seeds', 1, '--methods', 'mixup', '--lr', 1e30)==0
    df = rows(tmp_path)
    assert df.error.str.startswith('diverged').all() and df.accuracy.isna().all()
    assert 'nothing can be said' in capsys.readouterr().out


class LateNaN(Callback):
    "Makes the training loss NaN in the second epoch"
    def after_loss(self):
        if self.training and self.learn.epoch==1: self.learn.loss_grad = self.learn.loss = self.learn.loss*float('nan')


def test_late_divergence_is_no_success(tmp_path, capsys, monkeypatch):
    original = plan.make_callbacks
    monkeypatch.setattr(plan, 'make_callbacks', lambda calls: [*original(calls), LateNaN()])
    for _ in range(2): # the second time, all rows come from the file
        assert compare(tmp_path, '--epochs', 3, '--methods', 'mixup')==0
        df = rows(tmp_path).set_index('method')
        assert df.error.str.startswith('diverged').to_dict()=={'plain': False, 'MixUp()': True}
        assert df.loc['MixUp()', 'accuracy'].isna().all() and df.loc['plain', 'accuracy'].notna().all()
        assert [c.count(';') for c in df.loc['MixUp()', 'curve']]==[0, 0], 'one epoch had ended'
        assert '2 (2 failed)' in capsys.readouterr().out
    assert len(rows(tmp_path))==4


def test_late_divergence_of_a_fine_tuned_run(monkeypatch):
    dls = load_data('digits', size=64, bs=8, n_train=16, n_valid=10)
    class Second(Callback):
        "NaN in the second phase of `fine_tune` only"
        fits = 0
        def before_fit(self): self.fits += 1
        def after_loss(self):
            if self.fits==2 and self.training and self.learn.epoch==1:
                self.learn.loss_grad = self.learn.loss = self.learn.loss*float('nan')
    make = runs.make_learner
    # no download
    monkeypatch.setattr(runs, 'make_learner', lambda dls, arch, pretrained, head: make(dls, arch, False, head))
    bad = runs.run_once(dls, lambda: [Second()], arch='test_resnet', epochs=2, pretrained=True)
    good = runs.run_once(dls, arch='test_resnet', epochs=2, pretrained=True)
    assert bad['error'].startswith('diverged') and bad['curve'].count(';')==1
    assert good['error']=='' and good['curve'].count(';')==2


@pytest.mark.parametrize('method, text', [
    (MixUp(1.0), 'give it as text'),
    (fastai_featreg.all.FeatureMining(weight=lambda pct: pct), 'cannot be written'),
    (3, 'neither text nor a callback'),
])
def test_callbacks_that_cannot_be_made_again(tmp_path, method, text):
    with pytest.raises(ValueError, match=text): module.compare(methods=[method], out=tmp_path)
    assert not (tmp_path/'results.csv').exists()


def test_callbacks_and_classes_in_a_list(tmp_path):
    small = dict(arch='test_resnet', size=64, bs=8, n_train=16, n_valid=10, epochs=1, seeds=1, say=lambda s: None)
    df = module.compare(methods=[MixUp, fastai_featreg.all.FeatureMining(2), 'MixUp(1.0)'], out=tmp_path, **small)
    assert df.method.tolist()==['plain', 'MixUp()', 'FeatureMining(layers=2)', 'MixUp(alpha=1.0)']
    assert (df.error=='').all()
    used = fastai_featreg.all.SelectScale(top_rate=0.2)
    used.acts_on = {'0.1': 1.} # its repr says where it has acted
    assert plan.as_text([used])=='SelectScale(top_rate=0.2)'


def test_part_of_a_folder(tmp_path, capsys):
    data = make_folder(tmp_path/'photos', cat=15, dog=15)
    args = ['compare', str(data), *tiny[:6], '--methods', 'mixup', '--epochs', '1', '--seeds', '1', '--no-pretrained',
            '--out', str(tmp_path/'out')]
    assert main([*args, '--n-train', '10', '--n-valid', '4'])==0
    assert rows(tmp_path/'out')[['n_train', 'n_valid']].drop_duplicates().values.tolist()==[['10', '4']]
    capsys.readouterr()
    one_sentence(capsys, main([*args, '--n-train', '100']), 'at most the 12 images of class cat, got 100')


def test_own_folder(tmp_path, capsys):
    data = make_folder(tmp_path/'photos', cat=12, dog=12)
    assert main(['compare', str(data), *tiny[:6], '--methods', 'mixup', '--epochs', '1', '--seeds', '1',
                 '--no-pretrained', '--fp16', '--out', str(tmp_path/'out')])==0
    df = rows(tmp_path/'out')
    assert df.data.tolist()==[str(data.resolve())]*2 and df.n_classes.tolist()==['2', '2']
    assert df['head'].tolist()==['linear']*2 and df.pretrained.tolist()==['False']*2
    assert torch.cuda.is_available() or 'float32' in capsys.readouterr().err
    assert df.method.tolist()==['plain', 'MixUp()']


@pytest.mark.parametrize('args, text', [
    (['--methods', 'feature_minin'], "did you mean 'feature_mining'"),
    (['--methods', 'FeatureMining(layer=2)'], 'its arguments are layers'),
    (['--methods', 'FeatureMining(mask="blob")'], 'mask'),
    (['--methods', 'mixup('], 'cannot read'),
    (['--methods', 'plain+mixup'], "'plain' is no callback"),
    (['--methods', "FeatureMining(**{'layers':1})"], 'behind **'),
    (['--methods', 'FeatureMining(layers=1,layers=2)'], 'twice'),
    (['--arch', 'resnt18'], "did you mean 'resnet18'"),
    (['--epochs', 0], 'epochs must be a whole number of at least 1'),
    (['--seeds', 0], 'seeds must be greater than 0'),
    (['--lr', -1], 'lr must be a number above 0'),
    (['--bs', 64], 'bs'),
    (['digits', '--data', 'cifar10'], 'given twice'),
    (['no_such_folder'], 'no_such_folder'),
])
def test_wrong_input(tmp_path, capsys, args, text):
    one_sentence(capsys, compare(tmp_path/'out', *args), text)
    assert not (tmp_path/'out'/'results.csv').exists()


@pytest.mark.parametrize('counts, text', [
    (dict(cat=4, dog=1), 'dog'),
    (dict(cat=4), 'one class'),
    (dict(), 'no images'),
])
def test_wrong_folder(tmp_path, capsys, counts, text):
    data = make_folder(tmp_path/'photos', **counts)
    data.mkdir(exist_ok=True)
    rc = main(['compare', str(data), '--no-pretrained', '--bs', '2', '--size', '64', '--out', str(tmp_path/'out')])
    one_sentence(capsys, rc, text)


def test_unreadable_image(tmp_path, capsys):
    data = make_folder(tmp_path/'photos', cat=4, dog=4)
    (data/'dog'/'2.png').write_bytes(b'not an image')
    rc = main(['compare', str(data), '--no-pretrained', '--bs', '2', '--size', '64', '--out', str(tmp_path/'out')])
    one_sentence(capsys, rc, '2.png')


def test_output_folder_is_checked_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(starting, 'load_data', lambda *a, **k: pytest.fail('data were loaded before the check'))
    (tmp_path/'file').write_text('mine')
    one_sentence(capsys, compare(tmp_path/'file'), 'cannot write to the output folder')
    assert (tmp_path/'file').read_text()=='mine'


@pytest.mark.parametrize('text', ['method,seed\nplain,0\n', '\x00\x01', 'none'])
def test_damaged_results_are_left_alone(tmp_path, capsys, finished, text):
    whole = (finished/'results.csv').read_text()
    damaged = whole.replace('digits', 'digits,', 1).replace(',0.', ',zero.', 2) if text=='none' else text
    (tmp_path/'results.csv').write_text(damaged)
    one_sentence(capsys, compare(tmp_path), 'results.csv')
    assert (tmp_path/'results.csv').read_text()==damaged


def test_no_weights(tmp_path, capsys, monkeypatch):
    def offline(*args, **kwargs): raise URLError('Name or service not known')
    monkeypatch.setattr(archs, 'vision_learner', offline)
    one_sentence(capsys, compare(tmp_path, '--pretrained'), '--no-pretrained')


def test_no_download(tmp_path, capsys, monkeypatch):
    def offline(*args, **kwargs): raise URLError('Name or service not known')
    monkeypatch.setattr(starting, 'load_data', offline)
    one_sentence(capsys, compare(tmp_path, 'cifar10'), "download 'cifar10'")


def test_bad_arguments_and_help(capsys):
    assert main(['compare', '--epochs', 'many'])==2
    assert main(['compare', '--help'])==0
    assert main([])==2
    capsys.readouterr()
    assert main(['methods'])==0
    out = capsys.readouterr().out
    assert 'feature_mining' in out and 'FeatureMining(layers=1' in out and 'mixup' in out and 'http' not in out


def test_where_the_maps_look_is_a_column_where_boxes_are_known(tmp_path):
    small = dict(arch='test_resnet', size=64, bs=8, n_train=16, n_valid=10, epochs=1, seeds=1, pretrained=False,
                 say=lambda s: None)
    digits = module.compare(methods='mixup', out=tmp_path/'a', **small)
    assert digits[looks].notna().all(axis=None) and digits.energy_inside.between(0, 1).all()
    photos = module.compare(make_folder(tmp_path/'photos', cat=15, dog=15), methods='mixup', out=tmp_path/'b',
                            **(small | dict(n_valid=4)))
    assert photos[looks].isna().all(axis=None)
    assert ('pointing' in report.summary_table(report.summarise(digits))
            and 'pointing' not in report.summary_table(report.summarise(photos)))
    path = tmp_path/'a'/'results.csv'
    # as files were before
    pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=looks).to_csv(path, index=False)
    assert read_results(path)[looks].isna().all(axis=None)
    again = module.compare(methods='mixup', out=tmp_path/'a', **small)
    assert len(again)==2 and again[looks].isna().all(axis=None), 'runs that are there are not repeated'


def test_a_teacher_from_a_file(tmp_path, capsys):
    "Methods that distil are told their teacher once; without one `all` leaves them out"
    small = dict(arch='test_resnet', size=64, bs=8, n_train=16, n_valid=10, epochs=1, seeds=1, pretrained=False,
                 say=lambda s: None)
    learn = archs.make_learner(fastai_featreg.all.digits_dls(n_train=16, n_valid=10, bs=8), 'test_resnet', head='gap')
    learn.export(tmp_path/'teacher.pkl')
    df = module.compare(methods='ccm, KnowledgeDistillation(beta=0.9)', teacher=tmp_path/'teacher.pkl',
                        out=tmp_path/'a', **small)
    file = tmp_path/'teacher.pkl'
    told = lambda: repr(f'{file}#{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}')
    expected = lambda: [f'CCM(teacher={told()})', f'KnowledgeDistillation(teacher={told()}, beta=0.9)']
    assert (df.error=='').all() and df.method.tolist()[1:]==expected()
    with torch.no_grad(): next(learn.model.parameters()).mul_(2)
    learn.export(file) # another teacher in the same file: nothing of the first one counts for it
    again = module.compare(methods='ccm, KnowledgeDistillation(beta=0.9)', teacher=file, out=tmp_path/'a', **small)
    assert again.method.tolist()[1:]==expected() and set(again.method)&set(df.method)=={'plain'}
    labels = lambda **kwargs: {label.partition('(')[0] for label,_ in parse_methods('all', **kwargs)}
    assert (labels(teacher=tmp_path/'teacher.pkl') - labels()
            =={'KnowledgeDistillation', 'AttentionTransfer', 'CCM', 'CATKD'})
    one_sentence(capsys, main(['compare', '--methods', 'ccm', '--out', str(tmp_path/'b')]), 'needs a teacher')
    one_sentence(capsys, main(['compare', '--methods', 'ccm', '--teacher', str(tmp_path/'none.pkl'),
                               '--out', str(tmp_path/'b')]), 'there is no file')


def test_a_refused_command_leaves_no_folder(tmp_path):
    out = tmp_path/'new'
    assert compare(out, '--arch', 'resnt18')!=0
    assert not out.exists()


def row_of(out, methods, *args):
    "The only row of a method that was compared over one seed"
    assert compare(out, '--seeds', 1, '--methods', methods, *args)==0
    df = rows(out)
    return df[df.method!='plain'].iloc[-1]


def test_what_a_method_did_is_in_its_row(tmp_path, capsys):
    row = row_of(tmp_path, 'FeatureMining(layers=2)+mixup', '--epochs', 2)
    assert (row.acted, row.term_share, row.start_epoch, row.note)==('2/2', '1', '0', '')
    plain = rows(tmp_path).iloc[0]
    assert (plain.acted, plain.term_share, plain.start_epoch, plain.note)==('', '', '', '')
    row = row_of(tmp_path, 'CAMLoss(start=1)', '--epochs', 2)
    assert (row.term_share, row.start_epoch)==('0.5', '1')
    row = row_of(tmp_path, 'CAMLoss(c=0.)+FeatureMining()', '--epochs', 2)
    assert (row.acted, row.term_share, row.start_epoch)==('1/1+1/1', '0+1', '-+0')
    assert row.note.startswith('CAMLoss')
    capsys.readouterr()


def test_a_note_of_a_callback_reaches_row_and_report(tmp_path, capsys):
    row = row_of(tmp_path, 'mv_fea_aug', '--size', 32)
    assert 'the map has 1 position' in row.note # `idle` is '' on the class and set on the callback
    assert f'MVFeaAug(): {row.note}' in capsys.readouterr().out.splitlines()
    assert row['head']=='linear', "MVFeaAug is compared with the papers' head"


def test_best_epoch_and_training_accuracy(tmp_path):
    row = row_of(tmp_path, 'mixup', '--epochs', 3)
    curve = [float(v) for v in row.curve.split(';')]
    assert row.best_accuracy==pytest.approx(max(curve), abs=1e-5)
    assert row.best_epoch==1 + int(np.argmax(curve))
    train = [float(v) for v in row.train_curve.split(';')]
    assert len(train)==3 and all(0<=v<=1 for v in train)
    assert np.isnan(row.top5), 'ten classes have no top-5'


def test_top5_with_more_than_ten_classes(tmp_path):
    data = make_folder(tmp_path/'data', **{f'c{i:02d}': 12 for i in range(12)})
    args = ['--seeds', 1, '--methods', 'mixup', '--no-pretrained', '--n-train', 96, '--n-valid', 24]
    assert main(['compare', str(data), *tiny[:4], '--epochs', '1', '--out', str(tmp_path/'out'), *map(str, args)])==0
    df = rows(tmp_path/'out')
    assert (df.top5>=df.accuracy).all() and df.top5.between(0, 1).all()


def test_best_of_a_curve_by_hand():
    assert runs.best_of([.2, .5, .5, .4])==dict(best_accuracy=.5, best_epoch=2.)
    assert runs.best_of([float('nan'), .1])==dict(best_accuracy=.1, best_epoch=2.)
    assert np.isnan(runs.best_of([])['best_epoch'])


def test_training_accuracy_counts_every_image():
    dls = load_data('digits', size=32, bs=16, n_train=48, n_valid=16)
    learn = archs.make_learner(dls, 'resnet8', head='linear').add_cbs([runs.TrainAccuracy(), Witness()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    right = np.array(learn.witness.right).reshape(2, -1)
    assert learn.train_accuracy.values==pytest.approx(right.sum(1)/48)


class Witness(Callback):
    "Right predictions of each training batch"
    run_valid = False
    def __init__(self): self.right = []
    def after_pred(self): self.right.append(int((self.pred.argmax(1)==self.y).sum()))


def test_unknown_recipe_is_one_sentence(tmp_path, capsys):
    one_sentence(capsys, compare(tmp_path, '--methods', 'FeatureMining.cifar()'), "FeatureMining has no recipe 'cifar'")


@pytest.mark.parametrize('given, said', [
    (dict(seeds='3'), "seeds must be a number, got '3'"), (dict(seeds=2.5), 'seeds must be a whole number, got 2.5'),
    (dict(epochs=1.5), 'epochs must be a whole number'),
    (dict(size=True), 'size must be a whole number of at least 1, got True'),
    (dict(lr='a'), "lr must be a number above 0, got 'a'")])
def test_budgets_that_are_no_numbers(tmp_path, given, said):
    with pytest.raises(ValueError, match=said): module.compare('digits', out=tmp_path, **given)

def test_a_picture_of_a_table_with_a_row_twice(tmp_path):
    df = read_results(Path(__file__).parent.parent/'nbs/results/digits/results.csv')
    df = df[df['arch']==df['arch'].iloc[0]]
    report.plt.close(report.plot_comparison(pd.concat([df, df.iloc[:1]])))

def test_a_truncated_network_has_its_source_in_the_method():
    assert runs.method_id(list, 'resnet18')!=runs.method_id(list, 'resnet18-1')
