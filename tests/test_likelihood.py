"""The bound on held-out data by value: of models whose errors are known, in parts that add up, and its sums over t."""

import itertools
import math

import pytest
import torch

import mmfast
from mmfast import MmfastError, Schedule, loss
from mmfast import config as configs
from mmfast.data import Batch, Data
from mmfast.evaluate import likelihood
from mmfast.likelihood import Timesteps, bound
from mmfast.modalities.base import SpaceShape, code
from mmfast.modalities.embedding import Embedding, EmbeddingSpec
from mmfast.modalities.image import Image, ImageSpec
from mmfast.modalities.label import Label, LabelSpec
from mmfast.model import Model, Prediction
from mmfast.reverse import fit, times_by_snr, x0_error

PIXELS = 4


def test_timesteps_are_weighted_by_one_over_their_probability():
    """Of 2 .. T: the frequencies are p, and the weighted mean of any f(t) is its sum."""
    schedule = Schedule.cosine(50)
    words = torch.randint(0, 2**32, (400_000,), generator=torch.Generator().manual_seed(0))
    t, weight = Timesteps(schedule).draw(words)
    snr = [x / (1 - x) for x in schedule.alpha_bar.tolist()[1:]]
    falls = [a - b for a, b in itertools.pairwise(snr)]
    logs = [math.log(a / b) for a, b in itertools.pairwise(snr)]
    shares = zip(falls, logs, strict=True)
    p = torch.tensor([(1 / 49 + fall / sum(falls) + log / sum(logs)) / 3 for fall, log in shares], dtype=torch.float64)
    counts = torch.bincount(t, minlength=51)[2:]
    assert int(t.min()) == 2 and int(t.max()) == 50 and int(counts.sum()) == len(words)
    # Chi-square of 49 cells: mean 48, standard deviation 9.8.
    assert float(((counts - len(words) * p) ** 2 / (len(words) * p)).sum()) < 48 + 5 * 9.8
    torch.testing.assert_close(weight.double(), 1 / p[t - 2], rtol=1e-6, atol=0)
    assert float(weight.double().mean()) == pytest.approx(49, rel=0.01)
    ends = Timesteps(schedule).draw(torch.tensor([0, 2**32 - 1]))[0]
    assert ends.tolist() == [2, 50]


def test_timesteps_without_signal_at_T():
    """ln SNR(T) is -infinity there: its fall is held finite, and every timestep has its share."""
    p = Timesteps(Schedule([1.0, 0.9, 0.5, 0.1, 0.0])).p
    assert float(p.sum()) == pytest.approx(1) and float(p.min()) > 1 / 9


class Nothing(torch.nn.Module):
    features = reads = embedding_width = 4


class Fixed(Model):
    """Says the same of every image: z_0, or eps, is a number. And of other modalities what it is made with."""

    def __init__(self, guess, schedule, parts=None, heads=None, space="own", target="x0"):
        room = SpaceShape(2, 2, 1 if space == "shared" else None)
        image = {"image": Image("image", ImageSpec(channels=1, size=2), room)}
        made = {name: part(name, room) for name, part in (parts or {}).items()}
        super().__init__("image", image | made, schedule, lambda channels, size: Nothing(), space, target)
        self.guess, self.says = guess, heads or {}

    def forward(self, z, times, told):
        heads = {name: x.expand(len(z), -1) for name, x in self.says.items()}
        return Prediction(torch.full_like(z[:, :1], self.guess), heads)


def label(name, room):
    return Label(name, LabelSpec(classes=4), room)


def embedding(name, room):
    return Embedding(name, EmbeddingSpec(dim=3, sigma=0.1), room)


def images(count):
    """Of four pixels, on the levels of 8 bits; and what the others have, all of them the same."""
    x = torch.tensor([-1.0, -0.2, 0.4, 1.0]).reshape(1, 1, 2, 2)
    return ((x * 127.5 + 127.5).round() / 127.5 - 1).repeat(count, 1, 1, 1)


def snr(schedule, t):
    x = float(schedule.alpha_bar[t])
    return x / (1 - x)


