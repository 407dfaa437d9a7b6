"""Has plain training converged in the budget of the embedded digits? Its curves there, and with twice the epochs.

    python benchmarks/digits_budget.py --out nbs/results   # six runs, some minutes on one core

Writes `digits_budget.csv`: a row per epoch, with the accuracies of training and validation, for each number of epochs
and each seed.
"""
import argparse
from pathlib import Path
import pandas as pd
from fastai_featreg.comparison.budgets import budgets
from fastai_featreg.data import load_data
from fastai_featreg.comparison.runs import run_once


def curves(epochs: int, seed: int) -> pd.DataFrame:
    "Accuracies of each epoch of one plain run, and the seconds that the run took"
    budget = budgets['digits']
    dls = load_data('digits', **{k: budget[k] for k in ('size', 'bs', 'n_train', 'n_valid')})
    row = run_once(dls, seed=seed, epochs=epochs, **{k: budget[k] for k in ('arch', 'lr', 'head')})
    values = {part: [float(v) for v in row[name].split(';')] for part,name in
              dict(train='train_curve', valid='curve').items()}
    df = pd.DataFrame(values).assign(epochs=epochs, seed=seed, seconds=round(row['seconds'], 1))
    return df.rename_axis('epoch').reset_index().assign(epoch=lambda df: df['epoch'] + 1)


def main():
    "Six runs"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path('.'), help='folder of digits_budget.csv')
    args = p.parse_args()
    epochs = budgets['digits']['epochs']
    df = pd.concat([curves(n, seed) for n in (epochs, 2*epochs) for seed in range(args.seeds)])
    df.to_csv(args.out/'digits_budget.csv', index=False, float_format='%.4g')


if __name__=='__main__': main()
