"""The papers' observations as tools: fixed masks, maps over epochs, sweeps, errors over epochs

Each against slow or hand-computed values; what looks on leaves training as it is, to the last bit, and nothing behind.
"""
import itertools, random, sys, tempfile
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conformance import RaiseAt, next_fit_is_sound
from tiny import *
from fastai_featreg.comparison import report
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.curves import errors_of, over_seeds, plot_errors
from fastai_featreg.comparison.report import plot_sweep, summarise, verdicts
from fastai_featreg.comparison.sweep import find_sweeps, sweep, sweep_lines, sweep_table
from fastai_featreg.methods.fixed_mask import FixedMask, half_mask, halves, masked_map
from fastai_featreg.over_epochs import RecordMaps, show_maps_over_epochs


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def run(make_cb=None, n=2, **kwargs):
    "A trained learner, its weights, and what the generators draw next"
    learn = tiny_learner(**kwargs)
    learn.fit(n, cbs=make_cb() if make_cb else None)
    return learn,weights(learn),(torch.rand(1).item(), random.random(), np.random.rand())


# -- fixed masks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(2, 3, 4, 5), (1, 2, 3, 2)])
def test_halves_of_a_map(size):
    f = torch.randn(size)
    h,w = size[2:]
    for side in halves:
        slow = f.clone()
        for n,d,y,x in itertools.product(*map(range, size)):
            inside = dict(left=x<w//2, right=x>=w//2, top=y<h//2, bottom=y>=h//2)[side]
            if not inside: slow[n,d,y,x] = 0
        assert torch.equal(masked_map(f, half_mask(side, h, w)), slow)


def test_what_is_masked_does_not_learn():
    "The gradient of a map under a mask is masked, of later layers that of the pooled rest"
    f = torch.randn(2, 3, 4, 4, requires_grad=True)
    (masked_map(f, half_mask('top', 4, 4)).mean((2, 3))**2).sum().backward()
    assert f.grad[:,:,:2].abs().min()>0 and f.grad[:,:,2:].abs().max()==0


def test_a_mask_of_ones_is_plain_training():
    (_,a,draws_a),(learn,b,draws_b),(_,c,_) = run(),run(lambda: FixedMask(torch.ones(2, 2))),run(FixedMask)
    assert_same(a, b)
    assert draws_a==draws_b
    assert any(not torch.equal(a[k], c[k]) for k in a), 'a half is something else'
    assert_clean(learn)


def test_validation_sees_the_whole_map():
    plain,learn = tiny_learner(),tiny_learner(FixedMask('left'))
    for o in (plain, learn): o.fit(1, 0.) # BatchNorm's running means move, and before the mask
    assert torch.equal(learn.get_preds()[0], plain.get_preds()[0])


@pytest.mark.parametrize('exc', [RuntimeError, KeyboardInterrupt, CancelFitException])
def test_a_masked_fit_that_is_broken_off(exc):
    learn = tiny_learner(FixedMask('right'))
    try: learn.fit(2, cbs=RaiseAt('after_loss', exc))
    except (RuntimeError, KeyboardInterrupt): pass
    assert_clean(learn)
    next_fit_is_sound(learn)


def test_a_fixed_mask_is_no_method():
    from fastai_featreg.comparison.plan import known_methods
    assert 'FixedMask' not in {cls.__name__ for cls in known_methods().values()}


# -- maps over epochs --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kwargs', [{}, dict(epochs=[2]), dict(epochs=0, method='grad_cam'), dict(n=3, target=1)])
def test_recording_leaves_training_bit_identical(kwargs):
    (_,a,draws_a),(learn,b,draws_b) = run(),run(lambda: RecordMaps(**kwargs))
    assert_same(a, b)
    assert draws_a==draws_b, 'a global random generator has moved'
    assert_clean(learn)


def test_what_is_recorded_is_what_the_network_gave_then():
    "Fits of one epoch each, and the maps after each, by hand"
    record = RecordMaps(n=3)
    learn = tiny_learner(record)
    for _ in range(3): learn.fit(1)
    assert list(record.maps)==[0, 1, 2, 3]
    slow = tiny_learner()
    looked = [slow.cams(slow.dls.train, n=3).maps]
    for _ in range(3):
        slow.fit(1)
        looked.append(slow.cams(slow.dls.train, n=3).maps)
    for one,o in zip(looked, record.maps.values()): assert torch.equal(one, o.maps)
    assert torch.equal(record.maps[0].labels, slow.cams(slow.dls.train, n=3).labels)


def test_epochs_that_count():
    "Of several fits and of `fine_tune`, not of inference or `lr_find`; another learner begins anew"
    record = RecordMaps(epochs=[1, 3])
    learn = tiny_learner(record)
    learn.validate(), learn.get_preds()
    assert record.maps is None
    learn.lr_find(num_it=3, show_plot=False)
    assert not record.maps
    learn.fine_tune(2)
    learn.validate()
    assert (list(record.maps), record.done)==([1, 3], 3)
    learn.remove_cb(record)
    tiny_learner(record).fit(1)
    assert (list(record.maps), record.done)==([1], 1)


def test_given_images_stay_the_same():
    x = torch.randn(2, 3, 32, 32)
    learn = tiny_learner(RecordMaps(x, target='predicted'))
    learn.fit(2)
    got = learn.record_maps.maps
    assert all(torch.equal(o.x, x) and o.labels is None for o in got.values())


def test_what_cannot_be_recorded_is_told_before_the_first_step():
    learn = tiny_learner(RecordMaps(layer='layer9', epochs=[2]))
    before = weights(learn)
    with pytest.raises(ValueError, match='layer9'): learn.fit(2)
    assert_same(before, weights(learn))
    learn.remove_cb(RecordMaps)
    assert_clean(learn)
    next_fit_is_sound(learn)


@pytest.mark.parametrize('exc', [RuntimeError, KeyboardInterrupt])
def test_a_recorded_fit_that_is_broken_off(exc):
    record = RecordMaps()
    learn = tiny_learner(record)
    with pytest.raises(exc): learn.fit(2, cbs=RaiseAt('after_loss', exc))
    assert list(record.maps)==[0] and record.done==0
    assert_clean(learn)
    learn.fit(1)
    assert list(record.maps)==[0, 1]


def test_maps_are_not_exported():
    learn = tiny_learner(RecordMaps(n=2))
    learn.fit(1)
    with tempfile.TemporaryDirectory() as d:
        learn.export(Path(d)/'learner.pkl')
        loaded = load_learner(Path(d)/'learner.pkl')
    assert loaded.record_maps.maps is None and loaded.record_maps.n==2
    assert learn.record_maps.maps, 'they are still there'


def test_the_picture_over_epochs():
    learn = tiny_learner()
    learn.fit(2, cbs=(record := RecordMaps(epochs=[0, 2], n=3)))
    axs = plt.subplots(2, 3)[1].flatten()
    show_maps_over_epochs(learn, record, max_n=2, ctxs=list(axs))
    assert [len(ax.images) for ax in axs]==[1, 2, 2]*2
    assert [ax.texts[0].get_text() for ax in axs[1:3]]==['CAM, untrained', 'CAM, epoch 2']
    with pytest.raises(ValueError, match='must hold 9 axes'): show_maps_over_epochs(learn, record, ctxs=list(axs))


# -- sweeps ------------------------------------------------------------------------------------------------------------

def rows(method, accuracies):
    return pd.DataFrame(dict(method=method, seed=range(len(accuracies)), accuracy=accuracies, step_ms=1., peak_mb=1.,
                             error='', curve='', train_curve=''))


def test_there_and_back():
    "The sweeps of the arms of a sweep are that sweep, whatever the order and the other arms"
    random.seed(0)
    cases = [('SelectScale(retain=0)', dict(top_rate=[.1, .2, .5, 1])), ('CAMLoss', dict(c=[.5, 1, 2.])),
             ('CAMLoss(c=2)', dict(start=[0., .25, .5])), ('MVFeaAug', dict(k=[10, 20, 30, 40])),
             ('FeatureMining+SelectScale', dict(retain=[0., .1, .2])),
             ('FeatureMining', dict(mask=['box', 'point', 'channel'])),
             ('SelectScale', dict(top_rate=[.1, .2, .5], retain=[0., .2])),
             ('MVFeaAug', dict(k=[10, 20, 30], sizes=[[1, 3], [2, 5]]))]
    for method,values in cases:
        arms = ['plain', 'MixUp()', *sweep(method, **values)]
        random.shuffle(arms)
        found, = find_sweeps(arms)
        assert found.arguments==tuple(values), (method, found)
        for i,given in enumerate(values.values()): assert sorted(map(str, found.values(i)))==sorted(map(str, given))
        for setting in itertools.product(*values.values()):
            assert [found.at(*setting)]==sweep(method, **{k: [v] for k,v in zip(values, setting)})


def test_what_is_shown_is_what_the_sentence_says():
    "Over many made-up results: points are filled where the verdict says that a difference is shown"
    arms,rng = sweep('SelectScale', top_rate=[.1, .2, .5, 1]),np.random.default_rng(0)
    said = []
    for _ in range(20):
        n = int(rng.choice([2, 3, 5]))
        plain = rng.uniform(.4, .6, n)
        made = [rows(a, plain + rng.normal(.03*rng.integers(-1, 3), .01, n)) for a in arms]
        summary = summarise(pd.concat([rows('plain', plain), *made]))
        sentences = ['difference is shown' not in o and 'is shown' in o for o in verdicts(summary)]
        t = sweep_table(summary, find_sweeps(arms)[0])
        assert t['shown'].tolist()==sentences
        np.testing.assert_allclose(t['gain'], 100*summary.loc[arms, 'gain'].astype(float))
        assert t['low'].isna().all()==(n<3)
        said += sentences
    assert 10<sum(said)<70, 'both happen'


def test_a_setting_that_failed_is_left_out():
    arms = sweep('SelectScale', top_rate=[.1, .2, .5])
    made = [rows('plain', [.5, .6, .7]), rows(arms[0], [.6, .7, .8]), rows(arms[1], [.4, .5, .6])]
    broken = rows(arms[2], [np.nan]*3).assign(error='ValueError: no')
    df = pd.concat([*made, broken])
    plot_sweep(df, 'top_rate')
    line, = sweep_lines(summarise(df))
    assert 'best at top_rate=0.1, +10 points' in line and 'best of 2' in line


def test_the_picture_of_a_sweep_takes_runs_as_all_pictures_do():
    "And holds the arms against what the report holds them against"
    arms = sweep('SelectScale', top_rate=[.1, .2, .5])
    df = pd.concat([rows('plain', [.5, .6, .7]), rows('MixUp()', [.7, .8, .9]), *(rows(a, [.6, .7, .8]) for a in arms)])
    drawn = report.pictures(df, summarise(df, 'mixup'), 'mixup')['sweep'][1]
    for plot,base in ((lambda: plot_sweep(df), 60), (lambda: plot_sweep(df, against='mixup'), 80), (drawn, 80)):
        ax, = plot().axes
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [base, base])


