"A teacher in a learner: what it reaches, what it leaves alone, and every way to run"
import inspect, pickle
from copy import deepcopy
from functools import partial
import pytest, timm
from fastai.callback.channelslast import ChannelsLast
from fastai_featreg.answers import mixed_classes
from fastai_featreg.comparison.plan import parse_methods
from fastai_featreg.methods.distill import *
from tiny import *
from fastai_featreg.methods.distill_losses import at_loss, binary_kd_loss, ccm_loss, kd_loss
from fastai_featreg.methods.taught import Taught


def run(cbs=None, epochs=2, **kwargs):
    learn = tiny_learner(cbs, **kwargs)
    learn.fit(epochs, 1e-2)
    assert_clean(learn)
    return learn


makers = dict(kd=KnowledgeDistillation, dkd=partial(KnowledgeDistillation, loss='dkd'),
              letter=partial(AttentionTransfer, per_class=True, positions='sum', gamma=1.),
              at=AttentionTransfer, at_grad=partial(AttentionTransfer, cam='grad_cam'),
              ccm=CCM, ccm_grad=partial(CCM, cam='grad_cam'), cat=CATKD, kept=partial(CCM, cache=True))


@pytest.mark.parametrize('name', makers)
def test_the_teacher_is_left_as_it_was(name):
    teacher = tiny_teacher().train()
    teacher[0][0].eval()
    teacher[1][-1].weight.requires_grad_(False)
    teacher[1][-1].bias.grad = torch.ones(10)
    seen = []
    handle = teacher[0].register_forward_hook(lambda *_: seen.append(1))
    before,flags = ({k: v.clone() for k,v in teacher.state_dict().items()},
                    [(m.training, len(m._forward_hooks)) for m in teacher.modules()])
    learn = run(makers[name](teacher))
    assert_same(before, teacher.state_dict())
    assert flags==[(m.training, len(m._forward_hooks)) for m in teacher.modules()]
    assert [p.requires_grad for p in teacher.parameters()].count(False)==1 and (teacher[1][-1].bias.grad==1).all()
    assert all(p.grad is None for p in teacher.parameters() if p is not teacher[1][-1].bias)
    assert not any(p is q for g in learn.opt.param_lists for p in g for q in teacher.parameters())
    assert not torch.equal(weights(run())['0.0.0.weight'], weights(learn)['0.0.0.weight']), (
        'the student has learnt something else')
    assert next(cb for cb in learn.cbs if isinstance(cb, Taught)).guide is None, 'the view has gone'
    handle.remove()


def test_train_does_not_reach_the_view():
    "Dropout and BatchNorm of the teacher stay in evaluation mode, whoever calls train()"
    class Meddle(Callback):
        order,run_valid = 4,False
        def after_loss(self):
            teacher.train()
            self.ccm.guide.net.train()
    teacher = tiny_teacher()
    assert_same(weights(run(CCM(tiny_teacher()))), weights(run([CCM(teacher), Meddle()])))


def test_the_teacher_runs_under_the_students_autocast_and_memory_format():
    class Look(Callback):
        order,run_valid = 6,False
        def after_loss(self):
            self.learn.noted = (
                seen[-1], self.ccm.guide.net[0][0][0].weight.is_contiguous(memory_format=torch.channels_last))
    seen,teacher = [],tiny_teacher()
    teacher[1][-1].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    assert run([CCM(teacher), Look(), CpuMixedPrecision(), ChannelsLast()]).noted==(torch.bfloat16, True)
    assert run([CCM(teacher), Look()]).noted==(torch.float32, False)
    assert not teacher[0][0][0].weight.is_contiguous(memory_format=torch.channels_last), (
        "the owner's weights are where they were")


def test_losses_of_the_table_stay_the_task_loss():
    learn = tiny_learner([CCM(tiny_teacher(), beta=0.)], metrics=accuracy)
    learn.fit(2, 0.)
    assert list(learn.recorder.metric_names)==['epoch', 'train_loss', 'valid_loss', 'accuracy', 'ccm_loss', 'time']
    rows,plain = list(learn.recorder.values),tiny_learner(metrics=accuracy)
    plain.fit(2, 0.)
    assert [v[:3] for v in rows]==list(plain.recorder.values) and all(v[3]>0 for v in rows)
    assert learn.validate()==plain.validate()


