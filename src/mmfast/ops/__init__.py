"""The fused ops: one primitive, `combine`, and the formulas of the process that are made of it.

`reference.py` defines what is right; `backends.py` chooses what runs.
"""

from mmfast.ops import backends, reference
from mmfast.ops.arguments import Block
from mmfast.ops.backends import backend
from mmfast.ops.functional import (
    combine,
    multimodal_mean,
    posterior_mean,
    posterior_sample,
    q_sample,
    randn,
)

__all__ = [
    "Block",
    "backend",
    "backends",
    "combine",
    "multimodal_mean",
    "posterior_mean",
    "posterior_sample",
    "q_sample",
    "randn",
    "reference",
]
