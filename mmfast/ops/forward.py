"""The forward process and the diffusion loss: `q_sample` and `diffusion_loss`, each in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from torch import Tensor

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.keywords import filled, shows
from mmfast.ops import block_times, dispatch
from mmfast.ops.around import in_memory
from mmfast.ops.call import Call, GivenNoise, Rows, Tables, Term, arithmetic
from mmfast.ops.checks import (
    Encodings,
    check_batch,
    check_coefs,
    check_device,
    check_given,
    check_present,
    flag,
    gather,
    select,
)
from mmfast.ops.identity import IDENTITY, Identity, noise_from, noise_of
from mmfast.ops.noise_checks import check_noise
from mmfast.ops.tables import Error, Marginal, find, kept, kept_present, made_once, own_rows
from mmfast.process import TARGETS, Time
from mmfast.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MARGINAL, _MARGINAL_GIVEN = Marginal(noise_given=False), Marginal(noise_given=True)


# fmt: off
@overload
def q_sample(z0: Term, encodings: Encodings, t: Time, sched: Schedule, *, noise: Tensor | None = ...,
             present: Tensor | None = ..., return_noise: Literal[True] = ...,
             **identity: Unpack[Identity]) -> tuple[Tensor, Tensor]: ...
@overload
def q_sample(z0: Term, encodings: Encodings, t: Time, sched: Schedule, *, noise: Tensor | None = ...,
             present: Tensor | None = ..., return_noise: Literal[False],
             **identity: Unpack[Identity]) -> Tensor: ...
# fmt: on
@shows(Identity, IDENTITY)
def q_sample(
    z0: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    *,
    noise: Tensor | None = None,
    present: Tensor | None = None,
    return_noise: bool = True,
    **identity: Unpack[Identity],
) -> Tensor | tuple[Tensor, Tensor]:
    """Sample z_t ~ q(z_t | z_0, X) = N(sqrt(abar_t) z_0 + sum_i W_t^(i) E_i(x_i), (1 - abar_t) I), in one pass.

    Args:
        z0: the anchor in the diffusion space, [B, ...] (or a `Block` of it, zero elsewhere).
        encodings: a dict by modality name (or a sequence in the order of sched.names); each broadcasts to z0 or is a
            `Block`. A modality that is left out counts as missing.
        t: int or int64 [B], in 0 .. T. Or int64 [B, 1 + M], a time for z0 followed by one for each of the M encodings:
            z0 and the encodings are then `Block`s that cover every channel exactly once, and block i has time t_i.
        seed, sample_ids, stream, draw: the identity of the noise (see `randn`).
        noise: eps itself, instead of an identity.
        present: bool or float [B, N], in the order of `encodings`: zero where a sample lacks a modality, whose
            encoding is then not read.
        return_noise: whether to return eps too. If False, eps is never written to memory; its identity regenerates it
            (`diffusion_loss`, `randn`).

    Returns z_t and the eps that produced it; `noise`, if given, is returned without a copy if it has z_t's dtype.
    Raises MmfastError naming the argument at fault.
    """
    if type(return_noise) is not bool:
        return_noise = flag("return_noise", return_noise)
    marginal = _MARGINAL if noise is None else _MARGINAL_GIVEN
    given: GivenNoise | None = noise_of("q_sample", identity) if noise is None or identity else None
    if noise is not None:  # an identity, if any, was only checked for misspelt keywords
        given = None
    return_eps = return_noise and noise is None
    own_times = block_times.by_block(t)
    known = kept(marginal, tuple(encodings), sched) if type(encodings) is dict else None
    if known is not None:
        usual: list[Term] = [z0, *encodings.values()]  # type: ignore[union-attr]
        found: tuple[Tables, Rows, GivenNoise | None] | None = (known, t, given)
        done = None
        if own_times:
            by_level = block_times.kept_rows(usual, given) if present is None else None
            if by_level is not None:
                done = dispatch.at_once("combine", usual, known, t, by_level, return_eps, False)
            if done is None:
                found = block_times.kept_marginal(known, usual, t, given, present)  # type: ignore[arg-type]
        elif present is not None:
            found = kept_present(known, usual, t, given, present)
        if noise is not None:
            usual.append(noise)
        if done is None and found is not None:
            done = dispatch.at_once("combine", usual, *found, return_eps, noise is not None)
        if done is not None:
            return (done[0], done[1] if noise is None else noise) if return_noise else done[0]
    names, encoded = select(encodings, sched)
    terms, shape, dtype = gather([z0, *encoded], like_first=True, what="z0, encodings")
    batch = shape or [1]
    if not shape:
        terms = [x.reshape(1) for x in terms]  # type: ignore[union-attr]
    blocks, rows = None, None
    if own_times:
        tables, blocks = block_times.marginal(marginal, sched, names, t, terms, batch)
    else:
        check_batch("t", t, batch[0])
        tables, rows = find(marginal, sched, names, (t, None), arithmetic(dtype), batch[0])
    if present is not None:
        check_present(present, batch[0], len(names), tables.coefs.device)
        if blocks is None:
            process.check_time("t", t, 0, sched.T)  # torch selects the rows here, without checking for NaN
        tables, rows = tables.own(rows, batch[0]).only_present(present, 1), None
    made = None
    if given is not None:
        made = check_noise(given, batch[0], tables.coefs.device)
        made = made if blocks is None else made.with_levels(blocks.levels)
    else:
        check_given(noise, shape)
        assert noise is not None
        noise = noise.to(dtype)
        last = in_memory(noise.reshape(batch))
        terms = [*terms, last] if blocks is None else [*terms, *blocks.of(last)]
    check_device(tables.coefs.device, terms)
    call = Call(terms, tables, rows, made, batch, dtype)
    try:
        z, eps = dispatch.of_call(call).combine(call, return_eps)
    except (ValueError, IndexError):  # from a row of the tables
        if blocks is None:
            process.check_time("t", t, 0, sched.T)
        raise
    if not shape:
        z, eps = z.reshape(()), eps.reshape(()) if return_eps else eps
    return (z, eps if noise is None else noise) if return_noise else z


class LossOptions(Identity, total=False):
    """The keywords of `diffusion_loss`; see there."""

    target: str
    min_snr_gamma: float | None
    sample_weight: Tensor | None
    reduction: Literal["mean", "none"]


LOSS: LossOptions = {"target": "eps", "min_snr_gamma": None, "sample_weight": None, "reduction": "mean", **IDENTITY}


@shows(LossOptions, LOSS)
def diffusion_loss(
    prediction: Tensor,
    z0: Tensor,
    t: Time,
    sched: Schedule,
    *,
    noise: Tensor | None = None,
    fused: bool = True,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Compute the simple loss weight_t |prediction - target|^2, averaged over each sample's elements, in one pass.

    The target is eps, x0 or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0, computed inside the op. The same pass computes
    the gradient for the prediction, and saves nothing else for the backward pass. The sum does not depend on the number
    of threads. Gradients for other arguments, and second ones (which need fused=False), go through differentiable ops.

    Args:
        prediction, z0: [B, ...] of the same shape.
        t: int or int64 [B], in 0 .. T.
        noise: the eps that produced z_t. Or leave it out and give its identity, from which it is regenerated:
        seed, sample_ids, stream, draw: as given to `q_sample` (z0 being the first channels of its space).
        fused: False for a loss that can be differentiated twice.
        target: what the network predicts, "eps" (the default), "x0" or "v".
        min_snr_gamma: weight the steps by min-SNR-gamma (Hang et al., 2023); None for a weight of 1.
        sample_weight: [B], for instance zero for samples that should not count.
        reduction: "mean" for the mean over the batch, a scalar; "none" for [B].

    Raises MmfastError naming the argument at fault.
    """
    if type(fused) is not bool:
        fused = flag("fused", fused)
    chosen = filled("diffusion_loss", LOSS, options)
    target, gamma = chosen["target"], chosen["min_snr_gamma"]
    sample_weight, reduction = chosen["sample_weight"], chosen["reduction"]
    if not isinstance(target, str) or target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if not isinstance(sched, Schedule):
        raise MmfastError(f"sched is a {type(sched).__name__}; it should be a mmfast.Schedule")
    if gamma is not None and (not isinstance(gamma, (int, float)) or not 0 < gamma < 1e300):
        raise MmfastError(f"min_snr_gamma is {gamma!r}; it should be a positive, finite number or None")
    if reduction not in ("mean", "none"):
        raise unknown("reduction", reduction, ("mean", "none"))
    if noise is None and chosen["seed"] is None:
        raise MmfastError("noise and seed are both None; diffusion_loss needs the noise of z_t, or its seed and ids")
    given = [prediction, z0] if noise is None else [prediction, z0, noise]
    identity = noise_from(chosen) if noise is None else None
    error = made_once(Error, target, None if gamma is None else float(gamma), noise is not None)
    known = kept(error, sched.names, sched)
    if known is not None and fused:
        found = _at_once(given, known, t, identity, sample_weight, reduction)
        if found is not None:
            return found
    what = ["prediction", "z0", "noise"][: len(given)]
    terms, shape, dtype = gather(given, like_first=True, what=", ".join(what))
    for name, x in zip(what, given, strict=True):
        if not isinstance(x, Tensor) or list(x.shape) != list(shape) or not shape:
            kind = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise MmfastError(f"{name} is {kind}; it should be a tensor of prediction's shape, [B, ...]")
    batch = shape[0]
    check_batch("t", t, batch)
    tables, rows = find(error, sched, sched.names, (t, None), arithmetic(dtype), batch)
    made = None if identity is None else check_noise(identity, batch, tables.coefs.device)
    check_device(tables.coefs.device, terms)
    if sample_weight is not None:
        check_coefs("sample_weight", sample_weight, (batch,))
        check_device(tables.coefs.device, [], sample_weight)
        process.check_time("t", t, 0, sched.T)  # torch selects the rows here, without checking for NaN
        tables, rows = _weighted(tables.own(rows, batch), sample_weight), None
    call = Call(terms, tables, rows, made, shape, dtype)
    try:
        loss = dispatch.squared_error(call, _scale(shape, reduction), fused)
    except (ValueError, IndexError):
        process.check_time("t", t, 0, sched.T)
        raise
    return loss.sum() if reduction == "mean" else loss


