"`python -m fastai_featreg` is the command `featreg`"
import sys
from fastai_featreg.cli import main

if __name__=='__main__': sys.exit(main())