def falls(schedule):
    """SNR(t - 1) - SNR(t) at t = 2 .. T."""
    return [snr(schedule, t - 1) - snr(schedule, t) for t in range(2, schedule.T + 1)]


def L0(schedule, D, square):
    """Of a block with D numbers, whose mean at t = T has this squared length."""
    v = 1 - float(schedule.alpha_bar[-1])
    return 0.5 * (D * v + square - D - D * math.log(v))


@pytest.mark.parametrize("steps", [0, 400])
def test_the_bound_of_a_fixed_guess(steps):
    """L1 is a closed form, 1/2 (SNR(1) - SNR(T)) |z_0 - guess|^2: whole sums give it, Monte Carlo ones nearly."""
    x, schedule = images(3), Schedule.cosine(60)
    squared = float((x[0].double() - 0.3).square().sum())
    found = bound(Fixed(0.3, schedule), Batch({"image": x}), steps=steps)
    exact = 0.5 * (snr(schedule, 1) - snr(schedule, 60)) * squared
    assert found["bound.L1"] == pytest.approx(exact, rel=1e-4 if steps == 0 else 0.1)
    mean_square = float(schedule.alpha_bar[60]) * float(x[0].double().square().sum())
    assert found["bound.L0"] == pytest.approx(L0(schedule, PIXELS, mean_square), rel=1e-3, abs=1e-6)
    assert found["bound.L2"] == 0
    want = loss.L3(schedule, x[:1], torch.full_like(x[:1], 0.3))
    assert found["bound.L3"] == pytest.approx(float(want), rel=1e-6)
    assert found["bound.L1_bits"] == pytest.approx(found["bound.L1"] / (PIXELS * math.log(2)))
    assert found["bound.pixels"] == pytest.approx(sum(found[f"bound.{k}"] for k in ("L0", "L1", "L3")))
    assert found["bound.pixels_bits"] == pytest.approx(found["bound.pixels"] / (PIXELS * math.log(2)))
    # Nothing but the image is modelled, and there is no sum of what does not add up.
    assert {name.removesuffix("_bits") for name in found} == {f"bound.{k}" for k in ("L0", "L1", "L2", "L3", "pixels")}


