"""A small classifier of real images, to judge generated ones; trained once, then cached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.data.cache import kept
from mmfast.errors import MmfastError
from mmfast.processor import slow_in_bf16
from mmfast.progress import Bar

VERSION = 2  # of the network and its training; part of the key in the cache
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING, DROPOUT = 8, 256, 4e-3, 0.05, 0.05, 0.25


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Classifier(nn.Module):
    """A `Judge` of classes: images float [B, channels, size, size] in -1 .. 1 -> int64 [B] on their device.

    It computes in float32, and the result for an image does not depend on the others. The size should be even and at
    least 8.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int = 128) -> None:
        super().__init__()
        # Move 2 x 2 pixels to channels first: layers at full size would take most of the time.
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_convolution(4 * channels, width // 4),
            *_convolution(width // 4, width // 2),
            nn.MaxPool2d(2),
            *_convolution(width // 2, width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(width * (size // 8) ** 2, 2 * width, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(inplace=True),
        )
        self.out = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(2 * width, classes))

    def logits(self, images: Tensor) -> Tensor:
        """float [B, classes], with gradients."""
        return self.out(self._body(images))

    def _body(self, images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as precise as on a CPU
            found: Tensor = self.body(images.contiguous(memory_format=torch.channels_last))
        return found

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 500) -> Tensor:
        """The input of the last layer: float32 [B, 2 width], for a Frechet distance or precision and recall."""
        device = next(self.parameters()).device
        return torch.cat([self._body(part.to(device)) for part in images.split(batch)]).to(images.device)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The probabilities of the classes: float32 [B, classes]."""
        device = next(self.parameters()).device
        return self.out(self.features(images).to(device)).softmax(1).to(images.device)

    def forward(self, images: Tensor) -> Tensor:
        """The classes, int64 [B]."""
        return self.probabilities(images).argmax(1)


class Classified(NamedTuple):
    """Real images and their classes.

    images: [N, channels, size, size], uint8 or float in -1 .. 1; labels: int64 [N], below `classes`.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def check(self) -> None:
        """Raise MmfastError for labels that do not fit."""
        if self.labels.shape != (len(self.images),) or int(self.labels.max()) >= self.classes:
            raise MmfastError(
                f"labels is {list(self.labels.shape)} up to {int(self.labels.max())}; it should be "
                f"[{len(self.images)}] below {self.classes}"
            )


def as_floats(images: Tensor) -> Tensor:
    """Pixels in -1 .. 1, exactly x / 127.5 - 1 for uint8; floats as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def accuracy(judge: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images (uint8 or float, as in `Classified`) that the judge classifies correctly."""
    found = [judge(as_floats(part)) for part in images.split(500)]
    return float((torch.cat(found) == labels).float().mean())


def classifier(
    real: Classified,
    *,
    key: Mapping[str, Any],
    cache: str | Path = "",
    epochs: int = EPOCHS,
    width: int = 128,
    seed: int = 0,
    quiet: bool = False,
) -> Classifier:
    """The classifier of real images, trained now or loaded from the cache; on the GPU if there is one.

    key: what the images depend on (the kind of data, its size). With their shape, the number of classes, seed, epochs,
    width, precision and the version it names the file in the cache. Training is bit-reproducible on the same machine
    with the same number of threads, and leaves torch's random state alone. Raises MmfastError for labels that do not
    fit.
    """
    real.check()
    shape = list(real.images.shape)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Classifier(shape[1], shape[2], real.classes, width).to(memory_format=torch.channels_last).to(device)

        def make() -> dict[str, Tensor]:
            _train(judge, real, epochs, quiet)
            return judge.state_dict()

        given = {"shape": shape, "classes": real.classes, "seed": seed, "epochs": epochs, "width": width}
        given["precision"] = "fp32" if slow_in_bf16(device) else "bf16"
        judge.load_state_dict(kept(cache, "judge", {**key, **given, "version": VERSION}, make))
    return judge.eval()


# The evaluation that asks for a judge may have turned gradients off.
@torch.enable_grad()
def _train(judge: Classifier, real: Classified, epochs: int, quiet: bool) -> None:
    """AdamW under a one-cycle learning rate, each image mirrored with probability 1/2."""
    device, images, labels = next(judge.parameters()).device, real.images, real.labels
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    with Bar(steps, "training the judge", quiet=quiet) as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(BATCH):
                x = as_floats(images[rows])
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
                with torch.autocast(device.type, torch.bfloat16, enabled=not slow_in_bf16(device)):
                    logits = judge.logits(x.to(device))
                loss = F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=SMOOTHING)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rate.step()
                bar.update()
