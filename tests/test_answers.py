"""Networks that take something else than one batch of float images, or answer something else than logits (N,C): for
every method the same numbers as for the plain network where they must be, another run where it can be, or one declared
sentence"""
import logging, math
import pytest
from fastcore.test import test_close as assert_close
from tiny import *
from fastai_featreg.methods.blocks import AttentionCallback
import conformance
from fastai_featreg.heads import isolated_rng

N,BS,names = 32,8,list(conformance.entries)
no_term = [n for n in names if not conformance.adds_term(conformance.methods[n])]
blocks = [n for n in names if issubclass(conformance.methods[n], AttentionCallback)]
by_class = ['center_loss', 'l_softmax', 'sm_softmax'] # one class an image, of two at least
of_images = ['cutout', 'batch_mixup', 'batch_cutmix'] # they change what the network is given, and ask no more of it
of_answers = ['knowledge_distillation', 'cs_kd', 'sm_softmax'] # they ask for logits, of whatever network
on_maps = ['cam_loss', 'negative_cam', 'attention_transfer', 'ccm', 'cat_kd']
taught = [n for n in names if conformance.entries[n].teacher]
on_images = [n for n in names if n not in of_answers]
tapped = [n for n in on_images if n not in of_images]


class Net(nn.Module):
    "A small network; `prepare` is what it does to its input first, `answer` what it makes of its logits"
    def __init__(self, n_out=3, prepare=noop, answer=noop):
        super().__init__()
        conv = lambda c,stride: nn.Sequential(nn.Conv2d(c, 8, 3, stride, 1), nn.ReLU())
        self.body = nn.Sequential(conv(3, 1), conv(8, 2), conv(8, 2))
        self.pool,self.fc,self.prepare,self.answer = nn.AdaptiveAvgPool2d(1),nn.Linear(8, n_out),prepare,answer

    def forward(self, x): return self.answer(self.fc(self.pool(self.body(self.prepare(x))).flatten(1)))

class Answer(nn.Module):
    "A function as a module"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)

class TwoInputs(Net):
    def forward(self, x, more): return super().forward(x) + 0*more.mean()

class Scriptable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.pool,self.fc = nn.AdaptiveAvgPool2d(1),nn.Linear(8, 3)
    def forward(self, x): return self.fc(self.pool(self.body(x)).flatten(1))

def scripted_body():
    net = Scriptable()
    return nn.Sequential(torch.jit.script(net.body), nn.Sequential(net.pool, nn.Flatten(), net.fc))

def segmenter(): return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
def of_vectors(): return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
def of_volumes():
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3))


noise = torch.Generator().manual_seed(0)
x = torch.randn(N, 3, 16, 16, generator=noise)
y = torch.randint(0, 3, (N,), generator=noise)
several = (torch.rand(N, 3, generator=noise)>.5).float()
there = (torch.rand(N, generator=noise)>.5).float() # is the one class there?
values = torch.randn(N, 3, generator=noise)
pixels = torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=noise)
ce,bce = nn.CrossEntropyLoss(),nn.BCEWithLogitsLoss()
def share(x): return x.float()/255
def first_out(o): return o[:,0]
def own_loss(p, y): return -p.clamp(min=1e-9).log().gather(1, y[:,None]).mean()

