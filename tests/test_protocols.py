"""Protocols: the same training as before without one, round trips from TOML over a run and its row to TOML, schedules
of real optimisers with methods at work, and learners that are as they were"""
import dataclasses, random, warnings
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast
from fastai_featreg.archs import Called, find_arch, make_learner
from fastai_featreg.methods.cam_loss import CAMLoss
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.augment import augmented
from fastai_featreg.data import digits_dls, load_data
from fastai_featreg.methods.feature_mining import FeatureMining
from fastai_featreg.comparison.protocols import (describe, find_protocol, from_toml, lr_at, mom_at, Protocol,
                                                 protocol_of, protocols, to_toml)
from fastai_featreg.comparison.recipes import equip, set_up, train_as
from fastai_featreg.comparison.rows import config_names, protocol_names, read_results
from fastai_featreg.comparison.runs import run_once
from tiny import assert_clean, assert_same, Inert, tiny_learner, weights

# pytest would take fastai's helpers for tests
for name in [o for o in globals() if o.startswith('test')]: del globals()[name]

small = dict(arch='test_resnet', n_train=32, n_valid=16, size=32, bs=8)

@pytest.fixture(scope='module')
def dls(): return digits_dls(n_train=32, n_valid=16, size=32, bs=8)

one_run = 'compare digits --methods plain --seeds 1 --n-train 32 --n-valid 16'.split()

def compared(out, **given):
    "One arm, one run"
    return compare('digits', **small | dict(methods='plain', seeds=1, epochs=1) | given, out=out, say=noop, bars=False)


# ---- the same as before

def seeded_learner(dls, pretrained, seed=3):
    set_seed(seed)
    for dl in dls.loaders: dl.rng = random.Random(seed)
    learn = make_learner(dls, 'test_resnet', False, 'linear')
    if pretrained: learn.freeze()
    return learn.remove_cb(ProgressCallback)

@pytest.mark.parametrize('pretrained', [False, True])
def test_without_a_protocol_all_is_as_it_was(dls, monkeypatch, pretrained):
    "Bit for bit: `train` as it stood before there were protocols is the oracle"
    by_hand = seeded_learner(dls, pretrained)
    with by_hand.no_logging():
        by_hand.fine_tune(2, 3e-3) if pretrained else by_hand.fit_one_cycle(2, 3e-3)
    trained = []
    monkeypatch.setattr('fastai_featreg.comparison.runs.make_learner', lambda *a: seeded_learner(dls, pretrained))
    monkeypatch.setattr('fastai_featreg.comparison.runs.where_it_looks', lambda learn: trained.append(learn) or {})
    row = run_once(dls, seed=3, arch='test_resnet', epochs=2, lr=3e-3, pretrained=pretrained, head='linear')
    assert not row['error']
    assert_same(weights(by_hand), weights(trained[0]))
    run_once(dls, seed=3, arch='test_resnet', epochs=2, lr=2e-3, pretrained=pretrained, head='linear')
    assert any(not torch.equal(a, b) for a,b in zip(weights(by_hand).values(), weights(trained[1]).values()))

def test_rows_of_earlier_versions_count(tmp_path):
    "They have no columns about protocols, and mean fastai's recipe"
    first = compared(tmp_path)
    assert first.recipe.tolist()==[''] and first.protocol.tolist()==['']
    path = tmp_path/'results.csv'
    old = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=['recipe', *protocol_names])
    old.to_csv(path, index=False)
    again = compared(tmp_path)
    assert len(read_results(path))==1 and again.seconds.tolist()==first.seconds.tolist()
    compared(tmp_path, wd=.1)
    assert read_results(path).recipe.tolist()==['', 'wd = 0.1']

def test_a_name_for_what_was_trained_already(tmp_path):
    "`one_cycle` by its name is the recipe without one"
    compared(tmp_path)
    compared(tmp_path, protocol='one_cycle')
    assert len(read_results(tmp_path/'results.csv'))==1


# ---- TOML -> run -> row -> TOML

