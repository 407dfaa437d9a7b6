"A teacher's file: what it may hold, what is run when it is opened, and what its images are"
import os, pickle, re, sys
import pytest, timm, torchvision
from safetensors.torch import save_file
from fastai_featreg.comparison import plan
from fastai_featreg.methods import teachers
from fastai_featreg.archs import heads,known_archs,make_learner
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.methods.teachers import *
from grammar import in_grammar
from tiny import *

for name in [o for o in globals() if o.startswith('test')]: del globals()[name]
module = sys.modules['fastai_featreg.comparison.compare']


class Bomb:
    "Leaves a file behind when it is opened"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

@pytest.fixture(autouse=True)
def nothing_was_announced(): teachers._announced.clear()

def sentence(f, why):
    with pytest.raises(ValueError) as e: f()
    text = str(e.value)
    assert '\n' not in text and text.isprintable() and len(text)<700 and re.search(why, text), text
    assert in_grammar(text), text
    return text

def answers(net, n_in=3):
    with torch.no_grad(): return deepcopy(net).eval()(torch.randn(2, n_in, 64, 64,
                                                                  generator=torch.Generator().manual_seed(1)))


# ---- weights: no code is run, the network is found from the keys ----

@pytest.fixture(scope='module')
def dls(): return digits_dls(n_train=16, n_valid=10, bs=8)

def own_nets():
    return {'torchvision': ('resnet18', lambda: torchvision.models.resnet18(num_classes=7), 3),
            'timm': ('test_resnet', lambda: timm.create_model('test_resnet', num_classes=7), 3),
            'timm, grey': ('test_resnet', lambda: timm.create_model('test_resnet', num_classes=7, in_chans=1), 1),
            'timm of a name that torchvision has': ('efficientnet_b0',
                                                    lambda: timm.create_model('efficientnet_b0', num_classes=7), 3),
            'a conv as classifier': ('squeezenet1_1', lambda: torchvision.models.squeezenet1_1(num_classes=7), 3),
            'net of the papers': ('resnet20', lambda: known_archs()['resnet20'](n_out=7), 3),
            'xresnet': ('xresnet18', lambda: known_archs()['xresnet18'](n_out=7), 3)}

@pytest.mark.parametrize('which', own_nets())
def test_weights_of_a_network_with_its_own_classifier(which, tmp_path):
    arch,make,n_in = own_nets()[which]
    net = make()
    torch.save(net.state_dict(), tmp_path/'a.pth')
    state = torch.get_rng_state()
    assert torch.equal(answers(open_teacher(tmp_path/'a.pth', arch), n_in), answers(net, n_in))
    assert torch.equal(state, torch.get_rng_state()), 'building the network has drawn from the generator'

@pytest.mark.parametrize('head', heads)
@pytest.mark.parametrize('arch', ['test_resnet', 'resnet18', 'resnet20', 'resnet20-1'])
def test_weights_of_a_network_of_the_comparison(dls, head, arch, tmp_path):
    net = make_learner(dls, arch, head=head).model
    torch.save(net.state_dict(), tmp_path/'a.pth')
    assert torch.equal(answers(open_teacher(tmp_path/'a.pth', arch)), answers(net))

dresses = {
    'state_dict': lambda sd, p: torch.save(sd, p),
    'old format': lambda sd, p: torch.save(sd, p, _use_new_zipfile_serialization=False),
    'model': lambda sd, p: torch.save({'model': sd, 'opt': {'lr': .1}, 'epoch': 3}, p),
    'state_dict and model': lambda sd, p: torch.save({'state_dict': {'model': sd}}, p),
    'DDP': lambda sd, p: torch.save({f'module.{k}': v for k,v in sd.items()}, p),
    'compiled DDP': lambda sd, p: torch.save({'state_dict': {f'module._orig_mod.{k}': v for k,v in sd.items()}}, p),
    'without counts of batches': lambda sd, p: torch.save({k: v for k,v in sd.items() if 'num_batches' not in k}, p),
    'safetensors': lambda sd, p: save_file(sd, p)}

