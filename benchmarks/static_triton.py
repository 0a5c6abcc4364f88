"""The machine code that Triton compiles from the kernels, analysed without a GPU.

Each op is called on tensors without data, and its launches are recorded instead of run. So the kernels compiled here
are those of real calls, down to what Triton knows about every argument. Loads and stores are counted in the SASS.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.gpu_static_types import Row
from mmfast.ops import autograd
from mmfast.ops.backends import triton as backend
from mmfast.ops.backends.triton import launch as triton_launch
from mmfast.ops.call import Block, Bounds, Call, Noise, Tables, Term, tensor_of

TARGETS = (80, 90, 100, 120)
DTYPES = (torch.float32, torch.bfloat16)
SHAPE = (128, 4, 64, 64)  # the typical case: a batch of latents


class Launch(NamedTuple):
    """One launch: a kernel, its warps, its arguments and its constants."""

    kernel: Any
    warps: int
    arguments: tuple[object, ...]
    constants: dict[str, object]


@contextlib.contextmanager
def noted() -> Iterator[list[Launch]]:
    """Record the launches of a with block instead of running them."""
    launches: list[Launch] = []

    def note(kernel: Any, programs: int, warps: int, *arguments: object, **constants: object) -> None:
        launches.append(Launch(kernel, warps, arguments, constants))

    real, triton_launch.launch = triton_launch.launch, note
    try:
        yield launches
    finally:
        triton_launch.launch = real


def compiled(launch: Launch, sm: int) -> Any:
    """The launch's kernel, compiled for sm_<sm> as the launch would compile it."""
    kernel, target = launch.kernel, GPUTarget("cuda", sm, 32)
    compiler = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, compiler)
    bound, specialization, options = bind(*launch.arguments, **launch.constants, num_warps=launch.warps)
    given = {**launch.constants, "num_warps": launch.warps}
    options, signature, constants, attributes = kernel._pack_args(compiler, given, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


class Case(NamedTuple):
    """A typical call of one op."""

    call: Callable[[torch.dtype], object]
    reads: float  # elements read and written for each element of the output
    writes: float
    note: str


def _terms(dtype: torch.dtype) -> list[Term]:
    """A tensor, one value per channel, and a block of the upper half of the channels."""
    B, C, H, W = SHAPE
    sizes = [(B, C, H, W), (B, C, 1, 1), (B, C // 2, H, W)]
    tensors = [torch.empty(size, dtype=dtype, device="meta") for size in sizes]
    return [tensors[0], tensors[1], Block(tensors[2], C // 2, C)]


def _cases() -> dict[str, Case]:
    B, C = SHAPE[:2]
    table, column = torch.empty(B, 8, device="meta"), torch.empty(B, device="meta")
    ids, key = torch.empty(B, dtype=torch.int64, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    noise = Noise(key, ids, 1)

    def combine(dtype: torch.dtype) -> object:
        tables = Tables(table[:, :3], column)
        return backend.combine(Call(_terms(dtype), tables, None, noise, SHAPE, dtype), True)

    def whole(dtype: torch.dtype) -> object:
        return backend.combine(Call(_terms(dtype)[:1] * 3, Tables(table[:, :3]), None, None, SHAPE, dtype), False)

    def step(dtype: torch.dtype) -> object:
        terms, tables = _terms(dtype), Tables(table[:, :5], column, table[:, :4])
        call = Call([terms[0], *terms], tables, None, noise, SHAPE, dtype)
        return backend.step(call, Bounds(-1.0, 1.0), False)

    def error(dtype: torch.dtype) -> object:
        terms, tables = _terms(dtype), Tables(table[:, :4], column, None, column)
        return backend.squared_error(Call([terms[0], *terms], tables, None, noise, SHAPE, dtype), 1.0, True)

    def gradient(dtype: torch.dtype, terms: list[Term], noise: Noise | None, needs: list[bool]) -> object:
        grad = tensor_of(_terms(dtype)[0])
        places = [(tensor_of(x).shape, x.start if isinstance(x, Block) else -1) for x in terms]
        call = Call(terms, Tables(table[:, : len(terms)]), None, noise, SHAPE, dtype)
        return autograd.combine_backward(backend, call, grad, places, needs)

    def coefs_gradient(dtype: torch.dtype) -> object:
        return gradient(dtype, _terms(dtype), None, [False] * 3 + [True, False])

    def sigma_gradient(dtype: torch.dtype) -> object:
        return gradient(dtype, [], noise, [False, True])

    def term_gradient(dtype: torch.dtype) -> object:
        return gradient(dtype, _terms(dtype)[1:2], None, [True, False, False])

    def words(dtype: torch.dtype) -> object:
        return backend.random_words(noise, B, 4096, torch.device("meta"))

    def mask(dtype: torch.dtype) -> object:
        return backend.block_mask(tensor_of(_terms(dtype)[0]), ids, noise, (8, 8), False)

    parts = "a tensor, one value a channel, half the channels"
    return {
        "combine": Case(combine, 1.5, 2, f"{parts}; noise made and returned"),
        "combine, no noise": Case(whole, 3, 1, "three tensors"),
        "step": Case(step, 2.5, 1, f"a tensor, {parts}; clamped, noise made"),
        "squared_error": Case(error, 2.5, 1, f"a tensor, {parts}; noise made, gradient"),
        "dots": Case(coefs_gradient, 2.5, 0, f"the gradient, {parts}"),
        "dots, noise": Case(sigma_gradient, 1, 0, "the gradient; noise made"),
        "row_sums": Case(term_gradient, 1, 0, "the gradient of one value a channel"),
        "random_words": Case(words, 0, 1, "int64"),
        "block_mask": Case(mask, 1, 1 + 1 / C, "blocks of 8 x 8"),
    }


def launches(dtypes: Sequence[torch.dtype] = DTYPES) -> dict[str, Launch]:
    """The first launch of every case with every type, by title. Later launches only add up partial sums."""
    found = {}
    for title, case in _cases().items():
        for dtype in dtypes[:1] if title == "random_words" else dtypes:
            with noted() as launches:
                case.call(dtype)
            name = "int64" if title == "random_words" else str(dtype).removeprefix("torch.")
            found[f"{title} {name}"] = launches[0]
    return found


def machine_code(cubin: bytes) -> tuple[str, int]:
    """The SASS of a kernel and its registers per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-sass", "-res-usage", file.name], capture_output=True, text=True, check=True)
    registers = re.search(r"REG:(\d+)", text.stdout + text.stderr)
    assert registers is not None
    return text.stdout, int(registers[1])


def widths(sass: str, instruction: str) -> list[int]:
    """The bits that each instruction of this kind (LDG, STG, LDL, STL) moves per thread."""
    found = re.findall(rf"\b{instruction}\.(\S+)", sass)
    bits = [re.search(r"\b(?:U|S)?(8|16|64|128|256)\b", modifiers) for modifiers in found]
    return [int(match[1]) if match else 32 for match in bits]


def rows(targets: Sequence[int | str] = TARGETS) -> list[Row]:
    """Every kernel compiled for every target (90, or "sm_90"), in float32 and bfloat16."""
    result = []
    cases = _cases()
    for title, launch in launches().items():
        op, _, dtype = title.rpartition(" ")
        size = getattr(torch, dtype).itemsize
        case = cases[op]
        least = size * (case.reads + case.writes)
        expects = tuple(name for name, count in (("loads", case.reads), ("stores", case.writes)) if count)
        for target in targets:
            sm = int(str(target).removeprefix("sm_"))
            sass, registers = machine_code(compiled(launch, sm).asm["cubin"])
            loads, stores = widths(sass, "LDG"), widths(sass, "STG")
            result.append(
                Row(
                    backend="triton",
                    kernel=title,
                    target=f"sm_{sm}",
                    registers=registers,
                    spills=sum(widths(sass, "LDL") + widths(sass, "STL")) // 8,
                    loads_128=sum(n >= 128 for n in loads),
                    stores_128=sum(n >= 128 for n in stores),
                    loads_narrow=sum(n < 128 for n in loads),
                    stores_narrow=sum(n < 128 for n in stores),
                    bytes_per_element=least,
                    least_bytes_per_element=least,
                    note=case.note,
                    expects=expects,
                )
            )
    return result
