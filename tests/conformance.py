"""What a user relies on, for every registered method: a table of methods, a table of cells, and a function that runs
one cell. `python tests/conformance.py` runs all of it and prints the counts; `--csv FILE` writes the table. Half
precision is a stand-in there, as fastai's does nothing on a CPU: `--device cuda` runs the cells of a GPU, with
fastai's own."""
import argparse, csv, random, re, subprocess, sys, time
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import combinations
from unittest import mock
from zipfile import ZipFile
import two_ranks
from fastai.callback.channelslast import ChannelsLast
from fastai_featreg.core import card_of, methods
from fastai_featreg.methods import own_methods
from fastai_featreg.heads import isolated_rng
from pretrained import *
from torch.optim.swa_utils import AveragedModel

# ---- the methods ----

@dataclass
class Entry:
    "What the suite has to know about a method; `entry_of` reads it from the class and from its card in the registry"
    make: Callable # makes the callback, acting from the first batch on; one that needs a teacher is given it
    neutral: dict|str # ways to make it so that it does nothing; or why there is none
    acts: dict # event -> what it changes there, as `observe` names it; everything else it must leave alone
    columns: tuple = () # names of its columns in the table
    teacher: bool = False # must it be given a teacher?
    variants: dict = field(default_factory=dict) # more ways to make it, for the cells marked so
    # does it become part of the model, so that predictions are its own and dropout draws for it?
    permanent: bool = False
    refused: dict = field(default_factory=dict) # cell -> expression that the sentence matches; None: it is not refused
    without: dict = field(default_factory=dict) # cell -> why it does not apply


def overrides(cls, blank):
    "Does the class fill in one of the blanks of its base?"
    base = FeatureCallback if issubclass(cls, FeatureCallback) else LossCallback
    return hasattr(base, blank) and getattr(cls, blank) is not getattr(base, blank)

def reads_map(cls): return overrides(cls, 'loss_term')

def adds_term(cls): return reads_map(cls) or not issubclass(cls, FeatureCallback) and overrides(cls, 'term')

def acts_of(cls):
    "Event -> what a callback changes there, by the blanks that it fills in"
    acts = dict(before_epoch={'guard'})
    if adds_term(cls):
        acts = dict(before_fit={'metrics'}, before_epoch={'metrics', 'guard'}, after_loss={'loss'}, after_epoch={'row'})
    if reads_map(cls): acts |= dict(before_batch={'taps'}, after_pred={'taps'})
    if overrides(cls, 'change_map'): # its taps stay until the backward pass, which may run the layer again
        acts |= dict(before_batch={'taps'}, after_batch={'taps'})
        acts.pop('after_pred', None)
    if overrides(cls, 'make_heads'):
        acts |= dict(before_backward={'optimiser'}, after_batch=acts.get('after_batch', set()) | {'optimiser'})
    return acts

def refusals(cls):
    "Cell -> expression: what follows from the way a callback meets the network"
    if reads_map(cls): return {'reentrant checkpointing': 'use_reentrant=False'}
    return {} if overrides(cls, 'change_map') else {'nn.DataParallel': None} # without a map it needs no tap

no_term = {'train_loss is the task loss': 'it adds no term, it changes the map that the task loss is made of',
           **dict.fromkeys(('bf16 is near float32', 'fp16 is near float32 on CUDA', 'CUDA is near a CPU'),
                           'it has no column to compare')}

# What a new method need not have: arguments that show more of a method on nets this small, more ways to make it, and
# what cannot be read from a class.
settings = dict(feature_mining=dict(layers=2), feature_dropout=dict(p=.5), spatial_dropout=dict(p=.5),
                drop_block=dict(p=.8, block_size=3), spatial_scale=dict(retain=0.), selectout=dict(top_rate=.3, p=.8),
                select_scale=dict(top_rate=.3, retain=0.), mv_fea_aug=dict(k=3, sizes=(1, 3), seed=0))
variants = dict(
    select_scale={'all': dict(layers='all'), 'curriculum': dict(layers=norms, curriculum=True, strength=.5)},
    cam_loss={m: dict(cam=m) for m in ('grad_cam', 'grad_cam_pp')}, negative_cam={'grad_cam': dict(cam='grad_cam')},
    knowledge_distillation={'dkd': dict(loss='dkd')}, attention_transfer={'grad_cam': dict(cam='grad_cam')},
    ccm={'grad_cam': dict(cam='grad_cam'), 'cache': dict(cache=True),
         # a sum over 2 x 2 positions, as large as the mean: bfloat16 shows as much in either
         'letter': dict(per_class=True, positions='sum', gamma=.25)},
    mv_fea_aug={'mlp': dict(classifier='mlp')})
centres = acts_of(CenterLoss) # in a module without parameters, so the optimiser is not touched
del centres['before_backward'],centres['after_batch']
special = dict(center_loss=dict(acts=centres), mv_fea_aug=dict(
    acts=acts_of(MVFeaAug) | dict(after_loss={'loss', 'batch'}, after_fit={'weights'}), permanent=True,
    without={'train_loss is the task loss': 'its train_loss is the loss that it trains, of all views',
             'checkpoint is a plain one': 'its auxiliary classifier is in the checkpoint; '
                                          'a plain checkpoint loads with strict=False',
             'removed, it leaves nothing': 'the views stay in the model, which predicts by them; '
                                           'its own `remove` gives the plain head back'}))

# what acts on images of a batch before the network sees them
whole_batch = {'accumulated batches equal a big one': 'what it draws is drawn for a whole batch'}
for name,cls in dict(cutout=CutOut, batch_mixup=BatchMixUp, batch_cutmix=BatchCutMix).items():
    special[name] = dict(acts=acts_of(cls) | dict(before_batch={'batch'}), without=no_term | whole_batch)
special['manifold_mixup'] = dict(acts=acts_of(ManifoldMixup) | dict(before_batch={'taps', 'batch'}),
                                 without=no_term | whole_batch)
settings['batch_cutmix'] = dict(p=1.)
# the tiny network has no residual branch; a stage is taken for one
needs_branches = {'repr evals back': 'made without arguments it is refused by the tiny network; its page has the cell'}
for name in ('stoch_depth', 'shake_drop'):
    settings[name],special[name] = dict(layers=[1]),dict(without=no_term | needs_branches)

in_the_network = {
    'checkpoint is a plain one': 'its blocks are in the checkpoint',
    'removed, it leaves nothing': 'its blocks stay in the network, which predicts by them'}
for name in ('se', 'cbam', 'gc', 'sk'):
    special[name] = dict(permanent=True, without=no_term | in_the_network)
special['gc']['without'] |= {'finite gradients everywhere': 'its last layer begins at zero, which stops the first ones'}
settings['se'] = dict(seed=1) # a ReLU of four channels may begin dead
settings['sk'] = dict(layers=[1, 2]) # the weights that the cells look at are those of the first stage


def entry_of(name):
    "The entry of a registered method, from its class, its card and the tables above"
    cls,card,given = methods[name],card_of(name),settings.get(name, {})
    made = lambda **kwargs: partial(cls, **given | card.quick | kwargs)
    ways = card.neutral if isinstance(card.neutral, str) else {k: made(**v) for k,v in card.neutral.items()}
    return Entry(**dict(
        make=made(), neutral=ways, acts=acts_of(cls), columns=tuple(L(cls.column)),
        teacher=getattr(cls, 'needs_teacher', False), variants={k: made(**v) for k,v in variants.get(name, {}).items()},
        refused=refusals(cls) | card.refused, without={} if adds_term(cls) else no_term,
    ) | special.get(name, {}))

