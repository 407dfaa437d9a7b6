"""Drawings for pages that show no data"""
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.transforms import Affine2D

net, ours, quiet = '#3A3F47', '#D55E00', '#7A808A'
fills = {net: '#E9ECF0', ours: '#FCE9DC'}


def stack(ax: Axes, x: float, size: float, n: int) -> float:
    "A pile of `n` square maps that begins at `x`; where it ends"
    step = 0.055
    for k in reversed(range(n)):
        left, low = x + k*step, k*step - size/2
        corners = [(left, low), (left + size, low), (left + size, low + size), (left, low + size)]
        ax.add_patch(Polygon(corners, facecolor=fills[net], edgecolor=net, lw=0.9, zorder=3))
    return x + size + (n - 1)*step


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = net,
        gone: bool = False) -> None:
    "A rounded box from `x` on, with its middle at `y`; dashed where it is gone at inference"
    style = 'round,pad=0,rounding_size=0.1'
    ax.add_patch(FancyBboxPatch((x, y - height/2), width, height, boxstyle=style, facecolor=fills[colour],
                                edgecolor=colour, lw=1.3, ls='--' if gone else '-', zorder=3))
    note(ax, x + width/2, y, text, colour='black', size=9)


def arrow(ax: Axes, *points: tuple, colour: str = net, gone: bool = False, head: str = '-|>') -> None:
    "Along the points, with a head at the last one"
    ls = '--' if gone else '-'
    *before, start, end = points
    if before:
        xs, ys = zip(*before, start, strict=True)
        ax.plot(xs, ys, color=colour, lw=1.4, ls=ls, zorder=2, solid_joinstyle='round')
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle=head, mutation_scale=11, color=colour, lw=1.4, ls=ls,
                                 shrinkA=0, shrinkB=0, zorder=2))


def note(ax: Axes, x: float, y: float, text: str, colour: str = quiet, size: float = 8, **kwargs) -> None:
    "Text round (x, y)"
    ax.text(x, y, text, ha='center', va='center', fontsize=size, color=colour, zorder=6, **kwargs)


def network(ax: Axes) -> None:
    "What is there without a callback: images, stages, head, loss"
    places = [(0.1, 1.15, 3), (2.05, 1.0, 4), (3.85, 0.75, 6), (5.45, 0.5, 9)]
    names = ['images', 'stage 1', 'stage 2', 'stage 3']
    ends = [stack(ax, *place) for place in places]
    for (x, *_), end, name in zip(places, ends, names, strict=True): note(ax, (x + end)/2, -0.82, name, net, 9)
    note(ax, 0.73, -1.06, 'N × 3 × H × W')
    note(ax, 5.92, -1.06, 'N × D × h × w')
    for end, (x, *_) in zip(ends, places[1:], strict=False): arrow(ax, (end + 0.06, 0), (x - 0.06, 0))
    arrow(ax, (ends[-1] + 0.06, 0), (8.84, 0))
    box(ax, 8.9, 0, 0.95, 0.66, 'pooling,\nhead')
    arrow(ax, (9.85, 0), (10.59, 0))
    note(ax, 10.2, 0.17, 'N × C')
    box(ax, 10.65, 0, 1.0, 0.66, 'loss of\nthe learner', gone=True)
    arrow(ax, (11.65, 0), (12.18, 0), gone=True)


def added(ax: Axes) -> None:
    "What a method adds: the tap, a term from its map, a map in its place"
    tap, high = 7.1, 1.75
    ax.plot(tap, 0, 'o', ms=9, mfc='white', mec=ours, mew=2, zorder=5)
    note(ax, tap, -0.3, 'tap', ours, 9)
    box(ax, 7.4, 0, 1.15, 0.66, 'change_map', ours, gone=True)
    note(ax, 7.975, -0.48, 'drops only', ours)
    arrow(ax, (tap - 0.06, 0.15), (tap - 0.06, high - 0.5), colour=ours, gone=True)
    arrow(ax, (tap + 0.06, high - 0.47), (tap + 0.06, 0.16), colour=ours, gone=True)
    note(ax, tap - 0.35, 0.72, 'map', ours)
    note(ax, tap + 0.48, 0.72, 'gradient', ours)
    box(ax, 6.3, high, 3.75, 0.94, '', ours, gone=True)
    note(ax, 7.13, high, 'loss_term', 'black', 9)
    box(ax, 8.2, high, 1.6, 0.56, 'make_heads', ours, gone=True)
    arrow(ax, (7.68, high), (8.16, high), colour=ours, gone=True, head='<|-|>')
    arrow(ax, (10.05, high), (12.35, high), (12.35, 0.2), colour=ours, gone=True)
    note(ax, 11.2, high - 0.2, '× weight', ours)
    note(ax, 11.2, high + 0.2, 'its mean: a column of the table', ours)
    ax.plot(12.35, 0, 'o', ms=16, mfc='white', mec=ours, mew=1.6, zorder=4)
    note(ax, 12.35, -0.01, '+', ours, 13)


