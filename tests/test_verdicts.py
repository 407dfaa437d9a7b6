"Intervals over seeds and images against literal loops and known tests; what the sentences say"
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastai_featreg.comparison.report import best_epochs, find_arm, summarise, summary_table, verdicts
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.verdicts import (difference, difference_of_accuracies, half_width, holm, p_value, packed,
                                                power, power_line, smallest_difference, unpacked, variance_parts)

simulation = Path(__file__).parent.parent/'nbs/results/verdict_simulation.csv'


def literal_half(d, t_seeds, t_images):
    "The rule by explicit sums over cells"
    S,I = d.shape
    mean = sum(d[s, i] for s in range(S) for i in range(I))/(S*I)
    seed = [sum(d[s, i] for i in range(I))/I for s in range(S)]
    image = [sum(d[s, i] for s in range(S))/S for i in range(I)]
    seeds = I*sum((a - mean)**2 for a in seed)/(S - 1)
    images = S*sum((b - mean)**2 for b in image)/(I - 1)
    cells = sum((d[s, i] - seed[s] - image[i] + mean)**2 for s in range(S) for i in range(I))
    rest = cells/((S - 1)*(I - 1))
    of_seeds = max(t_seeds**2*seeds, t_images**2*rest)/(S*I)
    lasting = max(images - rest, 0)/S
    alike = (lasting + 2/I)/(lasting + 2/I + rest)
    counted = S*I/(1 + (S - 1)*alike)
    of_images = t_images**2*(lasting/I + 2/counted**2)
    return mean, (of_seeds + of_images)**0.5

@pytest.mark.parametrize('seed', range(5))
def test_the_interval_is_that_of_explicit_sums(seed):
    rng = np.random.default_rng(seed)
    S,I = 2 + seed,7 + 5*seed
    a,b = rng.random((2, S, I))<rng.random((1, 1, I))
    t = [float(stats.t.ppf(0.975, n - 1)) for n in (S, I)]
    mean,half = literal_half(a.astype(int) - b.astype(int), *t)
    found = difference(a, b)
    assert [found.mean, found.low, found.high]==pytest.approx([mean, mean - half, mean + half], rel=1e-9)
    assert (found.n_seeds, found.n_images)==(S, I)

def test_a_stack_of_tables_is_each_of_them():
    d = np.random.default_rng(0).integers(-1, 2, (4, 3, 5, 30), dtype=np.int8)
    mean,parts = variance_parts(d)
    for i in itertools.product(range(4), range(3)):
        m,one = variance_parts(d[i])
        assert [m, *one[:3]]==pytest.approx([mean[i], *[o[i] for o in parts[:3]]], rel=1e-12)
    assert np.shape(p_value(mean, parts))==(4, 3)


# ---- no width of zero

def extremes(S, I):
    "Arrays of one truth, and arrays that agree in all seeds"
    yield from itertools.product([np.zeros((S, I)), np.ones((S, I))], repeat=2)
    one = np.random.default_rng(0).random(I)<0.5
    yield np.tile(one, (S, 1)),np.zeros((S, I))
    yield np.tile(one, (S, 1)),np.tile(one, (S, 1))
    yield np.tile(one, (S, 1)),np.tile(~one, (S, 1))

@pytest.mark.parametrize('S, I', [(2, 2), (3, 2), (3, 100), (10, 500)])
def test_no_interval_has_no_width(S, I):
    floor = stats.t.ppf(0.975, I - 1)*2**0.5/(S*I)
    rng = np.random.default_rng(1)
    pairs = [*extremes(S, I), *[(rng.random((S, I))<p, rng.random((S, I))<q) for p,q in rng.random((50, 2))]]
    for a,b in pairs:
        found = difference(a, b)
        assert (found.high - found.low)/2>=floor*(1 - 1e-9), found
        assert 0<found.p<=1
        assert (found.p<=0.05)==(not found.low<=0<=found.high) or abs(found.p - 0.05)<1e-9

