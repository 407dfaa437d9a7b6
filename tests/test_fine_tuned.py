"The page of fine-tuning: from rows to tables, differences and the sentence they allow"
from pathlib import Path
import numpy as np, pytest
from fastai_featreg.comparison.rows import write_row
from fastai_featreg.comparison.verdicts import difference,holm,packed

results = Path(__file__).parent.parent/'nbs'/'results'
n_images = 200


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(results))
    import fine_tuned
    return fine_tuned


def right_of(n_right, shift=0):
    "The first images right, or those from another place on"
    return np.roll(np.arange(n_images)<n_right, shift)

def add(root, place, method, seed, n_right, lr='0.001', error=''):
    "A row of a run with so many right images"
    right = right_of(n_right, 3*seed)
    row = dict(method=method, seed=seed, accuracy=n_right/n_images, right=packed(right), seeds_asked=5, lr=lr,
               data_id=f'd{seed}', n_valid=n_images, per_class=50, redraw=True, head='linear', epochs=6,
               method_id=method, error=error)
    if error: row |= dict(accuracy='', right='')
    write_row(root/place/'results.csv', row)

def add_tuned(root):
    "Plain is best by `slow`, the method by `fast`"
    for recipe,method,counts in (('slow', 'plain', (120, 124)), ('fast', 'plain', (100, 102)),
                                 ('slow', 'A()', (110, 110)), ('fast', 'A()', (130, 120))):
        for seed,n in enumerate(counts): add(root, f'flowers50/tune/{recipe}', method, seed, n, recipe)

def add_final(root, gain, seeds=5):
    for seed in range(seeds):
        add(root, 'flowers50/final/slow', 'plain', seed, 100 + seed, 'slow')
        add(root, 'flowers50/final/fast', 'plain', seed, 60, 'fast')
        add(root, 'flowers50/final/fast', 'A()', seed, 100 + seed + gain, 'fast')


def test_without_rows_it_says_so(page, tmp_path):
    df = page.all_runs(tmp_path)
    assert not len(df) and not len(page.shown_means(df)) and not len(page.recipe_table(df))
    for rows in (page.final_differences(df, 'flowers50'), page.idea_differences(df, 'flowers50', 'whole')):
        assert not len(rows) and not len(page.shown_differences(rows)) and not len(page.shown_ideas(rows))
        assert 'nothing can be said' in page.final_sentence(rows) and 'nothing can be said' in page.idea_sentence(rows)

def test_recipes_are_chosen_by_the_mean(page, tmp_path):
    add_tuned(tmp_path)
    add(tmp_path, 'flowers50/tune/slow', 'B()', 0, 0, 'slow', error='diverged')
    df = page.all_runs(tmp_path)
    assert page.chosen(df).to_dict()=={'plain': 'slow', 'A()': 'fast'}
    shown = page.shown_means(df)
    assert shown.loc['slow'].to_dict()=={'plain': '61.0*', 'A()': '55.0'}
    assert shown.loc['fast'].to_dict()=={'plain': '50.5', 'A()': '62.5*'}
    assert page.recipe_table(df).lr.to_dict()=={'fast': 'fast', 'slow': 'slow'}
    assert 'nothing can be said' in page.final_sentence(page.final_differences(df, 'flowers50'))

@pytest.mark.parametrize('error', ['diverged', None])
def test_a_recipe_with_a_lost_seed_is_no_candidate(page, tmp_path, error):
    "Its mean would be that of the other seed, 65 %: above all that are whole; a row of the failure may be lacking"
    add_tuned(tmp_path)
    add(tmp_path, 'flowers50/tune/wild', 'A()', 0, 130, 'wild')
    if error: add(tmp_path, 'flowers50/tune/wild', 'A()', 1, 0, 'wild', error=error)
    df = page.all_runs(tmp_path)
    assert page.chosen(df)['A()']=='fast' and page.shown_means(df).loc['wild', 'A()']=='-'
    add(tmp_path, 'flowers50/tune/wild', 'A()', 1, 130, 'wild')
    assert page.chosen(page.all_runs(tmp_path))['A()']=='wild'

@pytest.mark.parametrize('gain, seeds, says', [
    (30, 5, 'A gain over plain training with the recipe chosen for it (slow) is shown for A() by fast.'),
    (-30, 5, 'A loss is shown for A() by fast.'), (1, 5, 'No gain over plain training'),
    (30, 2, 'Fewer than 3 seeds')])
def test_best_is_held_beside_best(page, tmp_path, gain, seeds, says):
    "Not beside plain training by the method's own recipe, which is far worse here"
    add_tuned(tmp_path)
    add_final(tmp_path, gain, seeds)
    rows = page.final_differences(page.all_runs(tmp_path), 'flowers50')
    assert rows.index.tolist()==['A() by fast'] and rows.against.tolist()==['plain by slow']
    mine,plain = ([right_of(100 + s + g, 3*s) for s in range(seeds)] for g in (gain, 0))
    expected = difference(np.array(mine), np.array(plain))
    found = rows[['gain', 'gain_low', 'gain_high']].astype(float)
    assert np.allclose(found, [expected.mean, expected.low, expected.high])
    assert rows.gains.iloc[0]==[100*gain/n_images]*seeds
    assert says in page.final_sentence(rows)
    shown = page.shown_differences(rows).iloc[0]
    assert shown['gain, points']==f'{100*gain/n_images:+.1f}' and (shown['95 % interval']=='-')==(seeds<3)
    assert page.plot_differences(rows, 'flowers50').get_title()=='flowers50: beside plain by slow'

