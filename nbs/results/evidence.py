"""What was measured, read from the CSV files beside this module: for the README's table, the method cards and the cost
report"""
import importlib,inspect,pkgutil,re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
import fastai_featreg
import pandas as pd
from fastcore.docments import docments
from fastai_featreg.comparison.cost_table import cost_lines,read_costs,with_cost
from fastai_featreg.comparison.report import best_epochs,notes,summarise,summary_table,verdicts
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.plan import method_label,needs_teacher
from fastai_featreg.core import card_of,method_summary,methods
from fastai_featreg.methods import import_methods,own_methods

here = Path(__file__).parent
import_methods() # their cards
bn = 'BatchNorm in the head'
# The order of the tables, where it is not that of folders and notebooks; what is not named here follows.
first_sets = ['digits_default', 'digits', 'digits_bn', 'digits15', 'digits_maps', 'cifar10', 'cifar10_long', 'scores',
              'tiny30', 'cifar100_distill']
first_methods = ['feature_mining', 'cam_loss', 'negative_cam', 'select_scale', 'selectout', 'spatial_scale',
                 'spatial_dropout', 'drop_block', 'feature_dropout']
settings = {'cpu_resnet18_64px_bs32': 'ResNet-18, 64 px, batch 32',
            'cpu_resnet56_32px_bs128': 'ResNet-56, 32 px, batch 128',
            'cpu_resnet50_128px_bs8': 'ResNet-50, 128 px, batch 8'}
# step time / plain that a callback should not exceed
budgets = {'feature_mining': 1.02, 'feature_mining, 2 layers': 1.02, 'cam_loss': 1.02, 'select_scale': 1.04}
# over distillation alone; 200 views on 14 x 14, over average pooling and a linear layer
ccm_budget,views_budget = 1.01,1.05


def markdown(rows: list) -> str:
    "Markdown table of rows of text, the first of them its head"
    lines = ['| ' + ' | '.join(map(str, r)) + ' |' for r in rows]
    return '\n'.join([lines[0], '|' + ' --- |'*len(rows[0]), *lines[1:]])


def ordered(found: Iterable, first: list) -> list:
    "`found`, those of `first` in front"
    found = list(found)
    return [o for o in first if o in found] + [o for o in found if o not in first]


def network_name(arch: str) -> str:
    "A network of the runs, in words"
    whole,_,cut = arch.partition('-')
    return whole.replace('resnet', 'ResNet-') + (' without its last stage' if cut=='1' else '')


def titles(about: Path) -> dict:
    """Title -> `folder:arch` of the runs beside a file `about.txt`, whose line says data and budget

    A title with `{network}` stands for one set a network. The head of a network is average pooling and one linear
    layer, unless the title says otherwise.
    """
    folder,title,df = about.parent,about.read_text().strip(),read_results(about.parent/'results.csv')
    where,several = folder.relative_to(here).as_posix(),'{network}' in title
    res = {}
    for arch in df['arch'].unique() if several else ['']:
        head = set(df['head'][df['arch']==arch] if several else df['head'])
        name = title.replace('{network}', network_name(arch)) + f', {bn}'*(head=={'gap'})
        res[name] = f'{where}:{arch}' if several else where
    return res


def found_sets() -> dict:
    "Data and budget -> folder (`folder:arch`), for each folder of runs that has a title"
    folders = sorted(p.parent.relative_to(here).as_posix() for p in here.rglob('about.txt'))
    pairs = [o for f in ordered(folders, first_sets) for o in titles(here/f/'about.txt').items()]
    twice = {k for k,_ in pairs if sum(k==other for other,_ in pairs)>1}
    if twice: raise ValueError(f"about.txt: several folders are called {min(twice)!r}; give each its own title")
    return dict(pairs)


@cache
def runs(folder: str) -> pd.DataFrame:
    "Runs of a folder, or of one network in it (`folder:arch`); a teacher's file is called `teacher`"
    folder,_,arch = folder.partition(':')
    df = read_results(here/folder/'results.csv')
    if arch: df = df[df['arch']==arch]
    return df.assign(method=df['method'].str.replace(r"teacher='[^']*'", 'teacher', regex=True))


sets = found_sets()


