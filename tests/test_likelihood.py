"""The bound on held-out data by value: of a model that knows the answer, and its sums over t."""

import math

import pytest
import torch

import mmfast
from mmfast import Schedule, loss
from mmfast.data import Batch
from mmfast.likelihood import Timesteps, bound
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.image import Image, ImageSpec
from mmfast.modalities.label import Label, LabelSpec
from mmfast.model import Model, Prediction


def test_timesteps_are_weighted_by_one_over_their_probability():
    """Of 2 .. T: the frequencies are p, and the weighted mean of any f(t) is its sum."""
    schedule = Schedule.cosine(50)
    words = torch.randint(0, 2**32, (400_000,), generator=torch.Generator().manual_seed(0))
    t, weight = Timesteps(schedule).draw(words)
    x = schedule.alpha_bar
    gaps = [float(x[s - 1] / (1 - x[s - 1]) - x[s] / (1 - x[s])) for s in range(2, 51)]
    p = torch.tensor([0.5 / 49 + 0.5 * gap / sum(gaps) for gap in gaps], dtype=torch.float64)
    counts = torch.bincount(t, minlength=51)[2:]
    assert int(t.min()) == 2 and int(t.max()) == 50 and int(counts.sum()) == len(words)
    # Chi-square of 49 cells: mean 48, standard deviation 9.8.
    assert float(((counts - len(words) * p) ** 2 / (len(words) * p)).sum()) < 48 + 5 * 9.8
    torch.testing.assert_close(weight.double(), 1 / p[t - 2], rtol=1e-6, atol=0)
    assert float(weight.double().mean()) == pytest.approx(49, rel=0.01)
    ends = Timesteps(schedule).draw(torch.tensor([0, 2**32 - 1]))[0]
    assert ends.tolist() == [2, 50]


class Fixed(Model):
    """Always says the same z_0."""

    def __init__(self, guess, T=60):
        image = Image("image", ImageSpec(channels=1, size=2), SpaceShape(2, 2))

        class Nothing(torch.nn.Module):
            features = reads = embedding_width = 4

        super().__init__("image", {"image": image}, Schedule.cosine(T), lambda channels, size: Nothing(), "own", "x0")
        self.guess = guess

    def forward(self, z, times, told):
        return Prediction(torch.full_like(z, self.guess), {})


@pytest.mark.parametrize("steps", [0, 400])
def test_the_bound_of_a_fixed_guess(steps):
    """L1 is a closed form, 1/2 (SNR(1) - SNR(T)) |z_0 - guess|^2: whole sums give it, Monte Carlo ones nearly."""
    x = torch.tensor([-1.0, -0.2, 0.4, 1.0]).reshape(1, 1, 2, 2).repeat(3, 1, 1, 1)
    x = (x * 127.5 + 127.5).round() / 127.5 - 1
    model = Fixed(0.3)
    abar = model.schedule.alpha_bar.tolist()

    def snr(t):
        return abar[t] / (1 - abar[t])

    squared = float((x[0].double() - 0.3).square().sum())
    found = bound(model, Batch({"image": x}), steps=steps)
    assert found["bound.L1"] == pytest.approx(0.5 * (snr(1) - snr(60)) * squared, rel=1e-4 if steps == 0 else 0.1)
    v = 1 - abar[60]
    assert found["bound.L0"] == pytest.approx(
        0.5 * (4 * v + abar[60] * float(x[0].double().square().sum()) - 4 - 4 * math.log(v)), rel=1e-3, abs=1e-6
    )
    assert found["bound.L2"] == 0
    want = loss.L3(model.schedule, x[:1], torch.full_like(x[:1], 0.3))
    assert found["bound.L3"] == pytest.approx(float(want), rel=1e-6)
    assert found["bound.total"] == pytest.approx(sum(found[f"bound.L{k}"] for k in range(4)))
    assert found["bound.L1_bits"] == pytest.approx(found["bound.L1"] / (4 * math.log(2)))


class Labelled(Model):
    """Says the truth of the anchor, and of the label that it is as likely to be each of four."""

    def __init__(self, z0, T=40):
        room = SpaceShape(2, 2)
        parts = {"image": Image("image", ImageSpec(channels=1, size=2), room)}
        parts["label"] = Label("label", LabelSpec(classes=4), room)

        class Nothing(torch.nn.Module):
            features = reads = embedding_width = 4

        schedule = Schedule.cosine(T, {"label": mmfast.none()})
        super().__init__("image", parts, schedule, lambda channels, size: Nothing(), "own", "x0")
        self.z0 = z0

    def forward(self, z, times, told):
        return Prediction(self.z0, {"label": torch.zeros(len(z), 4)})


@pytest.mark.parametrize("steps", [0, 300])
def test_the_heads_part_is_a_mean_over_t(steps):
    """L2 of a head that says the same at every t is ln 4, not that a number of times; and L1 of the truth is 0."""
    x = torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    found = bound(Labelled(x), Batch({"image": x, "label": torch.tensor([0, 3])}), steps=steps)
    assert found["bound.L2"] == pytest.approx(math.log(4), rel=1e-5 if steps == 0 else 0.1)
    assert found["bound.L1"] == pytest.approx(0, abs=1e-6)