entries = {name: entry_of(name) for name in own_methods()}


def refused_pair(a, b):
    "Expression that the sentence matches with which two methods are refused on one learner; None: they work together"
    halves = [inspect.signature(methods[n]).parameters.get('beta') for n in (a, b)]
    if all(o is not None and o.default==.5 for o in halves): return 'leave nothing of the task loss' # half of it each
    return entries[a].refused.get(f'beside {b}') or entries[b].refused.get(f'beside {a}')


def steady(cb):
    "Takes what is random between two images of a batch, and between two batches, out of a callback"
    def again(f, *args):
        if cb.generator is not None: cb.generator.manual_seed(0)
        with isolated_rng(0): return f(*args)
    if not isinstance(cb, FeatureCallback): # without a map there is nothing to draw for
        return
    change,term = cb.change_map,cb.loss_term
    cb.change_map = lambda stage, fmap: torch.cat([again(change, stage, f[None]) for f in fmap])
    cb.loss_term = lambda maps: again(term, maps)


@dataclass
class Row:
    "A method, or a variant of one, as the cells see it"
    name: str # as in the table
    method: str # as registered
    entry: Entry
    maker: Callable

    def make(self, maker=None, teacher=None):
        "The callback, with a teacher if it needs one"
        maker = maker or self.maker
        return maker(tiny_teacher() if teacher is None else teacher) if self.entry.teacher else maker()

def rows(variants=False):
    "The methods, or their variants"
    if not variants: return [Row(n, n, e, e.make) for n,e in entries.items()]
    return [Row(f'{n} ({v})', n, e, make) for n,e in entries.items() for v,make in e.variants.items()]

# ---- the cells ----

@dataclass
class Cell:
    "Something that is asked of every method"
    test: Callable # takes a `Row`, raises if the answer is no
    variants: bool = False # is it asked of the variants too?
    refused: str|None = None # expression that the sentence matches, where every method refuses by design

cells,cuda_cells = {},{} # those of `cuda_cells` make learners where `where.device` says

def cell(name, variants=False, refused=None, table=cells):
    "Enter a function of a `Row` among the cells"
    def _enter(f):
        table[name] = Cell(f, variants, refused)
        return f
    return _enter

# ---- ways to train ----

class Average(Callback):
    "An exponential moving average of the weights, beside whatever trains"
    order,run_valid = 60,False
    def before_fit(self):
        self.ema = AveragedModel(self.model, multi_avg_fn=None, avg_fn=lambda avg, new, n: .5*avg + .5*new)
    def after_batch(self): self.ema.update_parameters(self.model)

class LookInside(Callback):
    "Predict a batch in the middle of a training batch, while taps are in the model"
    run_valid = False
    def after_batch(self):
        x = self.x
        with torch.no_grad(): a,b = self.model.eval()(x),self.model(x)
        self.model.train()
        assert torch.equal(a, b), 'something acts in evaluation mode'

class PredictInside(Callback):
    "Predict after each epoch, as fastai wants it inside a fit"
    order = 70
    def after_epoch(self):
        self.learn.get_preds(inner=True)
        assert_clean(self.learn)

def frozen_then_not(learn, cbs):
    learn.add_cbs(cbs).create_opt()
    learn.freeze()
    # fresh attention blocks are trained with the head
    body = lambda: [p.detach().clone() for n,p in learn.model[0].named_parameters() if p.ndim==4
                    and 'attention_' not in n]
    convs = body()
    learn.fit(1, 1e-2)
    assert all(map(torch.equal, convs, body())), 'a frozen layer was trained'
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert not any(map(torch.equal, convs, body())), 'a layer was not trained'

def sliced(learn, cbs):
    learn.fit(2, slice(1e-3, 1e-2), cbs=cbs)
    assert [h['lr'] for h in learn.opt.hypers]==[1e-3, 1e-2]

def find_then_fit(learn, cbs):
    before = weights(learn.add_cbs(cbs))
    learn.lr_find(num_it=8, show_plot=False)
    assert_same(before, weights(learn))
    learn.fit(1, 1e-2)

def two_fits(learn, cbs):
    learn.add_cbs(cbs).fit(1, 1e-2)
    learn.get_preds()
    learn.fit(1, 1e-2)

def compiled(learn, cbs):
    learn.model.compile(backend='eager')
    two_fits(learn, cbs)

def averaged(learn, cbs):
    average = Average()
    learn.fit(2, 1e-2, cbs=[average] + list(cbs))
    assert not any(isinstance(h, TapHook) for m in average.ema.modules()
                   for h in m._forward_hooks.values()), 'the average has a tap'
    assert (average.ema.n_averaged==4 and all(p.isfinite().all() for p in average.ema.parameters())
            and average.ema.module.state_dict().keys()==learn.model.state_dict().keys())

def with_loss(loss, target=noop):
    "Train on other targets, made of the classes"
    def way(learn, cbs):
        for dl in learn.dls: dl.dataset[:] = [(x, target(y)) for x,y in dl.dataset]
        learn.loss_func = loss
        learn.fit(2, 1e-2, cbs=cbs)
    return way

def beside(*others): return lambda learn, cbs: learn.fit(2, 1e-2, cbs=[o() for o in others] + list(cbs))
def optimiser(opt_func):
    def way(learn, cbs):
        learn.opt_func = opt_func
        learn.fit(2, 1e-2, cbs=cbs)
    return way

def hits(pred, y):
    "Share of right answers, of targets in any form"
    return (pred.argmax(1)==(y if y.ndim==1 else y.argmax(1))).float().mean()

accumulate = partial(GradientAccumulation, 16)
ways = {
    'fit': beside(),
    'fit twice': two_fits,
    'fine_tune': lambda learn, cbs: learn.add_cbs(cbs).fine_tune(1, 1e-2),
    'freeze and unfreeze': frozen_then_not,
    'sliced learning rates': sliced,
    'lr_find, then fit': find_then_fit,
    'one-cycle': lambda learn, cbs: learn.fit_one_cycle(2, 1e-2, cbs=cbs),
    'SGD': optimiser(SGD),
    'ranger': optimiser(ranger),
    "a torch optimiser": optimiser(partial(OptimWrapper, opt=torch.optim.AdamW)),
    'MixUp': beside(MixUp),
    'CutMix': beside(CutMix),
    'label smoothing': with_loss(LabelSmoothingCrossEntropyFlat()),
    'focal loss': with_loss(FocalLossFlat()),
    'multi-label BCE': with_loss(BCEWithLogitsLossFlat(),
                                 lambda y: (F.one_hot(torch.stack([y, (y+3)%10]), 10).sum(0)).float()),
    'soft targets': with_loss(nn.CrossEntropyLoss(), lambda y: .8*F.one_hot(y, 10) + .02),
    'GradientClip': beside(partial(GradientClip, .1)),
    'GradientAccumulation': beside(accumulate),
    'BnFreeze': beside(BnFreeze),
    'SaveModelCallback': beside(partial(SaveModelCallback, every_epoch=True, with_opt=True)),
    'bf16 and scaler': beside(CpuMixedPrecision),
    'bf16, MixUp and accumulation': beside(CpuMixedPrecision, MixUp, accumulate),
    'channels_last': beside(ChannelsLast),
    'model.compile()': compiled,
    'moving average': averaged,
    'predictions during a fit': beside(LookInside, PredictInside),
}


