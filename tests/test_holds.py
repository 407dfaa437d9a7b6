"Do the claims hold? The verdicts of the page, from rows made by hand, against a literal form of the rule"
import shutil

import numpy as np
import pandas as pd
import pytest

from fastai_featreg.comparison.holds import (all_runs, answer_row, answers_table, claim_answers, claim_verdict,
                                             further_questions, plot_answers, questions, sign_verdict, totals,
                                             verdict_names, what_ran)
from fastai_featreg.comparison.published import read_table, tables_folder
from fastai_featreg.comparison.report import plt
from fastai_featreg.comparison.reproduce import labels_of_taught, plan_of, slug
from fastai_featreg.comparison.rows import result_columns
from fastai_featreg.comparison.verdicts import difference, packed

rng = np.random.default_rng(0)
n_seeds = 5
n_images = 400
holds = verdict_names['holds']
fails = verdict_names['fails']
untold = verdict_names['untold']
absent = verdict_names['absent']
settings = dict(data='cifar100', arch='resnet20', head='linear', pretrained='False', size='32', bs='128', epochs='40',
                lr='0.1', fp16='False', n_train='10000', n_valid=str(n_images), n_classes='100', device='cpu',
                n_threads='1', featreg='0', torch='0', fastai='0', timm='0', data_id='d0', recipe='opt = "sgd"',
                valid_loss='1', train_loss='1', step_ms='1', seconds='1800', peak_mb='1', method_id='m0',
                seeds_asked='5')


def row(label, seed, right, scale='scaled: by hand', error='', **more):
    "One run, as it is written"
    accuracy = '' if error else str(right.mean())
    given = dict(method=label, seed=str(seed), accuracy=accuracy, best_accuracy=accuracy, right=packed(right),
                 curve=accuracy, scores=accuracy, error=error, scale=scale)
    return dict.fromkeys(result_columns, '') | settings | given | more


def draw(p):
    "Which images are right: (seeds, images)"
    return rng.random((n_seeds, n_images))<p


def write(root, name, rights, **more):
    "Rows of a table: (block, arm) -> which images are right; what is left out has not been run"
    for call in plan_of(read_table(name), quick=True):
        labels = {arm: label for label,arm in labels_of_taught(call['arms']).items()}
        rows = [row(labels[arm], seed, right, **more) for (block, arm),all_right in rights.items()
                if block==call['block'] for seed,right in enumerate(all_right)]
        folder = root/f'{name}-quick'/slug(call['block'])
        if not rows: continue
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder/'results.csv', index=False)


def literal(name, rights):
    "Verdict of each difference of a table by the rule as it is written, step by step"
    table = read_table(name)
    quick, = {tuple(c['arms']) for c in plan_of(table, quick=True)}
    cells = []
    for claim in table.claims:
        for block in table.blocks:
            if claim.method not in quick or claim.against not in quick: continue
            if block.name not in (table.quick.blocks or [b.name for b in table.blocks]): continue
            pair = [rights.get((block.name, arm)) for arm in (claim.method, claim.against)]
            published = [block.published.get(arm) for arm in (claim.method, claim.against)]
            better = -1 if table.unit=='error' else 1
            sign = 1 if None in published else better*np.sign(published[0] - published[1])
            d = None if any(p is None for p in pair) else difference(*pair)
            cells.append(dict(key=(block.name, claim.method, claim.against), sign=sign, d=d))
    # Holm, one step after the other: a claim that has not been run counts as one that shows nothing
    order = sorted(range(len(cells)), key=lambda i: 1. if cells[i]['d'] is None else cells[i]['d'].p)
    still = True
    for k,i in enumerate(order):
        d = cells[i]['d']
        still = still and d is not None and d.p*(len(cells) - k)<0.05
        if d is None: cells[i]['verdict'] = 'not run yet'
        elif not still: cells[i]['verdict'] = 'cannot be told at this scale'
        elif (d.mean>0)==(cells[i]['sign']>0): cells[i]['verdict'] = 'holds in sign'
        else: cells[i]['verdict'] = 'does not'
    return {c['key']: c['verdict'] for c in cells}


