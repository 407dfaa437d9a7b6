"Whatever is typed, the command says what is wrong: exit code 2, one line, at most about 800 characters, no traceback"
import random, subprocess, sys
import pytest, torch
from fastai_featreg.comparison import start, training
from fastai_featreg.all import *
from fastai_featreg.archs import find_arch
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.comparison.rows import results_file
from tiny import tiny_teacher

for name in [o for o in globals() if o.startswith('test')]: del globals()[name] # fastcore's helpers are no tests
module = sys.modules['fastai_featreg.comparison.compare']


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def no(*args, **kwargs): raise AssertionError('this was about to train')
    monkeypatch.setattr(training, 'train_all', no)
    monkeypatch.setattr(module, 'check_methods', no)

def told(capsys, *args):
    "The one line about `args`"
    rc = main(['compare', *args])
    out,err = capsys.readouterr()
    assert rc==2 and err.startswith('featreg: ') and err.count('\n')==1, (args, rc, err)
    assert 'Traceback' not in out + err
    assert err.strip().isprintable() and len(err)<=810, err
    return err

def refused(text, **kwargs):
    with pytest.raises(ValueError) as e: parse_methods(text, **kwargs)
    assert str(e.value)
    return e


# ---- by name ----

long = {'plus': '+'.join(['mixup']*20_000), 'plus of few': '+'.join(['mixup', 'cutmix']*300),
        'minus': 'mixup(' + '-'*4000 + '1)',
        'more minus': 'mixup(' + '-1'*50_000 + ')', 'plus inside': 'mixup(' + '+'*4900 + '1)',
        'sum inside': 'mixup(' + '1+'*2000 + '1)',
        'brackets': 'mixup(' + '['*2000 + ']'*2000 + ')', 'open': '('*4900,
        'tuples': 'mixup(' + '('*90 + '1,' + '),'*90 + ')',
        'dicts': 'mixup(' + '{1:'*80 + '1' + '}'*80 + ')', 'calls': 'a('*90 + ')'*90, 'dots': 'a' + '.b'*2000,
        'name': 'x'*4999,
        'not': 'mixup(' + 'not '*1000 + '1)', 'digits': 'mixup(' + '9'*4900 + ')',
        'string': 'mixup("' + 'x'*4900 + '")',
        'million': 'mixup,'*10**6, 'lambda': 'mixup(' + 'lambda:'*600 + '1)', 'await': '*'*4000}

values = ['[]', '[[]]', '[[1],[2]]', '{}', '()', "b'x'", "'x'", "''", 'None', '...', '1j', 'nan', 'inf', '-inf',
          '1e999', '-1e999',
          '1e999-1e999', '10**9', '10**400', '0x' + 'f'*3000, '-1', '--1', '~1', 'not 1', '1 if 1 else 2', 'lambda: 1',
          '[i for i in 3]',
          "f'{1}'", '*[1]', '**{}', '**{"alpha": 1}', 'x', 'x.y', 'x[0]', 'print(1)', "__import__('os')", '{[]: 1}',
          "'\\ud800'",
          "'\\x00'", "b'\\x00'", '"\\q"', 'alpha=[]', 'alpha=1,alpha=2', 'beta=1', "alpha='0.4'", 'alpha=None',
          'alpha={}', 'alpha=-1',
          'alpha=1e999', 'alpha=(1,2)', 'alpha=b"1"', 'alpha=[[1]]', '1,2', '1,2,3', 'alpha:=1', '1;2', '#', '\\']
callbacks = ['mixup', 'cutmix', 'feature_mining', 'SelectScale', 'SelectScale.cifar', 'cam_loss', 'negative_cam',
             'drop_block', 'mv_fea_aug',
             'ccm', 'KnowledgeDistillation']

@pytest.mark.parametrize('text', long.values(), ids=list(long))
def test_long_and_deep_lists(capsys, text):
    refused(text)
    told(capsys, '--methods', text)

def valid(text):
    try: parse_methods(text)
    except ValueError: return False
    return True

@pytest.mark.parametrize('callback', callbacks)
def test_arguments_of_all_kinds(capsys, callback):
    "Every value in every callback: either a method, or one line"
    refused_ones = 0
    for v in values:
        text = f'{callback}({v})'
        if valid(text): continue
        refused_ones += 1
        told(capsys, '--methods', text)
    assert refused_ones>=40