def trained(way, cb=None, **kwargs):
    "A learner that has gone that way, and what the global generators give next"
    make = pretrained_learner if way in pretrained_ways else tiny_learner
    learn = make(**dict(n=16, metrics=hits) | kwargs)
    ways[way](learn, [cb] if cb else [])
    return learn,(torch.rand(1).item(), random.random(), np.random.rand(), torch.rand(1, device=where.device).item())

def plain(way): return plain_on(where.device, way)

@lru_cache
def plain_on(device, way):
    "Weights, draws and table of a learner without a callback"
    learn,draws = trained(way)
    return weights(learn),draws,learn.opt.state_dict(),list(learn.recorder.values)

def same_state(a, b):
    "Two states of an optimiser are equal, to the last number"
    assert len(a['state'])==len(b['state'])
    for x,y in zip(a['state'], b['state']):
        assert x.keys()==y.keys() and all(torch.equal(tensor(x[k]), tensor(y[k])) for k in x)

def same_as_plain(way, learn, draws):
    "Weights, draws and optimiser's state are those of a learner that has had no callback"
    other,others_draws,state,_ = plain(way)
    assert_same(other, weights(learn))
    assert draws==others_draws, 'a global random generator has moved'
    same_state(state, learn.opt.state_dict())
    assert_clean(learn)

def holds_nothing(cb):
    "After a fit a callback keeps no map, no graph and no network"
    assert all(cb.__dict__.get(k) is None for k in ('_fit', 'guide', 'maker', 'anatomy'))

def table_is_right(learn, columns):
    "The columns stand in the table once, their values are positive, and the metrics are the user's again"
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'hits', *columns, 'time']
    assert np.isfinite(np.array(learn.recorder.values, dtype=float)).all()
    assert all(o>0 for v in learn.recorder.values for o in v[3:])
    assert [m.name for m in learn.metrics]==['hits'] and len(learn.validate())==2

def where_it_shows(way):
    "A weight that learns, of the first layer where it can"
    return pretrained_ways[way] if way in pretrained_ways else '0.0.0.weight'

def acts(row, way):
    """It trains otherwise than no callback does, draws nothing from the global generators, has its column, leaves
    nothing"""
    cb = row.make()
    learn,draws = trained(way, cb)
    other,others_draws,*_ = plain(way)
    assert not torch.equal(other[where_it_shows(way)], weights(learn)[where_it_shows(way)]), 'it did not act'
    assert draws==others_draws or row.entry.permanent, 'a global random generator has moved'
    table_is_right(learn, row.entry.columns)
    assert_clean(learn)
    holds_nothing(cb)
    return learn

def neutral(row, way):
    "Made so that it does nothing, it trains bit for bit as no callback does"
    for make in row.entry.neutral.values(): same_as_plain(way, *trained(way, row.make(make)))

with_variants = ('MixUp', 'CutMix', 'GradientClip', 'GradientAccumulation', 'bf16 and scaler', 'channels_last')
with_neutral = ('fit', 'fine_tune', 'freeze and unfreeze', 'sliced learning rates', 'lr_find, then fit', 'one-cycle',
                'MixUp', 'CutMix', 'GradientClip', 'GradientAccumulation', 'SaveModelCallback',
                'bf16 and scaler', 'bf16, MixUp and accumulation', 'channels_last', 'model.compile()')
for way in ways: cell(way, variants=way in with_variants)(partial(acts, way=way))
for way in with_neutral: cell(f'neutral: {way}')(partial(neutral, way=way))

@cell('model.compile()', variants=True)
def compiled_equals(row):
    "It acts in the first and in the second fit just as without compilation"
    assert_same(weights(acts(row, 'fit twice')), weights(acts(row, 'model.compile()')))




# ---- what holds besides ----

def small(cb=None, **kwargs): return tiny_learner(cb, **dict(n=16, metrics=hits) | kwargs)

def fitted(cb=None, epochs=1, lr=1e-2, **kwargs):
    learn = small(cb, **kwargs)
    learn.fit(epochs, lr)
    return learn

@cell('train_loss is the task loss')
def task_loss(row):
    "At a learning rate of 0 the table is that of a learner without a callback, with one column more"
    learn,other = fitted(row.make(), 2, 0.),fitted(None, 2, 0.)
    assert [v[:3] for v in learn.recorder.values]==[v[:3] for v in other.recorder.values]
    assert learn.validate()==other.validate()

@cell('bf16 is near float32', variants=True)
def near_float32(row, half=CpuMixedPrecision):
    full,half = [fitted([row.make()] + extra).recorder.values[0][3:] for extra in ([], [half()])]
    assert full and all(abs(a - b) < .03*max(1, a) for a,b in zip(full, half))

def in_eval_mode(cb):
    "A callback whose heads normalise by their statistics, as the network's layers do in that cell"
    make = getattr(cb, 'make_heads', None)
    def made(*args):
        heads = make(*args)
        if heads is not None: heads.train = lambda mode=True: nn.Module.train(heads, False)
        return heads
    if make: cb.make_heads = made

@cell('accumulated batches equal a big one')
def accumulated(row):
    def run(bs, extra):
        cb = row.make()
        steady(cb)
        in_eval_mode(cb)
        learn = small([cb] + extra, bs=bs, opt_func=SGD, wd=0., moms=(0, 0, 0))
        # batch norms and dropout would tell a half from a whole batch
        for m in learn.model.modules(): m.training = m is learn.model
        learn.model.train = lambda mode=True: learn.model
        before = weights(learn)
        learn.fit(1, .1)
        assert not torch.equal(before['0.0.0.weight'], weights(learn)['0.0.0.weight'])
        return list(learn.model.parameters()) + list(cb.aux_heads.parameters() if cb.aux_heads else [])
    for p,q in zip(run(16, []), run(8, [accumulate()]), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

def half_trained(row, wrap=noop):
    learn = small(row.make())
    for m in learn.model.modules(): # a BatchNorm that runs twice updates its statistics twice
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0.
    learn.model[0] = wrap(learn.model[0])
    learn.fit(2, 1e-2)
    assert_clean(learn)
    return {k.replace('0.m.', '0.'): v for k,v in weights(learn).items() if 'num_batches' not in k}

@cell('gradient checkpointing', variants=True)
def checkpointing(row): assert_same(half_trained(row), half_trained(row, Checkpointed))

@cell('reentrant checkpointing', variants=True)
def reentrant_checkpointing(row):
    assert_same(half_trained(row), half_trained(row, partial(Checkpointed, reentrant=True)))

@cell('channels_last in a plain loader of torch')
def torch_loader(row):
    "Without fastai's data blocks, and with the model laid out by hand"
    x,y = torch.randn(16, 3, 16, 16),torch.randint(0, 10, (16,))
    dl = torch.utils.data.DataLoader(list(zip(x, y)), batch_size=8)
    learn = Learner(DataLoaders(dl, dl), tiny_model().to(memory_format=torch.channels_last),
                    loss_func=CrossEntropyLossFlat(), cbs=row.make(), metrics=hits)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1)
    table_is_right(learn, row.entry.columns)
    assert_clean(learn)

