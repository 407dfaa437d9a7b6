"Each idea about fine-tuning does what its name says, on a tiny network"
import numpy as np, pytest, torch
from fastai.vision.all import Callback,nn
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.methods.drop import SelectScale
from fastai_featreg.methods.feature_mining import FeatureMining
from torch.nn.modules.batchnorm import _BatchNorm
import fastai_featreg.core as core
import fine_tuning_ideas as ideas
from tiny import assert_clean,tiny_learner,tiny_model


class Added(Callback):
    "Task loss, and what a method has added to it, of each batch"
    order = 6 # after the methods
    def __init__(self): self.task,self.added,self.weights = [],[],[]
    def after_loss(self):
        if not self.training: return
        self.task.append(self.learn.loss.item())
        self.added.append((self.learn.loss_grad - self.learn.loss).item())
        self.weights += [cb.current_weight for cb in self.learn.cbs if hasattr(cb, 'current_weight')]


def whole(f, name=''):
    "A mask that leaves the first part whole"
    return torch.ones(f.shape[2:])

def still(learn):
    "Without dropout, so that equal heads give equal logits"
    for m in learn.model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    return learn

def with_norm(learn):
    "A head with BatchNorm and a hidden layer, as fastai's"
    learn.model[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 12),
                                   nn.ReLU(), nn.Linear(12, 10))
    return learn

def learner(*cbs, **kwargs): return still(tiny_learner(cbs=list(cbs), **kwargs))

def stats(module):
    return [b.clone() for m in module.modules() if isinstance(m, _BatchNorm) for b in (m.running_mean, m.running_var)]

def same(a, b): return all(torch.equal(o, p) for o,p in zip(a, b, strict=True))


def test_copied_heads_begin_as_the_learners():
    "Of a linear head the copies are `FeatureMiningHead` with its weights; the first loss of a whole map is the task's"
    losses = Added()
    learn = learner(cb := ideas.CopiedMining(), losses)
    cb.draw_mask = whole
    first = [p.clone() for p in learn.model[1].parameters()]
    learn.fit(1, 0.)
    head = cb.aux_heads[0]
    assert same(first, head.part1.parameters()) and same(first, head.part2.parameters())
    # part 2 is empty: its logits are the biases
    assert losses.added[0]>losses.task[0]
    f,mask = torch.rand(4, 16, 5, 5),(torch.rand(5, 5)<.5).float()
    usual = nn.Linear(16, 10)
    usual.load_state_dict(learn.model[1][-1].state_dict())
    for part,m in zip(head.eval()(f, mask), (mask, 1 - mask)):
        assert torch.allclose(part, usual((f*m).mean((2, 3))), atol=1e-6)
    assert_clean(learn)

@pytest.mark.parametrize('prepare', [still, with_norm])
def test_first_loss_of_copies_is_the_task_loss(prepare):
    "Two whole maps: twice the loss of the classifier that was copied, before any step"
    losses = Added()
    learn = prepare(learner(cb := ideas.CopiedMining(complementary=False), losses))
    cb.draw_mask = whole
    learn.fit(1, 1e-2)
    assert np.isclose(losses.added[0], 2*losses.task[0], rtol=1e-5)

def test_earlier_maps_have_the_usual_heads():
    learn = learner(a := ideas.CopiedMining(layers=2), b := ideas.OwnHeadMining(layers=2))
    learn.fit(1, 1e-2)
    assert [type(o).__name__ for o in a.aux_heads]==['FeatureMiningHead', 'CopiedHead']
    assert [type(o).__name__ for o in b.aux_heads]==['FeatureMiningHead']


@pytest.mark.parametrize('prepare', [still, with_norm])
def test_own_head_of_whole_maps_is_the_task_loss(prepare):
    "In every batch, whatever has been learnt; and BatchNorm of the head knows nothing of the parts"
    losses = Added()
    learn = prepare(learner(cb := ideas.OwnHeadMining(complementary=False), losses))
    cb.draw_mask = whole
    learn.fit(1, 1e-2)
    assert np.allclose(losses.added, 2*np.array(losses.task), rtol=1e-5)
    assert_clean(learn)

def test_parts_leave_the_statistics_of_the_head():
    "They are those of a fit with weight 0, as long as no weight is changed"
    found = []
    for weight in (0., 1.):
        learn = with_norm(learner(ideas.OwnHeadMining(weight=weight)))
        torch.manual_seed(3)
        learn.fit(1, 0.)
        found.append(stats(learn.model[1]))
    assert same(*found)

@pytest.mark.parametrize('make, reaches', [(ideas.OwnHeadMining, True), (FeatureMining, False)])
def test_gradients_of_the_term_reach_the_head(make, reaches):
    "Even with a frozen body; those of the method as it is do not"
    class Grads(Callback):
        order = 4
        def after_loss(self): self.learn.loss_grad = self.learn.loss_grad*0. # the task's own
        def after_backward(self): self.sizes = [p.grad.abs().max().item() for p in self.learn.model[1].parameters()]
    learn = learner(make(), grads := Grads())
    learn.freeze()
    learn.fit(1, 1e-2)
    assert all(s>0 for s in grads.sizes)==reaches

