"""A config for the data in a folder: measured options, and a network and steps that fit a time budget."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmfast import config as configs
from mmfast import modalities
from mmfast.build import build_data, pick_device
from mmfast.config import Config
from mmfast.guess import SIZES, Guess
from mmfast.plain_yaml import dump_yaml
from mmfast.run import Run
from mmfast.sizes import Size, divides, height_width
from mmfast.training import Trainer
from mmfast.training.examples import loader
from mmfast.words import plural

# Channels of the U-Net's finest level. The presets have 32: they train on 96,000 images, and the figures of
# docs/results.md are after 16,000. A wider network is chosen if there is time for the former, a narrower one only if
# there is none for the latter.
WIDTHS, USUAL, FOR_WIDER, FOR_NARROWER = (16, 32, 48, 64, 96, 128), 32, 96_000, 16_000
# The shares of the time for training and for the figures at the end; the rest is for pictures and checkpoints.
TRAINING, FIGURES = 0.8, 0.15
SAMPLE_STEPS = 25
MOST_STEPS, MOST_HELD_OUT = 200_000, 2_000
# A modality that a smaller share of the examples has is shown more often (docs/results.md, on digits that lack one).
OFTEN = 0.75
# For each kind that is not the anchor, the reason for its options (`beside` of its class), and further options.
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "mask": (
        "Diffused like the image. It is predicted from a given image; its loss weighs little, for the images' sake.",
        {},
    ),
    "label": ("It leaves no trace in the noise: the encoder reads it, and only the decoder is told it.", {}),
    "embedding": (
        "It has a channel for each number, the same at every pixel, and leaves no trace in the noise.",
        {"layout": "channels"},
    ),
    "caption": (
        "The encoder reads it, and only the decoder is told it; a generated one is the nearest of the data's.",
        {},
    ),
    "feature_map": ("It is read off the image, or given, and leaves no trace in the noise.", {}),
}
BESIDE_A_ROW = "Diffused like the row. It is predicted from a given row in one step."
# What may stand beside an image for Muon to be proposed. It was compared with AdamW for masks, labels and feature maps,
# each alone, and for all of these with captions (docs/training.md).
MUON = {"mask", "label", "caption", "feature_map"}
# What the encoder alone can read off an image, in a pass without noise (train.clean_pass), if that is all that stands
# beside it. By kind: the weight of the pass and the further options of a kind that is alone there, as in its preset.
ALONE: dict[str, tuple[float, dict[str, Any]]] = {
    "label": (0.25, {}),
    "mask": (20.0, {"reads": "encoder"}),
    "feature_map": (20.0, {"reads": "encoder", "loss_weight": 0.2}),
}
# The same for several kinds, as in the preset any-to-any.
TOGETHER: tuple[float, dict[str, dict[str, Any]]] = (
    20.0,
    {
        "label": {"loss_weight": 0.005},
        "mask": {"reads": "encoder", "given_probability": 0.25},
        "feature_map": {"reads": "encoder", "loss_weight": 0.05},
        "caption": {"loss_weight": 0.002},
    },
)
# Measures the seconds that a training step takes with a config.
Timer = Callable[[Config], float]


@dataclass
class Proposal:
    """A config as text and parsed, with its times: seconds per step, and minutes of training and in all."""

    text: str
    config: Config
    step: float
    training: float
    total: float


def propose(
    guessed: Guess, minutes: float, timer: Timer, batch_size: int = 16, command: str = "", folder: Path | None = None
) -> Proposal:
    """Propose a config for a folder that trains in about this many minutes, figures included.

    The network is the presets', or a wider one if there is time to train it on as many images as they do, or a narrower
    one if there is no time for the fewest that theirs needs. The steps fill the time. folder: where the text will be
    saved; data below it gets a relative path, so that both can be moved together.
    """
    plain = options(guessed, batch_size)
    train, backbone, seconds = plain["train"], plain["backbone"], 60 * minutes * TRAINING
    timed: dict[tuple[int, str], float] = {}

    def step(width: int, precision: str) -> float:
        if (width, precision) not in timed:
            if backbone["kind"] == "unet":
                backbone["channels"] = width
            train["precision"] = plain["sample"]["precision"] = precision
            timed[width, precision] = timer(configs.from_plain(plain, "init"))
        return timed[width, precision]

    precision = min(("fp32", "bf16"), key=lambda x: step(USUAL, x))
    width = USUAL
    if backbone["kind"] == "unet":

        def fits(width: int, images: int) -> bool:
            return step(width, precision) * images / train["batch_size"] <= seconds

        narrower, wider = ([x for x in WIDTHS if (x < USUAL) == less and x != USUAL] for less in (True, False))
        if fits(USUAL, FOR_WIDER):
            width = ([USUAL, *itertools.takewhile(lambda x: fits(x, FOR_WIDER), wider)])[-1]
        elif not fits(USUAL, FOR_NARROWER):
            width = next((x for x in reversed(narrower) if fits(x, FOR_NARROWER)), narrower[0])
        backbone["channels"] = width
    train["precision"] = plain["sample"]["precision"] = precision
    one = step(width, precision)
    _fill_time(plain, one, minutes)
    config = configs.from_plain(plain, "init")
    training = config.train.steps * one / 60
    total = training + _figures(plain, one) * config.evaluate.samples / 60
    counted = plural(round(training), "minute")
    head = [
        f"# Written by `mmfast init{command}`, for {plural(guessed.examples, 'example')}.",
        f"# {one:.3g} s per step on this machine: about {counted}, {total:.0f} with the figures.",
    ]
    if folder is not None and (root := guessed.root.resolve()).is_relative_to(folder.resolve()):
        plain["data"]["root"] = str(root.relative_to(folder.resolve()))
    return Proposal(text_of(plain, head), config, one, training, total)


def options(guessed: Guess, batch_size: int) -> dict[str, Any]:
    """A config for a guess, as plain data: the options of the presets that train on the same kinds."""
    specs = guessed.modalities
    beside = {x["kind"] for name, x in specs.items() if name != guessed.anchor}
    side = _side(specs[guessed.anchor]["size"])
    backbone = _backbone(specs[guessed.anchor]["size"], "embedding" in beside)
    clean_pass, read = _clean_pass(beside)
    if "mask" in beside and backbone["kind"] != "unet":
        clean_pass, read = 0.0, {}  # an encoder without a grid has nothing to read a mask off
    anchor: dict[str, Any] = {"given_steps": 1} if beside else {}
    if clean_pass:  # all is read off images in a pass of their own
        anchor["given_probability"] = 0.0
    else:
        anchor |= modalities.anchor_defaults(map(modalities.kind, beside))
    parts = {guessed.anchor: specs[guessed.anchor] | anchor}
    for name, x in specs.items():
        if name != guessed.anchor:
            kind = x["kind"]
            parts[name] = {**x, **BESIDE[kind][1], **modalities.kind(kind).beside, **read.get(kind, {})}
    for name, share in guessed.shares.items():
        if share < OFTEN:
            often = round((1 + share) / 2, 2)
            weight = parts[name].get("loss_weight", 1.0) / often  # its loss counts only in that share of the examples
            parts[name] |= {"labelled_share": often, "loss_weight": float(f"{weight:.3g}")}
    held_out = min(0.1, MOST_HELD_OUT / guessed.examples)
    train: dict[str, Any] = {
        "steps": 1,
        "batch_size": 128 if side < 16 else batch_size,
        "learning_rate": 2.0e-3,
        "decay": "cosine",
        "ema_decay": 0.998,
        "given_probability": 0.2 if beside & {"mask", "feature_map"} else 0.25,
    }
    if clean_pass:
        train["clean_pass"] = clean_pass
    if beside and beside <= MUON and side >= 16:
        train["optimizer"] = "muon"
    labels = [name for name, x in specs.items() if x["kind"] == "label"]
    return {
        "anchor": guessed.anchor,
        "data": guessed.data() | {"test_fraction": round(held_out, 4)},
        "modalities": parts,
        "backbone": backbone,
        "loss": {"target": "v" if beside == {"label"} else "x0"},
        "train": train,
        "sample": {"sampler": "dpmpp_2m", "steps": SAMPLE_STEPS, **({"first": labels} if labels else {})},
        "evaluate": {"samples": 0},
    }


def _clean_pass(beside: Collection[str]) -> tuple[float, Mapping[str, dict[str, Any]]]:
    """The weight of the pass without noise, 0 for none, and the further options of each of these kinds."""
    if len(beside) == 1:
        (kind,) = beside
        weight, own = ALONE.get(kind, (0.0, {}))
        return weight, {kind: own}
    weight, all_own = TOGETHER
    return (weight, all_own) if beside and {*beside} <= {*all_own} else (0.0, {})


def _side(size: Size) -> int:
    """The side of the square whose network suits a size: for a rectangle, the usual side with about as many pixels."""
    height, width = height_width(size)
    return height if height == width else min(SIZES, key=lambda side: abs(math.log(side**2 / (height * width))))


def _backbone(size: Size, mean: bool) -> dict[str, Any]:
    """The presets' network, with one more level for each doubling of the size beyond theirs, if it can be halved."""
    side = _side(size)
    if side < 16:
        return {"kind": "mlp", "width": 256, "blocks": 4, "features": 16, "dropout": 0.1}
    patch = 2 if side >= 32 and divides(2, size) else 1
    levels = 3 + max(0, round(math.log2(side / patch / 16)))
    while levels > 1 and not divides(patch << levels - 1, size):
        levels -= 1
    found: dict[str, Any] = {
        "kind": "unet",
        "channels": USUAL,
        "multipliers": [1, 2, *[4] * max(0, levels - 2)][:levels],
        "blocks": 1,
        "attention": [],
        "patch": patch,
        "norm": "layer",
    }
    return found | ({"mean": True} if mean else {})


