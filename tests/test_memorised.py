"Wrong labels that are learnt by heart: counts against a slow loop, under mixing, and in the rows of a comparison"
import random
import numpy as np, pandas as pd, pytest, timm, torch
from fastai.callback.mixup import CutMix, MixHandler, MixUp
from fastai.data.core import DataLoaders
from fastai.vision.all import (Callback, CancelBatchException, CrossEntropyLossFlat, Flatten, Image, Learner, nn, noop,
                               set_seed)
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.noise_curves import memorised_lines, plot_memorised
from fastai_featreg.comparison.plan import known_methods, needs_teacher
from fastai_featreg.comparison.rows import label_curves, learnt, read_results
from fastai_featreg.data import digits_dls, load_data, pad_crop_flip
from fastai_featreg.memorised import (Memorised, batch_positions, label_counts, label_shares, own_share, shares_now,
                                      tell_truth, truth_is_known)
from fastai_featreg.noise import add_noise, changed_labels, clean_labels, train_labels
from tiny import tiny_model


def literal(predicted, given, true):
    "Shares, one image after another"
    n = dict.fromkeys(['right', 'wrong', 'clean', 'memorised', 'recovered'], 0)
    for p,g,t in zip(predicted, given, true):
        n['right' if g==t else 'wrong'] += 1
        if g==t and p==g: n['clean'] += 1
        if g!=t and p==g: n['memorised'] += 1
        if g!=t and p==t: n['recovered'] += 1
    of = dict(clean='right', memorised='wrong', recovered='wrong')
    return {k: n[k]/n[whole] if n[whole] else float('nan') for k,whole in of.items()}


@pytest.mark.parametrize('seed', range(10))
def test_shares_are_those_of_a_slow_loop(seed):
    predicted,given,true = np.random.default_rng(seed).integers(0, 3, (3, 50))
    counts = label_counts(*map(torch.tensor, (predicted, given, true)))
    assert label_shares(counts)==literal(predicted, given, true)


def test_counts_of_batches_add_up():
    some = torch.randint(0, 3, (3, 60), generator=torch.Generator().manual_seed(0))
    parts = sum(label_counts(*some[:, i:i + 20]) for i in (0, 20, 40))
    assert torch.equal(parts, label_counts(*some))


@pytest.fixture(scope='module')
def dls(): return add_noise(digits_dls(n_train=44, n_valid=20, bs=8, size=32), .25, seed=1)


def learner(dls, *cbs):
    torch.manual_seed(0)
    net = nn.Sequential(Flatten(), nn.Linear(3*32*32, 10))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__=='ProgressCallback'])
    learn.logger = noop
    return learn


class ByPixels(Callback):
    "Knows the images of a batch by what they look like before they are mixed, and counts one by one"
    order,run_valid = -5,False # MixUp is 0
    def before_fit(self):
        dl = self.dls.train.new(shuffle=False, drop_last=False)
        self.images,self.rows = torch.cat([x.cpu() for x,_ in dl]),[]
        self.given,self.true = train_labels(self.dls),clean_labels(self.dls)
    def before_train(self): self.found = []
    def before_batch(self):
        self.at = [next(i for i,o in enumerate(self.images) if torch.equal(o, x)) for x in self.x.cpu()]
    def after_batch(self):
        mix = next((cb for cb in self.learn.cbs if hasattr(cb, 'lam')), None)
        lam = np.broadcast_to(np.asarray(1. if mix is None else mix.lam).reshape(-1), len(self.at))
        self.found += [(p, self.given[i], self.true[i]) for p,i,l in zip(self.pred.argmax(1).tolist(), self.at, lam)
                       if l>=.5]
    def after_train(self): self.rows.append(literal(*zip(*self.found)))


@pytest.mark.parametrize('mix', [None, MixUp, CutMix])
def test_batches_are_counted_as_they_pass(dls, mix):
    set_seed(3)
    learn = learner(dls, Memorised(), ByPixels(), *([mix()] if mix else []))
    learn.fit(4, 1e-3)
    assert str(learn.memorised.rows)==str(learn.by_pixels.rows) and len(learn.memorised.rows)==4
    assert learn.memorised.rows[0]!=learn.memorised.rows[-1]


@pytest.mark.parametrize('workers', [0, 2])
def test_positions_in_the_order_of_the_batches(workers):
    noisy = add_noise(digits_dls(n_train=40, n_valid=20, bs=8, size=32), .5)
    dl = noisy.train.new(num_workers=workers)
    given,seen = torch.tensor(train_labels(noisy)),[]
    for i,(_,y) in enumerate(dl):
        at = batch_positions(dl, i)
        assert torch.equal(given[at], y.cpu().as_subclass(torch.Tensor))
        seen += at
    assert sorted(seen)==list(range(40)) and seen!=sorted(seen)


