"""Tensors of more than 2^31 elements: no index is cut to 32 bits. Everything is bfloat16, of about 4 GiB a tensor.

What is expected comes from the noise's definition at chosen elements, and from the same op on small tensors.
"""

import math
import os

import pytest
import torch
import truth

from mmfast.ops import cpu, reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable())),
]

LARGE = 2**31 + 1000  # a little beyond what a signed 32-bit index reaches
UNSIGNED = 2**32  # and an unsigned one, for offsets in bytes
KEY, STREAM = (-(2**62) + 12345, 2**32 - 2), 3
DTYPE = torch.bfloat16
# Elements (of one sample, or of the whole): at the ends, and about every power of two that an index may be cut at.
PLACES = [0, 1, 2**30 - 1, 2**30, 2**31 - 65, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 64, LARGE - 1]
