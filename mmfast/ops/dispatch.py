"""The one door from the public ops to what serves them.

`at_once` is tried first: the C++ looks at the tensors itself, and where nothing is at work around a call of plain
tensors it is done in that one call. Everything else goes through `choose`, a ladder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.ops import around, autograd, backends, library, reference
from mmfast.ops.call import Call, Tables, pick, tensor_of

# Whether a compiled graph gets a combination without noise as torch's ops, for Inductor to fuse, or as one op of ours:
# benchmarks/compiled.py measures both.
PLAIN_IN_GRAPHS = True


def at_once(name: str, terms: Any, tables: Any, rows: Any, noise: Any, *options: Any) -> Any:
    """The op's two results by the extension, of the parts of a call that nobody has checked; None where anything is not
    as usual.

    options: as the extension takes them (csrc/serve.h). Not within a compiler, which the caller has seen to.
    """
    for function in backends.LOOKING[name]:
        found = function(terms, tables, rows, noise, *options)
        if type(found) is tuple:
            return found if len(found) == 2 else autograd.RECORD[name](terms, tables, rows, noise, found)
        if found != backends.ELSEWHERE:
            break
    return None


def choose(tensors: list[Tensor | None], device: torch.device, terms: int = 0, noisy: bool = True) -> Any:
    """Who serves a complete call on these tensors: a module with the ops of backends/__init__.py."""
    # torch.func, forward mode and torch.jit know torch's own ops only.
    if around.transformed():
        return reference
    # Inductor fuses torch's own ops with their neighbours; noise, of which it would make a graph of integers, not.
    if torch.compiler.is_compiling() and not noisy and PLAIN_IN_GRAPHS:
        return reference
    # A compiler, a dispatch mode or a tensor subclass has to see one op, which has its gradient beside it.
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

    In term 0 alone by the gradient made in the forward pass; in anything else (and twice, with fused=False) by the ops
    that it is made of.
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
