"""Ideas that may make the methods work better where a pretrained network is fine-tuned, each tried once.

    python benchmarks/fine_tuning_ideas.py flowers --recipe whole --seeds 2 --out nbs/results/fine_tuning
    python benchmarks/fine_tuning_ideas.py flowers --recipe whole --ideas 2,5 --out nbs/results/fine_tuning

They are judged on the images for choosing of `fine_tuning.py`, and trained by one of its recipes. An idea is a callback
of its own here, held beside the library's; one that wins may become an option of it. Each idea needs what it would
improve beside it, which is trained too. The rows are in OUT/ideas; what has ended is not run again.
"""
import argparse
from contextlib import contextmanager
from copy import deepcopy
import torch
from fastai.vision.all import Callback,TrainEvalCallback,Tensor,delegates,nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from fastai_featreg.core import register_method
from fastai_featreg.heads import isolated_rng
from fastai_featreg.methods.cam_loss import CAMLoss
from fastai_featreg.methods.feature_mining import FeatureMining
from fine_tuning import add_common,among,lay_set,recipes,run


def masked(f: Tensor, mask: Tensor) -> Tensor:
    "A part of a map, (N,D,H,W): a mask (H,W) of positions or (D,) of channels leaves zeros"
    mask = mask.to(f)
    return f*(mask if mask.ndim==2 else mask[:, None, None])


def both_parts(f: Tensor, mask: Tensor, other: Tensor|None = None) -> list:
    "Both parts of a map; without a second mask it is the rest of the first"
    return [masked(f, mask), masked(f, 1 - mask if other is None else other)]


def head_of(model: nn.Module, layers: int) -> nn.Module:
    "What fastai puts behind the last map of a body"
    if not isinstance(layers, int):
        raise ValueError(f"layers must be a number of last stages, got {layers!r}; "
                         "the learner's head fits the last map alone")
    if not isinstance(model, nn.Sequential) or len(model)!=2:
        raise ValueError(f"model must be a body and a head, got a {type(model).__name__}; make it with vision_learner")
    return model[1]


class DropoutApart(FeatureMining):
    "`FeatureMining` whose heads may have dropout: they draw apart, so that training has the numbers of plain training"
    def loss_term(self, maps):
        "The usual one, under a seed of its own"
        seed = int(torch.randint(2**62, (), generator=self.generator))
        with isolated_rng(seed, next(iter(maps.values())).device): return self.parts_term(maps)

    def parts_term(self, maps):
        "Override for other parts or heads"
        return super().loss_term(maps)


# --- 1: auxiliary classifiers that begin as the learner's own ---

class CopiedHead(nn.Module):
    "A copy of a network's head, pooling and all, for each of the two parts of a map"
    def __init__(self, head: nn.Module):
        super().__init__()
        self.part1,self.part2 = deepcopy(head),deepcopy(head)

    def forward(self, f: Tensor, *masks: Tensor) -> list:
        "Logits of both parts"
        return [head(part) for head,part in zip((self.part1, self.part2), both_parts(f, *masks))]


class CopiedMining(DropoutApart):
    "`FeatureMining` whose classifiers of the last map begin as copies of the learner's head"
    def make_heads(self, stages, n_out):
        "The usual ones, but for the last map"
        copied = CopiedHead(head_of(self.learn.model, self.layers))
        return nn.ModuleList([*super().make_heads(stages[:-1], n_out), copied])


# --- 2: the parts are classified by the learner's own head ---

@contextmanager
def nothing_remembered(module: nn.Module):
    "BatchNorm layers normalise by the batch, and what they know of earlier ones stays"
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms: m.momentum = 0.
    try: yield
    finally:
        for m,momentum in zip(norms, momenta): m.momentum = momentum


class OwnHeadMining(DropoutApart):
    "`FeatureMining` of the last map by the learner's own head, so that it is taught too"
    def make_heads(self, stages, n_out):
        "Those of earlier maps"
        head_of(self.learn.model, self.layers)
        return super().make_heads(stages[:-1], n_out)

    def parts_term(self, maps):
        "The usual term of earlier maps, and the losses of both parts of the last by the learner's head"
        *earlier,(name, last) = maps.items()
        term = super().parts_term(dict(earlier))
        masks = [self.draw_mask(last, name) for _ in range(1 if self.complementary else 2)]
        head = self.learn.model[1]
        # in validation the head sees whole maps: halves must not enter its statistics
        with nothing_remembered(head): logits = [head(part) for part in both_parts(last, *masks)]
        return term + sum(self.loss_of(o.float()) for o in logits)


