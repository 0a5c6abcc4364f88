"""Tensors whose memory does not hold their values: a pending negation, and zeros that were never written."""

import subprocess
import sys

import pytest
import torch

from mmfast import ops


def test_a_negation_that_is_pending_is_applied(each_backend):
    """The imaginary part of a conjugate is a view with a flag that its values are to be negated."""
    x = torch.randn(2, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
    assert x.is_neg()
    with ops.backend(each_backend):
        assert torch.equal(ops.combine([x], torch.ones(2, 1)), x.clone())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_zeros_without_memory_are_zeros(backend):
    """In a process of its own: a kernel that reads address 0 ends it."""
    code = f"""
import torch
from mmfast import ops
with ops.backend("{backend}"):
    out = ops.combine([torch._efficientzerotensor(2, 3, 4)], torch.ones(2, 1))
assert torch.equal(out, torch.zeros(2, 3, 4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
