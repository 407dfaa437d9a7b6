"""What the papers compare with, by name: cutout, mixing by batch and inside the network, dropped and shaken branches,
attention blocks. What holds for every method is in the conformance suite"""
import timm
import pytest
from tiny import *
from fastai.callback.mixup import MixHandler
from torchvision import models as tv
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.answers import mixed_classes, task_loss
from fastai_featreg.attention import attention_names, with_attention
from fastai_featreg.branches import residual_branches
from fastai_featreg.comparison.plan import known_methods, parse_methods
from fastai_featreg.comparison.published import read_table
from fastai_featreg.comparison.reproduce import labels_of
from fastai_featreg.methods.cutout import cutout
from fastai_featreg.nets import resnet8, resnet20
from timm.layers import DropPath

mixing = [BatchMixUp, BatchCutMix, ManifoldMixup]
blocks = [SE, CBAM, GC, SK]
named = dict(cutout=CutOut, batch_mixup=BatchMixUp, batch_cutmix=BatchCutMix, manifold_mixup=ManifoldMixup,
             stoch_depth=StochDepth, shake_drop=ShakeDrop, se=SE, cbam=CBAM, gc=GC, sk=SK)


def fitted(cbs=None, epochs=1, net=None, **kwargs):
    learn = tiny_learner(cbs, n=16, **kwargs)
    if net is not None: learn.model,learn.splitter = net,trainable_params
    learn.fit(epochs, 1e-2)
    return learn

class Look(Callback):
    "Calls a function in each training batch, when its loss is known"
    order,run_valid = 4,False
    def __init__(self, look): self.look,self.seen = look,[]
    def after_loss(self): self.seen.append(self.look(self.learn))


def test_each_is_known_by_its_name():
    assert all(known_methods()[name] is cls for name, cls in named.items())
    assert [type(make()[0]) for _, make in parse_methods(','.join(named))[1:]]==list(named.values())


@pytest.mark.parametrize('table', ['mv-table2', 'cam-loss-table2'])
def test_the_tables_lack_no_arm(table):
    for block in read_table(table).blocks: assert len(labels_of(block.arms))==len(block.arms)


# ---- mixing ----

@pytest.mark.parametrize('make', mixing)
def test_second_targets_and_share_are_where_mixups_are(make):
    def look(learn):
        cb = first(o for o in learn.cbs if isinstance(o, MixHandler))
        classes, weights = mixed_classes(learn)
        return cb.lam.item(), cb.yb1[0], learn.y, classes, weights, task_loss(learn)
    cb, look = make(p=1.), Look(look)
    learn = fitted([cb, look])
    for lam, other, y, classes, weights, loss in look.seen:
        assert torch.equal(classes, torch.stack([y, other], 1)) and loss is learn.loss_func
        torch.testing.assert_close(weights, tensor([[lam, 1 - lam]]).expand(len(y), 2))

@pytest.mark.parametrize('make', mixing)
def test_the_loss_is_the_share_of_both(make):
    def look(learn):
        cb = first(o for o in learn.cbs if isinstance(o, MixHandler))
        slow = [cb.lam.item()*F.cross_entropy(p[None], a[None]) + (1 - cb.lam.item())*F.cross_entropy(p[None], b[None])
                for p, a, b in zip(learn.pred, learn.y, cb.yb1[0])]
        return learn.loss.item(), sum(slow).item()/len(slow)
    look = Look(look)
    fitted([make(p=1.), look])
    for loss, slow in look.seen: assert abs(loss - slow)<1e-5

@pytest.mark.parametrize('make', mixing)
def test_a_batch_that_is_not_mixed_is_as_without(make):
    def look(learn):
        cb = first(o for o in learn.cbs if isinstance(o, MixHandler))
        return hasattr(cb, 'yb1'), task_loss(learn) is own, learn.loss_func is own, mixed_classes(learn)[1].shape[1]
    look = Look(look)
    learn = tiny_learner([make(p=.5, seed=3), look], n=320)
    own = learn.loss_func
    learn.fit(1)
    assert set(look.seen)=={(True, True, False, 2), (False, True, True, 1)}
    assert 10<sum(o[0] for o in look.seen)<30

