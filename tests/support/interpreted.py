"""Loads the Triton backend as Triton's interpreter runs it, on tensors of the CPU, whatever this process imported.

Triton decides when a function is decorated. So a second copy of the modules is imported with TRITON_INTERPRET=1, and
those that may be there already stay as they were.
"""

import contextlib
import importlib
import os
import sys
from unittest import mock

import numpy as np
import pytest
import torch


def load(*names):
    """Fresh copies of these modules, in which Triton's functions are interpreted; nothing else sees them.

    Skips the module or test where Triton is too old: the interpreter of 3.0 takes no constexpr for one, in tl.arange.
    3.6 and 3.8 were seen to do.
    """
    version = importlib.import_module("triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 6):
        pytest.skip(f"the interpreter of Triton {version} does not run these kernels", allow_module_level=True)

    def of_triton(name):
        return name in names or name.startswith("mmfast.ops.backends.triton")

    package = importlib.import_module("mmfast.ops.backends")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if of_triton(name)}
    attributes, switch = dict(vars(package)), os.environ.get("TRITON_INTERPRET")
    for name in before:  # `from mmfast.ops import x` looks at the package before it looks for a module
        if name.startswith("mmfast.ops.backends."):
            vars(package).pop(name.rpartition(".")[2], None)
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        if switch is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = switch
        for name in list(sys.modules):
            if of_triton(name):
                del sys.modules[name]
        sys.modules.update(before)
        for name in set(vars(package)) - set(attributes):
            delattr(package, name)
        vars(package).update(attributes)


@contextlib.contextmanager
def mended():
    """Triton's interpreter, in this block, with what a GPU does where it does another thing, or with NumPy nothing."""
    from triton.runtime import interpreter

    of_tensor = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        """Up to 3.6 it takes an array of one element for a number, which NumPy has refused since 2.4."""
        of_tensor(tensor, *scope)
        (scope[0].set_attr if scope else setattr)(tensor, "__index__", lambda x: int(x.handle.data.item()))

    with (
        mock.patch.object(interpreter.InterpreterBuilder, "create_fma", fma),
        mock.patch.object(interpreter.ReduceOps, "generic_reduce", add_up),
        mock.patch.object(interpreter, "_patch_lang_tensor", patched),
    ):
        yield


def fma(self, x, y, z):
    """tl.fma of the interpreter, rounded once: its own rounds the product too, and a GPU does not.

    The product of two floats is exact in double; the sum is rounded to double first, which matters once in 2^29 times.
    """
    result = x.data.astype(np.float64) * y.data + z.data
    return type(z)(result.astype(z.data.dtype), z.dtype.scalar)


def add_up(self, tensors):
    """tl.reduce of the interpreter, of sums, which are the only ones here: its own calls Python for every element."""
    assert self.combine_fn.__name__ == "add"
    return [self.to_tensor(np.sum(x.handle.data, axis=self.axis, keepdims=self.keep_dims), x.dtype) for x in tensors]


class Guarded:
    """torch, but that `empty` returns memory full of NaN (or -1), misaligned, between margins that `check` reads."""

    MARGIN, SENTINEL = 9, 77

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype, device=None):
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        whole = torch.full([size.numel() + 2 * self.MARGIN], self.SENTINEL, dtype=dtype)
        self.made.append(whole)
        inside = whole[self.MARGIN : self.MARGIN + size.numel()]
        return inside.fill_(float("nan") if dtype.is_floating_point else -1).view(size)

    def check(self):
        for whole in self.made:
            assert (whole[: self.MARGIN] == self.SENTINEL).all() and (whole[-self.MARGIN :] == self.SENTINEL).all()


@contextlib.contextmanager
def guarded(backend):
    """Every output of the backend is guarded in this block, and checked at its end."""
    real, backend.torch = backend.torch, Guarded()
    try:
        yield
        backend.torch.check()
    finally:
        backend.torch = real
