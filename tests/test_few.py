"Accuracy against images of each class: one family of differences, one table, one picture, one command"
import re
import numpy as np, pandas as pd, pytest
from fastai_featreg.comparison import few
from fastai_featreg.comparison.arguments import parser
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.few import (compare_sizes, half_of_mean, plot_sizes, sentences, sizes_table,
                                           summarise_sizes)
from fastai_featreg.comparison.report import summarise
from fastai_featreg.comparison.rows import read_results

small = dict(arch='test_resnet', methods='mixup', epochs=1, seeds=1, size=64, bs=8, n_valid=20, jobs=1, bars=False)


def rows_of(sizes, gains, seeds=4, methods=('A()', 'B()')):
    "Rows by hand: a gain for each size and method, and a little chance"
    rng,rows = np.random.default_rng(0),[]
    for n in sizes:
        for seed in range(seeds):
            for m in ('plain', *methods):
                a = .5 + gains.get((n, m), 0) + rng.normal(0, .002)
                rows.append(dict(method=m, seed=seed, accuracy=a, error='', curve='', step_ms=1., peak_mb=1.,
                                 per_class=str(n), n_valid='5000', data_id=f'd{n}'))
    return pd.DataFrame(rows)


def slow_holm(p):
    "Each p value times the number of those that are not smaller, the largest of these so far"
    order,res,worst = sorted(range(len(p)), key=lambda i: p[i]),[0]*len(p),0.
    for rank,i in enumerate(order):
        worst = max(worst, min(1., p[i]*(len(p) - rank)))
        res[i] = worst
    return res


def test_all_sizes_are_one_family():
    df = rows_of([5, 10, 25], {(5, 'A()'): .02, (25, 'B()'): .05})
    s = summarise_sizes(df)
    keys = [(n, m) for n in (5, 10, 25) for m in ('A()', 'B()')]
    alone = {n: summarise(df[df['per_class']==str(n)]) for n in (5, 10, 25)}
    p = slow_holm([alone[n].loc[m, 'gain_p'] for n,m in keys])
    assert [s[n].loc[m, 'gain_holm'] for n,m in keys]==pytest.approx(p)
    # more than the family of one size alone
    assert all(s[n].loc[m, 'gain_holm']>=alone[n].loc[m, 'gain_holm'] for n,m in keys)
    assert any(s[n].loc[m, 'gain_holm']>alone[n].loc[m, 'gain_holm'] for n,m in keys)
    same = [c for c in alone[5] if c not in ('gain_holm', 'methods')]
    pd.testing.assert_frame_equal(s[5][same], alone[5][same])


def test_one_of_six_sizes_is_not_a_finding():
    "A difference that its own size would show, and all sizes together do not"
    p_of = lambda df: summarise(df[df['per_class']=='5']).loc['A()', 'gain_p']
    make = lambda sizes, gain: rows_of(sizes, {(5, 'A()'): gain}, methods=('A()',))
    low,high = 0.,.05
    for _ in range(12): # a gain whose p is 0.03
        gain = (low + high)/2
        low,high = (gain, high) if p_of(make([5], gain))>.03 else (low, gain)
    df = make([5, 10, 15, 20, 25, 30], gain)
    assert .025<p_of(df)<.035
    line = sentences(df, summarise_sizes(df))[0]
    assert 'it excludes 0, but not after Holm over 6 differences, those of all sizes' in line


def test_table_and_sentences():
    df = rows_of([10, 5], {(5, 'A()'): .1, (10, 'A()'): .1})
    s = summarise_sizes(df)
    lines = sizes_table(s).splitlines()
    assert lines[1].split()[-2:]==['5', '10']
    for i,n in enumerate((5, 10)):
        want = s[n].loc['A()']
        cell = re.findall(r'[+-][\d.]+ \(.*?\)', lines[5])[i]
        assert cell==f'{100*want.gain:+.2f} ({100*want.gain_low:+.2f} to {100*want.gain_high:+.2f})'
    said = sentences(df, s)
    assert [o.split(':')[0] for o in said[:4]]==['5 images of each class']*2 + ['10 images of each class']*2
    assert 'a gain is shown' in said[0] and 'redraw=True' in said[-1]
    assert len(sentences(df.assign(redraw='True'), s))==4


