"What cannot work is refused in one sentence, before any training step, and nothing has changed"
import inspect, random, re
from functools import partial
import pytest
from fastai_featreg.methods.cam_loss import negative_cam_loss
from fastai_featreg.core import methods, register_method
from grammar import in_grammar
from tiny import *
from fastai_featreg.methods.cam_loss import cam_loss
from fastai_featreg.methods.distill_losses import at_loss, cat_loss, ccm_loss, dkd_loss, kd_loss
from fastai_featreg.methods.drop import DropCallback
from fastai_featreg.methods.drop_effects import dropped_errors
from fastai_featreg.methods.drop_functions import SelectDrop2d, select_drop, select_scale, selectout, spatial_dropout
from fastai_featreg.methods.drop_functions import top_channels
from fastai_featreg.methods.feature_mining import box_mask, mined_pool, point_mask
from fastai_featreg.maps import caam, caam_cam_distance, cam, grad_cam, minmax

nan,inf = float('nan'),float('inf')
teachers = dict(
    knowledge_distillation=KnowledgeDistillation,
    attention_transfer=AttentionTransfer,
    ccm=CCM,
    cat_kd=CATKD,
)
cases = lambda d: dict(argvalues=list(d.values()), ids=list(d))


def sentence(e, why):
    "The text of an error, without fastai's line about the event; it is one sentence, and says `why`"
    text = re.sub(r'^Exception occured in .*:\n\t', '', str(e.value))
    assert '\n' not in text and re.search(why, text), text
    assert in_grammar(text) or not isinstance(e.value, ValueError), text
    return text


# ---- arguments: refused when the callback is made ----