@pytest.mark.parametrize('make', [KnowledgeDistillation, AttentionTransfer, partial(AttentionTransfer, cam='grad_cam'),
                                  CATKD])
def test_the_own_twin_has_nothing_to_teach(make):
    learn = tiny_learner()
    for m in learn.model.modules(): m.training = False
    learn.model.train = lambda mode=True: learn.model # in training mode a student is another function than its twin
    learn.add_cb(make(deepcopy(learn.model), beta=.5))
    learn.fit(1, 0.)
    assert learn.recorder.values[0][2]<1e-6


class Bomb(nn.Module):
    "Raise in a forward pass once it is armed"
    armed = []
    def forward(self, x):
        if self.armed: raise self.armed.pop()('stop')
        return x


@pytest.mark.parametrize('hidden', [False, True])
@pytest.mark.parametrize('exc', [CancelFitException, RuntimeError, KeyboardInterrupt])
def test_exit_in_the_teacher(exc, hidden):
    "Behind the last map, where Grad-CAM has switched gradients on inside the teacher's forward pass"
    class Arm(Callback):
        order,run_valid = 6,False
        def after_pred(self):
            if self.iter==2: Bomb.armed.append(exc)
    teacher = tiny_teacher(hidden=hidden)
    teacher[1].insert(0, Bomb())
    learn = tiny_learner([CCM(teacher), Arm()])
    try: learn.fit(2)
    except (RuntimeError, KeyboardInterrupt): pass
    assert learn.iter==2 and learn.epoch==0 and not Bomb.armed, 'it went off'
    assert_clean(learn)
    assert torch.is_grad_enabled() and learn.ccm.guide is None
    learn.remove_cb(Arm)
    learn.fit(1)
    assert_clean(learn)


def test_modules_learners_and_files_teach_the_same(tmp_path):
    own = tiny_learner(seed=9)
    own.fit(1, 1e-2)
    own.path = tmp_path
    own.export('teacher.pkl')
    torch.save(own.model, tmp_path/'net.pt')
    results = [weights(run(CCM(t))) for t in (own.model, own, tmp_path/'teacher.pkl', str(tmp_path/'net.pt'))]
    for other in results[1:]: assert_same(results[0], other)


def test_not_in_the_export_not_in_checkpoints_shared_by_copies(tmp_path):
    teacher,sizes = tiny_teacher(d=300),{}
    for name,cbs in (('plain', None), ('kd', KnowledgeDistillation(teacher)), ('ccm', CCM(teacher, cache=True))):
        learn = run(cbs, path=tmp_path)
        learn.export(f'{name}.pkl')
        sizes[name] = (tmp_path/f'{name}.pkl').stat().st_size
        saved = torch.load(learn.save(name), weights_only=False)
        assert saved['model'].keys()==learn.model.state_dict().keys()
    assert sum(p.numel() for p in teacher.parameters())*4>90_000
    assert abs(sizes['kd'] - sizes['plain'])<4000 and abs(sizes['ccm'] - sizes['plain'])<4000, sizes
    copy = deepcopy(learn)
    assert copy.ccm is not learn.ccm and copy.ccm.teacher is teacher
    copy.fit(1)
    again = load_learner(tmp_path/'ccm.pkl')
    assert again.ccm.teacher is None and again.ccm.guide is None and again.ccm.gamma==1
    again.dls = learn.dls
    again.remove_cb(ProgressCallback)
    with pytest.raises(ValueError, match='leaves its teacher out'): again.fit(1)


def test_copies_in_the_middle_of_a_fit():
    class Copy(Callback):
        order,run_valid = 60,False
        def before_backward(self): self.learn.copied = self.ccm.__getstate__()
    learn = run([CCM(tiny_teacher()), Copy()])
    assert not {'guide', 'maker', '_fit'} & learn.copied.keys()
    assert len(pickle.dumps({k: v for k,v in learn.copied.items() if k not in ('_learn', 'weight')}))<2000


