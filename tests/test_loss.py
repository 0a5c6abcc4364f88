"""The four parts of the bound: against Monte Carlo, against closed forms, and added up for a linear-Gaussian model."""

import itertools
import math

import numpy as np
import pytest
import torch
import truth
from scipy import stats

from mmfast import MmfastError, Schedule, loss, ops
from mmfast.ops import Block

pytestmark = pytest.mark.filterwarnings("ignore:z_T is far")

ABAR = truth.linear(6, 0.05, 0.5)  # few steps, all of which matter; z_T is not quite N(0, I)
WEIGHTS = {"a": ("bridge", 1.5), "b": ("carried", 0.8)}
W = np.stack([truth.weight(*w, ABAR) for w in WEIGHTS.values()], 1)


def schedule():
    return Schedule(torch.tensor(ABAR), {name: torch.tensor(W[:, i]) for i, name in enumerate(WEIGHTS)})


def within(samples, value, errors=4.5, most=0.02):
    """The mean of the samples is the value, within so many standard errors, which are small against the value.

    4.5 deviations have a probability of 7e-6; seeds are fixed, so a test passes always or never.
    """
    error = samples.std() / math.sqrt(len(samples))
    assert error < most * abs(value), "the Monte Carlo estimate is too rough to show anything"
    assert abs(samples.mean() - value) < errors * error


def test_L0_is_the_divergence_of_z_T():
    """KL by sampling: the mean of ln q(z_T | z_0, X) - ln N(z_T; 0, I) over z_T ~ q."""
    rng = np.random.default_rng(0)
    z0, a, b = rng.normal(size=(3, 4))
    mean = truth.total(truth.marginal(ABAR, W, 6, z0, [a, b])[0])
    variance = 1 - ABAR[6]
    z = mean + math.sqrt(variance) * rng.normal(size=(400_000, 4))
    samples = (truth.log_normal(z, mean, variance) - truth.log_normal(z, 0, 1)).sum(1)
    z0, a, b = (torch.tensor(x)[None] for x in (z0, a, b))
    found = loss.L0(schedule(), z0, {"a": a, "b": b})
    assert found.shape == (1,)
    within(samples, float(found))


def test_L0_for_each_sample_with_blocks_and_missing_modalities():
    """The closed form sample by sample, in float32, where encodings are blocks and some are missing."""
    g = torch.Generator().manual_seed(0)
    image = torch.randn(5, 2, 3, 3, generator=g)
    a, b = torch.randn(5, 1, 1, 1, generator=g), torch.randn(5, 1, 3, 3, generator=g)
    present = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0], [1, 1]]).bool()
    b[2:4] = math.nan
    found = loss.L0(schedule(), Block(image, 0, 4), {"a": Block(a, 2, 4), "b": Block(b, 3, 4)}, present)
    v, D = 1 - ABAR[6], 4 * 9
    for i in range(5):
        square = ABAR[6] * float(image[i].double().square().sum())
        square += W[6, 0] ** 2 * 9 * float(a[i].double().square().sum()) * bool(present[i, 0])
        square += W[6, 1] ** 2 * float(b[i].double().square().sum()) if present[i, 1] else 0.0
        # D v + square - D loses what D is large against the result: D roundings of 2^-24, and the sum's own.
        assert float(found[i]) == pytest.approx(0.5 * (D * v + square - D - D * math.log(v)), abs=D * 2**-22)


def test_L0_of_a_good_schedule_is_not_lost_in_float32():
    """Near the prior, D v - D and -D ln v all but cancel: a divergence of 1e-5 nats must not come out as 0 or less.

    The mean's float32 rounding costs 2^-22 of each square; the rest can be had to float64.
    """
    sched = Schedule.cosine(1000, {"a": torch.tensor(truth.cosine(1000)).sqrt()})
    z0, a = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = loss.L0(sched, z0.double(), {"a": a.double()})
    assert (exact > 0).all()
    torch.testing.assert_close(loss.L0(sched, z0, {"a": a}).double(), exact, rtol=1e-5, atol=0)