def test_failed_runs_are_told():
    df = rows_of([5, 10], {})
    df.loc[1, ['error', 'accuracy']] = ['it broke', np.nan]
    said = sentences(df, summarise_sizes(df))
    assert '5 images of each class: A(), seed 0 failed: it broke' in said
    plot_sizes(df)


def test_picture():
    df = rows_of([5, 10, 25], {(5, 'A()'): .1})
    s = summarise_sizes(df)
    left,right = plot_sizes(df).axes
    assert [t.get_text() for t in right.get_xticklabels()]==['5', '10', '25'] and left.get_xscale()=='log'
    # the error bars are what the summaries say
    mine = left.containers[0]
    assert mine[0].get_ydata()==pytest.approx([100*t.loc['plain', 'accuracy'] for t in s.values()])
    ends = np.array([seg[:, 1] for seg in mine[2][0].get_segments()])
    a = df[(df['method']=='plain') & (df['per_class']=='5')]['accuracy']
    half = 3.182446*a.std()/2
    assert half_of_mean(s[5]).loc['plain']==pytest.approx(half, rel=1e-5)
    assert ends[0]==pytest.approx([100*(a.mean() - half), 100*(a.mean() + half)], rel=1e-5)
    gains = right.containers[0]
    ends = np.array([seg[:, 1] for seg in gains[2][0].get_segments()])
    assert ends[0]==pytest.approx([100*s[5].loc['A()', 'gain_low'], 100*s[5].loc['A()', 'gain_high']])
    assert len(right.containers)==2


def test_command_runs_all_sizes(tmp_path, capsys):
    said = ['compare', 'digits', '--arch', 'test_resnet', '--methods', 'mixup', '--epochs', '1', '--seeds', '1',
            '--size', '64', '--bs', '8', '--n-valid', '20', '--jobs', '1', '--redraw', '--out', str(tmp_path)]
    assert main([*said, '--per-class', '2,1'])==0
    out = capsys.readouterr().out
    assert 'images of each class' in out and 'few.png the picture' in out
    df = read_results(tmp_path/'results.csv')
    assert df['per_class'].tolist()==['1', '1', '2', '2'] and df['n_train'].tolist()==['10', '10', '20', '20']
    assert (tmp_path/'few.png').is_file() and not (tmp_path/'comparison.png').exists()
    # the runs of a size are those that one number trains: nothing is left to train
    again = compare('digits', per_class=2, redraw=True, out=tmp_path, say=lambda text: None, cost=False, **small)
    assert again['seconds'].tolist()==df['seconds'].tolist()[2:]
    assert (tmp_path/'comparison.png').is_file()


def test_a_single_number_is_what_it_was():
    assert parser().parse_args(['compare', '--per-class', '5']).per_class==5
    assert parser().parse_args(['compare', '--per-class', '5,10']).per_class==[5, 10]
    assert parser().parse_args(['compare']).per_class is None


@pytest.mark.parametrize('text', ['5,', '5,x', 'x', '5.5', '5;10'])
def test_no_numbers(text, capsys):
    assert main(['compare', '--per-class', text])==2
    err = capsys.readouterr().err
    assert f"per_class must be whole numbers joined by commas, got '{text}'; write" in err and 'one_or_more' not in err


def test_one_run_has_one_size(tmp_path, capsys):
    assert main(['train', 'digits', '--per-class', '5,10', '--out', str(tmp_path/'net')])==2
    assert 'per_class must be one number of images, got [5, 10]' in capsys.readouterr().err
    with pytest.raises(ValueError, match='compare_sizes'): compare('digits', per_class=[5, 10], out=tmp_path)


@pytest.mark.parametrize('sizes, how, said', [
    ([], {}, 'got none'), ([0, 5], {}, 'got 0'), ([True], {}, 'got True'), ([5.], {}, 'got 5.0'),
    ([5, 5], {}, 'sizes must differ'), ([5], dict(per_class=5), 'per_class must be left out')])
def test_wrong_sizes(sizes, how, said):
    with pytest.raises(ValueError, match=said): compare_sizes(sizes, 'digits', **how)


def test_nothing_is_trained_before_the_largest_size_is_there(monkeypatch):
    asked = []
    def opened(data, per_class, **how):
        asked.append(per_class)
        raise ValueError('per_class must be at most the images of each class')
    monkeypatch.setattr(few, 'compare', opened)
    with pytest.raises(ValueError, match='at most the images'): compare_sizes([9, 3], 'digits', **small)
    assert asked==[9]