def test_schedules_and_lr_find():
    weights_seen = []
    class Note(Callback):
        order,run_valid = 60,False
        def after_batch(self): weights_seen.append(tuple(self.ccm.now.values()))
    learn = tiny_learner([
        CCM(tiny_teacher(), beta=SchedLin(0., 1.), gamma=lambda pct: float(pct<.5), tau=SchedLin(4, 2)),
        Note(),
    ], n=32)
    learn.fit(2)
    assert weights_seen==[(pytest.approx(i/8), float(i<4), pytest.approx(4 - i/4)) for i in range(8)]
    learn.lr_find(num_it=5, show_plot=False)
    assert_clean(learn)


def test_compiled_students_and_teachers_without_exact_cam():
    learn,teacher = tiny_learner(CCM(tiny_teacher(hidden=True))),tiny_teacher(hidden=True)
    teacher.compile(backend='eager')
    learn.model.compile(backend='eager')
    learn.fit(1)
    other = tiny_learner(CCM(teacher))
    other.fit(1)
    assert_same(weights(learn), weights(other))
    assert learn.ccm.teacher_method=='grad_cam'


def sized_learner(model, cbs, size=64, n=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pairs = Pairs(zip(torch.randn(n, 3, size, size), torch.randint(0, 10, (n,))))
    learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=4, device='cpu', num_workers=0), model,
                    loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


swin = partial(timm.create_model, 'swin_tiny_patch4_window7_224', num_classes=10, img_size=64, embed_dim=24,
               depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
vit = partial(timm.create_model, 'vit_tiny_patch16_224', num_classes=10, img_size=64, depth=2)

@pytest.mark.parametrize('teacher,method', [
    (swin, 'cam'),
    (partial(vit, global_pool='avg'), 'grad_cam'),
    (partial(timm.create_model, 'convnext_atto', num_classes=10), 'grad_cam'),
    (partial(timm.create_model, 'resnet10t', num_classes=10), 'cam'),
])
@pytest.mark.parametrize('make', [AttentionTransfer, CCM])
def test_other_layouts_and_heads_teach(teacher, method, make):
    learn = sized_learner(tiny_model(), make(teacher()))
    learn.fit(1)
    cb = next(cb for cb in learn.cbs if isinstance(cb, Taught))
    assert cb.teacher_method==method and learn.recorder.values[0][2]>0
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize('make', [AttentionTransfer, CCM])
def test_a_class_token_teaches_no_maps(make):
    "The patches of the last map have no part in the logits, so that Grad-CAM would be zero"
    learn = sized_learner(tiny_model(), make(vit()))
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match="teacher: there are no class maps of 'norm'.*class token.*global_pool='avg'"):
        learn.fit(1)
    assert all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))
    learn = sized_learner(tiny_model(), KnowledgeDistillation(vit()))
    learn.fit(1)
    assert learn.recorder.values[0][2]>0


def test_a_student_in_another_layout():
    for model in (swin(), vit(global_pool='avg')):
        learn = sized_learner(model, CCM(timm.create_model('resnet10t', num_classes=10)))
        learn.fit(1)
        assert learn.recorder.values[0][2]>0


def test_networks_without_a_map_learn_logits_and_refuse_maps():
    mlp = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3*64*64, 10))
    learn = sized_learner(mlp(), KnowledgeDistillation(mlp()))
    learn.fit(1)
    assert learn.recorder.values[0][2]>0
    with pytest.raises(ValueError, match='spatial map'): sized_learner(tiny_model(), CCM(mlp())).fit(1)


def test_repr_evals_back(tmp_path):
    torch.save(tiny_teacher(), tmp_path/'net.pt')
    file = f"teacher='{tmp_path}/net.pt'"
    kwargs = dict(beta=.3, distance='l1', cache=True, per_class=True, positions='sum')
    cb = AttentionTransfer(tmp_path/'net.pt', **kwargs)
    told = "distance='l1', beta=0.3, cache=True, per_class=True, positions='sum'"
    assert repr(eval(repr(cb)))==repr(cb)==f"AttentionTransfer({file}, {told})"
    assert repr(AttentionTransfer(tmp_path/'net.pt', distance='l2', positions='mean'))==f"AttentionTransfer({file})"
    for make in (KnowledgeDistillation, CCM, CATKD):
        cb = make(tmp_path/'net.pt', per_class=True)
        assert repr(eval(repr(cb)))==repr(cb)==f"{make.__name__}({file}, per_class=True)"