def found_cells(root, name):
    "Verdicts that the page gives, by difference"
    answer, = claim_answers(root, [q for q in questions if q.table==name])
    return {(r.block, r.method, r.against): r.verdict for r in answer.cells.itertuples()},answer


noise = {'a gain in all': ((.7, .4),)*4, 'a loss in one': ((.7, .4), (.4, .7), (.5, .5), None),
         'nothing to see': ((.5, .5),)*4, 'one block': (None, (.7, .4), None, None),
         'a small gain': ((.53, .5), (.56, .5), (.55, .5), (.54, .5))}
of_claim = {'a gain in all': holds, 'a loss in one': fails, 'one block': untold}

@pytest.mark.parametrize('case', noise)
def test_verdicts_are_those_of_the_rule_step_by_step(case, tmp_path):
    blocks = [b.name for b in read_table('fm-table8').blocks]
    rights = {(b, arm): draw(q) for b,p in zip(blocks, noise[case]) if p for arm,q in zip(('fm', 'plain'), p)}
    write(tmp_path, 'fm-table8', rights)
    mine,answer = found_cells(tmp_path, 'fm-table8')
    assert mine==literal('fm-table8', rights)
    if case in of_claim: assert answer.verdict==of_claim[case]
    assert answer.total['runs']==n_seeds*len(rights) and answer.total['core_hours']==n_seeds*len(rights)/2


def test_errors_are_turned_and_other_pairs_count_in_holm(tmp_path):
    "SelectScale's table prints errors; spatial - plain is in the family, not in the claim"
    p = dict(plain=.5, spatial=.4, select=.7)
    rights = {('WRN-20-4', arm): draw(q) for arm,q in p.items()}
    write(tmp_path, 'selectscale-table2', rights)
    mine,answer = found_cells(tmp_path, 'selectscale-table2')
    expected = literal('selectscale-table2', rights)
    assert expected.pop(('WRN-20-4', 'spatial', 'plain'))==fails
    assert mine==expected and set(mine.values())=={holds} and answer.verdict==holds
    assert list(answer.cells['published'])==[2.7, 1.04]


@pytest.mark.parametrize('change', ['two seeds', 'a failure', 'seeds that were added'])
def test_what_may_not_be_told_is_not(change, tmp_path):
    n = 2 if change=='two seeds' else n_seeds
    rights = {('ResNet-56', arm): draw(p)[:n] for arm,p in (('cam', .8), ('plain', .3))}
    write(tmp_path, 'cam-loss-table1', rights)
    assert found_cells(tmp_path, 'cam-loss-table1')[1].verdict==(untold if change=='two seeds' else holds)
    if change=='two seeds': return
    file = tmp_path/'cam-loss-table1-quick'/'resnet-56'/'results.csv'
    df = pd.read_csv(file, dtype=str, keep_default_na=False)
    if change=='a failure': df.loc[0, ['error', 'accuracy', 'best_accuracy']] = 'OSError: no', '', ''
    else: df.loc[[3, 4, 8, 9], 'seeds_asked'] = '7'
    df.to_csv(file, index=False)
    answer = found_cells(tmp_path, 'cam-loss-table1')[1]
    assert answer.verdict==untold and answer.total['failed']==(change=='a failure')


def test_a_claim_takes_its_verdict_from_its_differences():
    "Every list of up to three verdicts, by the sentence of the page"
    all_four = holds, fails, untold, absent
    lists = [[]] + [[a] for a in all_four] + [[a, b, c] for a in all_four for b in all_four for c in all_four]
    for verdicts in lists:
        expected = 'not run yet'
        for v in verdicts:
            if v!='not run yet': expected = 'cannot be told at this scale'
        for v in verdicts:
            if v=='does not': expected = v
        if verdicts and all(v=='holds in sign' for v in verdicts): expected = 'holds in sign'
        assert claim_verdict(verdicts)==expected