arguments = {
    'layers 0': (lambda: SelectScale(layers=0), 'layers must be'),
    'layers None': (lambda: SelectScale(layers=None), 'layers must be'),
    'layers []': (lambda: SelectScale(layers=[]), 'layers must be'),
    'layers True': (lambda: FeatureMining(True), 'layers must be a number of last stages'),
    'layers 1.5': (lambda: FeatureMining(1.5), 'layers must be'),
    'layers -1': (lambda: FeatureMining(-1), r'\[-1\] is the last'),
    'mask': (lambda: FeatureMining(mask=None), "mask must be 'box'"),
    'complementary': (lambda: FeatureMining(complementary='no'), 'complementary must be True or False'),
    'weight None': (lambda: FeatureMining(weight=None), 'weight must be a finite number or a function'),
    'weight nan': (lambda: FeatureMining(weight=nan), 'weight must be'),
    "weight '1'": (lambda: NegativeCAM(weight='1'), 'weight must be'),
    'weight tensor': (lambda: FeatureMining(weight=torch.tensor(1.)), 'weight must be'),
    'seed a': (lambda: FeatureMining(seed='a'), 'seed must be a whole number'),
    'seed 1.': (lambda: FeatureMining(seed=1.), 'seed must be'),
    'seed 2**70': (lambda: FeatureMining(seed=2**70), 'less than 62 bits'),
    'seed True': (lambda: FeatureMining(seed=True), 'seed must be'),
    'top_rate 1.5': (lambda: SelectScale(top_rate=1.5), 'top_rate must be'),
    'retain -1': (lambda: SelectScale(retain=-1), 'retain must be'),
    "retain '0.2'": (lambda: SelectScale(retain='0.2'), 'retain must be'),
    'retain nan': (lambda: SelectScale(retain=nan), 'retain must be a number from 0 to 1, got nan'),
    'retain tensor': (lambda: SpatialScale(retain=torch.tensor(.5)), 'retain must be'),
    'score median': (lambda: SelectScale(score='median'), "score must be one of 'max'.*or a function.*got 'median'"),
    'score None': (lambda: Selectout(score=None), 'score must be'),
    'score []': (lambda: SelectDrop2d(nn.Dropout(.1), score=[]), 'score must be'),
    'score 1': (lambda: SelectScale.cifar(score=1), 'score must be'),
    'recipe rate': (lambda: SelectScale.cifar(top_rate=2), 'top_rate must be'),
    'recipe retain': (lambda: SelectScale.imagenet(retain='a'), 'retain must be'),
    'candidates': (lambda: Selectout(.1, .8), 'raise p or top_rate'),
    'p 2': (lambda: FeatureDropout(2), 'p must be'),
    'p True': (lambda: SpatialDropout(True), 'p must be'),
    'p inf': (lambda: DropBlock(inf), 'p must be'),
    'block_size 0': (lambda: DropBlock(block_size=0), 'block_size must be a whole number'),
    'block_size True': (lambda: DropBlock(block_size=True), 'block_size'),
    'block_size 7.': (lambda: DropBlock(block_size=7.), 'block_size'),
    'strength 2': (lambda: SelectScale(strength=2), 'strength must be'),
    'strength (1, -1)': (lambda: SelectScale(strength=(1, -1)), 'strength must be'),
    'curriculum .5': (lambda: SelectScale(curriculum=.5), 'curriculum must be'),
    'curriculum linear': (lambda: SelectScale(curriculum='linear'), 'curriculum must be True, False or a function'),
    'no drop': (lambda: DropCallback(), 'define `drop'),
    'c nan': (lambda: CAMLoss(c=nan), 'c must be'),
    "c '3'": (lambda: CAMLoss(c='3'), 'c must be'),
    'start soon': (lambda: CAMLoss(start='soon'), 'start must be'),
    'start 1.5': (lambda: CAMLoss(start=1.5), 'start must be'),
    'start -1': (lambda: CAMLoss(start=-1), 'start must be'),
    'start True': (lambda: CAMLoss(start=True), 'start must be'),
    'start None': (lambda: CAMLoss(start=None), "'auto', an epoch"),
    'cam gradcam': (lambda: CAMLoss(cam='gradcam'), 'cam must be'),
    'cam []': (lambda: CAMLoss(cam=[]), 'cam must be'),
    'distance l3': (lambda: CAMLoss(distance='l3'), 'distance must be'),
    'c tensor': (lambda: CAMLoss(c=torch.tensor(3.)), 'c must be'),
    'c True': (lambda: CAMLoss(c=True), 'c must be'),
    'latest auto': (lambda: CAMLoss(latest='auto'), 'latest must be an epoch .* or None'),
    'latest 1.': (lambda: CAMLoss(latest=1.), 'latest must be'),
    'latest -1': (lambda: CAMLoss(latest=-1), 'latest must be'),
    'latest True': (lambda: CAMLoss(latest=True), 'latest must be'),
    'mode flat': (lambda: NegativeCAM(mode='flat'), "mode must be 'zero' or 'uniform'"),
    'k 0': (lambda: NegativeCAM(k=0), 'k must be'),
    'k 1.5': (lambda: NegativeCAM(k=1.5), 'k must be'),
    'beta 2': (lambda: CCM(tiny_teacher(), beta=2), 'beta must be a number from 0 to 1'),
    'beta nan': (lambda: CCM(tiny_teacher(), beta=nan), 'beta must be'),
    'gamma -1': (lambda: CCM(tiny_teacher(), gamma=-1), 'gamma must be'),
    'tau 0': (lambda: CCM(tiny_teacher(), tau=0), 'tau must be'),
    'tau None': (lambda: CCM(tiny_teacher(), tau=None), 'tau must be'),
    'loss x': (lambda: CCM(tiny_teacher(), loss='x'), "loss must be one of 'kd'"),
    'loss []': (lambda: CCM(tiny_teacher(), loss=[]), 'loss must be'),
    'teacher_stats (1,)': (lambda: CCM(tiny_teacher(), teacher_stats=(1,)), r'teacher_stats must be \(mean, std\)'),
    'teacher_stats words': (lambda: CCM(tiny_teacher(), teacher_stats=('a', 'b')), 'teacher_stats must be'),
    'teacher_stats std 0': (lambda: CCM(tiny_teacher(), teacher_stats=([.5]*3, [0.]*3)), 'standard deviations above 0'),
    'cache no': (lambda: CCM(tiny_teacher(), cache='no'), 'cache must be True or False'),
    'size 0': (lambda: CATKD(tiny_teacher(), size=0), 'size must be'),
    'positions max': (lambda: CCM(tiny_teacher(), positions='max'), "CCM: positions must be 'mean' or 'sum'"),
    'positions None': (lambda: AttentionTransfer(tiny_teacher(), positions=None), 'positions must be'),
    'taught distance l3': (lambda: AttentionTransfer(tiny_teacher(), distance='l3'), "distance must be 'l1' or 'l2'"),
    'per_class 1': (lambda: KnowledgeDistillation(tiny_teacher(), per_class=1), 'per_class must be True or False'),
    'per_class None': (lambda: CATKD(tiny_teacher(), per_class=None), 'per_class must be True or False'),
    'per_class of dkd': (lambda: CCM(tiny_teacher(), loss='dkd', per_class=True), "not that of loss='dkd'; leave"),
    'per_class of binary': (lambda: CCM(tiny_teacher(), loss='binary', per_class=True), 'leave per_class out'),
    'per_class of a function': (lambda: CCM(tiny_teacher(), loss=kd_loss, per_class=True), 'leave per_class out'),
    'views 0': (lambda: MVFeaAug(k=0), 'k must be a whole number'),
    'views 2.': (lambda: MVFeaAug(k=2.), 'k must be'),
    'even side': (lambda: MVFeaAug(sizes=(3, 4)), 'sizes must be odd'),
    'no sides': (lambda: MVFeaAug(sizes=()), 'sizes must be'),
    'reduction': (lambda: MVFeaAug(local_reduction='max'), "local_reduction must be 'mean'"),
    'global_weight': (lambda: MVFeaAug(global_weight=nan), 'global_weight must be'),
    'classifier': (lambda: MVFeaAug(classifier='cosine'), "classifier must be one of 'linear'"),
    'register no class': (lambda: register_method('x')(3), 'Callback class'),
    'register twice': (lambda: register_method('ccm')(FeatureMining), 'choose another name'),
    'layers {}': (lambda: FeatureMining({}), 'layers must be'),
    'layers [None]': (lambda: FeatureMining([None]), 'layers must be'),
    'layers tensor': (lambda: FeatureMining(torch.ones(2)), 'layers must be'),
    "layers ''": (lambda: FeatureMining(''), 'layers must be'),
    'layers [1.]': (lambda: FeatureMining([1.]), 'layers must be a number of last stages'),
    "layers ['']": (lambda: BYOT(['']), 'layers must be'),
    'layers of a block': (lambda: CBAM(layers=-1), 'CBAM: layers must be'),
    'layers a function': (lambda: FeatureMining(layers=len), 'layers must be'),
    'weight -1': (lambda: CenterLoss(weight=-1), 'CenterLoss: weight must be at least 0, got -1; '),
    'weight True': (lambda: CSKD(weight=True), 'weight must be a finite number'),
    'c -1': (lambda: CAMLoss(c=-1), 'CAMLoss: c must be a number of at least 0, got -1'),
    'margin 100': (lambda: LSoftmax(margin=100), 'LSoftmax: margin must be a number from 1 to 10, got 100'),
    'margin 1e9': (lambda: SMSoftmax(margin=1e9), 'margin must be a number from 0 to 100'),
    'strength ()': (lambda: SelectScale(strength=()), 'strength must be a number from 0 to 1, or one for each'),
    'state garbage': (lambda: FeatureMining().load_state_dict({'a': 1}), 'state must be what `state_dict`'),
    'state None': (lambda: CAMLoss().load_state_dict(None), 'state must be'),
    'state list': (lambda: SelectScale().load_state_dict([1]), 'state must be'),
}

