"""Sampling with an offset: every block of the space by its own time, against the design's formulas in float64.

The network is a known function of what it sees, of the times and of what it is told, and keeps all that it is asked.
"""

import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import truth
from test_sampling import Features
from test_sampling_diffusers import close

import mmfast
from mmfast import Schedule, modalities
from mmfast.modalities.base import SpaceShape
from mmfast.model import Model, Prediction
from mmfast.sample import sample
from mmfast.sample_options import takes_eta
from mmfast.samplers import SAMPLERS
from mmfast.streams import SAMPLE

sample_module = importlib.import_module("mmfast.sample")
T, COUNT, SIZE, SEED = 1000, 3, 4, 11
IDS = torch.tensor([5, 900, 17])
NAMES = ("image", "mask", "label", "other")
# Of each modality the options, its weight, and where its block lies in z.
KINDS = {
    "mask": ("mask", {"classes": 3, "size": SIZE}, ("bridge", 0.7), slice(1, 3)),
    "label": ("label", {"classes": 4}, ("carried", 0.3), slice(3, 6)),
    "other": ("image", {"channels": 3, "size": SIZE, "rms": 0.5}, ("carried", 1.5), slice(6, 9)),
}
BLOCKS = {"image": slice(0, 1), **{name: where for name, (_, _, _, where) in KINDS.items()}}


class Known(Model):
    """Predicts smooth functions of what it is asked."""

    def __init__(self, target="x0"):
        kinds = {"image": ("image", {"channels": 1, "size": SIZE})}
        kinds |= {name: (kind, spec) for name, (kind, spec, _, _) in KINDS.items()}
        parts = {}
        for name, (kind, spec) in kinds.items():
            part = modalities.kind(kind)
            parts[name] = part(name, part.Spec(**spec), SpaceShape(SIZE, SIZE))
        weights = {name: getattr(mmfast, kind)(scale) for name, (_, _, (kind, scale), _) in KINDS.items()}
        super().__init__("image", parts, Schedule.linear(T, weights), lambda channels, size: Features(), "own", target)
        assert {name: where.start for name, (_, _, _, where) in KINDS.items()} == self.starts
        self.asked = []

    def says(self, z, times, told):
        """z_0 of the image and the heads' outputs, float64, of z_t, the times of NAMES and what is told by name."""
        x = z.double().clone()
        for name, t in zip(NAMES, times, strict=True):
            if t == 0:
                x[:, BLOCKS[name]] = told[name].double().expand(-1, -1, SIZE, SIZE)
            elif t == T and name != "image":
                x[:, BLOCKS[name]] = 0
        u, v, w, y = (t / T for t in times)
        image = 1.4 * torch.sin(x[:, :1] + 0.3 * x[:, 1:2] - 0.2 * x[:, 6:7] + 0.4 * x[:, 3:4] + u - v)
        mask = torch.stack([torch.sin(x[:, 0] + k * x[:, 2] - 0.3 * x[:, 4]) + k * v for k in range(3)], 1)
        label = torch.stack([torch.cos(x[:, 3] - k * x[:, 0] + x[:, 1] + w).mean((1, 2)) for k in range(4)], 1)
        other = 0.6 * torch.tanh(x[:, 6:9] - x[:, :1] + x[:, 4:5] * y)
        return image, {"mask": 2 * mask, "label": 2 * label, "other": other}

    def answer(self, z0, z, t):
        """The target of z_0 in the image's block at time t."""
        a = float(self.schedule.alpha_bar[t])
        if self.target == "x0":
            return z0
        eps = (z[:, :1].double() - math.sqrt(a) * z0) / math.sqrt(1 - a) if a < 1 else torch.zeros_like(z0)
        return eps if self.target == "eps" else math.sqrt(a) * eps - math.sqrt(1 - a) * z0

    def forward(self, z, times, told):
        assert (times == times[:1]).all()
        times = times[0].tolist()
        self.asked.append((z.clone(), times))
        z0, heads = self.says(z, times, told)
        return Prediction(self.answer(z0, z, times[0]).float(), {name: x.float() for name, x in heads.items()})

    def encoded(self, name, head):
        """E of what a head expects: worked out here."""
        if name == "other":
            return head / 0.5
        codes = self.part(name).codes.double().reshape(KINDS[name][1]["classes"], -1)
        E = torch.movedim(torch.movedim(head.softmax(1), 1, -1) @ codes, -1, 1)
        return E if E.dim() == 4 else E[:, :, None, None].expand(-1, -1, SIZE, SIZE)

    def drawn(self, name, head):
        """The likeliest x of a head's output."""
        return head.clamp(-1, 1) if name == "other" else head.argmax(1)

    def of_drawn(self, name, head):
        """E of it."""
        if name == "other":
            return head.clamp(-1, 1) / 0.5
        one_hot = torch.nn.functional.one_hot(head.argmax(1), head.shape[1]).double()
        return self.encoded(name, torch.movedim(one_hot, -1, 1) * 1e4)


