"""What multi-view features cost: training steps and predictions with views and with average pooling,
interleaved, and ways to pool the views.

    # CPU: ResNet-18 without its last stage, 224 px, batch 8
    python benchmarks/multiview.py --out nbs/results
    # GPU
    python benchmarks/multiview.py --arch resnet50 --bs 128 --amp bf16 --channels-last

Maps have 14 x 14 positions, with 50 anchors and four sizes: 200 views an image. Ratios are to average pooling and one
linear layer in the same round; median and quartiles over the rounds. `overhead.py` says how memory is measured.
"""
import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
import pandas as pd, torch, torchvision
import fastai_featreg.all as featreg
from fastai_featreg.parting import cut_after
from fastai_featreg.methods.view_head import pooled_classifier
from fastai_featreg.methods.views import anchors, local_pool, view_boxes
from fastai.vision.all import create_head
from torch import nn
from torch.nn import functional as F
from overhead import Stepper, make_model, memory, quartiles, timed, timed_call

k,sizes = 50,(3, 5, 7, 9)


def network(arch: str, head: str) -> nn.Sequential:
    "A torchvision ResNet without its last stage and with one of three heads"
    body = cut_after(make_model(arch), -2)
    channels = featreg.get_anatomy(make_model(arch), check_cam=False).stages[-2].channels
    fastai_head = partial(create_head, channels, 10)
    return nn.Sequential(body, {'linear': lambda: pooled_classifier(channels, 10),
                                'gap': lambda: fastai_head(lin_ftrs=[], concat_pool=False),
                                'default': fastai_head}[head]())


def steppers(args: argparse.Namespace) -> dict:
    "label -> way to make training steps, with each head and with views or without"
    def made(cbs: list, head: str) -> Stepper: return Stepper(cbs, args, network(args.arch, head))
    views = [partial(featreg.MVFeaAug, k=k, sizes=sizes)]
    cases = {'plain': ('linear', []), 'plain again': ('linear', []), 'views, linear': ('linear', views),
             "plain, fastai's GAP head": ('gap', []), "views, fastai's GAP head": ('gap', views),
             "plain, fastai's default head": ('default', []), "views, fastai's default head": ('default', views)}
    return {label: partial(made, cbs, head) for label,(head,cbs) in cases.items()}


class Predictor:
    "Predictions of the network of a stepper, one batch at a time"
    def __init__(self, stepper: Stepper): self.stepper = stepper

    def step(self) -> float:
        "Milliseconds of one prediction"
        model,x = self.stepper.learn.model.eval(),self.stepper.batch[0]
        return timed_call(lambda: model(x), x.is_cuda, grad=False)


def pool_and_gather(f: torch.Tensor, idx: torch.Tensor, sizes: tuple) -> torch.Tensor:
    "The whole map averaged once for each size, then read at the anchors"
    pooled = torch.stack([F.avg_pool2d(f, r, 1, r//2, count_include_pad=False) for r in sizes], 1).flatten(3)
    return pooled.gather(3, idx[:,None,None].expand(-1, len(sizes), f.shape[1], -1)).permute(0, 3, 1, 2)


def by_roi_align(f: torch.Tensor, idx: torch.Tensor, sizes: tuple) -> torch.Tensor:
    "torchvision's operator on the clipped squares; it interpolates, so the numbers are near, not equal"
    boxes = view_boxes(idx, sizes, f.shape[2:]).flatten(1, 2).to(f.dtype)
    return torchvision.ops.roi_align(f, list(boxes), 1, sampling_ratio=max(sizes), aligned=False).flatten(1).view(
        len(f), idx.shape[1], len(sizes), -1)


def literal(f: torch.Tensor, idx: torch.Tensor, sizes: tuple) -> torch.Tensor:
    "Equation 5 to the letter"
    h,w = f.shape[2:]
    square = lambda o,y,x,r: o[:,max(y-r//2, 0):min(y+r//2, h-1)+1,max(x-r//2, 0):min(x+r//2, w-1)+1].mean((1, 2))
    return torch.stack([torch.stack([torch.stack([square(o, *divmod(p, w), r) for r in sizes]) for p in row])
                        for o,row in zip(f, idx.tolist())])


class Pooling:
    "Forward and backward of a way to pool the views of one map"
    def __init__(self, function: Callable, f: torch.Tensor, idx: torch.Tensor):
        self.function,self.f,self.idx = function,f,idx

    def once(self):
        "Pool, and differentiate"
        self.f.grad = None
        self.function(self.f, self.idx, sizes).sum().backward()

    def step(self) -> float:
        "Milliseconds"
        return timed_call(self.once, self.f.is_cuda)


def poolings(size: tuple, device: str) -> dict:
    "label -> a way to make each pooling of the views of a map of this size; the slow literal loop on the smallest only"
    torch.manual_seed(0)
    f = torch.randn(size, device=device, requires_grad=True)
    idx = anchors(torch.randn(size[0], *size[2:], device=device), k)
    ways = ({'local_pool': local_pool, 'avg_pool and gather': pool_and_gather, 'roi_align': by_roi_align}
            | ({'literal loop': literal} if size[2]==7 else {}))
    torch.testing.assert_close(pool_and_gather(f, idx, sizes), local_pool(f, idx, sizes), rtol=1e-4, atol=1e-5)
    return {label: partial(Pooling, function, f, idx) for label,function in ways.items()}


def table(what: str, makers: dict, to: str, args: argparse.Namespace) -> pd.DataFrame:
    "One row per candidate: milliseconds, ratio to the candidate `to`"
    mb = memory(makers, args.device)
    ms = timed({n: make() for n,make in makers.items()}, args).pivot(index='round', columns='method', values='ms')
    return pd.DataFrame([dict(what=what, method=n, ms=ms[n].median(), **quartiles(ms[n]/ms[to], 'ratio'),
                              memory_mb=mb[n], memory_ratio=mb[n]/mb[to], rounds=args.rounds) for n in makers])


def parse() -> argparse.Namespace:
    "Command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='resnet18')
    p.add_argument('--size', type=int, default=224, help='pixels')
    p.add_argument('--bs', type=int, default=8)
    p.add_argument('--rounds', type=int, default=20)
    p.add_argument('--warmup', type=int, default=2)
    p.add_argument('--amp', choices=['fp16', 'bf16'])
    p.add_argument('--channels-last', action='store_true')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--out', type=Path, help='folder for the CSV file')
    p.set_defaults(uint8=False, burst=1) # which `Stepper` asks for too
    return p.parse_args()


def main():
    "Measure, print, write"
    args = parse()
    made = steppers(args)
    predictors = {n: lambda make=make: Predictor(make()) for n,make in made.items()}
    parts = [table('step', made, 'plain', args), table('prediction', predictors, 'plain', args)]
    for size in ((16, 256, 14, 14), (16, 256, 7, 7), (4, 256, 56, 56)):
        parts.append(table('local_pool', poolings(size, args.device), 'local_pool', args).assign(
            map=' x '.join(map(str, size))))
    df = pd.concat(parts).assign(arch=args.arch, size=args.size, bs=args.bs, amp=args.amp,
                                 threads=torch.get_num_threads(), torch=torch.__version__)
    print(df.drop(columns=['arch', 'size', 'bs', 'amp', 'threads', 'torch']).to_string(
        index=False, float_format='{:.3f}'.format))
    if args.out: df.to_csv(args.out/f"multiview_{args.device}.csv", index=False)


if __name__ == '__main__': main()
