"Another measure than accuracy: in the row, the table, the sentences and the picture, under its own name"
import pandas as pd, pytest
from fastai.vision.all import F1Score, Perplexity, error_rate, noop
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.metrics import by_metric
from fastai_featreg.comparison.report import plot_comparison, plt, summarise
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.verdicts import difference_of_accuracies

small = dict(arch='test_resnet', methods='mixup', epochs=2, seeds=3, bars=False, size=32, bs=8, n_train=32, n_valid=20)


def test_the_report_is_about_the_metric(tmp_path):
    said = []
    df = compare(**small, out=tmp_path, metric=F1Score(average='macro'), say=said.append)
    assert (df.metric=='f1_score').all() and (df.error=='').all()
    table = said[-2].splitlines()
    assert 'f1_score' in table[1] and 'accuracy' not in said[-2]
    plain = by_metric(df)[df.method=='plain'].accuracy
    assert f'{100*plain.mean():.2f} ±' in said[-2] and plain.between(0, 1).all()
    fig = plot_comparison(df)
    assert fig.axes[1].get_ylabel()=='f1_score, %' and 'f1_score' in fig.axes[0].get_xlabel()
    plt.close(fig)


def test_a_metric_that_is_better_when_lower(tmp_path):
    "The negative error rate is accuracy minus one, run by run; accuracy stays in its column"
    df = compare(**small | dict(seeds=1), out=tmp_path, metric=error_rate, lower_is_better=True, say=noop)
    assert (df.metric=='-error_rate').all()
    assert by_metric(df).accuracy.tolist()==pytest.approx((df.accuracy - 1).tolist(), abs=1e-5)


def test_a_metric_that_is_no_share(tmp_path):
    "Perplexity is above 1: no percent, no points, no spread of a share of images, no power of accuracies"
    said = []
    df = compare(**small, out=tmp_path, metric=Perplexity(), lower_is_better=True, say=said.append)
    turned = by_metric(df)
    s = summarise(turned)
    gain = s.loc['MixUp()', 'gain']
    student = difference_of_accuracies(*[turned[turned.method==m].accuracy for m in ('MixUp()', 'plain')])
    assert turned.accuracy.max()<-1 and s.loc['MixUp()', 'gain_high']==pytest.approx(student.high)
    assert not any('show a difference' in o or 'show no difference' in o for o in said)
    text = said[-2]
    assert f"{s.loc['plain', 'accuracy']:.4g} ±" in text and f'MixUp(): {gain:+.4g} against plain over 3 seeds' in text
    assert ' points' not in text and 'the metric is not kept for each image' in text
    # of the digits, two columns are shares: the pointing game and the boxes
    assert text.count('%') - text.count('95 %')==2, text
    fig = plot_comparison(df)
    assert fig.axes[1].get_ylabel()=='-perplexity'
    assert fig.axes[0].get_xlabel()=='difference of -perplexity against plain'
    assert min(fig.axes[1].lines[0].get_ydata())==pytest.approx(turned[turned.method=='plain'].curve.str.split(';')
        .map(lambda o: [float(v) for v in o]).apply(pd.Series).mean().min())
    plt.close(fig)


def test_a_metric_changes_no_training_and_is_part_of_a_row(tmp_path):
    bare = compare(**small | dict(seeds=1), out=tmp_path, say=noop)
    df = compare(**small | dict(seeds=1), out=tmp_path, metric=error_rate, lower_is_better=True, say=noop)
    pd.testing.assert_series_equal(bare.train_loss, df.train_loss)
    pd.testing.assert_series_equal(bare.accuracy, df.accuracy)
    table = read_results(tmp_path/'results.csv')
    assert table.metric.tolist()==['', '', '-error_rate', '-error_rate'] and (bare.scores=='').all()


@pytest.mark.parametrize('given', [dict(metric='f1'), dict(metric=3), dict(lower_is_better=True)])
def test_what_is_no_metric_is_told(tmp_path, given):
    with pytest.raises(ValueError, match='metric'): compare(**small, **given, out=tmp_path, say=noop)
