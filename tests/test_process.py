"""q, its posterior and the predictions against the design's formulas, for any modalities, jump, type and layout."""

import math
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import truth
from hypothesis import given
from hypothesis import strategies as st

from mmfast import MmfastError, Schedule, ops, process
from mmfast.ops import Block

# Half a unit in the last place of a number near 1: what one rounding loses at most.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = list(ROUNDING)
IDENTITY = {"stream": 3, "draw": 2}


@dataclass
class Case:
    """A call's arguments as the ops take them, and the same in float64 numpy, dense, sample by sample."""

    sched: Schedule
    abar: np.ndarray
    z0: torch.Tensor | Block
    z0_dense: np.ndarray
    eps: torch.Tensor
    names: list[str]
    encodings: dict[str, torch.Tensor | Block] = field(default_factory=dict)
    dense: list[np.ndarray] = field(default_factory=list)
    present: torch.Tensor | None = None
    t: int | torch.Tensor = 1
    s: int | torch.Tensor | None = None
    times: list[tuple[int, int]] = field(default_factory=list)

    def W(self):
        """The weights' table, its columns in the order of the encodings given."""
        return self.sched.W.numpy()[:, [self.sched.names.index(name) for name in self.names]]

    def sample(self, b):
        """Of one sample: the weights and encodings of the modalities that it has."""
        there = [i for i in range(len(self.names)) if self.present is None or bool(self.present[b, i])]
        return self.W()[:, there], [self.dense[i][b] for i in there]

    def lost(self, b):
        """How much the subtractions 1 - a and 1 - abar_t, which both sides compute in float64, magnify rounding."""
        t, s = self.times[b]
        return 1 / min(1 - self.abar[t] / self.abar[s], 1 - self.abar[t])

    def check(self, found, terms_of, dtype, extra=0.0):
        """`found` is within the rounding errors of a sum of len(terms) products, a multiply and an add each, with
        coefficients rounded once to the type of the arithmetic; and of the result's own rounding to `dtype`."""
        arithmetic = ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]
        for b in range(len(self.z0_dense)):
            terms = terms_of(b)
            sizes = truth.size(terms)
            bound = (len(terms) + 3) * arithmetic * sizes + 16 * 2.0**-53 * self.lost(b) * sizes
            bound = bound * 1.01 + 1e-300  # products of roundings
            if arithmetic != ROUNDING[dtype]:
                # Below its normal numbers float16 has steps of 2^-24.
                bound = bound + (ROUNDING[dtype] * (np.abs(truth.total(terms)) + bound) + 2.0**-25)
            error = np.abs(found[b].double().numpy() - truth.total(terms))
            assert (error <= bound + extra).all(), f"sample {b}: {(error / bound).max():.3g} times the bound"


WEIGHTS = ["none", "carried", "bridge", "shift", "constant"]
KINDS = ["full", "label", "shared", "one channel", "number", "strided", "lower rank", "block", "label block"]