toml = '''
name = "mine"
opt = "sgd"
lr = 0.05
mom = 0.8
nesterov = true
wd = 0.0005
sched = "step"
milestones = [0.5, 0.75]
decay = 0.2
warmup = 0.1
epochs = 2
bs = 8
size = 32
arch = "test_resnet"
arch_args = {drop_path_rate = 0.1}
head = "linear"
pretrained = false
augment = "pad_crop"
cutout = 6
mixup = 0.4
channels_last = true
result = "best"
'''

@pytest.mark.parametrize('text', [toml, toml.replace('epochs = 2', 'iters = 5').replace('"step"', '"cosine"')
                                  .replace('milestones = [0.5, 0.75]\n', '')])
def test_toml_run_row_toml(tmp_path, text):
    (tmp_path/'mine.toml').write_text(text)
    args = [*one_run, '--protocol', str(tmp_path/'mine.toml')]
    assert main([*args, '--out', str(tmp_path/'out')])==0
    row, = read_results(tmp_path/'out'/'results.csv').to_dict('records')
    assert row['arch']=='test_resnet(drop_path_rate=0.1)' and row['protocol']=='mine' and row['scale']==''
    assert protocol_of(row)==from_toml(text)
    assert from_toml(to_toml(protocol_of(row)))==from_toml(text)
    assert main([*args, '--out', str(tmp_path/'out')])==0, 'again: nothing is trained'
    assert len(read_results(tmp_path/'out'/'results.csv'))==1

def test_a_short_form_says_so_in_its_row(tmp_path, capsys):
    args = '--protocol cam_loss_cifar --arch test_resnet --bs 8 --epochs 1 --out'.split() + [str(tmp_path)]
    assert main([*one_run, *args])==0
    row, = read_results(tmp_path/'results.csv').to_dict('records')
    assert row['scale'].split('; ')==['epochs / 160', 'bs 8 for 128', 'arch test_resnet for resnet56']
    assert (row['protocol'], row['result'])==('cam_loss_cifar', 'last')
    p = protocol_of(row)
    assert dataclasses.replace(p, scale='', epochs=160, bs=128, arch='resnet56')==protocols['cam_loss_cifar']
    assert 'trained as cam_loss_cifar (' in capsys.readouterr().out

@pytest.mark.parametrize('changes', [dict(opt='sgd'), dict(wd=.1), dict(sched='cosine'), dict(mom=.5), dict(cutout=8),
                                     dict(augment='none'), dict(mixup=.2), dict(channels_last=True), dict(warmup=.4),
                                     dict(lr_mult=10)])
def test_every_setting_is_part_of_the_identity(changes):
    p = find_protocol('one_cycle', **changes)
    assert describe(p)!=describe(protocols['one_cycle'])

def test_what_trains_the_same_has_the_same_recipe():
    same = dict(cutout=0, mixup=0, channels_last=False, precision='fp32', nesterov=None, result='best', name='x')
    assert describe(find_protocol('one_cycle', **same))==''
    assert describe(Protocol(lr=1, epochs=3, bs=2, size=8, arch='resnet18', head='gap'))=='', 'these have columns'
    assert 'recipe' in config_names and not {*protocol_names} & {*config_names}


# ---- what has been changed is told, whatever the way there

other = dict(opt='adam', lr=3, mom=.5, nesterov=True, wd=.1, sched='constant', decay=.5, warmup=.3, epochs=7, bs=7,
             size=7, arch='resnet8', arch_args=dict(a=1), head='gap', pretrained=True, augment='none', cutout=3,
             mixup=.2, precision='bf16', channels_last=True)

@pytest.mark.parametrize('name, value', other.items())
def test_every_change_of_a_paper_is_told(name, value):
    p = find_protocol('fm_cifar', **{name: value})
    assert p.scale.startswith(name)
    assert find_protocol(p, **{name: value}).scale==p.scale, 'once'
    assert from_toml(to_toml(p))==p, 'and it may be read, for it says so'

