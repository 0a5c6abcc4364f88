"""Encodings of unit RMS: of vectors, and codes of classes that are as far apart as possible."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rms(x: Tensor) -> Tensor:
    """Scale each sample to a root mean square of one, however large its numbers are; zeros stay zero."""
    shape = (-1, *[1] * (x.dim() - 1))
    if x.numel():
        largest = x.detach().abs().flatten(1).amax(1)
        x = x / torch.where(largest > 0, largest, 1).reshape(shape)
    return x * torch.rsqrt(x.square().flatten(1).mean(1) + 1e-8).reshape(shape)


def nearest(z0: Tensor, codes: Tensor) -> Tensor:
    """The class whose code is nearest: z0 [B, C, H, W], codes [K, C] -> int64 [B, H, W]."""
    distance = codes.square().sum(1)[None, :, None, None] - 2 * torch.einsum("bchw,kc->bkhw", z0, codes)
    return distance.argmin(1)


def code(classes: int, width: int) -> Tensor:
    """Fixed encodings of `classes` classes: float32 [classes, width], of unit RMS, as far apart as possible.

    They are the corners of a regular simplex, rotated into `width` dimensions by a random but fixed rotation; with
    fewer dimensions than classes - 1, its projection. Computed on the host, so that they are the same for all devices.
    """
    host = torch.device("cpu")
    if classes == 1:
        return torch.ones(1, width, device=host)
    if width == 1:
        line = torch.linspace(-1, 1, classes, device=host)[:, None]
        return line if classes == 2 else line / line.square().mean().sqrt()
    generator = torch.Generator(host).manual_seed(classes * 100_003 + width)
    # The corners of the simplex in a basis of the classes - 1 dimensions that they span.
    corners = torch.linalg.qr((torch.eye(classes, device=host) - 1 / classes)[:, :-1])[0]
    random = torch.randn(max(width, classes - 1), min(width, classes - 1), generator=generator, device=host)
    turn = torch.linalg.qr(random)[0]
    turned = corners @ (turn.T if width >= classes - 1 else turn)
    return turned / turned.square().mean(1, keepdim=True).sqrt()


def draw_class(logits: Tensor, normal: Tensor) -> Tensor:
    """Sample a class from the softmax of logits [B, K, ...], by adding Gumbel noise made from standard normals."""
    log_uniform = torch.special.log_ndtr(normal)
    return (logits.float() - torch.log(-log_uniform)).argmax(1)
