"Which frozen or slow layers a term reaches: measured, told once, and training stays as it was, bit for bit"
import logging, math
import pytest, torch
import torch.utils.checkpoint
from fastai.vision.all import SGD, nn, params
from tiny import Checkpointed, Inert, assert_same, bf16, fp16, tiny_learner, weights
from fastai_featreg import fits, reach
from fastai_featreg.all import CAMLoss, FeatureCallback, FeatureMining, LossCallback, SelectScale, SpatialDropout
from fastai_featreg.reach import (GroupReach, fit_is_frozen, group_reach, learns_evenly, reach_text,
                                  remedy_text, share_at_speed)

class Answers(LossCallback):
    "A term that reaches the head at its full rate"
    column = 'answers'
    def term(self): return self.learn.pred.pow(2).mean()


def early(): return FeatureMining(layers=[0]) # the last map of the small network has four positions
def camloss(): return CAMLoss(start=0)

def fit_of(fit, caplog, cb=None, **kwargs):
    "The sentences of one use, and the learner"
    learn = tiny_learner(cb, **kwargs)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='fastai_featreg.fits'): fit(learn)
    return [r.getMessage() for r in caplog.records if r.name=='fastai_featreg.fits'],learn

def tuned(learn): learn.fine_tune(2)
def whole(learn): learn.fit_one_cycle(2, 3e-3)
def sliced(learn): learn.fit_one_cycle(2, slice(3e-4, 3e-3))
def frozen(learn):
    learn.freeze()
    learn.fit_one_cycle(2, 3e-3)


# ---- pure functions

def test_by_hand():
    two = [GroupReach(.001, 3., 0.), GroupReach(.1, 1., 0.)]
    assert share_at_speed(two)==.25 and not fit_is_frozen(two)
    part = [GroupReach(.1, 3., 1.), GroupReach(.1, 1., 0.)]
    assert share_at_speed(part)==.25 and fit_is_frozen(part)
    nothing = [GroupReach(.1, 0., 0.)]
    assert share_at_speed(nothing)==0 and fit_is_frozen(nothing)


@pytest.mark.parametrize('least, silent', [(.1, False), (.02, False), (.01, True), (.001, True), (0, True)])
def test_what_is_slow_is_an_argument(least, silent):
    body = [GroupReach(.001, 3., 0.), GroupReach(.1, 0., 0.)]
    assert (reach_text(body, least)=='')==silent


@pytest.mark.parametrize('norm, silent', [(0., False), (.005, False), (.02, True), (1., True)])
def test_a_term_that_teaches_the_head_is_silent(norm, silent):
    "However slow the body is: the term's share in the head is what counts"
    said = reach_text([GroupReach(.001, 1., 0.), GroupReach(.1, norm, 0.)])
    assert (said=='')==silent
    assert silent or ('only' if norm==0 else '(99.5 % of its gradient, on one batch)') in said


def test_no_effect_is_told_that_was_not_measured():
    "Adam's steps do not go by the gradient's size"
    for g in (GroupReach(.001, 1., 0.), GroupReach(.001, 1., .99), GroupReach(.1, 0., 1.)):
        said = reach_text([g, GroupReach(.1, 0., 0.)])
        assert said and 'effect' not in said and 'left' not in said


def test_the_remedy_tells_fine_tune_first():
    said = remedy_text(3)
    places = [said.index(o) for o in ('learn.fine_tune(3, lr_mult=1)', '(3, lr)')]
    assert places==sorted(places)


def test_norms_are_those_of_backward():
    "By `loss.backward()`, parameter by parameter; and no `.grad` is touched"
    torch.manual_seed(0)
    net,x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),torch.randn(5, 3)
    opt = SGD([params(net[0]), params(net[2])], lr=.1)
    term = net[:2](x).pow(2).mean()
    found = group_reach(term, opt, net)
    assert all(p.grad is None for p in net.parameters())
    term.backward() # the graph is still there
    expected = sum((g**2).sum() for g in (net[0].weight.grad, net[0].bias.grad)).sqrt().item()
    assert abs(found[0].norm - expected)<1e-6 and found[1].norm==0
    assert learns_evenly(opt)
    net[0].weight.requires_grad_(False)
    assert not learns_evenly(opt) and group_reach(None, opt, net)[0].frozen==12/16


# ---- told

@pytest.mark.parametrize('make', [early, camloss])
def test_fine_tune_is_told_once(make, caplog):
    lines,learn = fit_of(tuned, caplog, make())
    cb = next(o for o in learn.cbs if isinstance(o, FeatureCallback))
    said = 'its gradient reaches only layers that learn at 1 % of the highest rate'
    assert len(lines)==1 and lines[0].startswith(f'{type(cb).__name__}: {said}; ')
    assert 'learn.fine_tune(2, lr_mult=1)' in lines[0]
    assert said in cb.report()['note']


@pytest.mark.parametrize('fit', [whole, sliced])
@pytest.mark.parametrize('make', [early, camloss])
def test_a_network_that_learns_is_silent(make, fit, caplog):
    lines,learn = fit_of(fit, caplog, make())
    assert lines==[] and all('reaches' not in o.report()['note'] for o in learn.cbs if isinstance(o, FeatureCallback))


@pytest.mark.parametrize('train_bn', [True, False])
@pytest.mark.parametrize('make', [early, camloss])
def test_a_frozen_fit_is_told(make, train_bn, caplog):
    lines,_ = fit_of(frozen, caplog, make(), train_bn=train_bn)
    assert len(lines)==1 and 'only frozen layers' in lines[0]


