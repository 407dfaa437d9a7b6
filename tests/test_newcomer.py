"What a new user types, and is told"
import math
import re
from argparse import Namespace
from itertools import combinations
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import Normalize
from fastai_featreg.comparison import start, training
from fastai_featreg.comparison.arguments import parser
from fastai_featreg.comparison.command import main, run_train
from fastai_featreg.comparison.few import plot_sizes
from fastai_featreg.comparison.found import of_size
from fastai_featreg.comparison.compare import trained_as
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.comparison.published import read_table
from fastai_featreg.comparison.report import plot_comparison, summarise
from fastai_featreg.comparison.reproduce import beginning, plan_of
from fastai_featreg.comparison.sweep import draw_sweeps, sweep_of_text, too_few
from fastai_featreg.data import load_data
from fastai_featreg.detect import stats_of
from fastai_featreg.episodes import episodes
from fastai_featreg.over_epochs import RecordMaps
from grammar import in_grammar
from tiny import tiny_learner


# ---- words ----

mixers = 'mixup', 'cutmix', 'batch_mixup', 'batch_cutmix', 'manifold_mixup'

@pytest.mark.parametrize('a,b', list(combinations(mixers, 2)))
def test_images_are_mixed_by_one(a, b):
    with pytest.raises(ValueError, match='mixed by one callback, got .* and .*; compare them as two') as e:
        parse_methods(f'{a}+{b}')
    assert in_grammar(str(e.value))

def test_a_mixer_beside_another_method(): assert len(parse_methods('mixup+feature_mining,cutmix'))==3

@pytest.mark.parametrize('typed,meant', [
    (['compare', '--epoks', '3'], "unknown argument '--epoks'; did you mean '--epochs'"),
    (['train', '--metod=mixup'], "unknown argument '--metod'; did you mean '--method'"),
    (['reproduce', '--quik'], "did you mean '--quick'.*featreg reproduce --help"),
    (['report', '--againts', 'mixup'], "did you mean '--against'"),
    (['methods', '--all'], "unknown argument '--all'; 'featreg methods --help'"),
    (['compare', 'photos', 'more'], "unknown argument 'more'")])
def test_a_word_too_many(capsys, typed, meant):
    assert main(typed)==2
    said = capsys.readouterr().err
    assert re.search(meant, said) and said.count('\n')==1, said

@pytest.mark.parametrize('several', ['methods', 'seeds'])
def test_train_is_one_run(several):
    args = parser().parse_args(['train', f'--{several}', '3'])
    with pytest.raises(ValueError, match=f'got --{several} 3; give --{several[:-1]}$'): run_train(args)

def test_noise_on_noise():
    with pytest.raises(ValueError, match='label_noise must be left out where true_column .*; leave one'):
        load_data('imagenette', label_noise=.2, label_column='noisy_labels_25', true_column='noisy_labels_0')


# ---- rows and lines ----

def test_another_size_is_no_old_row():
    df = pd.DataFrame(dict(per_class=['5', '10', '', '5.0'], seed=range(4)))
    sizes = lambda *n: [*of_size(df, {i: dict(per_class=str(o)) for i,o in enumerate(n)}).seed]
    assert sizes(5)==[0, 2, 3] and sizes(10)==[1, 2] and sizes('')==[0, 1, 2, 3]

def test_the_rate_is_told():
    plain = Namespace(recipe='', lr='0.003', protocol='', scale='')
    assert trained_as(plain)==', highest learning rate 0.003'

def test_reproduce_begins_with_a_line(tmp_path):
    table = read_table('fm-table8')
    line = beginning(table, plan_of(table, True), tmp_path)
    assert re.match(r"fm-table8: \d+ runs in \d+ blocks?.* on .*; what ends goes to '", line) and '\n' not in line

def test_where_a_set_belongs(monkeypatch):
    assert start.place_of('cifar100').name=='cifar100' and start.place_of('imagenette').name=='imagenette2-160'
    assert start.place_of('photos') is None
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(start, 'load_data', offline)
    how = Namespace(augment=None)
    with pytest.raises(ValueError, match="no route to host.*check the network.*or unpack it as '.*cifar100'$"):
        start.open_data('cifar100', dict(size=32), how)

