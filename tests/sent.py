"Methods that another process must import, and what goes wrong there: its disk is full, or it is killed"
import os
import signal

import numpy as np
from fastai.callback.core import Callback

from fastai_featreg.comparison import rows
from fastai_featreg.core import register_method


@register_method('own_method', paper='none', summary='Does nothing')
class OwnMethod(Callback): "Does nothing"

@register_method('deadly', paper='none', summary='Kills its process')
class Deadly(Callback):
    "Kills its process, but not that of the command"
    def before_fit(self):
        if 'FEATREG_TEST_WORKER' in os.environ and len(self.dls.train)>1 and self.opt.hypers[0]['lr'] is not None:
            if not any(type(cb).__name__=='OneStep' for cb in self.learn.cbs): os.kill(os.getpid(), signal.SIGKILL)

def full_disk(share: float):
    "Let this share of writes fail as on a full disk"
    rng,replace = np.random.default_rng(os.getpid()),rows.replace
    def fails(path, cells):
        if rng.random()<share: raise OSError(28, 'No space left on device')
        return replace(path, cells)
    rows.replace = fails

if os.environ.get('FEATREG_TEST_FULL'): full_disk(float(os.environ['FEATREG_TEST_FULL']))
