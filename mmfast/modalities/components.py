"""Principal components of vectors: projection to fewer numbers, and reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def principal_axes(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The mean [D] and the first `dim` principal axes [D, dim] of features [n, D], computed in float64."""
    x = features.double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    axes = vectors.flip(1)[:, :dim]
    # The sign of an axis is arbitrary: make its largest number positive.
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return mean.float(), (axes * signs).float()


class Components(nn.Module):
    """y = (x - mean) axes / scale, of unit RMS over the fitted vectors, and x = mean + scale y axes^T.

    The round trip loses what is orthogonal to the axes: |x - x'|^2 = |x - mean|^2 - |scale y|^2. Its mean over the
    fitted vectors is the sum of the variances along the omitted axes, the least possible for that many axes. With as
    many axes as numbers, only rounding is lost.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.eye(dim, count))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Compute the mean, the axes and the scale from vectors x [n, dim]."""
        mean, axes = principal_axes(x.cpu(), self.axes.shape[1])
        self.mean.copy_(mean)
        self.axes.copy_(axes)
        rms = ((x.cpu().double() - mean) @ axes.double()).square().mean().sqrt()
        self.scale.fill_(float(rms) or 1.0)

    def project(self, x: Tensor) -> Tensor:
        """x [B, dim] -> y [B, count]."""
        return (x - self.mean) @ self.axes / self.scale

    def unproject(self, y: Tensor) -> Tensor:
        """y [B, count] -> x [B, dim]: of all x with this projection, the one nearest to the mean."""
        return self.mean + self.scale * y @ self.axes.T
