"Label noise: exact counts for each seed, kinds, and loaders of which only the training labels change"
import random
import numpy as np, pytest, torch
from fastai.vision.all import AdaptiveAvgPool, Flatten, Learner, MixUp, load_learner, nn
from fastai_featreg.data import digits_dls, load_data
from fastai_featreg.comparison.fingerprints import data_id
from fastai_featreg.noise import add_noise, changed_labels, clean_labels, noise_counts, noisy_labels, train_labels


def literal(labels, new, n_classes):
    "table[a][b]: how many labels of class a became b, counted one by one"
    table = [[0]*n_classes for _ in range(n_classes)]
    for a,b in zip(labels, new): table[a][b] += 1
    return np.array(table)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('kind', ['symmetric', 'pair'])
@pytest.mark.parametrize('share', [0, .01, .2, .29, .5, 1])
@pytest.mark.parametrize('sizes', [[100]*10, [50, 7, 3, 1], [5]*7])
def test_counts_are_exact(sizes, share, kind, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    new,changed = noisy_labels(labels, len(sizes), share, kind, seed)
    table = literal(labels, new, len(sizes))
    off = table.sum(1) - table.diagonal()
    assert off.sum()==changed.sum()==round(round(share*len(labels), 9))
    assert (abs(off - share*np.array(sizes))<1).all()
    assert ((new!=labels)==changed).all()
    if kind=='pair': assert (off==[table[i][(i+1)%len(sizes)] for i in range(len(sizes))]).all()


def test_counts_by_hand():
    assert noise_counts([10, 10, 5], .3).tolist()==[3, 3, 2]
    assert noise_counts([500]*100, .2).tolist()==[100]*100
    assert sorted(noise_counts([5]*5, .1))==[0, 0, 0, 1, 1]


def test_symmetric_noise_is_uniform_over_the_others():
    "Chi square of 9 cells: beyond 27.9 once in 1,000"
    labels = np.zeros(20000, int)
    new,changed = noisy_labels(labels, 10, .5, seed=3)
    seen = np.bincount(new[changed], minlength=10)
    expected = changed.sum()/9
    assert seen[0]==0 and ((seen[1:] - expected)**2/expected).sum()<27.9


def test_the_same_seed_changes_the_same_labels():
    labels = np.arange(1000)%10
    one,again,other = [noisy_labels(labels, 10, .2, seed=s) for s in (1, 1, 2)]
    assert (one[0]==again[0]).all() and (one[1]!=other[1]).any()
    assert one[1].sum()==other[1].sum()==200


@pytest.mark.parametrize('args, said', [((1.5,), 'share must be a number from 0 to 1, got 1.5'),
    ((.2, 'odd'), "kind must be 'symmetric' or 'pair', got 'odd'"), ((float('nan'),), 'share must')])
def test_wrong_arguments(args, said):
    with pytest.raises(ValueError, match=said): noisy_labels([0, 1, 2], 3, *args)


def test_labels_beyond_the_classes():
    with pytest.raises(ValueError, match='n_classes=2'): noisy_labels([0, 1, 2], 2, .5)


@pytest.fixture(scope='module')
def dls(): return digits_dls(n_train=40, n_valid=20, bs=8, size=32)


def test_no_noise_changes_nothing(dls):
    assert data_id(add_noise(dls, 0))==data_id(dls)
    assert not changed_labels(add_noise(dls, 0)).any()


def test_only_training_labels_change(dls):
    noisy = add_noise(dls, .25, seed=1)
    assert data_id(noisy)!=data_id(dls)
    assert (clean_labels(noisy)==train_labels(dls)).all()
    assert (train_labels(noisy)!=train_labels(dls)).tolist()==changed_labels(noisy).tolist()
    assert noisy.valid_ds is dls.valid_ds
    pairs = list(zip(dls.train, noisy.train))
    assert all(torch.equal(a[0], b[0]) for a,b in pairs)
    assert sum(int((a[1]!=b[1]).sum()) for a,b in pairs)==10


def test_nothing_is_drawn_from_global_generators(dls):
    states = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    add_noise(dls, .25)
    assert states==(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_learner_of_noisy_loaders(dls, tmp_path):
    "It trains under MixUp, finds a rate, is exported, and predicts"
    net = nn.Sequential(AdaptiveAvgPool(), Flatten(), nn.Linear(3, 10))
    learn = Learner(add_noise(dls, .25), net, path=tmp_path, cbs=MixUp())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.lr_find(num_it=20, show_plot=False)
        preds,targets = learn.get_preds(ds_idx=0, reorder=True)
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    assert again.predict(dls.valid_ds.items[0].image)[0] in dls.vocab
    assert (targets.numpy()==train_labels(learn.dls)).all()


@pytest.mark.parametrize('seed', range(3))
def test_load_data_counts(seed):
    said = []
    dls = load_data('digits', said.append, .2, 'pair', run_seed=seed, n_train=100, n_valid=20, size=32)
    clean,given = clean_labels(dls),train_labels(dls)
    assert np.bincount(clean[changed_labels(dls)]).tolist()==[2]*10
    assert (given[changed_labels(dls)]==(clean[changed_labels(dls)] + 1)%10).all()
    assert f'20 of 100 changed to the next class (label noise 0.2, pair, seed {seed})' in said[0]
