"""How often is a gain claimed where there is none, and how often one that is there? A simulation of whole commands

    nice python benchmarks/verdicts.py --out nbs/results/verdict_simulation.csv

A world has images, arms (plain and 16 methods) and seeds. Arm `m` with seed `s` is right on image `i` where

    mean + easy_i + own_mi + shift_m + (lucky_s + run_ms)/sqrt(2)  >  noise_msi,       noise logistic

`easy` is shared by all arms, as the images are; `own` is what suits an arm whatever the seed; `lucky` is a seed's gift
to all arms, `run` that to one. All are normal and drawn anew for each command, for a claim is about images and
seeds like these. Without a shift all arms are equally good, and every claim is a false one. All methods are held
beside the same plain runs, so their differences are correlated.

Rules: 'paired t', what was said until version 0.0.2, of each method alone; 'Satterthwaite', the textbook's for crossed
random effects, with Holm; 'seeds and images', that of `comparison.verdicts`, with Holm. 'seeds added' are commands
of 3, then 5, then 10 seeds, that end at the first claim.
"""
import argparse, time
from pathlib import Path
import numpy as np
import pandas as pd
from scipy.special import stdtrit
from fastai_featreg.comparison.verdicts import Parts, half_width, holm, mean_squares, quantile, variance_parts

worlds = {
    'usual': dict(mean=1., easy=2., own=0.5, seed=0.1),
    'large seed effects': dict(mean=1., easy=2., own=0.5, seed=0.4),
    'no seed effects': dict(mean=1., easy=1., own=1.5, seed=0.),
    'almost all right': dict(mean=5., easy=2., own=0.5, seed=0.2)}
n_methods = (1, 2, 4, 8, 16)
n_seeds = (3, 5, 10)
n_images = (100, 500, 2000)
shifts = (0.1, 0.2, 0.4, 0.8) # of logits: 1 to 9 points in the usual world
# quantiles of the logistic distribution: a look-up is faster than a logarithm for each image
_u = (np.arange(2**16) + 0.5)/2**16
noise = np.log(_u/(1 - _u)).astype(np.float32)


def runs(rng, n: int, arms: int, seeds: int, images: int, world: dict, shift: float = 0.) -> np.ndarray:
    "Which images were right (commands, arms, seeds, images), 0 and 1; the first arm is plain"
    normal = lambda *shape: rng.standard_normal((n, *shape), dtype=np.float32)
    arm = world['mean'] + world['easy']*normal(1, 1, images) + world['own']*normal(arms, 1, images)
    arm[:, 1:] += shift
    run = world['seed']*(normal(1, seeds, 1) + normal(arms, seeds, 1))/np.float32(2**0.5)
    drawn = rng.integers(0, 2**16, (n, arms, seeds, images), dtype=np.uint16)
    return (arm + run > noise[drawn]).view(np.int8)


