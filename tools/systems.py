"""The tests of what differs between systems: paths, locks, processes, memory; and the command itself

    python tools/systems.py   # some minutes; in a checkout with `pip install -e .[dev]`
"""
import subprocess, sys, tempfile

tests = ['folders', 'files', 'layouts', 'subsets', 'noise', 'memory', 'rows', 'comparison_rows', 'saved', 'jobs',
         'command', 'cost', 'mined_pool', 'cam_loss']
budget = '--epochs 1 --seeds 1 --n-train 64 --n-valid 64 --jobs 2'.split()


def main() -> int:
    "The first exit status that is not 0"
    featreg = [sys.executable, '-m', 'fastai_featreg']
    with tempfile.TemporaryDirectory() as out:
        commands = [[*featreg, '--version'], [*featreg, 'methods'],
                    [*featreg, 'compare', 'digits', *budget, '--out', out],
                    [sys.executable, '-m', 'pytest', '-q', *(f'tests/test_{o}.py' for o in tests)]]
        for command in commands:
            print('$', *command[1:], flush=True)
            status = subprocess.run(command).returncode
            if status: return status
    return 0


if __name__=='__main__': sys.exit(main())
