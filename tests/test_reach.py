"What is left of a term under frozen or slow layers: measured, told once, and training stays as it was, bit for bit"
import logging
import pytest, torch
from fastai.vision.all import SGD, nn, params
from tiny import Checkpointed, Inert, assert_same, bf16, tiny_learner, weights
from fastai_featreg.all import CAMLoss, FeatureCallback, FeatureMining, LossCallback, SelectScale, SpatialDropout
from fastai_featreg.reach import GroupReach, fit_is_frozen, group_reach, learns_evenly, reach_text, share_left

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
    assert abs(share_left(two) - .103/.4)<1e-12 and not fit_is_frozen(two)
    part = [GroupReach(.1, 3., 1.), GroupReach(.1, 1., 0.)]
    assert share_left(part)==.25 and fit_is_frozen(part)
    nothing = [GroupReach(.1, 0., 0.)]
    assert share_left(nothing)==0 and fit_is_frozen(nothing)


@pytest.mark.parametrize('least, silent', [(.1, True), (.25, True), (.26, False), (1, False), (0, True)])
def test_the_least_share_is_an_argument(least, silent):
    two = [GroupReach(.001, 3., 0.), GroupReach(.1, 1., 0.)]
    assert (reach_text(two, least)=='')==silent


def test_norms_are_those_of_backward():
    "By `loss.backward()`, parameter by parameter; and no `.grad` is touched"
    torch.manual_seed(0)
    net,x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),torch.randn(5, 3)
    opt = SGD([params(net[0]), params(net[2])], lr=.1)
    term = net[:2](x).pow(2).mean()
    found = group_reach(term, opt)
    assert all(p.grad is None for p in net.parameters())
    term.backward() # the graph is still there
    expected = sum((g**2).sum() for g in (net[0].weight.grad, net[0].bias.grad)).sqrt().item()
    assert abs(found[0].norm - expected)<1e-6 and found[1].norm==0
    assert learns_evenly(opt)
    net[0].weight.requires_grad_(False)
    assert not learns_evenly(opt) and group_reach(None, opt)[0].frozen==12/16


# ---- told

@pytest.mark.parametrize('make', [early, camloss])
def test_fine_tune_is_told_once(make, caplog):
    lines,learn = fit_of(tuned, caplog, make())
    cb = next(o for o in learn.cbs if isinstance(o, FeatureCallback))
    said = "its gradient reaches mostly layers that learn at 1 % of the head's rate: about 1 % of its effect is left"
    assert len(lines)==1 and lines[0].startswith(f'{type(cb).__name__}: {said}; ')
    assert 'learn.unfreeze(); learn.fit_one_cycle(2, lr)' in lines[0]
    assert "about 1 % of its effect is left" in cb.report()['note']


@pytest.mark.parametrize('fit', [whole, sliced])
@pytest.mark.parametrize('make', [early, camloss])
def test_a_network_that_learns_is_silent(make, fit, caplog):
    lines,learn = fit_of(fit, caplog, make())
    assert lines==[] and all('effect' not in o.report()['note'] for o in learn.cbs if isinstance(o, FeatureCallback))


@pytest.mark.parametrize('train_bn', [True, False])
@pytest.mark.parametrize('make', [early, camloss])
def test_a_frozen_fit_is_told(make, train_bn, caplog):
    lines,_ = fit_of(frozen, caplog, make(), train_bn=train_bn)
    assert len(lines)==1 and 'only layers that are frozen' in lines[0]


@pytest.mark.parametrize('make', [Answers, lambda: SelectScale(), lambda: SpatialDropout()])
def test_what_the_head_learns_from_is_silent(make, caplog):
    assert fit_of(tuned, caplog, make())[0]==[]


def test_a_term_that_teaches_no_layer_of_the_network_is_silent(caplog):
    assert fit_of(sliced, caplog, Inert())[0]==fit_of(tuned, caplog, Inert())[0]==[]


def test_a_later_fit_takes_the_note_back(caplog):
    learn = fit_of(tuned, caplog, early())[1]
    assert 'effect' in learn.feature_mining.report()['note']
    learn.fit_one_cycle(1, 3e-3)
    assert 'effect' not in learn.feature_mining.report()['note']


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
