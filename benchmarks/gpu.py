"""For the day a GPU is at hand: the tests that need one and the cost of every callback on one card, within minutes.

    python benchmarks/gpu.py                            # everything, in 6 minutes at most, into $OUT or ./gpu_results
    python benchmarks/gpu.py --parts cost --minutes 12  # more rounds
    python benchmarks/gpu.py --parts claims --minutes 4 # a piece of the papers' tables; the same command goes on
    python benchmarks/gpu.py --device cpu --tiny        # a trial without a GPU: tiny networks, two rounds, numbers
                                                        # without meaning

It runs from a checkout, with or without `pip install`, and needs nothing from the network. First it says what it found
(card, driver, versions) and how it means to share the time. The parts:

- `tests`: the tests marked `cuda` (`tests/test_cuda.py`), and with them the conformance cells of a GPU for every
  method: float16 with fastai's own `MixedPrecision` and its `GradScaler`, bfloat16 with channels_last, neutral forms
  bit for bit as plain training with deterministic algorithms, devices of heads and teachers, a step that is skipped;
- `cost`: time and peak memory of every callback by `benchmarks/overhead.py`, plain training beside each of them, for
  ResNet-50 (224 px, batch 128, or 64 on a card below 40 GiB) and ResNet-56 (32 px, batch 128) in bfloat16 (float16 on
  cards older than Ampere) and channels_last, images held as bytes on the device; and the functions on maps against
  their literal forms;
- `claims`, if it is asked for: tables of the papers by `benchmarks/gpu_claims.py`, eight runs side by side, rows as
  those of `featreg reproduce` in the folder `claims`. What has ended counts in the next piece, from the same folder or
  from the one that `--earlier` names; that there is more to do is no failure.

Each step of a part is a process of its own, so that one that fails takes nothing else with it. It is asked to end
within its share of the time that is left (tests that are not reached are skipped, rounds and candidates left out) and
is stopped when its share is over. Whatever failed or was not reached is told at the end; the exit status is then 1.

Files: `machine.csv` (what was found), `parts.csv` (each step: planned and taken seconds, status), `pytest_gpu.csv` (a
row per test), `conformance_gpu.csv` (a row per method and cell, as `nbs/results/conformance.csv`), `overhead_gpu_*.csv`
and `functions_gpu.csv` (columns of `nbs/results/overhead_cpu_*.csv` and `functions_cpu.csv`, and the device), a log of
each step.
"""
import argparse, os, platform, shutil, subprocess, sys, time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree
import pandas as pd, torch

root = Path(__file__).resolve().parent.parent
overhead = str(root/'benchmarks'/'overhead.py')
tables = str(root/'benchmarks'/'gpu_claims.py')
parts = 'tests', 'cost', 'claims'
no_time = 'no time was left' # as tests/conftest.py and overhead.py say


@dataclass
class Step:
    "One process"
    name: str
    part: str # that it belongs to
    share: float # of the time, relative to the others'
    command: Callable # (seconds to end in, arguments) -> command line
    what: str # one line for the plan
    after: Callable = lambda args: '' # reads what it left, and says what is wrong with it


def versions() -> dict:
    "Of the packages that matter, '' where one is missing"
    def of(name):
        try: return version(name)
        except PackageNotFoundError: return ''
    return {p: of(p) for p in ('torch', 'torchvision', 'fastai', 'timm', 'pytest')}


def driver() -> str:
    "Version of the card's driver, '' if nvidia-smi does not say"
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try: return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split('\n')[0]
    except (OSError, subprocess.SubprocessError): return ''


def find(device: str) -> dict:
    "What there is"
    found = dict(device=device, python=platform.python_version(), **versions(), cpus=os.cpu_count(),
                 threads=torch.get_num_threads(), date=f'{pd.Timestamp.now():%Y-%m-%d %H:%M}')
    if device=='cpu': return found
    card = torch.cuda.get_device_properties(0)
    return found | dict(device=card.name, gib=round(card.total_memory/2**30, 1), driver=driver(),
                        capability=f'{card.major}.{card.minor}', cuda=torch.version.cuda,
                        cudnn=torch.backends.cudnn.version())


def name_of(args: argparse.Namespace) -> str: return 'cpu' if args.device=='cpu' else 'gpu'


