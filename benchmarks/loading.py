"""How fast batches come, beside the step of a small network: rows appended to a CSV file

    OMP_NUM_THREADS=1 python benchmarks/loading.py --out benchmarks/loading.csv

CIFAR-100 at 32 px by two loaders in turn, pixels decoded beforehand: `items` (fastai's, one image after the other) and
`memory` (whole batches, what `cifar_dls` gives). Medians over rounds; the step is ResNet-20's, forward and backward.
"""
import argparse, platform, time
from pathlib import Path
import pandas as pd, torch
from fastai.vision.all import TfmdDL, first
from fastai_featreg.data import cifar_dls
from fastai_featreg.nets import resnet20


def batch_ms(dl: TfmdDL) -> float:
    "Milliseconds a batch over an epoch"
    start = time.perf_counter()
    n = sum(1 for _ in dl)
    return 1000*(time.perf_counter() - start)/n

def step_ms(net: torch.nn.Module, batch: tuple) -> float:
    "Milliseconds of a forward and a backward pass"
    x,y = batch
    start = time.perf_counter()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    return 1000*(time.perf_counter() - start)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='cifar100', help="'cifar10' or 'cifar100'")
    p.add_argument('--n-train', type=int, default=2000, help='images')
    p.add_argument('--bs', type=int, default=128, help='images a batch')
    p.add_argument('--rounds', type=int, default=5, help='epochs of each loader')
    p.add_argument('--out', type=Path, required=True, help='CSV file')
    args = p.parse_args()
    torch.set_num_threads(1)
    dls = cifar_dls(args.data, n_train=args.n_train, n_valid=dict(cifar10=10).get(args.data, 100), bs=args.bs)
    loaders = dict(items=dls.train.new(cls=TfmdDL), memory=dls.train)
    net,batch = resnet20(dls.c),[o.as_subclass(torch.Tensor) for o in first(dls.train)]
    for dl in loaders.values(): first(dl)
    rows = []
    # in turn, so that a machine that slows down slows everybody down
    for _ in range(args.rounds):
        rows += [dict(loader=k, ms=batch_ms(dl)) for k,dl in loaders.items()]
        rows.append(dict(loader='step', ms=step_ms(net, batch)))
    df = pd.DataFrame(rows).groupby('loader', sort=False)['ms'].median().reset_index()
    df['images_per_s'] = (1000*args.bs/df.ms).round()
    df['share_of_step'] = (df.ms/df.ms.iloc[-1]).round(4)
    df = df.assign(ms=df.ms.round(2), data=args.data, bs=args.bs, rounds=args.rounds, torch=torch.__version__,
                   machine=f'{platform.machine()}, 1 thread')
    df.to_csv(args.out, mode='a', index=False, header=not args.out.exists())
    print(df.to_string(index=False))

if __name__=='__main__': main()
