"A small learner on noise, the same for the same seed, and what the tests ask of it"
import os, tempfile
from contextlib import contextmanager
from pathlib import Path
import torch
import torch.utils.checkpoint
from fastai.vision.all import *
from torch import nn
from torch.amp import GradScaler, autocast
from fastai_featreg.all import *
from fastai_featreg.taps import TapHook

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8') # without it cuBLAS need not give the same bits again

# pytest would take fastai's helpers for tests
for name in [o for o in globals() if o.startswith('test')]: del globals()[name]


class Pairs(list):
    "A data set of pairs that `export` can empty and `tta` can ask for training transforms"
    def new_empty(self): return Pairs()
    @contextmanager
    def set_split_idx(self, i): yield self


class Inert(FeatureCallback):
    "Everything a method does, on detached maps: only its heads can learn"
    column = 'inert'
    def make_heads(self, stages, n_out): return nn.ModuleList(nn.Linear(s.channels, n_out) for s in stages)
    def loss_term(self, maps):
        return sum(self.learn.loss_func(h(f.detach().float().mean((2, 3))), *self.learn.yb)
                   for h,f in zip(self.aux_heads, maps.values()))


class CpuMixedPrecision(MixedPrecision):
    "fastai's mixed precision does nothing on a CPU; this does, with a scaler"
    dtype = torch.bfloat16
    def before_fit(self):
        scaler = GradScaler('cpu', **self.kwargs)
        self.autocast,self.learn.scaler,self.scales = autocast('cpu', dtype=self.dtype),scaler,L()

class CpuHalf(CpuMixedPrecision): dtype = torch.float16


class where:
    "Device of the learners that `tiny_learner` makes"
    device = 'cpu'

@contextmanager
def learners_on(device):
    "Learners that are made inside train there, by algorithms that give the same bits again"
    before,algorithms = where.device,torch.are_deterministic_algorithms_enabled()
    where.device = device
    # only a warning: what a method computes beside the model may have no other algorithm
    torch.use_deterministic_algorithms(True, warn_only=True)
    try: # benchmark, which fastai turns on, may choose another algorithm each time; TF32 is no float32
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False): yield
    finally:
        where.device = before
        torch.use_deterministic_algorithms(algorithms)

def fp16(init_scale=2.**10):
    """fastai's own mixed precision on a GPU, the same by hand on a CPU. With the default scale, 2^16, the first steps
    overflow and are skipped, and these fits have no others"""
    return (CpuHalf if where.device=='cpu' else MixedPrecision)(init_scale=init_scale)

def bf16():
    "fastai's own on a GPU, the same by hand on a CPU"
    return CpuMixedPrecision() if where.device=='cpu' else MixedPrecision('bf16')


# one folder for all, which goes when this process ends: a run of all tests makes thousands
scratch = tempfile.TemporaryDirectory(prefix='featreg-')

def new_folder():
    "An empty folder that is gone when the tests have ended"
    return Path(tempfile.mkdtemp(dir=scratch.name))


def tiny_model(n_out=10):
    block = lambda i,o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
    body = nn.Sequential(block(3, 8), block(8, 8), block(8, 16))
    return nn.Sequential(body,
                         nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, n_out)))


def tiny_teacher(seed=5, hidden=False, n_out=10, d=12):
    "Another network than the student, with maps of 4 x 4 positions where the student has 2 x 2"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = lambda i,o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
        head = [nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, n_out)] if hidden else [nn.Linear(d, n_out)]
        return nn.Sequential(nn.Sequential(block(3, 8), nn.Dropout(.5), block(8, d)),
                             nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head))


class Checkpointed(nn.Module):
    "Runs its module again in the backward pass"
    def __init__(self, m, reentrant=False):
        super().__init__()
        self.m,self.reentrant = m,reentrant
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.m, x.requires_grad_(), use_reentrant=self.reentrant)


def tiny_learner(cbs=None, n=48, bs=8, path=None, seed=1, **kwargs):
    set_seed(seed)
    x,y = torch.randn(n, 3, 16, 16),torch.randint(0, 10, (n,))
    dls = DataLoaders.from_dsets(Pairs(zip(x, y)), Pairs(zip(x[:8], y[:8])), bs=bs,
                                  device=torch.device(where.device), num_workers=0)
    path = path or new_folder()
    learn = Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=cbs,
                    splitter=lambda m: [params(m[0]), params(m[1])], path=path, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def assert_same(a, b):
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), f'{k} differs'

def assert_clean(learn, guard=True):
    "Nothing of ours acts on the model, stands in the optimiser, or sits on the learner"
    for m in learn.model.modules():
        assert not any(isinstance(h, TapHook) for h in m._forward_hooks.values()), 'a tap is left'
    own = {id(p) for p in learn.model.parameters()}
    if learn.opt is not None:
        assert {id(p) for g in learn.opt.param_lists for p in g}==own, 'a parameter of ours is left in the optimiser'
        assert {id(p) for p in learn.opt.state} <= own, 'a state of ours is left in the optimiser'
    assert not guard or '_do_epoch_train' not in learn.__dict__, 'the guard is left'

def norms(name, m):
    "A predicate for layers, by its name known to another process"
    return isinstance(m, nn.BatchNorm2d)
