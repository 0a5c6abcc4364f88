"""Every option of a config: its default, on which runs without it depend, and the values beside its bounds."""

import dataclasses
import functools
import math
import sys

import pytest
from omegaconf import OmegaConf

from mmfast import backbones
from mmfast import config as configs
from mmfast.cli.describe import describe
from mmfast.errors import MmfastError
from mmfast.options import check

NONE, ANY = None, (None, None)

# By key: the default, then the least and the most value; a bound in a list is itself out of bounds.
SECTIONS = {
    "anchor": ("image", ANY), "space": ("own", ANY), "told": (True, ANY), "seed": (0, (0, 2**63 - 1)),
    "data.root": ("", ANY), "data.folders": ({}, ANY), "data.outside": (False, ANY),
    "data.test_fraction": (0.1, ([0], 0.9)),
    "schedule.kind": ("cosine", ANY), "schedule.T": (1000, (2, NONE)),
    "loss.target": ("x0", ANY), "loss.min_snr_gamma": (NONE, ([0], NONE)),
    "train.steps": (100_000, (1, NONE)), "train.batch_size": (128, (1, NONE)), "train.accumulation": (1, (1, NONE)),
    "train.learning_rate": (2e-3, ([0], NONE)), "train.warmup": (100, (0, NONE)), "train.decay": ("cosine", ANY),
    "train.weight_decay": (0.0, (0, NONE)), "train.grad_clip": (1.0, ([0], NONE)), "train.ema_decay": (0.998, (0, 1)),
    "train.given_probability": (0.25, (0, 1)), "train.low_noise.share": (0.0, (0, 1)),
    "train.low_noise.until": (0.1, ([0], 1)), "train.low_noise.weight": (1.0, (0, NONE)),
    "train.clean_pass": (0.0, (0, NONE)),
    "train.precision": ("fp32", ANY), "train.device": ("auto", ANY), "train.compile": (False, ANY),
    "train.cuda_graphs": (False, ANY), "train.shard": (False, ANY), "train.workers": (0, (0, NONE)),
    "train.log_every": (50, (1, NONE)), "train.sample_every": (5000, (0, NONE)),
    "train.checkpoint_every": (1000, (1, NONE)), "train.tensorboard": (True, ANY),
    "train.skip_above": (NONE, ([0], NONE)), "train.max_skipped": (20, (0, 100)),
    "train.validate_every": (1000, (0, NONE)), "train.validate_examples": (512, (1, NONE)),
    "train.keep_every": (0, (0, NONE)),
    "sample.sampler": ("dpmpp_2m", ANY), "sample.steps": (25, (1, NONE)), "sample.eta": (0.0, (0, 1)),
    "sample.spacing": (1.0, (1, 10)), "sample.guidance_scale": (1.0, (0, NONE)), "sample.clamp": (1.0, ([0], NONE)),
    "sample.batch_size": (250, (1, NONE)), "sample.precision": ("fp32", ANY), "sample.heads": ("soft", ANY),
    "sample.first": ([], ANY), "sample.offset": ({}, ANY), "sample.count": (16, (1, NONE)),
    "evaluate.samples": (1000, (0, NONE)), "evaluate.bound_steps": (8, (0, NONE)), "evaluate.features": ("pixels", ANY),
    "evaluate.features_weights": ("", ANY), "evaluate.lpips": ("", ANY), "evaluate.lpips_weights": ("", ANY),
}  # fmt: skip
EVERY = {
    "encoder": ("fixed", ANY), "weight.kind": ("carried", ANY), "weight.scale": (1.0, ANY),
    "loss_weight": (1.0, (0, NONE)), "given_probability": (NONE, (0, 1)), "unknown_probability": (0.0, (0, 1)),
    "own_time_probability": (0.0, (0, 1)), "given_at_T": (NONE, (0, 1)), "labelled_fraction": (1.0, ([0], 1)),
    "labelled_only": (False, ANY), "labelled_share": (NONE, ([0], 0.99)), "given_steps": (NONE, (1, NONE)),
}  # fmt: skip
PIXELS = {"size": (64, (1, NONE)), "rms": (0.5, ([0], NONE)), "sigma": (0.1, ([0], NONE)), "channels": (3, ANY)}
KINDS = {
    "image": {**PIXELS, "levels": (256, (2, NONE)), "background": ("white", ANY)},
    "mask": {"classes": (2, (2, NONE)), "size": (64, (1, NONE)), "ignore": (NONE, (0, NONE)),
             "reads": ("decoder", ANY)},
    "label": {"classes": (10, (1, NONE)), "names": ([], ANY), "reads": ("encoder", ANY)},
    "embedding": {"dim": (384, (1, NONE)), "layout": ("grid", ANY), "network": ("", ANY), "sigma": (0.1, ([0], NONE)),
                  "reads": ("encoder", ANY)},
    "feature_map": {"dim": (8, (1, NONE)), "cells": (4, (1, NONE)), "network": ("", ANY), "sigma": (0.1, ([0], NONE)),
                    "reads": ("decoder", ANY)},
    "caption": {"dim": (384, (1, NONE)), "layout": ("channels", ANY)},
    "masked": {**PIXELS, "weight.kind": ("none", ANY), "of": ("image", ANY), "block": (8, (1, NONE)),
               "ratios": ([0.1, 0.75], ANY)},
}  # fmt: skip
# Beside an image that is the anchor the presets' options, and the image's.
BESIDE = {
    "mask": {"weight.scale": 1.5, "loss_weight": 0.1},
    "label": {"weight.kind": "none", "loss_weight": 0.06, "given_probability": 0.95},
    "embedding": {"weight.kind": "none", "loss_weight": 0.01, "given_probability": 0.5},
    "feature_map": {"weight.kind": "none", "loss_weight": 0.02},
    "caption": {"weight.kind": "none", "loss_weight": 0.02},
    "masked": {"loss_weight": 0.01, "given_probability": 0.75, "given_at_T": 0.5, "given_steps": 2},
    "image": {"given_probability": 0.85, "given_at_T": 1.0, "given_steps": 1},
}
MODALITIES = {f"modalities.{kind}.{key}": row for kind, own in KINDS.items() for key, row in {**EVERY, **own}.items()}