@pytest.mark.parametrize('make,why', **cases(arguments))
def test_arguments(make, why):
    draws = torch.get_rng_state(),random.getstate(),np.random.get_state()[2]
    with pytest.raises(ValueError) as e: make()
    sentence(e, why)
    assert torch.equal(draws[0], torch.get_rng_state()) and draws[1:]==(random.getstate(), np.random.get_state()[2])


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Things that are no teacher"
    path = tmp_path_factory.mktemp('files')
    (path/'empty.pkl').write_bytes(b'')
    (path/'garbage.pkl').write_bytes(b'hello world'*10)
    torch.save(tiny_teacher().state_dict(), path/'weights.pt')
    torch.save([1, 2], path/'list.pt')
    (path/'closed.pkl').write_bytes(b'x')
    return path

@pytest.mark.parametrize('teacher', [
    None, 3, nn.Linear, dict(a=torch.ones(1)), 'no_such_file.pkl', Path('.'), torch.ones(3)])
@pytest.mark.parametrize('make', **cases(teachers))
def test_what_is_no_teacher(make, teacher):
    with pytest.raises(ValueError) as e: make(teacher)
    sentence(e, 'teacher.*(network|file)')

def test_a_closed_file_is_no_teacher(files):
    with open(files/'closed.pkl', 'rb') as f: pass
    with pytest.raises(ValueError) as e: CCM(f)
    sentence(e, 'teacher must be a network')

@pytest.mark.parametrize('make', [
    partial(FeatureMining, layer=1),
    partial(StochDepth, p=.5),
    partial(SE, r=1),
    partial(CutOut, side=1),
    partial(SelectScale, curiculum=True),
    partial(CAMLoss, strt=0),
    partial(NegativeCAM, K=1),
] + [partial(t, tiny_teacher(), gama=1) for t in teachers.values()] + [partial(CATKD, tiny_teacher(), cam='auto')])
def test_a_misspelt_argument_is_named(make):
    with pytest.raises(TypeError) as e: make()
    # the class that was typed, not the base whose constructor it has
    sentence(e, f"^{make.func.__name__}: there is no keyword argument '{first(make.keywords)}'; its arguments are ")

@pytest.mark.parametrize('make', **cases(teachers))
def test_a_teacher_must_be_given(make):
    with pytest.raises(TypeError) as e: make()
    sentence(e, "'teacher'")


# ---- layers: refused when the callback meets its learner ----

def takes_layers(cls): return 'layers' in inspect.signature(cls.__init__).parameters

@pytest.mark.parametrize('cls', [c for c in methods.values() if takes_layers(c)])
@pytest.mark.parametrize('layers', [['nosuch'], 'nosuch', (0, 'nosuch')])
def test_a_layer_that_the_network_has_not(cls, layers):
    learn = tiny_learner()
    before = weights(learn)
    with pytest.raises(ValueError) as e: learn.add_cb(cls(layers=layers))
    sentence(e, "layers: the model has no module 'nosuch'; did you mean .*get_anatomy")
    assert not any(isinstance(cb, cls) for cb in learn.cbs)
    assert_same(before, weights(learn))

@pytest.mark.parametrize('layers', ['2.0', ['0.1', -1]])
def test_a_layer_by_the_end_of_its_name(layers):
    tiny_learner(FeatureMining(layers=layers))

