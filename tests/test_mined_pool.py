"`mined_pool` against the equations to the letter, on random shapes, masks and values"
import torch
from hypothesis import given, settings, strategies as st
from fastai_featreg.all import *
from fastai_featreg.methods.feature_mining import box_mask, mined_pool, point_mask

sizes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))
floats = st.sampled_from([torch.float16, torch.bfloat16])


def literal(f, mask, other):
    n,d,h,w = f.shape
    out = torch.zeros(n, 2, d, dtype=f.dtype)
    for y in range(h):
        for x in range(w):
            m,o = (mask[y,x], other[y,x]) if mask.ndim==2 else (mask, other)
            out[:,0] += f[:,:,y,x]*m/(h*w)
            out[:,1] += f[:,:,y,x]*o/(h*w)
    return out


def draw(size, seed, channel):
    g = torch.Generator().manual_seed(seed)
    shape = size[1:2] if channel else size[2:]
    return 3*torch.randn(size, generator=g),point_mask(*shape, generator=g),point_mask(*shape, generator=g)


@settings(deadline=None, max_examples=200)
@given(sizes, st.integers(0, 10**6), st.booleans(), st.booleans())
def test_equals_the_literal_loop(size, seed, channel, last):
    f,m,o = draw(size, seed, channel)
    layout = f.to(memory_format=torch.channels_last) if last else f
    torch.testing.assert_close(mined_pool(layout, m), literal(f, m, 1 - m), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mined_pool(layout, m, o), literal(f, m, o), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mined_pool(layout, m).sum(1), f.mean((2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mined_pool(f.double(), m), literal(f.double(), m, 1 - m), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(0, 10**6), st.booleans(), floats, st.booleans())
def test_half_precision_is_finite_and_near(size, seed, channel, dtype, autocast):
    f,m,_ = draw(size, seed, channel)
    f = (f*1000).to(dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): got = mined_pool(f, m)
    assert got.dtype==torch.float32 and got.isfinite().all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, literal(f.float(), m, 1 - m), rtol=2*eps, atol=4*eps*f.float().abs().max().item())


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 30), st.integers(1, 30), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 10**6))
def test_box_mask(h, w, lam, seed):
    m = box_mask(h, w, lam, torch.Generator().manual_seed(seed))
    assert m.shape==(h, w) and set(m.unique().tolist()) <= {0., 1.}
    if h*w>1: assert 0<m.sum()<h*w
    if lam is not None and h*w>1: assert m.sum() <= max(1, (h*(1-lam)**.5 + 1)*(w*(1-lam)**.5 + 1))
    assert torch.equal(m, box_mask(h, w, lam, torch.Generator().manual_seed(seed)))
