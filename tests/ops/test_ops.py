"""The primitive and the ops on it: types, layouts, empty and single tensors, aliasing, backends."""

import itertools

import numpy as np
import pytest
import torch

import mmfast
from mmfast import MmfastError, Schedule, ops
from mmfast.errors import BackendError
from mmfast.ops import Block, backends

ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=lambda d: str(d)[6:])


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def schedule(T=50):
    return Schedule.cosine(T, {"a": mmfast.bridge(2.0), "b": mmfast.carried(0.7)})


# --- types, layouts, sizes ------------------------------------------------------------------------------------


def layouts(x):
    """The same values, laid out in other ways."""
    B, C, H, W = x.shape
    big = x.new_full((B + 2, C, H, 2 * W + 1), float("nan"))
    big[1:-1, :, :, 1::2] = x
    return {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "slice of a larger one": big[1:-1, :, :, 1::2],
        "offset": torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    }


@DTYPES
def test_any_strides(each_backend, dtype):
    """Not contiguous in any way, or not aligned: the same bits, forward and backward."""
    x, y = randn(3, 4, 5, 6, dtype=dtype), randn(3, 4, 5, 6, dtype=dtype, seed=1)
    coefs, sigma, grad = randn(3, 2), randn(3), randn(3, 4, 5, 6, dtype=dtype, seed=2)

    def run(x, y, coefs, sigma, grad):
        leaves = [z.detach().requires_grad_() for z in (x, y, coefs, sigma)]
        out, eps = ops.combine(leaves[:2], *leaves[2:], seed=1, return_noise=True)
        return [out, eps, *torch.autograd.grad(out, leaves, grad)]

    with ops.backend(each_backend):
        expected = run(x, y, coefs, sigma, grad)
        for (name, other), g in itertools.product(layouts(x).items(), [grad, *layouts(grad).values()]):
            strided = torch.stack((coefs, coefs), 2)[..., 0], sigma.repeat_interleave(2)[::2]
            for found, same in zip(run(other, y, *strided, g), expected, strict=True):
                # Sums may be taken in another order (they are of 120 products).
                assert torch.equal(found, same) or (
                    same.dim() < 4 and torch.allclose(found, same, rtol=0, atol=float(120 * 2**-24 * 4 * x.abs().max()))
                ), name


@DTYPES
def test_expanded_inputs(each_backend, dtype):
    """Stride zero, by expand and by size 1, against the same written out."""
    full, label, one = randn(3, 4, 5, 6, dtype=dtype), randn(3, 4, 1, 1, dtype=dtype), randn(1, 1, 5, 6, dtype=dtype)
    coefs = randn(3, 3)
    with ops.backend(each_backend):
        expected = ops.combine([full, label.expand(3, 4, 5, 6).clone(), one.expand(3, 4, 5, 6).clone()], coefs)
        assert torch.equal(ops.combine([full, label, one], coefs), expected)
        assert torch.equal(ops.combine([full, label.expand(3, 4, 5, 6), one.expand(3, 4, 5, 6)], coefs), expected)
        assert torch.equal(ops.combine([full, label, one[0]], coefs), expected)
        # All of them small: the result has their common shape.
        found = ops.combine([label, one], coefs[:, 1:])
        expected = ops.combine([torch.zeros_like(full), label, one], torch.cat((torch.zeros(3, 1), coefs[:, 1:]), 1))
        assert torch.equal(found, expected)


@DTYPES
def test_one_row_of_coefficients_serves_all(each_backend, dtype):
    x, y = randn(4, 3, 7, dtype=dtype), randn(4, 3, 7, dtype=dtype, seed=1)
    coefs, sigma = randn(1, 2), randn(1)
    with ops.backend(each_backend):
        found = ops.combine([x, y], coefs, sigma, seed=2)
        assert torch.equal(found, ops.combine([x, y], coefs.expand(4, 2).clone(), sigma.expand(4).clone(), seed=2))