@pytest.mark.parametrize('gain', [0., 0.086, 1.])
def test_equal_seeds_without_predictions_have_a_width_too(gain):
    plain = np.array([0.3, 0.5, 0.4])*(gain<1)
    found = difference_of_accuracies(plain + gain, plain, 500)
    assert found.high - found.low>2*1.96*2**0.5/500 and found.n_images==0

def test_without_predictions_never_narrower_than_student():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a,b = rng.random((2, 4))
        student = stats.ttest_rel(a, b)
        found,alone = difference_of_accuracies(a, b, 200),difference_of_accuracies(a, b)
        low,high = student.confidence_interval(0.95)
        assert [alone.low, alone.high, alone.p]==pytest.approx([low, high, student.pvalue], rel=1e-6)
        assert found.low<low and found.high>high

def test_with_predictions_never_narrower_than_student():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a,b = rng.random((2, 5, 60))<rng.random(60)
        found,student = difference(a, b),stats.ttest_rel(a.mean(1), b.mean(1)).confidence_interval(0.95)
        assert found.low<student.low and found.high>student.high

def test_few_changed_images_claim_no_more_than_the_exact_test():
    "Seeds that agree: n images won and none lost, and the sign test of them"
    for n in range(1, 11):
        d = np.tile(np.arange(1000)<n, (3, 1)).astype(int)
        exact = min(1, 2*0.5**n)
        # where either is near 5 %, they decide alike
        assert (p_value(*variance_parts(d))<=0.05)==(exact<=0.05), n


# ---- Holm and power

def test_holm_is_the_closed_test_of_bonferroni():
    "A method is claimed if every group it is in has a p value below .05 / size of the group"
    for p in np.random.default_rng(0).random((20, 5))**2:
        groups = [g for n in range(1, 6) for g in itertools.combinations(range(5), n)]
        closed = [max(min(1, len(g)*p[list(g)].min()) for g in groups if i in g) for i in range(5)]
        assert holm(p)==pytest.approx(closed, rel=1e-12)

def test_holm_by_hand():
    # .01*4, .02*3, .03*2 (not below the one before), .5*1
    assert holm([0.03, 0.01, 0.5, 0.02])==pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.7])==pytest.approx([0.7]) and holm([0.9, 0.8]).max()==1.

def test_the_power_is_that_of_drawn_commands():
    "Normal effects with the assumed variances; a chance of 1.6 points in 1,000 commands"
    rng,n,S,I,true = np.random.default_rng(0),2000,4,300,0.06
    q,lasting,sd = 0.2,0.3,0.02
    d = true + sd*rng.standard_normal((n, S, 1)) + (q*lasting)**0.5*rng.standard_normal((n, 1, I)) \
        + (q*(1 - lasting))**0.5*rng.standard_normal((n, S, I))
    mean,parts = variance_parts(d)
    shown = (np.abs(mean)>half_width(parts)).mean()
    assert shown==pytest.approx(power(true, S, I, q, lasting, sd), abs=0.04)

def test_what_can_be_shown():
    assert smallest_difference(3, 500)>smallest_difference(5, 500)>smallest_difference(5, 2000)
    assert smallest_difference(3, 500, n_methods=4)>smallest_difference(3, 500)
    assert smallest_difference(1, 500)==np.inf and 'no difference' in power_line(2, 500, 1)
    assert f'{100*smallest_difference(5, 500, 4):.1f} points' in power_line(5, 500, 4)
    assert 'Holm over 4 methods' in power_line(5, 500, 4) and 'Holm' not in power_line(5, 500, 1)


# ---- texts

