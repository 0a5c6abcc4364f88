"""The training loss by value: against a second writing of it, from the design, an example at a time in float64."""

import itertools
import math

import pytest
import torch

from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.ops import reference
from mmfast.ops.call import Noise
from mmfast.streams import GIVEN, TIMESTEP, TRAIN_NOISE
from mmfast.training.objective import losses

B = 24


def words(config, numbers, stream, count, draw=0):
    noise = Noise((config.seed, draw), numbers, stream)
    return (reference.random_words(noise, len(numbers), count, torch.device("cpu")).double() / 2.0**32).tolist()


def roles_of(model, config, numbers, present):
    """What each modality of each example is: "given", "unknown", "own" or "diagonal"."""
    names, found = list(model.parts), []
    u, ties = (words(config, numbers, GIVEN, len(names), draw) for draw in (0, 1))
    for b in range(len(numbers)):
        roles = {}
        for k, name in enumerate(names):
            spec = config.modalities[name]
            given = config.train.given_probability if spec.given_probability is None else spec.given_probability
            unknown, own = (spec.unknown_probability, spec.own_time_probability) if k else (0.0, 0.0)
            given, unknown, own = (given, unknown, own) if config.told else (0.0, 0.0, 0.0)
            bounds = {"given": given, "unknown": given + unknown, "own": given + unknown + own, "diagonal": math.inf}
            roles[name] = next(role for role, bound in bounds.items() if u[b][k] < bound)
        held = [name for name in names if present[name][b]]
        for name in names:
            if name not in held:
                roles[name] = "unknown"
        if all(roles[name] == "given" for name in held):
            roles[max(held, key=lambda name: ties[b][names.index(name)])] = "diagonal"
        found.append(roles)
    return found


def times_of(model, config, numbers, roles):
    """The anchor's time and its loss's weight, and every modality's time, of each example."""
    T, names, low = config.schedule.T, list(model.parts), config.train.low_noise
    u = words(config, numbers, TIMESTEP, 1)
    at_T = words(config, numbers, TIMESTEP, 1, 1)
    few = words(config, numbers, TIMESTEP, 2, 2)
    own = words(config, numbers, TIMESTEP, len(names), 3)
    found = []
    for b, role in enumerate(roles):
        t, weight = 1 + math.floor(u[b][0] * T), 1.0
        share = max((config.modalities[n].given_at_T or 0.0) * (role[n] == "given") for n in names)
        if at_T[b][0] < share:
            t = T
        alone = all(role[n] == "unknown" for n in names[1:] if n in model.time_of)
        if alone and role[names[0]] != "given" and few[b][0] < low.share:
            t, weight = 1 + math.floor(few[b][1] * max(1, round(low.until * T))), low.weight
        of = {"given": 0, "unknown": T if config.space == "own" else t, "diagonal": t}
        times = [of.get(role[n], 1 + math.floor(own[b][k] * T)) for k, n in enumerate(names)]
        found.append((t, weight, times))
    return found


def min_snr(target, snr, gamma):
    if gamma is None:
        return 1.0
    return {"eps": min(gamma / snr, 1), "x0": min(snr, gamma), "v": min(snr, gamma) / (snr + 1)}[target]