def backward(ax: Axes) -> None:
    "From the sum of the losses to head and stages"
    low = -1.42
    arrow(ax, (12.35, -0.2), (12.35, low), (2.6, low), colour=quiet, gone=True)
    note(ax, 9.4, low + 0.17, 'backward: one gradient, of the sum, through head and stages')


def events(ax: Axes) -> None:
    "What the callback does at which event of fastai's"
    said = {0.75: ('before_batch', 'hooks on'), 2.85: ('forward', 'hooks hand over maps'),
            5.2: ('after_pred', 'reading hooks off'), 7.4: ('after_loss', 'the term joins'),
            9.75: ('before_backward', 'heads join the optimiser'), 12.0: ('after_batch', 'hooks and heads off')}
    for x, (event, what) in said.items():
        note(ax, x, -1.85, event, net, 8.5, family='monospace')
        note(ax, x, -2.1, what, ours)


def batch_walk() -> Figure:
    "The walk of one batch: what a network and its learner do, and what a method on feature maps adds"
    fig, ax = plt.subplots(figsize=(11, 4.5), layout='constrained')
    for draw in (network, added, backward, events): draw(ax)
    kinds = {'the network as it stays': (net, '-'), 'what the callback adds': (ours, '-'),
             'dashed: gone at inference': (quiet, '--')}
    lines = [Line2D([], [], color=colour, ls=ls, lw=1.6, label=name) for name, (colour, ls) in kinds.items()]
    ax.legend(handles=lines, loc='upper left', frameon=False, fontsize=9)
    ax.set(xlim=(-0.05, 12.8), ylim=(-2.3, 2.4), aspect='equal')
    ax.axis('off')
    return fig


def stage_row(ax: Axes, y: float, name: str, anatomy) -> None:
    "The stages that `get_anatomy` has found: sides by resolution, piles by channels; where class maps may be read"
    largest, x = anatomy.input_size[-1], 1.9
    note(ax, 0.5, y, name, net, 10)
    for stage in [None, *anatomy.stages]:
        h, w = stage.size if stage else anatomy.input_size[1:]
        channels = stage.channels if stage else anatomy.input_size[0]
        last = stage is anatomy.last
        middle = x + 0.5*(side := 1.15*(h/largest)**0.5)
        lowered = Affine2D().translate(0, y) + ax.transData
        before = len(ax.patches)
        end = stack(ax, x, side, 1 + round(channels**0.5/3))
        for patch in ax.patches[before:]:
            patch.set_transform(lowered)
            if last: patch.set(edgecolor=ours, facecolor=fills[ours])
        note(ax, middle, y - 0.85, stage.name if stage else 'image', ours if last else net, 8.5)
        note(ax, middle, y - 1.05, f'{channels} × {h} × {w}')
        if stage: note(ax, middle, y - 1.23, f'stride {stage.stride}')
        x = max(end, middle + 0.45) + 0.5
    box(ax, x - 0.1, y, 1.5, 0.5, f'pooling, {anatomy.n_out} classes')
    exact = 'CAM is exact at the last map' if anatomy.cam_exact else 'CAM is not exact here:\nGrad-CAM'
    note(ax, x + 0.65, y - 0.55, exact, ours if anatomy.cam_exact else quiet)


def stages_drawn(anatomies: dict) -> Figure:
    "A row for each network, name -> `Anatomy`"
    fig, ax = plt.subplots(figsize=(11, 0.3 + 2.3*len(anatomies)), layout='constrained')
    for i, (name, anatomy) in enumerate(anatomies.items()): stage_row(ax, -2.65*i, name, anatomy)
    ax.set(xlim=(-0.2, 12.4), ylim=(-2.65*len(anatomies) + 1.3, 1.05), aspect='equal')
    ax.axis('off')
    return fig