@pytest.mark.parametrize('start', [
    'fm_cifar', dict(name='mine', epochs=300, lr=.1), dict(name='mine', base='fm_cifar')])
def test_a_change_and_its_undoing_leave_nothing(start):
    p = find_protocol(start)
    there = find_protocol(find_protocol(p, epochs=30), lr=.2)
    assert there.scale=='epochs / 10; lr 0.2 for 0.1'
    assert find_protocol(there, epochs=300).scale=='lr 0.2 for 0.1'
    assert find_protocol(there, epochs=300, lr=.1)==p

def test_a_paper_s_name_is_not_for_other_settings(tmp_path):
    path = tmp_path/'fm_cifar.toml'
    for text in ('lr = 3\nopt = "adam"\n', 'base = "fm_noise"\n', to_toml(protocols['fm_cifar']) + 'cutout = 4\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match='write base = "fm_cifar" to change that protocol, or choose'):
            find_protocol(path)
    path.write_text('base = "fm_cifar"\nlr = 3\n')
    assert find_protocol(path).scale=='lr 3.0 for 0.1'
    path.write_text('name = "mine"\nlr = 3\n')
    assert (find_protocol(path).name, find_protocol(path).scale)==('mine', '')

def test_a_protocol_made_by_hand_under_a_paper_s_name():
    p = dataclasses.replace(protocols['fm_cifar'], lr=3)
    assert find_protocol(p).scale=='lr 3.0 for 0.1'

def test_what_is_added_stands_in_the_row(tmp_path):
    compared(tmp_path, protocol='cam_loss_cifar', cutout=4, mixup=.2)
    row, = read_results(tmp_path/'results.csv').to_dict('records')
    told = row['scale'].split('; ')
    assert {'cutout 4', 'mixup 0.2', 'epochs / 160'}<={*told} and len(told)==len({*told})

def test_half_precision_in_vain_is_no_change(tmp_path):
    "Without a GPU it trains in float32"
    if torch.cuda.is_available(): pytest.skip('there is one')
    compared(tmp_path, protocol='cam_loss_cifar', precision='fp16')
    row, = read_results(tmp_path/'results.csv').to_dict('records')
    assert 'precision' not in row['scale']


# ---- the schedule under which methods act

class Rates(Callback):
    "What the optimiser has in each step, and the share that callbacks read"
    order,run_valid = 1000,False
    def __init__(self): self.lrs,self.moms,self.shares = [],[],[]
    def after_step(self):
        h = self.opt.hypers[-1]
        self.lrs.append(h['lr'])
        self.moms.append(h['mom'])
        self.shares.append(self.pct_train)

@pytest.mark.parametrize('settings', [
    dict(sched='step', milestones=(.3, .8), opt='sgd', epochs=3), dict(sched='cosine', warmup=.25, opt='sgd', epochs=3),
    dict(sched='constant', opt='torch_adam', iters=10), dict(sched='one_cycle', opt='sgd', warmup=.4, epochs=2),
    dict(sched='one_cycle', mom=.7, iters=8), dict(sched='fine_tune', opt='sgd', epochs=2),
    dict(opt='ranger', epochs=1), dict(sched='cosine', opt='lamb', epochs=2),
    dict(sched='cosine', opt='larc', mom=.9, epochs=1), dict(sched='fine_tune', freeze_epochs=2, lr_mult=10, epochs=1),
    dict(sched='cosine', lr_mult=4, epochs=1)])
@pytest.mark.parametrize('method', [None, lambda: Inert(2)])
def test_the_optimiser_has_the_rate(settings, method):
    p = Protocol(lr=.01, **settings)
    learn = tiny_learner([Rates(), *([method()] if method else [])])
    train_as(learn, p)
    frozen = (p.freeze_epochs or 1) if p.sched=='fine_tune' else 0
    n = p.iters or 6*(p.epochs + frozen)
    assert len(learn.rates.lrs)==n
    assert np.allclose(learn.rates.lrs, [lr_at(p, i/n) for i in range(n)], rtol=1e-6, atol=1e-12)
    if p.opt!='ranger': assert np.allclose(learn.rates.moms, [mom_at(p, i/n) for i in range(n)])
    assert_clean(learn)

class GroupRates(Callback):
    "Rates of all groups in each step"
    order,run_valid = 1000,False
    def __init__(self): self.lrs = []
    def after_step(self):
        self.lrs.append([h['lr'] for h in self.opt.hypers])

def two_groups(cbs):
    learn = tiny_learner(cbs)
    learn.splitter = lambda m: [params(m[0]), params(m[1])]
    return learn

@pytest.mark.parametrize('sched', ['one_cycle', 'cosine', 'constant'])
def test_first_layers_learn_at_a_share_of_the_rate(sched):
    learn = two_groups(GroupRates())
    train_as(learn, Protocol(lr=.01, sched=sched, lr_mult=5, epochs=1))
    first,last = np.array(learn.group_rates.lrs).T
    assert np.allclose(last, first*5, rtol=1e-4) and last.max()>.005

def test_fine_tune_takes_frozen_epochs_and_a_multiple():
    learn = two_groups(GroupRates())
    train_as(learn, Protocol(lr=.01, sched='fine_tune', lr_mult=5, freeze_epochs=2, epochs=1))
    n = len(learn.dls.train)
    first,last = np.array(learn.group_rates.lrs).T
    assert len(last)==3*n and np.allclose(last[2*n:], first[2*n:]*5, rtol=1e-4)
    with pytest.raises(ValueError, match='freeze_epochs must be left out for the schedule cosine, got 2; or choose'):
        Protocol(sched='cosine', freeze_epochs=2)

@pytest.mark.parametrize('method', [
    lambda: CAMLoss(start=.5), lambda: FeatureMining(2, weight=lambda pct: float(pct>=.5))])
def test_methods_that_begin_later_count_by_iterations(method):
    "Seven of fifteen steps lie behind the half, in epochs of six of which the third ends early"
    learn = tiny_learner(method())
    cb = learn.cbs[-1]
    train_as(learn, 'one_cycle', iters=15, lr=.01)
    assert cb.acted.batches==15 and cb.acted.terms==7, cb.acted

def test_weight_decay_reaches_heads_and_norms():
    "torch's SGD decays all: with a gradient of zero each parameter shrinks by lr*wd"
    learn = tiny_learner()
    learn.loss_func = lambda pred, y: pred.sum()*0
    before = [p.clone() for p in learn.model.parameters()]
    train_as(learn, dict(opt='sgd', lr=.1, wd=.5, sched='constant', mom=0, iters=1))
    for a,b in zip(before, learn.model.parameters()): assert torch.allclose(b, a*(1 - .05), atol=1e-7)

def test_adam_of_torch_is_that_of_the_literal_update():
    "Two steps by hand, with L2"
    learn = tiny_learner(n=8)
    w = learn.model[1][-1].weight
    first,grads,lr,wd = w.detach().clone(),[],.01,.1
    class Grads(Callback):
        run_valid = False
        def before_step(self): grads.append(w.grad.clone())
    learn.add_cb(Grads())
    train_as(learn, dict(opt='torch_adam', lr=lr, wd=wd, sched='constant', epochs=2))
    x,m,v = first,0.,0.
    for t,g in enumerate(grads, 1):
        g = g + wd*x
        m,v = .9*m + .1*g,.999*v + .001*g**2
        x = x - lr*(m/(1 - .9**t))/((v/(1 - .999**t)).sqrt() + 1e-8)
    assert len(grads)==2 and torch.allclose(w.detach(), x, atol=1e-6)


# ---- nothing is left

class Breaks(Callback):
    "Raises in the third training batch"
    def __init__(self, e): self.e = e
    def after_pred(self):
        if self.training and self.train_iter==2: raise self.e

@pytest.mark.parametrize('e', [
    None, CancelFitException(), CancelTrainException(), KeyboardInterrupt(), ValueError('no')])
def test_a_learner_is_as_it_was(e):
    learn = tiny_learner(Inert(2), wd=.2)
    learn.fit(1)
    if e is not None: learn.add_cb(Breaks(e))
    own = {k: getattr(learn, k) for k in ('opt', 'opt_func', 'loss_func', 'wd', 'lr', 'moms')}
    names,cbs = set(vars(learn)),list(learn.cbs)
    try: train_as(learn, 'fm_cifar', epochs=2, mixup=.4, channels_last=True)
    except (KeyboardInterrupt, ValueError): assert e is not None
    for k,v in own.items(): assert getattr(learn, k) is v, k
    assert list(learn.cbs)==cbs and set(vars(learn)) - names <= {'loss_grad', 'scaler'}
    assert all(o.is_contiguous() for o in learn.model.parameters())
    learn.remove_cb(Breaks)
    learn.fit(1)
    assert_clean(learn)

@pytest.mark.parametrize('name', ['one_cycle', 'fm_cifar', 'mv'])
def test_a_step_whose_cost_is_measured_is_that_of_the_fit(name):
    "`equip` puts the same into a learner for good as `set_up` for a fit; what it has already is not put there twice"
    kinds = lambda learn: sorted(type(cb).__name__ for cb in learn.cbs)
    p = find_protocol(name, mixup=.4, channels_last=True)
    once,fit = tiny_learner(),tiny_learner()
    equip(once, p)
    with set_up(fit, p):
        assert kinds(once)==[o for o in kinds(fit) if not o.startswith('CountedSteps')]
        assert [o for o in kinds(once) if o in ('MixUp', 'ChannelsLast')]==['ChannelsLast', 'MixUp']
        assert getattr(fit.opt_func, 'func', fit.opt_func) is getattr(once.opt_func, 'func', once.opt_func)
    has = tiny_learner(ChannelsLast())
    equip(has, find_protocol(name, channels_last=True))
    assert kinds(has).count('ChannelsLast')==1

def test_fp16_on_a_cpu_is_one_sentence_and_float32():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        a = train_as(tiny_learner(), 'one_cycle', epochs=1, lr=.01, precision='fp16')
    texts = [str(o.message) for o in caught if 'precision fp16' in str(o.message)]
    assert texts==["precision fp16 needs a CUDA GPU, and this learner's images are on the cpu: it trains in float32"]
    assert_same(weights(a), weights(train_as(tiny_learner(), 'one_cycle', epochs=1, lr=.01)))

class Types(Callback):
    "Type of the activations in each batch, and whether autocast is on when the optimiser steps"
    order = 11
    def before_fit(self): self.seen = []
    def before_batch(self): self.seen.append(torch.is_autocast_enabled('cpu'))
    def before_step(self): self.seen.append(torch.is_autocast_enabled('cpu'))

def test_bf16_on_a_cpu_is_autocast_there(tmp_path):
    "The forward is in bfloat16, steps and weights are in float32, and nothing is left on after an exception"
    learn,plain = tiny_learner(Types()),train_as(tiny_learner(), 'one_cycle', epochs=1, lr=.01)
    train_as(learn, 'one_cycle', epochs=1, lr=.01, precision='bf16')
    n = len(learn.dls.train)
    assert learn.types.seen[:2*n]==[True, False]*n
    mine,other = weights(learn),weights(plain)
    assert all(p.dtype==torch.float32 for p in learn.model.parameters())
    assert any(not torch.equal(mine[k], other[k]) for k in mine)
    learn.add_cb(Breaks(ValueError('no')))
    with pytest.raises(ValueError): train_as(learn, 'one_cycle', epochs=1, lr=.01, precision='bf16')
    assert not torch.is_autocast_enabled('cpu') and not any(isinstance(cb, MixedPrecision) for cb in learn.cbs)

def test_bf16_on_a_cpu_stands_in_the_row(tmp_path):
    compared(tmp_path, protocol='cam_loss_cifar', precision='bf16')
    row, = read_results(tmp_path/'results.csv').to_dict('records')
    assert 'precision bf16' in row['scale']

@pytest.mark.cuda
@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_on_a_gpu(device, precision):
    "Activations are of half precision inside, and autocast is off again after an exception"
    if device=='cpu': pytest.skip('fastai has no mixed precision on a CPU')
    from tiny import learners_on
    seen = []
    class Looks(Callback):
        def before_batch(self): seen.append((torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')))
        order = 11
    with learners_on(device):
        learn = tiny_learner(Looks())
        train_as(learn, 'fm_cifar', epochs=1, precision=precision, channels_last=True)
        assert seen[0]==(True, {'fp16': torch.float16, 'bf16': torch.bfloat16}[precision])
        learn.add_cb(Breaks(ValueError('no')))
        with pytest.raises(ValueError): train_as(learn, 'fm_cifar', epochs=1, precision=precision)
    assert not torch.is_autocast_enabled('cuda') and not any(isinstance(cb, MixedPrecision) for cb in learn.cbs)


# ---- augmentation and networks with arguments reach the run

def test_augmentation_and_arguments_reach_the_learner(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('fastai_featreg.comparison.runs.where_it_looks', lambda learn: seen.append(learn) or {})
    df = compared(tmp_path, augment='pad_crop', cutout=8, arch_args=dict(drop_path_rate=.3))
    tfms = [type(o).__name__ for o in seen[0].dls.train.after_batch.fs]
    assert 'Cutout' in tfms and 'AffineCoordTfm' in tfms
    drops = [m.drop_prob for m in seen[0].model.modules() if type(m).__name__=='DropPath']
    assert max(drops)==pytest.approx(.3)
    assert df.arch.tolist()==['test_resnet(drop_path_rate=0.3)'] and df.recipe.tolist()==[
        'augment = "pad_crop", cutout = 8']

@pytest.mark.parametrize('augment, by_files', [('pad_crop', False), ('squash_crop', False), ('rrc', True),
                                               ('resize_crop', True)])
def test_small_files_that_are_opened_one_by_one_have_loader_processes(tmp_path, augment, by_files):
    "In memory the main process is faster; an item transform that draws opens each file again"
    rng = np.random.default_rng(0)
    for i in range(16):
        file = tmp_path/('train', 'valid')[i%2]/'ab'[i//8]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    dls = load_data(tmp_path, size=32, bs=4, say=noop)
    assert dls.train.fake_l.num_workers==0
    new = augmented(dls, Protocol(augment=augment), 32)
    assert (new.train.fake_l.num_workers>0)==by_files
    assert new.train.one_batch()[0].shape==(4, 3, 32, 32)

def test_pretrained_networks_are_thawed_for_other_schedules(dls, monkeypatch):
    "A learner with pretrained weights is made with a frozen body; a cosine trains all of it"
    trained = []
    monkeypatch.setattr('fastai_featreg.comparison.runs.make_learner', lambda *a: seeded_learner(dls, True))
    monkeypatch.setattr('fastai_featreg.comparison.runs.where_it_looks', lambda learn: trained.append(learn) or {})
    row = run_once(dls, seed=3, arch='test_resnet', epochs=1, lr=.1, pretrained=True, head='linear',
                   protocol=find_protocol('cam_loss_transfer', epochs=1))
    assert not row['error']
    first = seeded_learner(dls, False).model
    moved = [not torch.equal(a, b) for a,b in zip(first[0].parameters(), trained[0].model[0].parameters())]
    assert all(moved)

def test_an_architecture_with_arguments_survives_its_pickle(tmp_path, dls):
    learn = make_learner(dls, 'wide_resnet(10,1)', head='linear')
    learn.export(tmp_path/'l.pkl')
    assert find_arch('wide_resnet(10, k=1)').named==(('k', 1),)
    assert isinstance(load_learner(tmp_path/'l.pkl').arch, Called)


# ---- one sentence

@pytest.mark.parametrize('args, text', [
    ('--protocol fm_ciffar', "unknown protocol 'fm_ciffar'; did you mean 'fm_cifar'"),
    ('--protocol nowhere.toml', "cannot read the protocol 'nowhere.toml'"),
    ('--sched step', 'milestones must be given for the schedule step'),
    ('--sched step --milestones 150,225', 'divide epochs by all epochs'),
    ('--opt sgd --wd -1', 'wd must be a number of at least 0, got -1.0'),
    ('--protocol mv --nesterov', 'nesterov must be left out for the optimiser torch_adam'),
    ('--bf16 --fp16', 'fp16 must be left out for the precision bf16'),
    ('--cutout 64 --size 32', "cutout must be fewer pixels than the image's 32"),
    ('--arch wide_resnet(print(1))', 'arch must be a name, or one with literal arguments'),
    ('--arch resnet8 --arch-arg deep=3', 'arch must have the arguments of its network'),
    ('--opt sdg', 'invalid choice'), ('--arch-arg deep', 'must be NAME=VALUE')])
def test_wrong_input_is_one_sentence(tmp_path, capsys, args, text):
    assert main(['compare', '--n-train', '32', '--n-valid', '16', '--out', str(tmp_path), *args.split()])==2
    err = capsys.readouterr().err
    assert text in err and len(err.strip().splitlines())==1, err

@pytest.mark.parametrize('wrong', [dict(epochs=2.5), dict(epochs=0), dict(lr=-1), dict(bs='a'), dict(size=True)])
def test_a_number_is_refused_in_the_same_words_everywhere(tmp_path, wrong):
    "As an argument of the comparison, as a setting of a protocol, and in a protocol's own file"
    def said(f):
        with pytest.raises(ValueError) as e: f()
        return str(e.value)
    by_protocol = said(lambda: find_protocol('fm_cifar', **wrong))
    run = partial(compare, 'digits', methods='plain', seeds=1, out=tmp_path, say=noop)
    assert said(lambda: run(**wrong))==by_protocol
    assert said(lambda: run(protocol=wrong))==by_protocol

def test_a_misspelt_setting_of_compare(tmp_path):
    with pytest.raises(ValueError, match="unknown argument 'weight_decay'"):
        compare('digits', weight_decay=.1, out=tmp_path, say=noop)
    with pytest.raises(ValueError, match="unknown argument 'seed'; did you mean 'seeds'"):
        compare('digits', seed=1, out=tmp_path, say=noop)

@pytest.mark.parametrize('seed', range(3))
def test_settings_drawn_at_random_survive_toml(seed):
    "Fifty protocols of random settings, each a row and a file and back"
    rng = random.Random(seed)
    values = dict(
        name=['', 'a "b" \\ ü\n'], opt=['sgd', 'adam', 'lamb'], lr=[1e-5, .1, 1e-20], mom=[0, .9], wd=[0, 5e-4, 1e-7],
        sched=['one_cycle', 'cosine', 'constant'], warmup=[0, .1], epochs=[1, 300], bs=[64], size=[32], cutout=[0, 8],
        arch=['resnet18'], arch_args=[dict(a=1, b=[.5, 'x'], c=True)], head=['gap'], pretrained=[True, False],
        augment=['none', 'rrc'], mixup=[0, .4], precision=['fp32', 'bf16'], channels_last=[True, False],
        result=['best'])
    for _ in range(50):
        p = Protocol(**{k: rng.choice(v) for k,v in values.items() if rng.random()<.5})
        assert from_toml(to_toml(p))==p
        assert describe(from_toml(to_toml(p)))==describe(p)


def test_callbacks_for_one_fit():
    seen = []
    class Note(Callback):
        def after_epoch(self): seen.append(self.epoch)
    learn = tiny_learner()
    train_as(learn, 'cam_loss_cifar', cbs=Note(), epochs=2)
    assert seen==[0, 1] and not any(isinstance(cb, Note) for cb in learn.cbs)
