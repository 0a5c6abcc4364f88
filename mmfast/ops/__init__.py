"""The fused ops: the primitive `combine`, and the formulas of the diffusion process that are built on it.

`call.py` defines a call, `reference.py` its result, and `dispatch.py` chooses what computes it.
"""

from mmfast.ops import backends, reference
from mmfast.ops.backends import backend
from mmfast.ops.call import Block, Tables
from mmfast.ops.forward import diffusion_loss, q_sample
from mmfast.ops.hidden_blocks import block_mask
from mmfast.ops.linear import combine, multimodal_mean, randn, random_words
from mmfast.ops.reverse import posterior_mean, posterior_sample, step
from mmfast.ops.table_step import step_by_table

__all__ = [
    "Block",
    "Tables",
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
    "step_by_table",
]