def pytest_command(seconds: float, args: argparse.Namespace) -> list:
    "All tests marked `cuda`; those of two methods in a trial"
    some = ['-k', 'not test_cell and not resnet or feature_mining or ccm']*args.tiny
    return [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'cuda', '--test-device', args.device,
            '--test-seconds', f'{seconds:.0f}', '--junitxml', str(args.out/'pytest.xml'), *some,
            str(root/'tests'/'test_cuda.py'), str(root/'tests'/'test_maps.py')]


def outcome(case: ElementTree.Element) -> tuple:
    "passed, failed or skipped, and why"
    for kind,what in dict(failure='failed', error='failed', skipped='skipped').items():
        if (found := case.find(kind)) is not None: return what,(found.get('message') or '').partition('\n')[0]
    return 'passed',''


def read_tests(args: argparse.Namespace) -> str:
    "Write pytest's file as CSV files: a row per test, and one per conformance cell"
    tests,cells = [],[]
    for case in ElementTree.parse(args.out/'pytest.xml').iter('testcase'):
        what,why = outcome(case)
        test = f"{case.get('classname')}::{case.get('name')}"
        tests.append(dict(test=test, outcome=what, seconds=float(case.get('time')), why=why))
        own = {p.get('name'): p.get('value') for p in case.iter('property')}
        if 'cell' in own: cells.append(dict(status=what, why=why) | own) # its own status is finer, if it came so far
    columns = ['method', 'cell', 'status', 'why']
    pd.DataFrame(cells, columns=columns).to_csv(args.out/f'conformance_{name_of(args)}.csv', index=False)
    pd.DataFrame(tests).to_csv(args.out/f'pytest_{name_of(args)}.csv', index=False)
    (args.out/'pytest.xml').unlink()
    counts = Counter(o['outcome'] for o in tests)
    print(', '.join(f'{n} {what}' for what,n in counts.items()) + f'; {len(cells)} of them conformance cells')
    late = sum(no_time in o['why'] for o in tests)
    wrong = {'failed': counts['failed'], 'not reached in time': late}
    return ', '.join(f'{n} {what}' for what,n in wrong.items() if n)


def cost_command(arch: str, size: int, bs: int, burst: int, amp: str) -> Callable:
    "How `overhead.py` is asked about one network"
    def command(seconds: float, args: argparse.Namespace) -> list:
        few = ['--trial', '--rounds', '2', '--warmup', '1']*args.tiny
        return [sys.executable, overhead, '--arch', arch, '--size', str(size), '--bs', str(bs), '--burst', str(burst),
                '--amp', amp, '--channels-last', '--uint8', '--seconds', f'{seconds:.0f}', '--device', args.device,
                '--methods', args.methods, '--out', str(args.out), *few]
    return command


def functions_command(seconds: float, args: argparse.Namespace) -> list:
    "The functions on maps; they take seconds"
    few = ['--trial']*args.tiny
    return [sys.executable, overhead, '--functions', '--device', args.device, '--out', str(args.out), *few]


def claims_command(seconds: float, args: argparse.Namespace) -> list:
    "Tables of the papers, from where an earlier piece has ended"
    if args.earlier: shutil.copytree(args.earlier, args.out/'claims', dirs_exist_ok=True)
    own = ['--tiny']*args.tiny + (['--data-at', str(args.data_at)] if args.data_at else [])
    return [sys.executable, tables, '--out', str(args.out/'claims'), '--seconds', f'{seconds:.0f}', *own]


def read_claims(args: argparse.Namespace) -> str:
    "How far it came"
    print((args.out/'claims.log').read_text(errors='replace').strip().rpartition('\n')[2])
    return ''


def plan(args: argparse.Namespace, found: dict) -> list:
    "The steps, in their order"
    amp = 'bf16' if args.device=='cpu' or float(found['capability'])>=8 else 'fp16'
    batch = 128 if found.get('gib', 0)>=40 else 64
    large,small = ('resnet50', 224, batch, 2, amp),('resnet56', 32, 128, 2, amp)
    if args.tiny: large,small = ('test_resnet', 64, 2, 2, amp),('resnet8', 16, 4, 2, amp)
    cost = '{}, {} px, batch {}, bursts of {} steps, {}, channels_last'
    steps = [Step('tests', 'tests', .3, pytest_command, 'tests and conformance cells that need a GPU', read_tests),
             *[Step(f'cost_{o[0]}', 'cost', share, cost_command(*o), cost.format(*o))
               for o,share in ((large, .4), (small, .25))],
             Step('functions', 'cost', .05, functions_command, 'functions on maps against their literal forms'),
             Step('claims', 'claims', 1., claims_command, 'tables of the papers, side by side', read_claims)]
    return [s for s in steps if s.part in args.parts]