def resolved():
    kinds = {kind: {"kind": kind} for kind in KINDS}
    return configs.resolve(OmegaConf.create({"data": {"kind": "folder"}, "modalities": kinds}))


def refusal(config, key, value):
    """What is said of the config with this option, which is put back."""
    *path, last = key.split(".")
    part = functools.reduce(lambda x, name: x[name] if isinstance(x, dict) else getattr(x, name), path, config)
    before = getattr(part, last)
    setattr(part, last, value)
    try:
        check(config, "")
        for name, spec in config.modalities.items():
            check(spec, f"modalities.{name}.")
    except MmfastError as error:
        return str(error)
    finally:
        setattr(part, last, before)
    return ""


def flat(value, prefix=""):
    if isinstance(value, dict) and prefix not in ("sample.offset.", "data.folders."):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


def test_the_defaults():
    found = flat(dataclasses.asdict(resolved()))
    wanted = {key: default for key, (default, _) in {**SECTIONS, **MODALITIES}.items()}
    beside = {f"modalities.{kind}.{key}": x for kind, own in BESIDE.items() for key, x in own.items()}
    assert {key: found[key] for key in wanted} == wanted | beside


# A config, with other parts; the weight and loss weight of its label.
PLAIN = ("carried", 1.0, 1.0, None)
USUAL = ("none", 1.0, 0.06, 0.95)


@pytest.mark.parametrize(
    ("label", "more", "wanted"),
    [
        ({}, {}, USUAL),
        (
            {"weight": {"scale": 0.17}},
            {},
            ("carried", 0.17, 0.06, 0.95),
        ),  # what is named is not mixed with the preset's
        ({"loss_weight": 2.0, "given_probability": None}, {}, ("none", 1.0, 2.0, None)),
        ({"diffused": True}, {}, PLAIN),
        ({}, {"space": "shared"}, ("bridge", *PLAIN[1:])),
        ({}, {"told": False}, PLAIN),
        ({}, {"anchor": "label"}, PLAIN),
    ],
)
def test_a_label_has_the_presets_options_beside_the_anchor_alone(label, more, wanted):
    modalities = {"image": {"kind": "image"}, "label": {"kind": "label", **label}}
    spec = configs.resolve(OmegaConf.create({"modalities": modalities, **more})).modalities["label"]
    assert (spec.weight.kind, spec.weight.scale, spec.loss_weight, spec.given_probability) == wanted


