"A neutral callback trains bit for bit as no callback does, whatever else is going on"
import random
from functools import partial
import pytest
import conformance
from conformance import same_state
from tiny import *
from fastai_featreg.heads import isolated_rng

ways = {k: conformance.ways[k] for k in conformance.with_neutral}


given = []

def run(way, make_cb=None, **kwargs):
    learn = tiny_learner(**kwargs)
    if make_cb: given.append(make_cb())
    ways[way](learn, [given[-1]] if make_cb else [])
    draws = torch.rand(1).item(),random.random(),np.random.rand()
    return learn,weights(learn),draws


def heads_moved(cb):
    "Whether the heads differ from those a callback with this seed starts with"
    fresh = tiny_learner(Inert(cb.layers, seed=cb.start_seed))
    fresh.fit(1, 0.)
    return any(not torch.equal(p, q) for p,q in zip(fresh.inert.aux_heads.parameters(), cb.aux_heads.parameters()))


@pytest.mark.parametrize('way', ways)
def test_heads_alone_leave_training_bit_identical(way):
    "The methods' own neutral forms are in the conformance suite; this one trains its heads, and they move"
    (plain,a,draws_a),(learn,b,draws_b) = run(way),run(way, lambda: Inert(2))
    assert_same(a, b)
    assert draws_a==draws_b, 'a global random generator has moved'
    same_state(plain.opt.state_dict(), learn.opt.state_dict())
    assert heads_moved(given[-1]), 'the heads were not trained'
    assert_clean(learn)


@pytest.mark.parametrize('opt_func', [SGD, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_optimisers(opt_func):
    (plain,a,_),(learn,b,_) = run('fit', opt_func=opt_func),run('fit', lambda: Inert(2), opt_func=opt_func)
    assert_same(a, b)
    assert heads_moved(given[-1])
    slow = [[len(g) for g in getattr(l.opt, 'slow_weights', None) or []] for l in (plain, learn)]
    assert slow[0]==slow[1], 'Lookahead keeps copies of our heads'
    learn.fit(1, cbs=Inert(1)) # other heads, the same optimiser


def test_compiled_with_a_weight_that_starts_at_zero():
    learn = tiny_learner(FeatureMining(2, weight=lambda pct: float(pct>=0.5)))
    learn.model.compile(backend='eager')
    learn.fit(2)
    assert [np.isnan(v[2]) for v in learn.recorder.values]==[True, False]


def test_another_learner_another_start():
    "The next fold of a cross-validation does not inherit heads"
    cb = Inert(2, seed=0)
    tiny_learner().fit(1, cbs=cb)
    first_fold = [p.clone() for p in cb.aux_heads.parameters()]
    learn = tiny_learner()
    learn.fit(1, cbs=cb)
    for p,q in zip(first_fold, cb.aux_heads.parameters()):
        assert torch.equal(p, q), 'the same seed, the same data, the same heads'
    learn.fit(1, cbs=cb)
    assert any(not torch.equal(p, q) for p,q in zip(first_fold, cb.aux_heads.parameters())), 'the same learner goes on'


def test_heads_do_not_repeat_the_models_first_numbers():
    set_seed(0)
    model = nn.Linear(16, 10)
    set_seed(0)
    with isolated_rng(FeatureMining().start_seed): assert not torch.equal(nn.Linear(16, 10).weight, model.weight)


def test_the_method_itself_is_not_neutral():
    "Otherwise the tests above could not fail"
    a,b = run('fit')[1],run('fit', lambda: FeatureMining(2))[1]
    assert not torch.equal(a['0.0.0.weight'], b['0.0.0.weight'])


def test_accumulated_equals_one_big_batch_for_heads_too():
    "Two halves of a batch, accumulated, give the heads the step of the whole batch"
    def heads(bs, extra):
        learn = tiny_learner(n=16, bs=bs, opt_func=SGD, wd=0., moms=(0, 0, 0))
        learn.model.eval()
        learn.model.train = lambda mode=True: learn.model # batch norms and dropout would tell a half from a whole batch
        cb = Inert(1, seed=0)
        learn.fit(1, 0.1, cbs=[cb] + extra)
        assert heads_moved(cb)
        return cb.aux_heads
    for p,q in zip(heads(16, []).parameters(), heads(8, [GradientAccumulation(16)]).parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_table_column_only_in_training():
    learn = tiny_learner(FeatureMining(), metrics=accuracy)
    learn.fit(2)
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'accuracy', 'fm_loss', 'time']
    assert all(len(v)==4 and v[3]>0 for v in learn.recorder.values)
    assert len(learn.validate())==2
    assert [m.name for m in learn.metrics]==['accuracy']
    learn.fit(1)
    assert list(learn.recorder.metric_names).count('fm_loss')==1


def test_several_methods_share_a_tap_and_the_table():
    learn = tiny_learner([FeatureMining(2), Inert(2)], metrics=accuracy)
    learn.fit(1)
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'accuracy', 'fm_loss', 'inert',
                                               'time']
    alone = tiny_learner(FeatureMining(2), metrics=accuracy)
    alone.fit(1)
    assert_same(weights(learn), weights(alone))
    assert alone.recorder.values[0][3]==learn.recorder.values[0][3]
