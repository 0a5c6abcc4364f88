"""Check the arguments of the public ops and convert them to the form that the backends take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.ops.around import in_memory, transformed, watched
from mmfast.ops.call import Block, Rows, Tables, Term
from mmfast.schedule import Schedule

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Encodings = Mapping[str, Term] | Sequence[Term]
Seed = int | Tensor | None


def gather(
    terms: Sequence[Term], like_first: bool = False, what: str = "terms"
) -> tuple[list[Term], list[int], torch.dtype]:
    """Bring the terms to one rank and type; returns them with their common shape and type.

    With like_first, all must broadcast to the shape of the first. Raises MmfastError naming the term.
    """
    if isinstance(terms, Tensor) or not isinstance(terms, Sequence):
        raise MmfastError(f"{what} is a {type(terms).__name__}; it should be a list of tensors or Blocks")
    tensors, shapes = [], []
    for i, term in enumerate(terms):
        tensor = term.tensor if isinstance(term, Block) else term
        name = _name(what, i)
        _check_tensor(name, tensor)
        size = list(tensor.shape)
        if isinstance(term, Block):
            start, channels = term.start, term.channels
            numbers = is_whole(start) and is_whole(channels)
            if not numbers or tensor.dim() < 2 or start < 0 or start + tensor.shape[1] > channels:
                raise MmfastError(
                    f"{name} is a Block of shape {size} from channel {start} of {channels}; it should be "
                    "[B, c, ...] with start + c within the channels"
                )
            size[1] = channels
        tensors.append(tensor)
        shapes.append(size)
    shape = _common_shape(shapes, like_first, what)
    rank = len(shape)
    for i, tensor in enumerate(tensors):
        if tensor.dim() != rank:
            if isinstance(terms[i], Block):
                raise MmfastError(f"{_name(what, i)} is a Block of rank {tensor.dim()}, not {rank}")
            tensors[i] = tensor[(None,) * (rank - tensor.dim())]
    dtype = tensors[0].dtype if tensors else torch.float32
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    for i, tensor in enumerate(tensors):
        if tensor.device != tensors[0].device:
            raise MmfastError(
                f"{_name(what, i)} is on {tensor.device}; it should be on {tensors[0].device} with the rest"
            )
    found: list[Term] = []
    for term, tensor in zip(terms, tensors, strict=True):
        tensor = in_memory(tensor.to(dtype))
        found.append(Block(tensor, term.start, term.channels) if isinstance(term, Block) else tensor)
    return found, shape, dtype


def _name(what: str, i: int) -> str:
    """The name of term i in an error: for "z_t, eps, encodings" it is z_t, eps, encodings[0], encodings[1], ..."""
    *first, rest = what.split(", ")
    return first[i] if i < len(first) else f"{rest}[{i - len(first)}]"


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise MmfastError(f"{name} is a {type(tensor).__name__}; it should be a tensor or a mmfast.ops.Block")
    if tensor.dtype not in FLOATS:
        raise MmfastError(f"{name} is {tensor.dtype}; it should be float32, float64, bfloat16 or float16")
    _check_dense(name, tensor)


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise MmfastError(f"{name} is a tensor of layout {tensor.layout}; it should be a dense one, of torch.strided")


def _common_shape(shapes: list[list[int]], like_first: bool, what: str) -> list[int]:
    if not shapes:
        return []
    if all(size == shapes[0] for size in shapes):
        return shapes[0]
    # torch's own knows symbolic sizes; it imports sympy, which takes a second, and is ten times as slow.
    known = not torch.compiler.is_compiling() and all(type(n) is int for size in shapes for n in size)
    try:
        shape = list(np.broadcast_shapes(*map(tuple, shapes)) if known else torch.broadcast_shapes(*shapes))
    except (ValueError, RuntimeError):
        raise MmfastError(f"{what} have shapes {shapes}, which do not broadcast together") from None
    if like_first and shape != shapes[0]:
        raise MmfastError(f"{what} have shapes {shapes}; each should broadcast to the first, {shapes[0]}")
    return shape


def select(encodings: Encodings, sched: Schedule) -> tuple[tuple[str, ...], list[Term]]:
    """The names and terms of the encodings given; a sequence is in the order of sched.names."""
    if not isinstance(sched, Schedule):
        raise MmfastError(f"sched is a {type(sched).__name__}; it should be a mmfast.Schedule")
    if isinstance(encodings, Mapping):
        names = tuple(encodings)
        if names == sched.names:
            return names, list(encodings.values())
        for name in names:
            if name not in sched.names:
                raise unknown("encodings' modality", name, sched.names)
        return names, list(encodings.values())
    if isinstance(encodings, Tensor) or not isinstance(encodings, Sequence):
        raise MmfastError(f"encodings is a {type(encodings).__name__}; it should be a dict by modality, or a list")
    if len(encodings) != len(sched.names):
        raise MmfastError(
            f"encodings has {len(encodings)} tensors; the schedule has weights for {len(sched.names)} modalities "
            f"({', '.join(sched.names) or 'none'}): name them in a dict to give a subset"
        )
    return sched.names, list(encodings)


def check_count(shape: Sequence[int]) -> None:
    """Raise MmfastError if the product of the nonzero sizes is too large for torch to count in bytes."""
    if not torch.compiler.is_compiling() and math.prod([n or 1 for n in shape]) >= 1 << 59:
        raise MmfastError(f"shape is {shape!r}; it should have fewer than 2^59 numbers, sizes of 0 aside")


def is_whole(value: object, symbolic: bool = False) -> TypeGuard[int]:
    """Whether the value is an int, or with `symbolic` a torch.SymInt. True and False do not count."""
    return isinstance(value, (int, torch.SymInt) if symbolic else int) and not isinstance(value, bool)


def flag(name: str, value: object) -> bool:
    """Convert a flag to bool. Raises MmfastError for other types: the truth value of a tensor may be undefined."""
    if not isinstance(value, (bool, int)):
        raise MmfastError(f"{name} is a {type(value).__name__}; it should be True or False")
    return bool(value)


def device_of(device: object) -> torch.device:
    """Convert to a torch.device. Raises MmfastError if that fails, and for cuda if torch finds no GPU."""
    try:
        found = torch.device(device)  # type: ignore[call-overload]
    except (TypeError, RuntimeError, ValueError):
        raise MmfastError(f"device is {device!r}; it should be a torch.device, or the name of one") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MmfastError(f"device is {device!r}, but torch finds no GPU; it should be cpu")
    return found


def check_batch(name: str, values: object, batch: int) -> None:
    """Raise MmfastError for a [B] tensor of another length; ints and 0-dimensional tensors fit any batch."""
    if isinstance(values, Tensor) and values.dim() and values.shape[0] != batch:
        raise MmfastError(f"{name} has {values.shape[0]} entries; it should have {batch}, one a sample")


def check_given(noise: object, shape: Sequence[int]) -> None:
    _check_tensor("noise", noise)
    if isinstance(noise, Tensor) and list(noise.shape) != list(shape):
        raise MmfastError(f"noise has shape {list(noise.shape)}; it should be that of z0, {list(shape)}")


def check_coefs(name: str, coefs: object, shape: tuple[int, ...]) -> None:
    """Raise MmfastError unless coefs is a real tensor of this shape; the first size may also be 1."""
    table = _real(name, coefs, list(shape))
    if table.dim() != len(shape) or table.shape[1:] != shape[1:] or table.shape[0] not in (1, shape[0]):
        raise MmfastError(f"{name} has shape {list(table.shape)}; it should be {list(shape)}, a row a sample")


def check_tables(tables: Sequence[tuple[str, object, tuple[int, ...]]], rows: object, batch: int) -> None:
    """Check tables, given as (name, table, sizes of a row), and then the rows. Raises MmfastError.

    Without rows, each table has one row per sample or one for all. With rows, all have as many rows as the first.
    """
    count = None
    for name, table, sizes in tables:
        if rows is None:
            check_coefs(name, table, (batch, *sizes))
            continue
        found = _real(name, table, ["R", *sizes])
        if found.dim() != 1 + len(sizes) or found.shape[1:] != sizes:
            raise MmfastError(f"{name} has shape {list(found.shape)}; it should be {_listed(['R', *sizes])}, with rows")
        if count is not None and found.shape[0] != count:
            raise MmfastError(f"{name} has {found.shape[0]} rows; it should have {count}, as {tables[0][0]} has")
        count = found.shape[0]
    if count is not None:
        _check_rows(rows, count, batch, tables[0][1].device)  # type: ignore[attr-defined]


def _real(name: str, table: object, shape: Sequence[object]) -> Tensor:
    if not isinstance(table, Tensor) or table.is_complex():
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise MmfastError(f"{name} is {kind}; it should be a tensor of real numbers {_listed(shape)}")
    _check_dense(name, table)
    return table


def _listed(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_device(device: torch.device, terms: Sequence[Term], *tables: Tensor | None) -> None:
    """Raise MmfastError unless everything is on the coefficients' device; the kernels do not check addresses."""
    for term in (*terms, *tables):
        x = term.tensor if isinstance(term, Block) else term
        if x is not None and x.device != device:
            raise MmfastError(
                f"a tensor is on {x.device}, but the coefficients (coefs or sched) are on {device}; move them together"
            )