def noise(t, z_t, z0, encodings, columns=slice(None)):
    """eps of z_t = sqrt(abar_t) z_0 + sum_i W_t^(i) E_i + sqrt(1 - abar_t) eps."""
    mean = truth.total(truth.marginal(ABAR, W[:, columns], t, z0, encodings)[0])
    return (z_t - mean) / math.sqrt(1 - ABAR[t])


@pytest.mark.parametrize("wider", [1.0, 1.7])
@pytest.mark.parametrize("t", [2, 4, 6])
def test_L1_is_the_divergence_of_the_steps(t, wider):
    """KL by sampling: ln q(z_{t-1} | z_t, z_0, X) - ln p(z_{t-1} | z_t), of other z_0, E and, if wider, variance."""
    rng = np.random.default_rng(t)
    z_t, z0, z0_hat, a, b, a_hat = rng.normal(size=(6, 4))
    b_hat = b  # given: the same on both sides
    q = truth.total(truth.posterior(ABAR, W, t, t - 1, z_t, noise(t, z_t, z0, [a, b]), [a, b]))
    p = truth.total(truth.posterior(ABAR, W, t, t - 1, z_t, noise(t, z_t, z0_hat, [a_hat, b_hat]), [a_hat, b_hat]))
    u = truth.deviation(ABAR, t, t - 1) ** 2
    v = wider * u
    z = q + math.sqrt(u) * rng.normal(size=(400_000, 4))
    samples = (truth.log_normal(z, q, u) - truth.log_normal(z, p, v)).sum(1)
    z0, z0_hat, a, b, a_hat = (torch.tensor(x)[None] for x in (z0, z0_hat, a, b, a_hat))
    variance = None if wider == 1 else torch.tensor([v], dtype=torch.float64)
    found = loss.L1(schedule(), t, z0, z0_hat, {"a": a, "b": b}, {"a": a_hat, "b": b}, variance)
    within(samples, float(found))
    # The same written down: the means' part, and the variances', which is 0 for equal ones.
    expected = ((q - p) ** 2).sum() / (2 * v) + 2 * (1 / wider - 1 + math.log(wider))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    # And what is given adds nothing, whatever it is.
    other = loss.L1(schedule(), t, z0, z0_hat, {"b": b + 3, "a": a}, {"a": a_hat, "b": b + 3}, variance)
    assert float(other) == pytest.approx(float(found), rel=1e-12)


def test_L1_for_each_sample():
    """A t for each sample, float32, encodings broadcast; zero where the prediction is the truth."""
    g = torch.Generator().manual_seed(3)
    z0, z0_hat = torch.randn(2, 5, 2, 4, 4, generator=g)
    a, a_hat = torch.randn(2, 5, 2, 1, 1, generator=g)
    t = torch.tensor([2, 3, 4, 5, 6])
    found = loss.L1(schedule(), t, z0, z0_hat, {"a": a}, {"a": a_hat})
    for i in range(5):
        z0_gap, a_gap = (x[i].double().numpy() for x in (z0 - z0_hat, a - a_hat))
        eps_gap = noise(t[i], np.zeros_like(z0_gap), z0_gap, [a_gap], slice(1))
        gap = truth.total(truth.posterior(ABAR, W[:, :1], t[i], t[i] - 1, np.zeros_like(z0_gap), eps_gap, [a_gap]))
        expected = (gap**2).sum() / (2 * truth.deviation(ABAR, int(t[i]), int(t[i]) - 1) ** 2)
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)
    # Of equal predictions rounding alone is left, squared.
    assert (loss.L1(schedule(), t, z0, z0, {"a": a}, {"a": a}) < 1e-10).all()


def test_L1_has_no_term_of_the_first_step():
    """That is L3's."""
    x, schedule = torch.zeros(2, 3), Schedule.cosine(10)
    for t in (1, 11):
        with pytest.raises(MmfastError, match=rf"t is {t}; it should lie in 2 \.\. 10"):
            loss.L1(schedule, t, x, x, {}, {})


