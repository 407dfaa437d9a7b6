"""Which recipe fine-tunes best, plain training and each method with the recipe that suits it best?

    python benchmarks/fine_tuning.py flowers tune --out nbs/results/fine_tuning   # every recipe, for every method
    python benchmarks/fine_tuning.py flowers final --out nbs/results/fine_tuning  # the best of each, on other images

The images of a set are parted once: those that train, those on which recipes are chosen, those on which the chosen ones
are held beside each other. So no recipe is chosen on images that the verdict is about. Each recipe has a folder with a
`results.csv`; what has ended is not run again. All recipes have the same number of epochs, frozen ones included.
"""
import argparse, os, random, sys
from collections import Counter
from pathlib import Path
from fastai.data.external import fastai_path
from fastai.vision.all import get_image_files
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.plan import parse_methods

sys.path.append(str(Path(__file__).parents[1]/'nbs/results'))
from fine_tuned import all_runs,chosen,means,of_stage # the page chooses by the same rule

methods = ['FeatureMining()', 'FeatureMining(layers=2)', 'SelectScale()', 'CAMLoss(start=0)', 'CAMLoss()', 'MVFeaAug()',
           'DropBlock()', 'mixup']
epochs = 6 # those with a frozen body are among them
tuned = dict(sched='fine_tune', epochs=epochs - 1)
whole = dict(sched='one_cycle', epochs=epochs)
recipes = {
    'fine_tune': tuned | dict(lr=2e-3, lr_mult=100), # as fastai has it
    'fine_tune_mult10': tuned | dict(lr=2e-3, lr_mult=10),
    'fine_tune_mult1': tuned | dict(lr=2e-3, lr_mult=1),
    'fine_tune_fast': tuned | dict(lr=1e-2, lr_mult=10),
    'whole_mult10': whole | dict(lr=3e-3, lr_mult=10),
    'whole_slow': whole | dict(lr=1e-3),
    'whole': whole | dict(lr=3e-3),
    'whole_fast': whole | dict(lr=1e-2),
    'fine_tune_linear': tuned | dict(lr=2e-3, lr_mult=100, head='linear'),
    'fine_tune_mult10_linear': tuned | dict(lr=2e-3, lr_mult=10, head='linear'),
    'fine_tune_mult1_linear': tuned | dict(lr=2e-3, lr_mult=1, head='linear'),
    'whole_slow_linear': whole | dict(lr=1e-3, head='linear'),
    'whole_linear': whole | dict(lr=3e-3, head='linear'),
}
tune_seeds,final_seeds = 2,5


def parts(files: list, n_tune: int, n_test: int) -> dict:
    "Files of the three parts, disjoint; the same for the same names"
    files = sorted(files)
    random.Random(0).shuffle(files)
    return dict(test=files[:n_test], tune=files[n_test:n_test + n_tune], train=files[n_test + n_tune:])


def link_names(files: list, folder: Path) -> dict:
    """File -> class and name of its link: its own, or its path below the set where a class has two of a name

    Names enter the `data_id` of rows, so one that is the only one of its class stays as it is."""
    of_class = lambda f: f'{f.parent.name}/{f.name}'
    below = lambda f: f"{f.parent.name}/{f.relative_to(folder).as_posix().replace('/', '_')}"
    seen = Counter(map(of_class, files))
    names = {f: of_class(f) if seen[of_class(f)]==1 else below(f) for f in files}
    if twice := [o for o,n in Counter(names.values()).items() if n>1]:
        raise ValueError(f'files must have names of their own, got {twice[0]} twice; rename one')
    return names


def links(files: dict, folder: Path) -> dict:
    "Link -> file: a folder for each stage, of images that train, and of that stage's own for validation"
    names = link_names([f for part in files.values() for f in part], folder)
    sides = [('tune', 'train', 'train'), ('tune', 'valid', 'tune'), ('final', 'train', 'train'),
             ('final', 'valid', 'test')]
    return {Path(stage, side, names[f]): f for stage,side,part in sides for f in files[part]}