@torch.no_grad()
def by_design(model, config, batch, numbers):
    """The loss's parts: equation by equation, an example at a time."""
    names, schedule = list(model.parts), model.schedule
    anchor = names[0]
    present = {n: batch.present.get(n, torch.ones(B, dtype=torch.bool)).tolist() for n in names}
    data = model.complete(batch, config.seed, numbers).filled()
    roles = roles_of(model, config, numbers, present)
    totals = dict.fromkeys(names, 0.0)
    for b, (t, weight, times) in enumerate(times_of(model, config, numbers, roles)):
        x = data[anchor][b : b + 1].double()
        E = {n: model.part(n).encode(data[n][b : b + 1]).double() for n in names[1:]}
        shape = (1, model.channels, *model.shape[1:])
        eps = reference.normals(Noise((config.seed, 0), numbers[b : b + 1], TRAIN_NOISE), shape, x.device).double()
        abar = float(schedule.alpha_bar[t])
        z = math.sqrt(1 - abar) * eps
        z[:, : model.shape[0]] += math.sqrt(abar) * x
        for n in model.traced:
            k = names.index(n)
            at = times[k] if roles[b][n] == "own" else t
            W, here = float(schedule.W[at, schedule.names.index(n)]), schedule.alpha_bar[at]
            start = model.starts[n]
            block = z[:, start : start + E[n].shape[1]] if config.space == "own" else z
            if config.space == "own":
                block *= math.sqrt(1 - here) / math.sqrt(1 - abar)
            if present[n][b]:
                block += W * E[n]
        told = torch.tensor([times if config.told else [t] * len(times)])
        said = model(z.float(), told, model.tell(x.float(), {n: e.float() for n, e in E.items()}, told))
        noise = eps[:, : model.shape[0]]
        sigma, signal = math.sqrt(1 - abar), math.sqrt(abar)
        target = {"eps": noise, "x0": x, "v": signal * noise - sigma * x}[model.target]
        if roles[b][anchor] != "given":
            error = (target - said.anchor.double()).square().mean()
            totals[anchor] += (
                float(error)
                * weight
                * config.modalities[anchor].loss_weight
                * min_snr(model.target, abar / (1 - abar), config.loss.min_snr_gamma)
            )
        for n in names[1:]:
            part = model.part(n)
            if part.restores:
                counts = float(roles[b][anchor] != "given") * part.spec.loss_weight
                totals[n] += counts * float(part.loss(said.heads[n], data[n][b : b + 1]))
                continue
            untold = config.space == "own" and part.uniform and part.reads == "encoder"
            if part.diffused and present[n][b] and roles[b][n] != "given":  # as the anchor: whatever its time is
                x = part.counted(said.heads[n], data[n][b : b + 1]) - E[n].float()
                totals[n] += part.spec.loss_weight * float(x.double().square().mean())
                continue
            if not present[n][b] or (roles[b][n] == "given" and not untold):
                continue
            readable = 1.0 if roles[b][anchor] == "given" else abar
            off_the_anchor = roles[b][n] in ("unknown", "given") or (untold and n not in model.traced)
            counts = readable if off_the_anchor else 1.0
            totals[n] += counts * part.spec.loss_weight * float(part.loss(said.heads[n], data[n][b : b + 1]))
    for n, total in clean(model, config, data, numbers, present).items():
        totals[n] += config.train.clean_pass * total
    return {n: total / B for n, total in totals.items()}


def clean(model, config, data, numbers, present):
    """The sums of what the encoder's heads say of the image without noise, with z at T and nothing else known.

    A head that restores the image gets its visible parts instead.
    """
    if not config.train.clean_pass:
        return {}
    names, schedule, totals = list(model.parts), model.schedule, {}
    T, anchor = schedule.T, names[0]
    restoring = [n for n in names[1:] if model.part(n).restores and model.part(n).reads == "encoder"]
    for b, source in itertools.product(range(B), [anchor, *restoring]):
        z = {n: x[b : b + 1] for n, x in data.items()}
        E = {n: model.part(n).encode(z[n]).double() for n in names[1:]}
        shape = (1, model.channels, *model.shape[1:])
        eps = reference.normals(Noise((config.seed, 0), numbers[b : b + 1], TRAIN_NOISE), shape, z[anchor].device)
        abar = float(schedule.alpha_bar[T])
        noisy = math.sqrt(1 - abar) * eps.double()
        noisy[:, : model.shape[0]] += math.sqrt(abar) * z[anchor].double()
        for n in model.traced:
            if present[n][b]:
                start = model.starts[n] if config.space == "own" else 0
                noisy[:, start : start + E[n].shape[1]] += float(schedule.W[T, schedule.names.index(n)]) * E[n]
        times = torch.tensor([[0 if n == source and present[n][b] else T for n in names]])
        told = model.tell(z[anchor], {n: e.float() for n, e in E.items()}, times)
        said = model(noisy.float(), times, told)  # of the whole network
        for n in [source] if source != anchor else [n for n in names[1:] if n not in restoring]:
            if model.part(n).reads == "encoder" and present[n][b]:
                loss = float(model.part(n).loss(said.heads[n], z[n]))
                counts = (1.0 if present[anchor][b] else abar) * model.part(n).spec.loss_weight
                totals[n] = totals.get(n, 0.0) + counts * loss
    return totals