# name -> network, inputs, targets, loss
nets = {
    'logits': (Net, x, y, ce),
    'CrossEntropyLossFlat': (Net, x, y, CrossEntropyLossFlat()),
    'one-hot targets': (Net, x, F.one_hot(y, 3).float(), ce),
    'targets (N,1)': (Net, x, y[:,None], CrossEntropyLossFlat()),
    'two targets': (Net, x, (y, there), lambda p,a,b: ce(p, a) + 0*b.mean()),
    'LogSoftmax, NLLLoss': (lambda: Net(answer=nn.LogSoftmax(1)), x, y, nn.NLLLoss()),
    'log_softmax, nll_loss': (lambda: Net(answer=partial(F.log_softmax, dim=1)), x, y, F.nll_loss),
    'LogSoftmax, CrossEntropyLoss': (lambda: Net(answer=nn.LogSoftmax(1)), x, y, ce),
    'Softmax, own loss': (lambda: Net(answer=nn.Softmax(1)), x, y, own_loss),
    'Softmax, CrossEntropyLoss': (lambda: Net(answer=nn.Softmax(1)), x, y, ce),
    'several labels': (Net, x, several, bce),
    'several labels, Sigmoid, BCELoss': (lambda: Net(answer=nn.Sigmoid()), x, several, nn.BCELoss()),
    'one output (N,1)': (lambda: Net(1), x, there[:,None], bce),
    'one output (N,1), targets (N,)': (lambda: Net(1), x, there, BCEWithLogitsLossFlat()),
    'one output (N,1), whole numbers (N,)': (lambda: Net(1), x, there.long(), BCEWithLogitsLossFlat()),
    'one output (N,)': (lambda: Net(1, answer=first_out), x, there, bce),
    'one output, Sigmoid, BCELoss': (lambda: Net(1, answer=nn.Sigmoid()), x, there[:,None], nn.BCELoss()),
    'numbers (N,3)': (Net, x, values, nn.MSELoss()),
    'numbers (N,1)': (lambda: Net(1), x, values[:,:1], MSELossFlat()),
    'numbers (N,)': (lambda: Net(1, answer=first_out), x, values[:,0], nn.SmoothL1Loss()),
    'classes by squares': (Net, x, F.one_hot(y, 3).float(), MSELossFlat()),
    'bytes': (lambda: Net(prepare=share), pixels, y, ce),
    'whole numbers': (lambda: Net(prepare=share), pixels.long(), y, ce),
    'shares of bytes': (Net, share(pixels), y, ce),
    'two inputs': (TwoInputs, (x, x[:,:1]), y, ce),
    'dictionary': (lambda: Net(answer=lambda o: dict(logits=o)), x, y, lambda p,y: ce(p['logits'], y)),
    'tuple': (lambda: Net(answer=lambda o: (o, o)), x, y, lambda p,y: ce(p[0], y)),
    'nested': (lambda: Net(answer=lambda o: dict(a=[dict(b=o)])), x, y, lambda p,y: ce(p['a'][0]['b'], y)),
    'answers (N,C,1,1)': (lambda: Net(answer=lambda o: o[...,None,None]), x, y, lambda p,y: ce(p.flatten(1), y)),
    'segmentation': (segmenter, x, torch.randint(0, 3, (N, 16, 16), generator=noise), ce),
    'vectors': (of_vectors, torch.randn(N, 12, generator=noise), y, ce),
    'volumes': (of_volumes, torch.randn(N, 1, 6, 6, 6, generator=noise), y, ce),
    'torch.fx': (lambda: torch.fx.symbolic_trace(Scriptable()), x, y, ce),
    'not torch.fx': (Scriptable, x, y, ce),
    'TorchScript': (lambda: torch.jit.script(Scriptable()), x, y, ce),
    'TorchScript, traced': (lambda: torch.jit.trace(Scriptable(), x[:BS]), x, y, ce),
    'TorchScript within': (scripted_body, x, y, ce),
}

