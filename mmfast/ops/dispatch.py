"""The single path from the public ops to their implementations.

`at_once` is tried first: the C++ extension inspects the tensors itself, and if they are plain and nothing else has to
see the call, it finishes the op in that one call. Everything else goes through `choose`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops import around, autograd, backends, library, reference
from mmfast.ops.call import Call, Tables, pick, tensor_of

# Whether a compiled graph contains a combination without noise as torch's ops, which Inductor can fuse, or as one op of
# ours. benchmarks/compiled.py measures both.
PLAIN_IN_GRAPHS = True


def at_once(name: str, terms: Any, tables: Any, rows: Any, noise: Any, option: Any, second: Any) -> Any:
    """Run the op in an extension on the unchecked parts of a call; returns its two results, or None in unusual cases.

    option, second: the op's two options, as the extension takes them (csrc/serve.h). The caller makes sure that no
    compiler is tracing.
    """
    for function in backends.LOOKING[name]:
        found = function(terms, tables, rows, noise, option, second)
        if type(found) is tuple:
            return found if len(found) == 2 else autograd.RECORD[name](terms, tables, rows, noise, found)
        if found != backends.ELSEWHERE:
            break
    return None


def choose(tensors: list[Tensor | None], device: torch.device, terms: int = 0, noisy: bool = True) -> Any:
    """Choose the implementation for a complete call on these tensors: a module with the ops of backends/__init__.py."""
    # torch.func, forward-mode AD and torch.jit support torch's own ops only.
    if around.transformed():
        return reference
    # Inductor fuses torch's own ops with their neighbours. Noise would become a graph of integer ops, so not for noise.
    if torch.compiler.is_compiling() and not noisy and PLAIN_IN_GRAPHS:
        return reference
    # A compiler, a dispatch mode or a tensor subclass has to see a single op with a registered gradient.
    if around.watched() or not around.ordinary(*tensors):
        return reference if around.BELOW_AUTOGRAD is None else library
    # Autograd has to record it.
    if around.needs_grad(*tensors):
        return autograd
    return backends.serving(device.type, terms)


def of_call(call: Call) -> Any:
    """`choose` for a complete call."""
    tensors = [tensor_of(x) for x in call.terms]
    return choose([*tensors, *call.tables], call.tables.coefs.device, len(tensors), call.noise is not None)


def squared_error(call: Call, scale: float, fused: bool) -> Tensor:
    """reference.squared_error's loss [B], differentiable in the terms, coefs and sigma.

    If only term 0 needs a gradient, the forward pass computes it. Other gradients (and second ones, with fused=False)
    go through the ops that the loss is built on.
    """
    others = [tensor_of(x) for x in call.terms[1:]]
    serves = of_call(call)
    if fused and serves is not reference and not around.needs_grad(*others, *call.tables):
        return serves.squared_error(call, scale, False)[0]
    assert call.tables.weight is not None
    wide = call.tables.coefs.dtype
    terms = autograd.with_tensors(call.terms, [tensor_of(x).to(wide) for x in call.terms])
    combined = Call(terms, Tables(*call.tables[:2]), call.rows, call.noise, call.shape, wide)
    r = of_call(combined).combine(combined, False)[0]
    return scale * pick(call.tables.weight, call.rows, call.shape[0]) * reference.sum_samples(r.square())