def test_L1_is_finite_without_signal_at_T():
    """At abar_T = 0 the posterior is sqrt(abar_s) z_0 + m_s with the variance 1 - abar_s: z_T says nothing."""
    abar, bridge, x = [1.0, 0.8, 0.3, 0.0], [0.0, 0.6, 0.9, 0.2], [0.5, -0.2]
    sched = Schedule(abar, {"a": bridge})
    z0, hat = (torch.tensor([[v]], dtype=torch.float64) for v in x)
    found = loss.L1(sched, 3, z0, hat, {"a": z0 + 1}, {"a": hat})
    gap = math.sqrt(0.3) * 0.7 + 0.9 * 1.7
    assert float(found) == pytest.approx(gap**2 / (2 * 0.7), rel=1e-12)
    near = Schedule([*abar[:3], 1e-14], {"a": bridge})
    assert float(loss.L1(near, 3, z0, hat, {"a": z0 + 1}, {"a": hat})) == pytest.approx(float(found), rel=1e-6)


def test_L2_adds_the_modalities():
    """-ln p of independent heads adds up: a class and a Gaussian, with their densities written out."""
    logits, label = torch.tensor([[0.3, -1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64), [2, 0]
    nll = {
        "label": torch.nn.functional.cross_entropy(logits, torch.tensor(label), reduction="none"),
        "vector": torch.tensor([-truth.log_normal(0.4, 0.1, 0.25), -truth.log_normal(-1.0, 0.1, 0.25)]),
    }
    found = loss.L2(nll)
    for i, (row, k) in enumerate(zip(logits.exp().tolist(), label, strict=True)):
        expected = -math.log(row[k] / sum(row)) - truth.log_normal([0.4, -1.0][i], 0.1, 0.25)
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(MmfastError, match="nll"):
        loss.L2({})


def levels(bins, dtype=torch.float64):
    return torch.linspace(-1, 1, bins, dtype=dtype)


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("guess", [0.0, 0.31, -0.999, 1.0, 1.7, -30.0])
def test_L3_bins_sum_to_one(bins, dtype, guess):
    """The probabilities of all values of a pixel, wherever the prediction lies."""
    z0 = levels(bins, dtype)[:, None]
    nll = loss.L3(schedule(), z0, torch.full_like(z0, guess), bins)
    # One rounding of ln p loses 2^-24 ln p of p: at most exp(-1) of it in a bin, and few bins hold the mass.
    assert float(torch.exp(-nll.double()).sum()) == pytest.approx(1, abs=1e-13 if dtype == torch.float64 else 1e-5)


def test_L3_against_sampling():
    """Draw from the Gaussian, round to the nearest level, clip: the frequencies of the levels are exp(-L3)."""
    sigma, guess = math.sqrt(1 - ABAR[1]), 0.9  # so near to the end that the last bin holds a third
    rng = np.random.default_rng(5)
    drawn = np.clip(np.round((guess + sigma * rng.normal(size=1_000_000) + 1) * 8), 0, 16).astype(int)
    counts = np.bincount(drawn, minlength=17)
    z0 = levels(17)[:, None]
    expected = torch.exp(-loss.L3(schedule(), z0, torch.full_like(z0, guess), 17)).numpy() * len(drawn)
    kept = expected > 5
    assert kept.sum() > 6
    assert stats.chisquare(counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()).pvalue > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [10, 1000, 4000])
def test_L3_is_finite_and_right_in_the_far_tails(dtype, T):
    """A prediction at the other end, hundreds of deviations off, against mpmath with 400 digits; and its gradient."""
    mpmath = pytest.importorskip("mpmath")
    sched = Schedule.cosine(T)
    sigma = math.sqrt(1 - float(sched.alpha_bar[1]))
    grid = levels(256, dtype)
    z0 = torch.stack([grid[0], grid[1], grid[200], grid[255]])[:, None]
    z0_hat = torch.tensor([1.0, 1.0, -1.0, -5.0], dtype=dtype)[:, None].requires_grad_()
    found = loss.L3(sched, z0, z0_hat, 256)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(z0_hat.grad).all()
    s = float(torch.tensor(sigma, dtype=dtype))
    with mpmath.workdps(400):
        for x, guess, nll in zip(z0.flatten().tolist(), z0_hat.flatten().tolist(), found.tolist(), strict=True):
            low = -mpmath.inf if x == -1 else (mpmath.mpf(x) - guess - mpmath.mpf(1) / 255) / s
            high = mpmath.inf if x == 1 else (mpmath.mpf(x) - guess + mpmath.mpf(1) / 255) / s
            if low > 0:
                low, high = -high, -low
            # Phi(x) = erfc(-x / sqrt 2) / 2, which mpmath has to full relative accuracy
            ends = [mpmath.erfc(-end / mpmath.sqrt(2)) / 2 for end in (low, high)]
            expected = float(-mpmath.log(ends[1] - ends[0]))
            # ln p is about -x^2/2, so a rounding of x (three are made) costs 2 of its relative size.
            assert nll == pytest.approx(expected, rel=12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("variance", [None, 0.2])
def test_L3_tends_to_the_density(variance):
    """With fine bins, L3 + ln(width) is -ln N(z_0; z0_hat, v), v the variance or 1 - a_1."""
    bins = 100_001
    z0 = levels(bins)[[20_000, 50_000, 61_234, 99_000]][:, None]
    z0_hat = torch.tensor([[-0.5], [0.01], [0.9], [0.97]], dtype=torch.float64)
    density = truth.log_normal(z0.numpy(), z0_hat.numpy(), variance or 1 - ABAR[1])[:, 0]
    v = None if variance is None else torch.tensor(variance, dtype=torch.float64)
    found = loss.L3(schedule(), z0, z0_hat, bins, v).numpy() + math.log(2 / (bins - 1))
    np.testing.assert_allclose(found, -density, atol=1e-6)


# --- the whole bound, of a model in which everything is linear and Gaussian ---------------------------------------


def quadrature(dimensions, points=3):
    """Nodes [n, dimensions] and weights [n] that give E f(x), x standard normal, exactly for quadratic f."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(nodes, repeat=dimensions)))
    return grid, np.array([math.prod(w) for w in itertools.product(weights, repeat=dimensions)])


class LinearGaussian:
    """z_0 and the encodings are jointly normal; the denoisers E[eps | z_t], E[E_i | z_t] are linear in z_t.

    z_t = sqrt(abar_t) z_0 + sum_i W_t^(i) E_i + sqrt(1 - abar_t) eps is the chain's marginal; but `bound` knows the
    forward chain only by its single steps, and the reverse one by its means: it is E_q of
    ln q(z_1..z_T | z_0, X) - ln p(z_T) - sum_{t >= 2} ln p(z_{t-1} | z_t), from the covariance of all of them.
    """

    def __init__(self, covariance, names):
        self.covariance, self.names = np.array(covariance, dtype=float), names
        self.W = W[:, [list(WEIGHTS).index(n) for n in names]]
        self.n = len(self.covariance)  # z_0 and the encodings

    def loadings(self, t):
        """z_t in terms of (z_0, encodings, eps_t)."""
        return np.concatenate(([math.sqrt(ABAR[t])], self.W[t], [math.sqrt(1 - ABAR[t])]))

    def regressions(self, t):
        """The coefficients of E[encoding_i | z_t] and E[eps | z_t]."""
        full = np.eye(self.n + 1)
        full[: self.n, : self.n] = self.covariance
        load = self.loadings(t)
        slopes = full @ load / (load @ full @ load)
        return slopes[1:-1], slopes[-1]

    def bound(self):
        """L0 + sum of L1 by the chain rule from the forward chain's joint covariance: exact, in closed form."""
        T = len(ABAR) - 1
        # Every z_t as a row of coefficients of (z_0, encodings, T independent step noises).
        rows = [np.zeros(self.n + T)]
        rows[0][0] = 1
        rows[0][1 : self.n] = self.W[0]  # what is carried is in the chain from the start
        full = np.eye(self.n + T)
        full[: self.n, : self.n] = self.covariance
        entropy = 0.0
        for t in range(1, T + 1):
            a = ABAR[t] / ABAR[t - 1]
            row = rows[-1].copy()
            row[1 : self.n] += self.W[t] / math.sqrt(a) - self.W[t - 1]
            row *= math.sqrt(a)
            row[self.n + t - 1] = math.sqrt(1 - a)
            rows.append(row)
            entropy += 0.5 * math.log(2 * math.pi * math.e * (1 - a))
        value = -entropy + 0.5 * (math.log(2 * math.pi) + rows[T] @ full @ rows[T])
        for t in range(2, T + 1):
            slopes, of_eps = self.regressions(t)
            mean = truth.total(truth.posterior(ABAR, self.W, t, t - 1, 1.0, of_eps, list(slopes)))
            gap, v = rows[t - 1] - mean * rows[t], truth.deviation(ABAR, t, t - 1) ** 2
            value += 0.5 * (math.log(2 * math.pi * v) + gap @ full @ gap / v)
        return value

    def found(self):
        """The same from mmfast.loss, its expectations by a quadrature that is exact for quadratics."""
        nodes, weights = quadrature(self.n + 1)
        data = nodes[:, : self.n] @ np.linalg.cholesky(self.covariance).T
        z0, *E = (torch.tensor(x)[:, None] for x in data.T)
        eps, encodings = torch.tensor(nodes[:, -1:]), dict(zip(self.names, E, strict=True))
        sched = schedule()
        value = weights @ loss.L0(sched, z0, encodings).numpy()
        for t in range(2, sched.T + 1):
            z_t, _ = ops.q_sample(z0, encodings, t, sched, noise=eps)
            slopes, of_eps = self.regressions(t)
            hats = {name: float(c) * z_t for name, c in zip(self.names, slopes, strict=True)}
            shift = self.W[t] @ slopes + math.sqrt(1 - ABAR[t]) * of_eps
            z0_hat = (1 - shift) / math.sqrt(ABAR[t]) * z_t
            value += weights @ loss.L1(sched, t, z0, z0_hat, encodings, hats).numpy()
        return value


MODELS = {
    "DDPM": ([[0.49]], []),
    "an encoding": ([[0.49, 0.5], [0.5, 1.0]], ["a"]),
    "a carried encoding": ([[0.49, -0.3], [-0.3, 1.0]], ["b"]),
    "two": ([[0.8, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 1.1]], ["a", "b"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_bound_of_a_linear_gaussian_model(name):
    """L0 and the L1s add up to what the definition of the bound gives, with the optimal linear denoiser."""
    model = LinearGaussian(*MODELS[name])
    assert model.found() == pytest.approx(model.bound(), rel=1e-11)


def test_bound_exceeds_the_entropy_by_a_divergence():
    """DDPM's total, L3 included, on z_0 ~ N(0, s^2): the entropy of z_0 plus KL(q(z_0..z_T) || p(z_0..z_T)).

    Both joint distributions are Gaussian chains; their divergence is 1/2 (tr(P^-1 Q) - d + ln det P/det Q).
    """
    s, T, bins = 0.3, len(ABAR) - 1, 1_000_001
    sched, (nodes, weights) = Schedule(torch.tensor(ABAR)), quadrature(2)
    z0, eps = s * torch.tensor(nodes[:, :1]), torch.tensor(nodes[:, 1:])
    slope = [0.0, *(math.sqrt(1 - ABAR[t]) / (ABAR[t] * s**2 + 1 - ABAR[t]) for t in range(1, T + 1))]
    total = weights @ loss.L0(sched, z0, {}).numpy()
    for t in range(2, T + 1):
        z_t, _ = ops.q_sample(z0, {}, t, sched, noise=eps)
        z0_hat = (1 - math.sqrt(1 - ABAR[t]) * slope[t]) / math.sqrt(ABAR[t]) * z_t
        total += weights @ loss.L1(sched, t, z0, z0_hat, {}, {}).numpy()
    z_1, _ = ops.q_sample(z0, {}, 1, sched, noise=eps)
    z0_hat = (z_1 - math.sqrt(1 - ABAR[1]) * slope[1] * z_1) / math.sqrt(ABAR[1])
    total += weights @ loss.L3(sched, z0, z0_hat, bins).numpy() + math.log(2 / (bins - 1))
    # Forward: z_0, then each z_t from the one before. Reverse: z_T ~ N(0, 1), then each z_{t-1} from z_t.
    q, p = np.zeros((2, T + 1, T + 1))
    q[0, 0], p[T, T] = s, 1.0
    for t in range(1, T + 1):
        a = ABAR[t] / ABAR[t - 1]
        q[t] = math.sqrt(a) * q[t - 1]
        q[t, t] = math.sqrt(1 - a)
    for t in range(T, 0, -1):
        p[t - 1] = truth.total(truth.posterior(ABAR, W[:, :0], t, t - 1, 1.0, slope[t], [])) * p[t]
        p[t - 1, t - 1] = math.sqrt(1 - ABAR[1]) if t == 1 else truth.deviation(ABAR, t, t - 1)
    Q, P = q @ q.T, p @ p.T
    logs = np.linalg.slogdet(P)[1] - np.linalg.slogdet(Q)[1]
    divergence = 0.5 * (np.trace(np.linalg.solve(P, Q)) - (T + 1) + logs)
    assert divergence > 0.1
    # Bins of 2e-6 stand for the density to about 1e-10; their logarithms lose 1e-16/1e-6 of them.
    assert total == pytest.approx(0.5 * math.log(2 * math.pi * math.e * s**2) + divergence, abs=1e-7)


# --- the simple loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
def test_simple(target, gamma):
    """|target - prediction|^2 as a mean, times min-SNR's weight: min(SNR, gamma) of the error in z_0."""
    g = torch.Generator().manual_seed(1)
    prediction, z0, eps = torch.randn(3, 6, 2, 3, generator=g)
    t = torch.arange(1, 7)
    found = loss.simple(prediction, z0, eps, t, schedule(), target, gamma)
    for i in range(6):
        r, q = math.sqrt(ABAR[i + 1]), math.sqrt(1 - ABAR[i + 1])
        truths = {"eps": eps[i], "x0": z0[i], "v": r * eps[i] - q * z0[i]}
        error = float((prediction[i] - truths[target]).double().square().mean())
        # An error d in eps is (q/r) d in z_0, and an error d in v is q d.
        in_z0 = {"eps": (q / r) ** 2, "x0": 1.0, "v": q**2}[target]
        expected = error if gamma is None else min(r**2 / q**2, gamma) * in_z0 * error
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)


def test_simple_names_an_unknown_target():
    x = torch.zeros(1, 2)
    with pytest.raises(MmfastError, match="target"):
        loss.simple(x, x, x, torch.tensor([1]), schedule(), "epsilon")


@pytest.mark.parametrize("variance", [None, 0.25])
def test_L3_of_continuous_data_is_the_gaussians_density(variance):
    """Against scipy; its variance is that of the first step unless another is given."""
    sched, g = schedule(), torch.Generator().manual_seed(0)
    z0, z0_hat = (torch.randn(3, 2, 4, generator=g) for _ in range(2))
    sigma = math.sqrt(1 - float(sched.alpha_bar[1]) if variance is None else variance)
    expected = -stats.norm(z0_hat.double(), sigma).logpdf(z0.double()).reshape(3, -1).sum(1)
    given = None if variance is None else torch.tensor(variance, dtype=torch.float64)
    np.testing.assert_allclose(loss.L3(sched, z0, z0_hat, None, given).numpy(), expected, rtol=1e-12)
