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
from test_sampling import CONFIG, MEANS, SPREAD, Features, Oracle, data
from test_sampling_diffusers import close

import mmfast
from mmfast import MmfastError, Schedule, build, config, modalities
from mmfast.cli import main
from mmfast.generate import generate
from mmfast.modalities.base import SpaceShape
from mmfast.model import Model, Prediction
from mmfast.sample import sample
from mmfast.samplers import SAMPLERS
from mmfast.streams import SAMPLE
from mmfast.training import train

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
    if sampler == "ddim":
        sigma = eta * math.sqrt((1 - a) * (1 - as_) / (1 - at))
        of_y = math.sqrt(1 - as_ - sigma**2) / math.sqrt(1 - at)
        return of_y, math.sqrt(as_) - of_y * math.sqrt(at), sigma, 0.0
    if s == 0:
        return 0.0, 1.0, 0.0, 0.0

    def log_snr(u):
        return 0.5 * math.log(ABAR[u] / (1 - ABAR[u]))

    h = log_snr(s) - log_snr(t)
    share = 0.0 if last is None else 1 / (2 * (log_snr(t) - log_snr(last)) / h)
    return math.sqrt((1 - as_) / (1 - at)), -math.sqrt(as_) * math.expm1(-h), 0.0, share


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


@pytest.mark.parametrize("share", [0.5, -0.5])
def test_what_leaves_no_trace_goes_with_the_last(small, monkeypatch, share):
    """It is never told before the end, and is read off the rest there."""
    path, asked = small[2], []
    model = build.build_model(config.load(path, [("modalities.label.weight.kind", "none")]))
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda z, times, told: asked.append((times[0].tolist(), set(told))) or forward(z, times, told)
    )
    drawn = sample(model, 2, steps=3, offset={"mask": share}, heads="sampled", precision="bf16")
    first, last = [[1000, 500, 0], [1000, 1000, 500]]
    image, mask = (last, first) if share > 0 else (first, last)
    assert [times for times, _ in asked] == [list(at) for at in zip(image, last, mask, strict=True)]
    assert [told for _, told in asked] == [set(), set(), {"mask" if share > 0 else "image"}]
    for name, x in drawn.items():
        model.part(name).check(x, name)


# --- the ends of the offset -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_offset_is_the_diagonal(sampler, monkeypatch):
    """Bit for bit, with z_t as one term: none, zero, and one that is less than half a timestep."""
    model, plans, plan = Known(), [], sample_module.path.plan
    monkeypatch.setattr(sample_module.path, "plan", lambda *args: plans.append(plan(*args)) or plans[-1])
    plain = draw(model, None, 7, (sampler, 0.5))
    asked = list(model.asked)
    for offset in ({}, {"mask": 0.0}, {"mask": 0, "label": -0.0}, {"mask": 0.0004}):
        drawn = draw(model, offset, 7, (sampler, 0.5))
        assert all(torch.equal(drawn[name], plain[name]) for name in NAMES)
        assert all(torch.equal(a, b) and t == u for (a, t), (b, u) in zip(asked, model.asked, strict=True))
    assert len(plans) == 5 and all(plan.levels == () and plan.tables.sigma.shape == (7,) for plan in plans)


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


# --- the order --------------------------------------------------------------------------------------------------


class OwnTimes(Oracle):
    """E[z_0 | z_t, told] and ln p(label | z_t, told) at a time for each block, exactly."""

    def forward(self, z, times, told):
        t0, t1 = times[0].tolist()
        a, z, codes = float(self.schedule.alpha_bar[t0]), z[:, :, 0, 0].double(), self.part("label").codes[:, :, 0, 0]
        means, codes = MEANS.double(), codes.double()
        y = z[:, :1] if t0 else told["image"][:, :, 0, 0].double()
        variance = a * SPREAD**2 + 1 - a
        logs = -0.5 * (y - math.sqrt(a) * means) ** 2 / variance
        mean = means + math.sqrt(a) * SPREAD**2 / variance * (y - math.sqrt(a) * means)
        if t1:
            W, v = float(self.schedule.W[t1, 0]), 1 - float(self.schedule.alpha_bar[t1])
            logs = logs - 0.5 * ((z[:, None, 1:] - W * codes) ** 2).sum(2) / v
        else:
            off = ((told["label"][:, None, :, 0, 0].double() - codes) ** 2).sum(2) > 1e-6
            logs = logs.masked_fill(off, -math.inf)
        logs = logs.log_softmax(1)
        z0 = (logs.exp() * mean).sum(1)
        return Prediction(z0[:, None, None, None].float(), {"label": logs.float()})