# --- the steps of one block, from the design's sections 2 and 4 -------------------------------------------------


ABAR = truth.linear(T).tolist()
W_OF = {name: truth.weight(*weight, np.array(ABAR)).tolist() for name, (_, _, weight, _) in KINDS.items()}


def normals(draw):
    found = [truth.normals(SEED, SAMPLE, int(i), draw, 9 * SIZE * SIZE) for i in IDS]
    return torch.tensor(np.stack(found)).reshape(COUNT, 9, SIZE, SIZE)


def of_rule(sampler, eta, t, s, last):
    """What a step from t to s does of y_t: (of y_t, of z_0, sigma, and the share of z_0 that is extrapolated)."""
    a, at, as_ = ABAR[t] / ABAR[s], ABAR[t], ABAR[s]
    if sampler == "ddpm":
        sigma = math.sqrt((1 - a) * (1 - as_) / (1 - at))
        return math.sqrt(a) * (1 - as_) / (1 - at), math.sqrt(as_) * (1 - a) / (1 - at), sigma, 0.0
    sigma = eta * math.sqrt((1 - a) * (1 - as_) / (1 - at))
    of_y = math.sqrt(1 - as_ - sigma**2) / math.sqrt(1 - at)
    if sampler == "ddim":
        return of_y, math.sqrt(as_) - of_y * math.sqrt(at), sigma, 0.0
    if s == 0:
        return 0.0, 1.0, 0.0, 0.0

    def log_snr(u):
        return 0.5 * math.log(ABAR[u] / (1 - ABAR[u]))

    h = log_snr(s) - log_snr(t)
    share = 0.0 if last is None else 1 / (2 * (log_snr(t) - log_snr(last)) / h)
    assert eta in (0, 1)
    return (
        math.sqrt((1 - as_) / (1 - at)) * math.exp(-eta * h),
        -math.sqrt(as_) * math.expm1(-(1 + eta) * h),
        sigma,
        share,
    )


def by_hand(model, offset, steps, how, given=None, scale=1.0, clamp=None):
    """Every step in float64 from the z_t that the network was asked at: compares z_s, the times and what is told.

    offset: of all NAMES that are not given; given: by name, the encodings. Returns what is drawn, by name.
    """
    given = dict(given or {})
    own = [name for name in NAMES if name not in given]
    first, last = max(offset[name] for name in own), min(offset[name] for name in own)
    span = T + round((first - last) * T)
    clock = [round(span * (steps - i) / steps) for i in range(steps + 1)]

    def times(u):
        """From the definition: t_i = u - offset_i T from where the first block starts, u = (1 + first) T."""
        lead = {name: round((offset.get(name, last) - last) * T) for name in NAMES}
        return {name: min(max(u - lead[name], 0), T) for name in NAMES}

    asked = iter(model.asked)
    found, known = {}, {name: x.double() for name, x in given.items()}
    ours = t_last = before = was_known = None
    z = normals(clock[0])
    for name in given:
        if name != "image":
            z[:, BLOCKS[name]] += W_OF[name][T] * known[name]
    for i, (u, u_next) in enumerate(pairwise(clock)):
        t, s, z_last = times(u), times(u_next), ours
        ours, at = next(asked)
        close(ours, z.float())
        for name in NAMES:  # a block that waits, or is decided, is as it was, bit for bit
            if i and t[name] == t_last[name]:
                assert torch.equal(ours[:, BLOCKS[name]], z_last[:, BLOCKS[name]])
        assert at == [0 if name in known else t[name] for name in NAMES]
        told = model.says(ours, at, known)
        image, heads = told[0], dict(told[1])
        for name in given if scale != 1 else ():
            _, at = next(asked)
            assert at == [t[n] if n == name or n not in known else 0 for n in NAMES]
            untold = model.says(ours, at, known)
            image = image + (scale - 1) * (told[0] - untold[0])
            heads = {n: x + (scale - 1) * (told[1][n] - untold[1][n]) for n, x in heads.items()}
        z0 = image if clamp is None else image.clamp(-clamp, clamp)
        E = {n: known[n] if n in given else model.encoded(n, heads[n]) for n in KINDS}
        said = {"image": known["image"] if "image" in given else z0, **E}
        eps, z = normals(u_next), ours.double()
        for name in NAMES:
            if s[name] == t[name]:
                continue
            # A rule of several steps begins anew where the block has just begun, and where something was decided.
            anew = i == 0 or t_last[name] == t[name] or set(known) != was_known
            of_y, of_z0, sigma, share = of_rule(*how, t[name], s[name], None if anew else t_last[name])
            x = said[name] if not share else (1 + share) * said[name] - share * before[name]
            block, noise = z[:, BLOCKS[name]], sigma * eps[:, BLOCKS[name]]
            if name == "image":
                z[:, BLOCKS[name]] = of_y * block + of_z0 * x + noise
            else:
                W_t, W_s = W_OF[name][t[name]], W_OF[name][s[name]]
                z[:, BLOCKS[name]] = W_s * x + of_y * (block - W_t * x) + noise
        t_last, before, was_known = t, said, set(known)
        for name in own:
            if s[name] == 0 < t[name]:
                known[name] = z0 if name == "image" else model.of_drawn(name, heads[name])
                found[name] = z0 if name == "image" else model.drawn(name, heads[name])
    assert next(asked, None) is None
    return found


