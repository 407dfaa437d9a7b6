"""What is claimed for a GPU. All is skipped without one; `pytest -m cuda --test-device cpu tests/test_cuda.py` tries
the tests themselves on a CPU, with stand-ins for what is fastai's own on a GPU."""
import gc
from types import SimpleNamespace
import overhead, pytest
from conformance import *
from fastai_featreg.comparison.command import main as featreg
from fastai_featreg.comparison.runs import peak_memory, reset_peak_memory

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def there(device):
    "Learners of `tiny_learner` are on the device"
    with learners_on(device): yield


def generators(device):
    "States of torch's generators that a block of ours may not move"
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device=='cuda' else [])


def test_isolated_rng_gives_the_generators_back(device):
    draw = lambda: torch.rand(3, device=device)
    torch.manual_seed(3)
    before = generators(device)
    with isolated_rng(7, torch.device(device)): a = draw()
    assert all(map(torch.equal, before, generators(device))), 'a generator has moved'
    draw()
    assert not all(map(torch.equal, before, generators(device))), 'this test could not fail'
    with isolated_rng(7, torch.device(device)): assert torch.equal(a, draw())
    with isolated_rng(8, torch.device(device)): assert not torch.equal(a, draw())
    before = generators(device)
    with pytest.raises(RuntimeError, match='stop'), isolated_rng(7, torch.device(device)):
        draw()
        raise RuntimeError('stop')
    assert all(map(torch.equal, before, generators(device)))


def test_a_mask_is_the_same_on_every_device(device):
    def masks(device):
        with learners_on(device): learn = small(FeatureMining(seed=0))
        drawn,draw = [],own(learn).draw_mask
        own(learn).draw_mask = lambda f, name: (drawn.append(draw(f, name)), drawn[-1])[1]
        learn.fit(1, 0.)
        return drawn
    here,there = masks(device),masks('cpu')
    assert len(here)==2 and all(map(torch.equal, here, there))


makers = dict(mining=partial(FeatureMining, 2), drop=SelectScale, cam_loss=partial(CAMLoss, start=0),
              grad_cam=partial(NegativeCAM, cam='grad_cam'), teacher=lambda: CCM(resnet18(num_classes=10)))

@pytest.mark.parametrize('precision', [fp16, bf16])
@pytest.mark.parametrize('name', makers)
def test_a_resnet_in_channels_last(device, name, precision):
    "Maps, and a teacher, in half precision and in another layout, of a network of the size that is used"
    set_seed(0)
    pairs = [(torch.randn(3, 64, 64), i) for i in range(8)]
    dls = DataLoaders.from_dsets(pairs, pairs[:4], bs=4, device=torch.device(device), num_workers=0)
    learn = Learner(dls, body_head(resnet18(num_classes=10)), loss_func=CrossEntropyLossFlat(), metrics=hits,
                    cbs=[makers[name](), precision(), ChannelsLast()])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1, 1e-3)
    weight = next(p for p in learn.model.parameters() if p.ndim==4 and p.shape[2]>1)
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.dtype==torch.float32
    assert np.isfinite(np.array(learn.recorder.values, dtype=float)).all()
    assert_clean(learn)


def peaks(name, device):
    "Peak of what the function called `name` takes forwards and backwards, and its literal form, in sizes of the map"
    f = torch.randn(16, 64, 28, 28, device=device, requires_grad=True)
    def peak(function):
        def step():
            f.grad = None
            function(f).sum().backward()
        step() # libraries take what they keep (cuBLAS's workspace)
        f.grad = None
        return overhead.with_peak(lambda: SimpleNamespace(step=step), device=='cuda')[1]/(f.numel()*4/2**20)
    return [peak(function) for function in overhead.functions(device, f.shape)[name]]


@pytest.mark.parametrize('name', ['mined_pool', 'select_scale', 'cam_and_caam', 'ada_cam'])
def test_functions_take_no_more_memory_than_their_literal_forms(device, name):
    ours,literal = peaks(name, device)
    assert ours < literal + .05


def test_mined_pool_keeps_no_copy_of_the_map(device):
    "It takes the gradient, and nothing else of the size of the map; the literal form takes two copies more"
    ours,literal = peaks('mined_pool', device)
    assert ours < 1.2 and literal > 2.5


def test_a_fit_leaves_no_memory_behind(device):
    "As many bytes of tensors after a callback's fit and removal as after a plain one; the smallest map is of 2 KiB"
    if device!='cuda': pytest.skip('the allocator of a CPU does not say')
    def left(make):
        gc.collect()
        before,cb = torch.cuda.memory_allocated(),make()
        learn = fitted(cb)
        if cb: learn.remove_cb(type(cb))
        del cb
        learn.opt = learn.pred = learn.loss = learn.loss_grad = None
        learn.xb = learn.yb = ()
        gc.collect()
        return torch.cuda.memory_allocated() - before
    fitted() # libraries take what they keep
    plain = left(noop)
    for row in rows():
        if not row.entry.permanent: assert left(row.make) <= plain + 1024, row.name


def test_peak_memory_is_that_of_the_device(device):
    if device!='cuda': pytest.skip('the peak of a process is not that of its tensors')
    place = torch.device(device)
    reset_peak_memory(place)
    start = peak_memory(place)
    held = torch.ones(2**25, device=device) # 128 MiB
    assert 128 <= peak_memory(place) - start < 130
    del held
    assert peak_memory(place) >= start + 128, 'the peak is forgotten before it is asked for'
    reset_peak_memory(place)
    assert peak_memory(place) < start + 2


def test_compare_in_half_precision(device, tmp_path):
    args = 'digits --arch test_resnet --size 64 --bs 8 --n-train 32 --n-valid 16 --epochs 1 --seeds 1 --fp16'.split()
    assert featreg(['compare', *args, '--methods', 'feature_mining,select_scale', '--out', str(tmp_path)])==0
    df = pd.read_csv(tmp_path/'results.csv', keep_default_na=False)
    assert len(df)==3 and (df.error=='').all() and (df.peak_mb.astype(float)>0).all()
    if device=='cuda': assert (df.fp16.astype(str)=='True').all() and (df.device==torch.cuda.get_device_name()).all()


every = [pytest.param(row, name, id=f'{row.name}: {name}') for row,name in asked(cuda_cells)]

@pytest.mark.parametrize('row,name', every)
def test_cell(row, name, device, record_property):
    for k,v in dict(method=row.name, cell=name).items(): record_property(k, v)
    for k,v in zip(('status', 'why'), check_on(device, row, name)): record_property(k, v)


def test_batches_out_of_the_memory_of_the_device(device):
    "Pixels rest as bytes where the batches are needed; the batches are those of a CPU"
    def batches(where):
        dls = digits_dls(n_train=40, n_valid=20, size=32, bs=8, device=torch.device(where))
        found = [b for _ in range(2) for b in dls.valid]
        assert dls.valid._stack[0].dtype==torch.uint8 and dls.valid._stack[0].device.type==where
        return found
    for a,b in zip(batches(device), batches('cpu'), strict=True):
        assert a[0].device.type==device and torch.equal(a[1].cpu(), b[1])
        torch.testing.assert_close(a[0].cpu(), b[0], rtol=1e-5, atol=1e-6)