def test_the_command_reads_the_arguments(tmp_path):
    torch.save(tiny_teacher(), tmp_path/'net.pt')
    text = ("AttentionTransfer(positions='sum'),KnowledgeDistillation(per_class=True),"
            "CCM(distance='l2', positions='sum'),CATKD(per_class=True)")
    found = parse_methods(text, teacher=tmp_path/'net.pt')[1:]
    (at,),(kd,),(ccm,),(cat,) = [make() for _,make in found]
    assert (at.positions, at.distance, at.gamma, at.per_class)==('sum', 'l2', 10, False)
    assert kd.per_class and cat.per_class and (ccm.distance, ccm.positions, ccm.per_class)==('l2', 'sum', False)
    assert ["positions='sum'" in label for label,_ in found]==[True, False, True, False]


of_maps = [dict(cam='auto'), dict(distance='l1'), dict(positions='sum')]
without_meaning = [(KnowledgeDistillation, k) for k in [dict(gamma=1.), *of_maps]] + [(CATKD, k) for k in of_maps]

@pytest.mark.parametrize('make,kwargs', without_meaning)
def test_arguments_without_a_meaning_are_errors(make, kwargs):
    with pytest.raises(TypeError, match=first(kwargs)): make(tiny_teacher(), **kwargs)


@pytest.mark.parametrize('make', [KnowledgeDistillation, AttentionTransfer, CCM, CATKD])
def test_the_scales_are_given_by_name(make):
    "`per_class` and `positions` stand behind the star, so that no position of an argument has moved"
    base = dict(beta=.5, gamma=1., tau=4., loss='kd', cam='auto', distance='l1', teacher_stats=None, cache=False)
    assert repr(TeacherCallback(tiny_teacher(), *base.values()))==repr(TeacherCallback(tiny_teacher(), **base))
    with pytest.raises(TypeError, match='positional'): TeacherCallback(tiny_teacher(), *base.values(), True)
    for k in ('per_class', 'positions'):
        p = inspect.signature(make.__init__).parameters.get(k)
        assert p is None or p.kind is p.KEYWORD_ONLY


class FirstBatch(Callback):
    "What the first batch of a learner trains by, and what it is made of"
    order,run_valid = 6,False
    def before_batch(self):
        self.taps = [] if hasattr(self, 'total') else [self.model[0].register_forward_hook(self.keep)]
    def keep(self, module, inp, out): self.fs = out.detach()
    def after_loss(self):
        for h in self.taps: h.remove()
        if hasattr(self, 'total'): return
        self.x0,self.y0,self.zs = self.x,mixed_classes(self.learn),self.pred.detach()
        self.total,self.ce = self.learn.loss_grad.detach(),self.learn.loss.detach()


def one_by_one(loss, fs, ft, ws, wt, weights, *variant):
    "The expectation over classes, by the function for one image of one class"
    labelled = [i for i in range(len(fs)) if weights[i].sum()>0]
    own = lambda i, k: () if loss is ccm_loss else (ws[i:i+1,k],)
    each = lambda i, k: loss(fs[i:i+1], *own(i, k), ft[i:i+1], wt[i:i+1,k], *variant)
    return sum(weights[i,k]*each(i, k) for i in labelled for k in range(weights.shape[1]))/len(labelled)


