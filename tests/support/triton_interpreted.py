"""The Triton backend, interpreted on the CPU, and what its tests share.

Two things of the interpreter differ from a GPU. Its tl.fma rounds twice: here it is given one that rounds once. And its
cast from float32 to bfloat16 cuts instead of rounding: a bfloat16 result may be one ulp off where half a one is right.
"""

import pytest
import torch
from flat import Flat, reference
from interpreted import load, mended

backend, run, pairs = load("mmfast.ops.backends.triton", "mmfast.ops.backends.triton.launch", "triton_pairs")
backend = Flat(backend)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = torch.tensor([-0x0123456789ABCDEF, 5])
BLOCKS = [128, 1024, 8192]


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setattr(run, "LANES", 2**13)  # a program takes longer than its elements
    monkeypatch.setattr(run, "BLOCK", 2**13)
    with mended():
        yield


def real(dtype):
    return reference.arithmetic(dtype)


def unit(dtype):
    return torch.finfo(real(dtype)).eps


def rounding(dtype, value):
    """How far a result may be from `value` before its rounding and after: half an ulp, or one cut off."""
    info = torch.finfo(dtype)
    return info.eps / (1 if dtype == torch.bfloat16 else 2) * value.abs() + info.tiny


def identical(a, b):
    """The same bits, any NaN being like another."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def randn(shape, key=KEY, ids=None, stream=0, dtype=torch.float32):
    one = torch.ones(1, dtype=real(dtype))
    return backend.combine([], [], one[:, None][:, :0], one, None, key, ids, stream, shape, dtype, True)


def cut(x):
    """float32 to bfloat16 as the interpreter does it."""
    return (x.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
