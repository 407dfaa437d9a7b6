"""What a callback costs: training steps with and without it, interleaved in one process.

    python benchmarks/overhead.py --out nbs/results        # CPU: ResNet-18, 64 px, batch 32
    python benchmarks/overhead.py --arch resnet56 --size 32 --bs 128 --rounds 20 --out nbs/results
    python benchmarks/overhead.py --arch resnet50 --size 128 --bs 8 --rounds 20 --out nbs/results
    python benchmarks/overhead.py --functions --out nbs/results   # the functions on maps, against their literal forms

    # only these; replaces their rows in the CSV file
    python benchmarks/overhead.py --methods 'distillation|attention_transfer|ccm|cat_kd' --out nbs/results

    # what takes the time
    python benchmarks/overhead.py --profile --arch resnet56 --size 32 --bs 128 \
        --methods 'feature_dropout|select_scale|grad_cam' --out nbs/results

    # GPU; `benchmarks/gpu.py` does this and more
    python benchmarks/overhead.py --arch resnet50 --size 224 --bs 128 --amp bf16 --channels-last --uint8 --burst 2

Each round runs one plain step and one step of every candidate, in an order that is drawn anew. The ratio of a round is
candidate / plain of that same round; printed and written are its median and quartiles over the rounds, which a slow
minute of the machine moves little. The candidates are the registered methods, some of their variants, and plain
training once more: the last shows what the measurement itself can tell apart. Methods with a teacher are compared with
plain knowledge distillation too, again of the same round: that leaves the teacher's own forward pass out.

The clock waits for the GPU before and after a step. In real training nobody waits, and the CPU prepares the next step
while the GPU works; `--burst N` times N steps in one go, so that a callback that makes the CPU wait is seen to do so.

Memory is the peak of what tensors take in the second step of a learner: its weights, their optimiser's state,
activations, and the teacher or heads where there are any. It comes from the allocator (CUDA's own figure, or the
profiler's list of allocations on a CPU) and has no noise.

With `--seconds` the run ends in time: the candidates are made in the first half (those that are not reached are named
and left out), rounds are run as long as another one fits, and the column `rounds` says how many there were. A candidate
that fails is named and left out too; then the exit status is 1.

A run of some methods leaves the other rows of the file alone. So each row says when it was measured (`run`), how long a
plain step took then (`plain_ms`) and what the ratio of plain to plain was (`again_median`, `again_q1`, `again_q3`).
"""
import argparse,gc,math,random,re,sys,time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
import pandas as pd, timm, torch, torchvision
import fastai_featreg.all as featreg
from fastai_featreg.methods.drop_functions import select_scale
from fastai_featreg.methods.feature_mining import box_mask, mined_pool
from fastai_featreg.maps import cam_and_caam
from fastai_featreg.methods.views import ada_cam
from fastai_featreg.core import card_of,methods
from fastai_featreg.methods import own_methods
from fastai_featreg.nets import nets
from fastai_featreg.comparison.plan import known_methods
from fastai.vision.all import (ChannelsLast, CrossEntropyLossFlat, DataLoaders, Learner, MixedPrecision,
                               ProgressCallback, imagenet_stats, set_seed)
from fastprogress import progress_bar
from torch.profiler import ProfilerActivity,profile


