"""Which callback works on which network: every registered method, two training batches of noise on every
architecture of the list below.

    python benchmarks/backbones.py                       # what nbs/results/backbones.csv does not know yet
    python benchmarks/backbones.py --archs resnet18,vit_tiny_patch16_224 --methods cam_loss --out some.csv

A cell is a fit of two batches and a validation, and more is asked than that nothing is raised: losses and gradients are
finite, the term stands in the table, the weights are others than after plain training, and nothing is left behind. Its
status is one of

    works              as it should be
    works by Grad-CAM  class maps come from Grad-CAM, because CAM is not exact; `why` says why
    works in two parts of `body_head(model)`, because the method replaces the head, and the network pools inside its own
                       forward
    refused            the library raised a `ValueError`, `why`, and had changed nothing
    fails              anything else; a cell that failed is tried again at the next start

Networks are random, as small as their family has them, and see small images. Rows are written one by one: an
interrupted run goes on where it stopped, and a new method adds its cells.
"""
import argparse,gc,re,sys,time,traceback
from copy import deepcopy
from functools import lru_cache,partial
from pathlib import Path
from typing import NamedTuple
import pandas as pd, timm, torch, torchvision
from fastai.vision.all import (Callback,CrossEntropyLossFlat,DataLoaders,Learner,SGD,create_timm_model,
                               create_vision_model,set_seed,vision_learner)
from fastprogress import progress_bar
import fastai_featreg.all as featreg
from fastai_featreg import nets
from fastai_featreg.comparison.plan import needs_teacher
from fastai_featreg.core import card_of,methods
from fastai_featreg.methods import own_methods

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'tests'))
from tiny import assert_clean

N_OUT,BATCH = 10,2


class Arch(NamedTuple):
    "A network of the list"
    library: str # where it comes from: a row of `builders`
    name: str # there
    px: int # side of the images
    kwargs: dict # of its constructor

    @property
    def label(self) -> str:
        "Name in the table"
        return f'vision_learner({self.name})' if self.library=='fastai' else self.name


def torchvision_net(name: str, **kwargs) -> torch.nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=N_OUT, **kwargs)

def timm_net(name: str, **kwargs) -> torch.nn.Module: return timm.create_model(name, num_classes=N_OUT, **kwargs)

def cifar_net(name: str, **kwargs) -> torch.nn.Module: return getattr(nets, name)(n_out=N_OUT, **kwargs)

def fastai_arch(name: str):
    "What `vision_learner` is given: a function of torchvision, or else a name of timm"
    return getattr(torchvision.models, name, name)

def fastai_net(name: str) -> torch.nn.Module:
    "What `vision_learner` makes: body and head"
    arch = fastai_arch(name)
    return (create_timm_model(arch, N_OUT, pretrained=False)[0] if isinstance(arch, str)
            else create_vision_model(arch, N_OUT, pretrained=False))

builders = {'torchvision': torchvision_net, 'timm': timm_net, 'featreg.nets': cifar_net, 'fastai': fastai_net}


def listed(library: str, names: str, px: int = 64, **kwargs) -> list[Arch]:
    "Entries that share size and arguments"
    return [Arch(library, n, px, kwargs) for n in names.split()]


ARCHS = [
    *listed('torchvision',
            'resnet18 densenet121 vgg11_bn squeezenet1_1 mobilenet_v2 mobilenet_v3_small mnasnet0_5 '
            'shufflenet_v2_x0_5 efficientnet_b0'),
    *listed('torchvision', 'googlenet', aux_logits=False, init_weights=False),
    *listed('timm',
            'resnet10t resnext26ts legacy_seresnet18 resnest14d skresnet18 regnetx_002 nf_regnet_b0 repvgg_a0 '
            'legacy_xception darknet17 dla46_c hrnet_w18_small ese_vovnet19b_slim_dw hgnetv2_b0'),
    *listed('timm',
            'mobilenetv3_small_050 mobilenetv4_conv_small_050 tf_efficientnetv2_b0 mixnet_s tinynet_e lcnet_035 '
            'ghostnet_050 rexnet_100 convnext_atto mambaout_femto'),
    *listed('timm', 'poolformer_s12 pvt_v2_b0 repvit_m0_9 fastvit_t8 edgenext_xx_small mobilevit_xxs efficientvit_b0'),
    *listed('timm',
            'botnet26t_256 coatnet_pico_rw_224 maxvit_rmlp_pico_rw_256 vit_tiny_patch16_224 deit_tiny_patch16_224 '
            'deit_tiny_distilled_patch16_224 mixer_s32_224', img_size=64),
    *listed('timm', 'swin_tiny_patch4_window7_224', img_size=64, window_size=2),
    *listed('timm', 'beit_base_patch16_224', img_size=64, depth=2, embed_dim=192, num_heads=3),
    *listed('timm', 'levit_128s', px=224),
    *listed('featreg.nets', 'resnet20', px=32),
    *listed('featreg.nets', 'wide_resnet', px=32, depth=10, k=2),
    *listed('featreg.nets', 'cifar_preact_resnet', px=32, depth=29),
    *listed('featreg.nets', 'cifar_resnext', px=32, depth=11, cardinality=4, base=16),
    *listed('featreg.nets', 'cifar_densenet', px=32, depth=22),
    *listed('featreg.nets', 'pyramidnet', px=32, depth=20, alpha=48),
    *listed('fastai', 'resnet18 mobilenetv3_small_050 convnext_atto')]