def _scale(shape: Sequence[int], reduction: str) -> float:
    """The factor that turns a sum over a sample's elements (and, for "mean", over the batch) into a mean."""
    scale = 1 / max(1, math.prod(shape[1:]))
    return scale / max(1, shape[0]) if reduction == "mean" else scale


def _weighted(tables: Tables, sample_weight: Tensor) -> Tables:
    assert tables.weight is not None  # the tables of an Error have one
    return Tables(*tables[:3], (tables.weight * sample_weight).to(tables.weight.dtype))


def _at_once(
    terms: Sequence[Term],
    tables: Tables,
    t: Time,
    identity: GivenNoise | None,
    sample_weight: Tensor | None,
    reduction: Literal["mean", "none"],
) -> Tensor | None:
    """The loss by the extension; None in an unusual case."""
    prediction: Term = terms[0]
    rows: Rows = t
    if not isinstance(prediction, Tensor) or not prediction.dim():
        return None
    shape = prediction.shape
    if sample_weight is not None:
        if type(sample_weight) is not Tensor or sample_weight.shape != shape[:1]:
            return None
        if not own_rows(tables, t, len(sample_weight)):
            return None
        try:
            tables, rows = _weighted(tables.own(t, len(sample_weight)), sample_weight), None
        except (IndexError, RuntimeError, TypeError):  # the checks will report it with the argument's name
            return None
    found = dispatch.at_once("squared_error", terms, tables, rows, identity, _scale(shape, reduction), False)
    if found is None:
        return None
    return found[0].sum() if reduction == "mean" else found[0]
