"""What the process's formulas obey, whatever their numbers: Bayes' rule, chains of steps, equal forms, the ends."""

import math

import pytest
import torch
import truth
from hypothesis import given
from hypothesis import strategies as st

from mmfast import MmfastError, Schedule, ops, process


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
