"Two processes with gloo, each with its own part of the data: heads and model end equal on both"
import os, socket, subprocess, sys, textwrap
from pathlib import Path
import pytest, torch

script = '''
    import sys
    sys.path.insert(0, {tests!r})
    import torch, torch.distributed as dist
    from fastai.distributed import *
    import fastai.distributed as fd
    import os, fastai_featreg.cam_loss
    from fastai_featreg.cam_loss import RunningAccuracy
    from tiny import *
    fd.DistributedDL._broadcast = lambda self, t, rank: (dist.broadcast(t := tensor(t), rank), t.tolist())[1] # fastai's calls .cuda()
    learn = tiny_learner([FeatureMining(2), SelectScale(retain=0.), {cam}, NegativeCAM(cam='grad_cam')], n=64)
    if {mixup}: learn.add_cb(MixUp())
    rank = int(os.environ["RANK"])
    if {auto}: fastai_featreg.cam_loss.n_right = lambda pred, classes, weights: len(pred)*(1 - rank) # all right on one rank, none on the other: half, and a little more
    if {auto}: RunningAccuracy.add = lambda self, right, n, add=RunningAccuracy.add: (lambda share: share and share + .01)(add(self, right, n))
    term = FeatureMining.loss_term
    if {gaps}: FeatureMining.loss_term = lambda self, maps: None if self.learn.iter==int(os.environ["RANK"]) else term(self, maps) # each rank has a batch without a term
    torch.manual_seed(int(os.environ["RANK"])) # what a rank draws by itself differs
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        learn.fit(1, 0.)
        start = torch.cat([p.detach().flatten().clone() for p in learn.feature_mining.aux_heads.parameters()])
        learn.fit(2, 0.1)
    heads = torch.cat([p.detach().flatten() for p in learn.feature_mining.aux_heads.parameters()])
    model = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    state = torch.Generator()
    state.set_state(learn.select_scale.state_dict()["generator"])
    assert learn.select_scale.acts_on and not torch.equal(state.get_state(), torch.Generator().manual_seed(learn.select_scale.start_seed + 1).get_state()), "no drop has drawn"
    assert learn.cam_loss.started and learn.recorder.values[-1][3]>0, "CAM-loss has not acted"
    assert (heads - start).abs().max() > 1e-3, "the heads were not trained"
    torch.save((heads, model), {out!r} + "/" + os.environ["RANK"] + ".pt")
    assert_clean(learn)
'''


@pytest.mark.parametrize('mixup,gaps,cam', [(False, False, 'CAMLoss()'), (True, True, "CAMLoss(start=0, cam='grad_cam')")])
def test_two_ranks_end_equal(tmp_path, mixup, gaps, cam):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = textwrap.dedent(script).format(tests=str(Path(__file__).parent), out=str(tmp_path), mixup=mixup, gaps=gaps, cam=cam, auto=cam=='CAMLoss()')
    ranks = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], env=dict(os.environ, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
             MASTER_PORT=str(port), OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true'), stderr=subprocess.PIPE, text=True) for r in range(2)]
    errors = [p.communicate(timeout=240)[1] for p in ranks]
    assert all(p.returncode==0 for p in ranks), '\n'.join(errors)
    (heads0,model0),(heads1,model1) = (torch.load(tmp_path/f'{r}.pt') for r in range(2))
    assert torch.equal(heads0, heads1), 'the heads differ between the ranks'
    assert torch.equal(model0, model1), 'the models differ between the ranks'
