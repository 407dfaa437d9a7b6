"The methods of this library. Their modules are found, not listed: a notebook that registers a callback is enough."
import re
from importlib import import_module
from pathlib import Path

__all__ = ['method_modules', 'import_methods', 'own_methods']


def method_modules() -> list[str]:
    "Names of the modules that register a method, in the order of their notebooks; none is imported to know"
    texts = {p.stem: p.read_text(encoding='utf-8') for p in Path(__file__).parent.glob('*.py')}
    found = [name for name, text in texts.items() if re.search(r'^@register_method\(', text, re.MULTILINE)]
    notebook = {name: ''.join(re.findall(r'File to edit: (.*)', texts[name])) for name in found}
    return sorted(found, key=notebook.get)


def import_methods() -> list:
    "Modules that register a method, imported, in the order of their notebooks"
    return [import_module(f'{__name__}.{name}') for name in method_modules()]


def own_methods() -> dict:
    "Name -> class of every registered method of our kind, in the order of the notebooks; a user's come last"
    from ..core import LossCallback, methods
    places = {module.__name__: i for i, module in enumerate(import_methods())}
    ours = [(k, v) for k, v in methods.items() if issubclass(v, LossCallback)]
    return dict(sorted(ours, key=lambda kv: places.get(kv[1].__module__, len(places))))
