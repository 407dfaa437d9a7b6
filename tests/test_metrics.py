"Another measure than accuracy: in the row, the table, the sentences and the picture, under its own name"
import pandas as pd, pytest
from fastai.vision.all import F1Score, error_rate, noop
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.metrics import by_metric
from fastai_featreg.comparison.report import plot_comparison, plt
from fastai_featreg.comparison.rows import read_results

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