def test_chances_are_counted_over_all_pairs(page, tmp_path):
    "Holm over the pairs, although each has a summary of its own"
    add_tuned(tmp_path)
    add_final(tmp_path, 6)
    df = page.all_runs(tmp_path)
    final = df[df.stage=='final']
    runs = [final[(final.tried=='slow')], final[(final.tried=='fast') & (final.method=='A()')]]
    runs = page.pd.concat([*runs, runs[1].assign(method='C()')]).assign(lr='', recipe='')
    rows = page.held_beside(runs, {'A()': 'plain', 'C()': 'plain', 'D()': 'plain'}, 'methods')
    assert rows.index.tolist()==['A()', 'C()']
    assert np.allclose(rows.gain_holm, holm(rows.gain_p.astype(float)))
    alone = page.held_beside(runs, {'A()': 'plain'}, 'methods')
    assert np.isclose(rows.gain_holm.iloc[0], min(1, 2*alone.gain_p.iloc[0]))

def test_runs_that_differ_in_more_than_the_recipe_are_refused(page, tmp_path):
    "Such as other images: a pair would be none"
    add_tuned(tmp_path)
    add_final(tmp_path, 6)
    df = page.all_runs(tmp_path)
    df.loc[(df.method=='A()') & (df.stage=='final'), 'data_id'] = 'other'
    with pytest.raises(ValueError, match='data_id'): page.final_differences(df, 'flowers50')

@pytest.mark.parametrize('idea, of', [
    ('CopiedMining()', 'FeatureMining()'), ('OwnHeadMining(layers=2)', 'FeatureMining(layers=2)'),
    ('WarmMining()', 'FeatureMining()'), ('WarmCAMLoss()', 'CAMLoss(start=0)'), ('KeepNorms()', 'plain'),
    ('SelectScale(layers=1)', 'SelectScale()'), ('DropBlock()+RefitNorms()', 'DropBlock()'), ('DropBlock()', 'plain')])
def test_what_an_idea_would_improve(page, idea, of): assert page.improved(idea)==of

def test_every_idea_has_what_it_would_improve_among_its_arms(page):
    import fine_tuning_ideas as ideas
    for labels in ideas.arms.values():
        assert {page.improved(o) for o in labels} - {'plain'} <= set(labels)

def test_ideas_are_held_beside_their_methods(page, tmp_path):
    place = 'ideas/flowers50/tune/whole'
    for method,counts in {'plain': (100, 100), 'FeatureMining()': (104, 90), 'CopiedMining()': (106, 98),
                          'OwnHeadMining()': (110, 84), 'KeepNorms()': (102, 101)}.items():
        for seed,n in enumerate(counts): add(tmp_path, place, method, seed, n)
    df = page.all_runs(tmp_path)
    assert set(df.stage)=={'ideas'}
    rows = page.idea_differences(df, 'flowers50', 'whole')
    assert rows.against.to_dict()=={'CopiedMining()': 'FeatureMining()', 'OwnHeadMining()': 'FeatureMining()',
                                    'KeepNorms()': 'plain'}
    assert rows.gains.tolist()==[[1., 4.], [3., -3.], [1., .5]]
    assert np.allclose(rows.over_plain.astype(float), [.01, -.015, .0075])
    said = page.idea_sentence(rows)
    assert said.startswith('No gain is shown for any of 3 ideas.') and 'CopiedMining(), KeepNorms();' in said
    assert 'OwnHeadMining' not in said and page.shown_ideas(rows)['minus plain, points'].iloc[0]=='+1.0'

def test_the_readme_tells_what_the_recipe_is_worth(page, tmp_path):
    "Means by hand: (80 + 100)/2 and (120 + 128)/2 of 200 images; a set without both recipes is left out"
    assert page.recipe_told(tmp_path)==''
    for recipe,counts in ((page.usual, (80, 100)), (page.ours, (120, 128))):
        for seed,n in enumerate(counts): add(tmp_path, f'flowers50/tune/{recipe}', 'plain', seed, n, recipe)
    add(tmp_path, f'cifar10_train25/tune/{page.usual}', 'plain', 0, 60)
    told = page.recipe_told(tmp_path)
    assert told.endswith('from 45.0 to 62.0 % (flowers, 50 images a class): '
                         'means on the images by which recipes were chosen, two seeds.') and 'cifar' not in told

def test_the_readme_waits_for_all_seeds(page, tmp_path):
    "A recipe of which one seed is lost is no end of 'from .. to'"
    for recipe,seeds in ((page.usual, 2), (page.ours, 1)):
        for seed in range(seeds): add(tmp_path, f'flowers50/tune/{recipe}', 'plain', seed, 100, recipe)
    assert page.recipe_told(tmp_path)==''
    add(tmp_path, f'flowers50/tune/{page.ours}', 'plain', 1, 110, page.ours)
    assert 'from 50.0 to 52.5 %' in page.recipe_told(tmp_path)

@pytest.mark.parametrize('folder, n, text', [
    ('flowers50', 50, 'flowers, 50'), ('cifar10_train25', 25, 'cifar10, 25'), ('cifar1050', 50, 'cifar10, 50')])
def test_the_number_of_images_is_that_of_the_rows(page, folder, n, text):
    assert page.set_text(folder, n)==f'{text} images a class'

def test_seeds_in_words(page):
    assert [page.seeds_told(o) for o in ([2], [1, 1], [2, 3], [7])]==['two seeds', 'one seed', 'two to three seeds',
                                                                   '7 seeds']