@pytest.mark.parametrize('make', [Answers, lambda: SelectScale(), lambda: SpatialDropout()])
def test_what_the_head_learns_from_is_silent(make, caplog):
    assert fit_of(tuned, caplog, make())[0]==[]


def test_a_term_that_teaches_no_layer_of_the_network_is_silent(caplog):
    assert fit_of(sliced, caplog, Inert())[0]==fit_of(tuned, caplog, Inert())[0]==[]


def test_a_later_fit_takes_the_note_back(caplog):
    learn = fit_of(tuned, caplog, early())[1]
    assert 'reaches' in learn.feature_mining.report()['note']
    learn.fit_one_cycle(1, 3e-3)
    assert 'reaches' not in learn.feature_mining.report()['note']


def test_lr_find_is_not_told(caplog):
    def find(learn):
        learn.freeze()
        learn.lr_find(num_it=4, show_plot=False)
    lines,learn = fit_of(find, caplog, early())
    assert lines==[] and not learn.feature_mining.reach


# ---- training stays as it was

@pytest.mark.parametrize('fit', [tuned, frozen, whole])
@pytest.mark.parametrize('more', [(), (bf16,)])
@pytest.mark.parametrize('make', [early, camloss])
def test_training_is_the_same_bit_for_bit(make, more, fit, caplog):
    ends = []
    for least in (.1, 0):
        cb = make()
        cb.least_reach = least
        lines,learn = fit_of(fit, caplog, [cb, *[o() for o in more]])
        assert bool(lines)==(least>0 and fit is not whole)
        ends.append((weights(learn), torch.get_rng_state()))
    assert_same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_reentrant_checkpoints_are_not_asked(caplog):
    "Their backward pass cannot be run for single gradients; training goes on"
    learn = tiny_learner(early())
    learn.model[0][1] = Checkpointed(learn.model[0][1], reentrant=True)
    learn.feature_mining.layers = ['0.2']
    with caplog.at_level(logging.WARNING, logger='fastai_featreg.fits'): learn.fine_tune(1)
    assert learn.feature_mining.report()['term_share']==1 and learn.feature_mining.reach==''


def checkpointed(least, preserve=True, hook=None):
    "A learner with a layer that runs again in the backward pass, after a fit in which a part is slow"
    cb = early()
    cb.layers,cb.least_reach = ['0.2'],least
    learn = tiny_learner(cb)
    learn.model[0][1] = Checkpointed(learn.model[0][1])
    if hook is not None: learn.model[0][0].register_full_backward_hook(hook)
    learn.fit_one_cycle(1, slice(1e-4, 3e-3))
    return learn


def test_a_layer_that_runs_again_notes_nothing():
    "Its BatchNorm counted the first batch once more"
    ends = [weights(checkpointed(least)) for least in (.1, 0)]
    assert_same(*ends)
    assert any('num_batches_tracked' in k for k in ends[0])


@pytest.mark.parametrize('reentrant', [False, True])
def test_random_layers_under_checkpoints_draw_as_before(reentrant):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(.5))
    opt,x = SGD([params(net)], lr=.1),torch.randn(5, 3, requires_grad=True)
    again = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant, preserve_rng_state=False)
    state = torch.get_rng_state()
    found = group_reach(again.mean(), opt, net)
    assert torch.equal(torch.get_rng_state(), state) and bool(found)!=reentrant


def test_hooks_of_the_user_are_called_as_often_as_without():
    calls = []
    for least in (.1, 0):
        calls.append([])
        learn = checkpointed(least, hook=lambda *_: calls[-1].append(1))
        assert learn.feature_mining.reach==''
    assert len(calls[0])==len(calls[1])>0


def test_hooks_on_parameters_count_too():
    net = nn.Linear(3, 4)
    opt,term = SGD([params(net)], lr=.1),net(torch.randn(2, 3)).mean()
    handle = net.weight.register_hook(lambda g: pytest.fail('asked'))
    assert group_reach(term, opt, net)==[]
    handle.remove()
    assert group_reach(term, opt, net)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError])
def test_a_question_ends_no_training(error, monkeypatch):
    def fails(*_): raise error('no')
    monkeypatch.setattr(reach, 'group_norms', fails)
    learn = tiny_learner(early())
    learn.fine_tune(1)
    assert learn.feature_mining.report()['term_share']==1 and learn.feature_mining.reach==''


def test_the_scale_of_half_precision_is_taken():
    "A gradient of 2^-28 is zero in float16"
    net,x = nn.Linear(3, 4).half(),torch.ones(2, 3).half()
    opt = SGD([params(net)], lr=.1)
    def term(): return net(x).float().sum()*2**-28
    assert group_reach(term(), opt, net)[0].norm==0
    assert group_reach(term(), opt, net, 2.**16)[0].norm>0
    # a scale that overflows is taken back
    assert math.isfinite(group_reach(term()*2**28, opt, net, 2.**16)[0].norm)


def test_a_learner_hands_its_scale_on(monkeypatch):
    scales = []
    def spy(term, opt, model, scale): return scales.append(scale) or group_reach(term, opt, model, scale)
    monkeypatch.setattr(fits, 'group_reach', spy)
    learn = tiny_learner([early(), fp16()])
    learn.fine_tune(1)
    assert scales==[2.**10]*2 and 'at 1 % of' in learn.feature_mining.reach