def literal_mined_pool(f: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    "The equations to the letter: two masked copies of the map, each averaged"
    return torch.stack([(f*mask).mean((2, 3)), (f*(1-mask)).mean((2, 3))], 1)


class LiteralFeatureMining(featreg.FeatureMining):
    "Feature Mining with the literal pooling, to see what reading the map once is worth"
    def loss_term(self, maps: dict) -> torch.Tensor:
        parts = [literal_mined_pool(f, self.draw_mask(f, n).to(f.device)) for n,f in maps.items()]
        logits = [part(p[:,i]) for head,p in zip(self.aux_heads, parts)
                  for i,part in enumerate((head.part1, head.part2))]
        return sum(self.learn.loss_func(o.float(), *self.learn.yb) for o in logits)


controls,kd = ['plain', 'plain again'],'knowledge_distillation'

def needs_teacher(name: str) -> bool:
    "Does the method called `name` learn from a trained network?"
    return getattr(methods.get(name), 'needs_teacher', False)


def candidates(arch: str) -> dict:
    "label -> list of ways to make a callback, for every registered method; a teacher is as large as the student"
    def maker(name, **kwargs):
        cls,kwargs = methods[name],card_of(name).quick | kwargs
        return (lambda: cls(make_model(arch), **kwargs)) if needs_teacher(name) else partial(cls, **kwargs)
    known = own_methods() | known_methods() # fastai's last
    variants = {f'{n}, {v.timed}': [maker(n, **v.kwargs)] for n in known for v in card_of(n).variants if v.timed}
    return {**dict.fromkeys(controls, []), **{n: [maker(n)] for n in known}, **variants,
            'feature_mining, 2 layers, literal': [partial(LiteralFeatureMining, layers=2)]}


def make_model(arch: str) -> torch.nn.Module:
    "One of the papers' CIFAR nets, a torchvision network, or else a timm one, with 10 classes"
    if arch in nets: return nets[arch](10)
    if arch in torchvision.models.list_models(): return torchvision.models.get_model(arch, weights=None, num_classes=10)
    return timm.create_model(arch, num_classes=10)


def timed_call(call: Callable, cuda: bool, grad: bool = True) -> float:
    "Milliseconds"
    if cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(grad): call()
    if cuda: torch.cuda.synchronize()
    return 1000*(time.perf_counter() - start)


def allocations(call: Callable) -> list:
    "Bytes taken (and, below zero, given back) on the CPU during `call`, in their order"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: call()
    events = sorted(prof.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    return [e.nbytes() for e in events if e.name()=='[memory]']


def with_peak(make: Callable, cuda: bool) -> tuple:
    "What `make` makes, after two steps, and the peak of what tensors take in the second, MiB, itself included"
    gc.collect()
    made = []
    def begin():
        made.append(make())
        made[0].step()
    if not cuda:
        held = sum(allocations(begin))
        return made[0],(held + max(accumulate(allocations(made[0].step))))/2**20
    before = torch.cuda.memory_allocated()
    begin()
    torch.cuda.reset_peak_memory_stats()
    made[0].step()
    return made[0],(torch.cuda.max_memory_allocated() - before)/2**20


def statistics(device: str) -> list:
    "Mean and standard deviation of ImageNet's channels, (1,3,1,1)"
    return [torch.tensor(o, device=device).view(1, 3, 1, 1) for o in imagenet_stats]


class Stepper:
    "A learner inside a fit that never ends, one step at a time"
    def __init__(self, cbs: list, args: argparse.Namespace, model: torch.nn.Module | None = None):
        set_seed(0)
        # the same layers in two parts, for the method that replaces the head
        model = model or featreg.body_head(make_model(args.arch))
        size = args.bs,3,args.size,args.size
        x = torch.randint(0, 256, size, dtype=torch.uint8) if args.uint8 else torch.randn(size)
        y = torch.randint(0, 10, (args.bs,))
        pairs = list(zip(x, y))
        dls = DataLoaders.from_dsets(pairs, pairs, bs=args.bs, device=args.device, num_workers=0)
        extra = ([MixedPrecision(args.amp)] if args.amp else []) + [ChannelsLast()]*args.channels_last
        self.learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[cb() for cb in cbs] + extra)
        self.learn.remove_cb(ProgressCallback)
        self.batch,self.burst = (x.to(args.device), y.to(args.device)),args.burst
        self.norm = statistics(args.device) if args.uint8 else None
        self.start()

    def start(self):
        "The events that `fit` fires before its first batch"
        learn = self.learn
        learn.create_opt()
        learn.n_epoch,learn.epoch = 1,0
        learn('before_fit')
        learn('before_epoch')
        learn.dl,learn.n_iter = learn.dls.train,10**6
        learn('before_train')

    def images(self) -> torch.Tensor:
        "The batch as the network takes it; images that are held as bytes are normalised in every step"
        x = self.batch[0]
        return x if self.norm is None else x.float().div_(255).sub_(self.norm[0]).div_(self.norm[1])

    def train(self):
        "The steps of a burst, none of which is waited for"
        for _ in range(self.burst): self.learn.one_batch(0, (self.images(), self.batch[1]))

    def step(self) -> float:
        "Milliseconds of one training step, the mean of a burst"
        return timed_call(self.train, self.batch[0].is_cuda)/self.burst


def on_cuda(device: str) -> bool: return torch.device(device).type=='cuda'


def memory(makers: dict, device: str) -> pd.Series:
    "Megabytes of each candidate"
    return pd.Series({n: with_peak(make, on_cuda(device))[1] for n,make in progress_bar(makers.items())})


def build(makers: dict, device: str, until: float = math.inf) -> tuple:
    "label -> stepper, label -> MiB, and label -> why it is left out: it failed, or was not reached at the time `until`"
    steppers,mb,left = {},{},{}
    # what libraries keep for good (cuBLAS's workspace) and measure once (cuDNN's choices) is not the first one's
    if on_cuda(device): with_peak(makers['plain'], True)
    for n,make in progress_bar(makers.items()):
        if n not in controls and time.perf_counter()>until:
            left[n] = 'no time was left for it'
            continue
        try: steppers[n],mb[n] = with_peak(make, on_cuda(device))
        except Exception as e: # one candidate's
            if n in controls: raise
            left[n] = f'{type(e).__name__}: {e}'.partition('\n')[0]
    return steppers,mb,left


def quartiles(values: pd.Series, name: str) -> dict:
    "Median and quartiles, as columns that begin with `name`"
    return dict(zip((f'{name}_{k}' for k in ('q1', 'median', 'q3')), values.quantile([.25, .5, .75])))


def chosen(args: argparse.Namespace) -> dict:
    "Candidates whose label matches, and plain twice"
    known = candidates(args.arch)
    wanted = [k for k in known if re.search(args.methods, k)]
    if not wanted: raise SystemExit(f"--methods '{args.methods}' matches none of {', '.join(known)}")
    also = [*controls, *([kd] if any(map(needs_teacher, wanted)) else [])] # what the wanted ones are compared with
    return {k: v for k,v in known.items() if k in wanted or k in also}


def timed(steppers: dict, args: argparse.Namespace, until: float = math.inf) -> pd.DataFrame:
    "One row per step: round, method, milliseconds; no round after the second begins that would not end by `until`"
    names,rows = list(steppers),[]
    start,took = time.perf_counter(),0.
    for i in progress_bar(range(-args.warmup, args.rounds)):
        now = time.perf_counter()
        if -args.warmup<i<0 and now - start>(until - start)/5: continue # enough of warming up
        if i>=2 and now + took>until: break
        for name in random.Random(i).sample(names, len(names)):
            # in a fixed order each would have its neighbour's leavings in the caches
            ms = steppers[name].step()
            if i>=0: rows.append(dict(round=i, method=name, ms=ms))
        took = time.perf_counter() - now
    return pd.DataFrame(rows)


def measure(args: argparse.Namespace) -> tuple:
    "One row per candidate: step time, ratios to plain and to knowledge distillation with quartiles, memory ratio"
    began,start = time.perf_counter(),f'{pd.Timestamp.now():%Y-%m-%d %H:%M}'
    makers = {k: partial(Stepper, v, args) for k,v in chosen(args).items()}
    steppers,mb,left = build(makers, args.device, began + args.seconds/2)
    ms = timed(steppers, args, began + args.seconds).pivot(index='round', columns='method', values='ms')
    again = quartiles(ms['plain again']/ms['plain'], 'again')
    same = dict(rounds=len(ms), run=start, plain_ms=ms['plain'].median(), **again)
    over_kd = lambda n: quartiles(ms[n]/ms[kd], 'over_kd') if needs_teacher(n) and kd in ms else {}
    return pd.DataFrame([dict(method=n, step_ms=ms[n].median(), **quartiles(ms[n]/ms['plain'], 'ratio'), **over_kd(n),
                              memory_mb=mb[n], memory_ratio=mb[n]/mb['plain'], **same) for n in steppers]),left


def merged(new: pd.DataFrame, path: Path) -> pd.DataFrame:
    "`new`, and the rows of the file that it does not replace; the file's own rows of plain stay beside them"
    if not path.exists(): return new
    old = pd.read_csv(path)
    rest = old[old.method.isin(controls) | ~old.method.isin(new.method)]
    return pd.concat([rest, new[~new.method.isin(rest.method)]])


def operators(make: Callable, steps: int = 3) -> pd.DataFrame:
    "Milliseconds and calls of each of torch's operators in a step"
    stepper = make()
    for _ in range(2): stepper.step()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(steps): stepper.step()
    rows = [dict(operator=e.key, ms=e.self_cpu_time_total/1000/steps, calls=e.count/steps)
            for e in prof.key_averages()]
    return pd.DataFrame(rows).set_index('operator')


def measure_operators(args: argparse.Namespace, n: int = 5) -> pd.DataFrame:
    "The `n` operators of each candidate that take the most time over plain, of those called more often than there"
    made = {k: operators(partial(Stepper, v, args)) for k,v in progress_bar(chosen(args).items())}
    more = {k: df.sub(made['plain'], fill_value=0).query('calls>0').nlargest(n, 'ms')
            for k,df in made.items() if k not in controls}
    return pd.concat(more, names=['method']).reset_index()


def literal_select_scale(f: torch.Tensor, top_rate: float, retain: float) -> torch.Tensor:
    "Section 2.3 and Eq. 6 to the letter: sorted scores with their gradients, a factor for every channel"
    scores = f.abs().flatten(2).max(2).values
    least = scores.sort(1, descending=True).values[:,max(1, round(top_rate*f.shape[1]))-1]
    v = (scores<least[:,None]).to(f.dtype)
    u = retain + 2*(1-retain)*torch.rand(f.shape[:2], device=f.device)
    return f*((1-v)*(u-1) + 1)[:,:,None,None]


def literal_cam_and_caam(f: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    "Eq. 2 and 3 to the letter: the map times its weights, summed over channels, and the map summed over channels"
    return torch.stack([(f*w[:,:,None,None]).sum(1), f.sum(1)])


def literal_ada_cam(g: torch.Tensor) -> torch.Tensor:
    "Eq. 2 of MV-FeaAug to the letter: every class's map times the softmax of its mean, summed over classes"
    return (g*g.mean((2, 3)).softmax(1)[:,:,None,None]).sum(1)


def functions(device: str, size: tuple) -> dict:
    "name -> the function of a map, its literal form"
    w,mask = torch.randn(size[:2], device=device),box_mask(*size[2:]).to(device)
    scale = dict(top_rate=.1, retain=.2)
    return {'mined_pool': (partial(mined_pool, mask=mask), partial(literal_mined_pool, mask=mask)),
            'select_scale': (partial(select_scale, **scale), partial(literal_select_scale, **scale)),
            'cam_and_caam': (partial(cam_and_caam, w=w), partial(literal_cam_and_caam, w=w)),
            'ada_cam': (ada_cam, literal_ada_cam)}


# maps of a ResNet-18's last two stages at 224 px and of a ResNet-56's last
map_sizes = (32, 256, 14, 14),(32, 512, 7, 7),(128, 64, 8, 8)

def measure_functions(args: argparse.Namespace) -> pd.DataFrame:
    "Forward and backward of each function and of its literal form, interleaved"
    rows = []
    for size in map_sizes:
        f = torch.randn(size, device=args.device, requires_grad=True)
        def once(function, f=f) -> float:
            f.grad = None
            return timed_call(lambda: function(f).sum().backward(), f.is_cuda)
        for name,(ours,literal) in functions(args.device, size).items():
            for _ in range(5): once(ours), once(literal)
            rounds = range(2 if args.trial else 100)
            df = pd.DataFrame([dict(ours=once(ours), literal=once(literal)) for _ in rounds])
            rows.append(dict(function=name, map=' x '.join(map(str, size)), ms=df.ours.median(),
                             literal_ms=df.literal.median(), **quartiles(df.literal/df.ours, 'literal_over_ours')))
    return pd.DataFrame(rows)


def parse() -> argparse.Namespace:
    "Command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='resnet18')
    p.add_argument('--size', type=int, default=64, help='pixels')
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--methods', default='',
                   help='regular expression: only candidates whose label has a match, and plain (default: all)')
    p.add_argument('--functions', action='store_true', help='time the functions on maps instead')
    p.add_argument('--profile', action='store_true', help='list the operators that take the time instead')
    p.add_argument('--rounds', type=int, default=40)
    p.add_argument('--warmup', type=int, default=5)
    p.add_argument('--burst', type=int, default=1, help='training steps between two looks at the clock')
    p.add_argument('--seconds', type=float, default=math.inf, help='end by then, with fewer rounds than --rounds')
    p.add_argument('--trial', action='store_true', help='to try the script: any number of rounds will do')
    p.add_argument('--amp', choices=['fp16', 'bf16'])
    p.add_argument('--channels-last', action='store_true')
    p.add_argument('--uint8', action='store_true',
                   help='hold the images as bytes on the device, normalise in each step')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--out', type=Path, help='folder for the CSV files')
    args = p.parse_args()
    if args.rounds<20 and not args.trial: p.error('--rounds must be at least 20: fewer pairs say little')
    if min(args.rounds, args.burst)<1: p.error('--rounds and --burst must be at least 1')
    return args


def setting_of(args: argparse.Namespace) -> str:
    "What was measured, as in the name of the file"
    place = 'gpu' if on_cuda(args.device) else args.device
    burst = f'burst{args.burst}' if args.burst>1 else None
    how = [args.amp, args.channels_last and 'channels_last', args.uint8 and 'uint8', burst]
    return '_'.join([place, args.arch, f'{args.size}px', f'bs{args.bs}', *filter(None, how)])


def main() -> int:
    "Measure, print, write"
    args = parse()
    setting,left = setting_of(args),{}
    place = setting.partition('_')[0]
    if args.functions: name,df = f'functions_{place}',measure_functions(args)
    elif args.profile: name,df = f'profile_{place}',measure_operators(args).assign(setting=setting)
    else:
        df,left = measure(args)
        name,df = f'overhead_{setting}',df.assign(setting=setting)
    card = torch.cuda.get_device_name(args.device) if on_cuda(args.device) else args.device
    df = df.assign(threads=torch.get_num_threads(), torch=torch.__version__, device=card)
    print(f'\n{name}\n{df.to_string(index=False, float_format="{:.3f}".format)}')
    for n,why in left.items(): print(f'left out: {n}: {why}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out/f'{name}.csv'
        (merged(df, path) if args.methods and not args.profile else df).to_csv(path, index=False)
    return int(bool(left))


if __name__ == '__main__': sys.exit(main())