@DTYPES
def test_one_sample_of_terms_serves_a_batch_of_coefficients(each_backend, dtype):
    """[1, ...] terms under [B, K] coefficients: B results, as of the terms repeated, and noise for each; gradients."""
    x, y = randn(1, 3, 7, dtype=dtype).requires_grad_(), randn(3, 1, dtype=dtype, seed=1)
    coefs, sigma = randn(4, 2), randn(4)
    with ops.backend(each_backend):
        found = ops.combine([x, y], coefs, sigma, seed=2)
        expected = ops.combine([x.expand(4, 3, 7).clone(), y], coefs, sigma, seed=2)
        assert torch.equal(found, expected)
        grad = randn(4, 3, 7, dtype=dtype, seed=3)
        # The repeated terms' gradients are rounded to their type before they are added up: four more roundings.
        found, expected = (torch.autograd.grad(z, x, grad)[0].double() for z in (found, expected))
        size = (coefs[:, :1, None] * grad.float()).abs().sum(0, keepdim=True)
        assert ((found - expected).abs() <= 6 * ROUNDING[dtype] * size + 4 * 2.0**-24 * size).all()
        assert torch.equal(ops.multimodal_mean([x, y], coefs), ops.combine([x.expand(4, 3, 7), y], coefs))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ROUNDING, 2)), ids=lambda d: str(d)[6:])
def test_mixed_types_promote_as_torchs_do(each_backend, one, other):
    """bfloat16 with float16 is float32; the values are those of the promoted inputs."""
    x, y, coefs = randn(2, 3, 4, dtype=one), randn(2, 3, 4, dtype=other, seed=1), randn(2, 2, dtype=torch.float64)
    dtype = torch.promote_types(one, other)
    with ops.backend(each_backend):
        found = ops.combine([x, y], coefs)
        assert found.dtype == dtype
        assert torch.equal(found, ops.combine([x.to(dtype), y.to(dtype)], coefs))


@DTYPES
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4), (2, 0, 3), (2, 3, 0, 1)])
def test_empty(each_backend, dtype, shape):
    """No samples, or samples of nothing: forward and backward, with the shapes and types of any other call."""
    B = shape[0]
    x, coefs, sigma = (
        randn(*shape, dtype=dtype).requires_grad_(),
        randn(B, 1).requires_grad_(),
        randn(B).requires_grad_(),
    )
    with ops.backend(each_backend):
        out, eps = ops.combine([x], coefs, sigma, seed=1, return_noise=True)
        grads = torch.autograd.grad(out.sum(), (x, coefs, sigma))
        assert out.shape == eps.shape == shape
        assert out.dtype == eps.dtype == dtype
        assert [g.shape for g in grads] == [x.shape, coefs.shape, sigma.shape]
        assert all((g == 0).all() for g in grads)
        assert ops.randn(shape, seed=1, dtype=dtype).shape == shape
        t = torch.ones(B, dtype=torch.int64) * 3
        for time in (3, t):
            z, eps = ops.q_sample(x, {"a": x}, time, schedule(), seed=1)
            assert z.shape == eps.shape == shape
            assert ops.posterior_sample(z, eps, {"a": x}, time, schedule(), clamp=1.0, seed=1).shape == shape


def test_zero_dimensional(each_backend):
    """A single number is one sample of one element."""
    sched, x, e = schedule(), torch.tensor(0.3), torch.tensor(-2.0)
    with ops.backend(each_backend):
        z, eps = ops.q_sample(x, {"a": e}, 9, sched, seed=4)
        wide = ops.q_sample(x[None], {"a": e[None]}, 9, sched, seed=4)
        assert z.shape == eps.shape == ()
        assert (float(z), float(eps)) == (float(wide[0]), float(wide[1]))
        assert float(eps) == float(ops.randn((1,), seed=4))
        assert ops.randn((), seed=4).shape == ()
        assert float(ops.combine([x, e], torch.tensor([[2.0, 3.0]]))) == pytest.approx(0.6 - 6)
        assert float(ops.multimodal_mean({"a": x, "b": e}, torch.tensor([[1.0, 0.5]]))) == pytest.approx(-0.7)
        for clamp in (None, 1.0):
            found = ops.posterior_sample(z, eps, {"a": e}, 9, sched, 3, clamp, seed=1)
            wide = ops.posterior_sample(z[None], eps[None], {"a": e[None]}, 9, sched, 3, clamp, seed=1)
            assert found.shape == ()
            assert float(found) == float(wide)
        given = ops.q_sample(x, {"a": e}, 9, sched, noise=eps)[0]
        assert float(given) == pytest.approx(float(z), rel=1e-6)
        present = ops.q_sample(x, {"a": e}, 9, sched, noise=eps, present=torch.tensor([[True]]))[0]
        assert float(present) == float(given)