def open_end(T, weights):
    """Even steps of the log of abar/(1 - abar) down to 2e-5, from 2.7 at t = 1: before 0 much is still undecided."""
    log_snr = torch.linspace(1.0, math.log(2e-5), T, dtype=torch.float64)
    return Schedule(torch.cat((torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr))), weights)


def even(first, last, n):
    return [round(first + (last - first) * i / n) for i in range(n + 1)]


def path_ahead(span, n):
    """The label to 0, then the image to T/32 in steps of much the same size, and from there in one to 0."""
    lead = span // 6
    return [*even(span, lead, n), *even(lead, 512, n // 4)[1:], 0]


def path_behind(span, n):
    """The image to T/32, from there in one to 0, and then the label."""
    lead = span // 6
    return [*even(span, lead + 512, n), *even(lead, 0, n // 4)]


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize(("share", "grid"), [(0.2, path_ahead), (-0.2, path_behind)], ids=["ahead", "behind"])
def test_the_order_of_convergence_on_a_path(monkeypatch, share, grid, sampler, order):
    """Against a fine path from the same noise, the median over the samples: a few lie where the labels part.

    Told of the label at last, the network corrects itself by a jump. Extrapolated over that, the order would be 1.
    """
    T, count = 16384, 300
    monkeypatch.setattr(sample_module, "timesteps", grid)
    oracle = OwnTimes(schedule=open_end, T=T, target="x0", weight=mmfast.carried(0.3))
    how = {"clamp": None, "seed": 5, "batch_size": count, "offset": {"label": share}}
    exact = sample(oracle, count, **how, sampler="dpmpp_2m", steps=512)["image"].double()
    errors = []
    for n in (32, 64, 128):
        found = sample(oracle, count, **how, sampler=sampler, steps=n)["image"].double()
        errors.append(float((found - exact).abs().median()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.4 for rate in rates), (errors, rates)


# --- a U-Net, a config and the command line ---------------------------------------------------------------------


OFFSET = ("sample.offset.mask", "0.4")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config of image, label and mask, and its model with random weights in every layer."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    model = build.build_model(config.load(str(path))).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model, config.load(str(path), [("sample.steps", "6"), OFFSET]), str(path)


@pytest.mark.parametrize("names", [(), ("label",), ("image",)], ids=lambda n: "+".join(n) or "joint")
def test_an_example_does_not_depend_on_its_batch(small, names):
    model = small[0]
    given = {name: data(model, 7)[name] for name in names}
    options = {"steps": 6, "seed": 4, "guidance_scale": 1.5, "offset": {"mask": 0.4, "label": -0.2}}
    whole = sample(model, 7, given, batch_size=7, **options)
    for size in (1, 3):
        found = sample(model, 7, given, batch_size=size, **options)
        torch.testing.assert_close(found["image"], whole["image"], rtol=1e-4, atol=1e-4)
        for name in ("label", "mask"):
            assert (found[name] != whole[name]).float().mean() < 0.01


def test_progress_counts_every_step_of_every_batch(small, monkeypatch):
    made, tqdm = [], sample_module.tqdm
    monkeypatch.setattr(sample_module, "tqdm", lambda **how: made.append(tqdm(**how)) or made[-1])
    sample(small[0], 5, steps=7, batch_size=2, offset={"mask": 0.4}, progress="drawing")
    assert [(bar.total, bar.n) for bar in made] == [(21, 21)]


def test_as_many_steps_as_the_path_has_timesteps(small):
    with pytest.raises(MmfastError, match=r"steps is 1401; it should lie in 1 \.\. 1400"):
        sample(small[0], 1, steps=1401, offset={"mask": 0.4})


def test_the_config_has_an_offset(small):
    """`generate` draws by it, in the turns too, and in whatever direction."""
    model, usual, _ = small
    assert usual.sample.offset == {"mask": 0.4}
    plain = {"steps": 6, "sampler": "ddpm"}
    for given in ({}, {"mask": data(model, 2)["mask"]}):
        a, b = generate(model, usual, 2, given), sample(model, 2, given, **plain, offset={"mask": 0.4})
        assert all(torch.equal(a[name], b[name]) for name in model.parts)
        together = generate(model, usual, 2, given, offset={})
        assert torch.equal(together["image"], sample(model, 2, given, **plain)["image"])
        assert torch.equal(together["image"], a["image"]) == bool(given)
    turn = generate(model, usual, 2, first=["label"])
    assert torch.equal(turn["label"], sample(model, 2, **plain, offset={"mask": 0.4})["label"])
    rest = sample(model, 2, {"label": turn["label"]}, **plain, offset={"mask": 0.4}, seed=1 << 40)
    assert torch.equal(turn["image"], rest["image"])


@pytest.mark.parametrize(
    ("offset", "match"),
    [
        ({"image": 0.1}, "offset has image, the anchor"),
        ({"maks": 0.1}, "offset's modality is 'maks'.*did you mean 'mask'"),
        ({"mask": 1.0}, r"offset\['mask'\] is 1\.0; it should be a share of T between -1 and 1.*`first`"),
        ({"mask": -1}, r"offset\['mask'\] is -1"),
        ({"label": 0.1, "mask": math.nan}, r"offset\['mask'\] is nan"),
        ({"mask": math.inf}, r"offset\['mask'\] is inf"),
        ({"mask": "0.1"}, r"offset\['mask'\] is '0\.1'"),
        ({"mask": True}, r"offset\['mask'\] is True"),
        (["mask"], r"offset is \['mask'\]; it should be a dict"),
        (0.2, "offset is 0.2; it should be a dict"),
    ],
)
def test_errors(small, offset, match):
    with pytest.raises(MmfastError, match=match):
        sample(small[0], 1, steps=2, offset=offset)


def test_errors_of_the_model(small):
    path = small[2]
    for pairs in ([("space", "shared")], [("told", "false")]):
        model = build.build_model(config.load(path, pairs))
        with pytest.raises(MmfastError, match=r"offset is \{'mask': 0\.1\}, but z_t has one time; it needs"):
            sample(model, 1, steps=2, offset={"mask": 0.1})
    model = build.build_model(config.load(path, [("modalities.mask.weight.kind", "none")]))
    with pytest.raises(MmfastError, match=r"offset has mask, which leaves no trace in z_t .*use `first`"):
        sample(model, 1, steps=2, offset={"mask": 0.1})
    hidden = "{kind: masked, of: image, channels: 1, size: 8, block: 2}"
    model = build.build_model(config.load(path, [("modalities.hidden", hidden)]))
    with pytest.raises(MmfastError, match="offset has hidden, which is made from another modality"):
        sample(model, 1, steps=2, offset={"hidden": 0.1})


def test_errors_of_the_config(small, tmp_path):
    for key, value, match in (
        ("sample.offset.maks", "0.1", r"sample\.offset is 'maks'.*did you mean 'mask'"),
        ("sample.offset.image", "0.1", r"sample\.offset has image, the anchor"),
        ("sample.offset.mask", "-1", r"sample\.offset\.mask is -1"),
        ("sample.offset.mask", ".nan", r"sample\.offset\.mask is nan"),
        ("space", "shared", r"sample\.offset needs space=own"),
        ("told", "false", r"sample\.offset needs space=own and told=true"),
    ):
        with pytest.raises(MmfastError, match=match):
            config.load("digits", [OFFSET, (key, value)])
    for key, value, wanted in (("offset", "[mask]", "keys with values"), ("first", "{mask: 1}", "a list")):
        with pytest.raises(MmfastError, match=rf"sample\.{key} is .*; it should hold {wanted}"):
            config.load("digits", [(f"sample.{key}", value)])
    # What only the model knows is said before there is a run.
    wrong = config.load("digits", [("modalities.mask.weight.kind", "none"), ("sample.offset.mask", "0.2")])
    with pytest.raises(MmfastError, match=r"sample\.offset has mask, which leaves no trace"):
        train(wrong, str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_command_line(small, monkeypatch, tmp_path, capsys):
    """--offset takes names with numbers, behind the anchor too, and none for the diagonal."""
    model, usual, _ = small
    seen = []
    monkeypatch.setattr("mmfast.build.load_run", lambda *_: (None, usual, model))
    monkeypatch.setattr(
        "mmfast.generate.generate", lambda m, c, n, given, **how: seen.append(how) or generate(m, c, n, given, **how)
    )
    out = ["--n", "1", "--quiet", "--out", str(tmp_path / "a.png")]
    for words in (["--offset", "mask=0.2", "label=-0.3"], ["--offset"], []):
        assert main(["sample", "run", *out, *words]) == 0
    assert [how.get("offset") for how in seen] == [{"mask": 0.2, "label": -0.3}, {}, None]
    capsys.readouterr()
    for word, match in (("mask", "--offset mask has no number"), ("maks=0.1", "did you mean 'mask'")):
        assert main(["sample", "run", *out, "--offset", word]) == 2
        assert match in capsys.readouterr().err
