"""Calls of the linear kernels for hypothesis to draw, what they should give in float64, and how to run them.

The truth here is written from the docstrings of reference.py, of which only the noise is used (test_cpu_noise.py
and test_noise.py compare that with numpy and plain integers).
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import torch
from flat import cpu, reference
from hypothesis import settings

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# More examples than usual where they are small, since there are many ways to lay tensors out; fewer where each is dear.
many, few = (settings(max_examples=max(1, int(share * settings().max_examples))) for share in (2.5, 0.5))
KEY = (-0x0123456789ABCDEF, 5)
SIZES = [5, 1, 2, 3, 8, 17, 33, 70]
MOST = 20_000  # elements: more than two items of a kernel's work
NOISE_ULPS = 4


def real(dtype):
    """The type of the arithmetic, and of the tables."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Problem:
    """The arguments that combine, step and squared_error share; tables by name, each [R] or [R, K]."""

    shape: list[int]
    dtype: torch.dtype
    terms: list[torch.Tensor]
    starts: list[int]
    tables: dict[str, torch.Tensor]
    rows: Any
    ids: torch.Tensor | None
    stream: int
    levels: tuple = ()  # and sigma is [R, L]

    @property
    def sigma(self):
        return self.tables["sigma"]

    @property
    def identity(self):
        """key, sample_ids, stream."""
        return KEY, self.ids, self.stream

    def own(self, name):
        """The table in float64, with a row for each sample."""
        table, batch = self.tables[name].double(), self.shape[0]
        if isinstance(self.rows, int):
            return torch.stack([table[self.rows]] * batch) if batch else table[:0]
        return table[torch.arange(batch) % len(table) if self.rows is None else self.rows]

    def noise(self):
        ids = torch.arange(self.shape[0]) if self.ids is None else self.ids
        return reference.noise(KEY, ids, self.stream, self.shape).double()


@st.composite
def shapes(draw):
    """Rank 1 to 5, at times empty, at most MOST elements."""
    shape = [draw(st.integers(1, 4)), *(draw(st.sampled_from(SIZES)) for _ in range(draw(st.sampled_from(range(5)))))]
    if draw(st.integers(0, 9)) == 9:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    while math.prod(shape) > MOST:
        shape[shape.index(max(shape))] = 2
    return shape


