"""A U-Net in the style of ADM (Dhariwal and Nichol, 2021) that returns features for the heads."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.backbones.features import GRID, Features, attend, averaged, plus, timestep_embedding
from mmfast.errors import MmfastError, unknown
from mmfast.options import option
from mmfast.sizes import Size, divides, height_width, plain


class GroupNorm(nn.GroupNorm):
    """Group normalisation with the largest number of groups, a power of 2 up to 32, that divides the channels."""

    layout = torch.contiguous_format

    def __init__(self, channels: int) -> None:
        super().__init__(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.alone and x.shape[2] * x.shape[3] == 1:  # torch refuses this for a batch of one
            return (0 * x) + self.bias.to(x.dtype)[:, None, None]
        return super().forward(x)

    @property
    def alone(self) -> bool:
        """Whether each channel is a group of its own, so that with one pixel nothing is left of it."""
        return self.num_groups == self.num_channels


class PixelNorm(nn.LayerNorm):
    """Normalisation over the channels of each pixel, which are contiguous in memory in this layout.

    CPUs' matrix units convolve in this layout (about three times as fast in bfloat16), but torch's group normalisation
    is several times slower in it.
    """

    layout = torch.channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        # layer_norm sums in float32 anyway; on a GPU autocast would convert its inputs and outputs to float32 too.
        with torch.autocast("cuda", enabled=False) if x.is_cuda else contextlib.nullcontext():
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


NORMS: dict[str, type[GroupNorm] | type[PixelNorm]] = {"group": GroupNorm, "layer": PixelNorm}


@dataclass
class Spec:
    """Options of the network that the presets use."""

    kind: str = "unet"
    channels: int = option(32, "channels of the finest level", min=2)
    multipliers: list[int] = option([1, 2, 4], "channels of each level, in multiples; each halves the grid", min=1)
    blocks: int = option(1, "residual blocks in each level", min=1, max=100)
    attention: list[int] = option(
        [], "levels with self-attention, by the height or width of their grid in cells of patch pixels, as [16, 8]"
    )
    head_channels: int = option(32, "channels of an attention head", min=1)
    patch: int = option(2, "side of a cell in pixels: the finest grid has a cell's pixels as channels", min=1)
    mean: bool = option(False, "add the input's mean over the pixels to the time's embedding")
    norm: str = option(
        "layer", "normalisation; layer, over a pixel's channels, is faster on CPUs than group", choices=tuple(NORMS)
    )
    dropout: float = option(0.0, "dropout in the residual blocks", min=0, max=1)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialise a layer to zero, so that every residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """norm, SiLU, (resample,) conv, norm scaled and shifted by the time, SiLU, dropout, conv; plus the input."""

    def __init__(self, inputs: int, outputs: int, time: int, spec: Spec, resample: float = 1.0) -> None:
        super().__init__()
        self.resample, norm = resample, NORMS[spec.norm]
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.norm2, self.conv2 = norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(spec.dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == 0.5:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == 2.0 else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # x [B, C, H, W], emb [B, time]
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        scale, shift = self.time(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv2(self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift)))
        return self.skip(self._resize(x)) + h


class Attention(nn.Module):
    """Self-attention over the pixels, as a residual."""

    def __init__(self, channels: int, spec: Spec) -> None:
        super().__init__()
        most = max(1, channels // spec.head_channels)
        self.heads = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.norm, self.qkv = NORMS[spec.norm](channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.movedim(1, 0).transpose(-1, -2).contiguous()  # each [B, heads, H W, C / heads]
        return x + self.out(attend(q, k, v).transpose(-1, -2).reshape(B, C, H, W))


class Level(nn.ModuleList):
    """A sequence of residual blocks and attentions, all of which take the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb)
        return x