@pytest.mark.parametrize(
    ("kinds", "image", "wanted"),
    [
        (["mask"], {}, (0.85, 1.0, 1)),
        (["mask", "label", "feature_map", "masked"], {}, (0.85, 1.0, 1)),
        (["feature_map"], {}, (0.6, 1.0, 1)),
        (["feature_map", "label"], {}, (0.6, 1.0, 1)),
        (["embedding", "label"], {}, (None, 0.8, 1)),
        (["caption", "embedding"], {}, (None, 0.8, 1)),
        (["label", "masked"], {}, (None, None, None)),
        (["masked"], {}, (0.0, None, None)),
        ([], {}, (None, None, None)),
        (["mask"], {"given_steps": 5}, (0.85, 1.0, 5)),
        (["mask"], {"given_probability": 0.0}, (0.0, None, None)),
        (["table"], {}, (None, None, None)),
    ],
)
def test_how_the_anchor_is_given_depends_on_what_stands_beside_it(kinds, image, wanted):
    parts = {"image": {"kind": "image", **image}, **{kind: {"kind": kind} for kind in kinds}}
    spec = configs.resolve(OmegaConf.create({"modalities": parts})).modalities["image"]
    assert (spec.given_probability, spec.given_at_T, spec.given_steps) == wanted


def test_what_is_diffused_itself_has_no_part_in_how_the_anchor_is_given():
    parts = {"image": {"kind": "image"}, "mask": {"kind": "mask", "diffused": True}}
    spec = configs.resolve(OmegaConf.create({"modalities": parts})).modalities["image"]
    assert (spec.given_probability, spec.given_at_T, spec.given_steps) == (None, None, None)


def test_help_lists_the_defaults_of_a_kind_beside_an_image():
    found = {kind: describe().partition(f"modalities, kind {kind}, ")[2].partition("\n\n")[0] for kind in BESIDE}
    for kind, own in BESIDE.items():
        for key, value in own.items() if kind != "image" else ():
            line = next(x for x in found[kind].splitlines() if f"--modalities.NAME.{key} " in x)
            assert line.endswith(f"[{value}]")


def test_adm_keeps_its_own_network():
    spec = backbones.kind("adm").Spec()
    assert (spec.channels, spec.multipliers, spec.blocks, spec.attention) == (192, [1, 2, 3, 4], 3, [32, 16, 8])
    assert (spec.head_channels, spec.patch, spec.norm) == (64, 1, "group")


def test_a_vector_as_the_anchor_has_plain_options_and_what_stands_beside_it():
    parts = {"row": {"kind": "embedding"}, "label": {"kind": "label"}}
    found = configs.resolve(OmegaConf.create({"anchor": "row", "modalities": parts})).modalities
    assert all(found[name].weight.kind == "carried" and found[name].loss_weight == 1.0 for name in found)


def beside_an_image(kind):
    parts = {"image": {"kind": "image"}, "other": {"kind": kind}}
    return configs.resolve(OmegaConf.create({"modalities": parts})).modalities.values()