@pytest.mark.parametrize('make', [ideas.CopiedMining, ideas.OwnHeadMining])
def test_dropout_of_parts_leaves_that_of_training(make):
    "Without a step, the task's losses are those of plain training, although the parts are dropped from too"
    found = []
    for cbs in ([], [make()]):
        learn = tiny_learner(cbs=[*cbs, losses := Added()])
        learn.fit(1, 0.)
        found.append(losses.task)
    assert found[0]==found[1]

def test_mask_of_channels():
    f = torch.rand(2, 3, 4, 4)
    parts = ideas.both_parts(f, torch.tensor([1., 0., 1.]))
    assert torch.equal(sum(parts), f) and not parts[0][:, 1].any() and not parts[1][:, 0].any()

@pytest.mark.parametrize('make', [ideas.CopiedMining, ideas.OwnHeadMining])
def test_what_has_no_such_head_is_refused(make):
    with pytest.raises(ValueError, match='layers must be a number'): learner(make(layers='0.1')).fit(1)
    with pytest.raises(ValueError, match='model must be a body and a head'):
        ideas.head_of(nn.Sequential(*tiny_model()[0], *tiny_model()[1]), 1)


@pytest.mark.parametrize('make', [ideas.WarmMining, lambda **kw: ideas.WarmCAMLoss(**kw, c=1.)])
def test_weight_warms_up(make):
    "Six batches an epoch: sixths over the first, of two fits together, then 1; a longer warm-up is slower"
    losses = Added()
    learn = learner(make(), losses)
    learn.fit(1)
    learn.fit(1)
    assert np.allclose(losses.weights, [0, 1/6, 2/6, 3/6, 4/6, 5/6] + [1]*6)
    learn = learner(make(warm=2.), losses := Added())
    learn.fit(2)
    assert np.allclose(losses.weights, np.arange(12)/12)


def test_strength_is_that_of_the_retaining_rate():
    "Half of the strength: factors from U(0.6, 1.4) where U(0.2, 1.8) is the default; a quarter: U(0.8, 1.2)"
    f = torch.rand(50, 40, 4, 4) + .1
    cb = SelectScale()
    for strength,low,high in ((1., .2, 1.8), (.5, .6, 1.4), (.25, .8, 1.2)):
        factors = (cb.drop(f, strength)/f).mean((2, 3))
        assert low<=factors.min()<low + .05 and high - .05<factors.max()<=high
    for strength in ([.25, .5], [.125, .25]):
        learn = learner(cb := SelectScale(layers=2, strength=strength))
        learn.fit(1)
        assert list(cb.acts_on.values())==strength


def test_kept_norms_keep_their_statistics():
    "Those of the body; its weights are trained, and without the callback the statistics would have changed"
    learn = with_norm(learner(SelectScale(), ideas.KeepNorms()))
    body,head,first = stats(learn.model[0]),stats(learn.model[1]),learn.model[0][0][1].weight.clone()
    learn.fit(1, 1e-2)
    assert same(body, stats(learn.model[0])) and not same(head, stats(learn.model[1]))
    assert not torch.equal(first, learn.model[0][0][1].weight)
    learn.remove_cb(ideas.KeepNorms)
    learn.fit(1, 1e-2)
    assert not same(body, stats(learn.model[0]))

def test_refitted_norms_are_those_without_the_method():
    "Means over the whole training set in batches of one size: those of the maps themselves, after the last step"
    learn = learner(SelectScale(), ideas.RefitNorms())
    learn.fit(1, 1e-2)
    x = torch.stack([o[0] for o in learn.dls.train_ds])
    with torch.no_grad(): mean = learn.model[0][0][0](x).mean((0, 2, 3))
    assert torch.allclose(learn.model[0][0][1].running_mean, mean, atol=1e-5)
    assert learn.model[0][0][1].momentum==0.1
    assert_clean(learn)
    learn.freeze()
    before = stats(learn.model)
    learn.remove_cb(SelectScale)
    learn.fit(1, 0.) # of the head alone: as without the callback, a running mean
    assert not torch.allclose(learn.model[0][0][1].running_mean, before[0], atol=1e-7)


def test_arms_are_methods_of_a_comparison(monkeypatch):
    "Under the names that the script gives them, and only once it has"
    monkeypatch.setattr(core, 'methods', dict(core.methods))
    monkeypatch.setattr(core, 'cards', dict(core.cards))
    with pytest.raises(ValueError, match='unknown method'): parse_methods('CopiedMining()')
    ideas.enter()
    for labels in ideas.arms.values(): assert [l for l,_ in parse_methods(','.join(labels))]==['plain', *labels]
