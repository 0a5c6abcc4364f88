"""A diffusion transformer (DiT; Peebles and Xie, 2023) that returns features for the heads.

Patches of the input are tokens, with fixed sinusoidal positions. Every block is scaled, shifted and gated by the
embedding of the times (adaLN-Zero), so it starts as the identity. The first half of the blocks is the encoder. In the
second half, the decoder, what is given is added to that embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.backbones.features import GRID, Features, attend, averaged, plus, timestep_embedding
from mmfast.errors import MmfastError
from mmfast.options import option
from mmfast.sizes import Size, divides, height_width, plain

TIME_WIDTH = 256  # of the sinusoids of the time


@dataclass
class Spec:
    kind: str = "dit"
    width: int = option(384, "width of a token: a multiple of 4 and of heads", min=4)
    blocks: int = option(12, "transformer blocks, the first half of them the encoder", min=2, max=1000)
    heads: int = option(6, "heads of every attention layer", min=1)
    patch: int = option(2, "side of a token in pixels; it should divide the image's sides", min=1)
    ratio: float = option(4.0, "width of the hidden layer of a block, in multiples of `width`", above=0)
    features: int = option(64, "feature channels of a pixel", min=1)
    dropout: float = option(0.0, "dropout after each attention and each hidden layer", min=0, max=1)


def positions(width: int, size: Size) -> Tensor:
    """Fixed codes of a grid's cells, row by row: float32 [N, width], half for the row, half for the column.

    Each half is sin, then cos of the index at frequencies 10000^(-k / (width / 4)), k = 0 .. width / 4 - 1.
    """
    host = torch.device("cpu")
    frequencies = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64, device=host) / (width // 4))
    height, width = height_width(size)
    angles = torch.arange(max(height, width), dtype=torch.float64, device=host)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), 1)
    rows, columns = line[:height, None].expand(-1, width, -1), line[None, :width].expand(height, -1, -1)
    return torch.cat((rows, columns), 2).flatten(0, 1).float()


def zero(layer: nn.Linear) -> nn.Linear:
    """Initialise a layer to zero, so that its output starts at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise over the width, then scale and shift: h [B, N, C], shift and scale [B, C]."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """h + gate * attention(modulated h), then the same with an MLP: tokens [B, N, C], emb [B, C]."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width, hidden = spec.width, round(spec.ratio * spec.width)
        self.heads = spec.heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.time = zero(nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(spec.dropout)

    def attention(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, C / heads]
        return self.dropout(self.out(attend(q, k, v).transpose(1, 2).flatten(2)))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.time(emb).chunk(6, 1)
        h = h + gate1[:, None] * self.attention(modulated(h, shift1, scale1))
        inner = F.gelu(self.inner(modulated(h, shift2, scale2)), approximate="tanh")
        return h + gate2[:, None] * self.dropout(self.outer(inner))


class Backbone(nn.Module):
    """[B, in_channels, H, W] and t [B] -> `Features`: pixels [B, features, H, W], and `before`.

    `before` holds the tokens halfway through the encoder and at its end, averaged over a grid of 2 x 2.
    """

    def __init__(self, spec: Spec, in_channels: int, size: Size) -> None:
        super().__init__()
        width, patch = spec.width, spec.patch
        if not divides(patch, size):
            raise MmfastError(f"backbone.patch is {patch}; it should divide {plain(size)} pixels")
        if width % 4 or width % spec.heads:
            raise MmfastError(f"backbone.width is {width}; it should be a multiple of 4 and of {spec.heads} heads")
        rows, columns = (side // patch for side in height_width(size))
        self.patch, self.grid, self.encoder = patch, (rows, columns), spec.blocks // 2
        self.features, self.embedding_width = spec.features, width
        self.read_after = sorted({max(1, self.encoder // 2), self.encoder})
        self.reads = GRID**2 * width * len(self.read_after)
        self.levels = (in_channels, *[width] * len(self.read_after))
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(in_channels * patch**2, width)
        self.positions: Tensor
        self.register_buffer("positions", positions(width, self.grid), persistent=False)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.blocks))
        self.last_time = zero(nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, self.features * patch**2)
        # Each pixel's own input bypasses the tokens, gated by the time, as in the U-Net with patches.
        self.past, self.gate = nn.Conv2d(in_channels, self.features, 1), zero(nn.Linear(width, self.features))
        nn.init.ones_(self.gate.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> tokens [B, N, width], with positions added."""
        return self.first(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)) + self.positions

    def forward(
        self, x: Tensor, t: Tensor, beside: Tensor | None = None, told: Tensor | None = None, decode: bool = True
    ) -> Features:
        embedding = plus(self.time(timestep_embedding(t, TIME_WIDTH).to(x.dtype)), beside)
        emb, h, seen = F.silu(embedding), self.tokens(x), []
        for k, block in enumerate(self.blocks, 1):
            h = block(h, emb)
            if k in self.read_after:
                seen.append(self._laid_out(h))
            if k == self.encoder:
                before = torch.cat([averaged(level) for level in seen], 1)
                if not decode:
                    return Features(None, before, (x, *seen))
                emb = F.silu(plus(embedding, told))
        shift, scale = self.last_time(emb).chunk(2, 1)
        pixels = F.pixel_shuffle(self._laid_out(self.last(modulated(h, shift, scale))), self.patch)
        return Features(pixels + self.gate(emb)[:, :, None, None] * self.past(x), before, (x, *seen))

    def _laid_out(self, h: Tensor) -> Tensor:
        """Tokens [B, N, C] as pixels [B, C, rows, columns]."""
        return h.transpose(1, 2).unflatten(2, self.grid)
