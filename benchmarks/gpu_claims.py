"""Tables of the papers on one card, at a scale between their quick forms and the papers: eight runs side by side.

    python benchmarks/gpu_claims.py --out gpu_results/claims --seconds 240   # a piece of four minutes
    python benchmarks/gpu_claims.py --out gpu_results/claims --seconds 240   # goes on where the first one ended

`gpu.py --parts claims` runs it. The tables, in this order: Feature Mining under wrong labels (FM Table 8) and without
(FM Table 1) with ResNet-56, SelectScale (SS Table 2) with WRN-20-4, MV-FeaAug (MV Table 1) with ResNet-50 without its
last stage on Imagenette. Each is the file of the library with another quick form, which lies as `table.toml` beside its
rows; the rows are those of `featreg reproduce`, and `fastai_featreg.comparison.holds` reads both. A run that has ended
counts again; what is under way when the time is over is trained anew by the next piece, so a run must be shorter than a
piece. How long one takes has not been measured.
"""
import argparse, signal, sys
from pathlib import Path
from fastai_featreg.comparison.holds import all_runs, folder_of, totals, totals_text
from fastai_featreg.comparison.published import tables_folder
from fastai_featreg.comparison.reproduce import reproduce

# seeds are chosen so that eight runs at a time come out even: 8 = 2 arms * 4, 24 = 3 arms * 8
forms = {
    'fm-table8': """
arch = "resnet56"
n_train = 10000
n_valid = 5000
epochs = 40
seeds = 4
""",
    'fm-table1': """
arch = "resnet56"
n_train = 10000
n_valid = 5000
epochs = 60
seeds = 8
arms = ["plain", "fm1", "fm2"]

[quick.blocks]
ResNet-56 = {}
""",
    'selectscale-table2': """
n_train = 10000
n_valid = 5000
epochs = 100
seeds = 8
arms = ["plain", "spatial", "select"]

[quick.blocks]
WRN-20-4 = {}
""",
    'mv-table1': """
data = "imagenette"
size = 112
n_train = 3000
epochs = 30
seeds = 4

[quick.blocks]
"ResNet41 Imagenette" = {}
"""}
card = 'precision = "bf16"\nchannels_last = true\njobs = 8\n'

# a trial: one block of each, one epoch of drawn digits
small = 'data = "digits"\nsize = 32\nbs = 32\nn_train = 64\nn_valid = 64\nepochs = 1\nseeds = 1\njobs = 2\n'
trials = {
    'fm-table8': 'arch = "resnet8"\n\n[quick.blocks]\n"symmetric 0.2" = {}\n',
    'fm-table1': 'arch = "resnet8"\narms = ["plain", "fm2"]\n\n[quick.blocks]\nResNet-56 = {}\n',
    'selectscale-table2': 'arch = "resnet8"\narms = ["plain", "select"]\n\n[quick.blocks]\nWRN-20-4 = {}\n',
    'mv-table1': 'arch = "resnet18-2"\n\n[quick.blocks]\n"ResNet41 Imagenette" = {}\n'}


def table_text(name: str, tiny: bool) -> str:
    "The file of a table with another quick form, which comes last in each of them"
    head,quick,dropped = (tables_folder()/f'{name}.toml').read_text(encoding='utf-8').partition('\n[quick]\n')
    if not quick: raise ValueError(f'{name} must have a quick form, got none; take another table')
    for line in map(str.strip, dropped.splitlines()):
        if line.startswith('[') and not line.startswith('[quick.'):
            raise ValueError(f'the quick form of {name} must come last, got {line} behind it; move that before [quick]')
    own = small + trials[name] if tiny else card + forms[name].lstrip('\n')
    return f'{head}{quick}{own}'


def write_table(out: Path, name: str, tiny: bool) -> Path:
    "The file beside the rows"
    file = folder_of(out, name)/'table.toml'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table_text(name, tiny), encoding='utf-8')
    return file


def end_in(seconds: float):
    "As Ctrl-C after a while: `compare` ends its processes, and what has ended is written"
    def over(*_): raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def run_tables(out: Path, names: list, tiny: bool, data_at: Path|None) -> bool:
    "All tables in turn; were all reached?"
    for name in names:
        try: reproduce(write_table(out, name, tiny), quick=True, out=out, data_at=data_at)
        except KeyboardInterrupt:
            print(f'the time was over in {name}; the same command goes on')
            return False
    return True


def parse() -> argparse.Namespace:
    "Command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True, help='folder of all rows')
    p.add_argument('--seconds', type=float, default=240., help='to end in')
    p.add_argument('--tables', default=','.join(forms), help='some of them, with commas (default: %(default)s)')
    p.add_argument('--data-at', type=Path, help='folder with data in folders named as in the tables')
    p.add_argument('--tiny', action='store_true', help='tiny networks, one epoch of digits: a trial')
    args = p.parse_args()
    args.tables = args.tables.split(',')
    unknown = set(args.tables) - set(forms)
    if unknown: p.error(f"--tables must be some of {', '.join(forms)}, got {', '.join(sorted(unknown))}")
    if args.seconds<=0: p.error('--seconds must be greater than 0')
    return args


def main() -> int:
    "Run, say what there is; 1 if a run has failed"
    args = parse()
    end_in(args.seconds)
    done = run_tables(args.out, args.tables, args.tiny, args.data_at)
    signal.setitimer(signal.ITIMER_REAL, 0)
    total = totals(all_runs(args.out))
    print(f"{'all tables are done' if done else 'there is more to do'}: {totals_text(total)}")
    return int(total['failed']>0)


if __name__ == '__main__': sys.exit(main())