@pytest.mark.parametrize('make', mixing)
@pytest.mark.parametrize('exc', [KeyboardInterrupt, RuntimeError, CancelFitException, CancelBatchException])
def test_the_loss_is_the_own_one_however_a_fit_ends(make, exc):
    def stop(learn): raise exc('stop')
    look = Look(stop)
    learn = tiny_learner([make(p=1.), look], n=16)
    own = learn.loss_func
    try: learn.fit(1)
    except (KeyboardInterrupt, RuntimeError): pass
    assert learn.loss_func is own
    learn.remove_cb(look)
    learn.fit(1)
    assert learn.loss_func is own and np.isfinite(learn.recorder.values[-1]).all()

def test_soft_targets_are_mixed_themselves():
    look = Look(lambda learn: (learn.y, first(o for o in learn.cbs if isinstance(o, MixHandler)).stack_y))
    learn = tiny_learner([BatchMixUp(), look], n=16)
    for dl in learn.dls: dl.dataset[:] = [(x, F.one_hot(y, 10).float()) for x, y in dl.dataset]
    learn.loss_func = nn.CrossEntropyLoss()
    learn.fit(1)
    for y, stacked in look.seen:
        assert not stacked and (y>0).sum(1).max()==2
        torch.testing.assert_close(y.sum(1), torch.ones(len(y)))

def test_cutout_comes_before_mixing_and_both_before_what_reads_maps():
    assert CutOut.order<BatchMixUp.order==ManifoldMixup.order<MixUp.order<StochDepth.order<FeatureMining.order


# ---- branches ----

@pytest.mark.parametrize('make', [StochDepth, ShakeDrop])
@pytest.mark.parametrize('net', [resnet8, partial(xresnet18, n_out=10),
                                 partial(timm.create_model, 'resnet10t', num_classes=10)])
def test_every_branch_of_a_network_is_changed(make, net):
    net, cb = net(), make(.4)
    fitted(cb, net=net)
    n = len(residual_branches(net))
    assert cb.report()['acted']==f'{n}/{n}'
    assert list(cb.rates)==list(residual_branches(net))
    torch.testing.assert_close(tensor(list(cb.rates.values())), torch.linspace(.4/n, .4, n))

def test_a_dropped_branch_of_a_transformer_is_dropped_with_its_class_token():
    net = timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=16, patch_size=8, depth=2)
    block, middle, ends = net.blocks[-1], [], []
    block.norm2.register_forward_pre_hook(lambda m, i: middle.append((i[0], m.training)))
    block.register_forward_hook(lambda m, i, o: ends.append(o))
    fitted(StochDepth(.999, mode='batch', seed=0), net=net)
    same = [torch.equal(a, b) for (a, training), b in zip(middle, ends) if training]
    others = [torch.equal(a, b) for (a, training), b in zip(middle, ends) if not training]
    # without its second branch a block gives what the first has made: all 5 tokens of it
    assert middle[0][0].shape[1]==5 and all(same) and len(same)>=2 and not any(others)

@pytest.mark.parametrize('rate', [.1, .5, .9])
def test_stochastic_depth_is_timms(rate):
    torch.manual_seed(1)
    ours = StochDepth().change_branch(f := torch.randn(40, 3, 2, 2), rate)
    torch.manual_seed(1)
    torch.randn(40, 3, 2, 2)
    torch.testing.assert_close(ours, DropPath(rate)(f))


# ---- attention ----

@pytest.mark.parametrize('make', blocks)
def test_blocks_are_saved_loaded_and_exported_and_never_frozen(make, tmp_path):
    learn = fitted(make(), path=tmp_path)
    names = attention_names(learn.model, make.kind)
    assert len(names)==3
    learn.create_opt()
    learn.freeze()
    block = learn.model.get_submodule(names[-1])
    assert all(p.requires_grad for p in block.parameters())
    learn.save('with')
    other = tiny_learner(make(), n=16, path=tmp_path)
    other.load('with')
    assert_same(weights(learn), weights(other))
    learn.export('with.pkl')
    again = load_learner(tmp_path/'with.pkl')
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), learn.model.eval()(x))