def _figures(plain: Mapping[str, Any], step: float) -> float:
    """The approximate seconds per sample of the evaluation, taking a forward pass as a third of a step."""
    turns = 1 + len(plain["sample"].get("first", []))
    return (turns * SAMPLE_STEPS + 25) * step / plain["train"]["batch_size"] / 3


def _fill_time(plain: dict[str, Any], step: float, minutes: float) -> None:
    train, wanted = plain["train"], 60 * minutes
    steps = _rounded(min(MOST_STEPS, max(20.0, wanted * TRAINING / step)))
    # As in the presets, where the average spans a twelfth of the steps.
    train |= {"steps": steps, "ema_decay": round(min(0.9999, max(0.9, 1 - 12 / steps)), 4)}
    if plain["backbone"].get("channels", 0) > 64:
        train["learning_rate"] = 1.0e-3
    train |= {"warmup": min(100, steps // 10), "sample_every": -(-steps // 3), "checkpoint_every": -(-steps // 6)}
    train["validate_every"] = -(-steps // 12)
    plain["evaluate"]["samples"] = _rounded(min(1000.0, max(10.0, wanted * FIGURES / _figures(plain, step))))


def _rounded(x: float) -> int:
    """Round down to two digits."""
    unit = 10 ** max(0, int(math.log10(x)) - 1)
    return int(x // unit) * unit


def text_of(plain: Mapping[str, Any], head: Sequence[str]) -> str:
    """A config as the text of a YAML file that begins with these comments."""
    return "\n".join([*head, *_lines(plain)]) + "\n"


def _lines(plain: Mapping[str, Any]) -> list[str]:
    """The config as YAML, one line per option or section, with comments where a reader may ask why."""
    lines = [f"anchor: {_flow(plain['anchor'])}", f"data: {_flow(plain['data'])}", "modalities:"]
    for name, spec in plain["modalities"].items():
        if name == plain["anchor"] and len(plain["modalities"]) > 1:
            lines.append("  # The anchor, which is diffused itself. The others are read off a given one in one step.")
        elif name != plain["anchor"]:
            of_table = plain["data"]["kind"] == "table"
            lines.append(f"  # {BESIDE_A_ROW if of_table else BESIDE[spec['kind']][0]}")
            if "labelled_share" in spec:
                lines.append(
                    "  # Many examples lack it. Those that have it are repeated until they are labelled_share of all,"
                )
                lines.append("  # and its loss weighs more accordingly.")
        lines += _entry(name, spec, "  ")
    for name in ("backbone", "loss", "train", "sample", "evaluate"):
        lines += _entry(name, plain[name], "")
    return lines


def _entry(name: str, section: Mapping[str, Any], indent: str) -> list[str]:
    """One line, or one per option if that is too long."""
    line = f"{indent}{name}: {_flow(section)}"
    if len(line) <= 120:
        return [line]
    return [f"{indent}{name}:", *(f"{indent}  {key}: {_flow(value)}" for key, value in section.items())]


def _flow(value: Any) -> str:
    text = dump_yaml(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def step_time(config: Config, seconds: float = 2.0, least: int = 3) -> float:
    """The seconds per training step on this machine, data loading included: a median after two warm-up steps."""
    data = build_data(config)
    trainer = Trainer(config, Run(Path()), data)  # which writes nothing before a checkpoint
    batches = itertools.chain.from_iterable(loader(config, data.train, 0) for _ in itertools.count())
    times: list[float] = []
    while len(times) < least + 2 or sum(times) < seconds:
        begun = time.perf_counter()
        trainer.step(batches, trainer.model)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def usual_batch(device: str = "auto") -> int:
    """The presets' batch size, or four times that on a GPU, which small batches leave idle."""
    return 64 if pick_device(device).type == "cuda" else 16
