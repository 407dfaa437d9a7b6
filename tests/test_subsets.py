"Subsets: so many of each class, some classes, another draw for each run, and validation images that stay"
from collections import Counter
import numpy as np, pytest
from PIL import Image
from fastai_featreg.data import digits_dls, load_data
from fastai_featreg.fingerprints import data_id
from fastai_featreg.subsets import balanced_subset, chosen_classes, per_class_subset, train_subset

labels = np.repeat(list('abc'), [10, 20, 30])


@pytest.mark.parametrize('n', [1, 4, 10])
def test_per_class(n):
    for seed in range(3):
        chosen = per_class_subset(labels, n, seed)
        assert Counter(labels[chosen])==dict(a=n, b=n, c=n) and len({*chosen})==3*n


def test_too_few_of_a_class():
    with pytest.raises(ValueError, match=r'got 11, but there are fewer of some \(a: 10\)'): per_class_subset(labels, 11)
    with pytest.raises(ValueError, match=r'\(a: 10, b: 20\)'): per_class_subset(labels, 21)


def test_runs_draw_their_own():
    draws = [frozenset(train_subset(labels, per_class=3, draw=d).tolist()) for d in range(6)]
    assert len({*draws})==6
    assert train_subset(labels, 9).tolist()==balanced_subset(labels, 9, [0,0]).tolist()


@pytest.mark.parametrize('classes, said', [('a', 'two classes at least, got a'), ('a,d', 'got d; there are a, b, c'),
    ([], 'got none'), ('a,a', 'two classes at least')])
def test_wrong_classes(classes, said):
    with pytest.raises(ValueError, match=said): chosen_classes('abc', classes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root,rng = tmp_path_factory.mktemp('photos'),np.random.default_rng(0)
    for c in ('ant', 'bee', 'cat'):
        (root/c).mkdir()
        for i in range(10): Image.fromarray(rng.integers(0, 255, (8,8,3), dtype=np.uint8)).save(root/c/f'{i}.png')
    return root


def opened(data, **kwargs):
    said = []
    return load_data(data, said.append, size=32, bs=4, **kwargs),'\n'.join(said)


def test_folder(folder):
    dls,said = opened(folder, per_class=3, classes='ant,cat', num_workers=0)
    assert dls.vocab==['ant', 'cat'] and len(dls.train_ds)==6 and len(dls.valid_ds)==4
    assert '2 of 3 classes are chosen' in said and '3 of each of 2 classes' in said


def test_redraw_leaves_the_validation_images(folder):
    one,two = [opened(folder, per_class=3, redraw=True, run_seed=s, num_workers=0)[0] for s in (0, 1)]
    assert one.valid_ds.items==two.valid_ds.items
    assert {*one.train_ds.items}!={*two.train_ds.items}
    assert data_id(one)!=data_id(two)


def test_a_subset_that_is_not_redrawn_is_the_same_for_all_runs(folder):
    ids = {data_id(opened(folder, per_class=3, run_seed=s, num_workers=0)[0]) for s in (0, 1, None)}
    assert len(ids)==1


@pytest.mark.parametrize('classes, n', [(None, 10), ('1,7', 2), (['3', 5, '9'], 3)])
def test_digits(classes, n):
    dls,said = opened('digits', per_class=2, n_valid=7, classes=classes)
    assert {*Counter(o.label for o in dls.train_ds.items).values()}=={2} and dls.c==n and len(dls.valid_ds)==7
    assert f'2 of each of {n} classes' in said


def test_digits_redrawn():
    dls = [digits_dls(n_train=40, n_valid=20, size=32, draw=d) for d in (None, 0, 1)]
    assert data_id(dls[0])==data_id(dls[1])!=data_id(dls[2])


def test_nothing_asked_nothing_said():
    assert opened('digits', n_train=20, n_valid=10)[1]==''


@pytest.mark.parametrize('kwargs, said', [(dict(redraw=True), 'redraw must be False where all images train'),
    (dict(per_class=2, n_train=6), 'both given'), (dict(per_class=9), 'at most the images of each class'),
    (dict(classes='ant,dog'), 'got dog; there are ant, bee, cat')])
def test_wrong_arguments(folder, kwargs, said):
    with pytest.raises(ValueError, match=said): opened(folder, num_workers=0, **kwargs)