def test_a_second_fit_and_a_second_learner_do_not_put_blocks_in_twice():
    cb = SE()
    learn = fitted(cb)
    before = attention_names(learn.model, 'se')
    learn.remove_cb(SE)
    learn.fit(1, cbs=cb)
    assert attention_names(learn.model, 'se')==before
    other = fitted(SE(), net=resnet20())
    assert attention_names(other.model, 'se')==[] # given before the network was swapped: nothing is guessed

def test_a_selective_kernel_takes_its_convolution_out_of_the_optimiser():
    learn = tiny_learner(n=16)
    learn.create_opt()
    learn.fit_one_cycle(1, cbs=SK())
    assert {id(p) for g in learn.opt.param_lists for p in g}=={id(p) for p in learn.model.parameters()}

@pytest.mark.parametrize('make', blocks)
@pytest.mark.parametrize('late', [False, True])
def test_fresh_blocks_are_trained_in_the_frozen_epoch_at_the_heads_rate(make, late):
    learn = tiny_learner(None if late else make(), n=16)
    learn.freeze() # as vision_learner does
    if late: learn.add_cb(make())
    block = learn.model.get_submodule(attention_names(learn.model, make.kind)[-1])
    ours = {id(p) for p in block.parameters()}
    start, rates = [p.detach().clone() for p in block.parameters()], []
    class Watch(Callback):
        def after_epoch(self):
            groups = [{id(p) for p in g} for g in self.opt.param_lists]
            moved = [not torch.equal(p, q) for p, q in zip(block.parameters(), start)]
            rates.append((ours<=groups[-1], any(ours & g for g in groups[:-1]), any(moved)))
    learn.fine_tune(1, 1e-2, cbs=Watch())
    assert rates==[(True, False, True)]*2

def test_the_optimiser_goes_on_from_a_file_however_the_blocks_came(tmp_path):
    learn = tiny_learner(n=16, path=tmp_path)
    learn.fit(1, 1e-2)
    learn.fit(1, 1e-2, cbs=SE(seed=1))
    learn.save('with')
    other = tiny_learner(SE(seed=1), n=16, path=tmp_path)
    other.load('with', with_opt=True)
    shapes = [[p.shape for p in g] for g in learn.opt.param_lists]
    assert shapes==[[p.shape for p in g] for g in other.opt.param_lists]

@pytest.mark.parametrize('other', [partial(SE, 4), partial(SE, layers=[-1]), CBAM])
def test_other_blocks_than_those_that_are_there_are_refused(other):
    learn = tiny_learner(SE(), n=16)
    learn.remove_cb(SE)
    with pytest.raises(ValueError, match='the network must have no other blocks'): learn.add_cb(other())
    assert not any(isinstance(cb, (SE, CBAM)) for cb in learn.cbs)
    learn.add_cb(SE()) # the same
    with pytest.raises(ValueError, match='without such blocks'): with_attention(learn.model, 'se')

@pytest.mark.parametrize('net', [lambda: tv.resnet18(num_classes=10), partial(timm.create_model, 'resnet50d'),
                                 partial(xresnet18, n_out=10)])
def test_a_stem_has_no_block_and_is_no_stage_to_mix_at(net):
    stages = get_anatomy(net(), check_cam=False).stages
    assert len(stages)==5
    assert len(attention_names(with_attention(net(), 'se'), 'se'))==4
    found = ManifoldMixup().find_layers(get_anatomy(net(), check_cam=False))
    assert [s.name for s in found]==[s.name for s in stages[1:3]]

def test_squares_are_cut_off_by_the_border_unless_they_must_lie_inside():
    x = torch.ones(2000, 1, 32, 32)
    shares = {inside: (cutout(x, .5, inside=inside)==0).float().mean((1, 2, 3)) for inside in (False, True)}
    assert abs(shares[False].mean() - (14/32)**2)<.005 and shares[False].max()==.25
    assert torch.equal(shares[True], torch.full((2000,), .25))