# run by default in the tests
SAMPLE = ['resnet18', 'mobilenetv3_small_050', 'convnext_atto', 'vit_tiny_patch16_224', 'resnet20',
          'vision_learner(resnet18)']


def find_archs(labels: list[str] | None = None) -> list[Arch]:
    "Entries of the list by their labels; None takes all"
    known = {a.label: a for a in ARCHS}
    unknown = [n for n in labels or [] if n not in known]
    if unknown: raise ValueError(f"there is no architecture {unknown[0]!r}; the list has {', '.join(known)}")
    return [known[n] for n in labels or known]


@lru_cache(maxsize=2)
def network(library: str, name: str, kwargs: tuple, seed: int) -> torch.nn.Module:
    "A network, made once; copy it before training"
    set_seed(seed)
    return builders[library](name, **dict(kwargs))

def copy_of(arch: Arch, seed: int = 0) -> torch.nn.Module:
    "A fresh network, the same for the same seed"
    return deepcopy(network(arch.library, arch.name, tuple(arch.kwargs.items()), seed))


SETTINGS = {'drop_block': dict(p=.75)} # of two images' maps of 2x2 or 4x4 the default often drops no block


def make_callback(arch: Arch, method: str) -> featreg.FeatureCallback:
    "The method, with its defaults but for what makes it act at once; its teacher is a twin of the network"
    cls = methods[method]
    twin = [copy_of(arch, seed=1)] if needs_teacher(cls) else []
    return cls(*twin, **card_of(method).quick | SETTINGS.get(method, {}))


def make_learner(arch: Arch, cbs: list, parted: bool = False) -> Learner:
    "A learner with two batches of noise to train on and one to validate; its network as it is, or in two parts"
    set_seed(0)
    pairs = list(zip(torch.randn(2*BATCH, 3, arch.px, arch.px), torch.randint(0, N_OUT, (2*BATCH,))))
    dls = DataLoaders.from_dsets(pairs, pairs[:BATCH], bs=BATCH, device='cpu', num_workers=0)
    kwargs = dict(loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), cbs=cbs)
    if arch.library!='fastai':
        return Learner(dls, featreg.body_head(copy_of(arch)) if parted else copy_of(arch), **kwargs)
    learn = vision_learner(dls, fastai_arch(arch.name), pretrained=False, n_out=N_OUT, normalize=False, **kwargs)
    learn.model.load_state_dict(copy_of(arch).state_dict(), strict=False) # a head with views has a layer of its own
    return learn


class Watch(Callback):
    "After every backward pass: is the loss finite, are there gradients, are they finite, in auxiliary heads too?"
    order = 80
    def after_backward(self):
        assert self.learn.loss_grad.isfinite(), 'the loss is not finite'
        heads = [h for cb in self.learn.cbs if isinstance(cb, featreg.FeatureCallback)
                 and (h := cb.aux_heads) is not None]
        for h in heads: assert all(p.grad is not None for p in h.parameters()), 'a parameter of a head got no gradient'
        grads = [p.grad for m in (self.learn.model, *heads) for p in m.parameters() if p.grad is not None]
        assert grads, 'there are no gradients'
        assert all(g.isfinite().all() for g in grads), 'a gradient is not finite'


def weights(learn: Learner) -> dict:
    "Parameters and buffers of the network, copied"
    return {k: v.clone() for k,v in learn.model.state_dict().items()}

def same(a: dict, b: dict) -> bool:
    "Are two sets of weights equal, to the last bit?"
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def fitted(arch: Arch, cbs: list) -> Learner:
    "A learner that is made and fitted"
    learn = make_learner(arch, cbs)
    fit(learn)
    return learn

def fit(learn: Learner):
    "Two batches and a validation, in silence"
    set_seed(0)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

@lru_cache(maxsize=1)
def plain_weights(library: str, name: str) -> dict:
    "Weights after plain training of an architecture"
    return weights(fitted(next(a for a in ARCHS if (a.library, a.name)==(library, name)), [Watch()]))