@pytest.mark.parametrize('alpha', ['[]', '{}', "''", 'None', "b''", '[[]]', '-1', '-0.5', "'x'"])
def test_mixup_of_what_is_no_number(capsys, alpha):
    assert 'MixUp(alpha=' in told(capsys, '--methods', f'mixup(alpha={alpha})')

alphabet = list("()[]{}+-*/.,:;='\"#\\@!%&|~^<>? \n\t\x00\x1b_0199ae")
alphabet += ['mixup', 'plain', 'all', 'layers=', 'ccm', 'SelectScale', 'é', '漢', '\u202e', '1e9', 'None', '**', '--']

@pytest.mark.parametrize('seed', range(8))
def test_texts_drawn_at_random(capsys, seed):
    draw,n_refused = random.Random(seed),0
    for _ in range(60):
        text = ''.join(draw.choice(alphabet) for _ in range(draw.choice([1, 2, 3, 5, 8, 13, 40, 300])))
        if text.startswith('-'): text = 'x' + text
        if valid(text): continue
        n_refused += 1
        told(capsys, '--methods', text)
    assert n_refused>30


numbers = ['', ' ', 'x', '10**9', '1e3', 'nan', 'inf', '-inf', '0', '-1', '-0', '1e999', '0x10', '1_', '9'*30,
           '9'*5000, '٣٣٣٣٣٣٣٣٣', "b'1'", '[1]', '\x00', '1.5.1', '½', '1\n2']

@pytest.mark.parametrize('option', ['--seeds', '--size', '--epochs', '--bs', '--lr', '--n-train', '--n-valid'])
def test_numbers(capsys, option):
    for v in numbers:
        large = v in ('9'*30, '٣٣٣٣٣٣٣٣٣')
        if large and option in ('--n-train', '--bs', '--n-valid'): continue # more images than there are: told later
        if option=='--lr' and (large or v=='1e3'): continue # a number
        told(capsys, f'{option}={v}')

texts = ['', ' ', '\t', 'x'*10_000, 'no such thing', '\x00', 'a\x00b', '~nobody-is-called-so/x',
         '~nobody-is-called-so', '\n', 'é'*300, '\u202ex', '/dev/null/x', 'x/'*2000, '\x1b[31mred']

needed = {'--teacher': ['--methods', 'ccm'], '--teacher-arch': ['--methods', 'ccm', '--teacher', __file__]}

@pytest.mark.parametrize('option', ['--data', '--arch', '--methods', '--head', '--teacher', '--teacher-arch', 'path'])
def test_texts(capsys, option, tmp_path):
    for v in texts:
        own = [v] if option=='path' else [f'{option}={v}']
        told(capsys, '--out', str(tmp_path/'out'), *needed.get(option, []), *own)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('out',
                         ['', ' ', '\x00', '~nobody-is-called-so/x', '/dev/null/x', '/proc/x', 'x'*10_000, __file__])
def test_output_folders(capsys, out):
    told(capsys, f'--out={out}')

@pytest.mark.parametrize('args',
                         [['compare', '--nothing'], ['compare', 'a', 'b'], ['nothing'], [],
                          ['compare', '--head', 'x'*5000],
                                  ['compare', '--epochs', 'x\ny'], ['compare', '--lr'], ['methods', 'x'], ['compare',
                                                                                                           '--seeds',
                                                                                                           '10**9']])
def test_what_the_parser_refuses(capsys, args):
    assert main(args)==2
    err = capsys.readouterr().err
    assert err.startswith('featreg: ') and err.count('\n')==1 and len(err)<=810 and '--help' in err

def test_names_of_networks():
    for name in ('', 'x'*10_000, 'resnet18' + '-1'*5000, 'resnet18-' + '9'*5000, '-1', '-', 'resnet18--1',
                 'resnet18-²', '\x00'):
        with pytest.raises(ValueError) as e: find_arch(name)
        assert len(str(e.value))<500


# ---- the right reasons ----

def test_home_is_found(tmp_path, monkeypatch, capsys):
    "`~` in data, out and teacher"
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(tiny_teacher(), tmp_path/'net.pt')
    label = parse_methods('ccm', teacher='~/net.pt')[1][0]
    assert label.startswith("CCM(teacher='~/net.pt#") and len(label)==len("CCM(teacher='~/net.pt#12345678')")
    assert parse_methods("CCM(teacher='~/net.pt')")[1][0]==label
    (tmp_path/'photos').mkdir()
    assert f'{tmp_path}/photos' in told(capsys, '~/photos', '--out', '~/out')
    assert f'{tmp_path}/photos' in told(capsys, '--data', '~/photos', '--out', '~/out')
    assert results_file('~/out')==tmp_path/'out'/'results.csv'