# --- 3: weight warm-up ---

class WarmUp:
    "The weight grows from 0 to its own over the first epochs of training, of several fits together"
    def weight_now(self):
        "The usual weight times the share of the warm-up that is done"
        done = 0 if self.acted is None else self.acted.batches
        return super().weight_now()*min(1., done/(self.warm*self.learn.n_iter))


class WarmMining(WarmUp, FeatureMining):
    "`FeatureMining` with a warm-up"
    @delegates(FeatureMining)
    def __init__(self, layers: int = 1, warm: float = 1., **kwargs):
        super().__init__(layers, **kwargs)
        self.warm = warm


class WarmCAMLoss(WarmUp, CAMLoss):
    "`CAMLoss` from the first batch on, with a warm-up"
    @delegates(CAMLoss)
    def __init__(self, start: int = 0, warm: float = 1., **kwargs):
        super().__init__(start=start, **kwargs)
        self.warm = warm


# --- 5: statistics of BatchNorm under a callback that changes maps; alone they are controls ---

class KeepNorms(Callback):
    "BatchNorm layers of the body normalise by the statistics they came with, and keep them"
    run_after,run_valid = TrainEvalCallback,False
    def before_train(self):
        "Their weights are trained as before"
        for m in self.learn.model[0].modules():
            if isinstance(m, _BatchNorm): m.eval()


class RefitNorms(Callback):
    "Before the last validation statistics of BatchNorm are estimated anew from training images, without the method"
    def after_train(self):
        "Not in a fit of the head alone, such as the first of `fine_tune`: the second would see other batches"
        if self.learn.epoch<self.learn.n_epoch - 1 or self.learn.opt.frozen_idx>0: return
        update_bn(self.learn.dls.train, self.learn.model, self.learn.dls.device)


own = dict(copied_mining=CopiedMining, own_head_mining=OwnHeadMining, warm_mining=WarmMining, warm_cam_loss=WarmCAMLoss,
           keep_norms=KeepNorms, refit_norms=RefitNorms)
mining = ['FeatureMining()', 'FeatureMining(layers=2)']
# the methods of an idea, and those of the library that it would improve; plain is always among them
arms = {
    1: mining + ['CopiedMining()', 'CopiedMining(layers=2)'],
    2: mining + ['OwnHeadMining()', 'OwnHeadMining(layers=2)'],
    3: mining + ['WarmMining()', 'WarmMining(layers=2)', 'CAMLoss(start=0)', 'WarmCAMLoss()'],
    # a strength of a half is a retaining rate of 0.6 in place of 0.2; by default it is 0.5 and 1
    4: ['SelectScale()', 'SelectScale(strength=[0.25, 0.5])', 'SelectScale(strength=[0.125, 0.25])',
        'SelectScale(top_rate=0.05)', 'SelectScale(layers=1)', 'SelectScale(layers=1, strength=0.5)'],
    5: ['SelectScale()', 'DropBlock()', 'KeepNorms()', 'SelectScale()+KeepNorms()', 'DropBlock()+KeepNorms()',
        'RefitNorms()', 'SelectScale()+RefitNorms()', 'DropBlock()+RefitNorms()'],
}


def enter():
    "The ideas by name, as methods of the library are"
    for name,cls in own.items(): register_method(name)(cls)


def main():
    "Some ideas on one set, by one recipe"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(p)
    p.add_argument('--recipe', choices=list(recipes), default='whole')
    p.add_argument('--ideas', default=','.join(map(str, arms)), help='their numbers')
    p.add_argument('--seeds', type=int, default=2)
    p.add_argument('--epochs', type=int, help='fewer than the recipe has, to try the script')
    args = p.parse_args()
    asked = among(p, '--ideas', args.ideas, list(map(str, arms)))
    if args.jobs!=1: p.error(f'--jobs must be 1, got {args.jobs}; other processes do not know the ideas')
    enter()
    lay_set(args)
    args.stage,args.out = 'tune',args.out/'ideas'
    if args.epochs is not None: recipes[args.recipe]['epochs'] = args.epochs
    labels = [o for i in asked for o in arms[int(i)]]
    run(args, args.recipe, list(dict.fromkeys(labels)), args.seeds)


if __name__=='__main__': main()
