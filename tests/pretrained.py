"""A learner as `vision_learner` makes it of trained weights: a frozen body in two groups of layers, BatchNorms that
have statistics, a fresh head. The weights are noise, always the same; what is asked here is asked of any weights"""
from functools import lru_cache
from tiny import *
from timm.models.resnet import BasicBlock, ResNet


@lru_cache
def trained_weights():
    "Weights and statistics of a small residual network that has seen noise"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = untrained()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, .5, 1.5)
                nn.init.normal_(m.bias, std=.2)
        for _ in range(20): net(torch.randn(8, 3, 64, 64))
    return net.state_dict()

def untrained(): return ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), num_classes=4)

def small_resnet(
    pretrained:bool=False, # as `vision_learner` asks
)->nn.Module: # with the names and the order of a ResNet's layers
    "An architecture with weights that need no download"
    net = untrained()
    if pretrained: net.load_state_dict(trained_weights())
    return net

def thirds(m): return L(m[0][:6], m[0][6:], m[1:]).map(params) # as fastai parts a ResNet


def pretrained_learner(
    cbs=None, # given to `vision_learner`, as the README does it
    n:int=16, # images to train with, in batches of 8
    seed:int=1,
    path:Path|None=None,
    linear:bool=True, # a linear head, or fastai's own with a hidden layer
    **kwargs # of `vision_learner`
)->Learner:
    "With a frozen body, its optimiser made, silent"
    trained_weights() # drawn before the seed is set
    set_seed(seed)
    x,y = torch.randn(n, 3, 64, 64),torch.randint(0, 10, (n,))
    dls = DataLoaders.from_dsets(Pairs(zip(x, y)), Pairs(zip(x[:8], y[:8])), bs=8, num_workers=0)
    head = dict(concat_pool=False, lin_ftrs=[]) if linear else {}
    learn = vision_learner(dls, small_resnet, n_out=10, splitter=thirds, cbs=cbs, loss_func=CrossEntropyLossFlat(),
                           path=path or new_folder(), **head | kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


class StaysFrozen(Callback):
    "Counts, for every fit, the frozen parameters and those of them that have not moved; BatchNorms learn (`train_bn`)"
    order,run_valid = -60,False
    def __init__(self): self.fits = []
    def before_fit(self):
        self.frozen = {n: p.detach().clone() for n,p in self.model.named_parameters() if not p.requires_grad}
        self.norms = {n: p.detach().clone() for n,p in self.model[0].named_parameters() if n.startswith('1.')}
    def after_fit(self):
        now = dict(self.model.named_parameters())
        self.fits.append((len(self.frozen), sum(torch.equal(p, now[n]) for n,p in self.frozen.items())))
        learnt = [not torch.equal(p, now[f'0.{n}']) for n,p in self.norms.items()]
        assert len(learnt)==2 and all(learnt), 'the first BatchNorm has not learnt'


def groups(learn): return [[p.detach().clone() for p in ps] for ps in learn.opt.param_lists]

def moved(before, learn):
    "For each group of the optimiser: has any of its parameters moved?"
    return [any(not torch.equal(p, q) for p,q in zip(a, b, strict=True)) for a,b in zip(before, groups(learn))]

def heads_of(cb):
    "State of a callback's own heads, copied; centres are no parameters, but learn"
    return {} if cb.aux_heads is None else {k: v.clone() for k,v in cb.aux_heads.state_dict().items()}