def test_words_for_layers():
    "A text that one class takes is a wrong name for another, and misspelt it is one too"
    for cb in (SelectScale(layers='al'), StochDepth(layers='all'), FeatureMining('branches')):
        with pytest.raises(ValueError) as e: tiny_learner(cb)
        sentence(e, f"no module '{cb.layers}'")
    tiny_learner([SelectScale(layers='all'), StochDepth(layers='branches')])

def test_more_exits_than_stages():
    learn = tiny_learner(BYOT(layers=10))
    with pytest.raises(ValueError) as e: learn.fit(1)
    sentence(e, 'BYOT: layers must be at most 2 here.*got 10; leave it out')
    tiny_learner(BYOT()).fit(1) # the default takes what there is


# ---- learners: refused in the first batch ----

class Answers(nn.Module):
    "A network whose answer is no tensor"
    def __init__(self, wrap):
        super().__init__()
        self.net,self.wrap = tiny_model(),wrap
    def forward(self, x): return self.wrap(self.net(x))

mlp = lambda n_in=3*16*16: nn.Sequential(nn.Flatten(), nn.Linear(n_in, 10))
one_position = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1),
                                     nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
hidden = lambda: tiny_teacher(hidden=True)
all_into_norms = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8),
                                       nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 10))
one_hot = lambda y: F.one_hot(y, 10).float()
binary = lambda cb: learner(cb, y=one_hot, loss=BCEWithLogitsLossFlat())

def learner(cb, model=None, x=noop, y=noop, loss=None, **kwargs):
    "A tiny learner of another network, other images or other targets"
    learn = tiny_learner(cb, **dict(n=16, metrics=accuracy) | kwargs)
    if model is not None: learn.model,learn.splitter = model,trainable_params
    for dl in learn.dls: dl.dataset[:] = [(x(a), y(b)) for a,b in dl.dataset]
    if loss is not None: learn.loss_func,learn.metrics = loss,[]
    return learn

def with_state(cb, other):
    "A callback that has been given the state of another one"
    learn = learner(other)
    learn.fit(1)
    cb.load_state_dict(other.state_dict())
    return cb

in_a_fit = {
    'layers 99': (lambda: learner(FeatureMining(99)), 'from 1 to 3 in this model'),
    'layers [9]': (lambda: learner(FeatureMining([9])), 'there is no stage 9'),
    'layers [-9]': (lambda: learner(FeatureMining([-9])), 'there is no stage -9'),
    'foreign module': (lambda: learner(FeatureMining(nn.Conv2d(3, 3, 1))), 'not a module of the model'),
    'given twice': (lambda: learner(FeatureMining([-1, -1])), 'given twice'),
    'a linear layer': (lambda: learner(FeatureMining(['1.3'])), 'gives no spatial map'),
    'drop layers 9': (lambda: learner(SelectScale(layers=9)), 'from 1 to 3'),
    'no layer chosen': (lambda: learner(SelectScale(layers=lambda n, m: False)), 'no layer of the network'),
    'nowhere to act': (lambda: learner(SelectScale(layers='all'), all_into_norms()),
        r'no layer of the network.*\(2 run into a BatchNorm\)'),
    'ambiguous name': (lambda: learner(SelectScale(layers='2')),
        "'2' is the end of 4 names, '0.0.2'.*give more of the name"),
    'three strengths': (lambda: learner(SelectScale(strength=(1, 1, 1))), 'one for each'),
    'curriculum above 1': (lambda: learner(SelectScale(curriculum=lambda p: 2*p + 2)), 'curriculum after'),
    'curriculum None': (lambda: learner(SelectScale(curriculum=lambda p: None)), 'curriculum after'),
    'c schedule nan': (lambda: learner(CAMLoss(c=lambda p: nan, start=0)), r'c\(0\) must be a finite number, got nan'),
    'c schedule word': (lambda: learner(CAMLoss(c=lambda p: 'a', start=0)), r'c\(0\) must be a finite number'),
    'weight schedule word': (lambda: learner(FeatureMining(weight=lambda p: 'a')),
        'weight must give a finite number.*0% of training'),
    'weight schedule None': (lambda: learner(NegativeCAM(weight=lambda p: None)), 'weight must give'),
    'weight schedule nan': (lambda: learner(FeatureMining(weight=lambda p: nan)), 'weight must give'),
    'beta schedule': (lambda: learner(CCM(tiny_teacher(), beta=lambda p: 2.)), 'after 0% of training: beta must be'),
    'tau schedule': (lambda: learner(CCM(tiny_teacher(), tau=lambda p: 0)), 'tau must be'),
    'state of other layers': (lambda: learner(with_state(FeatureMining(2), FeatureMining(1))),
        'heads for other layers or classes'),
    'mining without maps': (lambda: learner(FeatureMining(), mlp()), 'spatial map'),
    'drop without maps': (lambda: learner(SelectScale(), mlp()), 'spatial map'),
    'CAM-loss without maps': (lambda: learner(CAMLoss(start=0), mlp()), 'spatial map'),
    'NegativeCAM without maps': (lambda: learner(NegativeCAM(), mlp()), 'spatial map'),
    'student without maps': (lambda: learner(CCM(tiny_teacher()), mlp()), 'spatial map'),
    'teacher without maps': (lambda: learner(CCM(mlp())), 'teacher: no module of the model gives a spatial map'),
    'teacher gives a dictionary': (lambda: learner(KnowledgeDistillation(Answers(lambda o: {'logits': o}))), 'logits'),
    'teacher gives a dictionary of maps': (lambda: learner(CCM(Answers(lambda o: {'logits': o}))), 'logits'),
    'one channel': (lambda: learner(FeatureMining(), x=lambda x: x[:1]), 'the model accepted no noise image.*channels'),
    'one channel, taught': (lambda: learner(KnowledgeDistillation(tiny_teacher()), x=lambda x: x[:1]),
        "student's images"),
    'no channels': (lambda: learner(FeatureMining(), x=lambda x: x[0]), 'images .N,C,H,W.'),
    'images are vectors': (lambda: learner(SelectScale(), mlp(), x=torch.flatten), 'images .N,C,H,W.'),
    "cam='cam', hidden layer": (lambda: learner(CAMLoss(start=0, cam='cam'), hidden()), 'CAM is exact'),
    "teacher's cam='cam', hidden layer": (lambda: learner(CCM(hidden(), cam='cam')), 'exact'),
    'CAT-KD, hidden layer': (lambda: learner(CATKD(hidden())), 'exact'),
    'CAT-KD, student with a hidden layer': (lambda: learner(CATKD(tiny_teacher()), hidden()), 'CAM is exact'),
    'teacher of vectors': (lambda: learner(CCM(nn.Linear(2, 2))), "student's images"),
    'stats of two channels': (lambda: learner(CCM(tiny_teacher(), teacher_stats=([.5, .5], [1., 1.]))),
        "student's images"),
    'its own teacher': (lambda: (lambda m: learner(KnowledgeDistillation(m), m))(tiny_model()), 'give a copy'),
    'two teachers': (lambda: learner([CCM(tiny_teacher()), KnowledgeDistillation(tiny_teacher())]), 'beta=1'),
    'softmax under BCE': (lambda: binary(KnowledgeDistillation(tiny_teacher(), loss='dkd')),
        "loss='kd', which is binary"),
    'per_class under BCE': (lambda: binary(CCM(tiny_teacher(), per_class=True)),
        'mean over the classes already; leave'),
}
in_a_fit |= {f'teacher file {name}': (lambda name=name: learner(CCM(files_at(name))), why) for name,why in {
    'empty.pkl': 'cannot be opened',
    'garbage.pkl': 'cannot be opened',
    'weights.pt': 'weights without a network',
    'list.pt': 'holds a list',
}.items()}