def _check_rows(rows: object, count: int, batch: int, device: torch.device) -> None:
    if isinstance(rows, Tensor):
        if rows.dtype != torch.int64 or rows.shape != (batch,) or not rows.is_contiguous():
            raise MmfastError(
                f"rows is {rows.dtype} {list(rows.shape)}; it should be an int or a whole int64 [{batch}]"
            )
        if rows.device != device:
            raise MmfastError(f"rows is on {rows.device}; it should be on {device} with the tables")
    elif not is_whole(rows) or not 0 <= rows < count:
        raise MmfastError(f"rows is {rows!r}; it should be an int in 0 .. {count - 1}, or int64 [{batch}]")


def check_row_values(rows: Rows, tables: Tables) -> None:
    """Raise MmfastError for a row that a kernel rejected: one outside the tables, or one that begins with NaN."""
    if rows is None or transformed() or watched():  # the values cannot be read
        return
    process.check_time("rows", rows, 0, len(tables.coefs) - 1)
    for table in (tables.coefs, tables.to_x0):
        if table is not None and bool(table[rows][..., :1].isnan().any()):
            raise MmfastError("rows names a row of the tables that begins with NaN; it should hold numbers")


def check_present(present: Tensor, batch: int, modalities: int, device: torch.device) -> None:
    if not isinstance(present, Tensor):
        raise MmfastError(f"present is a {type(present).__name__}; it should be a tensor [{batch}, {modalities}]")
    _check_dense("present", present)
    if present.dim() != 2 or present.shape[1] != modalities or present.shape[0] not in (1, batch):
        raise MmfastError(f"present has shape {list(present.shape)}; it should be [{batch}, {modalities}]")
    if present.device != device:
        raise MmfastError(f"present is on {present.device}; it should be on {device} with the terms")
