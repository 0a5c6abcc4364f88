"""A sampler's step by tables of coefficients that have a row for each step of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.compiler import is_compiling

from mmfast.errors import MmfastError
from mmfast.keywords import shows
from mmfast.ops import dispatch
from mmfast.ops.around import in_memory
from mmfast.ops.call import Bounds, Call, GivenNoise, Rows, Tables, Term, arithmetic
from mmfast.ops.checks import check_device, check_row_values, check_tables, gather, is_whole
from mmfast.ops.identity import IDENTITY, Identity, noise_of
from mmfast.ops.noise_checks import check_levels, check_noise, within_channels
from mmfast.ops.tables import range_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@shows(Identity, IDENTITY)
def step_by_table(
    terms: Sequence[Term],
    tables: Tables,
    row: Rows = None,
    *,
    clamp: float | tuple[float, float] | None = None,
    channels: tuple[int, int] | None = None,
    levels: Sequence[int] | None = None,
    **identity: Unpack[Identity],
) -> tuple[Tensor, Tensor]:
    """Take a sampler's step with coefficients from tables, in one pass. In a loop, each row can be a step.

    x0 = clamp(sum_k to_x0[r, k] terms[k]), in its channels, and out = sum_k coefs[r, k] terms[k] + coefs[r, K] x0 +
    sigma[r] eps, where r is the row of each sample.

    Args:
        terms: K tensors or `Block`s; the first has the full shape [B, ...].
        tables: `Tables` with to_x0 [R, K], coefs [R, K + 1] and sigma [R] (or None for no noise).
        row: an int, the row for all samples; or int64 [B]; None for a row per sample (R is B, or 1).
        clamp: c for -c .. c, or a pair; None for no bounds.
        channels: the channels of x0, a pair of ints (first, number); None for all. x0 is zero elsewhere.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`.
        levels: the first channels of blocks that each have a noise scale, as for `combine`; sigma is then [R, L].

    Returns out [B, ...], and x0 of its channels. Raises MmfastError naming the argument at fault.
    """
    if not isinstance(tables, Tables) or tables.to_x0 is None:
        raise MmfastError("tables has no to_x0; it should be mmfast.ops.Tables(coefs, sigma, to_x0)")
    first = check_levels(levels, tables.sigma)
    given: GivenNoise | None = noise_of("step_by_table", identity, first)
    if tables.sigma is None:
        given = None
    bounds = range_of(clamp)
    if channels is not None:
        bounds = Bounds(*bounds[:2], *_span(channels))
    if not is_compiling():
        found = dispatch.at_once("step", terms, tables, row, given, bounds, True)
        if found is not None:
            return found
    tensors, shape, dtype = gather(terms, like_first=True)
    if not shape:
        raise MmfastError("terms are of no dimension, or empty; they should be [B, ...]")
    if bounds.start >= 0 and (len(shape) < 2 or bounds.start + bounds.channels > shape[1]):
        raise MmfastError(f"channels is {channels}; it should lie within the {shape[1:2]} of the terms")
    coefs, sigma, to_x0, _ = tables
    of_noise = [] if sigma is None else [("tables.sigma", sigma, (len(first),) if first else ())]
    of_terms = [("tables.to_x0", to_x0, (len(tensors),)), ("tables.coefs", coefs, (len(tensors) + 1,))]
    check_tables([*of_terms, *of_noise], row, shape[0])
    within_channels(first, shape)
    wide = arithmetic(dtype)
    tables = Tables(coefs, sigma, to_x0).map(lambda x: in_memory(x.to(wide)))
    noise = None if given is None else check_noise(given, shape[0], tables.coefs.device)
    check_device(tables.coefs.device, tensors, tables.to_x0, tables.sigma)
    call = Call(tensors, tables, row, noise, shape, dtype)
    try:
        return dispatch.of_call(call).step(call, bounds, True)
    except (ValueError, IndexError):
        check_row_values(row, tables)
        raise


def _span(channels: object) -> tuple[int, int]:
    """The pair (first, number) of channels."""
    pair = isinstance(channels, (tuple, list)) and len(channels) == 2
    if not pair or not all(is_whole(n) and n >= 0 for n in channels):  # type: ignore[attr-defined]
        raise MmfastError(
            f"channels is {channels!r}; it should be a pair (first, number) of ints, none negative, or None"
        )
    return channels[0], channels[1]  # type: ignore[index]
