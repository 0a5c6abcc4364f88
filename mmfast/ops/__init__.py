"""The fused ops: one primitive, `combine`, and the formulas of the process that are made of it.

`reference.py` defines what is right; `backends.py` chooses what runs.
"""

from mmfast.ops import backends, reference
from mmfast.ops.arguments import Block
from mmfast.ops.backends import backend
from mmfast.ops.forward import diffusion_loss, q_sample
from mmfast.ops.linear import combine, multimodal_mean, randn, random_words
from mmfast.ops.masking import block_mask
from mmfast.ops.reverse import posterior_mean, posterior_sample, step

__all__ = [
    "Block",
    "backend",
    "backends",
    "block_mask",
    "combine",
    "diffusion_loss",
    "multimodal_mean",
    "posterior_mean",
    "posterior_sample",
    "q_sample",
    "randn",
    "random_words",
    "reference",
    "step",
]