@st.composite
def cases(draw, dtype):
    """A schedule, a batch, and 0 to 5 modalities of mixed layouts, some missing."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    B, C, H, W = (draw(st.integers(1, most)) for most in (4, 4, 4, 3))
    T, N = draw(st.integers(2, 60)), draw(st.integers(0, 5))
    kinds = draw(st.lists(st.sampled_from(WEIGHTS), min_size=N, max_size=N))
    maker = draw(st.sampled_from([truth.linear, truth.cosine]))
    # The linear schedule's steps are made larger, as its 1000 are not here.
    abar = maker(T, 1e-3, 0.3) if maker is truth.linear else maker(T)
    scales = [draw(st.sampled_from([0.3, 1.0, 2.0, -1.0])) for _ in kinds]
    tables = {
        f"m{i}": torch.tensor(truth.weight(k, c, abar)) for i, (k, c) in enumerate(zip(kinds, scales, strict=True))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a z_T far from N(0, I), which is not the point here
        sched = Schedule(torch.tensor(abar), tables)

    def tensor(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    def term(kind):
        """A term of a layout, and the dense array that it stands for."""
        if kind.endswith("block"):
            start = draw(st.integers(0, C - 1))
            width = draw(st.integers(1, C - start))
            x = tensor(B, width, 1, 1) if kind == "label block" else tensor(B, width, H, W)
            dense = np.zeros((B, C, H, W))
            dense[:, start : start + width] = x.double().numpy()
            return Block(x, start, C), dense
        shapes = {"label": (B, C, 1, 1), "shared": (1, C, H, W), "one channel": (B, 1, H, W), "number": (1, 1, 1, 1)}
        if kind == "strided":
            x = tensor(W, B, H, 2 * C).permute(1, 3, 2, 0)[:, ::2]
        elif kind == "lower rank":
            x = tensor(C, 1, W)
        else:
            x = tensor(*shapes.get(kind, (B, C, H, W)))
        return x, np.broadcast_to(x.double().numpy(), (B, C, H, W))

    z0, z0_dense = term(draw(st.sampled_from(["full", "strided", "block"])))
    # Any subset of the modalities, in any order.
    names = draw(st.permutations(list(tables)))[: draw(st.integers(0, N))] if draw(st.booleans()) else list(tables)
    case = Case(sched, abar, z0, z0_dense, tensor(B, C, H, W), list(names))
    if N and draw(st.booleans()):
        case.present = torch.randint(0, 2, (B, len(names)), generator=rng).bool()
    for i, name in enumerate(names):
        x, dense = term(draw(st.sampled_from(KINDS)))
        raw = x.tensor if isinstance(x, Block) else x
        if case.present is not None and raw.dim() == 4 and len(raw) == B and (B > 1 or not case.present[0, i]):
            raw[~case.present[:, i]] = math.nan  # a missing encoding is not read
        case.encodings[name] = x
        case.dense.append(dense)
    if draw(st.booleans()):
        case.t = draw(st.integers(1, T))
        case.s = draw(st.sampled_from([None, draw(st.integers(0, case.t - 1))]))
        case.times = [(case.t, case.t - 1 if case.s is None else case.s)] * B
    else:
        case.t = torch.randint(1, T + 1, (B,), generator=rng)
        case.s = draw(st.sampled_from([None, (torch.rand(B, generator=rng) * case.t).long()]))
        s = case.t - 1 if case.s is None else case.s
        case.times = list(zip(case.t.tolist(), s.tolist(), strict=True))
    return case


def each_type(test):
    """The test's hypothesis cases for each floating type."""
    return pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])(test)


@each_type
@given(data=st.data())
def test_q_sample(each_backend, dtype, data):
    """z_t and eps against the marginal, with noise from an identity and handed in."""
    case = data.draw(cases(dtype))
    shape = case.z0_dense.shape
    ids = torch.arange(shape[0]) * 7
    with ops.backend(each_backend):
        z, eps = ops.q_sample(
            case.z0, case.encodings, case.t, case.sched, seed=5, sample_ids=ids, present=case.present, **IDENTITY
        )
        noise = ops.randn(shape, seed=5, sample_ids=ids, **IDENTITY)
        handed, same = ops.q_sample(case.z0, case.encodings, case.t, case.sched, noise=case.eps, present=case.present)
    assert z.dtype == eps.dtype == dtype
    assert torch.equal(eps, noise.to(dtype))
    assert torch.equal(same, case.eps)

    def terms(noise):
        def of(b):
            (W, E), (t, _) = case.sample(b), case.times[b]
            mean, deviation = truth.marginal(case.abar, W, t, case.z0_dense[b], E)
            return [*mean, (deviation, noise[b].double().numpy())]

        return of

    # The noise inside is the float32 one, before it is rounded to a smaller type.
    case.check(z, terms(noise), dtype)
    case.check(handed, terms(case.eps), dtype)


@each_type
@given(data=st.data())
def test_posterior_mean(each_backend, dtype, data):
    """The mean in its eps form, for any jump."""
    case = data.draw(cases(dtype))
    with ops.backend(each_backend):
        found = ops.posterior_mean(case.z0, case.eps, case.encodings, case.t, case.sched, case.s, present=case.present)
    assert found.dtype == dtype

    def terms(b):
        W, E = case.sample(b)
        return truth.posterior(case.abar, W, *case.times[b], case.z0_dense[b], case.eps[b].double().numpy(), E)

    case.check(found, terms, dtype)