def test_the_command_adds_arms(monkeypatch, capsys):
    asked = []
    def compare(data, **given):
        asked.append(given)
        return pd.DataFrame(dict(error=[]))
    monkeypatch.setattr(sys.modules['fastai_featreg.comparison.compare'], 'compare', compare)
    text = 'SelectScale(retain=0): top_rate=0.1,0.2'
    arms = ','.join(sweep('SelectScale(retain=0)', top_rate=[.1, .2]))
    for args in (['--sweep', text], ['--methods', 'mixup', '--sweep', text], [],
                 ['--sweep', text, '--sweep', 'mixup: alpha=1,2']): assert main(['compare', *args])==0
    got = [o['methods'] for o in asked]
    assert got==[arms, f'mixup,{arms}', 'FeatureMining(),FeatureMining(layers=2)',
                 f'{arms},MixUp(alpha=1),MixUp(alpha=2)']
    assert not any('sweep' in o for o in asked)


@pytest.mark.parametrize('text', ['', 'x', ':', 'mixup:', 'mixup: alpha', 'mixup: alpha=', 'mixup: alpha=' + '('*5000,
    'mixup: alpha=1,' + '-'*4000 + '1', 'mixup: beta=1', 'mixup+cutmix: alpha=1', 'mixp: alpha=1',
    'mixup: alpha=1;alpha=2', 'mixup: alpha=' + '1,'*50_000, 'mixup: alpha=[]', 'mixup: alpha=-1',
    'mixup: alpha=1e999', '('*4000 + ': alpha=1',
    'mixup(**{}): alpha=1', 'mixup(1,2,3): alpha=1', 'plain: alpha=1', 'all: alpha=1', 'mixup: alpha=1\0'])