@pytest.mark.parametrize('targets', ['classes', 'mixed', 'several'])
@pytest.mark.parametrize('distance,positions', [('l1', 'mean'), ('l1', 'sum'), ('l2', 'mean'), ('l2', 'sum')])
@pytest.mark.parametrize('make,loss', [(AttentionTransfer, at_loss), (CCM, ccm_loss)])
def test_the_term_is_the_functions(make, loss, distance, positions, targets):
    "On a learner with BatchNorm and dropout, maps of 2 x 2 against 4 x 4; several labels, or none, under a binary loss"
    teacher,per_class = tiny_teacher(),targets!='several'
    cb = make(teacher, beta=.3, gamma=2., distance=distance, positions=positions, per_class=per_class)
    learn = tiny_learner([cb, FirstBatch(), *([MixUp()] if targets=='mixed' else [])])
    if targets=='several':
        for dl in learn.dls: dl.dataset[:] = [(x, (torch.arange(10)%(y + 1)==2).float()) for x,y in dl.dataset]
        learn.loss_func = BCEWithLogitsLossFlat()
    ws = learn.model[1][-1].weight.detach().clone()
    learn.fit(1)
    o,(classes,weights) = learn.first_batch,learn.first_batch.y0
    with torch.no_grad(): ft,zt = teacher.eval()[0](o.x0),teacher(o.x0)
    on_logits = kd_loss(o.zs, zt, per_class=True) if per_class else binary_kd_loss(o.zs, zt)
    w = ws[classes],teacher[1][-1].weight.detach()[classes]
    args = (o.fs, w[0], ft, w[1]) if loss is at_loss else (o.fs, ft, w[1])
    on_maps = loss(*args, distance, positions, weights)
    torch.testing.assert_close(o.total, .3*o.ce + .7*on_logits + 2*on_maps, rtol=1e-5, atol=1e-5)
    expected = one_by_one(loss, o.fs, ft, *w, weights, distance, positions)
    torch.testing.assert_close(on_maps, expected, rtol=1e-5, atol=1e-6)
    if targets=='several': assert (weights.sum(1)==0).any() and classes.shape[1]>1


@pytest.mark.parametrize('make', [AttentionTransfer, partial(AttentionTransfer, cam='grad_cam'), CCM])
def test_a_sum_is_a_mean_with_another_gamma(make):
    "Over 2 x 2 positions: 4 times as much; a power of two, so to the last bit"
    as_sum,as_mean = run(make(tiny_teacher(), positions='sum', gamma=1.)),run(make(tiny_teacher(), gamma=4.))
    assert_same(weights(as_sum), weights(as_mean))


def test_neutral_arguments_change_nothing():
    for make,kwargs in ((AttentionTransfer, dict(distance='l2', positions='mean')), (KnowledgeDistillation, {}),
                        (CCM, dict(distance='l1', positions='mean')), (CATKD, {})):
        assert_same(weights(run(make(tiny_teacher()))), weights(run(make(tiny_teacher(), per_class=False, **kwargs))))
    off = AttentionTransfer(tiny_teacher(), beta=1., gamma=0., per_class=True, positions='sum')
    assert_same(weights(run()), weights(run(off)))


def test_per_class_divides_the_loss_on_logits():
    def column(per_class, lr):
        learn = tiny_learner(KnowledgeDistillation(tiny_teacher(), per_class=per_class))
        learn.fit(1, lr)
        return learn.recorder.values[0][2],weights(learn)
    usual,letter = column(False, 0.)[0],column(True, 0.)[0]
    assert usual==pytest.approx(10*letter, rel=1e-5)
    a,b = [column(p, 1e-2)[1] for p in (False, True)]
    assert not torch.equal(a['0.0.0.weight'], b['0.0.0.weight'])
    several = tiny_learner(CCM(tiny_teacher(), per_class=True))
    several.loss_func = nn.BCEWithLogitsLoss()
    for dl in several.dls: dl.dataset[:] = [(x, F.one_hot(y, 10).float()) for x,y in dl.dataset]
    with pytest.raises(ValueError, match='a mean over the classes already; leave per_class out'): several.fit(1)


@pytest.mark.parametrize('make', [KnowledgeDistillation, CCM, CATKD])
def test_kept_answers_are_the_answers(make):
    "Over shuffled epochs the same training, and the teacher runs once for each image"
    def trained(cache):
        runs.clear()
        learn = run(make(teacher, cache=cache), epochs=4)
        return weights(learn),sum(runs)
    runs,teacher = [],tiny_teacher()
    teacher[1].register_forward_hook(lambda m, i, o: runs.append(len(o)) if len(o)==8 else None)
    (a,n_a),(b,n_b) = trained(False),trained(True)
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-5)
    assert (n_a, n_b)==(4*48, 48)