@pytest.mark.parametrize('dress', dresses)
def test_weights_in_every_dress(dress, tmp_path, capsys):
    net = timm.create_model('test_resnet', num_classes=7)
    dresses[dress](net.state_dict(), tmp_path/'a.file') # told by the content, not by the name
    assert torch.equal(answers(open_teacher(tmp_path/'a.file', 'test_resnet')), answers(net))
    assert capsys.readouterr().out==''

@pytest.mark.parametrize('with_opt', [True, False])
def test_what_learn_save_writes(dls, with_opt, tmp_path, capsys):
    learn = make_learner(dls, 'test_resnet', head='gap')
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    capsys.readouterr()
    got = open_teacher(learn.save('a', with_opt=with_opt), 'test_resnet')
    assert torch.equal(answers(got), answers(learn.model.cpu())) and capsys.readouterr().out==''

def test_weights_teach_as_their_network_does(tmp_path):
    net = timm.create_model('test_resnet', num_classes=10)
    torch.save(net.state_dict(), tmp_path/'a.pth')
    def run(cb):
        learn = tiny_learner(cb)
        learn.fit(1, 1e-2)
        return weights(learn)
    cb = CCM(tmp_path/'a.pth', teacher_arch='test_resnet')
    assert_same(run(CCM(net)), run(cb))
    assert repr(cb).startswith(f"CCM(teacher='{tmp_path}/a.pth', teacher_arch='test_resnet')  # the teacher's maps by ")

def changed(sd, drop=(), add=(), grow=()):
    kept = {k: torch.cat([v, v]) if k in grow else v for k,v in sd.items() if k not in drop}
    return kept | {k: torch.ones(2) for k in add}

misfits = [('resnet18', dict(drop=['conv1.weight']), r"1 missing \(first 'conv1.weight'\)"),
           ('resnet18', dict(add=['neck.weight', 'neck.bias']), r"2 unexpected \(first 'neck.weight'\)"),
           ('resnet18', dict(grow=['layer2.0.bn1.bias']),
            r"1 misshaped \(first 'layer2.0.bn1.bias' is \(256,\), not \(128,\)\)"),
           ('resnet34', {}, r"do not fit 'resnet34'.*missing \(first 'layer1.2.conv1.weight'\)"),
           ('resnet18-1', {}, 'do not fit'), ('vit_tiny_patch16_224', {}, "timm's classifier")]

@pytest.mark.parametrize('arch,change,why', misfits)
def test_weights_that_do_not_fit(arch, change, why, tmp_path):
    torch.save(changed(torchvision.models.resnet18(num_classes=7).state_dict(), **change), tmp_path/'a.pth')
    assert 'teacher_arch' in sentence(lambda: open_teacher(tmp_path/'a.pth', arch), why)

nothing = {'a list': [1, 2], 'a tensor': torch.ones(2), 'no weights': {'lr': .1},
           'numbers as names': {1: torch.ones(1)}, 'empty': {}, 'deep': {'model': {'lr': 1}}}

@pytest.mark.parametrize('what', nothing)
@pytest.mark.parametrize('arch', ['resnet18', None])
def test_what_is_no_weights(what, arch, tmp_path):
    torch.save(nothing[what], tmp_path/'a.pth')
    sentence(lambda: open_teacher(tmp_path/'a.pth', arch), "^teacher: '.*a.pth' holds ")

@pytest.mark.parametrize('arch,why',
                         [('resnt18', "did you mean 'resnet18'"), ('', 'teacher_arch must be'),
                          (3, 'teacher_arch must be'), ('x'*5000, 'unknown architecture')])
def test_names_of_networks(arch, why, tmp_path):
    torch.save({}, tmp_path/'a.pth')
    sentence(lambda: CCM(tmp_path/'a.pth', teacher_arch=arch), why)
    sentence(lambda: CCM(tiny_teacher(), teacher_arch='resnet18'), 'leave teacher_arch out')


# ---- code: one line before, none with an architecture, none at all in what nobody wrote ----

