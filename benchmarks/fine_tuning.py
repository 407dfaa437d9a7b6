"""Which recipe fine-tunes best, plain training and each method with the recipe that suits it best?

    python benchmarks/fine_tuning.py flowers tune --out nbs/results/fine_tuning   # every recipe, for every method
    python benchmarks/fine_tuning.py flowers final --out nbs/results/fine_tuning  # the best of each, on other images

The images of a set are parted once: those that train, those on which recipes are chosen, those on which the chosen ones
are held beside each other. So no recipe is chosen on images that the verdict is about. Each recipe has a folder with a
`results.csv`; what has ended is not run again. All recipes have the same number of epochs, frozen ones included.
"""
import argparse, os, random
from pathlib import Path
import pandas as pd
from fastai.data.external import fastai_path
from fastai.vision.all import get_image_files
from fastai_featreg.comparison.compare import compare

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


def lay(files: dict, root: Path):
    "A folder for each stage, of links: images that train, and that stage's own for validation"
    for stage in ('tune', 'final'):
        chosen = dict(train=files['train'], valid=files['tune' if stage=='tune' else 'test'])
        for name,members in chosen.items():
            for f in members:
                link = root/stage/name/f.parent.name/f.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists(): os.symlink(f, link)


def run(args: argparse.Namespace, name: str, labels: list, seeds: int):
    "One recipe, for some methods"
    where = args.work/args.set/args.stage
    out = args.out/f'{args.set}{args.per_class}'/args.stage/name
    settings = dict(head=args.head) | recipes[name]
    compare(where, args.arch, labels or 'plain', out=out, seeds=seeds, size=args.size, bs=args.bs,
            pretrained=not args.scratch, per_class=args.per_class, redraw=True, jobs=args.jobs, cost=False,
            precision='bf16', channels_last=True, **settings)


def chosen(out: Path) -> pd.Series:
    "Method -> recipe with the best mean accuracy on the images for choosing"
    rows = pd.concat([pd.read_csv(f).assign(tried=f.parent.name) for f in sorted(out.glob('*/results.csv'))])
    means = rows.groupby(['method', 'tried']).accuracy.mean().unstack()
    print(means.round(4).to_string())
    return means.idxmax(axis=1)


def main():
    "One stage of one set"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('set', help='folder of class folders in fastai\'s data folder, such as flowers')
    p.add_argument('stage', choices=['tune', 'final'])
    p.add_argument('--recipes', default=','.join(recipes))
    p.add_argument('--methods', default=';'.join(methods), help="those to run, between ';'; plain always runs")
    p.add_argument('--per-class', type=int, default=50)
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--scratch', action='store_true', help='no pretrained weights')
    p.add_argument('--head', default='default')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--work', type=Path, default=Path('fine_tuning'), help='folder of the links')
    p.add_argument('--out', type=Path, default=Path('.'))
    args = p.parse_args()
    folder = fastai_path('data')/args.set
    args.set = args.set.replace('/', '_')
    lay(parts(get_image_files(folder), 400, 800), args.work/args.set)
    labels = [o for o in args.methods.split(';') if o]
    if args.stage=='tune':
        for name in args.recipes.split(','): run(args, name, labels, tune_seeds)
        return print(chosen(args.out/f'{args.set}{args.per_class}'/'tune').to_string())
    best = chosen(args.out/f'{args.set}{args.per_class}'/'tune')
    for name,group in best.groupby(best): run(args, name, [o for o in group.index if o in labels], final_seeds)


if __name__=='__main__': main()
