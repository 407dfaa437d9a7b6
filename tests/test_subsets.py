"Subsets: so many of each class, some classes, another draw for each run, and validation images that stay"
import sys
from collections import Counter
import numpy as np, pytest
from PIL import Image
from fastai_featreg.comparison import rows, training
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import compare
from fastai_featreg.data import digits_dls, load_data
from fastai_featreg.comparison.fingerprints import data_id
from fastai_featreg.noise import changed_labels
from fastai_featreg.comparison.report import summarise
from fastai_featreg.comparison.rows import read_results
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


# ---- in a comparison

@pytest.fixture
def trained(monkeypatch):
    "(seed, number of changed labels, `data_id`) of runs that are replaced by instant ones"
    runs = []
    def run(dls, make_cbs=list, seed=0, **kwargs):
        runs.append((seed, int(changed_labels(dls).sum()), data_id(dls)))
        row = dict.fromkeys(rows.measures, 1.) | dict.fromkeys(rows.looks + rows.bests, np.nan)
        return row | dict.fromkeys(rows.doings, '') | dict(accuracy=.5 + .01*seed, curve='.5', error='')
    module = sys.modules[compare.__module__]
    monkeypatch.setattr(training, 'run_once', run)
    monkeypatch.setattr(module, 'check_methods', lambda *args: None)
    return runs


def compared(folder, out, **kwargs):
    said = []
    df = compare(folder, 'resnet20', 'mixup', size=32, bs=4, epochs=1, pretrained=False, bars=False, out=out,
                 say=said.append, **kwargs)
    return df,'\n'.join(map(str, said))


def test_each_seed_has_data_of_its_own(folder, tmp_path, trained):
    drawn = dict(per_class=4, redraw=True, label_noise=.25, noise_kind='pair')
    df,said = compared(folder, tmp_path, seeds=2, **drawn)
    assert len(trained)==4 and {n for _,n,_ in trained}=={3}
    ids = {seed: {i for s,_,i in trained if s==seed} for seed in (0, 1)}
    assert all(len(i)==1 for i in ids.values()) and ids[0]!=ids[1]
    assert {(s, *ids[s]) for s in (0, 1)}=={*zip(df.seed, df.data_id)}
    assert {*df.label_noise.map(float)}=={.25} and {*df.noise_kind}=={'pair'} and {*df.per_class.map(float)}=={4}
    compared(folder, tmp_path, seeds=3, **drawn)
    assert [s for s,*_ in trained[4:]]==[2, 2]


def test_noise_is_part_of_what_a_run_is(folder, tmp_path, trained):
    compared(folder, tmp_path, seeds=2)
    compared(folder, tmp_path, seeds=2)
    assert len(trained)==4 and len({i for *_,i in trained})==1
    compared(folder, tmp_path, seeds=2, label_noise=.2)
    compared(folder, tmp_path, seeds=2, label_noise=.4)
    assert len(trained)==12
    df = read_results(tmp_path/'results.csv')
    assert {*df.label_noise}=={'', '0.2', '0.4'}
    compared(folder, tmp_path, seeds=2)
    assert len(trained)==12


def test_runs_of_mixed_noise_are_not_summed_up(folder, tmp_path, trained):
    compared(folder, tmp_path, seeds=2, label_noise=.2)
    df = read_results(tmp_path/'results.csv')
    assert len(summarise(df))==2
    df.loc[0, 'data_id'] = 'd0'
    with pytest.raises(ValueError, match='differ in data_id'): summarise(df)


def test_arguments_of_the_command(folder, tmp_path, trained):
    args = ['compare', str(folder), '--arch', 'resnet20', '--methods', 'mixup', '--size', '32', '--bs', '4', '--seeds',
            '1', '--no-pretrained', '--per-class', '3', '--classes', 'ant,bee', '--redraw', '--label-noise', '0.5',
            '--noise-kind', 'pair', '--out', str(tmp_path)]
    assert main(args)==0
    df = read_results(tmp_path/'results.csv')
    row = df.iloc[0]
    said = row.per_class,row.redraw,row.label_noise,row.noise_kind,row.n_classes
    assert said==('3', 'True', '0.5', 'pair', '2')
    assert trained[0][1]==3