# these need a map of the first batch: its forward pass has moved BatchNorm's statistics, as any does, and no step
# follows
behind_the_forward_pass = {
    'dictionary': (lambda: learner(FeatureMining(), Answers(lambda o: {'logits': o})),
        "got dict of 'logits'; wrap it in a module"),
    'two answers': (lambda: learner(FeatureMining(), Answers(lambda o: (o, o))),
        'got tuple of 2; wrap it in a module'),
    'dictionary, taught': (lambda: learner(KnowledgeDistillation(tiny_teacher()), Answers(lambda o: {'logits': o})),
        "got dict of 'logits'"),
    'nine classes': (lambda: learner(KnowledgeDistillation(tiny_teacher(n_out=9))),
        'teacher knows 9 classes, the student 10'),
    'nine classes, with maps': (lambda: learner(CCM(tiny_teacher(n_out=9))), 'same classes'),
    'one position': (lambda: learner(FeatureMining(['1.0'])), "layer '1.0' has one position only.*layers="),
    'drop gives nothing': (lambda: learner(type('Nothing', (DropCallback,), dict(drop=lambda self, f, s: None))()),
        'drop must give'),
    'score function': (lambda: learner(SelectScale(score=lambda f: f.mean())),
        'score must give one number for each image and channel'),
    'drop gives half': (lambda: learner(type('Half', (DropCallback,), dict(drop=lambda self, f, s: f[:,:,::2]))()),
        'drop must give'),
    'loss gives nothing': (lambda: learner(KnowledgeDistillation(tiny_teacher(), loss=lambda s, t, tau: None)),
        'loss must give a scalar'),
    'loss gives one an image': (
        lambda: learner(KnowledgeDistillation(tiny_teacher(), loss=lambda s, t, tau: (s - t)**2)), 'loss must give'),
    'not run': (lambda: learner(FeatureMining(['0.2']), Skips()), "'0.2' was not run"),
}

class Skips(nn.Module):
    "Runs its last block in evaluation mode only"
    def __init__(self):
        super().__init__()
        m = tiny_model()
        self.add_module('0', m[0]), self.add_module('1', m[1])
    def forward(self, x):
        body,head = self.children()
        x = body[1](body[0](x))
        return head(x.repeat(1, 2, 1, 1)) if self.training else head(body[2](x))