def test_one_line_before_code_runs(tmp_path, capsys):
    torch.save(tiny_teacher(), tmp_path/'net.pt')
    open_teacher(tmp_path/'net.pt')
    assert capsys.readouterr().out==f"opening '{tmp_path}/net.pt' runs the code in it\n"
    open_teacher(tmp_path/'net.pt')
    assert capsys.readouterr().out=='', 'told once'

def test_the_line_is_there_when_the_code_begins(tmp_path, capsys):
    class Loud:
        def __reduce__(self): return print, ('code runs',)
    torch.save(Loud(), tmp_path/'a.pt')
    sentence(lambda: open_teacher(tmp_path/'a.pt'), 'holds a NoneType')
    assert capsys.readouterr().out==f"opening '{tmp_path}/a.pt' runs the code in it\ncode runs\n"

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: {'model': o}, lambda o: {'state_dict': {'fc.weight': o}}])
def test_no_code_runs_with_an_architecture(wrap, tmp_path, capsys):
    torch.save(wrap(Bomb(tmp_path/'boom')), tmp_path/'a.pt')
    sentence(lambda: open_teacher(tmp_path/'a.pt', 'resnet18'), 'no code of a file is run')
    assert not (tmp_path/'boom').exists() and capsys.readouterr().out==''
    try: open_teacher(tmp_path/'a.pt')
    except ValueError: pass
    assert (tmp_path/'boom').exists(), 'the file would have run code'

written = {'text': b'no network', 'empty': b'', 'zeros': bytes(100), 'a zip': b'PK\x03\x04' + bytes(50),
           'a pickle that is cut': pickle.dumps([1]*9)[:5],
           'protocol 0': b"cos\nmkdir\n(S'boom'\ntR.", 'a header too long': b'\xff'*7 + b'\x00{}',
           'no json': (9).to_bytes(8, 'little') + b'{no json}'}

@pytest.mark.parametrize('what', written)
def test_files_that_hold_nothing(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.pt').write_bytes(written[what])
    for arch in (None, 'resnet18'): sentence(partial(open_teacher, 'a.pt', arch), "teacher: 'a.pt'")
    assert not (tmp_path/'boom').exists()

nowhere = {'': 'is a folder', '.': 'is a folder', '\x00': 'there is no file', 'none.pt': 'there is no file',
           'x'*5000: 'File name too long', 'none.pt#12345678': 'there is no file',
           '~nobody-is-called-so/a': 'there is no file', 'a\nb': 'there is no file'}

@pytest.mark.parametrize('path,why', nowhere.items())
def test_paths_that_lead_nowhere(path, why): sentence(lambda: CCM(path), why)

@pytest.mark.skipif(os.geteuid()==0, reason='root may read everything')
def test_a_file_that_may_not_be_read(tmp_path):
    torch.save({}, tmp_path/'a.pt')
    (tmp_path/'a.pt').chmod(0)
    sentence(lambda: open_teacher(tmp_path/'a.pt'), 'Permission denied')


# ---- marks ----

def test_a_file_is_hashed_once_at_the_parse_and_checked_whenever_it_is_opened(tmp_path, monkeypatch):
    torch.save(tiny_teacher(), tmp_path/'a.pt')
    reads,real = [],Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda self: (reads.append(self), real(self))[1])
    (_,_),(label,make),(_,other) = parse_methods('ccm,KnowledgeDistillation', teacher=tmp_path/'a.pt')
    assert reads==[tmp_path/'a.pt'] and re.fullmatch(r"CCM\(teacher='.*/a.pt#[0-9a-f]{8}'\)", label)
    (cb,),(other,) = make(),other()
    tiny_learner(cb, n=16).fit(1) # as it was: opened
    torch.save(Bomb(tmp_path/'boom'), tmp_path/'a.pt')
    for late in (other, make()[0]):
        with pytest.raises(ValueError, match='has changed since it was marked'): tiny_learner(late, n=16).fit(1)
    assert not (tmp_path/'boom').exists()

def test_a_label_reads_back_while_the_file_is_the_same(tmp_path):
    torch.save(tiny_teacher(), tmp_path/'a.pt')
    label = parse_methods('ccm', teacher=tmp_path/'a.pt')[1][0]
    (again,make), = parse_methods(label)[1:]
    assert again==label
    assert isinstance(open_teacher(make()[0].teacher), nn.Module)
    torch.save(tiny_teacher(6), tmp_path/'a.pt')
    sentence(lambda: open_teacher(make()[0].teacher), 'has changed')
    assert parse_methods('ccm', teacher=tmp_path/'a.pt')[1][0]!=label