def test_a_wrong_sweep_is_one_sentence(capsys, tmp_path, text):
    assert main(['compare', '--sweep', text, '--seeds', '1', '--out', str(tmp_path), '--n-train', '1'])==2
    err = capsys.readouterr().err
    assert err.startswith('featreg: ') and err.count('\n')==1 and len(err)<=810, err


# -- errors over epochs ------------------------------------------------------------------------------------------------

def test_errors_by_a_slow_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        runs = [rng.uniform(0, 1, rng.integers(0, 5)).tolist() for _ in range(4)]
        found = errors_of([';'.join(map(str, r)) for r in runs])
        ends = over_seeds(found)
        for epoch in range(max(map(len, runs))):
            there = [100*(1 - r[epoch]) for r in runs if len(r)>epoch]
            slow = sum(there)/len(there),min(there),max(there)
            np.testing.assert_allclose([ends[k][epoch] for k in ('mean', 'low', 'high')], slow)


def test_pictures_of_a_report(tmp_path):
    "Beside the first one the errors where there are any, and the sweep where there is one"
    arms = sweep('SelectScale', top_rate=[.1, .2, .5])
    made = pd.concat([rows('plain', [.5, .6, .7]), *(rows(a, [.55, .6, .8]) for a in arms)])
    curves = made.assign(curve='.2;.5', train_curve='.3;.6')
    wanted = {'comparison'},{'comparison', 'sweep'},{'comparison', 'curves'},{'comparison', 'curves', 'sweep'}
    for df,names in zip((made[made.method=='plain'], made, curves[curves.method=='plain'], curves), wanted):
        assert set(report.pictures(df, summarise(df)))==names
    said = report.draw_all(curves, summarise(curves), tmp_path/'comparison-2.png')
    assert sorted(p.name for p in tmp_path.iterdir())==['comparison-2.png', 'curves-2.png', 'sweep-2.png']
    assert said.count(str(tmp_path))==3


def test_a_line_of_the_picture_of_errors():
    df = pd.concat([rows('plain', [.5, .7]), rows('MixUp()', [.6, .6])]).assign(curve='.2;.5', train_curve='.3;.6;nan')
    ax, = plot_errors(df).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [80, 50])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [70, 40])


# -- activations of a saved network ------------------------------------------------------------------------------------

def test_activations_of_a_saved_network():
    "A learner that was exported and loaded counts what the trained one counts, on images that are given"
    learn = tiny_learner()
    learn.fit(1)
    with tempfile.TemporaryDirectory() as d:
        learn.export(Path(d)/'learner.pkl')
        loaded = load_learner(Path(d)/'learner.pkl')
    x = torch.randn(8, 3, 32, 32)
    plot_activations({'trained': learn, 'saved': loaded}, x, layers=3, threshold=0.1)
    for ax in plt.gcf().axes:
        one,two = [o.get_data().values for o in ax.patches]
        assert one.sum()>0 and np.array_equal(one, two)
