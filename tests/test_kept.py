"What is kept from one look to the next, and what must not be: identities, forms of answers, sizes of tokens, hooks"
import importlib, subprocess, sys
import numpy as np, pytest, timm
from tiny import *
from fastai_featreg import anatomy
from fastai_featreg.comparison import fingerprints
from fastai_featreg.probe import untouched
from fastai_featreg.answers import class_scores
from fastai_featreg.methods.cam_loss import n_right


def sources_of(name): return fingerprints.module_sources(f'fastai_featreg.methods.{name}')

def test_an_edit_of_a_picture_trains_nothing_anew():
    for name in ('feature_mining', 'cam_loss', 'distill', 'drop', 'multiview'):
        known = {m.rpartition('.')[2] for m in sources_of(name)}
        assert not known & {'look', 'localise', 'compare', 'rows', 'fingerprints', 'folders'}, name
        assert {name, 'core', 'anatomy'} <= known

def test_an_edit_of_the_maps_is_seen(monkeypatch):
    before = fingerprints.source_id(CAMLoss)
    real = fingerprints.module_tree
    def edited(name):
        tree = real(name)
        if name.endswith('.maps'): tree.body.append(anatomy.math and fingerprints.ast.parse('x = 1').body[0])
        return tree
    monkeypatch.setattr(fingerprints, 'module_tree', edited)
    assert fingerprints.source_id(CAMLoss)!=before

def test_data_are_the_same_however_they_are_printed():
    dls = digits_dls(n_train=40, n_valid=20, size=24, bs=8)
    first = fingerprints.data_id(dls)
    torch.set_printoptions(precision=2)
    try: assert fingerprints.data_id(dls)==first
    finally: torch.set_printoptions(profile='default')
    norm = next(f for f in dls.train.after_batch.fs if isinstance(f, Normalize))
    norm.std = norm.std + 1e-5 # not seen in four digits
    assert fingerprints.data_id(dls)!=first

def test_one_output_under_a_loss_of_numbers():
    pred,y = tensor([.2, .1, .3, .9]),tensor([0., 0, 0, 1])
    assert n_right(class_scores(pred, 'values'), tensor([[0]]*4), y[:,None])==4
    assert n_right(class_scores(pred - .5, 'logits'), tensor([[0]]*4), y[:,None])==4

class Swap(Callback):
    "Puts another last layer into the network when the second epoch begins"
    def before_epoch(self):
        if self.epoch==1: self.learn.model[-1].append(nn.Softmax(1))

def test_a_swapped_head_has_another_form():
    learn = tiny_learner([CAMLoss(start=0), Swap()])
    learn.loss_func = lambda p,y: F.cross_entropy(p, y)
    forms = []
    class Note(Callback):
        order = 60
        def after_loss(self): forms.append(self.learn.cam_loss._fit.form)
    learn.add_cb(Note())
    learn.fit(2)
    assert forms[0]=='logits' and forms[-1]=='softmax'

def test_sizes_of_tokens_are_looked_for_once(monkeypatch):
    net = timm.create_model('vit_tiny_patch16_224', depth=1, img_size=64, dynamic_img_size=True)
    stages = get_anatomy(net, x=torch.zeros(1, 3, 64, 64)).find(1)
    looks,real = [],anatomy.get_anatomy
    monkeypatch.setattr(anatomy, 'get_anatomy', lambda *a, **k: looks.append(1) or real(*a, **k))
    for _ in range(3):
        for h,w in ((32, 128), (64, 64), (128, 32)):
            anatomy.lay_out(net, stages, torch.zeros(1, 3, h, w))
            assert stages[0].size==(h//16, w//16)
    assert len(looks)==2

def test_hooks_are_told_apart_by_one_walk(monkeypatch):
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    seen = []
    for m in net: m.register_forward_hook(lambda m,i,o: seen.append(m))
    walks,real = [],nn.Module.modules
    monkeypatch.setattr(nn.Module, 'modules', lambda self, *a: walks.append(1) or real(self, *a))
    with untouched(net): net(torch.zeros(1, 2))
    assert not seen and len(walks)<20

none_of_them = [{1, 2}, 3, 2.5, True, dict(a=1), [1., 2.], [True, False], torch.zeros(3), np.zeros(3), iter('abc')]

@pytest.mark.parametrize('x', none_of_them, ids=lambda o: type(o).__name__)
def test_no_images(x):
    from fastai_featreg.batches import batch_to_look_at
    with pytest.raises(ValueError, match='x must be a batch of images .N,C,H,W., a list of items, or positions'):
        batch_to_look_at(tiny_learner(), x)

def test_an_array_of_images_is_a_batch():
    from fastai_featreg.batches import batch_to_look_at
    assert len(batch_to_look_at(tiny_learner(), np.zeros((2, 3, 16, 16), np.float32)))==2

@pytest.mark.parametrize('row', [[8., 8, 4, 4], [float('nan')]*4, [0, 0, 0, 5.]])
def test_boxes_that_are_none(row):
    learn = tiny_learner()
    boxes = tensor([[0., 0, 8, 8]]).repeat(len(learn.dls.valid.dataset), 1)
    boxes[2] = tensor(row)
    with pytest.raises(ValueError, match='numbers with x0 < x1 and y0 < y1, got others, the first in row 2'):
        localisation(learn, boxes=boxes)


# ---- what a new user tried ----

def flat_answers():
    "A learner whose network answers (N,), one number an image"
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1),
                        nn.Flatten(0))
    x,y = torch.randn(16, 3, 16, 16),(torch.rand(16)>.5).float()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    return Learner(DataLoaders(dl, dl), net, loss_func=BCEWithLogitsLossFlat())