def last_words(log: Path) -> str:
    "What a step that failed says of it: what was left out, or its last line"
    lines = [o for o in log.read_text(errors='replace').splitlines() if o.strip()]
    return '; '.join([o for o in lines if o.startswith('left out')] or lines[-1:] or ['it said nothing'])


def run(step: Step, seconds: float, args: argparse.Namespace) -> dict:
    "One step; it is asked to end a little before it is stopped"
    log,began = args.out/f'{step.name}.log',time.monotonic()
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env = os.environ | dict(PYTHONPATH=path, MPLBACKEND='Agg', PYTHONUNBUFFERED='1')
    print(f'\n== {step.name}: {step.what} (up to {seconds:.0f} s)', flush=True)
    try:
        with log.open('w') as f:
            soft = seconds - min(.3*seconds, 25) # it takes a while to start
            done = subprocess.run(step.command(soft, args), stdout=f, stderr=subprocess.STDOUT, env=env, cwd=root,
                                  timeout=seconds)
        why = last_words(log) if done.returncode else ''
        why = step.after(args) or why
    except subprocess.TimeoutExpired: why = f'stopped after {seconds:.0f} s'
    except Exception as e: why = f'{type(e).__name__}: {e}; its log ends: {last_words(log)}' # the others go on
    took = time.monotonic() - began
    print(f"{step.name}: {why or 'done'}; {took:.0f} s", flush=True)
    status = 'failed' if why else 'done'
    return dict(step=step.name, status=status, planned_s=round(seconds), took_s=round(took), why=why)


def parse() -> argparse.Namespace:
    "Command line; one sentence where there is no GPU"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=6., help='for everything')
    p.add_argument('--parts', default='tests,cost',
                   help='some of tests, cost and claims, with commas (default: %(default)s)')
    p.add_argument('--methods', default='',
                   help='regular expression: costs of candidates whose label has a match only')
    p.add_argument('--earlier', type=Path, help='rows of claims of an earlier piece, to go on from')
    p.add_argument('--data-at', type=Path, help='folder with data of the claims, in folders named as in the tables')
    p.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    p.add_argument('--tiny', action='store_true', help='tiny networks, two rounds, tests of two methods: a trial')
    p.add_argument('--out', type=Path, default=Path(os.environ.get('OUT') or 'gpu_results'),
                   help='folder for the files (default: $OUT, or gpu_results)')
    args = p.parse_args()
    args.parts,args.out = args.parts.split(','),args.out.resolve()
    if not set(args.parts) <= set(parts): p.error(f"--parts must be some of {', '.join(parts)}, with commas")
    if args.earlier and not args.earlier.is_dir(): p.error(f'--earlier must be a folder, got {args.earlier}')
    if args.minutes<=0: p.error('--minutes must be greater than 0')
    ready = torch.cuda.is_available() if args.device=='cuda' else args.tiny
    if not ready: raise SystemExit('gpu.py measures a CUDA GPU, and here is none; try it with --device cpu --tiny')
    return args


def main() -> int:
    "Say what there is and what will be done, do it, say what failed"
    end = time.monotonic()
    args = parse()
    end += 60*args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    found,reports = find(args.device),[]
    pd.DataFrame([found]).to_csv(args.out/'machine.csv', index=False)
    steps = plan(args, found)
    print('\n'.join(f'{k:12} {v}' for k,v in found.items()) + f'\n\n{args.minutes:g} minutes, files in {args.out}:')
    for s in steps: print(f'{60*args.minutes*s.share/sum(o.share for o in steps):5.0f} s  {s.name}: {s.what}')
    for i,s in enumerate(steps): # what one leaves of its time is the others'
        seconds = max(1., end - time.monotonic())*s.share/sum(o.share for o in steps[i:])
        reports.append(run(s, seconds, args))
        pd.DataFrame(reports).to_csv(args.out/'parts.csv', index=False)
    failed = [r for r in reports if r['status']=='failed']
    for r in failed: print(f"failed: {r['step']}: {r['why']}")
    print(f"{'all done' if not failed else 'the others are done'}; files in {args.out}")
    return int(bool(failed))


if __name__ == '__main__': sys.exit(main())
