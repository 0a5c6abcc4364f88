"""The Frechet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mmfast.errors import MmfastError


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) for features [n, D] and [m, D] (Dowson, Landau, 1982).

    Computed in float64 from the symmetric form S_a^(1/2) S_b S_a^(1/2), whose eigenvalues are those of S_a S_b.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise MmfastError(
            f"features are {list(a.shape)} and {list(b.shape)}; they should be [n, D] and [m, D], n, m > 1"
        )
    for features in (a, b):
        if not features.isfinite().all():
            raise MmfastError("features hold values that are not finite; they should be finite")
    x, y = a.cpu().double().numpy(), b.cpu().double().numpy()
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(min=0)).sum()
    mean = np.square(x.mean(0) - y.mean(0)).sum()
    return max(0.0, float(mean + np.trace(cov_x) + np.trace(cov_y) - 2 * cross))  # rounding may give less than 0


def pixel_features(images: Tensor, most: int = 16) -> Tensor:
    """Flatten images [B, C, H, W], shrunk to at most `most` x `most` so that the covariance stays small."""
    height, width = images.shape[2:]
    return F.adaptive_avg_pool2d(images, (min(height, most), min(width, most))).flatten(1)