def test_lines_through_a_pipe(monkeypatch):
    said,clock = [],iter(range(0, 1000, 20))
    monkeypatch.setattr(training.time, 'perf_counter', lambda: next(clock))
    tiny_learner(training.EpochLines(said.append, 'plain, seed 0', every=30.), n=8).fit(5)
    assert said==['  plain, seed 0: epoch 2 of 5 has ended', '  plain, seed 0: epoch 4 of 5 has ended']
    kinds = lambda bars: [type(progress) for _,progress,_ in training.iterate([(0, 'plain')], print, bars)]
    monkeypatch.setattr(training, 'watched', lambda: False)
    assert kinds(None)==[training.EpochLines] and kinds(False)==[type(None)]


# ---- pictures ----

def runs(seeds, methods, per_class=''):
    "Rows of some methods; the gain of each is another one in each seed"
    rows = [dict(method=m, seed=s, accuracy=.5 + .01*i + .003*s*i, curve='.4;.5', error='', metric='', step_ms=1.,
                 per_class=per_class, n_valid='1000', seeds_asked=str(seeds), note='', peak_mb=math.nan, seconds=1.,
                 best_accuracy=.5, best_epoch=1, term_share='', result='')
            for i,m in enumerate(methods) for s in range(seeds)]
    return pd.DataFrame(rows)

@pytest.mark.parametrize('seeds', [1, 2, 3])
def test_titles_promise_what_is_there(seeds):
    title = plot_comparison(runs(seeds, ['plain', 'FeatureMining()'])).axes[0].get_title()
    assert ('95 %' in title)==(seeds>2)
    both = [ax.get_title() for ax in plot_sizes(runs(seeds, ['plain', 'FeatureMining()'], '5')).axes]
    assert ['95 %' in o for o in both]==[seeds>1, seeds>2] and both[0].startswith('Mean')
    plt.close('all')

def test_open_circles_are_explained():
    arms = sweep_of_text('SelectScale: top_rate=0.2,0.3,0.5')
    fig = draw_sweeps(summarise(runs(2, ['plain', *arms])))
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()]==['plain', 'no difference shown']
    plt.close(fig)

def test_two_sweeps_are_two_panels():
    texts = ['SelectScale: top_rate=0.2,0.3,0.5', 'FeatureMining: weight=0.5,2,4']
    fig = draw_sweeps(summarise(runs(3, ['plain', *(o for t in texts for o in sweep_of_text(t))])))
    assert len(fig.axes)==2 and not too_few(texts)
    said, = too_few([*texts, 'FeatureMining: weight=0.5,2'])
    assert "'FeatureMining: weight=0.5,2' is not drawn" in said and '3 values' in said
    plt.close(fig)


# ---- in Python ----

def never(*args, **kwargs): raise AssertionError('the network was asked')

@pytest.mark.parametrize('wrong,why', [
    (dict(way=1), 'way must'), (dict(shot=0), 'shot must'), (dict(method='svm'), 'method must'),
    (dict(way=9), 'way must be at most the 4 classes'), (dict(), 'classes that the network was not trained on')])
def test_episodes_look_before_they_compute(wrong, why):
    dl = Namespace(vocab=list('abcd'), one_batch=never)
    learn = Namespace(dls=Namespace(vocab=list('abcd') if not wrong else list('wxyz')))
    with pytest.raises(ValueError, match=why): episodes(learn, dl, **dict(way=2) | wrong)

def test_a_loader_for_training_is_told_first():
    dl = Namespace(vocab=list('abcd'), shuffle=True, one_batch=never)
    with pytest.raises(ValueError, match='got one for training'): episodes(Namespace(dls=dl), dl)

def test_epochs_that_do_not_come():
    learn = tiny_learner(RecordMaps(epochs=[1, 3], n=2), n=16)
    with pytest.warns(UserWarning, match=r'epochs must be at most 1, the last of this fit, got \[3\]; they wait'):
        learn.fit(1)
    learn.fit(2)
    assert [*learn.record_maps.maps]==[1, 3]

@pytest.mark.parametrize('norm', [None, Normalize.from_stats([.1, .2, .3], [.4, .5, .6], cuda=False)])
def test_a_detector_normalises_as_the_learner_does(norm):
    learn = tiny_learner()
    if norm is not None: learn.dls.add_tfms([norm], 'after_batch')
    expected = ([.1, .2, .3], [.4, .5, .6]) if norm is not None else ([0]*3, [1]*3)
    assert np.allclose(stats_of(learn), expected)
    assert np.allclose(stats_of(learn.model), [[.485, .456, .406], [.229, .224, .225]])