def lay(wanted: dict, root: Path):
    "Have these links below a folder, and no others; those that are right stay untouched, for a run may be reading them"
    for p in [o for o in root.rglob('*') if o.is_symlink()]:
        if wanted.get(p.relative_to(root))!=Path(os.readlink(p)): p.unlink()
    for link,f in wanted.items():
        (root/link).parent.mkdir(parents=True, exist_ok=True)
        if not (root/link).is_symlink(): os.symlink(f, root/link)
    for p in sorted(root.rglob('*'), reverse=True): # a folder of a class that has no images now
        if p.is_dir() and not any(p.iterdir()): p.rmdir()


def run(args: argparse.Namespace, name: str, labels: list, seeds: int):
    "One recipe, for some methods"
    where = args.work/args.set/args.stage
    out = args.out/f'{args.set}{args.per_class}'/args.stage/name
    settings = dict(head=args.head) | recipes[name]
    compare(where, args.arch, labels or 'plain', out=out, seeds=seeds, size=args.size, bs=args.bs,
            pretrained=not args.scratch, per_class=args.per_class, redraw=True, jobs=args.jobs, cost=False,
            precision='bf16', channels_last=True, **settings)


def add_common(p: argparse.ArgumentParser):
    "Arguments of this script and of that of the ideas"
    p.add_argument('set', help='folder of class folders in fastai\'s data folder, such as flowers')
    p.add_argument('--per-class', type=int, default=50)
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--scratch', action='store_true', help='no pretrained weights')
    p.add_argument('--head', default='default')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--work', type=Path, default=Path('fine_tuning'), help='folder of the links')
    p.add_argument('--out', type=Path, default=Path('.'))


def among(p: argparse.ArgumentParser, flag: str, text: str, known: list) -> list:
    "Names between commas, each of them known"
    names = text.split(',')
    if unknown := [o for o in names if o not in known]:
        p.error(f"{flag} must be among {', '.join(known)}, got {', '.join(map(repr, unknown))}")
    return names


def row_labels(p: argparse.ArgumentParser, text: str) -> list:
    "Methods between ';' by the names that rows have: 'mixup' is 'MixUp()' there"
    labels = ['plain', *(o for o in text.split(';') if o)]
    try: return [label for label,_ in parse_methods(','.join(labels))[1:]]
    except ValueError as e: p.error(f'--methods: {e}')


def lay_set(args: argparse.Namespace):
    "Links of the set that is asked for; a folder in another has a name without a slash from here on"
    folder = fastai_path('data')/args.set
    args.set = args.set.replace('/', '_')
    lay(links(parts(get_image_files(folder), 400, 800), folder), args.work/args.set)


def best_recipes(args: argparse.Namespace) -> dict:
    "Method -> recipe that its runs so far choose; shows their means"
    name = f'{args.set}{args.per_class}'
    tuned = of_stage(all_runs(args.out, name), name, 'tune') # of other sets there may be others' files beside
    if not len(tuned): return {}
    print(means(tuned).round(2).to_string())
    return chosen(tuned).to_dict()


def main():
    "One stage of one set"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(p)
    p.add_argument('stage', choices=['tune', 'final'])
    p.add_argument('--recipes', default=','.join(recipes))
    p.add_argument('--methods', default=';'.join(methods), help="those to run, between ';'; plain always runs")
    args = p.parse_args()
    asked = among(p, '--recipes', args.recipes, list(recipes))
    labels = row_labels(p, args.methods)
    lay_set(args)
    if args.stage=='tune':
        for name in asked: run(args, name, labels, tune_seeds)
    best = best_recipes(args)
    print('\n'.join(f'{m}: {name}' for m,name in best.items()))
    if args.stage=='tune': return
    if not best: p.error(f'final needs the rows of tune in {args.out}, got none; run tune first')
    for name in dict.fromkeys(best.values()):
        run(args, name, [o for o in best if best[o]==name and o in labels], final_seeds)


if __name__=='__main__': main()