@pytest.mark.parametrize("space", ["own", "shared"])
def test_what_is_left_of_the_data_at_T(space):
    """L0 of a schedule that ends early, in nats: of each block in own channels, of the sum of both in shared ones."""
    weight = mmfast.carried(0.5) if space == "own" else mmfast.shift(0.5)
    with pytest.warns(UserWarning, match=r"z_T is far from N\(0, I\)"):
        schedule = Schedule.linear(20, {"label": weight})
    abar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * k / 19) for k in range(20))
    model = Fixed(0.3, schedule, {"label": label}, {"label": torch.zeros(1, 4)}, space)
    x, labels = images(3), torch.tensor([0, 3, 1])
    found = bound(model, Batch({"image": x, "label": labels}), steps=1)
    E = model.part("label").encode(labels).double()
    if space == "own":
        image = L0(schedule, PIXELS, abar * float(x[0].double().square().sum()))
        of_label = L0(schedule, 3 * PIXELS, 0.25 * abar * 3 * PIXELS)
    else:
        means = math.sqrt(abar) * x.double() + 0.5 * (1 - math.sqrt(abar)) * E
        image, of_label = sum(L0(schedule, PIXELS, float(mean.square().sum())) for mean in means) / 3, 0.0
    assert image > 1 and found["bound.L0"] == pytest.approx(image + of_label, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("times", [0, 5])
@pytest.mark.parametrize("steps", [0, 200])
def test_the_fitted_variances_of_a_fixed_guess(times, steps):
    """An error e that is the same at every t: terms 1/2 D ln(1 + e (SNR(t - 1) - SNR(t))), and a decoder of variance e.

    Fitted to other images, whose error is f: 1/2 D [(1 + r e)/(1 + r f) - 1 + ln(1 + r f)], r the fall of SNR.
    """
    x, schedule = images(3), Schedule.cosine(30)
    model = Fixed(0.3, schedule)
    e, f = (float((y.double() - 0.3).square().mean()) for y in (x, x / 2))
    near, rough = ({"rel": 1e-4}, {"rel": 0.1})
    for seen, g in ((x, e), (x / 2, f)):
        reverses = fit(model, Batch({"image": seen}), times)
        found = bound(model, Batch({"image": x}), steps, reverses=reverses)
        exact = sum(PIXELS / 2 * ((1 + r * e) / (1 + r * g) - 1 + math.log(1 + r * g)) for r in falls(schedule))
        assert found["bound.fitted.L1"] == pytest.approx(exact, **(near if steps == 0 else rough))
        variance = torch.tensor(g, dtype=torch.float64)
        want = loss.L3(schedule, x[:1], torch.full_like(x[:1], 0.3), variance=variance)
        assert found["bound.fitted.L3"] == pytest.approx(float(want), rel=1e-5)
        parts = found["bound.L0"] + found["bound.fitted.L1"] + found["bound.fitted.L3"]
        assert found["bound.fitted.pixels"] == pytest.approx(parts)
        # The posterior's variance stays beside it, and what does not depend on it is not said twice.
        assert found["bound.L1"] == pytest.approx(0.5 * sum(falls(schedule)) * PIXELS * e, **(near, rough)[steps > 0])
        assert "bound.fitted.L0" not in found and "bound.fitted.L2" not in found


def test_a_variance_is_a_fit_of_the_error_at_its_own_timestep():
    """A network that says eps = 0 has z0hat = y_t / sqrt(abar_t), of the error 1/SNR(t): another one at every t.

    So v = u SNR(t - 1)/SNR(t), terms are 1/2 D ln(SNR(t - 1)/SNR(t)), which add up to 1/2 D ln(SNR(1)/SNR(T)); and
    between the timesteps of a coarse fit that is interpolated exactly.
    """
    schedule = Schedule.cosine(30)
    model, batch = Fixed(0.0, schedule, target="eps"), Batch({"image": images(4000)})
    reverse = fit(model, batch, times=6)["fitted"]
    a, abar = schedule.alpha_bar[1:] / schedule.alpha_bar[:-1], schedule.alpha_bar
    want = (1 - a) * (1 - abar[:-1]) / (1 - abar[1:]) + (abar[:-1] * (1 - a) ** 2 / (1 - abar[1:])) / abar[1:]
    # Of 16,000 squares of normals: a standard error of 0.011.
    torch.testing.assert_close(reverse.variance["image"][1:], want, rtol=0.05, atol=0)
    found = bound(model, batch, steps=0, reverses={"fitted": reverse})
    exact = PIXELS / 2 * math.log(snr(schedule, 1) / snr(schedule, 30))
    assert found["bound.fitted.L1"] == pytest.approx(exact, rel=0.01)
    torch.testing.assert_close(
        x0_error(model, batch, [1, 10, 30]),
        torch.tensor([1 / snr(schedule, t) for t in (1, 10, 30)], dtype=torch.float64),
        rtol=0.05,
        atol=0,
    )


def test_the_nearer_of_network_and_z_t():
    """Of a fixed guess with the error e the error is min(e, 1/SNR(t)): z_t at small t, the network at large ones."""
    x, schedule = images(2000), Schedule.cosine(30)
    model, batch = Fixed(0.3, schedule), Batch({"image": images(2000)})
    reverse = fit(model, Batch({"image": x[:3]}))["nearer"]
    e = float((x[0].double() - 0.3).square().mean())
    least = [min(e, 1 / snr(schedule, t)) for t in range(1, 31)]
    assert reverse.from_z.tolist() == [False, *(1 / snr(schedule, t) < e for t in range(1, 31))]
    assert 3 < int(reverse.from_z.sum()) < 27
    found = bound(model, batch, steps=0, reverses={"nearer": reverse})
    exact = sum(PIXELS / 2 * math.log(1 + r * g) for r, g in zip(falls(schedule), least[1:], strict=True))
    assert found["bound.nearer.L1"] == pytest.approx(exact, rel=0.01)
    # The decoder reads z_1: Gaussian bins around z_1/sqrt(abar_1), of the variance 1/SNR(1).
    sigma = math.sqrt(least[0])
    z = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    want = loss.L3(schedule, x, z, variance=torch.tensor(sigma**2, dtype=torch.float64)).mean()
    assert found["bound.nearer.L3"] == pytest.approx(float(want), rel=0.03)


def test_no_signal_at_T():
    """At abar_T = 0 all is finite, and the limit of an abar_T that goes to 0."""
    x, table = images(3), [1.0, 0.97, 0.7, 0.2, 0.0]
    batch = Batch({"image": x, "label": torch.tensor([0, 3, 1])})
    found = []
    for last in (0.0, 1e-12):
        schedule = Schedule([*table[:-1], last], {"label": mmfast.carried(0.5)})
        model = Fixed(0.3, schedule, {"label": label}, {"label": torch.tensor([[0.5, 0.0, 0.0, 1.0]])})
        reverses = fit(model, batch)
        found.append(bound(model, batch, steps=0, reverses=reverses))
        assert 4 in times_by_snr(schedule, 2) and all(map(math.isfinite, x0_error(model, batch, [4]).tolist()))
    exact, limit = found
    assert all(map(math.isfinite, exact.values())) and exact == pytest.approx(limit, rel=1e-4, abs=1e-6)
    squared = float((x[0].double() - 0.3).square().sum())
    image = exact["bound.pixels"] - exact["bound.L3"]
    assert image == pytest.approx(0.5 * 0.97 / 0.03 * squared, rel=1e-5)
    monte_carlo = bound(model, batch, steps=200, reverses=reverses)
    assert monte_carlo["bound.fitted.L1"] == pytest.approx(exact["bound.fitted.L1"], rel=0.1)


UNSURE = torch.zeros(1, 4)  # of four classes, each as likely


@pytest.mark.parametrize("steps", [0, 300])
def test_the_heads_part_is_a_mean_over_t(steps):
    """L2 of a head that says the same at every t is ln 4, not that a number of times; and L1 of the truth is 0."""
    x, schedule = torch.full((2, 1, 2, 2), 0.3), Schedule.cosine(40, {"label": mmfast.none()})
    model = Fixed(0.3, schedule, {"label": label}, {"label": UNSURE})
    found = bound(model, Batch({"image": x, "label": torch.tensor([0, 3])}), steps=steps)
    near = {"rel": 1e-5 if steps == 0 else 0.1}
    assert found["bound.L2"] == pytest.approx(math.log(4), **near)
    assert found["bound.L1"] == pytest.approx(0, abs=1e-6)
    # A label without a trace in z_t has no block of its own; bits are those of an example.
    assert found["bound.discrete.label"] == found["bound.L2"]
    assert found["bound.discrete.label_bits"] == pytest.approx(2, **near)
    assert found["bound.pixels"] == pytest.approx(found["bound.L0"] + found["bound.L3"])


def test_each_modality_has_its_own_column():
    """A label's and an embedding's blocks by value: L0 and L1 of their own, at the weight s, and their head's -ln p."""
    schedule = Schedule.cosine(40, {"label": mmfast.carried(0.5), "embedding": mmfast.carried(0.25)})
    vector = torch.tensor([[1.0, 1.0, 1.0]])  # of unit RMS
    model = Fixed(
        0.3, schedule, {"label": label, "embedding": embedding}, {"label": UNSURE, "embedding": vector * 0.99}
    )
    data = {"image": images(2), "label": torch.tensor([0, 3]), "embedding": vector.expand(2, 3)}
    reverses = fit(model, Batch(data), 0)
    found = bound(model, Batch(data), steps=0, reverses=reverses)
    last, fall = float(schedule.alpha_bar[-1]), sum(falls(schedule))
    # What a label of four classes is encoded as has unit RMS, and an unsure head's is the mean of the codes, 0.
    assert code(4, 3).mean(0).abs().max() < 1e-6
    D = 3 * PIXELS
    of_label = L0(schedule, D, last * 0.25 * D) + 0.5 * fall * 0.25 * D + math.log(4)
    assert found["bound.discrete.label"] == pytest.approx(of_label, rel=1e-4)
    cells = model.part("embedding").channels * PIXELS
    nll = 3 * (0.5 * (0.01 / 0.1) ** 2 + math.log(0.1 * math.sqrt(2 * math.pi)))
    of_vector = L0(schedule, cells, last / 16 * cells) + 0.5 * fall / 16 * cells * 0.01**2 + nll
    assert found["bound.density.embedding"] == pytest.approx(of_vector, rel=1e-3)
    assert nll < 0 and "bound.density.embedding_bits" not in found
    # In each block the variance is its own error's.
    own = sum(D / 2 * math.log(1 + r * 0.25) for r in falls(schedule)) + of_label - 0.5 * fall * 0.25 * D
    assert found["bound.fitted.discrete.label"] == pytest.approx(own, rel=1e-4)
    # The columns hold the four parts, and hold them once.
    columns = [found[f"bound.{name}"] for name in ("pixels", "discrete.label", "density.embedding")]
    assert sum(columns) == pytest.approx(sum(found[f"bound.L{k}"] for k in range(4)))
    assert "bound.total" not in found


def test_shared_channels_are_one_block():
    """There the steps' part is the image's, whatever it is of; a fit is of the means' error as a whole."""
    schedule = Schedule.cosine(40, {"label": mmfast.bridge(2.0)})
    model = Fixed(0.3, schedule, {"label": label}, {"label": UNSURE}, space="shared")
    data = {"image": images(4), "label": torch.arange(4)}
    reverses = fit(model, Batch(data), 0)
    assert set(reverses) == {"fitted"}  # y_t is not in z_t to be read
    found = bound(model, Batch(data), steps=0, reverses=reverses)
    assert found["bound.discrete.label"] == found["bound.L2"] == pytest.approx(math.log(4), rel=1e-5)
    E, abar, W = model.encode(data)["label"].double(), schedule.alpha_bar, schedule.W[:, 0]
    plain = fitted = 0.0
    for t in range(2, 41):
        a = abar[t] / abar[t - 1]
        u = (1 - a) * (1 - abar[t - 1]) / (1 - abar[t])
        y = a.sqrt() * (1 - abar[t - 1]) / (1 - abar[t])
        x0 = abar[t - 1].sqrt() * (1 - a) / (1 - abar[t])
        gap = x0 * (data["image"].double() - 0.3) + (W[t - 1] - y * W[t]) * E
        ratio = gap.square().flatten(1).sum(1).mean() / (PIXELS * u)
        plain, fitted = plain + 0.5 * PIXELS * float(ratio), fitted + 0.5 * PIXELS * math.log(1 + float(ratio))
    assert found["bound.L1"] == pytest.approx(plain, rel=1e-4)
    assert found["bound.fitted.L1"] == pytest.approx(fitted, rel=1e-4)


def test_the_error_of_z0_at_given_timesteps():
    """Of examples that differ, a mean over pixels and examples, in the order of the times, in any batch size."""
    x = torch.cat((images(2), images(1) / 2))
    model = Fixed(0.3, Schedule.cosine(60))
    found = x0_error(model, Batch({"image": x}), [60, 1], batch_size=2)
    assert found.dtype == torch.float64 and found.shape == (2,)
    assert found.tolist() == pytest.approx([float((x.double() - 0.3).square().mean())] * 2, rel=1e-6)
    with pytest.raises(MmfastError, match=r"times is 61; it should lie in 1 \.\. 60"):
        x0_error(model, Batch({"image": x}), [1, 61])
    with pytest.raises(MmfastError, match="batch holds 0 examples"):
        x0_error(model, Batch({"image": x[:0]}), [1])


def test_timesteps_by_snr():
    """All of them; or few, whose log SNR are as far apart as the schedule lets them, with both ends."""
    schedule = Schedule.cosine(1000)
    assert times_by_snr(Schedule.cosine(20), 0) == list(range(1, 21))
    few = times_by_snr(schedule, 8)
    # The last step alone is wider than what eight of them are apart.
    assert few[0] == 1 and few[-1] == 1000 and len(few) == 7 and few == sorted(few)
    logs = [math.log(snr(schedule, t)) for t in few[:-1]]
    gaps = [a - b for a, b in itertools.pairwise(logs)]
    assert max(gaps) < 1.3 * min(gaps)
    with pytest.raises(MmfastError, match="count is -1; it should be at least 0"):
        times_by_snr(schedule, -1)
    assert times_by_snr(Schedule([1.0, 0.5, 1e-10, 1e-11]), 3)[-1] == 3  # whatever log SNR is held within


def test_reverses_of_another_model_are_refused():
    batch = Batch({"image": images(2)})
    reverses = fit(Fixed(0.3, Schedule.cosine(20)), batch)
    with pytest.raises(MmfastError, match="steps is -1; it should be at least 1, or 0 for all"):
        bound(Fixed(0.3, Schedule.cosine(20)), batch, -1)
    with pytest.raises(MmfastError, match="batch_size is 0; it should be at least 1"):
        bound(Fixed(0.3, Schedule.cosine(20)), batch, batch_size=0)
    with pytest.raises(MmfastError, match=r"reverses\['fitted'\] has blocks \['image'\] over 20 timesteps; it should"):
        bound(Fixed(0.3, Schedule.cosine(30)), batch, reverses=reverses)


def test_the_evaluation_fits_to_training_data():
    """Not to the data of the bound; and where no training example has everything, there are no fitted variances."""
    schedule = Schedule.cosine(60, {"label": mmfast.none()})
    model = Fixed(0.3, schedule, {"label": label}, {"label": UNSURE})
    labels, whole = torch.zeros(40, dtype=torch.int64), torch.arange(40) % 2 == 0
    held, config = Batch({"image": images(4), "label": labels[:4]}), configs.load("digits")
    seen = {"image": torch.cat((images(20) / 2, images(20))), "label": labels}
    squares = (seen["image"][whole].double() - 0.3).square().flatten(1).mean(1)

    class Train:
        def __init__(self, present):
            self.present = present

        def __len__(self):
            return 40

        def __getitems__(self, rows):
            rows = list(rows)
            return Batch({name: x[rows] for name, x in seen.items()}, {"label": self.present[rows]})

    nobody = Train(torch.zeros(40).bool())
    found = likelihood(model, config, Data(Train(whole), nobody), held)
    # 40 are asked for of the 20 that have a label: all of these twice.
    reverse = fit(model, Batch({"image": seen["image"][whole], "label": labels[whole]}), seed=config.seed)
    want = bound(model, held, config.evaluate.bound_steps, config.seed, reverses=reverse)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-5)
    assert float(reverse["fitted"].variance["image"][1]) == pytest.approx(float(squares.mean()), rel=1e-6)
    assert found["x0_error.60"] == pytest.approx(float((images(1).double() - 0.3).square().mean()), rel=1e-6)

    class Damaged(Train):
        def __getitems__(self, rows):
            raise MmfastError("a.png is damaged")

    with pytest.raises(MmfastError, match=r"a\.png is damaged"):  # which is another thing
        likelihood(model, config, Data(Damaged(whole), nobody), held)
    without = likelihood(model, config, Data(nobody, Train(whole)), held)
    assert set(without) == {name for name in found if "fitted" not in name and "nearer" not in name}


class Says(Fixed):
    """z_0 is what is seen of it, so that the noise shows."""

    def forward(self, z, times, told):
        return Prediction(z[:, :1], {})


def test_the_noise_is_that_of_seed_0_unless_another_is_named():
    model, batch = Says(0.0, Schedule.cosine(20)), Batch({"image": images(3)})
    for measure in (
        lambda **how: fit(model, batch, times=2, **how)["fitted"].variance["image"],
        lambda **how: x0_error(model, batch, [3, 17], **how),
        lambda **how: torch.tensor([*bound(model, batch, steps=3, **how).values()]),
    ):
        assert torch.equal(measure(), measure(seed=0)) and not torch.equal(measure(), measure(seed=1))
