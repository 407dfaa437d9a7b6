"Tutorials: what is kept of them, which are skipped where, and (slow) that they run"
import ast, sys
from pathlib import Path
import pytest
from fastcore.nbio import read_nb

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
import badges, tutorials

files = tutorials.tutorials()
of_each = pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
needy = [f for f in files if f.stem in tutorials.data]


@of_each
def test_outputs_are_kept_and_none_is_an_error(file):
    cells = [c for c in read_nb(file).cells if c.cell_type=='code']
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type=='error']
    assert not cells or any('image/png' in o.get('data', {}) for o in outputs), 'no picture: run it with --save'
    telling = [c for c in cells if tells(c.source)]
    assert not telling or telling[-1].outputs, 'the last cell that tells has no output: run it with --save'


def tells(source):
    "Does a cell print or show what its last line is? A shell command does, and is no Python"
    try: lines = ast.parse(source).body
    except SyntaxError: return True
    return bool(lines) and isinstance(lines[-1], ast.Expr)


@pytest.mark.parametrize('source, is_so', [
    ('a = 1\na', True), ('print(a)', True), ('plot(a);', True), ('!ls', True), ('a = 1', False), ('', False),
    ('with b: a', False), ('from a import b', False)])
def test_which_cells_tell(source, is_so): assert tells(source)==is_so


@of_each
def test_outputs_name_no_folder_of_this_machine(file):
    outputs = [o for c in read_nb(file).cells if c.cell_type=='code' for o in c.outputs]
    texts = [''.join(o.get('text', '')) for o in outputs]
    texts += [''.join(v) for o in outputs for kind,v in o.get('data', {}).items() if kind.startswith('text/')]
    for folder in (str(Path.home()), '/root/', '/tmp/'):
        assert not [t for t in texts if folder in t], f'{folder}: run it with --save'


@of_each
def test_the_badge_is_that_of_settings(file):
    source = read_nb(file).cells[0].source
    page = file.relative_to(badges.root).as_posix()
    assert badges.with_badge(source, badges.badge(badges.repository(), page))==source, 'run python tools/badges.py'


def test_a_badge_comes_goes_and_comes_once():
    line = badges.badge('https://github.com/a/b', 'nbs/tutorials/01.ipynb')
    assert 'colab.research.google.com/github/a/b/blob/main/nbs/tutorials/01.ipynb)' in line
    assert '`%pip install git+https://github.com/a/b`' in line
    once = badges.with_badge('# A page', line)
    assert once.startswith('# A page\n\n[![Open in Colab]') and badges.with_badge(once, line)==once
    assert badges.with_badge(once, '')=='# A page'
    # Colab opens pages of GitHub only
    assert badges.badge('', 'x')==badges.badge('https://example.com/a/b', 'x')==''


@pytest.mark.parametrize('file', needy, ids=lambda f: f.stem)
def test_what_a_tutorial_needs_is_named_in_it(file):
    source = '\n'.join(c.source for c in read_nb(file).cells if c.cell_type=='code')
    # fastai's own name of a set stands for its folder
    source = source.replace('URLs.IMAGENETTE_160', 'imagenette2-160')
    for name in tutorials.data[file.stem] + tutorials.weights.get(file.stem, []): assert name in source, name


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tutorials, 'fastai_path', lambda folder: tmp_path)
    monkeypatch.setattr(tutorials, 'has_weights', lambda arch: False)
    monkeypatch.setattr(tutorials, 'data', {'a': ['flowers']})
    monkeypatch.setattr(tutorials, 'weights', {'a': ['some_net']})
    assert tutorials.missing('a')==['data flowers', 'weights of some_net'] and tutorials.missing('b')==[]
    (tmp_path/'flowers').mkdir()
    monkeypatch.setattr(tutorials, 'has_weights', lambda arch: True)
    assert tutorials.missing('a')==[]


@pytest.mark.slow
@of_each
def test_a_tutorial_runs(file):
    if lacks := tutorials.missing(file.stem): pytest.skip(f"{' and '.join(lacks)} not here")
    assert tutorials.run(file)[0]


def test_outputs_are_kept_as_another_machine_would_write_them():
    bar = '█ |-----| 0.00% [0/1 00:00<?] |█████| 100.00% [1/1 00:00<00:00]\n'
    told = f'/here/data/flowers: 5 classes\r\n{bar}{sys.prefix}/lib/a.py: | █\n{Path.home()}/.fastai/data/cats\n'
    assert tutorials.as_read(told, '/here/data')==(
        '~/.fastai/data/flowers: 5 classes\n~/venv/lib/a.py: | █\n~/.fastai/data/cats\n')
