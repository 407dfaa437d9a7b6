"""What fine-tuning gained: rows of `benchmarks/fine_tuning.py` and `benchmarks/fine_tuning_ideas.py`, for their page

Rows lie in SET/STAGE/RECIPE/results.csv, those of ideas in ideas/SET/tune/RECIPE/results.csv.
"""
import re
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
from fastai_featreg.comparison.pairs import fewest,for_all
from fastai_featreg.comparison.report import summarise,verdicts
from fastai_featreg.comparison.rows import count_once,read_results,result_columns

root = Path(__file__).parent/'fine_tuning'
places = ['set', 'stage', 'tried']
# in these recipes differ, and nothing else may differ between two runs that are held beside each other
recipe_columns = ['head', 'epochs', 'lr', 'recipe']


def runs_of(file: Path, root: Path) -> pd.DataFrame:
    "Runs of one recipe, with set, stage ('tune', 'final' or 'ideas') and recipe"
    *before,of_set,stage,tried = file.parent.relative_to(root).parts
    if before==['ideas']: stage = 'ideas'
    return count_once(read_results(file)).assign(set=of_set, stage=stage, tried=tried)


def all_runs(root: Path = root, of_set: str = '*') -> pd.DataFrame:
    "Runs of all sets or of one, of all stages and recipes; none where there is no file"
    files = sorted(root.glob(f'{of_set}/*/*/results.csv')) + sorted(root.glob(f'ideas/{of_set}/*/*/results.csv'))
    tables = [runs_of(f, root) for f in files]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*result_columns, *places])


def of_stage(df: pd.DataFrame, of_set: str, stage: str) -> pd.DataFrame:
    "Runs of one stage of one set"
    return df[(df['set']==of_set) & (df['stage']==stage)]


def recipe_table(df: pd.DataFrame) -> pd.DataFrame:
    "What the recipes are, as their rows have it"
    return df.drop_duplicates('tried').set_index('tried')[recipe_columns].rename_axis('recipe')


# --- On the images for choosing ---

def means(tuned: pd.DataFrame) -> pd.DataFrame:
    "Mean accuracy of each method by each recipe, in percent; NaN where a seed is lost that another recipe has"
    good = tuned[tuned['error']=='']
    by_recipe = good.groupby(['method', 'tried'], sort=False)['accuracy']
    table,counts = 100*by_recipe.mean().unstack(),by_recipe.count().unstack()
    # a mean without the seed that failed is one of easier draws
    whole = table.where(counts.eq(tuned.groupby('method')['seed'].nunique(), axis=0))
    return whole.reindex([m for m in good['method'].unique() if whole.loc[m].notna().any()])


def chosen(tuned: pd.DataFrame) -> pd.Series:
    "Method -> recipe with the highest mean"
    return means(tuned).idxmax(axis=1)


def shown_means(tuned: pd.DataFrame) -> pd.DataFrame:
    "`means` as text, recipes downwards, the best of each method marked by a star, `-` where seeds are lacking"
    table = means(tuned)
    best = table.idxmax(axis=1)
    cell = lambda m, r: '-' if pd.isna(table.loc[m, r]) else f'{table.loc[m, r]:.1f}{"*"*(best[m]==r)}'
    return pd.DataFrame({m: {r: cell(m, r) for r in table} for m in table.index}).rename_axis('recipe')


# --- Held beside each other ---

def gains_by_seed(df: pd.DataFrame, label: str, against: str) -> list:
    "Differences of accuracy, in points, of the seeds that both have"
    good = df[df['error']==''].set_index('seed')
    accuracy = lambda name: good.loc[good['method']==name, 'accuracy']
    return (100*(accuracy(label) - accuracy(against)).dropna()).round(3).tolist()


def held_beside(df: pd.DataFrame, pairs: dict, family: str) -> pd.DataFrame:
    "A row for each pair label -> the one it is held beside: gain, interval, and what `verdicts` says"
    there = set(df['method'])
    pairs = {k: v for k,v in pairs.items() if {k, v}<=there}
    two = {k: summarise(df[df['method'].isin([k, v])], against=v) for k,v in pairs.items()}
    rows = pd.DataFrame([s.loc[k] for k,s in two.items()])
    if not len(rows): return rows
    # all at once, as if one command had compared them
    rows['gain_holm'] = for_all(rows['gain_p'].astype(float), rows['pairs'])
    for (label, s),p in zip(two.items(), rows['gain_holm']):
        s.loc[label, 'gain_holm'] = p
        s['methods'],s['family'] = len(rows),f'{len(rows)} {family}'
    rows['says'] = [verdicts(s)[0] for s in two.values()]
    rows['gains'] = [gains_by_seed(df, k, v) for k,v in pairs.items()]
    return rows.rename_axis('method')


