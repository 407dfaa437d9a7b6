"""A method has one colour in every picture, and no two of a picture look the same"""
from itertools import combinations, permutations
from pathlib import Path
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
from fastai_featreg.comparison.colours import distance, method_colour, method_styles, near
from fastai_featreg.core import card_of, cards, methods, register_method
from fastai_featreg.comparison.plan import known_methods
from fastai_featreg.comparison.report import plot_comparison
from fastai_featreg.comparison.rows import read_results

results = Path(__file__).parent.parent/'nbs/results'
folders = sorted(p.parent for p in results.rglob('results.csv') if p.parent.name!='figure3')


def comparisons():
    "The runs of each committed comparison, one network at a time"
    for folder in folders:
        df = read_results(folder/'results.csv')
        for arch in df['arch'].unique(): yield pytest.param(df[df['arch']==arch], id=f'{folder.name}, {arch}')


@pytest.mark.parametrize('df', comparisons())
def test_every_committed_comparison(df):
    df = df[df['head']==df['head'].iloc[0]]
    fig = plot_comparison(df)
    labels = list(df[df['error']=='']['method'].unique())
    drawn = dict(zip(labels, fig.axes[1].lines, strict=True))
    looks = {label: (to_rgb(line.get_color()), line.get_marker()) for label, line in drawn.items()}
    assert {label: colour for label, (colour, _) in looks.items()}=={label: method_colour(label) for label in labels}
    assert len(set(looks.values()))==len(labels)
    legend = {text.get_text(): line.get_color() for text, line in
              zip(fig.legends[0].get_texts(), fig.legends[0].get_lines(), strict=True)}
    assert legend=={label: method_colour(label) for label in labels}
    plt.close(fig)


def test_company_and_order_move_no_colour():
    labels = ['plain', 'CCM(teacher)', 'SelectScale()', "SelectScale(layers='all')", 'FeatureMining()+MixUp()']
    alone = {label: method_styles([label])[label]['color'] for label in labels}
    for some in [c for n in (2, 3, 5) for c in combinations(labels, n)]:
        for order in permutations(some):
            styles = method_styles(list(order))
            assert list(styles)==list(order) and styles==method_styles(list(some))
            assert all(styles[label]['color']==alone[label] for label in order)


def test_near_colours_have_other_markers():
    "Among all methods and all their measured variants"
    labels = ['plain']
    for name, cls in known_methods().items():
        labels.append(f'{cls.__name__}()')
        for variant in card_of(name).variants:
            labels.append(f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in variant.kwargs.items())})")
    styles = method_styles(labels)
    close = [(a, b) for a, b in combinations(styles, 2) if distance(styles[a]['color'], styles[b]['color'])<near]
    assert len(close)>4, 'the rule was not tried'
    assert all(styles[a]['marker']!=styles[b]['marker'] for a, b in close)


@pytest.mark.parametrize('given, said', [('no such', 'must be one that matplotlib knows'), (3, 'colour must be text')])
def test_a_colour_is_checked_where_it_is_said(given, said):
    with pytest.raises(ValueError, match=said): register_method('never', colour=given)
    assert 'never' not in methods and 'never' not in cards


@pytest.mark.parametrize('label', ['', 'two words', 'A(', 'A()+', '3', 'lambda: 0', 'A(<object at 0x7f>)', 'A(B(c=1))'])
def test_any_text_has_a_colour(label):
    colour = method_colour(label)
    assert colour==method_colour(label) and all(0<=c<=1 for c in colour)
