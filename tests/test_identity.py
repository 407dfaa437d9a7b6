"A neutral callback trains bit for bit as no callback does, whatever else is going on"
import random
from functools import partial
import pytest
from tiny import *

neutral = {'inert': lambda: Inert(2), 'weight 0': lambda: FeatureMining(2, weight=0.)}


def one_cycle(learn, cbs): learn.fit_one_cycle(2, 1e-2, cbs=cbs)
def fine_tune(learn, cbs): learn.add_cbs(cbs).fine_tune(1, 1e-2)
def find_then_fit(learn, cbs):
    learn.add_cbs(cbs).lr_find(num_it=8, show_plot=False)
    learn.fit(1, 1e-2)
def fit_with(*extra): return lambda learn, cbs: learn.fit(2, slice(1e-3, 1e-2), cbs=[e() for e in extra] + list(cbs))
def compiled(learn, cbs):
    learn.model.compile(backend='eager')
    learn.fit(2, 1e-2, cbs=cbs)

ways = dict(fit=fit_with(), one_cycle=one_cycle, fine_tune=fine_tune, lr_find=find_then_fit, clip=fit_with(partial(GradientClip, 0.1)),
            accumulate=fit_with(partial(GradientAccumulation, 16)), mixup=fit_with(MixUp), cutmix=fit_with(CutMix),
            save=fit_with(partial(SaveModelCallback, every_epoch=True, with_opt=True)), bf16=fit_with(CpuMixedPrecision),
            bf16_mixup_accumulate=fit_with(CpuMixedPrecision, MixUp, partial(GradientAccumulation, 16)), compiled=compiled)


def run(way, make_cb=None, **kwargs):
    learn = tiny_learner(**kwargs)
    ways[way](learn, [make_cb()] if make_cb else [])
    draws = torch.rand(1).item(),random.random(),np.random.rand()
    return learn,weights(learn),draws


@pytest.mark.parametrize('kind', neutral)
@pytest.mark.parametrize('way', ways)
def test_bit_identical(way, kind):
    (plain,a,draws_a),(learn,b,draws_b) = run(way),run(way, neutral[kind])
    assert_same(a, b)
    assert draws_a==draws_b, 'a global random generator has moved'
    assert len(plain.opt.state_dict()['state'])==len(learn.opt.state_dict()['state'])
    assert_clean(learn)


@pytest.mark.parametrize('opt_func', [SGD, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_optimisers(opt_func): assert_same(run('fit', opt_func=opt_func)[1], run('fit', neutral['inert'], opt_func=opt_func)[1])


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
        return cb.heads
    for p,q in zip(heads(16, []).parameters(), heads(8, [GradientAccumulation(16)]).parameters()): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


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
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'accuracy', 'fm_loss', 'inert', 'time']
    alone = tiny_learner(FeatureMining(2), metrics=accuracy)
    alone.fit(1)
    assert_same(weights(learn), weights(alone))
    assert alone.recorder.values[0][3]==learn.recorder.values[0][3]
