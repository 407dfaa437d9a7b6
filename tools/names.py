"""Write `fastai_featreg/all.py`: what a notebook needs, by name, so that editors see it too

    python tools/names.py

Of a module with a method: its callbacks and metrics, and what shows (`show_`, `plot_`) or gets (`get_`). Of the
others: `ground` and `rooms`.
"""
import ast
from pathlib import Path

package = Path(__file__).parent.parent/'fastai_featreg'

ground = dict(
    anatomy='get_anatomy', parting='body_head', core='FeatureCallback register_method', fits='LossCallback',
    taps='feature_maps to_torch', look='get_cams show_cams',
    over_epochs='RecordMaps show_maps_over_epochs', localise='CamMetric localisation',
    boxes='get_boxes show_boxes', data='boxed_folder_dls cifar_dls digits_dls folder_dls load_data',
    files='open_image', folders='read_layout', archs='linear_head', nets='Truncated',
    noise='add_noise changed_labels clean_labels', memorised='Memorised tell_truth')
rooms = {
    'methods.drop_layers': 'find_drop_layers show_drop_layers', 'methods.drop_effects': 'show_drops',
    'methods.view_head': 'remove_views', 'methods.fixed_mask': 'FixedMask', 'comparison.compare': 'compare',
    'comparison.report': 'plot_comparison plot_sweep', 'comparison.sweep': 'sweep',
    'comparison.few': 'compare_sizes plot_sizes',
    'comparison.curves': 'plot_errors', 'comparison.noise_curves': 'plot_memorised',
    'comparison.rows': 'read_results', 'comparison.protocols': 'find_protocol protocols',
    'comparison.recipes': 'train_as', 'comparison.augment': 'augmented'}


def is_registered(node: ast.stmt) -> bool:
    "Is it a class that a method's module registers?"
    return isinstance(node, ast.ClassDef) and any('register_method' in ast.unparse(d) for d in node.decorator_list)

def is_metric(node: ast.stmt) -> bool:
    "Is it a metric of fastai's kind?"
    return isinstance(node, ast.ClassDef) and any(ast.unparse(b)=='Metric' for b in node.bases)

def names_of(tree: ast.Module) -> list:
    "Names that a module with a method gives; none of a module without"
    callbacks = [n.name for n in tree.body if is_registered(n)]
    metrics = [n.name for n in tree.body if is_metric(n)]
    functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    looks = [n for n in functions if n.startswith(('show_', 'plot_', 'get_'))]
    return list(dict.fromkeys(callbacks + metrics + looks)) if callbacks else []

def line(module: str, names: list) -> str:
    "One import, in as many lines as it needs"
    text,lines = f'from fastai_featreg.{module} import ',[]
    for i,name in enumerate(names):
        part = name + ', '*(i<len(names) - 1)
        if len(text + part)>118:
            lines.append(text.rstrip() + ' \\')
            text = '    '
        text += part
    return '\n'.join([*lines, text])

def main():
    trees = {f'methods.{p.stem}': ast.parse(p.read_text()) for p in sorted(package.glob('methods/[a-z]*.py'))}
    methods = {m: names for m,tree in trees.items() if (names := names_of(tree))}
    given = {m: names.split() for m,names in (ground | rooms).items()} | methods
    doc = '"What a notebook needs. Functions of tensors, nets and machinery are imported from their modules."'
    imports = '\n'.join(line(m, names) for m,names in given.items())
    end = "__all__ = [name for name in globals() if not name.startswith('_')]"
    (package/'all.py').write_text(f'{doc}\n# Written by tools/names.py\n{imports}\n\n{end}\n')

if __name__=='__main__': main()