def told(folder: str) -> str:
    "What `featreg compare` said at the end of the runs of a folder, costs included"
    path = here/folder/'results.csv'
    cost = read_costs(path)
    summary = with_cost(summarise(read_results(path)), cost)
    lines = [summary_table(summary), '', *verdicts(summary), *best_epochs(summary), *notes(summary), *cost_lines(cost)]
    return '\n'.join(['```text', *lines, '```'])


@cache
def summaries() -> dict:
    "data and budget -> a row per method, from `summarise`"
    return {k: summarise(runs(v)) for k,v in sets.items()}


def over_distillation(df: pd.DataFrame) -> pd.DataFrame:
    "Rows of `summarise` for runs with a teacher, against distillation alone"
    alone = 'KnowledgeDistillation(teacher)'
    if not (df['method']==alone).any(): return pd.DataFrame()
    return summarise(df[df['method']!='plain'], against=alone).drop(index=alone)


def gain(r: pd.Series) -> str:
    """Difference to plain training and its interval, points

    An interval that excludes 0 shows nothing if the method is one of many that were tried; that is said.
    """
    assert r.pairs>=3, f'{r.name}: {r.pairs} seeds are too few to show'
    excludes = not r.gain_low<=0<=r.gain_high
    chance = f', not after Holm over {r.methods}'*bool(excludes and r.gain_holm>0.05)
    return f'{100*r.gain:+.1f} ({100*r.gain_low:+.1f} to {100*r.gain_high:+.1f}){chance}'


@cache
def overhead() -> pd.DataFrame:
    "Rows of all networks that were measured, with `network`, in their order"
    df = pd.concat(pd.read_csv(here/f'overhead_{s}.csv') for s in settings)
    return df.assign(network=df.setting.map(settings))


def spread(r: pd.Series, name: str = 'ratio', form: str = '.2f') -> str:
    "Median and quartiles"
    return '{} ({} to {})'.format(*(format(r[f'{name}_{q}'], form) for q in ('median', 'q1', 'q3')))


def parameters(name: str) -> dict:
    "name -> docment of each argument of the callback, those of its base classes included"
    cls,found = methods[name],{}
    for c in cls.__mro__:
        if '__init__' not in vars(c): continue
        for k,v in docments(c.__init__, full=True, returns=False).items():
            found.setdefault(k, v)
    return {k: found[k] for k in inspect.signature(cls).parameters}


def hyper_parameters(name: str) -> str:
    "Table of the callback's arguments"
    taken = inspect.signature(methods[name]).parameters
    default = lambda k: 'needed' if taken[k].default is inspect.Parameter.empty else f'`{taken[k].default!r}`'
    return markdown([['argument', 'default', 'meaning']]
                    + [[f'`{k}`', default(k), v.docment or ''] for k,v in parameters(name).items()])


looks = {'pointing_game': 'pointing game, %', 'max_box_acc': 'boxes found, %'}


def gain_row(where: str, folder: str, label: str, r: pd.Series, plain: pd.Series) -> dict:
    "One row of `gains`; a column that has nothing to say is left out"
    row = {'data and budget': where, 'callback': f'`{label}`', 'plain, %': f'{100*plain.accuracy:.1f}',
           'points over plain (95 % interval)': gain(r)}
    over = over_distillation(runs(folder))
    if label in over.index: row['points over distillation alone'] = gain(over.loc[label])
    row |= {title: f'{100*plain[look]:.1f} → {100*r[look]:.1f}' for look,title in looks.items() if pd.notna(r[look])}
    return row | {'seeds': int(r.pairs)}


def gains(name: str) -> str:
    "Table of the accuracies of a callback's runs, and of its class activation maps where objects have known boxes"
    of = methods[name].__name__ + '('
    rows = [gain_row(where, sets[where], label, r, s.loc['plain']) for where,s in summaries().items()
            for label,r in s.iterrows() if label.startswith(of)]
    if not rows: return 'Not measured: no committed run has it.'
    df = pd.DataFrame(rows).fillna('')
    df = df[[c for c in df if c!='seeds'] + ['seeds']]
    return markdown([list(df), *df.values])