class Backbone(nn.Module):
    """[B, in_channels, H, W] and t [B] -> `Features`: pixels [B, features, H, W], and `before`.

    The encoder is the way down and the middle. `before` holds the ends of every level and of the middle, averaged over
    a grid of 2 x 2. What distinguishes classes is there and not in the last layers (Xiang et al., 2023).
    """

    def __init__(self, spec: Spec, in_channels: int, size: Size) -> None:
        super().__init__()
        if not spec.multipliers:
            raise MmfastError("backbone.multipliers is empty; it should have a number for each level, as [1, 2]")
        halvings, patch = len(spec.multipliers) - 1, spec.patch
        if spec.norm not in NORMS:
            raise unknown("backbone.norm", spec.norm, NORMS)
        if not divides(patch, size):
            raise MmfastError(f"backbone.patch is {patch}; it should divide {plain(size)} pixels")
        grid = [side // patch for side in height_width(size)]
        if not divides(1 << halvings, grid):
            cells, smaller = (f" in cells of {patch}", " or a smaller backbone.patch") if patch > 1 else ("", "")
            raise MmfastError(
                f"backbone.multipliers has {halvings + 1} levels; {plain(size)} pixels do not halve {halvings} times"
                f"{cells}: the size should be a multiple of {patch << halvings}; or take fewer levels{smaller}"
            )
        self.patch, self.layout = patch, NORMS[spec.norm].layout
        self.time_width = spec.channels
        time = self.embedding_width = 4 * spec.channels
        widths = [spec.channels * multiplier for multiplier in spec.multipliers]
        finest = self.features = widths[0]
        read = [*widths, widths[-1]]
        self.reads, self.levels = GRID**2 * sum(read), (in_channels, *read)
        self.time = nn.Sequential(nn.Linear(spec.channels, time), nn.SiLU(), nn.Linear(time, time))
        # A label that is the same at every pixel is best read off the mean of the noisy input.
        self.mean = nn.Linear(in_channels, time, bias=False) if spec.mean else None

        def level(inputs: int, outputs: int, depth: int) -> Level:
            layers: list[nn.Module] = [Residual(inputs, outputs, time, spec)]
            if any(side >> depth in spec.attention for side in grid):
                layers.append(Attention(outputs, spec))
            return Level(layers)

        self.first = nn.Conv2d(in_channels * patch**2, finest, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, channels = [finest], finest
        self.ends: list[int] = []  # the last block of each level, on the way down
        for depth, width in enumerate(widths):
            for _ in range(spec.blocks):
                self.down.append(level(channels, width, depth))
                channels = width
                kept.append(channels)
            self.ends.append(len(self.down) - 1)
            if depth < halvings:
                self.down.append(Level([Residual(channels, channels, time, spec, resample=0.5)]))
                kept.append(channels)
        self.middle = Level(
            [
                Residual(channels, channels, time, spec),
                Attention(channels, spec),
                Residual(channels, channels, time, spec),
            ]
        )
        for depth, width in reversed(list(enumerate(widths))):
            for i in range(spec.blocks + 1):
                block = level(channels + kept.pop(), width, depth)
                channels = width
                if depth and i == spec.blocks:
                    block.append(Residual(channels, channels, time, spec, resample=2.0))
                self.up.append(block)
        if patch > 1:
            # Each pixel's own input bypasses the cells, gated by the time: z_t is nearly the image at small t and noise
            # near T, and which of the two should be copied depends on the prediction target.
            self.past, self.gate = nn.Conv2d(in_channels, finest, 1), nn.Linear(time, finest)
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)
            self.last = nn.Conv2d(finest, finest * patch**2, 1)

    def forward(
        self, x: Tensor, t: Tensor, beside: Tensor | None = None, told: Tensor | None = None, decode: bool = True
    ) -> Features:
        return self.features_of(x, plus(self.embedding(x, t), beside), told, decode)

    def embedding(self, x: Tensor, t: Tensor) -> Tensor:
        """The embedding of the time and, with `mean`, of the input's mean: [B, embedding_width]."""
        emb: Tensor = self.time(timestep_embedding(t, self.time_width).to(x.dtype))
        return emb if self.mean is None else emb + self.mean(x.mean((2, 3)))

    def features_of(self, x: Tensor, embedding: Tensor, told: Tensor | None = None, decode: bool = True) -> Features:
        """The features, from the embedding [B, embedding_width] of all layers and `told`, which the decoder adds."""
        emb = F.silu(embedding)
        h = self.first(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=self.layout))
        kept = [h]
        for block in self.down:
            h = block(h, emb)
            kept.append(h)
        h = self.middle(h, emb)
        seen = [*(kept[1 + i] for i in self.ends), h]
        before = torch.cat([averaged(level) for level in seen], 1)
        if not decode:
            return Features(None, before, (x, *seen))
        emb = F.silu(plus(embedding, told))
        for block in self.up:
            h = block(torch.cat((h, kept.pop()), 1), emb)
        h = h.contiguous()  # the layout that the heads expect
        if self.patch > 1:
            h = F.pixel_shuffle(self.last(h), self.patch) + self.gate(emb)[:, :, None, None] * self.past(x)
        return Features(h, before, (x, *seen))