LABEL, MASK, IMAGE = (f"modalities.{name}" for name in ("label", "mask", "image"))
CASES = {
    "the preset": {},
    "a weight of the anchor": {f"{IMAGE}.loss_weight": 2.5},
    "x0, min-SNR": {"loss.target": "x0", "loss.min_snr_gamma": 5},
    "v, min-SNR": {"loss.target": "v", "loss.min_snr_gamma": 0.5},
    "eps, min-SNR": {"loss.min_snr_gamma": 0.5},
    "shared, v": {"space": "shared", "loss.target": "v", f"{LABEL}.weight": "{kind: bridge}",
                  f"{MASK}.weight": "{kind: bridge}"},
    "shared, not told": {"space": "shared", "told": "false", f"{LABEL}.weight": "{kind: bridge}",
                         f"{MASK}.weight": "{kind: bridge}", "train.given_probability": 0.6},
    "not told": {"told": "false", "train.given_probability": 0.3, f"{MASK}.unknown_probability": 0.3,
                 f"{MASK}.own_time_probability": 0.4},
    "unknown, low noise": {f"{LABEL}.unknown_probability": 0.4, f"{MASK}.unknown_probability": 0.6,
                           f"{IMAGE}.given_probability": 0, "train.given_probability": 0.2,
                           "train.low_noise": "{share: 0.7, until: 0.03, weight: 0.25}"},
    "no trace": {f"{LABEL}.weight": "{kind: none}", f"{LABEL}.given_probability": 0.8,
                 f"{LABEL}.unknown_probability": 0.2, f"{MASK}.unknown_probability": 0.5},
    "weights": {f"{LABEL}.loss_weight": 3.0, f"{MASK}.loss_weight": 0.01, "train.given_probability": 0.5},
    "read at the end": {f"{LABEL}.reads": "decoder", f"{LABEL}.unknown_probability": 0.5},
    "no trace, a time of its own": {f"{LABEL}.weight": "{kind: none}", f"{MASK}.weight": "{kind: none}",
                                    f"{LABEL}.own_time_probability": 0.5},
    "low noise, not of all": {"train.low_noise": "{share: 0.9, until: 0.5, weight: 3}",
                              f"{MASK}.weight": "{kind: none}", f"{LABEL}.weight": "{kind: none}",
                              f"{LABEL}.unknown_probability": 0.5, f"{IMAGE}.given_probability": 0.4},
    "given at T": {f"{LABEL}.given_at_T": 0.5, f"{MASK}.given_at_T": 0.9, "train.given_probability": 0.4},
    "hidden parts": {"modalities.hidden": "{kind: masked, channels: 1, size: 8, block: 2, loss_weight: 0.5}",
                     f"{IMAGE}.given_probability": 0.4},
    "diffused themselves": {f"{LABEL}.diffused": "true", f"{MASK}.diffused": "true",
                            f"{LABEL}.own_time_probability": 0.5, f"{MASK}.own_time_probability": 0.4,
                            f"{MASK}.unknown_probability": 0.3},
    "clean pass": {"train.clean_pass": 0.7, f"{LABEL}.weight": "{kind: none}", f"{LABEL}.loss_weight": 2.0},
    "clean pass, traced": {"train.clean_pass": 1.5, f"{MASK}.unknown_probability": 0.4},
    "clean pass, shared": {"train.clean_pass": 1.0, "space": "shared", f"{LABEL}.weight": "{kind: bridge}",
                           f"{MASK}.weight": "{kind: bridge}", "loss.target": "v"},
    "clean pass, hidden parts": {"train.clean_pass": 1.0, f"{IMAGE}.given_probability": 0.4, "modalities.hidden":
                                 "{kind: masked, channels: 1, size: 8, block: 2, loss_weight: 0.5}"},
    "clean pass, a map": {"train.clean_pass": 0.5, f"{IMAGE}.given_probability": 0.3, "modalities.map":
                          "{kind: feature_map, dim: 1, cells: 4, network: pixels, reads: encoder, loss_weight: 1.5}"},
    "clean pass, a mask of the encoder": {
        "train.clean_pass": 0.5, f"{MASK}.reads": "encoder", f"{MASK}.unknown_probability": 0.3,
        "backbone": "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"},
    "clean passes, hidden parts of the encoder": {
        "train.clean_pass": 0.5, f"{IMAGE}.given_probability": 0.4, "modalities.hidden":
        "{kind: masked, channels: 1, size: 8, block: 2, loss_weight: 0.5, reads: encoder}",
        "backbone": "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"},
    "a clean pass of hidden parts alone": {
        "train.clean_pass": 1.5, f"{LABEL}.reads": "decoder", "modalities.hidden":
        "{kind: masked, channels: 1, size: 8, block: 2, reads: encoder}",
        "backbone": "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"},
    "own times": {f"{LABEL}.own_time_probability": 0.6, f"{MASK}.own_time_probability": 0.4,
                  f"{MASK}.unknown_probability": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "some missing"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_design(name, missing):
    """Every part, to what float32 of the noise and the sums leave."""
    small = {"backbone.width": 32, "backbone.dropout": 0}
    pairs = {**({} if "backbone" in CASES[name] else small), "seed": 3, **CASES[name]}
    config = configs.load("digits", [(k, str(v)) for k, v in pairs.items()])
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():  # what begins at zero would hide what is behind it
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    batch = build_data(config).train.__getitems__(range(B))
    if missing:
        there = {n: torch.rand(B, generator=generator) > 0.4 for n in ("label", "mask")}
        batch = Batch(batch.data, there)
    numbers = torch.arange(B) * 7 + 1_000_003
    found = {n: float(x.detach()) for n, x in losses(model, batch, numbers, config).items()}
    want = by_design(model, config, batch, numbers)
    assert found.keys() == want.keys()
    for n in want:
        assert want[n] > 0 and found[n] == pytest.approx(want[n], rel=2e-5), n


HIDDEN = "{kind: masked, channels: 1, size: 8, block: 2, reads: %s}"


@pytest.mark.parametrize(
    ("label", "hidden", "passes"),
    [
        ("encoder", "encoder", [("label",), ("hidden",)]),
        ("decoder", "encoder", [("hidden",)]),
        ("encoder", "decoder", [("label",)]),
        ("decoder", "decoder", []),
    ],
)
def test_a_pass_without_noise_computes_no_head_that_does_not_count_in_it(label, hidden, passes, monkeypatch):
    pairs = [
        ("backbone", "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"), ("train.clean_pass", "1"),
        (f"{LABEL}.reads", label), ("modalities.hidden", HIDDEN % hidden),
    ]  # fmt: skip
    config = configs.load("digits", pairs)
    model, seen = build_model(config), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, only_heads: seen.append(only_heads) or forward(
        *args, only_heads=only_heads))  # fmt: skip
    losses(model, build_data(config).train.__getitems__(range(B)), torch.arange(B), config)
    assert seen == [None, *passes]


def test_nothing_is_read_without_noise_off_an_image_that_is_missing():
    found = {}
    for weight in ("0", "1"):
        config = configs.load("digits", [("backbone.width", "32"), ("train.clean_pass", weight)])
        batch = build_data(config).train.__getitems__(range(B))
        batch = Batch(batch.data, {"image": torch.zeros(B, dtype=torch.bool)})
        found[weight] = losses(build_model(config), batch, torch.arange(B), config)["label"].item()
    assert found["0"] > 0 and found["1"] == pytest.approx(found["0"], rel=1e-5)


def test_probabilities_that_exceed_one_are_refused():
    with pytest.raises(MmfastError, match=r"modalities\.mask.*1\.3"):
        configs.load("digits", [(f"{MASK}.given_probability", "0.6"), (f"{MASK}.unknown_probability", "0.7")])


@pytest.mark.parametrize("option", ["unknown_probability", "own_time_probability"])
def test_times_need_channels_of_their_own_and_an_anchor_to_count_from(option):
    bridges = [(f"{name}.weight", "{kind: bridge}") for name in (LABEL, MASK)]
    with pytest.raises(MmfastError, match=rf"modalities\.mask\.{option} needs space=own"):
        configs.load("digits", [("space", "shared"), *bridges, (f"{MASK}.{option}", "0.2")])
    with pytest.raises(MmfastError, match=r"modalities\.image is the anchor"):
        configs.load("digits", [(f"{IMAGE}.{option}", "0.2")])