files_path = []
def files_at(name): return files_path[0]/name

def picture(learn, running=True):
    "All that a refusal must leave as it was"
    model = learn.model
    return dict(weights={k: v.clone() for k,v in model.state_dict().items()
                         if running or not re.search('running|num_batches', k)}), dict(
        modules=[type(m) for m in model.modules()],
        flags=[m.training for m in model.modules()],
        learns=[p.requires_grad for p in model.parameters()],
        grads=[p.grad is None for p in model.parameters()],
        hooks=[len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        metrics=list(learn.metrics),
        loss=learn.loss_func,
        optimiser=[[id(p) for p in g] for g in learn.opt.param_lists],
        states={id(p): dict(state) for p,state in learn.opt.state.items()},
        loaders=[id(dl) for dl in learn.dls],
        given={k for k in learn.__dict__ if k in ('_do_epoch_train', 'lr_finder')})

class StopHere(Callback):
    "What any error in the first batch leaves behind"
    order = 5
    def before_batch(self): raise ValueError('here')

def refused(learn, why, running=True):
    """A fit is refused, nothing is changed, no more random numbers are drawn than before any error in the first batch,
    and without the callback it trains"""
    cbs = [cb for cb in learn.cbs if isinstance(cb, LossCallback)]
    learn.create_opt()
    w,before = picture(learn, running)
    set_seed(3)
    with pytest.raises(ValueError) as e: learn.fit(1)
    text,draws = sentence(e, why),(torch.rand(1), random.random(), np.random.rand())
    after_w,after = picture(learn, running)
    assert_same(w['weights'], after_w['weights'])
    assert {k for k in before if before[k]!=after[k]}==set()
    assert_clean(learn)
    learn.remove_cbs(cbs)
    learn.add_cb(StopHere())
    if running: # who comes as far as dropout draws for it
        set_seed(3)
        with pytest.raises(ValueError, match='here'): learn.fit(1)
        assert draws==(torch.rand(1), random.random(), np.random.rand()), 'a global random generator has moved'
    learn.remove_cb(StopHere)
    return text

def trains(learn):
    "A fit ends, and moves the weights"
    before = weights(learn)
    learn.fit(1)
    assert any(not torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items())
    assert_clean(learn)

cannot_train_anyway = ('dictionary', 'two answers', 'dictionary, taught', 'one channel', 'one channel, taught',
                       'no channels')

@pytest.mark.parametrize('name', in_a_fit)
def test_refused_before_the_first_forward_pass(name, files):
    files_path[:] = [files]
    make,why = in_a_fit[name]
    learn = make()
    refused(learn, why)
    if name not in cannot_train_anyway: trains(learn)

@pytest.mark.parametrize('name', behind_the_forward_pass)
def test_refused_before_the_first_step(name):
    make,why = behind_the_forward_pass[name]
    learn = make()
    refused(learn, why, running=False)
    if name not in cannot_train_anyway: trains(learn)

@pytest.mark.parametrize('make,why', [
    (lambda: SelectScale(curriculum=lambda p: 2*p + .5), 'curriculum after 50%'),
    (lambda: FeatureMining(weight=lambda p: 1. if p<.5 else nan), 'got nan after 50% of training'),
    (lambda: CCM(tiny_teacher(), beta=lambda p: 2*p + .5), 'after 50% of training: beta must be'),
])
def test_a_schedule_that_goes_wrong_later(make, why):
    learn = learner(make())
    with pytest.raises(ValueError) as e: learn.fit(1)
    sentence(e, why)
    assert_clean(learn)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, LossCallback)])
    trains(learn)

def test_two_of_a_kind():
    learn = learner(FeatureMining())
    with pytest.raises(ValueError) as e: learn.add_cb(FeatureMining(2))
    sentence(e, 'already has a FeatureMining.*layers=2')
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, LossCallback)])
    trains(learn)

def test_data_parallel():
    learn = learner(FeatureMining(), nn.DataParallel(tiny_model()))
    refused(learn, 'distrib_ctx')
    trains(learn)

@pytest.mark.parametrize('x,y', [
    (lambda x: (10*x).to(torch.int8), noop),
    (noop, lambda y: y.float()),
    (noop, lambda y: y + 100),
], ids=['int8 images', 'float classes', 'classes out of range'])
@pytest.mark.parametrize('make', [
    FeatureMining,
    SelectScale,
    partial(CAMLoss, start=0),
    NegativeCAM,
    lambda: KnowledgeDistillation(tiny_teacher()),
    lambda: CCM(tiny_teacher()),
], ids=['mining', 'drop', 'cam', 'negative', 'kd', 'ccm'])
def test_what_the_network_or_its_loss_refuses(make, x, y):
    "Where training without us fails, training with us fails in the same words, and nothing is left"
    said = []
    for cb in (None, make()):
        learn = learner(cb, x=x, y=y)
        before = [p.clone() for p in learn.model.parameters()]
        with pytest.raises((RuntimeError, IndexError)) as e: learn.fit(1)
        said.append((e.type, str(e.value)))
        assert_clean(learn)
        assert (all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))
                and [m.name for m in learn.metrics]==['accuracy'])
    assert said[0]==said[1]