@pytest.mark.parametrize('published', [1., -1., np.nan])
@pytest.mark.parametrize('here', [1., -1.])
def test_a_sign_counts_only_where_it_was_told(published, here):
    agrees = (here>0)==(np.isnan(published) or published>0)
    assert sign_verdict(published, here, 'yes')==('holds in sign' if agrees else 'does not')
    for told in ('', 'no', 'no, ± 0.1', 'no, too few seeds'): assert sign_verdict(published, here, told)==untold


def fill(root):
    "Rows of all tables that the page asks"
    for name in dict.fromkeys(q.table for q in questions):
        calls = plan_of(read_table(name), quick=True)
        arms = [(c['block'], a) for c in calls for a in c['arms']]
        more = dict(metric='ensemble_accuracy') if read_table(name).metric else {}
        write(root, name, {o: draw(.4 + .02*i) for i,o in enumerate(arms)}, **more)


def test_a_question_says_no_more_than_its_pairs():
    "Words of its own, short enough for the picture; no word that one network or one rival cannot bear"
    said = [q.asks for q in questions + further_questions]
    assert len(set(said))==len(said) and all(len(q.asks)<=84 for q in questions)
    too_much = {'every', 'everywhere', 'any', 'most', 'best', 'always'}
    for text in said: assert not too_much & set(text.split()), text
    assert not set(said) & {read_table(q.table).claim.rstrip('.') for q in questions}


def test_more_anchors_do_not_decide_whether_it_gains(tmp_path):
    "50 anchors are no better than 20 here: that is another question"
    table1 = {('VGG16 Imagenette', arm): draw(p)[:3] for arm,p in dict(plain=.3, mfa=.8).items()}
    table3 = {('Imagenette', arm): draw(p)[:3] for arm,p in dict(plain=.3, k20=.8, k50=.5).items()}
    write(tmp_path, 'mv-table1', table1, seeds_asked='3')
    write(tmp_path, 'mv-table3', table3, seeds_asked='3')
    assert found_cells(tmp_path, 'mv-table1')[1].verdict==holds
    assert found_cells(tmp_path, 'mv-table3')[0][('Imagenette', 'k50', 'k20')]==fails
    assert found_cells(tmp_path, 'mv-table3')[1].verdict==fails


@pytest.mark.parametrize('name, block, arm', [('fm-table8', 'pair 0.5', 'fm'), ('cam-loss-table1', 'ResNet-56', 'cam')])
def test_the_best_epoch_is_a_remark(name, block, arm, tmp_path):
    "Published and ours say which epoch; a best epoch that is a loss leaves the verdict alone"
    rights = {(block, 'plain'): draw(.4), (block, arm): draw(.7)}
    write(tmp_path, name, rights)
    file = tmp_path/f'{name}-quick'/slug(block)/'results.csv'
    df = pd.read_csv(file, dtype=str, keep_default_na=False)
    of_best = df['method'].eq('plain').map({True: '0.75', False: '0.5'})
    df.assign(best_accuracy=of_best).to_csv(file, index=False)
    mine,answer = found_cells(tmp_path, name)
    assert mine[(block, arm, 'plain')]==holds
    published,here = (answer_row(answer)[k].split('<br>')[-1] for k in (5, 6))
    assert published==dict(fm='+3.0 (best epoch)', cam='+1.5')[arm]
    assert here.endswith('; *best epoch: -25.0*')==(arm=='fm') and ('best' in here)==(arm=='fm')
    fig = plot_answers([answer])
    crosses = [line for line in fig.axes[0].lines if line.get_marker()=='x' and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in crosses]==([[pytest.approx(-25)]] if arm=='fm' else [])
    plt.close(fig)


