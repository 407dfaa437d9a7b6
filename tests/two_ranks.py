"""Two processes with gloo, each with its own part of the data. One pair of processes runs every scenario, as starting
them takes longest; `results(name)` starts it when first asked, and gives what both ranks have kept"""
import os, socket, subprocess, sys, time, traceback
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from unittest.mock import patch
import torch


def flat(module):
    return torch.cat([torch.zeros(0)] + [p.detach().flatten().clone() for p in (module.parameters() if module else ())])

def fit_together(learn, *args):
    "One fit of a learner on both ranks; what a rank draws by itself differs"
    torch.manual_seed(int(os.environ['RANK']))
    with learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(*args)

def of_method(row):
    "A method alone"
    from conformance import assert_clean, own, tiny_learner
    learn = tiny_learner(row and row.make(), n=32)
    start = flat(learn.model)
    fit_together(learn, 2, .1)
    assert (flat(learn.model) - start).abs().max() > 1e-3
    assert_clean(learn)
    assert not row or all(v > 0 for v in learn.recorder.values[-1][2:])
    return flat(learn.model),flat(row and own(learn).aux_heads)

def four_methods(cam, mixup=False, gaps=False):
    """Mining, a drop and both losses on maps together; `gaps`: each rank has a batch without a term; start='auto': one
    rank is right always, the other never"""
    import fastai_featreg.methods.cam_loss as module
    from conformance import FeatureMining, MixUp, NegativeCAM, SelectScale, assert_clean, tiny_learner
    learn,rank = (tiny_learner([FeatureMining(2), SelectScale(retain=0.), cam, NegativeCAM(cam='grad_cam')], n=64),
                  int(os.environ['RANK']))
    if mixup: learn.add_cb(MixUp())
    term = FeatureMining.loss_term
    with ExitStack() as stack:
        replace = lambda *args: stack.enter_context(patch.object(*args))
        if cam.start=='auto':
            replace(module, 'n_right', lambda pred, classes, weights: len(pred)*(1 - rank)) # half of both ranks' images
            replace(module, 'start_accuracy', lambda n_out: .49)
        if gaps:
            replace(FeatureMining, 'loss_term', lambda self, maps: None if self.learn.iter==rank else term(self, maps))
        fit_together(learn, 1, 0.)
        start = flat(learn.feature_mining.aux_heads)
        fit_together(learn, 2, .1)
    state = torch.Generator()
    state.set_state(learn.select_scale.state_dict()['generator'])
    assert learn.select_scale.acts_on and not torch.equal(
        state.get_state(),
        torch.Generator().manual_seed(learn.select_scale.start_seed + 1).get_state()), 'no drop has drawn'
    assert learn.cam_loss.started and learn.recorder.values[-1][3]>0, 'CAM-loss has not acted'
    if cam.start=='auto': assert cam.started=="since epoch 0, batch 0: 50.0% of an epoch's images right", cam.started
    assert (flat(learn.feature_mining.aux_heads) - start).abs().max() > 1e-3, 'the heads were not trained'
    assert_clean(learn)
    return flat(learn.model),flat(learn.feature_mining.aux_heads)

def teacher_and_mixup():
    "A teacher without exact CAM, whose answers are kept, beside MixUp"
    from conformance import AttentionTransfer, MixUp, assert_clean, tiny_learner, tiny_teacher
    learn = tiny_learner([AttentionTransfer(tiny_teacher(hidden=True), cache=True), MixUp()], n=64)
    start = flat(learn.model)
    fit_together(learn, 2, .1)
    assert (flat(learn.model) - start).abs().max() > 1e-3 and learn.recorder.values[-1][2] > 0
    assert_clean(learn)
    return flat(learn.model),flat(None)

def scenarios():
    "Name -> function that gives weights of the model and of heads"
    from conformance import CAMLoss, rows
    res = {'plain': partial(of_method, None)} | {row.name: partial(of_method, row) for row in rows() + rows(True)}
    return res | {'start by accuracy': lambda: four_methods(CAMLoss(latest=None)),
                  'gaps and MixUp': lambda: four_methods(CAMLoss(start=0, cam='grad_cam'), True, True),
                  'teacher and MixUp': teacher_and_mixup}


def work(out):
    "In one of the processes: run all scenarios, keep what they give or why they fail"
    import torch.distributed as dist, fastai.distributed as fd
    # fastai's calls .cuda()
    fd.DistributedDL._broadcast = lambda self, t, rank: (dist.broadcast(t := torch.as_tensor(t), rank), t.tolist())[1]
    for name,scenario in scenarios().items():
        file = Path(out)/f'{name} {os.environ["RANK"]}'
        try: torch.save(scenario(), file)
        except Exception:
            Path(f'{file}.error').write_text(traceback.format_exc())
            os._exit(1) # the other rank would wait for ever, and so would an orderly end


@lru_cache
def both():
    "The folder that both processes have written to"
    from tiny import new_folder
    out = new_folder()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    started = [subprocess.Popen([sys.executable, '-W', 'ignore', __file__, out],
                                env=dict(os.environ, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2',
                                         MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1',
                                         ACCELERATE_USE_CPU='true'))
               for r in range(2)]
    end = time.time() + 300
    while any(p.poll() is None for p in started):
        if any(p.poll() for p in started) or time.time()>end: [p.kill() for p in started]
        time.sleep(.2)
    return Path(out)

def results(name):
    "(model, heads) of each rank after a scenario"
    files = [both()/f'{name} {r}' for r in range(2)]
    errors = [p.read_text() for p in sorted(both().glob('*.error'))]
    if not all(f.exists() for f in files): raise AssertionError('\n'.join(errors) or f'{name} did not end in time')
    return [torch.load(f) for f in files]


if __name__=='__main__': work(sys.argv[1])