def test_a_missing_term_is_not_read(each_backend):
    """Where the coefficient is 0 the term may hold NaN or infinities, forward and in every other gradient."""
    x, y = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    coefs = torch.tensor([[1.0, 0.5], [1.0, 0.0], [0.0, 2.0]])
    bad_x, bad_y = x.clone(), y.clone()
    bad_x[2], bad_y[1] = float("nan"), float("inf")
    x[2], y[1] = 0, 0
    with ops.backend(each_backend):
        leaves = [bad_x.requires_grad_(), bad_y.requires_grad_()]
        out = ops.combine(leaves, coefs)
        assert torch.equal(out, ops.combine([x, y], coefs))
        for k, grad in enumerate(torch.autograd.grad(out.sum(), leaves)):
            assert torch.equal(grad, coefs[:, k, None, None].expand(3, 2, 4))


def test_a_zero_coefficient_has_its_true_gradient(each_backend):
    """A weight that starts at zero can learn: its gradient is <grad, term>, though the term was not needed."""
    x, grad = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    coefs = torch.tensor([[0.0], [1.0], [0.0]], requires_grad=True)
    with ops.backend(each_backend):
        ops.combine([x], coefs).backward(grad)
    torch.testing.assert_close(coefs.grad[:, 0], (x * grad).flatten(1).sum(1))


# --- no aliasing ----------------------------------------------------------------------------------------------


def storages(*tensors):
    return {x.untyped_storage().data_ptr() for x in tensors}


def test_outputs_do_not_alias_inputs(each_backend):
    """Even where the result is the input's value: writing to one leaves the other alone."""
    sched, x, e = schedule(), randn(2, 3, 4), randn(2, 3, 4, seed=1)
    one, none = torch.ones(2, 1), torch.zeros(2)
    with ops.backend(each_backend):
        outs = [
            ops.combine([x], one),
            ops.combine([x], one, none, seed=1),
            ops.multimodal_mean([x], one),
            ops.multimodal_mean({"a": x}, torch.ones(1, 1)),
            *ops.q_sample(x, {}, 0, sched, seed=1),
            ops.posterior_mean(x, e, {}, 5, sched),
            *(ops.posterior_sample(x, e, {"a": e}, 1, sched, clamp=c, seed=1) for c in (None, 1.0)),
        ]
        assert not storages(*outs) & storages(x, e, one, none)
        assert len(storages(*outs)) == len(outs)
        assert torch.equal(outs[0], x)
        leaf, coefs = x.clone().requires_grad_(), one.clone().requires_grad_()
        grad = torch.ones(2, 3, 4)
        grads = torch.autograd.grad(ops.combine([leaf, leaf[:1], Block(leaf, 0, 3)], torch.ones(2, 3)), leaf, grad)
        assert not storages(*grads) & storages(grad, leaf)
        grads = torch.autograd.grad(ops.combine([leaf], coefs), (leaf, coefs), grad)
        assert not storages(*grads) & storages(grad, leaf, coefs)


def test_q_sample_returns_the_noise_it_was_handed_in_its_own_type():
    """The very tensor where the type is z_t's (a copy would cost as much as the op), else its rounding."""
    sched, x, noise = schedule(), randn(2, 3), randn(2, 3, dtype=torch.float64, seed=1)
    z, eps = ops.q_sample(x.bfloat16(), {}, 5, sched, noise=noise)
    assert eps.dtype == z.dtype == torch.bfloat16 and torch.equal(eps, noise.bfloat16())
    z, eps = ops.q_sample(x.double(), {}, 5, sched, noise=noise)
    assert eps is noise and not storages(z) & storages(noise)


