"""Write `fastai_featreg/methods.txt`: what `featreg methods` prints, so that it need not import torch to know

    python tools/listing.py
"""
from pathlib import Path
from fastai_featreg.comparison.command import methods_text

file = Path(__file__).parent.parent/'fastai_featreg'/'methods.txt'

if __name__=='__main__': file.write_text(methods_text(), encoding='utf-8')