@cell('finite gradients everywhere')
def gradients(row, losses=('fit', 'bf16 and scaler')):
    class Look(Callback):
        order,run_valid = 60,False
        def before_step(self):
            for n,p in self.model.named_parameters():
                assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), n
            for p in self.heads(): assert p.grad.isfinite().all() and p.grad.any()
        def heads(self): return [] if cb.aux_heads is None else cb.aux_heads.parameters()
    cb = row.make()
    for loss in losses:
        learn = small([cb, Look()])
        ways[loss](learn, [])

def observe(learn):
    "What an event may change"
    loss,g = getattr(learn, 'loss_grad', None),learn.__dict__
    return dict(
        taps=sum(isinstance(h, TapHook) for m in learn.model.modules() for h in m._forward_hooks.values()),
        metrics=[m.name for m in learn.metrics],
        guard='_do_epoch_train' in g,
        optimiser=[len(group) for group in learn.opt.param_lists] if learn.opt else 0,
        loss=loss.item() if isinstance(loss, Tensor) else 0,
        row=len(learn.recorder.log) if hasattr(learn.recorder, 'log') else 0,
        model=[(type(m), m.training,
                len(m._forward_hooks) - sum(isinstance(h, TapHook) for h in m._forward_hooks.values()))
               for m in learn.model.modules()],
        weights=[(hash(p.detach().numpy().tobytes()), p.requires_grad, p.grad is None)
                 for p in [*learn.model.parameters(), *learn.model.buffers()]],
        batch=[id(o) for o in (g.get('pred'), g.get('loss'), *(g.get('xb') or ()), *(g.get('yb') or ()))],
        rng=(hash(torch.get_rng_state().numpy().tobytes()), random.getstate()[1][-1], np.random.get_state()[2]))

@cell('acts at its events and at no other')
def events(row):
    "What each event changes in training; in validation and prediction none changes anything"
    seen,call = {},type(cb := row.make()).__call__
    def watched(self, event_name):
        before = observe(self.learn)
        res = call(self, event_name)
        changed = {k for k,v in observe(self.learn).items() if v!=before[k]}
        if changed: seen.setdefault(event_name, set()).update(changed)
        return res
    learn = small(cb)
    with mock.patch.object(type(cb), '__call__', watched):
        learn.fit(2, 1e-2)
        assert seen==row.entry.acts, seen
        seen.clear()
        learn.validate(), learn.get_preds()
        assert not seen, seen
    before = observe(learn)
    learn.tta(n=1) # which fires a fit's first and last events: what they do must be undone
    after = observe(learn)
    changed = {k for k in before if before[k]!=after[k]} - {'row', 'batch', 'rng'} # loaders draw
    assert not changed, changed

def next_fit_is_sound(learn):
    "A fit after an exit trains, and leaves nothing"
    before = weights(learn)
    learn.fit(1)
    assert torch.is_grad_enabled()
    assert any(not torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items())
    assert_clean(learn)
    assert not any(isinstance(m, ValueMetric) for m in learn.metrics)
    ours = [cb for cb in learn.cbs if isinstance(cb, LossCallback)]
    assert all(list(learn.recorder.metric_names).count(c)==1 for cb in ours for c in cb.columns)
    for cb in ours: holds_nothing(cb)


class RaiseAt(Callback):
    "Raise `exc` the second time `event` is reached in training"
    order = 7
    def __init__(self, event, exc): self.event,self.exc,self.n = event,exc,0
    def __call__(self, event_name):
        if event_name==self.event and (self.learn.training or event_name in ('before_fit', 'after_epoch')):
            self.n += 1
            if self.n==(1 if event_name=='before_fit' else 2): raise self.exc('stop')

class Saboteur(nn.Module):
    "Raise in the third training forward pass, between two tapped layers"
    def __init__(self, exc):
        super().__init__()
        self.exc,self.n = exc,0
    def forward(self, x):
        self.n += self.training
        if self.training and self.n==3: raise self.exc('stop')
        return x

exit_events = ('before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step',
               'after_batch', 'after_train', 'after_epoch')
interruptions = {'cancelled': CancelFitException, 'exception': RuntimeError, 'Ctrl-C': KeyboardInterrupt}

def leaves_cleanly(learn, cbs, given, others=()):
    "A fit, in whatever way it ends, leaves nothing; nor does the next one"
    raised = False
    try: learn.fit(2, cbs=list(others) + (list(cbs) if given else []))
    except (RuntimeError, KeyboardInterrupt): raised = True
    assert_clean(learn)
    if given: assert all(cb.learn is None for cb in cbs)
    for cb in cbs if given else []: holds_nothing(cb)
    next_fit_is_sound(learn)
    return raised

def exit_at(make, exc, first_given):
    "An interruption at each event, in turn with the callback given to `fit` and to the learner"
    for i,event in enumerate(exit_events):
        cbs,raiser,given = L(make()),RaiseAt(event, exc),i%2==first_given
        raised = leaves_cleanly(small(None if given else list(cbs)), cbs, given, [raiser])
        assert raiser.n>=2 and raised==(exc is not CancelFitException), event

@cell('exit: normal')
def normal_exit(row):
    for given in (True, False):
        cb = row.make()
        leaves_cleanly(small(None if given else cb), [cb], given)

for i,(name,exc) in enumerate(interruptions.items()):
    cell(f'exit: {name}')(lambda row, exc=exc, i=i: exit_at(row.make, exc, i%2))

@cell('exit: in the forward pass')
def exit_in_forward(row):
    for exc in interruptions.values():
        cb = row.make()
        learn = small(cb)
        learn.model[0].insert(2, Saboteur(exc))
        leaves_cleanly(learn, [cb], False)
        assert learn.model[0][2].n>=3

@cell('removed or added in the middle of a fit')
def in_the_middle(row):
    "Another callback removes ours at any event, and another run adds it there"
    def change(event, order, remove):
        def act(self):
            if remove: self.learn.remove_cb(type(cb))
            elif cb.learn is None: self.learn.add_cb(cb)
        cb = row.make()
        learn = small(cb if remove else None)
        learn.fit(1, cbs=type('Changer', (Callback,), dict(order=order, run_valid=False, **{event: act}))())
        assert_clean(learn)
        holds_nothing(cb)
        assert (cb.learn is None)==remove
    for i,event in enumerate(e for e in exit_events if e!='after_train'):
        for remove in (True, False): change(event, (-5, 20)[(i+remove)%2], remove)

@cell('removed, it leaves nothing')
def removed(row):
    "From there on the learner trains as one that starts from these weights without it"
    cb = row.make()
    learn,other = fitted(cb),small()
    learn.save('half')
    learn.remove_cb(type(cb))
    assert cb.learn is None and not any(isinstance(o, LossCallback) for o in learn.cbs)
    other.load(learn.path/'models'/'half')
    for l in (learn, other):
        set_seed(5)
        l.dls.train.rng = random.Random(5)
        l.fit(1, 1e-2)
    assert_same(weights(learn), weights(other))
    table_is_right(learn, ())
    assert_clean(learn)

