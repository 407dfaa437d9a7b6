"""What CONTRIBUTING.md asks of every module: types, docments and docstrings of what is public, short bodies, lines of
120 columns, methods that do not import each other, one grammar for sentences about wrong input"""
import ast
from pathlib import Path
import pytest
from grammar import Sentences, errors, in_grammar
from fastai_featreg.methods import method_modules, own_methods

folder = Path(__file__).parent.parent/'fastai_featreg'
looks_at_networks = ['probe', 'stages', 'exact', 'anatomy', 'channels', 'parting']
parts = ['checks', 'taps', 'heads', 'columns', 'guard', 'fits'] # of the core
looking = ['batches', 'look', 'pairs']
of_drops = ['drop_functions', 'drop_layers']
of_teachers = ['teachers', 'distill_losses', 'guide', 'taught']
of_views = ['views', 'view_head']
of_embeddings = ['embeddings']
# what methods may import
rooms = [*looks_at_networks, 'answers', *parts, 'core', 'maps', 'class_maps', *looking, 'branches', 'attention',
         *of_drops, *of_teachers, *of_views, *of_embeddings]
methods = method_modules()
modules = {p.stem: p.read_text() for p in sorted(folder.rglob('*.py')) if not p.stem.startswith('_')}


def exported(tree: ast.Module) -> set:
    "The names in `__all__`, where they are written out"
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0])=='__all__']
    return {c.value for o in lists if isinstance(o, ast.List) for c in o.elts}


def patched(f: ast.FunctionDef) -> bool: return any('patch' in ast.unparse(d) for d in f.decorator_list)


def public_functions(tree: ast.Module):
    "(name, function) of public functions, of methods of public classes, and of what is patched into classes"
    public = exported(tree)
    for node in tree.body:
        if (isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
                and (node.name in public or patched(node))):
            yield node.name,node
        if not isinstance(node, ast.ClassDef) or node.name not in public: continue
        for f in node.body:
            if (isinstance(f, ast.FunctionDef) and (f.name=='__init__' or not f.name.startswith('_'))
                    and f.name!='extra_repr'):
                yield f'{node.name}.{f.name}',f


def arguments(f: ast.FunctionDef) -> list:
    "All but `self` and `**kwargs`, which `delegates` explains"
    a = f.args
    return [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg])]
            if x.arg not in ('self', 'cls')]


@pytest.mark.parametrize('name', modules)
def test_public_arguments_are_typed_and_explained(name):
    lines,tree = modules[name].splitlines(),ast.parse(modules[name])
    wrong = []
    for label,f in public_functions(tree):
        if not ast.get_docstring(f) and not label.endswith('__init__'): wrong.append(f'{label} has no docstring')
        for x in arguments(f):
            if x.annotation is None: wrong.append(f'{label}: {x.arg} has no type')
            elif '#' not in lines[x.end_lineno-1][x.end_col_offset:]: wrong.append(f'{label}: {x.arg} is not explained')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('name', modules)
def test_bodies_are_short(name):
    for f in ast.walk(ast.parse(modules[name])):
        if isinstance(f, ast.FunctionDef): assert f.end_lineno - f.body[0].lineno < 40, f'{f.name} is too long'


@pytest.mark.parametrize('name', modules)
def test_lines_are_of_120_columns(name):
    "But for `__all__`: nbdev breaks the list at 120 and writes ten columns in front of it"
    of_nbdev = [n for n in ast.parse(modules[name]).body
                if isinstance(n, ast.Assign) and ast.unparse(n.targets[0])=='__all__']
    rows = {row for n in of_nbdev for row in range(n.lineno, n.end_lineno + 1)}
    wrong = [row for row,line in enumerate(modules[name].splitlines(), 1) if len(line)>120 and row not in rows]
    assert not wrong, wrong


@pytest.mark.parametrize('name', methods)
def test_methods_do_not_import_each_other(name):
    sources = {n.module.split('.')[-1] for n in ast.walk(ast.parse(modules[name])) if isinstance(n, ast.ImportFrom)
               and (n.level or n.module.startswith('fastai_featreg'))}
    assert sources <= set(rooms), sources


def test_methods_are_found_where_they_are_registered():
    found = {cls.__module__ for cls in own_methods().values()}
    assert {m for m in found if m.startswith('fastai_featreg.')}=={f'fastai_featreg.methods.{name}' for name in methods}
    # in the order of their notebooks, which is that of tables and of pairs
    numbers = [next((folder.parent/'nbs/methods').glob(f'[0-9]*_{name}.ipynb')).name for name in methods]
    assert numbers==sorted(numbers) and len(numbers)>=5


# reasons, of which a caller makes the sentence
reasons = {
    'files._as_bytes': 'open_image, check_files',
    'files._decode': 'open_image, check_files',
    'rows.padded': 'no_table',
    'rows.read_cells': 'no_table',
    'teachers.file_content': '_cannot_open',
}
# a sentence of another function is passed on, and ends as that does
passed_on = {'folders.read_layout', 'jobs.train_beside', 'guide.Guide._set_up_maps', 'teachers._known_arch',
             'teachers.open_teacher'}


def beside_the_grammar(sources: dict) -> list:
    "(function, line, text) of the errors that are not in the grammar"
    sentences = Sentences(sources)
    return [o for module in sources for o in sentences.of(module) if not in_grammar(o[2])]


def test_errors_are_sentences_of_one_grammar():
    found,allowed = beside_the_grammar(modules),reasons.keys() | passed_on
    assert {f for f,_,_ in found}==allowed, [o for o in found if o[0] not in allowed]
    for f,line,text in found:
        assert not text.endswith('.'), (f, line, text)
        assert f in reasons or text.endswith(('{}', '({})')), (f, line, text)


def test_no_error_is_overlooked():
    sentences = Sentences(modules)
    for name,tree in sentences.trees.items():
        assert {line for _,line,_ in sentences.of(name)}=={n.lineno for n in errors(tree)}, name


@pytest.mark.parametrize('raised', [
    "ValueError(f'n is {n}: give a whole number.')",
    "ValueError(f'n must be a whole number, got {n}.')",
    "ValueError('n must be a whole number')",
    "ValueError('n is wrong, ' + 'give another')",
    "ValueError('n is wrong; give another' if n else 'n is wrong')",
    "ValueError(why)",
    "ValueError(f'n is wrong; {remedy}')",
    "ValueError(told(n))",
    "TypeError()",
])
def test_what_is_no_such_sentence_is_seen(raised):
    source = f"""
def told(n): return 'n is wrong: give another'
class C:
    def f(self, n):
        what,remedy = 'it', 'give another.'
        why = 'the folder is empty: fill it'
        raise {raised}
"""
    assert beside_the_grammar({'some': source})
    assert not beside_the_grammar({'some': source.replace(raised, "ValueError(f'n must be 1, got {n}; give it')")})
