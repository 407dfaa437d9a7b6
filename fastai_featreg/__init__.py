"Published training-time regularisers for image classifiers, as fastai callbacks"
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

# modules that stood here before there were rooms; an exported learner names its classes by the module they were in
moved = dict(
    methods='''cam_loss distill distill_losses drop drop_effects drop_functions drop_layers feature_mining guide
               multiview taught teachers view_head views'''.split(),
    comparison='command compare fingerprints plan report rows runs'.split())
rooms = {f'{__name__}.{name}': f'{__name__}.{room}.{name}' for room,names in moved.items() for name in names}


def stands_here(fullname: str) -> bool:
    "Is there a module of this very name in the package's own folder?"
    name = fullname.rpartition('.')[2]
    return any((Path(__file__).parent/o).is_file() for o in (f'{name}.py', f'{name}/__init__.py'))


class Moved(MetaPathFinder, Loader):
    "Finds a module by the name that it had: both names are one module"
    def find_spec(self, fullname, path=None, target=None):
        "For old names only, and for none that has a file"
        return ModuleSpec(fullname, self) if fullname in rooms and not stands_here(fullname) else None

    def get_code(self, fullname):
        "What `python -m` runs: the module where it is now, whose relative imports count from there"
        run = f"import runpy; runpy.run_module('{rooms[fullname]}', run_name='__main__', alter_sys=True)"
        return compile(run, fullname, 'exec')

    def create_module(self, spec):
        "Python makes an empty one, and takes what `exec_module` leaves in its place"
        return None

    def exec_module(self, module):
        sys.modules[module.__name__] = import_module(rooms[module.__name__])


if not any(type(finder).__name__=='Moved' and finder.__module__==__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, Moved()) # first: no other finder shall find another copy under an old name