@cell('SaveModel and resume equals uninterrupted')
def resumed(row):
    """Model and optimiser from SaveModelCallback's file, the callback's state from one that torch.load reads by its
    safe default"""
    def start(): return small(row.make(), path=path)
    def go_on(learn):
        set_seed(5)
        learn.dls.train.rng = random.Random(5)
        learn.fit(1, 1e-2)
        return weights(learn)
    path = new_folder()
    learn,again = start(),start()
    learn.fit(1, 1e-2, cbs=SaveModelCallback(fname='half', every_epoch=True, with_opt=True))
    torch.save(own(learn).state_dict(), path/'state.pt')
    uninterrupted = go_on(learn)
    again.load('half_0')
    own(again).load_state_dict(torch.load(path/'state.pt'))
    assert_same(uninterrupted, go_on(again))
    a,b = own(learn).state_dict(),own(again).state_dict()
    assert a.keys()==b.keys() and torch.equal(a['generator'], b['generator']) if 'generator' in a else a==b
    if 'heads' in a: assert_same(a['heads'], b['heads'])

def own(learn): return first(cb for cb in learn.cbs if isinstance(cb, LossCallback))

@cell('checkpoint is a plain one')
def checkpoint(row):
    "A learner without the callback loads it, and the other way round"
    learn,other = fitted(row.make()),fitted()
    file = learn.save('own')
    assert torch.load(file, weights_only=False)['model'].keys()==other.model.state_dict().keys()
    other.load(file.with_suffix(''))
    assert_same(weights(learn), weights(other))
    learn.load(other.save('plain').with_suffix(''))
    next_fit_is_sound(learn)

def stored(file):
    "Bytes of all tensors in a pickled learner"
    with ZipFile(file) as z: return sorted(i.file_size for i in z.infolist() if re.search(r'/data/\d+$', i.filename))

def to_export(): return rows() + [r for r in rows(True) if r.name.endswith('(curriculum)')]

@lru_cache
def exported():
    "Every method's learner loaded in one fresh process: row -> what was found there"
    path,x = new_folder(),torch.randn(4, 3, 16, 16)
    torch.save(x, path/'x.pt')
    expected = {}
    for i,row in enumerate(to_export()):
        learn = fitted(row.make(), path=path)
        learn.export(f'{i}.pkl')
        with torch.no_grad(): expected[row.name] = learn.model.eval()(x)
    fitted(path=path).export('plain.pkl')
    code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); '
            f'import conformance; conformance.load_all({str(path)!r})')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    return {row.name: (expected[row.name], *torch.load(path/f'{i}.found'),
                       stored(path/f'{i}.pkl')==stored(path/'plain.pkl'))
            for i,row in enumerate(to_export())}

def load_all(path):
    "In the fresh process: load each learner, look at it, predict"
    path = Path(path)
    for i in range(len(to_export())):
        learn = load_learner(path/f'{i}.pkl')
        cb,empty = own(learn),('_heads', 'generator', 'guide', 'maker', 'anatomy', '_fit', '_last')
        with torch.no_grad(): out = learn.model.eval()(torch.load(path/'x.pt'))
        hooks = any(m._forward_hooks for m in learn.model.modules())
        torch.save((repr(cb), hooks,
                    [k for k in empty if getattr(type(cb), k, None) is None
                     and k in cb.__dict__ and cb.__dict__[k] is not None],
                    out), path/f'{i}.found')

@cell('export, in a fresh process', variants=True)
def export(row):
    """The same predictions and the same arguments; no head, no teacher, no hook, not a byte more of tensors than a
    plain learner has"""
    if row.name not in {r.name for r in to_export()}: return
    expected,text,hooks,left,out,same_size = exported()[row.name]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert not hooks and not left and same_size!=row.entry.permanent, (hooks, left)
    arguments = lambda s: s.partition('  #')[0]
    assert arguments(text)==re.sub(r'teacher=\w+', 'teacher=None', repr(row.make()))

@cell('deepcopy')
def copied(row):
    learn = fitted(row.make())
    copy = deepcopy(learn)
    a,b = own(learn),own(copy)
    assert a is not b and b.learn is copy and a.learn is learn and b.aux_heads is None
    next_fit_is_sound(copy)
    assert copy.recorder.metric_names==learn.recorder.metric_names
    assert a.aux_heads is None or a.aux_heads is not b.aux_heads
    assert_clean(learn)

@cell('repr evals back')
def repr_back(row):
    path = new_folder()/'net.pt'
    torch.save(tiny_teacher(), path)
    for cb in (row.make(teacher=path), type(row.make(teacher=path))(*([path] if row.entry.teacher else []))):
        again = eval(repr(cb))
        assert repr(again)==repr(cb) and type(again) is type(cb)
        params = inspect.signature(type(cb).__init__).parameters.keys() - {'self'}
        assert {k: getattr(cb, k) for k in params}=={k: getattr(again, k) for k in params}
    fitted(cb)
    assert repr(eval(repr(cb)))==repr(again), 'a comment at most is added when it has run'

def answers(learn):
    "Everything that is asked of a trained learner"
    interp = Interpretation.from_learner(learn)
    return dict(validate=tensor(learn.validate()), get_preds=learn.get_preds()[0], tta=learn.tta(n=2)[0],
                top_losses=interp.top_losses(4)[0])

@lru_cache
def asked_three_times(name):
    "Answers with the callback, after its removal, and of another learner with these weights"
    row = first(r for r in rows() if r.name==name)
    learn,twin = fitted(row.make()),small(row.make() if row.entry.permanent else None)
    twin.model.load_state_dict(learn.model.state_dict())
    with_it = answers(learn)
    learn.remove_cb(type(own(learn)))
    return with_it,answers(learn),answers(twin)

def as_without(row, what):
    a,b,c = [res[what] for res in asked_three_times(row.name)]
    assert a.numel() and torch.equal(a, b) and torch.equal(a, c)

for what,name in dict(validate='validate', get_preds='get_preds', tta='tta', top_losses='Interpretation').items():
    cell(name)(partial(as_without, what=what))

@cell('two ranks', variants=True)
def ranks(row):
    "Model and heads end equal on both processes, and other than without the callback"
    (model0,heads0),(model1,heads1) = two_ranks.results(row.name)
    assert torch.equal(model0, model1) and torch.equal(heads0, heads1)
    assert not torch.equal(model0, two_ranks.results('plain')[0][0]), 'it did not act'

@cell('twice on one learner', refused='already has a')
def twice(row): small([row.make(), row.make()])

@cell('nn.DataParallel', refused='cannot tap a model inside nn.DataParallel')
def data_parallel(row):
    learn = small(row.make())
    learn.model,learn.splitter = nn.DataParallel(learn.model),trainable_params
    learn.fit(1)

# ---- a pretrained learner, made by `vision_learner`: a frozen body, three groups of parameters ----

def fine_tuned(learn, cbs):
    "By fastai's recipe, on a learner that has its optimiser already"
    stay = StaysFrozen()
    learn.add_cbs([*cbs, stay]).fine_tune(1, 1e-2)
    learn.remove_cb(stay)
    (frozen,still),(free,_) = stay.fits
    assert still>=8 and free==0, 'the body was not frozen first and free then'
    assert frozen==still, 'a frozen layer was trained'

