"""diffusers' UNet2DModel as a backbone, with the same option names; weights convert in both directions.

Its down blocks and middle are the encoder, its up blocks the decoder. Step t of 1 .. T here is its t - 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.backbones.features import GRID, Features, averaged, kernels, plus
from mmfast.errors import MmfastError, optional_package
from mmfast.options import one_line, option
from mmfast.sizes import Size, divides, height_width, plain

DOWN, UP = "DownBlock2D", "UpBlock2D"


@dataclass
class Spec:
    """The options of diffusers.UNet2DModel, with its defaults; those omitted here follow from the modalities."""

    kind: str = "diffusers"
    block_out_channels: list[int] = option([224, 448, 672, 896], "channels of each level; each halves the grid", min=1)
    down_block_types: list[str] = option([DOWN, *[f"Attn{DOWN}"] * 3], "the kind of each level on the way down")
    up_block_types: list[str] = option([*[f"Attn{UP}"] * 3, UP], "the kind of each level on the way up, coarsest first")
    mid_block_type: str | None = option("UNetMidBlock2D", "the kind of the middle; null: none")
    layers_per_block: int = option(2, "residual blocks in each level", min=1, max=100)
    add_attention: bool = option(True, "attention in the middle")
    attention_head_dim: int | None = option(8, "channels of an attention head; null: one head", min=1)
    norm_num_groups: int = option(32, "groups of every normalisation; the number should divide all channels", min=1)
    attn_norm_num_groups: int | None = option(None, "groups in the middle's attention; null: as in the others", min=1)
    norm_eps: float = option(1e-5, "added to the variance in a normalisation", above=0)
    act_fn: str = option("silu", "activation of the residual blocks")
    dropout: float = option(0.0, "dropout in the residual blocks", min=0, max=1)
    resnet_time_scale_shift: str = option(
        "default", "whether the time is added, or scales and shifts", choices=("default", "scale_shift")
    )
    mid_block_scale_factor: float = option(1.0, "divisor of the sums in the middle", above=0)
    downsample_type: str = option("conv", "how a grid is halved", choices=("conv", "resnet"))
    upsample_type: str = option("conv", "how a grid is doubled", choices=("conv", "resnet"))
    downsample_padding: int = option(1, "padding of the convolution that halves", min=0)
    time_embedding_dim: int | None = option(None, "width of the time's embedding; null: 4 x the first channels", min=1)
    freq_shift: int = option(0, "shift of the time's frequencies", min=0)
    flip_sin_to_cos: bool = option(True, "cosines of the time before the sines")


def unet(spec: Spec, in_channels: int, out_channels: int, size: Size) -> Any:
    """Create a UNet2DModel. Raises MmfastError if diffusers is not installed or rejects the options."""
    with optional_package("diffusers", "diffusers", "backbone.kind=diffusers"):
        from diffusers import UNet2DModel
    options = {name: x for name, x in dataclasses.asdict(spec).items() if name != "kind"}
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        options[name] = tuple(options[name])
    levels = len(spec.block_out_channels)
    if not levels or {len(spec.down_block_types), len(spec.up_block_types)} != {levels}:
        raise MmfastError(
            f"backbone has {levels} block_out_channels, {len(spec.down_block_types)} down_block_types and "
            f"{len(spec.up_block_types)} up_block_types; it should have one of each for every level"
        )
    if not divides(1 << levels - 1, size):
        raise MmfastError(
            f"backbone.block_out_channels has {levels} levels; {plain(size)} pixels do not halve {levels - 1} times: "
            f"the size should be a multiple of {1 << levels - 1}, or there should be fewer levels"
        )
    height, width = height_width(size)
    try:
        net = UNet2DModel(
            sample_size=height if height == width else (height, width),
            in_channels=in_channels,
            out_channels=out_channels,
            **options,
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise MmfastError(f"backbone: diffusers' UNet2DModel rejects its options: {one_line(error)}") from None
    for block in (*net.down_blocks, *net.up_blocks):
        if hasattr(block, "skip_conv"):
            raise MmfastError(
                f"backbone has a {type(block).__name__}, which adds to the output past the heads; choose another kind"
            )
    return net


class Backbone(nn.Module):
    """[B, in_channels, H, W] and t [B] -> `Features`: pixels [B, block_out_channels[0], H, W], and `before`.

    `before` holds the ends of every level and of the middle, averaged over a grid of 2 x 2, as in the U-Net.
    """

    def __init__(self, spec: Spec, in_channels: int, size: Size) -> None:
        super().__init__()
        self.net = unet(spec, in_channels, 1, size)
        self.features, self.layers = spec.block_out_channels[0], spec.layers_per_block
        self.embedding_width = self.net.time_embedding.linear_2.out_features
        read = [*spec.block_out_channels, spec.block_out_channels[-1]]
        self.reads, self.levels = GRID**2 * sum(read), (in_channels, *read)
        # The tokens of the largest attention; the middle's is on the coarsest grid.
        attends = [k for k, block in enumerate(self.net.down_blocks) if hasattr(block, "attentions")]
        finest = min([*attends, len(spec.block_out_channels) - 1])
        self.tokens = math.prod(side >> finest for side in height_width(size))
        # The layers after the features belong to the anchor's head, which the model builds (`out_norm`).
        self.groups, self.eps = spec.norm_num_groups, spec.norm_eps
        del self.net.conv_norm_out, self.net.conv_out

    def out_norm(self) -> nn.Sequential:
        """The first layers of the anchor's head, as in UNet2DModel, so that its weights can be loaded."""
        return nn.Sequential(nn.GroupNorm(self.groups, self.features, self.eps), nn.SiLU())

    def forward(
        self, x: Tensor, t: Tensor, beside: Tensor | None = None, told: Tensor | None = None, decode: bool = True
    ) -> Features:
        with kernels(x.device, self.tokens):
            return self._features(x, t, beside, told, decode)

    def _features(self, x: Tensor, t: Tensor, beside: Tensor | None, told: Tensor | None, decode: bool) -> Features:
        net = self.net
        embedding = plus(net.time_embedding(net.time_proj((t - 1).clamp(min=0)).to(x.dtype)), beside)
        h = net.conv_in(x)
        kept, seen = [h], []
        for block in net.down_blocks:
            h, more = block(hidden_states=h, temb=embedding)
            kept += more
            seen.append(more[self.layers - 1])
        if net.mid_block is not None:
            h = net.mid_block(h, embedding)
        levels = (x, *seen, h)
        before = torch.cat([averaged(level) for level in levels[1:]], 1)
        if not decode:
            return Features(None, before, levels)
        embedding = plus(embedding, told)
        for block in net.up_blocks:
            count = len(block.resnets)
            h, kept = block(h, tuple(kept[-count:]), embedding), kept[:-count]
        return Features(h, before, levels)