def test_a_callback_with_a_file_is_a_method(tmp_path):
    torch.save(tiny_teacher(), tmp_path/'a.pt')
    for cb in (CCM(tmp_path/'a.pt', tau=2.), CCM(marked(tmp_path/'a.pt'), tau=2.)):
        label = parse_methods(plan.as_text([cb]))[1][0]
        assert re.fullmatch(r"CCM\(teacher='.*/a.pt#[0-9a-f]{8}', tau=2.0\)", label), label

def test_the_architecture_goes_to_those_who_have_a_teacher(tmp_path, capsys):
    torch.save({}, tmp_path/'a.pt')
    labels = [label for label,_ in parse_methods('mixup,ccm,CATKD(size=3)', teacher=tmp_path/'a.pt',
                                                 teacher_arch='resnet18')]
    assert ["teacher_arch='resnet18'" in label for label in labels]==[False, False, True, True]
    rc = main(['compare', '--methods', 'ccm', '--teacher', str(tmp_path/'a.pt'), '--teacher-arch', 'resnt18', '--out',
               str(tmp_path/'out')])
    assert rc==2 and "did you mean 'resnet18'" in capsys.readouterr().err

def test_a_comparison_by_weights(tmp_path, dls, capsys):
    net = make_learner(dls, 'test_resnet', head='linear').model
    save_file(net.state_dict(), tmp_path/'a.safetensors')
    small = dict(arch='test_resnet', size=64, bs=8, n_train=16, n_valid=10, epochs=1, seeds=1, pretrained=False,
                 say=noop, bars=False)
    df = module.compare(methods='ccm', teacher=tmp_path/'a.safetensors', teacher_arch='test_resnet',
                        out=tmp_path/'out', **small)
    assert (df.error=='').all() and "teacher_arch='test_resnet'" in df.method.iloc[1]
    assert 'runs the code' not in capsys.readouterr().out


# ---- normalised once ----

class Own(nn.Module):
    "A network that normalises its images itself, and notes what it gets to see"
    def __init__(self, mean, std, names=('mean', 'std')):
        super().__init__()
        for k,v in zip(names, (mean, std)): self.register_buffer(k, tensor(v).view(1, -1, 1, 1))
        self.net,self.names,self.seen = tiny_teacher(),names,[]
    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net((x - getattr(self, self.names[0]))/getattr(self, self.names[1]))

class Seen(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net,self.seen = net,[]
    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)

student_stats = ([.4, .5, .6], [.2, .3, .25])

def seen_by(teacher, stats=student_stats, find=lambda cb: cb.guide.net, **kwargs):
    "What the teacher sees in the first batch, the images before normalisation, and the callback"
    learn = tiny_learner(cb := KnowledgeDistillation(teacher, **kwargs), n=8)
    images = torch.stack([x for x,_ in learn.dls.train.dataset]).sigmoid()
    learn.dls.train.dataset[:] = [(TensorImage(x), y) for x,(_,y) in zip(images, learn.dls.train.dataset)]
    learn.dls.train.shuffle = False
    if stats: learn.dls.train.after_batch.add(Normalize.from_stats(*stats, cuda=False))
    got = []
    class Look(Callback):
        order = 6
        def after_loss(self):
            if self.training: got.append(find(cb).seen[-1])
    learn.add_cb(Look())
    learn.fit(1)
    return got[0],images,cb

@pytest.mark.parametrize('names', [('mean', 'std'), ('pixel_mean', 'pixel_std')])
def test_a_network_that_normalises_itself_gets_plain_images(names, caplog):
    got,images,cb = seen_by(Own(*imagenet_stats, names))
    assert torch.allclose(got, images, atol=1e-5)
    assert 'normalises its images itself (mean (0.485, 0.456, 0.406)' in caplog.text
    assert 'normalises its images itself' in cb.report()['note']