def test_pictures_of_one_number_an_image():
    learn = flat_answers()
    got = get_cams(learn)
    assert got.logits.shape==(8, 1) and got.maps.shape[0]==8
    boxes = tensor([[0., 0, 8, 8]]).repeat(16, 1)
    assert 0<=localisation(learn, boxes=boxes, target='predicted').loc['cam', 'pointing_game']<=1

class Named(nn.Module):
    "Answers with a dictionary"
    def __init__(self):
        super().__init__()
        self.net = tiny_model()
    def forward(self, x): return dict(logits=self.net(x))

@pytest.mark.parametrize('call, said', [
    (lambda: body_head(Named()), "got dict of 'logits'"),
    (lambda: get_cams(tiny_model()), 'learn must be a Learner'),
    (lambda: show_mining(tiny_model()), 'learn must be a Learner'),
    (lambda: show_drops(torch.rand(1, 8, 4, 4), {'a': SelectScale()}), 'a callback is shown by its module'),
    (lambda: show_drops(torch.rand(1, 8, 4, 4), [SelectScale()]), 'drops must be a dictionary')],
    ids=['a dictionary', 'cams of a network', 'mining of a network', 'drops by callback', 'a list of drops'])
def test_one_sentence(call, said):
    with pytest.raises(ValueError, match=said): call()


# ---- modules by the names that they had

def run_python(*args):
    return subprocess.run([sys.executable, '-W', 'ignore', *args], capture_output=True, text=True, timeout=300)

def test_a_module_runs_by_the_name_that_it_had():
    "`python -m`, which takes code of the finder, as by the name that it has now"
    old,new = [run_python('-m', f'fastai_featreg.{name}') for name in ('rows', 'comparison.rows')]
    assert (old.returncode, old.stdout)==(new.returncode, new.stdout)==(0, ''), old.stderr

def test_a_file_of_an_old_name_is_itself(tmp_path, monkeypatch):
    "The finder stands first, but not before a module that is there"
    import fastai_featreg
    finder = next(o for o in sys.meta_path if type(o).__name__=='Moved')
    assert finder.find_spec('fastai_featreg.rows').loader is finder
    assert finder.find_spec('fastai_featreg.data') is None
    monkeypatch.setattr(fastai_featreg, '__file__', str(tmp_path/'__init__.py'))
    (tmp_path/'rows.py').write_text('')
    (tmp_path/'plan').mkdir()
    (tmp_path/'plan'/'__init__.py').write_text('')
    (tmp_path/'methods').mkdir()
    assert finder.find_spec('fastai_featreg.rows') is None and finder.find_spec('fastai_featreg.plan') is None
    assert finder.find_spec('fastai_featreg.report').loader is finder


@pytest.mark.parametrize('module, names', [
    ('data', 'ArrayDL BoxedImage'), ('distill', '_Given KnowledgeDistillation'), ('feature_mining', 'FeatureMining'),
    ('multiview', 'MultiViewHead Ensemble PrototypeClassifier MVFeaAug'), ('drop', 'SelectScale'),
    ('cam_loss', 'CAMLoss')])
def test_learners_exported_before_classes_moved(module, names):
    "A pickle looks for a class in the module it once had"
    for name in names.split(): assert hasattr(importlib.import_module(f'fastai_featreg.{module}'), name)

@pytest.mark.parametrize('module, names', [
    ('maps', 'cam caam minmax grad_cam grad_cam_pp'), ('feature_mining', 'box_mask mined_pool'),
    ('cam_loss', 'cam_loss'), ('drop', 'top_channels spatial_scale select_scale spatial_dropout selectout drop_block'),
    ('distill', 'kd_loss at_loss ccm_loss cat_loss dkd_loss dist_loss standardise open_teacher'),
    ('multiview', 'ada_cam anchors local_pool view_boxes view_weights'),
    ('compare', 'compare summarise verdicts parse_methods find_arch known_methods read_results write_row'),
    ('data', 'digits_dls digit_scenes folder_dls get_boxes show_boxes')])
def test_functions_are_found_in_the_module_of_their_method(module, names):
    given = importlib.import_module(f'fastai_featreg.{module}').__all__
    assert set(names.split())<=set(given)
