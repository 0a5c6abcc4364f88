"""The registry of step rules: one of the user's own is a name like the others, in a config and in a call."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny

from mmfast import MmfastError, Schedule
from mmfast.build import build_model
from mmfast.generate import generate
from mmfast.sample import sample
from mmfast.samplers import SAMPLERS, check_share, ddim, dpmpp_2m, dpmpp_3m


def test_a_rule_of_the_users_own(monkeypatch):
    seen = []

    def mine(alpha_bar, t, s, past, eta):
        seen.append((t, s, past))
        return ddim(alpha_bar, t, s, past, eta)

    with pytest.raises(MmfastError, match=r"sample\.sampler is 'mine'"):
        tiny(sample__sampler="mine")
    monkeypatch.setitem(SAMPLERS, "mine", mine)
    config = tiny(sample__sampler="mine")
    drawn = generate(build_model(config), config, 2)
    assert seen == [(1000, 500, ()), (500, 0, (1000,))]
    usual = tiny(sample__sampler="ddim")
    torch.testing.assert_close(drawn["image"], generate(build_model(usual), usual, 2)["image"], rtol=0, atol=0)


def test_a_rule_of_the_users_own_may_look_at_any_time(monkeypatch):
    """And take eta, or none, which is found out before the first step."""

    def mine(alpha_bar, t, s, past, eta):
        return ddim(alpha_bar, t, s, past, eta * alpha_bar(0) * (1 - alpha_bar(1000)))

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    monkeypatch.setitem(SAMPLERS, "plain", lambda *moved: ddim(*moved[:-1], 0.0))
    model = build_model(tiny())
    noise = [sample(model, 2, sampler="mine", steps=2, eta=eta)["image"] for eta in (0.0, 1.0)]
    assert not torch.equal(*noise)
    with pytest.raises(MmfastError, match=r"eta is 1\.0, and plain takes none"):
        sample(model, 2, sampler="plain", steps=2, eta=1.0)


def asked_of_a_rule(monkeypatch, **how):
    """The times t, s and those of the steps before that a rule is asked about, of the digits' modalities."""
    seen = []
    monkeypatch.setitem(SAMPLERS, "mine", lambda abar, t, s, past, eta: seen.append((t, s, past)) or
                        ddim(abar, t, s, past, eta))  # fmt: skip
    sample(build_model(tiny()), 1, sampler="mine", **how)
    return seen


def test_a_rule_is_told_of_three_steps_before_at_most(monkeypatch):
    assert asked_of_a_rule(monkeypatch, steps=5) == [
        (1000, 800, ()), (800, 600, (1000,)), (600, 400, (800, 1000)), (400, 200, (600, 800, 1000)),
        (200, 0, (400, 600, 800)),
    ]  # fmt: skip


def test_with_an_offset_each_has_the_steps_in_which_it_moved(monkeypatch):
    """The mask is 200 ahead. None counts from before something was decided: the network is told of that since."""
    image, mask = (
        [(1000, 800, ()), (800, 600, (1000,)), (600, 400, (800, 1000)), (400, 200, (600, 800, 1000)), (200, 0, last)]
        for last in ((), (400, 600, 800))
    )
    # The mask begins, and ends, a step before the image.
    found = asked_of_a_rule(monkeypatch, steps=6, offset={"mask": 0.2})
    assert found == [mask[0], *(x for a, b in zip(image[:-1], mask[1:], strict=True) for x in (a, b)), image[-1]]


# --- the multistep and two-stage rules, from the integral they approximate -------------------------------------------


def by_quadrature(alpha_bar, t, s, past, signal, rate=1.0):
    """y_s of y_t = 0 and no noise: the integral over the step of d(sqrt(abar) z0hat), which decays on its way to s.

    It is sqrt(abar_s) rate e^{rate (lambda - lambda_s)} z0hat(lambda) d lambda: without noise rate is 1, and the
    reverse SDE's is 2, since it moves y_t twice as fast towards z0hat. z0hat is the polynomial through `signal` at t
    and at the times `past`, by numpy; the integral is by Gauss and Legendre.
    """
    lam = [0.5 * math.log(alpha_bar(u) / (1 - alpha_bar(u))) for u in (s, t, *past)]
    curve = np.polynomial.Polynomial.fit(lam[1:], signal, len(past)) if past else lambda x: signal[0] + 0 * x
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = (lam[0] - lam[1]) / 2
    x = lam[1] + half * (nodes + 1)
    return math.sqrt(alpha_bar(s)) * rate * half * float((weights * np.exp(rate * (x - lam[0])) * curve(x)).sum())


TIMES = [(900, 700, (950, 990)), (500, 480, (600, 610)), (40, 3, (41, 90)), (700, 500, ())]


@pytest.mark.parametrize(("t", "s", "past"), TIMES)
@pytest.mark.parametrize("make", [Schedule.cosine, Schedule.linear])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_3m_integrates_the_parabola_through_three_predictions(make, t, s, past, eta):
    alpha_bar = make(1000).alpha_bar.tolist().__getitem__
    step = dpmpp_3m(alpha_bar, t, s, past, eta)
    a, noise = alpha_bar(t) / alpha_bar(s), 1 - alpha_bar(s)
    sigma = eta * math.sqrt((1 - a) * noise / (1 - alpha_bar(t)))
    of_y = math.sqrt((noise - sigma**2) / (1 - alpha_bar(t)))
    # y_t decays as e^{-rate h} times the ratio of the signals.
    h = 0.5 * math.log(1 / a * (1 - alpha_bar(t)) / noise)
    rate = math.log(1 / math.sqrt(a) / of_y) / h
    assert rate == pytest.approx({0.0: 1, 1.0: 2}.get(eta, rate))
    for signal in np.eye(1 + len(past)):
        found = np.dot([step.of_z0, *step.of_past], signal)
        assert found == pytest.approx(by_quadrature(alpha_bar, t, s, past, signal, rate), rel=1e-6, abs=1e-9)
    assert (step.of_y, step.sigma) == pytest.approx((of_y, sigma), rel=1e-12)