def test_reasons_of_the_system(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device', 'results.part')
    monkeypatch.setattr(module, 'opening', full)
    monkeypatch.setattr(module, 'check_methods', lambda *args: None)
    err = told(capsys, '--out', str(tmp_path), '--n-train', '64', '--n-valid', '32')
    assert err=="featreg: No space left on device: 'results.part'\n"
    assert 'Not a directory' in told(capsys, '--out', '/dev/null/x')
    err = told(capsys, '--methods', 'ccm', '--teacher', str(tmp_path), '--out', str(tmp_path))
    assert 'is a folder, not a file' in err

@pytest.mark.parametrize('arg', ['1e999', '-1e999', '1e999-1e999', 'alpha=1e999', '[1.,1e999]'])
def test_infinite_arguments(capsys, arg): assert 'mixup' in told(capsys, '--methods', f'mixup({arg})').lower()

def test_long_echoes_keep_their_remedy(capsys):
    err = told(capsys, '--arch', 'resnet18' + 'x'*5000)
    assert 'e.g.' in err and ' ... ' in err
    assert 'write e.g. feature_mining' in told(capsys, '--methods', '('*3000)

@pytest.mark.parametrize('e', [RecursionError('deep'), MemoryError(), OverflowError('large')])
def test_what_fills_the_memory(capsys, monkeypatch, e):
    def fails(*args, **kwargs): raise e
    monkeypatch.setattr(start, 'load_data', fails)
    assert type(e).__name__ in told(capsys, '--out', '/tmp/featreg_never')

def test_our_own_mistakes_keep_their_traceback(monkeypatch, tmp_path):
    def fails(*args, **kwargs): raise AttributeError('a mistake')
    monkeypatch.setattr(start, 'load_data', fails)
    with pytest.raises(AttributeError): main(['compare', '--out', str(tmp_path)])

def test_interruption_is_130(monkeypatch, tmp_path, capsys):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(start, 'load_data', stop)
    assert main(['compare', '--out', str(tmp_path)])==130
    assert capsys.readouterr().err=='\nInterrupted. No run had ended yet.\n'


# ---- at once ----

heavy = {'torch', 'torchvision', 'fastai', 'timm', 'pandas', 'numpy', 'matplotlib', 'scipy', 'sklearn'}

def fresh(*args):
    "A fresh Python that runs the command: exit code, output, errors, and which heavy libraries it has imported"
    code = f'import sys\nfrom fastai_featreg.cli import main\nsys.argv = {["featreg", *args]!r}\nrc = main()\n' \
           f'print("imported", *sorted({heavy!r} & set(sys.modules)))\nsys.exit(rc)'
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    out,_,imported = ended.stdout.rpartition('imported')
    return ended.returncode,out,ended.stderr,imported.split()

@pytest.mark.parametrize('args', [['--help'], ['compare', '--help'], ['methods', '--help'], ['--version'], ['methods']])
def test_nothing_heavy_is_imported_to_answer(args):
    rc,out,err,imported = fresh(*args)
    assert (rc, err, imported)==(0, '', []) and out

@pytest.mark.parametrize('args', [['compare', '--nothing'], ['compere'], [], ['compare', '--epochs', 'x'],
                                  ['compare', '--methods', ' '], ['compare', 'a', '--data', 'b'],
                                  ['compare', '--methods', 'feature_minin']])
def test_nothing_heavy_is_imported_to_refuse(args):
    rc,out,err,imported = fresh(*args)
    assert (rc, out, imported)==(2, '', []) and err.startswith('featreg: ') and err.count('\n')==1

def test_the_stored_list_of_methods_is_the_registry():
    "Another process prints the file; this one has the registry, in which other tests may have put methods"
    stored = fresh('methods')[1]
    code = 'from fastai_featreg.comparison.command import methods_text; print(methods_text(), end="")'
    made = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert made.stdout==stored and 'FeatureMining(' in stored

def test_the_version_names_the_libraries():
    out = fresh('--version')[1].strip()
    assert out.startswith('featreg ') and f'torch {torch.__version__.partition("+")[0]}' in out
