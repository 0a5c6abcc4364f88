"""A kernel for test_triton_kernel.py, in a file as Triton wants it: Box-Muller of given words."""

import triton
import triton.language as tl

from mmfast.ops.backends.triton.noise import normal_pair


@triton.jit
def pairs(a, b, first, second, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = normal_pair(tl.load(a + at).to(tl.uint32), tl.load(b + at).to(tl.uint32))
    tl.store(first + at, x)
    tl.store(second + at, y)
