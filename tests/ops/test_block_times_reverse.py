"""The reverse process with a time for each block of channels; and what is refused, forward too."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import truth
from hypothesis import given
from spaces import ABAR, SCHED, UNIT, Space, T, W, noise_of, spaces

from mmfast import MmfastError, ops
from mmfast.ops import Block


def jump_of(space, s, b, name):
    return int(s[b, ("z0", *space.names).index(name)])


def posterior_terms(space, s):
    def terms(b, name, span, t):
        z, eps = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
        to = jump_of(space, s, b, name)
        if to == t:
            return [(1.0, z)]
        encoding = [] if name == "z0" else [space.value(name, b)]
        own = np.zeros((T + 1, 0)) if name == "z0" else W[name][:, None]
        return truth.posterior(ABAR, own, t, to, z, eps, encoding)

    return terms


@given(spaces(), st.booleans())
def test_the_posterior_of_each_block_alone(each_backend, space, default):
    s = (space.t - 1).clamp(min=0) if default else space.s
    noise = noise_of(space, seed=6)
    with ops.backend(each_backend):
        call = space.z_t, space.eps, space.encodings, space.t, SCHED, None if default else s
        mean, sample = ops.posterior_mean(*call), ops.posterior_sample(*call, seed=6)
    terms = posterior_terms(space, s)

    def with_noise(b, name, span, t):
        to = jump_of(space, s, b, name)
        return [*terms(b, name, span, t), (truth.deviation(ABAR, t, to) if to < t else 0.0, noise[b, span])]

    space.expect(mean, terms)
    space.expect(sample, with_noise, np.abs(noise).max())


@given(spaces(), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 0.4]), st.booleans())
def test_the_step_of_each_block_alone(each_backend, space, eta, clamp, whole):
    """z0's block by the clamped z0hat; an encoding's of z0hat = 0 there, or as its own part of the prediction says."""
    noise, s = noise_of(space, seed=6), space.s
    span0 = space.span["z0"]
    eps = space.eps if whole else space.block("z0", space.eps[:, span0])
    with ops.backend(each_backend):
        z, z0hat = ops.step(
            space.z_t, eps, space.encodings, space.t, SCHED, s, eta=eta, clamp=clamp, seed=6
        )  # fmt: skip
    assert z0hat.shape == space.x["z0"].shape

    def terms(b, name, span, t):
        to = jump_of(space, s, b, name)
        z_t, e = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
        if to == t:
            return [(1.0, z_t)]
        own, encoding = (np.zeros((T + 1, 0)), []) if name == "z0" else (W[name][:, None], [space.value(name, b)])
        hat = [(c, x) for c, x in truth.predicted_z0(ABAR, own, t, z_t, e, encoding)]
        if name == "z0" and clamp is not None:
            hat = [(1.0, np.clip(truth.total(hat), -clamp, clamp))]
        elif name != "z0" and not whole:
            hat = []
        sigma = eta * truth.deviation(ABAR, t, to)
        of_y = math.sqrt((1 - ABAR[to] - sigma**2) / (1 - ABAR[t])) if to else 0.0
        of_z0 = math.sqrt(ABAR[to]) - of_y * math.sqrt(ABAR[t])
        parts = [(of_z0 * c, x) for c, x in hat] + [(of_y, z_t), (sigma, noise[b, span])]
        return parts + [(-of_y * own[t, 0], x) for x in encoding] + [(own[to, 0], x) for x in encoding]

    space.expect(z, terms, np.abs(noise).max())
    for b, name, span, t in space.each(space.t):
        if name == "z0":
            z_t, e = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
            hat = truth.predicted_z0(ABAR, np.zeros((T + 1, 0)), t, z_t, e, [])
            want, bound = truth.total(hat), 8 * UNIT[space.dtype] * truth.size(hat) + 2.0**-22
            want = want if clamp is None else np.clip(want, -clamp, clamp)
            assert (np.abs(z0hat[b].double().numpy() - want) <= bound + 2.0**-22 * truth.size(hat)).all()


def test_a_clamped_posterior_sample_is_the_step_with_its_eps(each_backend):
    space = Space(8)
    call = space.encodings, space.t, SCHED, space.s
    with ops.backend(each_backend):
        sample = ops.posterior_sample(space.z_t, space.eps, *call, 0.3, seed=6)
        assert torch.equal(sample, ops.step(space.z_t, space.eps, *call, clamp=0.3, seed=6)[0])


@pytest.mark.parametrize("time", [0, 17, T])
def test_a_block_whose_time_stays_is_left_alone(each_backend, time):
    """Bit for bit, and from t = 0 too, where the formulas are 0/0; the others go on."""
    space, block = Space(3, dtype=torch.float32), Block
    names = ("z0", *space.names)
    prediction = block(space.eps[:, space.span["z0"]].contiguous(), space.span["z0"].start, space.channels)
    for still in names:
        t, s = space.t.clamp(min=2), torch.ones_like(space.t)
        t[:, names.index(still)] = s[:, names.index(still)] = time
        call = space.encodings, t, SCHED, s
        with ops.backend(each_backend):
            results = [
                ops.posterior_mean(space.z_t, space.eps, *call),
                ops.posterior_sample(space.z_t, space.eps, *call, seed=1),
                ops.posterior_sample(space.z_t, space.eps, *call, 0.5, seed=1),
                ops.step(space.z_t, space.eps, *call, seed=1)[0],
                ops.step(space.z_t, prediction, *call, seed=1, clamp=0.5)[0],
            ]
            if time == 0:  # by default too
                results.append(ops.posterior_sample(space.z_t, space.eps, *call[:-1], seed=1))
        for z in results:
            assert z.isfinite().all()
            for name, span in space.span.items():
                assert torch.equal(z[:, span], space.z_t[:, span]) == (name == still)


def test_from_z_t_back_to_an_earlier_marginal(each_backend):
    """With the true eps the jump's mean is sqrt(abar_s) z_0 + c eps (W_s E_i + c eps), c = sqrt(a) (1 - abar_s)/sqrt(1
    - abar_t): the marginal's mean at s and its share of the noise."""
    space = Space(4, dtype=torch.float64)
    with ops.backend(each_backend):
        z_t, eps = space.q_sample(seed=2)
        mean = ops.posterior_mean(z_t, eps, space.encodings, space.t, SCHED, space.s)

    def terms(b, name, span, t):
        to = jump_of(space, space.s, b, name)
        weight = math.sqrt(ABAR[to]) if name == "z0" else W[name][to]
        share = math.sqrt(ABAR[t] / ABAR[to]) * (1 - ABAR[to]) / math.sqrt(1 - ABAR[t])
        return [(weight, space.value(name, b)), (share, eps[b, span].numpy())]

    for b, name, span, t in space.each(space.t):
        parts = terms(b, name, span, t)
        np.testing.assert_allclose(mean[b, span].numpy(), truth.total(parts), rtol=0, atol=1e-9 * 10)