def thawed_in_part(learn, cbs):
    "The first group frozen, the others at rates of their own"
    stay,rates = StaysFrozen(),slice(1e-3, 1e-2)
    learn.add_cbs([*cbs, stay]).freeze_to(1)
    learn.fit(2, rates)
    learn.remove_cb(stay)
    assert np.allclose([h['lr'] for h in learn.opt.hypers], even_mults(1e-3, 1e-2, 3), rtol=1e-12)
    (frozen,still), = stay.fits
    assert frozen==still>=4, 'a frozen layer was trained'

def one_cycle_in_slices(learn, cbs):
    "The whole network, each group at a rate that rises and falls"
    learn.add_cbs(cbs).unfreeze()
    before = weights(learn)
    learn.fit_one_cycle(2, slice(1e-3, 1e-2))
    low,_,high = [h['lr'] for h in learn.opt.hypers]
    assert np.isclose(high/low, 10) and not torch.equal(before['0.0.weight'], learn.model[0][0].weight)

# way -> a weight of the first layer that learns there
pretrained_ways = {'pretrained: fine_tune': '0.0.weight', 'pretrained: freeze_to(1), slice': '1.4.weight',
                   'pretrained: one-cycle in slices': '0.0.weight'}
ways |= dict(zip(pretrained_ways, (fine_tuned, thawed_in_part, one_cycle_in_slices)))
for way in pretrained_ways:
    cell(way)(partial(acts, way=way))
    cell(f'neutral: {way}')(partial(neutral, way=way))

def pretrained(cb=None, **kwargs): return pretrained_learner(cb, **dict(metrics=hits) | kwargs)

@cell('pretrained: a body frozen whole')
def frozen_whole(row):
    "Not a number of the body moves, no statistic either, whatever is put or run there; head and own heads learn"
    cb = row.make()
    learn = pretrained([cb, BnFreeze()], train_bn=False)
    before = weights(learn)
    for _ in range(2):
        heads = heads_of(cb)
        learn.fit(1, 1e-2)
    changed = {k for k,v in weights(learn).items() if not torch.equal(v, before[k])}
    # fresh attention blocks are trained with the head
    assert '1.4.weight' in changed and all(k.startswith('1.') or 'attention_' in k for k in changed), changed
    assert bool(heads)==overrides(methods[row.method], 'make_heads')
    assert not heads or any(not torch.equal(v, heads[k]) for k,v in heads_of(cb).items()), 'the heads have not learnt'
    assert_clean(learn)
    holds_nothing(cb)

@cell('pretrained: a rate for each group')
def rate_for_each(row):
    "What has the rate 0 stays where it is; own heads learn at the rate of the last group"
    cb = row.make()
    learn = pretrained(cb)
    learn.unfreeze()
    # there are no own heads before the first fit
    for rates in ([0., 0., 1e-2], [0., 1e-2, 0.], [1e-2, 0., 0.], [0., 0., 1e-2]):
        before,heads = groups(learn),heads_of(cb)
        learn.fit(1, rates, wd=.1)
        assert moved(before, learn)==[bool(r) for r in rates], rates
        still = [torch.equal(p, heads[k]) for k,p in cb.aux_heads.named_parameters()] if heads else []
        if rates[-1]: assert not still or not all(still), 'the heads have not learnt'
        else: assert all(still), 'a head moved'
    assert_clean(learn)

@cell('pretrained: lr_find between two fits')
def found_between(row):
    """Network, own heads, optimiser, what is frozen and the random numbers of the callback are as before, and the next
    fit is what it is without a search"""
    def run(search):
        cb = row.make()
        learn = pretrained(cb)
        learn.fit(1, 1e-2)
        if search: search_rate(learn, cb)
        set_seed(5)
        learn.dls.train.rng = random.Random(5)
        learn.fit(1, 1e-2)
        return weights(learn),heads_of(cb)
    (net,heads),(other,other_heads) = run(True),run(False)
    assert_same(net, other)
    assert_same(heads, other_heads)

def search_rate(learn, cb):
    "`lr_find`, and whether all is as it was"
    frozen = lambda: [not p.requires_grad for p in learn.model.parameters()]
    net,opt,flags,state = weights(learn),deepcopy(learn.opt.state_dict()),frozen(),cb.state_dict()
    learn.lr_find(num_it=6, show_plot=False)
    assert_same(net, weights(learn))
    same_state(opt, learn.opt.state_dict())
    assert any(flags) and flags==frozen()
    now = cb.state_dict() # what was there is put in place in the next fit
    assert state.keys()==now.keys() and ('generator' not in now or torch.equal(state['generator'], now['generator']))
    assert_same(state.get('heads', {}), now.get('heads', {}))
    assert_clean(learn)
    holds_nothing(cb)

@cell('pretrained: fine_tune, then export')
def exported_after(row):
    """It predicts the same when it is loaded, and holds no head and no hook; a plain learner of that architecture loads
    its weights and predicts the same, unless the method is part of the network"""
    cb = row.make()
    learn = pretrained(cb)
    learn.fine_tune(1, 1e-2)
    learn.export('tuned.pkl')
    again,plain = load_learner(learn.path/'tuned.pkl'),pretrained()
    models = [learn.model, again.model]
    assert own(again).aux_heads is None and not any(m._forward_hooks for m in again.model.modules())
    assert all(p.grad is None for p in again.model.parameters())
    assert (again.model.state_dict().keys()==plain.model.state_dict().keys())!=row.entry.permanent
    if not row.entry.permanent:
        plain.model.load_state_dict(again.model.state_dict())
        models.append(plain.model)
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad(): first_,*others = [m.eval()(x) for m in models]
    assert all(torch.equal(first_, o) for o in others)
    next_fit_is_sound(learn)

# ---- on a GPU; all of it runs on a CPU too, to be tried there ----

cuda_ways = {
    'fit on CUDA': beside(), 'channels_last on CUDA': beside(ChannelsLast), 'fp16 and scaler on CUDA': beside(fp16),
    'fp16, MixUp and accumulation on CUDA': beside(fp16, MixUp, accumulate),
    'fp16 and GradientClip on CUDA': beside(fp16, partial(GradientClip, .1)),
    'bf16 and channels_last on CUDA': beside(bf16, ChannelsLast)}
ways |= cuda_ways
for way in cuda_ways:
    cell(way, variants=way.startswith(('fp16 and scaler', 'bf16')), table=cuda_cells)(partial(acts, way=way))
    cell(f'neutral: {way}', table=cuda_cells)(partial(neutral, way=way))
cell('fp16 is near float32 on CUDA', variants=True, table=cuda_cells)(partial(near_float32, half=fp16))
cell('finite gradients in fp16 on CUDA', table=cuda_cells)(partial(gradients, losses=('fp16 and scaler on CUDA',)))

@cell('CUDA is near a CPU', table=cuda_cells)
def near_cpu(row):
    "The same numbers, drawn and computed, where no dropout draws on the device"
    def columns():
        learn = small(row.make())
        for m in learn.model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.
        learn.fit(1, 0.)
        return learn.recorder.values[0][3:]
    here = columns()
    with learners_on('cpu'): there = columns()
    assert here and all(abs(a - b) < .01*max(1, b) for a,b in zip(here, there, strict=True)), (here, there)