# cells whose columns must be those of another network
by_softmax = ['feature_mining', *no_term, 'knowledge_distillation', 'mv_fea_aug', 'byot', 'cs_kd', *by_class]
same = {
    **dict.fromkeys(('CrossEntropyLossFlat', 'one-hot targets', 'targets (N,1)', 'two targets'), ('logits', names)),
    **dict.fromkeys(('LogSoftmax, NLLLoss', 'log_softmax, nll_loss', 'LogSoftmax, CrossEntropyLoss',
                     'Softmax, own loss'), ('logits', by_softmax)),
    'several labels, Sigmoid, BCELoss': ('several labels', [n for n in by_softmax if n not in ('cs_kd', *by_class)]),
    **dict.fromkeys(('one output (N,1), targets (N,)', 'one output (N,1), whole numbers (N,)', 'one output (N,)'),
                    ('one output (N,1)', [n for n in names if n not in ('negative_cam', 'mv_fea_aug', *by_class)])),
    'one output, Sigmoid, BCELoss': ('one output (N,1)', [n for n in by_softmax if n not in by_class]),
    'bytes': ('shares of bytes', [n for n in names if n!='mv_fea_aug']),
    'whole numbers': ('shares of bytes', [n for n in names if n!='mv_fea_aug']),
    **dict.fromkeys(('dictionary', 'tuple', 'nested'), ('logits', no_term)),
    'torch.fx': ('not torch.fx', [n for n in names if n!='mv_fea_aug']),
}

# cells that are refused, and by which words
two_parts,one_tensor = ('needs a network whose last part is both',
                        'the network must answer . images with one tensor .N,C.')
no_wrong_class,no_classes = ('there is no wrong class',
                             'the targets must be classes, got numbers for {}; a network that predicts numbers')
def numbers(loss): return dict.fromkeys([*on_maps, *taught, 'byot', 'cs_kd', *by_class], no_classes.format(loss))
def sm_numbers(loss): return {'sm_softmax': no_classes.format(loss)}
def but_no_term(why): return {n: why for n in names if n not in no_term}
two_classes = {'center_loss': 'must end in a linear layer of at least two classes, got one output',
               'l_softmax': 'must end in a linear layer of at least two classes, got one output',
               'sm_softmax': 'the network must have at least two outputs, got one'}
one_output = {'negative_cam': no_wrong_class} | two_classes
one_class = dict.fromkeys(by_class, 'targets and loss must be those of one class an image')
pairs = {'cs_kd': 'pairs: the training set must have one class an image'}
no_noise = dict.fromkeys(blocks, 'the model accepted no noise image') # they are put in before there is a batch
inexact = 'needs a head for which CAM is exact'
refused = {
    **dict.fromkeys(('LogSoftmax, NLLLoss', 'log_softmax, nll_loss', 'LogSoftmax, CrossEntropyLoss',
                     'Softmax, own loss', 'Softmax, CrossEntropyLoss'), {'cat_kd': inexact}),
    'several labels': one_class | pairs,
    'several labels, Sigmoid, BCELoss': one_class | pairs | {'cat_kd': inexact},
    **dict.fromkeys(('one output (N,1)', 'one output (N,1), targets (N,)', 'one output (N,1), whole numbers (N,)'),
                    one_output),
    'one output (N,)': one_output | {'mv_fea_aug': 'the head must answer with .N,C., .N,1. for one output'},
    'one output, Sigmoid, BCELoss': one_output | {'cat_kd': inexact},
    'numbers (N,3)': numbers('MSELoss'),
    'numbers (N,1)': numbers('MSELoss') | one_output | pairs | sm_numbers('MSELoss'),
    'classes by squares': one_class,
    'numbers (N,)': (numbers('SmoothL1Loss') | one_output | pairs | sm_numbers('SmoothL1Loss')
                     | {'mv_fea_aug': 'the head must answer with .N,C.'}),
    'bytes': {'mv_fea_aug': two_parts}, 'whole numbers': {'mv_fea_aug': two_parts}, # the network shown here is one part
    'two inputs': (dict.fromkeys(names, 'the network must have one input, a batch of images, got 2')
                   | no_noise | {'mv_fea_aug': two_parts}),
    **dict.fromkeys(('dictionary', 'tuple', 'nested'), but_no_term(one_tensor)),
    'answers (N,C,1,1)': dict.fromkeys([n for n in names if n not in of_images], one_tensor),
    'segmentation': (dict.fromkeys([n for n in names if n not in of_images], one_tensor) | pairs
                     | {'batch_cutmix': 'the targets must be of whole images', 'mv_fea_aug': two_parts}),
    'vectors': (dict.fromkeys(on_images, "the network's input must be images .N,C,H,W., got torch.float32 .8, 12.")
                | no_noise | {'mv_fea_aug': two_parts}),
    'volumes': (dict.fromkeys(on_images, "the network's input must be images .N,C,H,W., got torch.float32")
                | no_noise | {'mv_fea_aug': two_parts}),
    **{n: dict.fromkeys(tapped, 'the network is TorchScript') | {'mv_fea_aug': two_parts}
       for n in ('TorchScript', 'TorchScript, traced')},
    'TorchScript within': dict.fromkeys(tapped, "module '0' is TorchScript"),
    'torch.fx': {'mv_fea_aug': two_parts}, 'not torch.fx': {'mv_fea_aug': two_parts},
}