OFFSETS = {
    "leads": {"mask": 0.3},
    "lags": {"label": -0.25},
    "both": {"mask": 0.3, "label": -0.2},
    "all": {"mask": 0.6, "label": 0.31, "other": -0.999},
}
HOWS = {
    "ddpm": ("ddpm", 0.0),
    "ddim": ("ddim", 0.0),
    "ddim 0.6": ("ddim", 0.6),
    "dpmpp_2m": ("dpmpp_2m", 0.0),
    "dpmpp_2m 1": ("dpmpp_2m", 1.0),
}


def draw(model, offset, steps, how, **more):
    model.asked.clear()
    sampler, eta = how
    return sample(model, COUNT, steps=steps, sampler=sampler, eta=eta, seed=SEED, sample_ids=IDS, offset=offset, **more)


def same(found, expected):
    for name, x in expected.items():
        if x.is_floating_point():
            close(found[name], x.float())
        else:
            assert torch.equal(found[name], x)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("target", ["x0", "v"])
def test_every_step_is_the_designs_block_by_block(offset, how, target):
    """12 steps, so that blocks begin and end within steps; float64 from each z_t, the noise by its identity."""
    model, shares = Known(target), {name: OFFSETS[offset].get(name, 0.0) for name in NAMES}
    drawn = draw(model, OFFSETS[offset], 12, HOWS[how], clamp=1.0)
    same(drawn, by_hand(model, shares, 12, HOWS[how], clamp=1.0))