@st.composite
def problems(draw, tables, whole_first=False, levels=False):
    """A Problem whose tables, from name to how many columns more than terms (None: one number a row), are as asked.

    levels: with levels of the noise, from one to a level a channel.
    """
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    terms, starts = [], []
    for k in range(draw(st.integers(int(whole_first), 9))):  # the kernels keep 8 without asking for memory
        term, start = draw(broadcasting_term(shape, dtype, generator, whole_first and k == 0))
        terms.append(term)
        starts.append(start)
    kind = draw(st.sampled_from(["own", "one", "int", "tensor"]))
    count = {"own": shape[0], "one": 1}.get(kind, 3)
    rows = {"int": 1, "tensor": torch.randint(0, 3, [shape[0]], generator=generator)}.get(kind)
    made = {}
    for name, more in tables.items():
        table = torch.randn(count, 2 * (1 if more is None else len(terms) + more), generator=generator)
        table = torch.where(torch.rand(table.shape, generator=generator) < 0.2, 0.0, table).to(real(dtype))
        if kind == "int":
            table[[0, 2]] = math.nan  # rows that are not this call's
        table = table[:, ::2] if draw(st.booleans()) else table[:, : table.shape[1] // 2].contiguous()
        made[name] = table[:, 0] if more is None else table
    firsts = ()
    if levels:
        channels = shape[1] if len(shape) > 1 else 1
        more = draw(st.sets(st.integers(1, channels - 1), max_size=7)) if channels > 1 else ()
        firsts = (0, *sorted(more))
        sigma = torch.randn(count, len(firsts), generator=generator).to(real(dtype))
        made["sigma"] = torch.where(torch.rand(sigma.shape, generator=generator) < 0.2, 0.0, sigma)
    elif not draw(st.integers(0, 3)):
        made["sigma"] = None
    ids = draw(st.sampled_from([None, torch.randint(0, 2**48, [shape[0]], generator=generator)]))
    problem = Problem(shape, dtype, terms, starts, made, rows, ids, draw(st.integers(0, 65535)), firsts)
    for k, term in enumerate(terms):  # NaN where some coefficient is zero: it must stay out of that sum
        if term.shape[0] == shape[0] and term.numel() and term.stride(0) and draw(st.booleans()):
            for name, more in tables.items():
                if more is not None:
                    term[problem.own(name)[:, k] == 0] = math.nan
    return problem


@st.composite
def broadcasting_term(draw, shape, dtype, generator, whole):
    """A term of odd strides that broadcasts to the shape, or a block of its channels; its first channel."""
    size, start = [n if whole or draw(st.integers(0, 3)) else 1 for n in shape], -1
    if not whole and len(shape) > 1 and shape[1] > 0 and draw(st.booleans()):
        start = draw(st.integers(0, shape[1] - 1))
        size[1] = draw(st.integers(1, shape[1] - start))
    step = draw(st.sampled_from([1, 1, 2]))
    if math.prod(size) > 5000:
        step = 1
    term = torch.randn([n * step for n in size], generator=generator, dtype=torch.float64).to(dtype)
    term = term[tuple(slice(None, None, step) for _ in size)]
    how = draw(st.sampled_from(["as is", "transposed", "expanded"]))
    if how == "transposed" and len(shape) > 2:
        term = term.transpose(1, -1).contiguous().transpose(1, -1)
    if how == "expanded" and start < 0:
        term = term.expand(shape[0], *term.shape[1:])
    return term, start


# --- the truth ----------------------------------------------------------------------------------------------


def column(values, shape):
    """[B] -> [B, 1, ..., 1]."""
    return values.double().reshape([-1] + [1] * (len(shape) - 1))


def of_channels(values, problem):
    """[B], or [B, L] by the problem's levels -> [B, C, 1, ..., 1]: each channel has the value of the last level that
    begins at it or before."""
    if not problem.levels:
        return column(values, problem.shape)
    channels = problem.shape[1] if len(problem.shape) > 1 else 1
    level = [sum(first <= c for first in problem.levels) - 1 for c in range(channels)]
    values = values.double()[:, level]
    return values[:, 0] if len(problem.shape) == 1 else values.reshape(*values.shape, *[1] * (len(problem.shape) - 2))


def cover(term, start, shape):
    """The term in the whole space, in float64."""
    if start < 0:
        return term.double().expand(shape)
    whole = torch.zeros(shape, dtype=torch.float64)
    whole[:, start : start + term.size(1)] = term.double()
    return whole


def combination(problem, name):
    """sum_k table[b, k] term_k[b] in float64, and the sum of the sizes of its parts."""
    total = size = torch.zeros(problem.shape, dtype=torch.float64)
    coefs = problem.own(name)
    for k, (term, start) in enumerate(zip(problem.terms, problem.starts, strict=True)):
        coef = column(coefs[:, k], problem.shape)
        part = torch.where(coef == 0, 0.0, coef * cover(term, start, problem.shape))
        total, size = total + part, size + part.abs()
    return total, size


def noise_part(problem):
    """sigma eps, and the error that NOISE_ULPS of float32 make of it; zeros without noise."""
    if problem.sigma is None:
        return torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    part = of_channels(problem.own("sigma"), problem) * problem.noise()
    return part, NOISE_ULPS * 2.0**-23 * part.abs()


def rounding(want, dtype):
    """The error of rounding to dtype: half a unit in the last place, or of the subnormals."""
    info = torch.finfo(dtype)
    return info.eps / 2 * want.abs() + info.tiny * info.eps


def arithmetic_error(parts, size, dtype):
    """That of a sum of so many parts: a rounding a product and one an addition, none of more than `size`."""
    return 2 * (parts + 1) * 2.0 ** (-53 if dtype == torch.float64 else -24) * size


def close(found, want, bound):
    """Within the bound of the truth, and NaN where it is NaN."""
    assert found.shape == want.shape
    assert torch.equal(found.isnan(), want.isnan())
    excess = ((found.double() - want).abs() - bound).nan_to_num(-1.0)
    assert (excess <= 0).all(), f"off by {float(excess.max())} more than the bound"


# --- running ------------------------------------------------------------------------------------------------


def identical(a, b):
    """The same bits, any NaN being like another."""
    if a.dtype != b.dtype or not torch.equal(a.isnan(), b.isnan()):
        return False
    return torch.equal(a.nan_to_num(7).signbit(), b.nan_to_num(7).signbit()) and torch.equal(
        a.nan_to_num(7), b.nan_to_num(7)
    )


@contextlib.contextmanager
def poisoned():
    """New tensors come full of NaN (integers: of -1), so that an element which nobody writes is seen."""

    def fill(make):
        def made(*args, **options):
            x = make(*args, **options)
            return x.fill_(math.nan if x.is_floating_point() else -1)

        return made

    with (
        mock.patch.object(torch, "empty", fill(torch.empty)),
        mock.patch.object(torch, "empty_like", fill(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty)),
    ):
        yield


def everywhere(call, threads=(1, 2, 3, 7)):
    """The tensors that a call gives on every instruction set and number of threads: the same bits."""
    before, results = torch.get_num_threads(), []
    try:
        for isa in cpu.isas():
            cpu.set_isa(isa)
            for n in threads:
                torch.set_num_threads(n)
                with poisoned():
                    results.append(call())
    finally:
        cpu.set_isa(None)
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(identical(a, b) for a, b in zip(results[0], other, strict=True))
    return results[0]
