"However a fit ends, nothing acts afterwards and the next fit works"
import random, signal, traceback
import pytest
from conformance import RaiseAt, Saboteur, exit_events, interruptions, next_fit_is_sound
from tiny import *


made = dict(both=lambda: [FeatureMining(2), DropBlock()], cam=lambda: [CAMLoss(start=0, cam='grad_cam'), NegativeCAM()])
exits = [('none', None)] + [(e, x) for x in interruptions.values() for e in exit_events]


@pytest.mark.parametrize('given_to_fit', [True, False])
@pytest.mark.parametrize('event,exc', exits)
@pytest.mark.parametrize('make', made)
def test_exit_at_event(make, event, exc, given_to_fit):
    cbs = L(made[make]())
    learn = tiny_learner(None if given_to_fit else list(cbs))
    try: learn.fit(2, cbs=[RaiseAt(event, exc)] + (list(cbs) if given_to_fit else []))
    except (RuntimeError, KeyboardInterrupt): pass
    assert_clean(learn)
    if given_to_fit: assert all(cb.learn is None for cb in cbs)
    next_fit_is_sound(learn)


@pytest.mark.parametrize('exc', [CancelFitException, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('make', made)
def test_exit_in_the_forward_pass(make, exc):
    learn = tiny_learner(made[make]())
    learn.model[0].insert(2, Saboteur(exc))
    try: learn.fit(2)
    except (RuntimeError, KeyboardInterrupt): pass
    assert_clean(learn)
    next_fit_is_sound(learn)


def test_ctrl_c_before_the_first_epoch_leaves_no_column():
    "The column is announced in `before_fit`; what runs next takes it back"
    learn = tiny_learner(FeatureMining(2), metrics=accuracy)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=RaiseAt('before_fit', KeyboardInterrupt))
    assert len(learn.validate())==2 and [m.name for m in learn.metrics]==['accuracy']
    next_fit_is_sound(learn)


def test_ctrl_c_in_lr_find_gives_the_heads_back():
    learn = tiny_learner(FeatureMining(2))
    learn.fit(1)
    before = list(learn.feature_mining.state_dict()['heads'].values())
    learn.add_cb(RaiseAt('before_step', KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=20, show_plot=False)
    for p,q in zip(before, learn.feature_mining.state_dict()['heads'].values()): assert torch.equal(p, q)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward',
                                   'before_step', 'after_batch', 'after_epoch'])
@pytest.mark.parametrize('order', [-5, 20])
def test_removed_or_added_in_the_middle(event, order):
    "Another callback removes ours at any event, and another run adds it there"
    def change(remove):
        def act(self):
            if remove: self.learn.remove_cb(FeatureMining)
            elif not hasattr(self.learn, 'feature_mining'): self.learn.add_cb(FeatureMining(2))
        learn = tiny_learner(FeatureMining(2) if remove else None)
        learn.fit(2, cbs=type('Changer', (Callback,), dict(order=order, run_valid=False, **{event: act}))())
        assert_clean(learn)
    change(True)
    change(False)


def test_exit_in_the_loss():
    def loss(pred, y):
        loss.n += 1
        if loss.n==8: raise RuntimeError('stop') # the main loss of a batch, or one of a part
        return F.cross_entropy(pred, y)
    loss.n = 0
    learn = tiny_learner(FeatureMining(2))
    learn.loss_func = loss
    with pytest.raises(RuntimeError): learn.fit(2)
    assert_clean(learn)
    next_fit_is_sound(learn)


def test_ctrl_c_at_random_moments():
    "150 fits, each interrupted by a real signal at a random moment; then validate, fit and look"
    def interrupt(*_): raise KeyboardInterrupt
    old,rng,hits,where = signal.signal(signal.SIGALRM, interrupt),random.Random(0),0,set()
    try:
        for i in range(150):
            cb = FeatureMining(2) if i%4<2 else SelectScale(layers='all')
            learn = tiny_learner(None if i%2 else cb)
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.002, 0.08))
                learn.fit(20, cbs=[cb] if i%2 else [])
            except KeyboardInterrupt as e:
                hits += 1
                where.add(traceback.extract_tb(e.__traceback__)[-2].name) # the last frame is `interrupt` itself
            finally: signal.setitimer(signal.ITIMER_REAL, 0)
            # fastai's validation, hit inside `no_grad().__enter__`, leaves gradients off
            if not learn.training: torch.set_grad_enabled(True)
            assert torch.is_grad_enabled()
            # hit between `before_epoch` and the epoch, the stand-in waits for the next event
            assert_clean(learn, guard=False)
            assert len(learn.validate())==1 and learn.metrics==[]
            assert_clean(learn)
            learn.fit(1)
            assert_clean(learn)
            assert learn.metrics==[]
    finally: signal.signal(signal.SIGALRM, old)
    assert hits>=100, f'only {hits} interrupts landed'
    assert len(where)>=5, f'interrupts landed in {where} only'


def test_lr_find_gives_the_heads_back():
    learn = tiny_learner(FeatureMining(2, seed=3))
    learn.fit(1)
    before = [p.clone() for p in learn.feature_mining.aux_heads.parameters()]
    learn.lr_find(num_it=20, show_plot=False)
    for p,q in zip(before, learn.feature_mining.state_dict()['heads'].values()): assert torch.equal(p, q)


def test_predictions_during_a_fit_do_not_disturb_it():
    "fastai's way to predict inside a fit is `inner=True`"
    class Predict(Callback):
        order = 70
        def after_epoch(self):
            self.learn.get_preds(inner=True)
            assert_clean(self.learn)
    plain = tiny_learner(Predict())
    plain.fit(3)
    learn = tiny_learner([Inert(2), Predict()])
    learn.fit(3)
    assert_same(weights(plain), weights(learn))
    assert len(learn.recorder.values)==3 and all(v[2]>0 for v in learn.recorder.values)
