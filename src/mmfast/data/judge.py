"""A small network that tells the classes of real images apart, to judge generated ones; trained once, then kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mmfast.data.cache import kept
from mmfast.errors import MmfastError

VERSION = 1  # of the network and its training: another one is another file in the cache
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING, SHIFT = 12, 256, 4e-3, 0.05, 0.05, 2


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Classifier(nn.Module):
    """Reads the class off images, float [B, channels, size, size] in -1 .. 1; in float32, whatever the batch.

    Calling it gives int64 [B] on the images' device; `features` and `probabilities` give float32 [B, width] and
    [B, classes]. A `Judge`.
    """

    def __init__(self, channels: int, classes: int, width: int = 128) -> None:
        super().__init__()
        quarter, half = width // 4, width // 2
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2), *_block(4 * channels, quarter), *_block(quarter, half), nn.MaxPool2d(2),
            *_block(half, width), *_block(width, width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes], with gradients."""
        return self.out(self.body(images.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 500) -> Tensor:
        """What the last layer reads: float32 [B, width], for a Frechet distance or precision and recall."""
        weight = self.out.weight
        parts = [
            self.body(part.to(weight).contiguous(memory_format=torch.channels_last)) for part in images.split(batch)
        ]
        return torch.cat(parts).to(images.device)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """float32 [B, classes]."""
        return self.out(self.features(images).to(self.out.weight)).softmax(1).to(images.device)

    def __call__(self, images: Tensor) -> Tensor:
        """The classes int64 [B]; while it is trained, the logits."""
        return super().__call__(images) if self.training else self.probabilities(images).argmax(1)


def accuracy(judge: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images (uint8 or float, as `classifier` takes them) whose class the judge finds."""
    found = [judge(as_floats(part)) for part in images.split(500)]
    return float((torch.cat(found) == labels).float().mean())


def as_floats(images: Tensor) -> Tensor:
    """Pixels in -1 .. 1, exactly x / 127.5 - 1 for uint8; floats as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def classifier(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    cache: str | Path = "",
    key: Mapping[str, Any],
    epochs: int = EPOCHS,
    width: int = 128,
    seed: int = 0,
    quiet: bool = False,
) -> Classifier:
    """The classifier of real images, trained now or taken from the cache.

    images: [N, channels, size, size], uint8 or float in -1 .. 1; labels: int64 [N]; key: what the images depend on
    (the kind of data, its size), which with seed, epochs, width and the version names the file in the cache. It
    repeats bit for bit on the same machine with the same number of threads. Raises MmfastError for labels that do
    not fit.
    """
    if labels.shape != (len(images),) or int(labels.max()) >= classes:
        raise MmfastError(
            f"labels is {list(labels.shape)} up to {int(labels.max())}; it should be [{len(images)}] below {classes}"
        )
    # What initialises and trains must leave the caller's random state alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Classifier(images.shape[1], classes, width).to(memory_format=torch.channels_last)
    whole = {**key, "version": VERSION, "seed": seed, "epochs": epochs, "width": width, "examples": len(images)}

    def make() -> dict[str, Tensor]:
        _train(judge, images, labels, epochs, seed, quiet)
        return judge.state_dict()

    judge.load_state_dict(kept(cache, "judge", whole, make))
    return judge.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _train(judge: Classifier, images: Tensor, labels: Tensor, epochs: int, seed: int, quiet: bool) -> None:
    """AdamW under a one-cycle learning rate, on images shifted by up to two pixels and mirrored at random."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge.to(device).train()
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    with tqdm(total=steps, desc="training the judge", unit="step", disable=quiet, leave=False) as bar, _grads():
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH):
                x = _augmented(as_floats(images[rows]), generator).to(device, memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16):
                    logits = judge(x)
                loss = F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=SMOOTHING)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rate.step()
                bar.update()
    judge.eval()


def _grads() -> contextlib.AbstractContextManager[Any]:
    return torch.enable_grad()  # the evaluation that asks for a judge may have turned them off


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with probability 1/2 and the batch shifted by up to SHIFT pixels, the edge repeated."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored, x.flip(3), x)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, [SHIFT] * 4, mode="replicate")
    return padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
