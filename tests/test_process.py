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

from mmfast import Schedule, ops
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