@lru_cache(maxsize=1)
def described(library: str, name: str) -> dict:
    "Parameters (millions), size of the map that is pooled and why CAM is not exact"
    arch = next(a for a in ARCHS if (a.library, a.name)==(library, name))
    model = copy_of(arch)
    row = dict(params=round(sum(p.numel() for p in model.parameters())/1e6, 2), map='', cam_why='')
    try: anatomy = featreg.get_anatomy(model, size=arch.px)
    except ValueError: return row
    return row | dict(map='x'.join(map(str, anatomy.stages[-1].size)), cam_why=anatomy.cam_why)


def from_library(e: Exception) -> bool:
    "Was it a sentence of this library?"
    raised_in = Path(traceback.extract_tb(e.__traceback__)[-1].filename)
    return type(e) is ValueError and Path(featreg.__file__).parent in raised_in.parents


def sentence(e: Exception) -> str:
    "What it says, without what fastai puts in front"
    return re.sub(r'^Exception occured in .*? when calling event `\w+`:\s*', '', str(e))


def begun(arch: Arch, cb: featreg.FeatureCallback) -> tuple[Learner, bool]:
    "A learner with the callback, and whether its network had to be parted for it"
    try: return make_learner(arch, [cb, Watch()]),False
    except ValueError as e:
        if 'body_head(model)' not in str(e): raise
    return make_learner(arch, [cb, Watch()], parted=True),True


def train(arch: Arch, method: str) -> tuple[str, str]:
    "Status and reason of a cell; raises if it fails"
    plain,cb = plain_weights(arch.library, arch.name),make_callback(arch, method)
    try: learn,parted = begun(arch, cb)
    except ValueError as e:
        if not from_library(e): raise
        return 'refused',sentence(e)
    before = weights(learn)
    try: fit(learn)
    except ValueError as e:
        if not from_library(e): raise
        assert_clean(learn)
        assert same(before, weights(learn)), f'refused after a step: {e}'
        return 'refused',sentence(e)
    assert_clean(learn)
    assert not same(plain, weights(learn)), 'the weights are those of plain training'
    log = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert all(map(pd.notna, log.values())), f'not finite: {log}'
    assert all(c in log for c in cb.columns), f'no column {cb.columns}'
    if parted: return 'works in two parts',"the network pools inside its own forward; trained as body_head(model)"
    by_grad_cam = 'grad_cam' in (getattr(cb, 'method', None), getattr(cb, 'teacher_method', None))
    return ('works by Grad-CAM',described(arch.library, arch.name)['cam_why']) if by_grad_cam else ('works','')


def run_cell(arch: Arch, method: str) -> dict:
    "A row of the table"
    start = time.process_time()
    try: status,why = train(arch, method)
    except Exception as e: status,why = 'fails',f'{type(e).__name__}: {sentence(e)}'
    about = described(arch.library, arch.name)
    return dict(arch=arch.label, library=arch.library, px=arch.px, params=about['params'], map=about['map'],
                method=method, status=status, why=' '.join(why.split()),
                seconds=round(time.process_time() - start, 2))


def known_rows(path: Path) -> pd.DataFrame:
    "Rows of earlier runs that need not be run again"
    if not path.exists(): return pd.DataFrame(columns=['arch', 'method'])
    df = pd.read_csv(path, keep_default_na=False)
    return df[df.status!='fails']


def run(archs: list[Arch], names: list[str], path: Path) -> pd.DataFrame:
    "Run the cells that `path` does not know, write them there one by one, put them in order"
    df = known_rows(path)
    done = set(zip(df.arch, df.method))
    if len(df): df.to_csv(path, index=False)
    elif path.exists(): path.unlink()
    todo = [(a, m) for a in archs for m in names if (a.label, m) not in done]
    for arch,method in (bar := progress_bar(todo)):
        bar.comment = f'{arch.label}: {method}'
        gc.collect() # a fitted learner is a knot of references
        pd.DataFrame([run_cell(arch, method)]).to_csv(path, mode='a', header=not path.exists(), index=False)
    df = pd.read_csv(path, keep_default_na=False)
    ranks = {a.label: i for i,a in enumerate(ARCHS)},{m: i for i,m in enumerate(own_methods())}
    df = df.sort_values(['arch', 'method'], key=lambda o: o.map(ranks[o.name=='method']))
    df.to_csv(path, index=False)
    return df


def main():
    "Run, write, count"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--archs', help='labels, separated by commas; left out: all')
    p.add_argument('--methods', help='registered names, separated by commas; left out: all')
    p.add_argument('--out', type=Path, default=root/'nbs/results/backbones.csv')
    args = p.parse_args()
    df = run(find_archs(args.archs and args.archs.split(',')),
             args.methods.split(',') if args.methods else list(own_methods()), args.out)
    print(df.groupby('method', sort=False).status.value_counts().unstack(fill_value=0))
    for _,r in df[df.status=='fails'].iterrows(): print(f'{r.arch}, {r.method}: {r.why}')


if __name__ == '__main__': main()
