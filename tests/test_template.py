"The template is a notebook that runs; a method made of it has its row, its card and its cells without a line elsewhere"
import importlib, sys
from pathlib import Path
import pytest
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
import backbones, overhead
from conformance import Row, check, entry_of
from fastai_featreg import core
from fastai_featreg.comparison.command import main
from fastai_featreg.methods import method_modules

root = Path(__file__).parent.parent
template = read_nb(root/'nbs/_template.ipynb')
name = 'feature_noise'


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(root/'nbs/results'))
    return importlib.import_module('evidence')


@pytest.fixture
def registered(tmp_path, monkeypatch):
    "The template's exported cells as a module, for one test"
    source = '\n\n'.join(c.source for c in template.cells if c.source.startswith('#| export'))
    (tmp_path/'template_method.py').write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module('template_method')
    forget()
    del sys.modules['template_method']


def forget():
    for table in (core.methods, core.cards): table.pop(name, None)


def test_it_runs_and_nbdev_leaves_it_alone(monkeypatch):
    monkeypatch.chdir(root/'nbs')
    shell = CaptureShell(root/'nbs')
    try:
        for c in template.cells:
            if c.cell_type!='code' or 'default_exp' in c.source: continue
            shell.cell(c)
            assert not shell.exc, shell.exc
        headings = [c.source.partition('\n')[0] for c in template.cells if c.source.startswith('## ')]
        assert len(headings)==8 and name in core.methods
    finally: forget()
    assert name not in method_modules()


def test_row_card_and_list_are_made(registered, evidence, capsys):
    row, = [l for l in evidence.methods_table().splitlines() if 'FeatureNoise' in l]
    assert row==('| `FeatureNoise()` | random factors on single activations of the last map (Nobody 2026) '
                 '| To see what a method needs to be one of this library | not measured |')
    card = evidence.card(name)
    for text in ('## FeatureNoise', '**What.** Each activation', '**When not.** For anything',
                 '| `std` | `0.5` | standard deviation', 'Not measured: no committed run has it.',
                 'networks (0): not measured', 'circumstances (0): not measured'):
        assert text in card, text
    assert evidence.shown_methods()[-1]==name
    assert main(['methods'])==0
    assert 'a random factor with mean one (a toy)' in capsys.readouterr().out


def test_benchmarks_find_it(registered):
    assert name in overhead.candidates('resnet20') and name in backbones.own_methods()
    assert backbones.run_cell(backbones.find_archs(['resnet20'])[0], name)['status']=='works'


some = ('fit', 'neutral: fit', 'acts at its events and at no other', 'accumulated batches equal a big one',
        'gradient checkpointing', 'exit: Ctrl-C')


def test_it_has_its_cells(registered):
    entry = entry_of(name)
    row = Row(name, name, entry, entry.make)
    for cell in some: assert check(row, cell)==('passed', ''), cell
    assert check(row, 'train_loss is the task loss')[0]=='not applicable'
    registered.FeatureNoise.change_map = lambda self, stage, fmap: fmap.mul(1)
    with pytest.raises(AssertionError, match='did not act'): check(row, 'fit')
