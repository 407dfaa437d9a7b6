"Everything a notebook needs: `from fastai_featreg.all import *`"
from fastai_featreg.anatomy import *
from fastai_featreg.core import *
from fastai_featreg.feature_mining import *
from fastai_featreg.data import *
from fastai_featreg.compare import *