class Ran(Callback):
    "Images that ran, and those of them that are mostly themselves"
    order,run_valid = 1002,False
    def before_fit(self): self.n = self.own = 0
    def after_pred(self):
        self.n += len(self.pred)
        given = self.memorised.given[batch_positions(self.dl, self.iter)]
        self.own += int((own_share(self.learn, given)>=.5).sum())


without_teacher = sorted(name for name,cls in known_methods().items() if not needs_teacher(cls))

@pytest.mark.parametrize('name', without_teacher)
def test_beside_every_method(dls, name, capsys):
    "Two batches: all their images are counted, as far as a mixed one is its own, and none is odd"
    set_seed(7)
    two = dls.train.new(n=16)
    method = known_methods()[name]()
    branched = name in ('shake_drop', 'stoch_depth')
    net = timm.create_model('test_resnet', num_classes=10) if branched else tiny_model()
    learn = Learner(DataLoaders(two, dls.valid), net, loss_func=CrossEntropyLossFlat(),
                    cbs=[method, Memorised(), Ran()])
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__=='ProgressCallback'])
    learn.logger = noop
    learn.fit(1, 1e-3)
    right,_,wrong,_,_,odd = learn.memorised.counts.tolist()
    assert (learn.ran.n, odd, right + wrong)==(16, 0, learn.ran.own)
    assert isinstance(method, MixHandler) or learn.ran.own==16
    assert len(learn.memorised.rows)==1 and 'Memorised' not in capsys.readouterr().err


def test_inference_adds_no_row_and_asks_for_no_truth(dls):
    "Neither alone nor within a fit; on labels that are all right, too"
    class Looks(Callback):
        def after_train(self): self.learn.validate()
    learn = learner(dls, Memorised(evaluate=True))
    learn.validate(), learn.get_preds(), learn.predict(dls.valid_ds.items[0])
    assert learn.memorised.rows==[]
    learn.fit(2, 1e-3)
    learn.validate()
    assert len(learn.memorised.rows)==2
    looking = learner(dls, Memorised(), Looks())
    looking.fit(2, 1e-3)
    assert sum(looking.memorised.counts.tolist()[:3:2])==40 and len(looking.memorised.rows)==2
    clean = learner(digits_dls(n_train=40, n_valid=20, bs=8, size=32), Memorised())
    clean.validate()
    assert not clean.lock.locked()


@pytest.mark.parametrize('event', ['before_batch', 'after_pred'])
def test_a_batch_without_an_answer_is_not_counted(dls, event):
    "Of five batches the third is cancelled"
    class Skips(Callback):
        def __call__(self, name):
            if name==event and self.training and self.iter==2: raise CancelBatchException()
    learn = learner(dls, Memorised(), Skips())
    learn.fit(1, 1e-3)
    right,_,wrong,_,_,odd = learn.memorised.counts.tolist()
    assert (right + wrong, odd)==(32, 0)


def test_counting_changes_no_bit():
    noisy = add_noise(digits_dls(n_train=44, n_valid=20, bs=8, size=32, batch_tfms=[pad_crop_flip(4)]), .25)
    def weights(*cbs):
        learn = learner(noisy, *cbs)
        set_seed(5)
        for dl in noisy.loaders: dl.rng = random.Random(5)
        learn.fit(2, 1e-2)
        return [*learn.model.state_dict().values(), torch.get_rng_state(), torch.tensor(random.getstate()[1])]
    plain = weights()
    for evaluate in (False, True): assert all(map(torch.equal, plain, weights(Memorised(evaluate))))


def test_a_pass_of_its_own(dls):
    learn = learner(dls, Memorised(evaluate=True))
    learn.fit(3, 1e-3)
    preds,targets = learn.get_preds(ds_idx=0, reorder=True)
    assert (targets.numpy()==train_labels(dls)).all()
    shares = literal(preds.argmax(1).tolist(), targets.tolist(), clean_labels(dls))
    assert learn.memorised.rows[-1]==shares_now(learn)==shares
    assert len(learn.memorised.rows)==3


def test_all_is_memorised_in_the_end(dls):
    "A linear network of 3,072 numbers learns 44 labels by heart, the wrong ones too"
    learn = learner(dls, Memorised(evaluate=True))
    learn.fit(60, 1e-3)
    assert learn.memorised.rows[-1]==dict(clean=1, memorised=1, recovered=0)


def test_what_is_not_known_is_said(dls, capsys):
    clean = digits_dls(n_train=40, n_valid=20, bs=8, size=32)
    learn = learner(clean, Memorised())
    with pytest.raises(ValueError, match='must know which of its labels are wrong'): learn.fit(1)
    assert not truth_is_known(clean) and truth_is_known(dls)
    class Backwards(type(dls.train)):
        def create_batches(self, samps): return (tuple(o.flip(0) for o in b) for b in super().create_batches(samps))
    train = Backwards(dls.train_ds, bs=8, shuffle=True, drop_last=True, after_item=dls.train.after_item,
                      after_batch=dls.train.after_batch)
    learn = learner(DataLoaders(train, dls.valid), Memorised())
    learn.fit(2, 1e-3)
    assert str(learn.memorised.rows)==str([dict.fromkeys(learnt, float('nan'))]*2)
    assert capsys.readouterr().err.count('not in the order of')==1


