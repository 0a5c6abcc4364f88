"""Tensors whose memory does not hold their values: a pending negation, and zeros that were never written."""

import fresh
import torch

from mmfast import ops


def test_a_negation_that_is_pending_is_applied(each_backend):
    """The imaginary part of a conjugate is a view with a flag that its values are to be negated."""
    x = torch.randn(2, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
    assert x.is_neg()
    with ops.backend(each_backend):
        assert torch.equal(ops.combine([x], torch.ones(2, 1)), x.clone())


def test_zeros_without_memory_are_zeros():
    """In a process of its own: a kernel that reads address 0 ends it."""
    code = """
import torch
from mmfast import ops
for backend in ("reference", "cpu"):
    print(backend, flush=True)
    with ops.backend(backend):
        out = ops.combine([torch._efficientzerotensor(2, 3, 4)], torch.ones(2, 1))
    assert torch.equal(out, torch.zeros(2, 3, 4))
"""
    done = fresh.run(code)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-500:])
