"Pages with photographs keep pictures of a trained network: a rerun without its weights is not to replace them"
import json
from pathlib import Path
import pytest

nbs = Path(__file__).parents[1]/'nbs'

def code_of(file): return [c for c in json.loads(file.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']

def has_photographs(file): return any('from photographs import' in ''.join(c['source']) for c in code_of(file))

pages = [f for f in sorted(nbs.glob('methods/*.ipynb')) if has_photographs(f)]


@pytest.mark.parametrize('file', pages, ids=lambda f: f.stem)
def test_pictures_are_of_a_trained_network(file):
    told = [''.join(o.get('data', {}).get('text/markdown', '')) for c in code_of(file) for o in c['outputs']]
    told = [t for t in told if t.startswith('Network: ')]
    assert told, 'no output says which weights the pictures are made with'
    assert not [t for t in told if '*untrained*' in t or 'with its ImageNet weights' not in t]


def test_these_are_the_words_of_the_module():
    "And pages are found; elsewhere none is"
    source = (nbs/'photographs.py').read_text(encoding='utf-8')
    assert all(f'{o}' in source for o in ("f'Network: ", '*untrained*', 'with its ImageNet weights')) and pages
    others = [f for folder in ('.', 'comparison', 'results', 'tutorials') for f in (nbs/folder).glob('*.ipynb')]
    assert not [f.name for f in others if has_photographs(f)], 'ask these pages too'