def test_a_step_that_reads_no_missing_encoding(each_backend):
    space = Space(6)
    present = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]])
    for i, name in enumerate(space.names):
        space.x[name] = space.x[name].clone()
        space.x[name][present[:, i] == 0] = math.nan
    call = space.encodings, space.t, SCHED, space.s
    with ops.backend(each_backend):
        z, _ = ops.step(space.z_t, space.block("z0"), *call, seed=1, present=present)
        for name in space.names:
            space.x[name].nan_to_num_(0.0)
        zero, _ = ops.step(space.z_t, space.block("z0"), *call, seed=1)
    torch.testing.assert_close(z, zero, rtol=0, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------


SPACE = Space(1, names=("a", "b"), z0_first=True)
Z0, E, TIMES = SPACE.block("z0"), SPACE.encodings, SPACE.t
PLAIN = SPACE.x["z0"].new_zeros(SPACE.shape)


def q(z0=Z0, encodings=E, t=TIMES, **options):
    return ops.q_sample(z0, encodings, t, SCHED, **options)


def jump(z_t=PLAIN, eps=PLAIN, encodings=E, t=TIMES, s=None):
    return ops.posterior_mean(z_t, eps, encodings, t, SCHED, s)


def moved(block, by):
    return Block(block.tensor, block.start + by, block.channels + by)


def wider(block):
    return Block(block.tensor, block.start, block.channels + 1)


WRONG = {
    "a time for too few": (lambda: q(t=TIMES[:, :2]), r"t is torch.int64 \[3, 2\].*int64 \[3, 3\]"),
    "a time for too few samples": (lambda: q(t=TIMES[:1]), r"t is torch.int64 \[1, 3\].*int64 \[3, 3\]"),
    "times of floats": (lambda: q(t=TIMES.float()), r"t is torch.float32"),
    "a time too late": (lambda: q(t=TIMES + T), f"t runs from .*0 .. {T}"),
    "a time too early": (lambda: q(t=TIMES - T - 1), f"t runs from .*0 .. {T}"),
    "z0 no block": (lambda: q(PLAIN), "t is .*z0 is a tensor of all channels.*Block"),
    "an encoding no block": (lambda: q(encodings={**E, "a": PLAIN}), r"encodings\['a'\] is a tensor of all channels"),
    "blocks that overlap": (lambda: q(encodings={**E, "a": Z0}), "z0, encodings cover the channels .*not overlap"),
    "as many channels as there are, some twice": (
        lambda: q(
            Block(torch.zeros(3, 2, 4), 0, 6),
            {"a": Block(torch.zeros(3, 2, 4), 1, 6), "b": Block(torch.zeros(3, 2, 4), 4, 6)},
        ),
        "z0 0 .. 1, a 1 .. 2, b 4 .. 5 of 6",
    ),
    "channels of nobody": (
        lambda: q(moved(Z0, 1), {name: moved(x, 1) for name, x in E.items()}),
        "z0, encodings cover the channels .*cover all",
    ),
    "a channel of nobody at the end": (
        lambda: q(wider(Z0), {name: wider(x) for name, x in E.items()}, seed=1),
        "z0, encodings cover the channels .*cover all",
    ),
    "an encoding left out": (lambda: q(encodings={"a": E["a"]}, t=TIMES[:, :2]), "z0, encodings cover the channels"),
    "z_t a block": (lambda: jump(Z0), "z_t is .*a tensor"),
    "s after t": (lambda: jump(t=TIMES * 0 + 3, s=TIMES * 0 + 4), "s is after t"),
    "s for the batch": (lambda: jump(s=TIMES[:, 0]), r"s is torch.int64 \[3\].*int64 \[3, 3\]"),
    "t for the batch": (lambda: jump(t=TIMES[:, 0], s=TIMES), r"t is torch.int64 \[3\].*int64 \[3, 3\]"),
    "t an int": (lambda: jump(t=5, s=TIMES), r"t is 5.*int64 \[3, 3\]"),
    "encodings that overlap": (lambda: jump(encodings={**E, "a": Z0, "b": Z0}), "encodings cover .*one run"),
    "a prediction of other channels": (lambda: jump(eps=E["a"]), "eps is a Block of .*z0's"),
    "the loss": (lambda: ops.diffusion_loss(PLAIN, PLAIN, TIMES, SCHED, seed=1), "t "),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name, kept):
    SCHED.derived.clear()
    if kept:
        q(t=3), jump(t=3)
    call, message = WRONG[name]
    with pytest.raises(MmfastError, match=message):
        call()