# --- backends -------------------------------------------------------------------------------------------------


def calls(dtype=torch.float32):
    """One call of every op; a name, a function, and the size of what it adds up."""
    sched, t = schedule(), torch.tensor([1, 20, 50])
    z, eps, a = (randn(3, 6, 5, 4, dtype=dtype, seed=i) for i in range(3))
    b, label = Block(randn(3, 2, 5, 4, dtype=dtype, seed=3), 4, 6), randn(3, 6, 1, 1, dtype=dtype, seed=4)
    present, weights = torch.tensor([[1, 1], [0, 1], [1, 0]]), randn(3, 3, seed=5)
    return {
        "randn": lambda: ops.randn((3, 6, 5, 4), seed=1, dtype=dtype),
        "combine": lambda: ops.combine([z, a, b], weights, torch.ones(3), seed=1),
        "multimodal_mean": lambda: ops.multimodal_mean([z, label, b], weights),
        "q_sample": lambda: ops.q_sample(z, {"a": label, "b": b}, t, sched, seed=1, present=present)[0],
        "posterior_mean": lambda: ops.posterior_mean(z, eps, {"b": b}, t, sched),
        "posterior_sample": lambda: ops.posterior_sample(z, eps, {"a": a}, t, sched, 0, seed=1),
        "posterior_sample, clamped": lambda: ops.posterior_sample(z, eps, {"a": a}, t, sched, clamp=1.0, seed=1),
    }


@DTYPES
@pytest.mark.parametrize("name", calls())
def test_the_automatic_backend_agrees_with_the_reference(dtype, name):
    """Both round the same sum, so they differ by its rounding errors, and by 4 ulp of the noise."""
    found = calls(dtype)[name]()
    with ops.backend("reference"):
        expected = calls(dtype)[name]()
        single = calls(torch.float64)[name]() if dtype != torch.float64 else expected
    arithmetic = ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]
    # The sums are of at most five terms below 10, and 1/sqrt(abar_T) takes the last sample's to 10^5.
    size = 10 * max(1.0, float(single.abs().max()))
    most = (
        16 * max(arithmetic, 2.0**-24 if "mean" not in name else 0) * size
        + 2 * ROUNDING[dtype] * expected.abs().double()
    )
    assert found.dtype == expected.dtype == dtype
    assert ((found.double() - expected.double()).abs() <= most).all()


def recorded(monkeypatch, module):
    """The names of the functions of a backend that are called from now on."""
    seen = []
    for name in ("combine", "scale"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, real=real: (seen.append(name), real(*a))[1])
    return seen


def force(monkeypatch, name):
    """As the environment variable would have it."""
    monkeypatch.setattr(backends, "_FORCED", name)
    monkeypatch.setattr(backends, "LOOKING", backends._looking())


def test_a_backend_can_be_forced(monkeypatch):
    """By `ops.backend`, by MMFAST_BACKEND, the first before the second; and else the best one runs."""
    force(monkeypatch, None)
    seen = recorded(monkeypatch, ops.reference)
    ran = backends.load("cpu")[1] is None
    x = torch.ones(1, 2, requires_grad=True)

    def count():
        seen.clear()
        ops.combine([x], torch.ones(1, 1)).sum().backward()
        return len(seen)

    assert count() == (0 if ran else 2)
    assert backends.choose("cpu").name == ("cpu" if ran else "reference")
    with ops.backend("reference"):
        assert count() == 2
    assert count() == (0 if ran else 2)
    force(monkeypatch, "reference")
    assert count() == 2
    if ran:
        with ops.backend("cpu"):
            assert count() == 0
            with ops.backend("reference"):
                assert count() == 2
            assert count() == 0
    with pytest.raises(RuntimeError, match="within"), ops.backend("reference"):
        raise RuntimeError("within")
    force(monkeypatch, "")
    assert count() == (0 if ran else 2), "an empty variable forces nothing; nor does a block that was left by an error"


