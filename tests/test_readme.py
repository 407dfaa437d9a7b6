"""The README's snippets, pasted one by one, run in a fresh process; what its table and the pages of results show is
what the CSV files say"""
import os, re, subprocess, sys
from pathlib import Path
import pytest, torch
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
from torchvision.models import ResNet18_Weights, resnet18

root = Path(__file__).parent.parent
readme = (root/'README.md').read_text()


def test_snippets_run(tmp_path):
    snippets = re.findall(r'```python\n(.*?)```', readme, re.S)
    assert len(snippets)>=3
    (tmp_path/'pasted.py').write_text('\n'.join(snippets))
    # in the place of the download: torch looks there first
    folder = tmp_path/'torch'/'hub'/'checkpoints'
    folder.mkdir(parents=True)
    torch.save(resnet18().state_dict(), folder/Path(ResNet18_Weights.DEFAULT.url).name)
    done = subprocess.run([sys.executable, '-W', 'ignore', 'pasted.py'], cwd=tmp_path, capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='Agg', TORCH_HOME=str(tmp_path/'torch')))
    assert done.returncode==0, done.stderr
    assert 'fm_loss' in done.stdout


def test_no_output_is_an_objects_name(): assert '<IPython' not in readme and ' object at 0x' not in readme


def test_every_local_link_and_picture_exists():
    links = [l for l in re.findall(r'\]\(([^)#]+)\)', readme) if '://' not in l]
    assert links
    for link in links: assert (root/link).exists(), link


def markdown_of(cell) -> list:
    "Markdown among the outputs of a cell, with the spaces of the README"
    return [''.join(o['data']['text/markdown'])
            for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {})]


@pytest.mark.parametrize('name', ['index', 'results/cards', 'results/cost'])
def test_stored_tables_are_those_of_the_files(name, monkeypatch):
    folder = (root/f'nbs/{name}.ipynb').parent
    monkeypatch.chdir(folder)
    stored = read_nb(root/f'nbs/{name}.ipynb')
    before = [markdown_of(c) for c in stored.cells]
    cells = [c for c in stored.cells if c.cell_type=='code' and 'eval: false' not in c.source]
    shell = CaptureShell(folder)
    for c in cells:
        shell.cell(c)
        assert not shell.exc, shell.exc
    assert any(before)
    assert [markdown_of(c) for c in stored.cells]==before


def test_sets_are_named_for_their_head(monkeypatch):
    "The name of a set of runs says BatchNorm exactly where the head has one"
    monkeypatch.syspath_prepend(str(root/'nbs/results'))
    import evidence
    for name,folder in evidence.sets.items():
        assert set(evidence.runs(folder)['head'])=={'gap' if evidence.bn in name else 'linear'}, name