@cell('an overflow skips the step on CUDA', table=cuda_cells)
def overflow(row):
    "Gradients that overflow in float16 move neither the network nor a head, and what joined the optimiser has left it"
    cb = row.make()
    learn = small([cb, fp16(2.**60)])
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1, 1e-2)
    assert all(torch.equal(p.cpu(), q) for p,q in zip(learn.model.parameters(), before, strict=True))
    if cb.aux_heads is not None:
        stages = cb.find_layers(get_anatomy(learn.model))
        with isolated_rng(cb.start_seed): fresh = cb.make_heads(stages, 10)
        assert_same(dict(fresh.named_parameters()), {k: p.cpu() for k,p in cb.aux_heads.named_parameters()})
    assert_clean(learn)
    learn.remove_cb(MixedPrecision)
    next_fit_is_sound(learn)

class Placed(Callback):
    "Looks in the middle of a batch where the tensors of a callback and of the optimiser are"
    order,run_valid = 60,False
    def __init__(self, cb): self.cb,self.devices = cb,set()
    def before_step(self):
        holders = [self.cb, getattr(self.cb, 'guide', None), getattr(self.cb, 'maker', None)]
        found = [o for h in holders if h is not None for o in vars(h).values()]
        tensors = [t for m in found if isinstance(m, nn.Module) for t in (*m.parameters(), *m.buffers())]
        tensors += [o for p,_,state,_ in self.opt.all_params() for o in (p, *state.values())] + found
        self.devices |= {t.device.type for t in tensors if isinstance(t, Tensor)}

@cell('device of heads, teacher and generator on CUDA', variants=True, table=cuda_cells)
def placed(row):
    "Everything is where the model is; the generator stays on the CPU, lest a draw make the GPU wait"
    cb = row.make()
    look = Placed(cb)
    learn = small([cb, look])
    learn.fit(1, 1e-2)
    assert look.devices=={where.device}=={p.device.type for p in learn.model.parameters()}
    assert cb.generator is None or cb.generator.device.type=='cpu'
    assert cb.aux_heads is None or {o.device.type for o in cb.aux_heads.state_dict().values()}=={where.device}

# ---- callbacks of somebody else ----

class At(Callback):
    "Do something at an event of the second epoch's first batch, or of the second epoch"
    run_valid = False
    def __init__(self, event, act, order=7): self.event,self.act,self.order,self.done = event,act,order,0
    def __call__(self, event_name):
        due = event_name==self.event and getattr(self.learn, 'epoch', 0)==1
        if self.done or not due or 'batch' in event_name and not self.learn.training: return
        self.done += 1
        self.act(self.learn)

def raising(exc):
    def act(learn): raise exc
    return act

def cells_of(learn):
    "name -> value in the last row of the table; a name twice keeps both"
    return list(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))

# what is cancelled -> where, and which of train_loss, valid_loss and hits the row of that epoch then has
cancellations = {
    'epoch': (CancelEpochException, 'after_batch', (0, 0, 0)),
    'training': (CancelTrainException, 'after_batch', (0, 1, 1)),
    'validation': (CancelValidException, 'before_validate', (1, 0, 0)),
    'batch': (CancelBatchException, 'after_pred', (1, 1, 1)),
    'backward pass': (CancelBackwardException, 'before_backward', (1, 1, 1)),
    'step': (CancelStepException, 'before_step', (1, 1, 1)),
}

def cancelled(row, what):
    "No number stands under another's name, nothing is left, and the epochs after it are whole"
    exc,event,has = cancellations[what]
    cb,at = row.make(),At(event, raising(exc))
    learn = small([cb, at])
    learn.fit(2, 1e-2)
    assert at.done==1
    if row.entry.columns:
        got = cells_of(learn)
        assert [k for k,_ in got]==['train_loss', 'valid_loss', 'hits', *row.entry.columns]
        assert [not math.isnan(v) for _,v in got[:3]]==[bool(o) for o in has], got
        assert all(v>0 for _,v in got[3:]), got
    assert_clean(learn)
    holds_nothing(cb)
    next_fit_is_sound(learn)

for what in cancellations: cell(f'foreign: the {what} is cancelled')(partial(cancelled, what=what))

class SecondPass(Callback):
    "A second forward and backward pass in each batch, as sharpness-aware minimisation does it"
    order,run_valid = 30,False
    def after_backward(self):
        with isolated_rng(0): self.learn.loss_func(self.learn.model(*self.xb), *self.yb).backward()

class PassWithoutGradients(Callback):
    "Look at the batch in training mode, before our taps are set and while they are"
    run_valid = False
    def __init__(self, event, order): self.event,self.order = event,order
    def __call__(self, event_name):
        if event_name!=self.event or not self.learn.training: return
        with isolated_rng(0), torch.no_grad(): self.learn.model(*self.learn.xb)

@cell('foreign: a second pass in each batch')
def second_pass(row):
    cb = row.make()
    learn = small([cb, SecondPass()])
    learn.fit(2, 1e-2)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    table_is_right(learn, row.entry.columns)
    assert_clean(learn)
    holds_nothing(cb)

@cell('foreign: a pass without gradients in each batch')
def pass_without_gradients(row):
    "Whenever it comes, the network learns what it learns without it"
    def run(*others):
        learn = small([row.make(), *others])
        learn.fit(1, 1e-2)
        table_is_right(learn, row.entry.columns)
        return {n: p.detach() for n,p in learn.model.named_parameters()}
    alone = run()
    for event,order in (('before_batch', -20), ('before_batch', 20), ('after_pred', -20), ('after_pred', 20),
                        ('after_loss', 20)):
        assert_same(alone, run(PassWithoutGradients(event, order)))

@cell("foreign: a user's own training epoch")
def own_epoch(row):
    "A function that a user has put on the learner runs once an epoch and stays there"
    learn,calls = small(row.make()),[]
    def own_epoch():
        calls.append(learn.epoch)
        Learner._do_epoch_train(learn)
    learn._do_epoch_train = own_epoch
    learn.fit(2, 1e-2)
    learn.validate()
    assert calls==[0, 1] and learn.__dict__['_do_epoch_train'] is own_epoch
    assert_clean(learn, guard=False)

@cell('foreign: another callback fails to start')
def fails_to_start(row):
    "The learner that is exported then has its own metrics only"
    for order in (-50, 7, 55, 80):
        learn = small(row.make())
        try: learn.fit(1, cbs=type('Fails', (Callback,), dict(order=order, before_fit=lambda self: 1/0))())
        except ZeroDivisionError: pass
        learn.export('failed.pkl')
        assert [m.name for m in load_learner(learn.path/'failed.pkl').metrics]==['hits'], order
        next_fit_is_sound(learn)
        assert [m.name for m in learn.metrics]==['hits']

@cell('foreign: a metric with the name of our column')
def equal_name(row):
    "Each value stays in its own place"
    def three(pred, y): return torch.tensor(3.)
    for name in row.entry.columns:
        three.__name__ = name
        learn = small(row.make())
        learn.metrics = L(three, hits)
        learn.fit(1, 1e-2)
        got = cells_of(learn)
        assert [k for k,_ in got]==['train_loss', 'valid_loss', name, 'hits', *row.entry.columns]
        assert got[2][1]==3. and 0<=got[3][1]<=1 and all(0<v!=3. for _,v in got[4:]), got