def in_two_parts(net):
    "The network as body and head, as `MVFeaAug` wants it; another one as it is"
    if type(net) is not Net or net.prepare is not noop: return net
    answer = net.answer if isinstance(net.answer, nn.Module) else Answer(net.answer)
    return nn.Sequential(net.body, nn.Sequential(net.pool, nn.Flatten(), net.fc, answer))

def columns_of(kind, name):
    "Row of an epoch, with the method; losses and columns of its own"
    make,xs,ys,loss = nets[kind]
    xs,ys = [o if isinstance(o, tuple) else (o,) for o in (xs, ys)]
    dls = DataLoaders(*[DataLoader(Pairs(zip(*xs, *ys)), bs=BS) for _ in range(2)])
    for dl in dls.loaders: dl.n_inp = len(xs)
    entry = conformance.entries[name]
    with isolated_rng(7): teacher = make()
    with isolated_rng(0): net = make()
    if name=='mv_fea_aug': net = in_two_parts(net)
    learn = Learner(dls, net, loss_func=loss, opt_func=SGD, lr=.05, splitter=lambda m: [list(m.parameters())])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    torch.manual_seed(0)
    own = dict(layers=None) if name=='sk' else {} # the conformance suite names a stage that is not in all of these
    cb = entry.make(teacher) if entry.teacher else entry.make(**own)
    learn.add_cb(cb)
    learn.fit(1)
    assert cb.report()['term_share']==1
    return [float(o) for o in learn.recorder.values[-1]]


@pytest.mark.parametrize('name', names)
@pytest.mark.parametrize('kind', nets)
def test_works_or_is_refused(kind, name):
    logging.disable(logging.WARNING) # a map of few positions
    why = refused.get(kind, {}).get(name)
    try:
        if why is None:
            row = columns_of(kind, name)
            assert all(map(math.isfinite, row)) and all(o>=0 for o in row), row
            other,methods = same.get(kind, (None, ()))
            # a mean of views' log-probabilities is none any longer
            own = slice(2, None) if name=='mv_fea_aug' else slice(None)
            if name in methods: assert_close(row[own], columns_of(other, name)[own], eps=1e-4)
        else:
            with pytest.raises(ValueError, match=why): columns_of(kind, name)
    finally: logging.disable(logging.NOTSET)

def test_the_tables_name_cells_that_are_there():
    for table in (same, {k: (k, v) for k,v in refused.items()}):
        for kind,(other,methods) in table.items():
            assert kind in nets and other in nets and set(methods)<=set(names), kind

@pytest.mark.parametrize('kind', ['LogSoftmax, NLLLoss', 'Softmax, own loss'])
def test_the_term_does_not_fall_below_zero(kind):
    "Raw logits in `nn.NLLLoss` are a term that falls for ever"
    make,xs,ys,loss = nets[kind]
    dls = DataLoaders(*[DataLoader(Pairs(zip(xs, ys)), bs=BS) for _ in range(2)])
    learn = Learner(dls, make(), loss_func=loss, opt_func=SGD, lr=.5, cbs=FeatureMining())
    with learn.no_bar(), learn.no_logging(): learn.fit(10)
    terms = [v[2] for v in learn.recorder.values]
    assert 0<terms[-1]<terms[0]