# ---- what looks wrong and is not ----

every = dict(
    mining=partial(FeatureMining, 2),
    channels=partial(FeatureMining, mask='channel'),
    dropout=partial(FeatureDropout, .5),
    spatial=partial(SpatialDropout, .5),
    block=partial(DropBlock, .5),
    scale=partial(SpatialScale, 0.),
    selectout=partial(Selectout, .3, .8),
    select=partial(SelectScale, .3, 0.),
    views=partial(MVFeaAug, k=3),
    cam=partial(CAMLoss, start=0),
    grad_cam=partial(CAMLoss, start=0, cam='grad_cam'),
    negative=NegativeCAM,
) | {k: lambda t=t: t(tiny_teacher()) for k,t in teachers.items()} | {
    'dist': lambda: KnowledgeDistillation(tiny_teacher(), loss='dist')}

def trains_to_finite_numbers(learn):
    trains(learn)
    assert all(p.isfinite().all() for p in learn.model.state_dict().values())
    assert all(v is not None and np.isfinite(v) for v in learn.recorder.values[-1])

@pytest.mark.parametrize('make', **cases(every))
def test_a_batch_of_one(make): trains_to_finite_numbers(learner(make(), n=8, bs=1))

@pytest.mark.parametrize('make', **cases({k: v for k,v in every.items() if k!='mining'}))
def test_maps_of_one_position(make):
    "Images of 8 x 8 give the student maps of 1 x 1; only mining by boxes and points has nothing to divide there"
    trains_to_finite_numbers(learner(make(), x=lambda x: x[:,:8,:8]))

@pytest.mark.parametrize('make', **cases(every))
def test_no_batches(make):
    "Fewer images than a batch: fastai trains on nothing, and so do we; the column says that there was no term"
    learn = learner(make(), n=8, bs=16)
    before = weights(learn)
    learn.fit(1)
    assert_same(before, weights(learn))
    cb = first(cb for cb in learn.cbs if isinstance(cb, LossCallback))
    assert len(learn.recorder.values[0])==3+len(cb.columns) and np.isnan(learn.recorder.values[0][3:]).all()
    assert_clean(learn)

@pytest.mark.parametrize('make', **cases({k: v for k,v in every.items() if k in (
    'mining', 'views', 'cam', 'negative', 'ccm', 'cat_kd', 'knowledge_distillation')}))
def test_nan_is_not_hidden(make):
    "Maps of NaN give a term of NaN, in sight in the table, as the loss is"
    learn = learner(make(), x=lambda x: x*nan)
    learn.fit(1)
    assert all(np.isnan(v) for v in (learn.recorder.values[0][0], learn.recorder.values[0][3]))
    assert_clean(learn)

@pytest.mark.parametrize('make', [
    partial(NegativeCAM, k=99),
    partial(SelectScale, top_rate=0),
    partial(Selectout, 1., 0.),
    partial(FeatureDropout, 0.),
    partial(SpatialDropout, 0.),
    partial(DropBlock, 0.),
    partial(DropBlock, block_size=99),
    lambda: CATKD(tiny_teacher(), size=9),
    partial(FeatureMining, seed=-1),
    partial(FeatureMining, weight=lambda p: p>.5),
    lambda: KnowledgeDistillation(mlp()),
])
def test_extremes_that_train(make): trains(learner(make()))


# ---- functions ----

