"""What is at work around an op, seen at a glance, and the short way for a call around which there is nothing.

Gradients, compilers, tracers, transforms and dispatch modes all have to see an op, or to be told of it.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmfast.ops import extensions

_local = threading.local()  # two threads must not fill one tensor


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """64 bits of a generator of the CPU's, torch's default one for None.

    In a tensor that is kept: to make one takes longer than to fill it.
    """
    try:
        kept = _local.seed
    except AttributeError:
        with torch.inference_mode(False):
            kept = _local.seed = torch.empty((), dtype=torch.int64, device="cpu")
    return int(kept.random_(-(1 << 63), None, generator=generator))


_cpu, _ = extensions.load("_mmfast_cpu")
if _cpu is not None:
    _cpu.use_exchange_api(getattr(Tensor, "__dlpack_c_exchange_api__", None))
    _cpu.watch(
        Tensor,
        torch.nn.Parameter,
        torch.is_grad_enabled,
        (
            torch._C._len_torch_dispatch_stack,
            torch._C._get_tracing_state,
            torch._C._functorch.peek_interpreter_stack,
        ),
        forward_ad,
        fresh_seed,
        torch.empty_like,
        torch.get_num_threads,
    )


# What `glance` may find.
LONG_WAY, PLAIN, RECORDED = 0, 1, 2


def glance(tensors: Any) -> int:
    """PLAIN where this is a list of torch's own tensors of one shape and floating type in the CPU's memory, with
    nothing else at work: a kernel may have them as they are. RECORDED where only a gradient is wanted besides. Else
    LONG_WAY.

    The extension looks; without it everything goes the long way.
    """
    if torch.compiler.is_compiling() or _cpu is None or type(tensors) is not list:
        return LONG_WAY
    return _cpu.glance(tensors)


def express(
    tensors: list[Any],
    tables: Any,
    t: Any,
    identity: tuple[Any, Any, Any, Any],
    second: bool,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> Any:
    """(out, eps or x0) of `combine` or, with to_x0, `step` by the CPU's kernels, in one call, for PLAIN float32 tensors
    of one shape. With nothing done, RECORDED or, where anything is not as usual, LONG_WAY.

    tables: Coefficients; t: their rows; identity: seed (None for a fresh one), draw, sample_ids, stream; second: give
    eps or x0 too.
    """
    if torch.compiler.is_compiling() or _cpu is None:
        return LONG_WAY
    seed, draw, sample_ids, stream = identity
    return _cpu.express(
        tensors, tables.to_x0, tables.coefs, tables.sigma, t, low, high, seed, draw, sample_ids, stream, second
    )


def transformed() -> bool:
    """Whether torch.func, forward mode or torch.jit is at work: all go through the reference's torch ops."""
    if torch.compiler.is_compiling():  # the compiler cannot look at either, and traces the op itself
        return False
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None  # torch.jit.trace knows no list of sizes
    )


def watched() -> bool:
    """Whether a compiler or dispatch mode has to see the ops."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def by_torch_ops(grad: Tensor) -> bool:
    """Whether a backward pass has to be made of torch's ops: to be differentiated, or for many gradients at once."""
    if torch.is_grad_enabled() or transformed():
        return True
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad)


def in_memory(x: Tensor) -> Tensor:
    """x with its values where a kernel looks for them: no pending negation, no zeros that were never written."""
    if torch.compiler.is_compiling() or not (x.is_neg() or x._is_zerotensor()):
        return x
    return x.resolve_neg() if x.is_neg() else x.clone()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether any of the tensors is to be differentiated."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # a loop: any() over a generator takes a microsecond more
        if x is not None and x.requires_grad:
            return True
    return False


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether the tensors are torch's own, and not of a subclass with a mind of its own."""
    for x in tensors:
        if type(x) is not Tensor and x is not None and type(x) is not torch.nn.Parameter:
            return False
    return True