@each_type
@given(data=st.data(), clamp=st.sampled_from([None, 1.0, 0.3, (-0.5, 2.0), 6e4]))
def test_posterior_sample(each_backend, dtype, data, clamp):
    """The ancestral step with its noise, the predicted z_0 clamped or not, for any jump."""
    case = data.draw(cases(dtype))
    shape = case.z0_dense.shape
    ids = torch.arange(shape[0]) + (1 << 33)
    with ops.backend(each_backend):
        found = ops.posterior_sample(
            case.z0, case.eps, case.encodings, case.t, case.sched, case.s, clamp,
            seed=-9, sample_ids=ids, present=case.present, **IDENTITY,
        )  # fmt: skip
        noise = ops.randn(shape, seed=-9, sample_ids=ids, **IDENTITY).double().numpy()
    assert found.dtype == dtype
    low, high = clamp if isinstance(clamp, tuple) else (-(clamp or 0), clamp)
    arithmetic = ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]
    extra = np.zeros(shape)

    def terms(b):
        (W, E), (t, s), z_t, eps = case.sample(b), case.times[b], case.z0_dense[b], case.eps[b].double().numpy()
        step = [(truth.deviation(case.abar, t, s), noise[b])]
        if clamp is None:
            return truth.posterior(case.abar, W, t, s, z_t, eps, E) + step
        parts = truth.predicted_z0(case.abar, W, t, z_t, eps, E)
        z0 = np.clip(truth.total(parts), low, high)
        return truth.posterior_from_z0(case.abar, W, t, s, z_t, z0, E) + step

    if clamp is not None:
        # z_0 is itself a sum with rounding errors, rounded to the result's type, and enters with c0.
        for b in range(shape[0]):
            (W, E), (t, s) = case.sample(b), case.times[b]
            parts = truth.predicted_z0(case.abar, W, t, case.z0_dense[b], case.eps[b].double().numpy(), E)
            error = ((len(parts) + 3) * arithmetic + 16 * 2.0**-53 * case.lost(b)) * truth.size(parts)
            z0 = np.clip(truth.total(parts), low, high)
            c0 = truth.posterior_from_z0(case.abar, W[:, :0], t, s, 0.0, 0.0, [])[0][0]
            extra[b] = 1.01 * c0 * (error + ROUNDING[dtype] * np.abs(z0) + (dtype == torch.float16) * 2.0**-24)
            extra[b] *= 1 + 2 * ROUNDING[dtype]
    for b in range(shape[0]):
        only = Case(
            case.sched, case.abar, case.z0, case.z0_dense[b : b + 1], case.eps, case.names, times=[case.times[b]]
        )
        only.check(found[b : b + 1], lambda _, b=b: terms(b), dtype, extra[b])


@each_type
@given(data=st.data())
def test_multimodal_mean(each_backend, dtype, data):
    """sum_i weights[:, i] E_i, for weights of one row and of a row a sample."""
    case = data.draw(cases(dtype).filter(lambda c: c.names))
    B = len(case.z0_dense)
    one_row = data.draw(st.booleans())
    weights = torch.linspace(-1, 2, (1 if one_row else B) * len(case.names)).reshape(-1, len(case.names))
    if case.present is not None:
        weights = weights * case.present
    # A full term first, so that all broadcast to the whole space.
    weights = torch.cat((weights.new_full((len(weights), 1), 0.5), weights), 1)
    with ops.backend(each_backend):
        found = ops.multimodal_mean([case.eps, *case.encodings.values()], weights)

    def terms(b):
        row = weights[0 if len(weights) == 1 else b].double().tolist()
        there = [(w, e[b]) for w, e in zip(row[1:], case.dense, strict=True) if w]
        return [(row[0], case.eps[b].double().numpy()), *there]

    case.check(found, terms, dtype)


def a_schedule(T=40, **weights):
    """A cosine schedule with the given tables, and encodings for them in float64."""
    names = weights or {"a": ("bridge", 2.0), "b": ("carried", 0.7), "c": ("shift", 1.3)}
    abar = truth.cosine(T)
    return Schedule.cosine(T, {n: torch.tensor(truth.weight(*w, abar)) for n, w in names.items()}), abar


