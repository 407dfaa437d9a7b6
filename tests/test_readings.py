"Readings and departures: what the docstrings say can be read by the page, and the arguments they name exist"
import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import fastai_featreg

sys.path.insert(0, str(Path(__file__).parents[1]/'nbs/results'))
evidence = pytest.importorskip('evidence')


def test_an_entry_by_hand():
    doc = """Summary.

    Reading (FM 3.3): one mask a layer,
        shared by the batch.
    Departure (CL Eq. 8): not divided; letter: `per_class=True`.
    Departures are explained elsewhere.
    """
    assert evidence.entries(doc)==[('Reading', 'FM 3.3', 'one mask a layer, shared by the batch.', ''),
                                   ('Departure', 'CL Eq. 8', 'not divided.', '`per_class=True`')]
    assert evidence.entries(None)==[]


def begun() -> int:
    "Entries in all docstrings of the generated modules, counted by their syntax trees"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    trees = [ast.parse(p.read_text()) for p in Path(fastai_featreg.__file__).parent.rglob('*.py')]
    docs = [ast.get_docstring(n) or '' for t in trees for n in ast.walk(t) if isinstance(n, kinds)]
    return sum(len(re.findall(r'(?m)^(?:Reading|Departure)\b', d)) for d in docs)


def test_every_entry_is_read_and_names_a_paper():
    df = evidence.readings()
    assert begun()==len(df)>50
    assert set(df.paper)==set(evidence.papers)
    assert (df.place!='').all() and (df.what.str.len()>20).all()


def arguments(o):
    "Names of the arguments of a function, or of a class and its bases"
    if not inspect.isclass(o): return set(inspect.signature(o).parameters)
    return {a for c in o.__mro__ if '__init__' in vars(c) for a in inspect.signature(c.__init__).parameters}


letters = [(e[3], o) for _,_,o in evidence.documented() for e in evidence.entries(evidence.own_doc(o)) if e[3]]

@pytest.mark.parametrize('letter,o', letters)
def test_the_letter_is_an_argument(letter, o):
    named = re.findall(r'`(\w+)=', letter)
    recipes = re.findall(r'`\w+\.(\w+)\(', letter)
    assert named or recipes, letter
    assert set(named)<=arguments(o), f'{o.__name__} has no {set(named) - arguments(o)}'
    assert all(r in getattr(o, 'recipes', ()) for r in recipes)
