"""Sound: the logarithm of a spectrogram, time to the right and frequency upwards."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from mmfast import MmfastError
from mmfast.modalities.embedding import read_array
from mmfast.modalities.image import Image, ImageSpec, picture
from mmfast.options import option
from mmfast.sizes import height_width

WINDOW = 512


@dataclass
class SpectrogramSpec(ImageSpec):
    """float [B, 1, height, width] in -1 .. 1: decibels from `floor` to 0, of the loudest that there can be."""

    kind: str = "spectrogram"
    channels: int = option(1, "one level a time and frequency", choices=(1,))
    floor: float = option(-80.0, "the level in decibels that counts as silence", max=-1)


class Spectrogram(Image):
    kind = "spectrogram"
    Spec = SpectrogramSpec
    extensions = (".wav", ".npy")

    @classmethod
    def read(cls, path: Path, spec: SpectrogramSpec) -> Tensor:
        """A .wav file of 16 bits, or a .npy file of decibels [height, width] as `plain` has them."""
        if path.suffix == ".npy":
            level = read_array(path)
            if tuple(level.shape) != height_width(spec.size):
                raise MmfastError(f"{path} holds {list(level.shape)}; it should hold {list(height_width(spec.size))}")
            return (1 - 2 * level.clamp(spec.floor, 0) / spec.floor)[None]
        sound = samples(path)
        window = torch.hann_window(WINDOW)
        power = torch.stft(sound, WINDOW, window=window, return_complex=True).abs().square()[1:]
        # A sine of full scale has the level 0.
        power = F.interpolate(power[None, None] / (window.sum() / 2) ** 2, height_width(spec.size), mode="area")[0]
        level = (10 * power.clamp(min=1e-20).log10()).clamp(spec.floor, 0)
        return 1 - 2 * level / spec.floor

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: Any, where: str) -> Tensor:
        raise MmfastError(f"{where} is a picture; a spectrogram is made of a .wav file")

    def plain(self, x: Tensor) -> np.ndarray:
        """Decibels, float32 [height, width], the lowest frequency first."""
        return ((1 - x[0].clamp(-1, 1)) / 2 * self.spec.floor).cpu().numpy()

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """Louder is brighter."""
        return picture(x.flip(1), size)


def samples(path: Path) -> Tensor:
    """The sound of a .wav file of 16 bits, float [n] in -1 .. 1, the mean of its channels. Raises MmfastError."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise MmfastError(f"{path} has {8 * file.getsampwidth()} bits a sample; it should have 16")
            data = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise MmfastError(f"{path} cannot be read as sound (.wav): {error}") from None
    if len(data) < WINDOW:
        raise MmfastError(f"{path} has {len(data)} samples; it should have {WINDOW} at least")
    return torch.from_numpy(data.mean(1).astype(np.float32) / 2**15)