def costs(name: str) -> str:
    "Table of a callback's step times and memory"
    df = overhead()
    taught = bool(df[df.method==name].over_kd_median.notna().any()) and name!='knowledge_distillation'
    head = (['network', 'callback', 'step time / plain'] + ['step time / distillation alone']*taught
            + ['memory / plain', 'plain again'])
    again = lambda r: f'{r.again_q1:.2f} to {r.again_q3:.2f}'
    rows = [[r.network, r.method.replace('_', ' '), spread(r)] + [spread(r, 'over_kd')]*taught
            + [f'{r.memory_ratio:.2f}', again(r)]
            for _,r in df.iterrows() if re.match(rf'{name}\b(?!.*literal)', r.method)]
    return markdown([head, *rows]) if rows else 'Not measured.'


def listed(items: Iterable, n: int = 8) -> str:
    "Comma-separated, cut after `n`"
    items = list(items)
    return ', '.join(items[:n]) + (f' and {len(items)-n} more' if len(items)>n else '')


def works_with(name: str) -> str:
    "Lines on networks, circumstances and other methods"
    read = lambda file: pd.read_csv(here/file, keep_default_na=False)
    nets,conf = read('backbones.csv'),read('conformance.csv')
    nets,conf = nets[nets.method==name],conf[(conf.method==name) | (conf.cell==f'beside {name}')]
    beside = conf.cell.str.startswith('beside ')
    other = lambda r: r.cell.removeprefix('beside ') if r.method==name else r.method
    n,refused = nets.status.value_counts(),nets[nets.status=='refused'].arch
    ways = listed(f'{n[s]} {s}' for s in ('works', 'works by Grad-CAM', 'works in two parts', 'fails') if s in n
                  ).replace('works', 'work')
    lines = [f'- networks ({len(nets)}): {ways or "not measured"}'
             + (f'; {len(refused)} refused: {listed(refused)}' if len(refused) else '')]
    for what,df in {'circumstances': conf[~beside], 'together with each of the other methods': conf[beside]}.items():
        refused = df[df.status=='refused']
        why = listed(refused.cell if what=='circumstances' else [other(r) for r in refused.itertuples()])
        done = f'{(df.status=="passed").sum()} work' if len(df) else 'not measured'
        lines.append(f'- {what} ({len(df)}): {done}' + (f'; refused: {why}' if len(refused) else '')
                     + (f'; {n} do not apply' if (n := (df.status=='not applicable').sum()) else ''))
    return '\n'.join(lines)


paragraphs = {'What': 'what', 'When': 'when', 'When not': 'when_not', 'Source': 'source'}


def said(name: str) -> dict:
    "Heading -> paragraph of a card: what stands at the registration, with links from this folder"
    link = lambda text: re.sub(r'\]\((?=\d\d_)', '](../methods/', text)
    return {title: link(getattr(card_of(name), k)) for title,k in paragraphs.items()}


def card(name: str) -> str:
    "What is said of a method and what was measured"
    parts = {'Hyper-parameters': hyper_parameters, 'Measured gain': gains, 'Measured cost': costs,
             'Works with': works_with}
    cls = methods[name].__name__
    return '\n\n'.join([f'<a id="{cls}"></a>', f'## {cls}',
                        *(f'**{title}.** {text or "Not said."}' for title,text in said(name).items()),
                        *(f'**{title}**\n\n{make(name)}' for title,make in parts.items())])


def shown_methods() -> list:
    "Names of the methods with a card, in the order of the tables"
    return ordered(own_methods(), first_methods)


def run_label(name: str, kwargs: dict) -> str:
    "A method with these arguments, as `runs` calls it"
    cls = methods[name]
    label = method_label(cls, *['']*needs_teacher(cls), **kwargs)
    return label.replace("teacher=''", 'teacher')


def table_rows(name: str) -> list:
    "(labels of runs, name in the benchmark, phrase) for each row of a method in `methods_table`"
    card = card_of(name)
    own = [v for v in card.variants if v.in_short]
    labels = [run_label(name, kwargs) for kwargs in ({}, *(v.kwargs for v in card.variants if not v.in_short))]
    return [(labels, name, card.in_short or method_summary(name)),
            *(([run_label(name, v.kwargs)], f'{name}, {v.timed}', v.in_short) for v in own)]


def first_sentence(text: str) -> str:
    "Of a paragraph, without its stop"
    return re.split(r'(?<=\.)\s', text)[0].rstrip('.')