def shown_differences(rows: pd.DataFrame) -> pd.DataFrame:
    "The table of `held_beside` in percent and points, as text"
    if not len(rows): return pd.DataFrame()
    known = rows['pairs']>=fewest # two seeds tell no interval
    ends = zip(known, 100*rows['gain_low'], 100*rows['gain_high'])
    interval = [f'{low:+.1f} to {high:+.1f}' if k else '-' for k,low,high in ends]
    each = [', '.join(f'{g:+.1f}' for g in gains) for gains in rows['gains']]
    return pd.DataFrame({'accuracy, %': (100*rows['accuracy']).map('{:.1f}'.format), 'beside': rows['against'],
                         'gain, points': (100*rows['gain']).map('{:+.1f}'.format), '95 % interval': interval,
                         'of each seed': each})


def plot_differences(rows: pd.DataFrame, title: str = '') -> plt.Axes:
    "Gain of each pair: its seeds as dots, the mean, and the interval where there is one"
    ax = plt.subplots(figsize=(8, 1.1 + 0.34*len(rows)), layout='constrained')[1]
    for y,r in enumerate(rows.itertuples()):
        ax.scatter(r.gains, [y - 0.2]*len(r.gains), s=16, color='#56B4E9', zorder=2)
        half = 100*(r.gain_high - r.gain) if r.pairs>=fewest else 0.
        ax.errorbar(100*r.gain, y, xerr=half, fmt='o', ms=6, capsize=4, color='#0072B2', zorder=3)
    same = rows['against'].nunique()==1
    names = [k if same else f'{k}\nbeside {against}' for k,against in rows['against'].items()]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.axvline(0, color='black', lw=1)
    ax.invert_yaxis()
    ax.grid(axis='x', alpha=0.3)
    if same: title = f"{title}: beside {rows['against'].iloc[0]}"
    ax.set(xlabel=f'points of accuracy: each seed, mean, 95 % interval from {fewest} seeds on', title=title)
    return ax


def said_of(rows: pd.DataFrame, what: str) -> list:
    "Labels of which `verdicts` says that a gain, or a loss, is shown"
    return [k for k,s in rows['says'].items() if f'so {what} is shown' in s]


# --- Best plain recipe against best recipe with the method ---

def best_of_each(tuned: pd.DataFrame, final: pd.DataFrame) -> pd.DataFrame:
    "Final runs of each method by the recipe that was chosen for it, named after both"
    best = chosen(tuned) if len(tuned) else {}
    wanted = [final[(final['method']==m) & (final['tried']==r)].assign(method=f'{m} by {r}') for m,r in best.items()]
    return pd.concat([final.iloc[:0], *wanted], ignore_index=True).assign(**dict.fromkeys(recipe_columns, 'chosen'))


def final_differences(df: pd.DataFrame, of_set: str) -> pd.DataFrame:
    "`held_beside` of each method's best recipe and plain training's best"
    tuned = of_stage(df, of_set, 'tune')
    runs = best_of_each(tuned, of_stage(df, of_set, 'final'))
    labels = list(runs['method'].unique())
    plain = [o for o in labels if o.startswith('plain by ')]
    return held_beside(runs, {o: plain[0] for o in labels if o not in plain} if plain else {}, 'methods')


def final_sentence(rows: pd.DataFrame) -> str:
    "The one sentence that the final table allows"
    if not len(rows): return 'No method and plain training have final runs yet, so nothing can be said.'
    beside = f"over plain training with the recipe chosen for it ({rows['against'].iloc[0].removeprefix('plain by ')})"
    if rows['pairs'].max()<fewest: return f'Fewer than {fewest} seeds are there yet, so nothing can be said.'
    gains,losses = said_of(rows, 'a gain'),said_of(rows, 'a loss')
    lost = f" A loss is shown for {', '.join(losses)}."*bool(losses)
    if gains: return f"A gain {beside} is shown for {', '.join(gains)}.{lost}"
    return f"No gain {beside} is shown for any of {len(rows)} methods, each with the recipe chosen for it.{lost}"


# --- Ideas ---