@pytest.mark.filterwarnings("ignore:z_T is far")
def test_chain_of_steps_gives_the_marginal():
    """q(z_t | z_{t-1}, X), applied t times by hand with the package's w_t, has the moments that q_sample has."""
    sched, abar = a_schedule()
    g = torch.Generator().manual_seed(1)
    z0, *E = torch.randn(4, 2, 3, generator=g, dtype=torch.float64)
    encodings = dict(zip(sched.names, E, strict=True))
    zero, one = torch.zeros_like(z0), torch.ones_like(z0)
    # Carried starts from W_0 = s: z at t = 0 holds the encoding already.
    mean, variance = z0 + sum(W * e for W, e in zip(sched.W[0], E, strict=True)), 0.0
    for t in range(1, sched.T + 1):
        a, w = abar[t] / abar[t - 1], process.jump(sched, t).w[0]
        mean = math.sqrt(a) * (mean + sum(x * e for x, e in zip(w, E, strict=True)))
        variance = a * variance + 1 - a
        found = ops.q_sample(z0, encodings, t, sched, noise=zero)[0]
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-13)
        deviation = ops.q_sample(z0, encodings, t, sched, noise=one)[0] - found
        torch.testing.assert_close(deviation, torch.full_like(z0, math.sqrt(variance)), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:z_T is far")
@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (7, 3), (40, 39), (40, 1), (23, 0)])
def test_posterior_is_bayes_rule(t, s):
    """Condition the joint Gaussian of (z_s, z_t), made from single forward steps, on z_t.

    The step's mean is affine and its variance known, so E[z_s], E[z_t], their variances and their covariance
    follow step by step; then E[z_s | z_t] = E z_s + cov/var_t (z_t - E z_t), var = var_s - cov^2/var_t.
    """
    sched, abar = a_schedule()
    W = sched.W.numpy()
    g = torch.Generator().manual_seed(2)
    z0, z_t, *E = torch.randn(5, 2, 3, generator=g, dtype=torch.float64)
    encodings = dict(zip(sched.names, E, strict=True))
    mean, variance, covariance = z0 + sum(x * e for x, e in zip(W[0], E, strict=True)), 0.0, 0.0
    at_s = (mean, 0.0)
    for u in range(1, t + 1):
        a = abar[u] / abar[u - 1]
        w = W[u] / math.sqrt(a) - W[u - 1]
        covariance = math.sqrt(a) * covariance if u > s else 0.0
        mean = math.sqrt(a) * (mean + sum(x * e for x, e in zip(w, E, strict=True)))
        variance = a * variance + 1 - a
        if u == s:
            at_s = (mean, variance)
            covariance = variance
    expected = at_s[0] + covariance / variance * (z_t - mean)
    expected_variance = at_s[1] - covariance**2 / variance
    eps = (z_t - mean) / math.sqrt(variance)
    found = ops.posterior_mean(z_t, eps, encodings, t, sched, s)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    noise = ops.randn((2, 3), seed=4, dtype=torch.float64)
    step = ops.posterior_sample(z_t, eps, encodings, t, sched, s, seed=4) - found
    torch.testing.assert_close(step, math.sqrt(max(expected_variance, 0.0)) * noise, rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:z_T is far")
@given(data=st.data())
def test_eps_form_is_the_x0_form(data):
    """A clamp that holds nothing takes the other form of the same mean."""
    sched, _ = a_schedule()
    t = data.draw(st.integers(1, 39))  # at T the cosine schedule's 1/sqrt(abar_T) is 2e4: nothing is left to compare
    s = data.draw(st.integers(0, t - 1))
    g = torch.Generator().manual_seed(t)
    z_t, eps, *E = torch.randn(5, 2, 3, generator=g, dtype=torch.float64)
    encodings = dict(zip(sched.names, E, strict=True))
    a, b = (ops.posterior_sample(z_t, eps, encodings, t, sched, s, c, seed=1) for c in (None, 1e9))
    # z_0 is about |z_t| / sqrt(abar_t): its rounding is magnified so much, and 1 - a costs as much again.
    loss = 1 / float(sched.alpha_bar[t]) ** 0.5 / float(1 - sched.alpha_bar[1])
    torch.testing.assert_close(a, b, rtol=0, atol=2e-14 * loss)
    j = process.jump(sched, t, s)
    c0, cy, of_E = process.posterior_mean_x0(j)
    of_z, of_eps, w = process.posterior_mean_eps(j)
    # Put z_t = sqrt(abar_t) z_0 + m_t + sqrt(1 - abar_t) eps in both: the coefficients of z_0, eps, E agree.
    root, noise = j.alpha_bar_t.sqrt(), (1 - j.alpha_bar_t).sqrt()
    torch.testing.assert_close(c0 + cy * root, of_z * root, rtol=1e-11, atol=0)
    torch.testing.assert_close(cy * noise, of_z * noise + of_eps, rtol=0, atol=1e-11)
    torch.testing.assert_close(of_E + cy * j.W_t, of_z * j.W_t + w, rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:z_T is far")
def test_jumps_compose():
    """a and w of a jump are those of its single steps put together: a the product, w by the forward recursion."""
    sched, abar = a_schedule()
    for t, s in ((5, 0), (40, 13), (9, 8)):
        j = process.jump(sched, t, s)
        a, carried = 1.0, torch.zeros(3, dtype=torch.float64)
        for u in range(s + 1, t + 1):
            step = process.jump(sched, u)
            a *= float(step.a)
            carried = step.a.sqrt() * (carried + step.w[0])
        assert float(j.a) == pytest.approx(a, rel=1e-12)
        torch.testing.assert_close(j.w[0] * math.sqrt(a), carried, rtol=0, atol=1e-12)
        assert float(j.a) == pytest.approx(abar[t] / abar[s], rel=1e-12)


@pytest.mark.parametrize("t", [1, 20, 39])
@pytest.mark.parametrize("name", ["eps", "x0", "v"])
def test_targets(name, t):
    """From z_0 and eps to y_t and the target, and from y_t and the target back to z_0 and eps."""
    abar = torch.tensor(truth.cosine(40))[t]
    z0, eps = 0.7, -1.3
    r, q = math.sqrt(abar), math.sqrt(1 - abar)
    y = r * z0 + q * eps
    expected = {"eps": eps, "x0": z0, "v": r * eps - q * z0}[name]
    kind = process.TARGETS[name]
    of_z0, of_eps = map(float, kind.target(abar))
    assert of_z0 * z0 + of_eps * eps == pytest.approx(expected, abs=1e-14)
    of_y, of_prediction = map(float, kind.x0(abar))
    assert of_y * y + of_prediction * expected == pytest.approx(z0, abs=1e-13)
    of_y, of_prediction = map(float, kind.eps(abar))
    assert of_y * y + of_prediction * expected == pytest.approx(eps, abs=1e-13)


def test_int_and_tensor_times_agree(each_backend):
    """t = 7 for all is t = [7, 7, 7], [7] of any integer type and s given as either."""
    sched, _ = a_schedule(a=("carried", 1.0))
    z, eps, e = torch.randn(3, 3, 2, 4, 4)
    with ops.backend(each_backend):
        ts = [7, torch.tensor(7), torch.full((3,), 7), torch.full((3,), 7, dtype=torch.int32)]
        marginals = [ops.q_sample(z, {"a": e}, t, sched, noise=eps)[0] for t in ts]
        steps = [
            ops.posterior_sample(z, eps, {"a": e}, t, sched, s, 1.0, seed=1)
            for t in ts[::2]
            for s in (4, torch.full((3,), 4))
        ]
    assert all(torch.equal(x, marginals[0]) for x in marginals)
    assert all(torch.equal(x, steps[0]) for x in steps)


def test_tables_at_the_ends():
    """t = 0 is data, with what is carried; a step to s = 0 has no noise."""
    sched, _ = a_schedule(a=("carried", 0.5), b=("bridge", 3.0))
    z0, a, b = torch.randn(3, 2, 5, dtype=torch.float64)
    found, _ = ops.q_sample(z0, {"a": a, "b": b}, 0, sched, seed=1)
    torch.testing.assert_close(found, z0 + 0.5 * a, rtol=0, atol=1e-15)
    args = (z0, a, {"b": b}, 3, sched, 0)
    torch.testing.assert_close(ops.posterior_sample(*args, seed=1), ops.posterior_mean(*args), rtol=0, atol=0)
    with pytest.raises(MmfastError, match="t"):
        process.marginal(sched, 41)


def test_clamp_may_be_wider_than_the_type(each_backend):
    """A clamp beyond float16's range holds nothing: it is no error."""
    sched, _ = a_schedule(a=("carried", 0.5))
    z, eps = torch.randn(2, 3, 5).half()
    with ops.backend(each_backend):
        found = ops.posterior_sample(z, eps, {}, 5, sched, clamp=1e6, seed=1)
        single = ops.posterior_sample(z.float(), eps.float(), {}, 5, sched, clamp=1e6, seed=1)
    torch.testing.assert_close(found.float(), single, rtol=2**-10, atol=2**-10)