def test_one_that_counts_to_255_gets_such_images(caplog):
    got,images,_ = seen_by(Own([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]))
    assert torch.allclose(got, 255*images, atol=1e-2) and 'images from 0 to 255' in caplog.text

def test_a_normalising_first_module_is_named(caplog):
    net = nn.Sequential(OrderedDict(norm=torchvision.transforms.Normalize(*imagenet_stats), net=Seen(tiny_teacher())))
    got,images,_ = seen_by(net, find=lambda cb: cb.guide.net.net)
    mean,std = [tensor(o).view(1, -1, 1, 1) for o in imagenet_stats]
    assert torch.allclose(got, (images - mean)/std, atol=1e-4), 'normalised once, in its own way'
    assert "by its module 'norm'" in caplog.text

@pytest.mark.parametrize('stats', [None, student_stats])
def test_nothing_is_said_where_nothing_is_to_be_said(stats, caplog):
    mean,std = [tensor(o).view(1, -1, 1, 1) for o in student_stats]
    got,images,cb = seen_by(Seen(tiny_teacher()), stats)
    assert torch.allclose(got, (images - mean)/std if stats else images, atol=1e-5) and not caplog.text and not cb.idle
    got,images,_ = seen_by(Own(*imagenet_stats), None) # the student's images are plain already
    assert torch.allclose(got, images) and not caplog.text

def test_what_is_given_is_what_counts(caplog):
    got,images,_ = seen_by(Own(*imagenet_stats), teacher_stats=student_stats)
    mean,std = [tensor(o).view(1, -1, 1, 1) for o in student_stats]
    assert torch.allclose(got, (images - mean)/std, atol=1e-5) and not caplog.text

def test_settings_of_timm_are_compared(caplog):
    net = timm.create_model('test_resnet', num_classes=10)
    learn = tiny_learner(KnowledgeDistillation(net), n=8)
    cfg = net.pretrained_cfg
    learn.dls.train.after_batch.add(Normalize.from_stats([.1, .2, .3], [.4, .5, .6], cuda=False))
    for x,_ in learn.dls.train.dataset: x.clamp_(0, 1)
    learn.dls.train.dataset[:] = [(TensorImage(x), y) for x,y in learn.dls.train.dataset]
    learn.fit(1)
    assert 'pretrained_cfg' in caplog.text and '(0.1, 0.2, 0.3)' in caplog.text
    caplog.clear()
    assert own_images(net, (tensor(cfg['mean']), tensor(cfg['std'])))[1]==''

def test_the_recipe_beside_a_file_says_what_its_images_were(tmp_path, caplog):
    torch.save(Seen(tiny_teacher()), file := tmp_path/'net.pth')
    (mean,std),sentence = [tensor(o).view(1, -1, 1, 1) for o in student_stats],"no recipe.toml beside '"
    for _ in range(2): got,images,cb = seen_by(file)
    assert torch.allclose(got, (images - mean)/std, atol=1e-5) and not cb.idle
    assert caplog.text.count(sentence)==1 and 'mean (0.4, 0.5, 0.6) and std (0.2, 0.3, 0.25)' in caplog.text
    caplog.clear()
    (tmp_path/'recipe.toml').write_text('[images]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n')
    for stats in (student_stats, None):
        got,images,_ = seen_by(marked(file), stats)
        assert torch.allclose(got, (images - .5)/.25, atol=1e-4)
    got,images,_ = seen_by(file, teacher_stats=([0.]*3, [1.]*3))
    assert torch.allclose(got, images, atol=1e-5), 'what is given is what counts'
    assert sentence not in caplog.text

class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean,self.std = 0.,.1
    def forward(self, x): return x

@pytest.mark.parametrize('net',
                         [nn.BatchNorm2d(3), nn.Sequential(Noise(), tiny_teacher()),
                          nn.Sequential(tiny_teacher(), torchvision.transforms.Normalize([.5]*3, [.2]*3)),
                                 timm.create_model('test_resnet'), torchvision.models.resnet18()])
def test_what_does_not_normalise_its_images(net): assert own_normalisation(net) is None
