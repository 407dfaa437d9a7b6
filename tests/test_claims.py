"Published beside here: the claims of a table of a paper refuse what the report refuses"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastai_featreg.comparison.claims import claims, claims_text, plot_claims
from fastai_featreg.comparison.published import read_table
from fastai_featreg.comparison.report import plt, summarise, verdicts
from fastai_featreg.comparison.reproduce import plan_of
from fastai_featreg.comparison.verdicts import packed

table = read_table('fm-table8')
calls = plan_of(table, quick=True)
block = table.claims and calls[0]['block']
rng = np.random.default_rng(0)
plain,better = [rng.random((5, 400))<p for p in (0.4, 0.7)]


def rows(arm, right, **more):
    "Runs of an arm"
    accuracy = right.mean(1)
    return pd.DataFrame(dict(block=block, arm=arm, method=arm, seed=range(len(right)), error='', accuracy=accuracy,
                             best_accuracy=accuracy, right=[packed(o) for o in right], n_valid='400', step_ms=1.,
                             peak_mb=1., curve='')).assign(**more)

def lose(df, seed):
    lost = df['seed']==seed
    return df.assign(error=np.where(lost, 'diverged: x', ''), accuracy=df['accuracy'].mask(lost))

def both(*arms):
    "What the claims and what the report say of the same runs: is a gain told?"
    found = claims(table, calls, list(arms)).set_index(['block', 'method']).loc[(block, 'fm')]
    said, = verdicts(summarise(pd.concat(arms)))
    return found['told'], 'a gain is shown' in said

cases = {
    'five seeds': (lambda df: df, 'yes'),
    'two seeds': (lambda df: df[:2], 'no, too few seeds'),
    'two seeds and a lost one': (lambda df: lose(df[:3], 1 if df['arm'][0]=='fm' else 2), 'no, too few seeds'),
    'a lost run of the method': (lambda df: lose(df, 1) if df['arm'][0]=='fm' else df, 'no, runs that did not'),
    'a lost run of plain': (lambda df: lose(df, 1) if df['arm'][0]=='plain' else df, 'no, runs that did not'),
    'seeds that were added': (lambda df: df.assign(seeds_asked='3 3 3 5 5'.split()), 'no, seeds were added'),
    'no predictions': (lambda df: df.assign(right=''), 'yes')}

@pytest.mark.parametrize('case', cases)
def test_claims_and_report_agree(case):
    change,expected = cases[case]
    told,shown = both(change(rows('plain', plain)), change(rows('fm', better)))
    assert told.startswith(expected) and shown==(expected=='yes'), (told, shown)

@pytest.mark.parametrize('error, state', [('diverged: x', '1 diverged'), ('OSError: no', '1 failed')])
def test_a_divergence_is_no_failure(error, state):
    lost = rows('fm', better).assign(error=['', '', '', '', error])
    assert claims(table, calls, [rows('plain', plain), lost])['state'][0]==f'4 of 5 seeds, {state}'

def test_a_jumpier_curve_is_no_gain():
    "Equal true accuracy in the last epoch; the best one of a curve that jumps is 5 points higher"
    of_best = replace(table, result='best')
    told = []
    for _ in range(40):
        right = rng.random((2, 5, 400))<0.5
        arms = [rows('plain', right[0]), rows('fm', right[1])]
        arms[1]['best_accuracy'] += 0.05
        found = claims(of_best, calls, arms)
        assert found['here'][0]==pytest.approx(found['last'][0] + 5)
        told.append(found['told'][0])
    assert sum(t=='yes' for t in told)<=4, told
    text = claims_text(of_best, calls, found, True)
    assert 'last epoch (95 %)' in text and 'told: of the last epoch, after Holm' in text
    labels = plot_claims(of_best, found, True, calls).axes[0].get_legend_handles_labels()[1]
    plt.close('all')
    assert any('best epoch' in l for l in labels) and any('last epoch' in l for l in labels)