def improved(label: str) -> str:
    "What an idea would improve: the library's method that it is made of, or plain training"
    without = re.sub(r'\+?(KeepNorms|RefitNorms)\(\)', '', label)
    if without!=label: return without or 'plain'
    if label.startswith('WarmCAMLoss('): return 'CAMLoss(start=0)'
    mining = re.sub('^(Copied|OwnHead|Warm)Mining', 'FeatureMining', label)
    if mining!=label: return mining
    return 'SelectScale()' if label.startswith('SelectScale(') and label!='SelectScale()' else 'plain'


def idea_differences(df: pd.DataFrame, of_set: str, tried: str) -> pd.DataFrame:
    "`held_beside` of each idea and what it would improve, by one recipe"
    runs = of_stage(df, of_set, 'ideas')
    runs = runs[runs['tried']==tried]
    labels = [o for o in runs['method'].unique() if improved(o)!='plain' or 'Norms()' in o]
    rows = held_beside(runs, {o: improved(o) for o in labels}, 'ideas')
    if not len(rows): return rows
    plain = runs.loc[(runs['method']=='plain') & (runs['error']==''), 'accuracy'].mean()
    return rows.assign(over_plain=rows['accuracy'] - plain)


def shown_ideas(rows: pd.DataFrame) -> pd.DataFrame:
    "`shown_differences`, and the difference of means to plain training"
    if not len(rows): return pd.DataFrame()
    return shown_differences(rows).assign(**{'minus plain, points': (100*rows['over_plain']).map('{:+.1f}'.format)})


def idea_sentence(rows: pd.DataFrame) -> str:
    "The one sentence that the table of ideas allows"
    if not len(rows): return 'No idea has runs yet, so nothing can be said.'
    gains = said_of(rows, 'a gain')
    if gains: return f"A gain over what it would improve is shown for {', '.join(gains)}, on the images for choosing."
    better = [k for k,g,o in zip(rows.index, rows['gains'], rows['over_plain']) if g and min(g)>0 and o>0]
    than = 'than what it would improve, and than plain training in the mean'
    none = f'No gain is shown for any of {len(rows)} ideas.'
    if not better: return f'{none} None was better in every seed {than}.'
    return (f"{none} Each of these was better in every seed {than}: {', '.join(better)}; "
            "more seeds and other images would have to show it.")


# --- For the README ---

usual = 'fine_tune' # fastai's own recipe
ours = 'fine_tune_mult1_linear' # what a comparison takes
in_words = {1: 'one seed', 2: 'two seeds', 3: 'three seeds', 4: 'four seeds', 5: 'five seeds'}


def set_text(
    of_set: str, # name of its folder, which ends with the number
    per_class: int, # training images, by the rows: in 'cifar1050' no digit tells where the name ends
) -> str:
    "'flowers50' as 'flowers, 50 images a class'"
    return f"{of_set.removesuffix(str(per_class)).removesuffix('_train')}, {per_class} images a class"


def seeds_told(counts: list) -> str:
    "'two seeds', or 'two to three seeds' where sets differ"
    low,high = (in_words.get(n, f'{n} seeds') for n in (min(counts), max(counts)))
    return low if low==high else f"{low.split()[0]} to {high}"


def plain_told(tuned: pd.DataFrame, text: str) -> tuple:
    "Plain training by the usual recipe and by ours, on the images for choosing: a phrase and the number of seeds"
    plain = tuned[tuned['method']=='plain']
    both = means(plain).T.reindex([usual, ours]).get('plain', pd.Series(dtype=float))
    if len(both)<2 or both.isna().any(): return '',0
    return f'from {both[usual]:.1f} to {both[ours]:.1f} % ({text})',plain['seed'].nunique()


def recipe_told(root: Path = root) -> str:
    "What our recipe is worth for plain training, and whether a method adds to it; '' without runs"
    df = all_runs(root)
    ends,counts,said = [],[],[]
    for name in sorted(df['set'].unique()):
        text = set_text(name, int(df.loc[df['set']==name, 'per_class'].iloc[0]))
        phrase,n_seeds = plain_told(of_stage(df, name, 'tune'), text)
        if phrase:
            ends.append(phrase)
            counts.append(n_seeds)
        rows = final_differences(df, name)
        if len(rows) and rows['pairs'].max()>=fewest: said.append(f'On {text}: {final_sentence(rows)}')
    if not ends: return ''
    archs = ', '.join(f'`{o}`' for o in df['arch'].unique())
    where = f'means on the images by which recipes were chosen, {seeds_told(counts)}'
    return ' '.join([f'In place of fastai\'s own it took plain fine-tuning of {archs} {" and ".join(ends)}: {where}.',
                     *said])