trackers = [partial(SaveModelCallback, comp=np.less), partial(EarlyStoppingCallback, comp=np.less, patience=3),
            partial(ReduceLROnPlateau, comp=np.less)]

@cell('foreign: trackers and loggers on our column')
def on_our_column(row):
    "fastai's trackers read it, its loggers write it; a column without a term yet is no error"
    for column in row.entry.columns or ('valid_loss',):
        learn = small(row.make())
        learn.fit(2, 1e-2, cbs=[t(monitor=column) for t in trackers] + [CSVLogger()])
        table = [l.split(',') for l in (learn.path/'history.csv').read_text().splitlines()]
        assert table[0]==list(learn.recorder.metric_names) and {len(l) for l in table}=={len(table[0])}
        assert (learn.path/'models'/'model.pth').exists()

@cell('foreign: a part of the network is swapped in the middle of a fit')
def swapped(row):
    "From the next epoch on, taps and class weights are those of the network that trains"
    def new_body(learn): learn.model[0][2] = deepcopy(tiny_model()[0][2])
    def new_head(learn): learn.model[1] = tiny_model()[1]
    class Look(Callback):
        order,run_valid,seen = 20,False,0
        def after_loss(self):
            modules,maker = list(self.model.modules()),getattr(cb, 'maker', None)
            stages = cb._fit.taps.stages if cb._fit.taps else []
            used = [s.module for s in stages] + (maker.layers if maker else [])
            assert all(any(m is o for o in modules) for m in used), 'it works with a part that is gone'
            self.seen += 1
    for act in (new_body,) if row.entry.permanent else (new_body, new_head):
        cb,at,look = row.make(),At('before_epoch', act),Look()
        learn = small([cb, at, look])
        learn.fit(3, 1e-2)
        assert at.done==1 and look.seen==6 and all(v>0 for _,v in cells_of(learn)[3:])
        tapped = [h for m in learn.model.modules() for h in m._forward_hooks.values()]
        assert not tapped
        holds_nothing(cb)

# ---- pairs ----

def pair(a, b):
    "Two methods on one learner, for two batches"
    x,y = [Row(n, n, entries[n], entries[n].make) for n in (a, b)]
    learn = small([x.make(), y.make()])
    learn.fit(1, 1e-2)
    assert sorted(learn.recorder.metric_names[4:-1])==sorted(x.entry.columns + y.entry.columns)
    assert (np.isfinite(np.array(learn.recorder.values, dtype=float)).all()
            and all(p.isfinite().all() for p in learn.model.parameters()))
    assert (x.entry.permanent or y.entry.permanent
            or torch.rand(1).item()==one_epoch_draw()), 'a global random generator has moved'
    assert_clean(learn)
    for cb in learn.cbs: holds_nothing(cb)
    next_fit_is_sound(learn)

@lru_cache
def one_epoch_draw():
    fitted()
    return torch.rand(1).item()

# ---- the table ----

every_cell = cells | cuda_cells

def refusal(test):
    """The one sentence that `test` is refused with; no weight has moved, nothing is left, and the learner trains
    without the callback"""
    fits,fit = [],Learner.fit
    def noted(learn, *args, **kwargs):
        fits.append((learn, [p.clone() for p in learn.model.parameters()]))
        return fit(learn, *args, **kwargs)
    try:
        with mock.patch.object(Learner, 'fit', noted): test()
    except ValueError as e: sentence = re.sub(r'^Exception occured in .*:\n\t', '', str(e)) # fastai says where
    else: raise AssertionError('it was not refused')
    assert '\n' not in sentence and len(sentence)<600, sentence
    for learn,before in fits[-1:]:
        assert all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))
        assert_clean(learn)
        assert [m.name for m in learn.metrics] in ([], ['hits'])
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, LossCallback)])
        learn.fit(1)
        assert not all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))
    return sentence

def declared(row, name):
    "What the table says of a cell: (status, expression that a refusal matches or why it does not apply)"
    entry,refused = row.entry,row.entry.refused.get(name, every_cell[name].refused)
    if name in entry.without: return 'not applicable',entry.without[name]
    if name.startswith('neutral: ') and isinstance(entry.neutral, str): return 'not applicable',entry.neutral
    return ('refused',refused) if refused else ('passed','')

def check(row, name):
    "Run one cell: (status, why); a failure raises"
    status,why = declared(row, name)
    return (status, why) if status=='not applicable' else expect(lambda: every_cell[name].test(row), why or None)

def check_on(device, row, name):
    "Run one cell with learners on `device`"
    with learners_on(device): return check(row, name)

def check_pair(a, b):
    "Run one pair: (status, why)"
    return expect(lambda: pair(a, b), refused_pair(a, b))

def expect(test, pattern):
    "Run `test`, which is refused with a sentence like `pattern`, or passes where that is None"
    if pattern is None:
        test()
        return 'passed',''
    sentence = refusal(test)
    assert re.search(pattern, sentence), sentence
    return 'refused',sentence

def table():
    "(method, cell, function that runs it), for each method and cell and for each pair"
    for row in rows():
        for name in cells: yield row.name,name,partial(check, row, name)
    for a,b in combinations(entries, 2): yield a,f'beside {b}',partial(check_pair, a, b)

def asked(cells):
    "(row, cell): the cells of each method, and of its variants those that are marked so"
    return [(row, name) for row in rows() for name in cells] + [
        (row, name) for row in rows(True) for name,c in cells.items() if c.variants]

def table_on(device):
    "The same for the cells of a GPU, variants included"
    for row,name in asked(cuda_cells): yield row.name,name,partial(check_on, device, row, name)

def read_table(file):
    "(method, cell) -> its row, in a list"
    with open(file, newline='') as f: return {(o[0], o[1]): [tuple(o)] for o in list(csv.reader(f))[1:]}

def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('.')[0])
    parser.add_argument('--csv', help='file for the table: method, cell, status, why')
    parser.add_argument('--only', default='', help='cells to run, by a part of their names; '
                                                   'rows of the others stay in the table as they are')
    parser.add_argument('--device',
                        help="run a GPU's cells on this device (cuda; cpu to try them) instead of the others")
    args,found,start = parser.parse_args(),[],time.time()
    kept = read_table(args.csv) if args.only and args.csv else {}
    for method,name,run in table_on(args.device) if args.device else table():
        if args.only not in name:
            found += kept.get((method, name), [])
            continue
        try: status,why = run()
        except Exception as e: status,why = 'failed',f'{type(e).__name__}: {e}'.replace('\n', ' ')
        if status=='failed': print(f'{method}: {name}: {why}', flush=True)
        found.append((method, name, status, why))
    counts = Counter(status for *_,status,_ in found)
    print(f'{len(found)} cells: ' + ', '.join(f'{n} {s}' for s,n in counts.items()) + f'; {time.time()-start:.0f} s')
    if args.csv:
        with open(args.csv, 'w', newline='') as f:
            csv.writer(f, lineterminator='\n').writerows([('method', 'cell', 'status', 'why'), *found])
    sys.exit(bool(counts['failed']))

if __name__=='__main__': main()
