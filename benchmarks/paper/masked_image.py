"""Hidden parts: one model that generates and restores, against restoration alone and two ways of inpainting."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from benchmarks.paper import measures
from benchmarks.paper.core import (
    MANY_STEPS,
    OURS,
    Found,
    Method,
    Task,
    Trained,
    at_most,
    means,
    near,
    other_budgets,
)
from benchmarks.paper.inpaint import repaint, sdedit
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.metrics.lpips import LPIPS
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.masked_image import Masked, MaskedSpec
from mmfast.pictures import sample_grid

# Steps of restoration by hidden share, chosen by LPIPS on a part of the training data. For a small hole, the mean of
# what could be there is best, and one step gives it; for a large hole, a sample is.
STEPS = {0.1: 1, 0.25: 2, 0.5: 2, 0.75: 3}
RATIOS = tuple(STEPS)
DRAWN, LPIPS_NAME = "drawn from noise", "LPIPS of hidden pixels"
BY_DDPM = measures.by_ddpm(DRAWN)
ONE_STEP = f"{OURS}, head in one step"
RESTORATION, IMAGE = "restoration alone", "image alone"
SDEDIT, REPAINT = "SDEdit, image alone", "RePaint, image alone"
# The article's own baselines: plain SDEdit, and the given image with its hidden squares in one grey.
NOT_PUT_BACK = f"{SDEDIT}, nothing put back"
UNRESTORED = {"not restored, black squares": -1.0, "not restored, grey squares": 0.0}


def _condition(ratio: float) -> str:
    return f"{ratio:.0%} hidden"


def _hide(image: Tensor, ratio: float) -> Tensor:
    """Hide blocks of an eighth of the side, the same blocks of the same images for every method and seed."""
    _, channels, size, _ = image.shape
    spec = MaskedSpec(channels=channels, size=size, block=max(1, size // 8))
    return Masked("masked", spec, SpaceShape(size, size)).hide(image, ratio, 12345, torch.arange(len(image)))


def _score(trained: Trained, ratio: float, restored: Tensor, masked: Tensor, put_back: bool = True) -> list[Metric]:
    """Score the hidden pixels only, after putting the visible ones back unless put_back is False."""
    image, seen = masked[:, :-1], masked[:, -1:]
    whole = torch.where(seen > 0, image, restored.clamp(-1, 1)) if put_back else restored.clamp(-1, 1)
    condition, hidden = _condition(ratio), (seen == 0).expand_as(image)
    found = [Metric(condition, "RMSE of hidden pixels", float((whole - image)[hidden].square().mean().sqrt()), False)]
    if not trained.smoke:
        found.append(Metric(condition, LPIPS_NAME, float(LPIPS("alex").hidden(whole, image, seen).mean()), False))
    return found


def _images(trained: Trained) -> Tensor:
    return measures.real(trained, trained.samples)


def main(trained: Trained) -> list[Metric]:
    """The measures that the claims need."""
    image, found = _images(trained), _drawn(trained)
    for k, ratio in enumerate(RATIOS):
        found += _restored(trained, k, _hide(image, ratio), STEPS[ratio])
    return found


def _restored(trained: Trained, k: int, masked: Tensor, steps: int) -> list[Metric]:
    """Measures of restorations with the k-th ratio hidden."""
    drawn = trained.draw({"masked": masked}, purpose=20 + k, count=len(masked), steps=steps)
    return _score(trained, RATIOS[k], drawn["image"], masked)


def ours(trained: Trained) -> Found:
    image = _images(trained)
    at_once: list[Metric] = []
    as_drawn: list[Metric] = []
    for k, ratio in enumerate(RATIOS):
        masked = _hide(image, ratio)
        as_drawn += _restored(trained, k, masked, trained.config.sample.steps)
        head = trained.said({"masked": masked}, "masked", "masked", seed=trained.seed)
        at_once += _score(trained, ratio, head[:, :-1], masked)
    return {OURS: [*main(trained), *measures.bits(trained, 250)], ONE_STEP: at_once, MANY_STEPS: as_drawn}


def _alone(trained: Trained) -> list[Metric]:
    image, found = _images(trained), []
    for ratio in RATIOS:
        masked = _hide(image, ratio)
        head = trained.said({"masked": masked}, "masked", "masked")
        found += _score(trained, ratio, head[:, :-1], masked)
    return found


def restoration(trained: Trained) -> Found:
    return {RESTORATION: _alone(trained)}


def image_alone(trained: Trained) -> Found:
    image, steps = _images(trained), trained.config.sample.steps
    options: dict[str, Any] = {"seed": trained.seed, "precision": trained.config.sample.precision}
    found: Found = {IMAGE: [*_drawn(trained), *measures.bits(trained, 250)]}
    found |= {name: [] for name in (SDEDIT, NOT_PUT_BACK, REPAINT, *UNRESTORED)}
    for ratio in RATIOS:
        masked = _hide(image, ratio)
        shown, seen = masked[:, :-1] * masked[:, -1:], masked[:, -1:]
        again = repaint(trained.model, shown, seen, steps, min(5, steps // 2), 3, **options).cpu()
        found[REPAINT] += _score(trained, ratio, again, masked)
        edited = sdedit(trained.model, shown, seen, 0.5, steps, "nearest", **options).cpu()
        found[SDEDIT] += _score(trained, ratio, edited, masked)
        edited = sdedit(trained.model, shown, seen, 0.5, steps, "nearest", paste=False, **options).cpu()
        found[NOT_PUT_BACK] += _score(trained, ratio, edited, masked, put_back=False)
        for name, level in UNRESTORED.items():
            found[name] += _score(trained, ratio, torch.full_like(image, level), masked)
    return found


def _drawn(trained: Trained) -> list[Metric]:
    by_ddpm = measures.image_quality(trained, BY_DDPM, trained.draw(purpose=1, **measures.DDPM)["image"])
    return [*measures.image_quality(trained, DRAWN, trained.draw(purpose=1)["image"]), *by_ddpm]


def reference(trained: Trained) -> list[Metric]:
    """Hidden pixels taken from other images: the score of knowing nothing about the image."""
    image = _images(trained)
    found = []
    for ratio in RATIOS:
        masked = _hide(image, ratio)
        found += _score(trained, ratio, image.roll(1, 0), masked)
    quality = measures.reference_quality(trained, DRAWN)
    return [*quality, *(dataclasses.replace(m, condition=BY_DDPM) for m in quality), *found]


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """Claims: as good as restoration alone if little is hidden, better if much is, and it still generates."""
    found = []
    for ratio in RATIOS:
        mine, alone = (means(rows, name, _condition(ratio))[LPIPS_NAME] for name in (OURS, RESTORATION))
        inpainting = [means(rows, name, _condition(ratio))[LPIPS_NAME] for name in (SDEDIT, REPAINT)]
        share = 0.02 * slack if ratio <= 0.25 else 0.0
        words = near(2, share, " per cent")
        claim = f"LPIPS with {_condition(ratio)} {words} restoration alone's"
        found.append(at_most(claim, mine, (1 + share) * alone))
        if not any(map(math.isnan, inpainting)):
            found.append(at_most(f"LPIPS with {_condition(ratio)} no worse than inpainting's", mine, min(inpainting)))
    for condition in (DRAWN, BY_DDPM):
        mine, image = (means(rows, name, condition) for name in (OURS, IMAGE))
        distance = next((name for name in image if name.startswith("FD-")), "FD")
        claim = f"{distance} {condition}: {near(10, slack, ' per cent')} the image model's"
        found.append(at_most(claim, mine[distance], (1 + 0.1 * slack) * image[distance]))
    return found


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """Generated images only, because we may not show the original art."""
    image = trained.draw(purpose=10, count=16)["image"].clamp(-1, 1)
    masked = torch.cat([_hide(image[k::4], ratio) for k, ratio in enumerate(RATIOS)])
    whole = torch.cat([image[k::4] for k in range(len(RATIOS))])
    restored = trained.draw({"masked": masked}, purpose=11, count=16)["image"]
    restored = torch.where(masked[:, -1:] > 0, masked[:, :-1], restored)
    part = trained.model.part("image")
    parts = {"drawn": part, "hidden": trained.model.part("masked"), "restored": part}
    data = {"drawn": whole, "hidden": masked, "restored": restored}
    shares = ", ".join(f"{ratio:.0%}" for ratio in RATIOS)
    caption = f"Images that the model drew, with {shares} of their blocks hidden (a row each), and its restorations."
    return {"restored": (caption, sample_grid(parts, data, "drawn, hidden, restored", columns=4))}


METHODS = [
    Method(OURS, ours),
    # Its head reads the decoder, which it has to itself.
    Method(RESTORATION, restoration, {"modalities.masked.reads": "decoder"}, supervised=("masked", "masked")),
    Method(IMAGE, image_alone, {"modalities.masked": None, "train.given_probability": 0.0, "train.clean_pass": 0.0}),
]
NEEDED = {OURS: main, RESTORATION: _alone, IMAGE: _drawn}
TASK = Task(
    name="masked-image",
    title="Generation and the restoration of hidden parts",
    question="Does a model that both generates images and restores hidden blocks restore better than one trained only "
    "to restore, and better than inpainting with a model that only generates?",
    methods=[*METHODS, *other_budgets(METHODS, NEEDED)],
    needed=NEEDED,
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    features="efficientnet-lite0",
    check=lambda: LPIPS("alex"),
    smoke={
        "data": {"kind": "digits"},
        "modalities.image": {"kind": "image", "channels": 1, "size": 8, "levels": 17},
        "modalities.masked": {
            "kind": "masked",
            "of": "image",
            "channels": 1,
            "size": 8,
            "block": 2,
            "reads": "encoder",
        },
        "backbone": {"kind": "dit", "width": 32, "blocks": 2, "heads": 2, "features": 8},
        "sample": {"sampler": "ddim", "steps": 4, "batch_size": 50},
    },
)