def methods_table() -> str:
    "Table of the methods, and of fastai's with a phrase: what they do, when to take them, and cost"
    cost = overhead()
    network = cost.network.iloc[0]
    cost = cost[cost.network==network].set_index('method')
    others = [n for n,cls in methods.items() if n not in own_methods() and card_of(n).in_short]
    rows = [['callback', 'in training', 'take it when', f'step time / plain: {network}, CPU, median (quartiles)']]
    for name in shown_methods() + others:
        when = first_sentence(card_of(name).when)
        for labels,timed,phrase in table_rows(name):
            time = spread(cost.loc[timed]) if timed in cost.index else 'not measured'
            rows.append([f'`{labels[0]}`', f'{phrase} ({card_of(name).paper})', when, time])
            when = 'as above'
    return markdown(rows)


def in_short(*names: str) -> str:
    "Table of these methods for the top of their notebook: what they do and where they come from"
    cells = lambda n: [f'`{methods[n].__name__}`', card_of(n).in_short or method_summary(n), card_of(n).paper]
    return markdown([['callback', 'in training', 'source'], *map(cells, names)])


papers = {'FM': 'Feature Mining', 'SS': 'SelectScale', 'CL': 'CAM-loss and CCM', 'MV': 'MV-FeaAug and AdaCAM',
          'others': 'Networks and baselines of other papers'}
_entry = re.compile(r'^(Reading|Departure) \(([^)]*)\): (.*)$', re.DOTALL)


def entries(doc: str) -> list:
    "(kind, place, what, letter) of each reading and departure in a docstring; a continuation line is indented"
    blocks = re.split(r'\n(?=\S)', inspect.cleandoc(doc or ''))
    found = [m for b in blocks if (m := _entry.match(' '.join(b.split())))]
    return [(m[1], m[2], *split_letter(m[3])) for m in found]


def split_letter(text: str) -> tuple:
    "What is said, and the arguments that give the paper's letter ('' if there are none)"
    what,letter = re.match(r'(.*?)(?:letter(?: of [^:]*)?:(.*))?$', text, re.DOTALL).groups()
    return what.rstrip(' ;.,') + '.',(letter or '').strip(' .')


def documented() -> list:
    "(module, name, object) of everything public in the package, each object once"
    seen,res = set(),[]
    found = pkgutil.walk_packages(fastai_featreg.__path__, 'fastai_featreg.')
    for info in sorted(found, key=lambda o: o.name.rpartition('.')[2]):
        short = info.name.rpartition('.')[2]
        if info.ispkg or short in ('all', 'cli') or short.startswith('_'): continue
        module = importlib.import_module(info.name)
        for name in module.__all__:
            o = getattr(module, name)
            if id(o) in seen or getattr(o, '__module__', None)!=module.__name__: continue
            seen.add(id(o))
            res.append((short, name, o))
            members = vars(o).items() if inspect.isclass(o) else ()
            res += [(short, f'{name}.{k}', getattr(o, k)) for k,m in members
                    if isinstance(m, classmethod) or inspect.isfunction(m)]
    return res


def own_doc(o: object) -> str:
    "Docstring of a function, or of a class itself and not of its bases"
    return vars(o).get('__doc__') if inspect.isclass(o) else getattr(o, '__doc__', None)


def readings() -> pd.DataFrame:
    "A row for each reading and departure in the package's docstrings"
    rows = [(*e, module, name) for module,name,o in documented() for e in entries(own_doc(o))]
    df = pd.DataFrame(rows, columns=['kind', 'where', 'what', 'letter', 'module', 'name'])
    first,rest = df['where'].str.partition(' ')[0],df['where'].str.partition(' ')[2]
    ours = first.isin(list(papers))
    return df.assign(paper=first.where(ours, 'others'), place=rest.where(ours, df['where']))


def readings_table(paper: str) -> str:
    "Readings and departures of one paper, as markdown, in the paper's order"
    df = readings()
    df = df[df.paper==paper].sort_values(['place', 'name'], kind='stable')
    rows = [[r.place, r.kind.lower(), f'`{r.name}`', r.what, r.letter or '–'] for r in df.itertuples()]
    return markdown([['place', 'kind', 'in', 'what is done here', "the paper's letter"], *rows])