def test_seeds_that_did_not_end_well_do_not_count():
    "One seed, and a second one that failed before it knew how many images there are"
    rows = [row(m, s, draw(.5)[0]) | dict(block='b', arm=m) for m in ('plain', 'fm') for s in (0, 1)]
    rows[3] |= dict(error='OSError: no', n_train='', arch='')
    said = 'resnet20, 10,000 images of cifar100, 40 epochs, '
    assert what_ran([pd.DataFrame(rows)])==said + '1 to 2 seeds'
    assert what_ran([pd.DataFrame(rows[::2])])==said + '1 seed'
    assert what_ran([pd.DataFrame(rows[2:])])==said + '1 seed'
    assert what_ran([pd.DataFrame(rows[3:])])=='no run that ended well'


def test_hours_of_cores_and_of_cards_are_not_added(tmp_path):
    rights = {('ResNet-56', arm): draw(.5) for arm in ('plain', 'cam')}
    write(tmp_path, 'cam-loss-table1', rights)
    file = tmp_path/'cam-loss-table1-quick'/'resnet-56'/'results.csv'
    df = pd.read_csv(file, dtype=str, keep_default_na=False)
    by_card = {0: '5.0 core-hours', 4: '3.0 core-hours and 2.0 run-hours on a GPU', 10: '5.0 run-hours on a GPU'}
    for n,said in by_card.items():
        df.assign(device=['NVIDIA X']*n + ['cpu']*(10 - n)).to_csv(file, index=False)
        assert answer_row(found_cells(tmp_path, 'cam-loss-table1')[1])[-1]==said


@pytest.mark.parametrize('which', ['none', 'all'])
def test_the_page_has_every_claim_whatever_has_been_run(which, tmp_path):
    if which=='all': fill(tmp_path)
    found = claim_answers(tmp_path)
    assert len(found)==11 and ({a.verdict for a in found}=={absent})==(which=='none')
    if which=='all': assert absent not in {v for a in found for v in a.cells['verdict']}
    lines = answers_table(found).splitlines()
    assert len(lines)==13 and {line.count(' | ') for line in lines}=={8}
    fig = plot_answers(found)
    texts = ' '.join(t.get_text() for t in fig.axes[0].texts)
    plt.close(fig)
    assert texts.count(absent)==(11 if which=='none' else 0), texts


def test_a_table_beside_the_rows_is_the_one_that_was_run(tmp_path):
    "Another quick form: the claim has its published difference, and the blocks that were run"
    text = (tables_folder()/'fm-table8.toml').read_text().partition('\n[quick]')[0]
    (tmp_path/'fm-table8-quick').mkdir()
    own = text + '\n[quick]\narch = "resnet56"\nepochs = 3\nseeds = 3\n\n[quick.blocks]\n"pair 0.5" = {}\n'
    (tmp_path/'fm-table8-quick'/'table.toml').write_text(own)
    cells = claim_answers(tmp_path)[0].cells
    assert list(cells['block'])==['pair 0.5'] and list(cells['published'])==[3.05]
    assert cells['scale'][0]=='resnet56 for resnet110, 3 of 300 epochs'


def test_runs_are_counted_once(tmp_path):
    "Episodes are questions to a body that was trained once; GPU hours stand alone; failures are runs"
    base = [row('plain', s, draw(.5)[0]) for s in range(3)] + [row('plain', 3, draw(.5)[0], error='diverged: nan')]
    asked = [r | dict(episodes='600') for r in base]
    there = {'base': base, '1-shot': asked, '5-shot': asked, 'card': [row('plain', 0, draw(.5)[0], device='NVIDIA X')]}
    for name,rows in there.items():
        (tmp_path/name).mkdir()
        pd.DataFrame(rows).to_csv(tmp_path/name/'results.csv', index=False)
    expected = dict(runs=5, failed=0, diverged=1, core_hours=2., gpu_hours=.5)
    assert totals(all_runs(tmp_path))==expected
    shutil.rmtree(tmp_path/'1-shot')
    assert totals(all_runs(tmp_path))==expected