def test_the_options_of_a_label_beside_an_image_are_those_of_its_preset():
    theirs = configs.load("image-label").modalities["label"]
    _, ours = beside_an_image("label")
    for key in BESIDE["label"]:
        name = key.partition(".")[0]
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_options_of_other_kinds_are_for_training_without_a_pass_without_noise():
    """Those of the presets image-mask, image-embedding, masked-image and any-to-any before these had the pass.

    As the notes of their pages say: chosen on validation data.
    """
    image, mask = beside_an_image("mask")
    assert (image.given_probability, image.given_at_T, image.given_steps) == (0.85, 1.0, 1)
    assert (mask.weight.kind, mask.weight.scale, mask.loss_weight, mask.reads) == ("carried", 1.5, 0.1, "decoder")
    image, hidden = beside_an_image("masked")
    assert image.given_probability == 0.0 and hidden.reads == "decoder" and hidden.loss_weight == 0.01
    assert (hidden.given_probability, hidden.given_at_T, hidden.given_steps) == (0.75, 0.5, 2)
    image, features = beside_an_image("feature_map")
    assert (image.given_probability, image.given_at_T, image.given_steps) == (0.6, 1.0, 1)
    assert features.weight.kind == "none" and features.loss_weight == 0.02 and features.reads == "decoder"
    _, caption = beside_an_image("caption")
    assert caption.weight.kind == "none" and caption.loss_weight == 0.02


def test_the_u_net_is_that_of_the_presets():
    ours = configs.resolve(OmegaConf.create({"modalities": {"image": {"kind": "image"}}})).backbone
    for name in ("image-label", "image-mask", "image-embedding", "masked-image", "any-to-any"):
        assert ours == configs.load(name).backbone


BOUNDED = [(key, end, bound) for key, (_, ends) in {**SECTIONS, **MODALITIES}.items()
           for end, bound in enumerate(ends) if bound is not None]  # fmt: skip


@pytest.mark.parametrize("end", [0, 1], ids=["least", "most"])
def test_bounds(end):
    """The bound is taken and what lies beyond is refused; or, of an open one, itself refused and what is within not."""
    config = resolved()
    default = flat(dataclasses.asdict(config))
    for key, which, bound in BOUNDED:
        if which == end:
            closed = not isinstance(bound, list)
            edge = bound if closed else bound[0]
            whole = isinstance(default[key], int) or key.endswith(("given_steps", "ignore"))
            beyond = edge + (1 if end else -1) if whole else math.nextafter(edge, math.inf if end else -math.inf)
            # The least above zero that no library's flushing of denormals turns into zero.
            within, out = (edge, beyond) if closed else (math.nextafter(edge, 1) if edge else sys.float_info.min, edge)
            word = "at most" if end else "at least" if closed else "more than"
            assert refusal(config, key, within) == ""
            assert refusal(config, key, out) == f"{key} is {out}; it should be {word} {edge}"


def test_a_number_is_finite_but_where_none_is_a_limit():
    config = resolved()
    for key in ("train.learning_rate", "modalities.label.loss_weight", "modalities.image.sigma"):
        assert refusal(config, key, math.inf) == f"{key} is inf; it should be a finite number"
    assert refusal(config, "modalities.mask.weight.scale", -math.inf).endswith("is -inf; it should be a finite number")
    assert refusal(config, "train.learning_rate", math.nan) == "train.learning_rate is NaN; it should be a number"
    unlimited = ("train.grad_clip", "train.skip_above", "sample.clamp", "data.cache_gb")
    assert {refusal(config, key, math.inf) for key in unlimited} == {""}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train": {"stepz": 3}}, "train.stepz is not an option; did you mean train.steps?"),
        ({"backbone": {"kind": "mlp", "qq": 3}},
         "backbone.qq is not an option; there are kind, width, blocks, features, dropout"),
        ({"train": {"low_noise": {"shar": 1}}},
         "train.low_noise.shar is not an option; did you mean train.low_noise.share?"),
        ({"train": {"low_noise": {"qq": {"a": 1}}}},
         "train.low_noise.qq is not an option; there are share, until, weight"),
        ({"modalities": {"image": {"kind": "image", "weight": {"kin": "none"}}}},
         "modalities.image.weight.kin is not an option; did you mean modalities.image.weight.kind?"),
    ],
)  # fmt: skip
def test_what_is_no_option_is_told_with_the_nearest_or_with_all(more, said):
    """Of a section, and of one within it; in a config and as a value of the command line."""
    with pytest.raises(MmfastError) as found:
        configs.from_plain({"data": {"kind": "digits"}, "modalities": {"image": {"kind": "image"}}, **more}, "x")
    assert str(found.value) == f"{said} (`mmfast train --help` lists all)"
