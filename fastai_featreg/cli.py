"Entry point of the `featreg` command: the imports, which take seconds, neither warn nor end in a traceback"
import sys
import warnings


def main() -> int:
    "Run `fastai_featreg.comparison.command.main`"
    warnings.filterwarnings('ignore', category=FutureWarning) # torch's, about fastai's use of torch.jit
    try:
        from fastai_featreg.comparison.command import main as command_main
        return command_main()
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130