@pytest.mark.parametrize("how", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("names", [("label",), ("mask", "label"), ("image",), ("image", "other")], ids="+".join)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_given_modalities_and_guidance(names, how, scale):
    """What is given is at time 0 throughout, and its block, which the network not told of it sees, goes with the last.

    An offset of what is given plays no part.
    """
    model, offset = Known(), {"mask": 0.3, "label": -0.2}
    g = torch.Generator().manual_seed(2)
    whole = {
        "image": torch.rand(COUNT, 1, SIZE, SIZE, generator=g) * 2 - 1,
        "mask": torch.randint(0, 3, (COUNT, SIZE, SIZE), generator=g),
        "label": torch.randint(0, 4, (COUNT,), generator=g),
        "other": torch.rand(COUNT, 3, SIZE, SIZE, generator=g) * 2 - 1,
    }
    given = {name: whole[name] for name in names}
    encoded = {name: x if name == "image" else model.part(name).encode(x).double() for name, x in given.items()}
    drawn = draw(model, offset, 9, HOWS[how], given=given, guidance_scale=scale, clamp=None)
    assert all(torch.equal(drawn[name], x) for name, x in given.items())
    shares = {name: offset.get(name, 0.0) for name in NAMES if name not in given}
    same(drawn, by_hand(model, shares, 9, HOWS[how], given=encoded, scale=scale))


def test_what_is_given_between_two_blocks_is_not_waited_for():
    """The image is given, the mask 0.9 T ahead of it and the label 0.9 T behind: the label begins as the mask ends."""
    model = Known()
    given = {"image": torch.zeros(COUNT, 1, SIZE, SIZE), "other": torch.zeros(COUNT, 3, SIZE, SIZE)}
    draw(model, {"mask": 0.9, "label": -0.9}, 8, HOWS["ddim"], given=given)
    assert [times[1:3] for _, times in model.asked] == [
        [1000, 1000], [750, 1000], [500, 1000], [250, 1000], [0, 1000], [0, 750], [0, 500], [0, 250]
    ]  # fmt: skip


def test_what_is_unknown_stays_at_T_and_has_no_clock():
    model = Known()
    draw(model, {"mask": 0.5, "label": 0.25}, 5, HOWS["ddim"], unknown=["mask"])
    clock = [1250, 1000, 750, 500, 250]
    assert [times for _, times in model.asked] == [
        [min(u, T), T, max(u - 250, 0), min(u, T)] for u in clock
    ]  # fmt: skip


# --- the ends of the offset -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_offset_is_the_diagonal(sampler, monkeypatch):
    """Bit for bit, with z_t as one term: none, zero, and one that is less than half a timestep."""
    model, plans, plan = Known(), [], sample_module.path.plan
    monkeypatch.setattr(sample_module.path, "plan", lambda *args: plans.append(plan(*args)) or plans[-1])
    how = sampler, 0.5 * takes_eta(sampler)
    plain = draw(model, None, 7, how)
    asked = list(model.asked)
    for offset in ({}, {"mask": 0.0}, {"mask": 0, "label": -0.0}, {"mask": 0.0004}):
        drawn = draw(model, offset, 7, how)
        assert all(torch.equal(drawn[name], plain[name]) for name in NAMES)
        assert all(torch.equal(a, b) and t == u for (a, t), (b, u) in zip(asked, model.asked, strict=True))
    assert len(plans) == 5 and all(plan.levels == () and plan.tables.sigma.shape == (len(asked),) for plan in plans)


@pytest.mark.parametrize("first", ["mask", "image"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_in_the_limit_one_is_drawn_and_then_the_rest_given_it(first, sampler):
    """Two runs by hand, each of 8 steps over T and all in float64: the second is told what the first has drawn."""
    model, near = Known(), 1 - 1e-9
    offset = {"mask": near} if first == "mask" else dict.fromkeys(KINDS, -near)
    drawn = draw(model, offset, 16, (sampler, 0.0), clamp=None)
    z, grid = normals(2 * T), [T - 125 * i for i in range(9)]

    def run(names, told, z):
        """Steps the blocks of these names from T to 0, all others at T or told."""
        before = None
        for i, (t, s) in enumerate(pairwise(grid)):
            image, heads = model.says(z, [0 if n in told else t if n in names else T for n in NAMES], told)
            said = {"image": image, **{name: model.encoded(name, heads[name]) for name in KINDS}}
            z = z.clone()
            for name in names:
                of_y, of_z0, _, share = of_rule(sampler, 0.0, t, s, grid[i - 1] if i else None)
                x = said[name] if not share else (1 + share) * said[name] - share * before[name]
                block = z[:, BLOCKS[name]]
                if name == "image":
                    z[:, BLOCKS[name]] = of_y * block + of_z0 * x
                else:
                    z[:, BLOCKS[name]] = W_OF[name][s] * x + of_y * (block - W_OF[name][t] * x)
            before = said
        return z, image, heads

    z, image, heads = run([first], {}, z)
    found = {first: image if first == "image" else model.drawn(first, heads[first])}
    told = {first: image if first == "image" else model.of_drawn(first, heads[first])}
    rest = [name for name in NAMES if name != first]
    _, image, heads = run(rest, told, z)
    found |= {name: image if name == "image" else model.drawn(name, heads[name]) for name in rest}
    for name, x in found.items():
        if x.is_floating_point():  # errors of float32 through all steps
            torch.testing.assert_close(drawn[name], x.float(), rtol=1e-3, atol=1e-3)
        else:
            assert (drawn[name] != x).float().mean() < 0.02