def test_rules_of_several_steps_begin_and_end_with_fewer():
    """Too few steps before, s = 0, and abar_T = 0, where the log-SNR is infinite: the rule of the next lower order."""
    table = [1.0, 0.9, 0.6, 0.3, 0.1, 0.0]
    abar = table.__getitem__
    euler = ddim(abar, 2, 1, (), 0.0)
    assert dpmpp_3m(abar, 2, 1, (), 0.0) == dpmpp_2m(abar, 2, 1, (), 0.0) == dpmpp_2m(abar, 2, 1, (5,), 0.0) == euler
    assert dpmpp_3m(abar, 2, 1, (3, 5), 0.0) == dpmpp_3m(abar, 2, 1, (3,), 0.0) == dpmpp_2m(abar, 2, 1, (3, 4), 0.0)
    assert dpmpp_3m(abar, 1, 0, (2, 3), 0.0) == ddim(abar, 1, 0, (), 0.0)
    assert dpmpp_3m(abar, 5, 4, (), 0.0) == ddim(abar, 5, 4, (), 0.0)
    assert len(dpmpp_3m(abar, 2, 1, (3, 4), 0.0).of_past) == 2


@pytest.mark.parametrize("x", [None, torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)], ids=["joint", "given the image"])
def test_heun_asks_at_both_ends(x):
    """z_s in float64 from what the network said at z_t and where DDIM's step led; the last step is DDIM's.

    An image that is given is z_0, whatever the network says of it.
    """
    config = tiny(loss__target="x0")
    model, asked, given = build_model(config), [], {} if x is None else {"image": x}
    model.register_forward_hook(lambda module, args, said: asked.append((args[0].clone(), args[1].clone(), said)))
    drawn = sample(model, 2, given, steps=3, sampler="heun", clamp=None, seed=3)
    grid, abar, W = [1000, 667, 333, 0], model.schedule.alpha_bar.tolist(), model.schedule.W.tolist()
    assert [int(times[0, 2]) for _, times, _ in asked] == [1000, 667, 667, 333, 333]

    def split(z, said):
        """z0hat and the encodings, a block of channels each."""
        encodings = {n: model.part(n).encode_prediction(said.heads[n].float()) for n in model.traced}
        blocks = [said.anchor.double() if x is None else x.double().expand(len(z), -1, -1, -1)]
        return blocks + [encodings[n].double().expand(-1, -1, *z.shape[2:]) for n in model.traced]

    def weighted(blocks, of_z0, column):
        weights = [W[column][model.schedule.index([n])[0]] for n in model.traced]
        return torch.cat([of_z0 * blocks[0], *(w * b for w, b in zip(weights, blocks[1:], strict=True))], 1)

    assert model.target == "x0" and model.space == "own"
    for k in range(2):
        t, s = grid[k], grid[k + 1]
        (z, _, at_t), (tried, _, at_s), (after, _, _) = asked[2 * k : 2 * k + 3]
        of_y = math.sqrt((1 - abar[s]) / (1 - abar[t]))
        of_z0 = math.sqrt(abar[s]) - of_y * math.sqrt(abar[t])
        first, second = split(z, at_t), split(tried, at_s)
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        for found, said in ((tried, first), (after, mean)):
            expected = of_y * (z.double() - weighted(said, 0, t)) + weighted(said, of_z0, s)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drawn["image"], asked[-1][2].anchor.float() if x is None else x.expand(2, -1, -1, -1))


@pytest.mark.parametrize("share", [1, -1, 1.0, 1.5, math.nan, math.inf, True, False, "0.2", None])
def test_a_share_of_T_is_a_number_between_minus_one_and_one(share):
    for good in (0, 0.2, -0.999, 0.999):
        check_share("x", good)
    with pytest.raises(MmfastError, match=rf"^x is {share!r}; it should be a share of T between -1 and 1"):
        check_share("x", share)


@pytest.mark.parametrize("guidance", [1.0, {"label": 2.0}])
def test_heun_around_an_anchor_that_is_given(guidance):
    """Its z_0 is known, so both of a step's attempts at its block are DDIM's step from that z_0."""
    config = tiny()
    model, asked = build_model(config), []
    model.register_forward_hook(lambda module, args, said: asked.append((args[0][:, :1].double(), args[1].clone())))
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    given = {"image": x, "label": torch.tensor([3])}
    sample(model, 1, given, steps=3, sampler="heun", guidance_scale=guidance, seed=3)
    asked = asked[:: 1 if guidance == 1.0 else 2]  # each time the network is asked without the label too
    grid, abar = [1000, 667, 333, 0], model.schedule.alpha_bar.tolist()
    mask = [int(times[0, 2]) for _, times in asked]
    assert mask == [1000, 667, 667, 333, 333] and all(int(times[0, 0]) == 0 for _, times in asked)
    for k in range(2):
        t, s = grid[k], grid[k + 1]
        (z, _), *attempts = asked[2 * k : 2 * k + 3]
        expected = math.sqrt((1 - abar[s]) / (1 - abar[t])) * (z - math.sqrt(abar[t]) * x) + math.sqrt(abar[s]) * x
        for found, _ in attempts:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
