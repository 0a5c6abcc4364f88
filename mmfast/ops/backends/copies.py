"""Copies for unusual layouts: if a kernel cannot read some terms in place, it is called again with contiguous ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmfast.ops.call import Block, Call, Term


def contiguous(terms: Sequence[Term], misfits: Sequence[int], shape: Sequence[int]) -> list[Term]:
    """The terms, with those whose indices are in `misfits` expanded to the shape and made contiguous."""
    terms = list(terms)
    for k in misfits:
        term = terms[k]
        if isinstance(term, Block):
            whole = term.tensor.expand(shape[0], term.tensor.shape[1], *shape[2:]).contiguous()
            terms[k] = Block(whole, term.start, term.channels)
        else:
            terms[k] = term.expand(tuple(shape)).contiguous()
    return terms


def with_copies(function: Callable[..., Any], call: Call, *options: Any) -> Any:
    """Run function(call, *options) of an extension. If it returns a list of unreadable terms, copy them and retry."""
    found = function(call, *options)
    if type(found) is not list:
        return found
    return function(call._replace(terms=contiguous(call.terms, found, call.shape)), *options)