@pytest.fixture
def noisy_folder(tmp_path):
    "24 images with two columns of classes, six of the 18 for training wrong"
    lines,rng = ['path,given,right,is_valid'],np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
        right = 'abc'[i%3]
        given = 'abc'[(i + 1)%3] if i<6 else right
        lines.append(f'{i}.png,{given},{right},{i>=18}')
    (tmp_path/'labels.csv').write_text('\n'.join(lines))
    return tmp_path


def test_a_column_tells_the_truth(noisy_folder):
    said = []
    how = dict(size=16, bs=4, say=said.append, num_workers=0, label_column='given')
    dls = load_data(noisy_folder, true_column='right', **how)
    wrong = {f.name for f,w in zip(dls.train_ds.items, changed_labels(dls)) if w}
    assert wrong=={f'{i}.png' for i in range(6)}
    assert '6 of 18 differ from the column right' in said[-1]
    assert not truth_is_known(load_data(noisy_folder, **how))
    with pytest.raises(ValueError, match="true_column must be a column of a CSV file"):
        load_data(noisy_folder, true_column='none', **how)
    with pytest.raises(ValueError, match='label_noise must be left out'):
        load_data(noisy_folder, true_column='right', label_noise=.2, **how)
    with pytest.raises(ValueError, match='label_column must name the given classes'):
        load_data(noisy_folder, true_column='right', **how | dict(label_column=None))
    with pytest.raises(ValueError, match='true_column must be None for digits'):
        load_data('digits', true_column='right')


def test_truth_of_loaders_of_ones_own(dls):
    own = digits_dls(n_train=40, n_valid=20, bs=8, size=32)
    names = [o.label for o in own.train_ds.items]
    assert tell_truth(own, names[1:] + names[:1]) is own
    assert (clean_labels(own)==np.roll(train_labels(own), -1)).all()
    with pytest.raises(ValueError, match='40 training images, got 3'): tell_truth(own, names[:3])
    with pytest.raises(ValueError, match="got 'x'"): tell_truth(own, ['x', *names[1:]])


small = dict(arch='test_resnet', epochs=2, seeds=1, size=64, bs=8, n_train=80, n_valid=20, jobs=1, bars=False,
             cost=False)

def test_rows_carry_the_curves(tmp_path):
    said = []
    df = compare('digits', methods='mixup', label_noise=.3, noise_kind='pair', out=tmp_path, say=said.append, **small)
    assert '24 of 80 changed to the next class' in said[0]
    for _,row in read_results(tmp_path/'results.csv').iterrows():
        for name in label_curves: assert len(row[name].split(';'))==2
        assert 0<=row['memorised'] + row['recovered']<=1
        # 24 wrong labels: the share is a number of 24ths
        assert row['memorised']*24==pytest.approx(round(row['memorised']*24))
        assert row['clean']*56==pytest.approx(round(row['clean']*56))
    assert 'Wrong training labels learnt by heart at the end: plain' in said[-2]
    assert (tmp_path/'memorised.png').is_file()
    assert [ax.get_title() for ax in plot_memorised(df).axes][1]=='Wrong labels, memorised'


def test_without_noise_all_is_as_it_was(tmp_path):
    said = []
    df = compare('digits', methods='mixup', out=tmp_path, say=said.append, **small)
    assert df[learnt].isna().to_numpy().all() and (df[label_curves]=='').to_numpy().all()
    assert 'heart' not in ''.join(said) and not (tmp_path/'memorised.png').exists()
    assert memorised_lines(df)==[] and memorised_lines(pd.DataFrame(dict(method=['a']), index=[0]))==[]
    with pytest.raises(ValueError, match='got none'): plot_memorised(df)


def test_a_run_is_the_same_run_with_curves(tmp_path, monkeypatch):
    from fastai_featreg.comparison import training
    how = dict(methods='mixup', label_noise=.3, say=noop, **small)
    counted = compare('digits', out=tmp_path/'a', **how)
    monkeypatch.setattr(training, 'with_labels', lambda make_cbs, dls: make_cbs)
    bare = compare('digits', out=tmp_path/'b', **how)
    same = ['accuracy', 'valid_loss', 'train_loss', 'curve', 'train_curve', 'method_id', 'data_id', 'right']
    assert counted[same].equals(bare[same]) and bare['memorised'].isna().all()


def test_cs_kd_is_compared_on_wrong_labels(tmp_path):
    "Its loader gives pairs"
    how = small | dict(epochs=1, n_train=64, n_valid=32)
    df = compare('digits', methods='cs_kd', label_noise=.3, out=tmp_path, say=noop, **how)
    assert (df['error']=='').all() and df['memorised'].notna().all()