f,w,z = torch.randn(2, 4, 3, 3),torch.randn(2, 4),torch.randn(2, 5)
functions = {
    'mined_pool int8': (lambda: mined_pool(f.to(torch.int8), torch.ones(3, 3)), 'f must be a floating point map'),
    'mined_pool 3-D': (lambda: mined_pool(f[0], torch.ones(3, 3)), 'f must be'),
    'mined_pool array': (lambda: mined_pool(f.numpy(), torch.ones(3, 3)), 'f must be.*ndarray'),
    'mined_pool mask': (lambda: mined_pool(f, torch.ones(2, 2)), r'mask must be \(H,W\)'),
    'mined_pool list': (lambda: mined_pool(f, [1]), 'mask must be a tensor'),
    'box_mask size': (lambda: box_mask(0, 3), 'at least 1'),
    'box_mask lam': (lambda: box_mask(3, 3, 2.), 'lam must be'),
    'box_mask word': (lambda: box_mask(3, 3, 'a'), 'lam must be'),
    'point_mask': (lambda: point_mask(), 'size of a mask'),
    'cam int8': (lambda: cam(f.to(torch.int8), w), 'f must be'),
    'cam weights': (lambda: cam(f, w[:,:2]), r'w must hold.*\(N,D\)'),
    'cam whole numbers': (lambda: cam(f, w.long()), 'w must hold floating'),
    'caam empty': (lambda: caam(f[:0]), 'not empty'),
    'minmax shape': (lambda: minmax(torch.ones(3)), 'a must be'),
    'minmax int': (lambda: minmax(torch.ones(2, 3, 3).long()), 'floating'),
    'grad_cam score': (lambda: grad_cam(f, torch.ones(2)), 'score does not depend on f'),
    'top_channels score': (lambda: top_channels(f, .1, 'sum'), 'score must be one of'),
    'selectout score': (lambda: selectout(f, .5, .5, lambda f: f),
        r'score must give one number for each image and channel, \(2, 4\)'),
    'select_scale score': (lambda: select_scale(f, .1, 1, 'sum'), 'score must be one of'),
    'select_drop score': (lambda: select_drop(f, noop, .1, lambda f: 3), 'score must give.*got int'),
    'top_channels int8': (lambda: top_channels(f.to(torch.int8), .1), 'f must be'),
    'select_scale rate': (lambda: select_scale(f, 2., .1), 'top_rate must be'),
    'spatial_dropout p': (lambda: spatial_dropout(f, 2), 'p must be'),
    'select_drop nothing': (lambda: select_drop(f, lambda f: None, .1), 'drop must give'),
    'select_drop part': (lambda: select_drop(f, lambda f: f[:1,:1], .1), 'drop must give a map of the shape of f'),
    'cam_loss distance': (lambda: cam_loss(f, w, 'l3'), 'distance must be'),
    'negative_cam_loss': (lambda: negative_cam_loss(f[0]), r'maps must be floating point \(N,k,H,W\)'),
    'negative_cam_loss counts': (lambda: negative_cam_loss(f, torch.ones(3, 2)), 'counts must be .N,k., one for each'),
    'negative_cam_loss mode': (lambda: negative_cam_loss(f, mode=None), "mode must be 'zero' or 'uniform'"),
    'negative_cam_loss int': (lambda: negative_cam_loss(f.long()), 'maps must be floating point'),
    'cam_loss shares': (lambda: cam_loss(f, w, weights=torch.ones(2, 3)), r'cam_loss: weights must be \(N,K\)'),
    'cam_loss shares list': (lambda: cam_loss(f, w, weights=[[1.], [1.]]), 'weights must be .N,K.'),
    'cam_loss positions': (lambda: cam_loss(f, w, positions='max'), "positions must be 'mean' or 'sum'"),
    'kd_loss shapes': (lambda: kd_loss(z, z[:,:3]), 'one shape'),
    'kd_loss int': (lambda: kd_loss(z.long(), z), 'student must be logits'),
    'kd_loss tau': (lambda: kd_loss(z, z, tau=-1), 'tau must be'),
    'dkd_loss target': (lambda: dkd_loss(z, z, torch.ones(2)), 'target must be class numbers'),
    'dkd_loss images': (lambda: dkd_loss(z, z, torch.ones(3).long()), 'target must be'),
    'at_loss weights': (lambda: at_loss(f, w, f, w[:1]), 'w must hold'),
    'ccm_loss images': (lambda: ccm_loss(f, f[:1], w[:1]), 'one shape'),
    'cat_loss classes': (lambda: cat_loss(f, w, f, torch.randn(3, 4)), 'as many images and classes'),
    'at_loss distance': (lambda: at_loss(f, w, f, w, 'l3'), "at_loss: distance must be 'l1' or 'l2'"),
    'at_loss positions': (lambda: at_loss(f, w, f, w, positions='all'), "at_loss: positions must be 'mean' or 'sum'"),
    'at_loss weights of one class': (lambda: at_loss(f, w, f, w, weights=torch.ones(2, 1)), r'weights must be \(N,K\)'),
    'at_loss class maps': (lambda: at_loss([1], None, f, None), 'at_loss: fs must be floating point maps'),
    'ccm_loss positions': (lambda: ccm_loss(f, f, w, positions=None), "ccm_loss: positions must be 'mean' or 'sum'"),
    'ccm_loss weights': (lambda: ccm_loss(f, f, None, weights=[1.]), r'ccm_loss: weights must be \(N,K\).*got list'),
    'ccm_loss class maps': (lambda: ccm_loss(f, f.long(), None), 'ccm_loss: ft must be floating point maps'),
    'caam_cam_distance': (lambda: caam_cam_distance(f, f, positions='max'), "positions must be 'mean' or 'sum'"),
    'feature_maps': (lambda: feature_maps(tiny_model(), torch.randn(2, 16, 16)), 'images .N,C,H,W.'),
    'dropped_errors': (lambda: dropped_errors(tiny_learner(), retain=(2,)), r'retain\[0\] must be'),
}

@pytest.mark.parametrize('call,why', **cases(functions))
def test_functions(call, why):
    with pytest.raises(ValueError) as e: call()
    sentence(e, why)

def test_functions_pass_nan_on():
    assert (minmax(f[:,0]*nan).isnan().all() and select_scale(f*nan, .1, .1).isnan().all()
            and cam_loss(f*nan, w).isnan() and mined_pool(f*nan, torch.ones(3, 3)).isnan().all())