def chunks(n: int, cells: int, most: float = 6e6) -> list:
    "Numbers of commands that fit into memory at a time"
    step = max(1, int(most//cells))
    return [min(step, n - a) for a in range(0, n, step)]


def commands(rng, n: int, arms: int, seeds: int, images: int, world: dict, shift: float = 0.) -> tuple:
    "Mean differences to plain (commands, methods), their parts by this package's rule, and their mean squares"
    found = []
    for some in chunks(n, arms*seeds*images):
        right = runs(rng, some, arms, seeds, images, world, shift)
        d = right[:, 1:] - right[:, :1]
        mean,parts = variance_parts(d)
        found.append((mean, *parts[:3], *mean_squares(d)[1:]))
    mean,*both = map(np.concatenate, zip(*found))
    return mean,Parts(*both[:3], seeds, images),both[3:]


def paired_t(squares: list, seeds: int, images: int) -> np.ndarray:
    "Half the interval of a paired t test over seeds"
    return quantile(seeds - 1, 0.05)*np.sqrt(squares[0]/(seeds*images))


def satterthwaite(squares: list, seeds: int, images: int, p: float = 0.05) -> np.ndarray:
    "Half the interval by the method of moments, with Satterthwaite's degrees of freedom"
    a,b,e = (o/(seeds*images) for o in squares)
    var = np.maximum(np.maximum(a, a + b - e), 1e-12)
    df = var**2/(a**2/(seeds - 1) + b**2/(images - 1) + e**2/((seeds - 1)*(images - 1)) + 1e-30)
    return -stdtrit(np.maximum(df, seeds - 1), p/2)*np.sqrt(var)


def p_of(mean: np.ndarray, half, hits: np.ndarray) -> np.ndarray:
    "p values of a rule that gives half an interval for each p and what hits; 1 where it claims nothing at 5 %"
    res = np.ones_like(mean)
    mean = np.abs(mean[hits])
    low,high = np.zeros_like(mean),np.full_like(mean, 0.05)
    for _ in range(40):
        p = (low + high)/2
        excludes = half(p, hits)<mean
        low,high = np.where(excludes, low, p),np.where(excludes, p, high)
    res[hits] = high
    return res


def claims(mean: np.ndarray, parts: Parts, squares: list) -> dict:
    "rule -> p values (commands, methods), 1 where nothing is claimed at 5 %"
    size = parts.n_seeds,parts.n_images
    every = np.ones(mean.shape, dtype=bool)
    rules = {'Satterthwaite': lambda p, o: satterthwaite([q[o] for q in squares], *size, p),
             'seeds and images': lambda p, o: half_width(Parts(*[q[o] for q in parts[:3]], *size), p)}
    t = np.where(np.abs(mean)>paired_t(squares, *size), 0., 1.)
    hits = {rule: np.abs(mean)>half(0.05, every).reshape(mean.shape) for rule,half in rules.items()}
    return {'paired t': t} | {rule: p_of(mean, half, hits[rule]) for rule,half in rules.items()}


def by_command(rule: str, p: np.ndarray) -> np.ndarray:
    "Has a command claimed anything? Holm counts, but not with what was said until 0.0.2"
    adjusted = p if rule=='paired t' else holm(p)
    return (adjusted<=0.05).any(-1)


def false_claims(rng, n: int, seeds: int, images: int, name: str) -> list:
    "A row for each rule and number of methods: shares of methods and of commands with a false claim"
    found = claims(*commands(rng, n, max(n_methods) + 1, seeds, images, worlds[name]))
    rows = []
    for rule,p in found.items():
        alone = (p<=0.05).mean()
        for m in n_methods:
            told = by_command(rule, p[:, :m]).mean()
            rows.append(dict(what='false claims', world=name, seeds=seeds, images=images, methods=m, rule=rule,
                             points=0., by_method=alone, by_command=told, commands=n))
    return rows


def powers(rng, n: int, seeds: int, images: int, name: str, shift: float) -> list:
    "A row for each rule: share of commands of one method that show its gain"
    mean,*rest = commands(rng, n, 2, seeds, images, worlds[name], shift)
    return [dict(what='power', world=name, seeds=seeds, images=images, methods=1, rule=rule, points=100*mean.mean(),
                 by_method=(p<=0.05).mean(), by_command=(p<=0.05).mean(), commands=n)
            for rule,p in claims(mean, *rest).items()]


def added(rng, n: int, images: int, name: str) -> dict:
    "Commands of one method that are repeated with 3, 5 and 10 seeds and end at the first claim"
    told = []
    for some in chunks(n, 2*max(n_seeds)*images):
        right = runs(rng, some, 2, max(n_seeds), images, worlds[name])
        d = right[:, 1] - right[:, 0]
        looks = [variance_parts(d[:, :s]) for s in n_seeds]
        told.append(np.any([np.abs(mean)>half_width(parts) for mean,parts in looks], axis=0))
    rate = np.concatenate(told).mean()
    return dict(what='seeds added', world=name, seeds=max(n_seeds), images=images, methods=1, rule='seeds and images',
                points=0., by_method=rate, by_command=rate, commands=n)


def simulate(n: int, say=print) -> pd.DataFrame:
    "All rows; each cell has random numbers of its own"
    rows,start = [],time.perf_counter()
    for w,name in enumerate(worlds):
        for seeds in n_seeds:
            for images in n_images:
                rng = np.random.default_rng([w, seeds, images])
                rows += false_claims(rng, n, seeds, images, name)
                for shift in shifts if name=='usual' else (): rows += powers(rng, n, seeds, images, name, shift)
            say(f'{name}, {seeds} seeds: {time.perf_counter() - start:.0f} s')
        rows += [added(np.random.default_rng([w, images]), n, images, name) for images in n_images]
    return pd.DataFrame(rows)


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=Path('nbs/results/verdict_simulation.csv'))
    p.add_argument('--commands', type=int, default=4000, help='simulated commands in each cell (default: %(default)s)')
    args = p.parse_args()
    simulate(args.commands).to_csv(args.out, index=False, float_format='%.5g')
