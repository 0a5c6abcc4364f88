"""Hide random blocks of images, for the masked-image task, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mmfast.errors import MmfastError
from mmfast.keywords import shows
from mmfast.ops import backends, dispatch
from mmfast.ops.around import in_memory, ordinary, transformed, watched
from mmfast.ops.checks import FLOATS, check_batch, flag, is_whole
from mmfast.ops.identity import IDENTITY, Identity, noise_of
from mmfast.ops.noise_checks import check_noise
from mmfast.ops.reference import ALL
from mmfast.streams import MASK

if TYPE_CHECKING:
    from typing_extensions import Unpack


@shows(Identity, {**IDENTITY, "stream": MASK})
def block_mask(
    x: Tensor,
    ratio: float | Tensor,
    block_size: int | tuple[int, int],
    *,
    exact: bool = True,
    **identity: Unpack[Identity],
) -> tuple[Tensor, Tensor]:
    """Hide a share of the blocks of each image. Returns x * mask and the mask, which is 1 where visible.

    The choice of blocks is a pure function of (seed, stream, sample id, draw), computed by the counter-based generator:
    it is the same for an example in any batch and on any backend.

    Args:
        x: [B, C, H, W].
        ratio: the share of blocks to hide, in 0 .. 1; a number, or a floating tensor [B] with one per sample.
        block_size: the side of the blocks, or (height, width). Blocks at the lower and right edges may be cut off.
        exact: True hides exactly round(ratio * blocks) of them; False hides each independently with probability
            `ratio`.
        seed, sample_ids, stream, draw: as for `randn`. By default the mask has a stream of its own, which keeps it
            independent of the noise.

    Returns x * mask [B, C, H, W] (zero where hidden, whatever x holds) and mask [B, 1, H, W], both in x's dtype.
    Raises MmfastError naming the argument at fault.
    """
    noise = noise_of("block_mask", identity, stream=MASK)
    # The usual case, in which the extension reads the arguments directly.
    usual = exact is True and type(ratio) is float and type(block_size) is not list
    if usual and not is_compiling():
        found = backends.look("block_mask", x, ratio, noise, block_size, exact)
        if found is not None:
            return found
    exact = flag("exact", exact)
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in FLOATS:
        kind = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise MmfastError(f"x is {kind}; it should be a floating tensor [B, C, H, W]")
    B, _, H, W = x.shape
    height, width = _block(block_size)
    height, width = min(height, max(H, 1)), min(width, max(W, 1))
    blocks = -(-H // height) * -(-W // width)
    shares = _ratio(ratio, B, x.device)
    hidden: int | Tensor
    if exact and isinstance(shares, float):
        hidden = round(shares * blocks)
    elif exact:
        assert isinstance(shares, Tensor)
        hidden = torch.round(shares * blocks).long().expand(B)
    else:  # hides the ranks below it; a rank is word * 2^31 + block
        words = torch.as_tensor(shares, dtype=torch.float64, device=x.device) * 2.0**32
        words = torch.round(words).long().expand(B)
        hidden = torch.where(words >= 1 << 32, ALL, words.clamp(max=(1 << 32) - 1) << 31)
    block = height, width
    if not usual and not is_compiling():
        found = backends.look("block_mask", x, hidden, noise, block, exact)
        if found is not None:
            return found
    checked = check_noise(noise, B, x.device)
    return dispatch.choose([x], x.device).block_mask(in_memory(x), hidden, checked, block, exact)


def _readable(x: Tensor) -> bool:
    """Whether reading the values is free: they are on the host, and nothing traces or batches the op."""
    return x.device.type == "cpu" and ordinary(x) and not is_compiling() and not watched() and not transformed()


def _block(block_size: int | tuple[int, int]) -> tuple[int, int]:
    if type(block_size) is int and block_size > 0:
        return block_size, block_size
    pair = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    if len(pair) != 2 or not all(is_whole(n) and n > 0 for n in pair):
        raise MmfastError(f"block_size is {block_size!r}; it should be a positive int or a pair (height, width)")
    return int(pair[0]), int(pair[1])


def _ratio(ratio: float | Tensor, batch: int, device: torch.device) -> float | Tensor:
    """The checked ratio, or the ratios as float64 [B] or [1], in 0 .. 1."""
    if type(ratio) is float and 0 <= ratio <= 1:
        return ratio
    if isinstance(ratio, Tensor):
        check_batch("ratio", ratio, batch)
        if ratio.dim() > 1 or not ratio.is_floating_point():
            raise MmfastError(f"ratio is {ratio.dtype} {list(ratio.shape)}; it should be a number or floats [B]")
        if ratio.device not in (device, torch.device("cpu")):
            raise MmfastError(f"ratio is on {ratio.device}; it should be on {device} with x")
        # Reading values on a GPU would wait for it, so they are clamped instead.
        if _readable(ratio) and bool(ratio.isnan().any()):
            raise MmfastError("ratio holds NaN; it should lie in 0 .. 1")
        return ratio.to(device, torch.float64).clamp(0, 1).reshape(-1)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise MmfastError(f"ratio is {ratio!r}; it should lie in 0 .. 1")
    return float(ratio)
