"""Figure 3 of the SelectScale paper: does the selection find the channels that matter?

    python benchmarks/selectscale_figure3.py --out nbs/results/figure3

Trains ResNet-20 on CIFAR-10 without any drop, and once more with SelectScale in every layer; then drops channels of
each at *test* time, at random or those with the highest scores, and writes the error at each retaining rate, a row for
each repetition.
"""
import argparse
from pathlib import Path
import pandas as pd, torch
from fastai.vision.all import Learner, CrossEntropyLossFlat, accuracy, set_seed
import fastai_featreg.all as featreg
from fastai_featreg.methods.drop_effects import dropped_errors
from fastai_featreg.nets import resnet20


def train(cbs: list, args: argparse.Namespace) -> Learner:
    "ResNet-20 from scratch, one cycle"
    set_seed(args.seed, reproducible=True)
    dls = featreg.cifar_dls('cifar10', n_train=args.n_train, n_valid=args.n_valid, bs=64, size=32, num_workers=0)
    learn = Learner(dls, resnet20(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs)
    learn.fit_one_cycle(args.epochs, 1e-2)
    return learn


def parse() -> argparse.Namespace:
    "Command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,default in (('n-train', 10000), ('n-valid', 2000), ('epochs', 12), ('seed', 0), ('seeds', 3)):
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--out', type=Path, required=True, help='folder for the CSV file')
    return p.parse_args()


def main():
    "Train, measure, write"
    args = parse()
    trained = {'plain': train([], args), 'SelectScale': train([featreg.SelectScale(layers='all')], args)}
    df = pd.concat([dropped_errors(learn, seeds=args.seeds).assign(trained=name, accuracy=learn.validate()[1])
                    for name,learn in trained.items()])
    args.out.mkdir(parents=True, exist_ok=True)
    df.assign(arch='resnet20', data='cifar10', n_train=args.n_train, n_valid=args.n_valid, epochs=args.epochs,
              train_seed=args.seed, torch=torch.__version__).to_csv(args.out/'results.csv', index=False)
    print(df.pivot_table(index=['trained', 'retain'], columns='drop', values='error'))


if __name__ == '__main__': main()