@pytest.mark.parametrize('n', [1, 7, 8, 9, 24, 500, 10_000])
def test_packed_and_unpacked(n):
    right = np.random.default_rng(n).random(n)<0.7
    text = packed(right)
    assert (unpacked(text)==right).all() and len(text)<=4*-(-n//24) + len(f'n{n}:')

def test_other_data_types_are_the_same():
    a,b = np.random.default_rng(0).random((2, 3, 50))<0.5
    assert difference(a, b)==difference(a.astype(np.uint8), b.astype(float))

@pytest.mark.parametrize('a, b', [((3, 50), (4, 50)), ((3, 50), (3, 49)), ((50,), (50,)), ((3, 1), (3, 1))])
def test_arrays_that_do_not_belong_together(a, b):
    with pytest.raises(ValueError, match='right and other must be arrays'): difference(np.zeros(a), np.zeros(b))


# ---- the simulation

def test_the_committed_simulation_keeps_what_it_promises():
    df = pd.read_csv(simulation)
    ours = df[(df['rule']=='seeds and images') & (df['what']=='false claims')]
    assert len(ours)==4*3*3*5 and set(ours['methods'])=={1, 2, 4, 8, 16}
    assert set(ours['seeds'])=={3, 5, 10} and set(ours['images'])=={100, 500, 2000}
    assert ours['by_method'].max()<=0.06 and ours['by_command'].max()<=0.06
    t = df[(df['rule']=='paired t') & (df['what']=='false claims')]
    assert t['by_method'].max()>0.25 and t['by_command'].max()>0.5, 'what was said before'


# ---- the report

def runs(**methods):
    "Rows with accuracies and images of three or more seeds: method -> (seeds, images)"
    rows = []
    for label,right in methods.items():
        for seed,o in enumerate(right):
            rows.append(dict(method=label.replace('_', '()'), seed=seed, accuracy=o.mean(), right=packed(o), error='',
                             step_ms=1., peak_mb=1., n_valid=str(len(o)), curve=f'{o.mean()}'))
    return pd.DataFrame(rows)

rng = np.random.default_rng(0)
easy = rng.random(400)
plain,same,better = [rng.random((5, 400))<0.6*easy + p for p in (0.3, 0.3, 0.5)]

def test_a_row_is_the_difference_of_its_images():
    s,found = summarise(runs(plain=plain, A_=better)).loc['A()'],difference(better, plain)
    assert [s.gain, s.gain_low, s.gain_high, s.gain_p]==pytest.approx([found.mean, found.low, found.high, found.p])
    assert (s.images, s.methods, s.pairs)==(400, 1, 5)

@pytest.mark.parametrize('spoil', [
    lambda df: df.drop(columns='right'), lambda df: df.assign(right=''), lambda df: df.assign(right=np.nan),
    lambda df: df.assign(right=df['right'].where(df.index!=3, '')),
    lambda df: df.assign(right=df['right'].where(df.index!=7, packed(plain[0][:30])))])
def test_one_run_without_its_images_leaves_the_accuracies(spoil):
    df = runs(plain=plain, A_=better)
    s,found = summarise(spoil(df)).loc['A()'],difference_of_accuracies(better.mean(1), plain.mean(1), 400)
    assert [s.gain, s.gain_low, s.gain_high, s.images]==pytest.approx([found.mean, found.low, found.high, 0])
    assert 'no predictions are kept' in verdicts(summarise(spoil(df)))[0]

def test_the_sentence_of_a_gain_and_of_none():
    said = verdicts(summarise(runs(plain=plain, A_=better, B_=same)))
    assert 'over 5 seeds and 400 images' in said[0]
    assert 'also after Holm over 2 methods, for images like these' in said[0]
    assert said[1].endswith('it includes 0, so no difference is shown.')

def test_failed_runs_count_in_the_sentence():
    df = runs(plain=plain, A_=better)
    df.loc[df.index[-1], ['error', 'accuracy', 'right']] = ['diverged: the loss is not finite', np.nan, '']
    said, = verdicts(summarise(df))
    assert '1 of 5 runs failed or diverged' in said and said.endswith('so no difference is shown.')
    assert 'over 4 seeds and 400 images' in said, 'the other pairs keep their images'

@pytest.mark.parametrize('asked, text', [
    ('7 7 7 7 7', '; 5 of the 7 seeds asked for'), ('5 5 5 5 5', ''), ('', '')])
def test_seeds_that_were_added_are_told(asked, text):
    df = runs(plain=plain, A_=better)
    if asked: df['seeds_asked'] = asked.split()*2
    assert summarise(df).loc['A()', 'asked']==text and text in verdicts(summarise(df))[0]

def test_no_claim_where_seeds_were_added():
    df = runs(plain=plain, A_=better).assign(seeds_asked='3 3 3 5 5'.split()*2)
    said, = verdicts(summarise(df))
    assert said.endswith('seeds were added after a first look (3, then 5), so no difference is shown; '
                         'begin anew with the number you want.')
    assert 'a gain' not in said and 'excludes' not in said

def lose(df, method, *seeds):
    "These runs diverge"
    lost = (df['method']==method) & df['seed'].isin(seeds)
    return df.assign(error=np.where(lost, 'diverged: the loss is not finite', ''),
                     accuracy=df['accuracy'].mask(lost), right=df['right'].mask(lost, ''))

def test_lost_runs_of_the_other_arm_count_in_the_sentence():
    df = lose(runs(plain=plain, A_=better), 'plain', 1, 3)
    said, = verdicts(summarise(df))
    assert '; 2 of 5 runs of plain failed or diverged and are not in it' in said and 'a gain' not in said
    assert said.endswith('it excludes 0, but runs that did not end well count too, so no difference is shown.')
    # a seed that the method has not run takes no partner from it
    few, = verdicts(summarise(df[(df['method']=='plain') | ~df['seed'].isin([1, 3])]))
    assert 'a gain is shown' in few and 'plain failed' not in few
    s = summarise(lose(runs(plain=plain, A_=better, B_=same), 'A()', 0), against='A')
    assert s.loc['plain', 'failed_other']==1 and all('1 of 5 runs of A failed' in v for v in verdicts(s)), verdicts(s)

def test_against_any_arm():
    df = runs(plain=plain, KnowledgeDistillation_=same, CCM_=better)
    s = summarise(df, against='knowledge_distillation')
    alone = difference(better, same)
    assert [s.loc['CCM()', 'gain_low'], s.loc['CCM()', 'gain_high']]==pytest.approx([alone.low, alone.high])
    assert [v.partition(':')[0] for v in verdicts(s)]==['plain', 'CCM()']
    assert all('against KnowledgeDistillation' in v for v in verdicts(s))
    assert 'minus KnowledgeDistillation' in summary_table(s)
    with pytest.raises(ValueError, match="against must name one of the methods, got 'Mixup'; there are: plain"):
        summarise(df, against='Mixup')
    with pytest.raises(ValueError, match='several'): find_arm(['A(1)', 'A(2)'], 'A')
    assert find_arm(['A(1)', 'A(2)'], 'A(2)')=='A(2)'

def test_best_epochs_are_told_as_what_they_are():
    df = runs(plain=plain, A_=better)
    s = summarise(df.assign(best_accuracy=df['accuracy'] + 0.01*(df['method']!='plain')))
    line, = best_epochs(s)
    assert f"A() {100*(s.loc['A()', 'gain'] + 0.01):+.2f}" in line and 'optimistic' in line
    assert not best_epochs(summarise(df.assign(best_accuracy=df['accuracy'])))

def test_where_the_paper_reports_the_best_epoch():
    df = runs(plain=plain, A_=same).assign(result='best')
    s = summarise(df.assign(best_accuracy=df['accuracy'] + 0.05*(df['method']!='plain')))
    gain = f"{100*(s.loc['A()', 'gain'] + 0.05):+.2f}"
    line, = best_epochs(s)
    assert line==(f'The paper reports the best epoch: A() {gain} (difference of best epochs to plain, points; chosen '
                  'on the validation images, so no verdict is made of it).')
    assert len(best_epochs(summarise(df.assign(best_accuracy=df['accuracy']))))==1, 'also where it is the last one'
    assert verdicts(s)[0].endswith('so no difference is shown.')

@pytest.mark.parametrize('folder', ['digits', 'cifar10_long', 'cifar100_distill'])
def test_committed_tables_of_earlier_versions(folder):
    s = summarise(read_results(simulation.parent/folder/'results.csv'))
    for r in s[s.index!='plain'].itertuples():
        half = (r.gain_high - r.gain_low)/2
        assert half>stats.t.ppf(0.975, r.pairs - 1)*r.gain_std/r.pairs**0.5
