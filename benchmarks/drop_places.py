"""Where the drops act on each network, under each head: a row for each pair in nbs/results/drop_places.csv.

    python benchmarks/drop_places.py
    python benchmarks/drop_places.py --nets resnet20,wrn16_4 --out some.csv

`norms` are the normalisations of the body; `asked` and `acts`, for `layers='all'` and `layers=2`, are the layers that
the rule of `plan_drops` chooses, and those of them that no BatchNorm follows. The last three columns are the baselines
of Feature Mining (4.1.1), dropout and SpatialDropout behind the last group but one and DropBlock behind the first two,
in one training batch of two images of noise: 'runs', 'runs: ' with what `idle` says, or the error.
"""
import argparse,copy,gc,warnings
from pathlib import Path
import pandas as pd, torch, torchvision
from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,ProgressCallback,SGD,create_head,noop
from fastai.vision.learner import create_timm_model,create_vision_model
from fastai_featreg.all import DropBlock,FeatureDropout,SpatialDropout,get_anatomy
from fastai_featreg.channels import is_norm
from fastai_featreg.archs import heads
from fastai_featreg.methods.drop_layers import plan_drops
from fastai_featreg.nets import nets

root = Path(__file__).resolve().parent.parent
others = {'resnet18': 'torchvision', 'resnet50': 'torchvision', 'densenet121': 'torchvision',
          'mobilenetv3_small_100': 'timm', 'efficientnet_b0': 'timm'}
N_OUT = 10


def make_body(name: str) -> torch.nn.Module:
    "The network without its head, as `vision_learner` cuts it"
    if others.get(name)=='timm': return create_timm_model(name, N_OUT, pretrained=False)[0][0]
    return create_vision_model(nets.get(name) or getattr(torchvision.models, name), N_OUT, pretrained=False)[0]


def baselines(name: str) -> list:
    "Feature Mining's three, by the names of the groups in the papers' nets and by the numbers of the stages elsewhere"
    last,firsts = (['stage2'], ['stage1', 'stage2']) if name in nets else ([-2], [-4, -3])
    return [FeatureDropout(layers=last), SpatialDropout(layers=last), DropBlock(layers=firsts)]


def run_baselines(model: torch.nn.Module, name: str, size: int) -> list:
    "What each of the three does in a training batch"
    pairs,cbs = [(torch.randn(3, size, size), i) for i in range(2)],baselines(name)
    dls = DataLoaders.from_dsets(pairs, pairs, bs=2, device='cpu', num_workers=0)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    try:
        with warnings.catch_warnings(action='ignore'): learn.fit(1)
    except ValueError as e: return [f'refused: {e}'.splitlines()[-1]]*len(cbs)
    return [f'runs: {cb.idle}' if cb.idle else 'runs' for cb in cbs]


def row(name: str, body: torch.nn.Module, head: str) -> dict:
    "One row of the table"
    size = 32 if name in nets else 64
    torch.manual_seed(0)
    with torch.no_grad(): channels = copy.deepcopy(body)(torch.zeros(2, 3, size, size)).shape[1]
    model = torch.nn.Sequential(body,
                                create_head(channels, N_OUT, **{k: v for k,v in heads[head].items() if k!='init'}))
    anatomy = get_anatomy(model, size=size, check_cam=False)
    res = dict(net=name, library=others.get(name, 'nets'), head=head, norms=sum(map(is_norm, body.modules())))
    for label,layers in (('all', 'all'), ('2', 2)):
        plan = plan_drops(anatomy, layers)
        res |= {f'asked_{label}': plan.asked, f'acts_{label}': len(plan.acts)}
    return res | dict(zip(('feature_dropout', 'spatial_dropout', 'drop_block'), run_baselines(model, name, size)))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--nets', help='names with commas between; all of `nets` and five others if not given')
    p.add_argument('--out', type=Path, default=root/'nbs/results/drop_places.csv', help='file to write')
    args = p.parse_args()
    rows = []
    for name in args.nets.split(',') if args.nets else [*nets, *others]:
        body = make_body(name)
        for head in heads:
            rows.append(row(name, copy.deepcopy(body), head))
            print(*rows[-1].values(), sep='  ', flush=True)
            gc.collect()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__=='__main__': main()