@pytest.mark.parametrize("name", ["cuda", "triton", "gpu", "Reference"])
def test_a_backend_that_cannot_run_is_an_error(monkeypatch, name):
    """A BackendError (a ValueError) of one line that names it and says what can be done."""
    if name in ("cuda", "triton") and backends.load(name)[1] is None:
        pytest.skip(f"{name} can run here")
    with pytest.raises(BackendError, match=name) as caught, ops.backend(name):
        pytest.fail("the block should not be entered")
    assert "\n" not in str(caught.value)
    force(monkeypatch, name)
    with pytest.raises(BackendError, match=name) as caught:
        ops.randn((1, 2), seed=1)
    assert "\n" not in str(caught.value)
    assert issubclass(BackendError, MmfastError)
    with ops.backend("reference"):
        ops.randn((1, 2), seed=1)


def test_the_report_names_every_backend():
    found = backends.report()
    assert {"cpu", "reference", "cuda", "triton"} <= set(found)
    assert found["reference"]["available"]
    assert all(isinstance(entry["detail"], str) and entry["detail"] for entry in found.values())


# --- a check of the whole against plain numpy ---------------------------------------------------------------


@pytest.mark.parametrize("K", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (2, 3, 1, 130), (2, 2, 9000)])
def test_combine_against_numpy(each_backend, K, shape):
    """Up to forty terms, sizes around the kernels' tiles: the sum in float64, to the rounding of float32."""
    B = shape[0]
    terms, coefs, sigma = [randn(*shape, seed=i) for i in range(K)], randn(B, K, seed=99), randn(B, seed=98)
    identity = {"seed": 3, "sample_ids": torch.arange(B) * 5}
    with ops.backend(each_backend):
        eps = ops.randn(shape, **identity)
        found = ops.combine([*terms, eps], torch.cat((coefs, torch.zeros(B, 1)), 1), sigma, **identity)
    columns = [*zip(coefs.T, terms, strict=True), (sigma, eps)]
    parts = [c.double().numpy().reshape(-1, *[1] * (len(shape) - 1)) * x.double().numpy() for c, x in columns]
    error = np.abs(found.double().numpy() - sum(parts))
    assert (error <= (K + 3) * 2.0**-24 * 1.01 * sum(np.abs(p) for p in parts)).all()


def test_numpys_whole_numbers_are_whole_numbers():
    """Times, seeds, draws and streams, where tables are kept and where they are made; T of a schedule."""
    sched = mmfast.Schedule.cosine(np.int64(20), {"label": mmfast.bridge(2.0)})
    assert sched.T == 20 and torch.equal(sched.alpha_bar, mmfast.Schedule.cosine(20).alpha_bar)
    assert mmfast.Schedule.linear(np.uint8(20)).T == 20
    x, E = torch.randn(2, 3, 4, 4), {"label": torch.randn(2, 3, 1, 1)}
    for whole in (np.int64, np.int32, np.uint8):
        for _ in range(2):
            one = ops.q_sample(x, E, whole(5), sched, seed=whole(3), draw=whole(1), stream=whole(2))
            assert all(map(torch.equal, one, ops.q_sample(x, E, 5, sched, seed=3, draw=1, stream=2)))
            steps = [ops.step(x, x, E, t, sched, s, seed=0) for t, s in ((whole(9), whole(4)), (9, 4))]
            assert all(map(torch.equal, *steps))
            steps = [ops.step(x, x, E, t, sched, clamp=1.0, seed=0) for t in (whole(9), 9)]
            assert all(map(torch.equal, *steps))
            parts = [ops.q_sample(x, E, t, sched, seed=0, present=torch.eye(2)[:, :1])[0] for t in (whole(9), 9)]
            assert torch.equal(*parts)
            losses = [ops.diffusion_loss(x, x, t, sched, seed=whole(3)) for t in (whole(9), 9)]
            assert torch.equal(*losses)
    for wrong in (np.int64(21), np.float32(5), np.bool_(True)):
        with pytest.raises(mmfast.MmfastError, match=r"^t is "):
            ops.q_sample(x, E, wrong, sched, seed=0)
