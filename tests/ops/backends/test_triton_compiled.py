"""The Triton kernels compiled ahead of time, for GPUs that need not be there."""

import inspect
import pathlib
import sys

import pytest
import torch

pytest.importorskip("triton")
sys.path.append(str(pathlib.Path(__file__).parents[3]))
from flat import Flat

from mmfast.ops.call import Call, Noise, Tables

static = pytest.importorskip("benchmarks.static_triton")

BINDS = len(inspect.signature(static.create_function_from_signature).parameters) == 3
pytestmark = [
    pytest.mark.skipif(static.triton_launch.interpreted, reason="TRITON_INTERPRET=1: nothing is compiled"),
    pytest.mark.skipif(not BINDS, reason="this triton has another way to compile ahead of time, as 3.0 has"),
]
META = torch.device("meta")


def check(launch, target):
    """Compiled, with no spills, and with loads and stores of 128 bits wherever there is more than a value to move."""
    sass, _ = static.machine_code(static.compiled(launch, target).asm["cubin"])
    assert not static.widths(sass, "LDL") and not static.widths(sass, "STL"), "spills"
    name = launch.kernel.__name__
    if name != "random_words":
        assert max(static.widths(sass, "LDG")) >= 128
    if name not in ("dots", "row_sums"):
        assert max(static.widths(sass, "STG")) >= 128


@pytest.mark.slow
@pytest.mark.parametrize("target", static.TARGETS)
def test_every_kernel_compiles(target):
    found = static.launches([torch.float32])
    kernels = static.triton_launch.kernels
    expected = {"combine", "step", "squared_error", "dots", "row_sums", "random_words", "block_mask"}
    assert {launch.kernel.__name__ for launch in found.values()} == expected
    assert all(hasattr(kernels, name) for name in expected)
    for launch in found.values():
        check(launch, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", static.TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_kernel_compiles_for_other_types(dtype, target):
    for launch in static.launches([dtype]).values():
        check(launch, target)


def table(dtype, *shape):
    return torch.empty(shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=META)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_many_terms_do_not_spill(dtype):
    """As many terms as run fused."""
    shape, K = [64, 4, 32, 32], static.backend.max_terms
    x, sigma, key = [torch.empty(shape, dtype=dtype, device=META)] * K, table(dtype, 64), (1, 2)
    rest = None, key, None, 0, shape, dtype
    coefs, starts = table(dtype, 64, K), [-1] * K
    backend = Flat(static.backend)
    with static.noted() as launches:
        backend.combine(x, starts, coefs, sigma, *rest, True)
        bounds = None, -1.0, 1.0, 1, 2, key, None, 0, shape, dtype, True
        backend.step(x, starts, coefs, table(dtype, 64, K + 1), sigma, *bounds)
        backend.squared_error(x, starts, coefs, sigma, sigma, *rest, 1.0, True)
        backend.combine_backward(x[0], x, starts, coefs, sigma, key, None, 0, [False] * K + [True, True])
    for launch in launches:
        sass, _ = static.machine_code(static.compiled(launch, 90).asm["cubin"])
        assert not static.widths(sass, "LDL") and not static.widths(sass, "STL"), launch.kernel.__name__


@pytest.mark.slow
def test_levels_of_the_noise_do_not_spill():
    """combine, step and squared_error with a scale of the noise for each of four blocks."""
    shape, dtype, levels, backend = [64, 8, 32, 32], torch.float32, (0, 1, 3, 4), Flat(static.backend)
    terms, starts = [torch.empty(shape, device=META), torch.empty(64, 3, 32, 32, device=META)], [-1, 1]
    rest = None, (1, 2), None, 0, shape, dtype
    sigma, coefs = table(dtype, 64, 4), table(dtype, 64, 2)
    with static.noted() as launches:
        backend.combine(terms, starts, coefs, sigma, *rest, True, levels=levels)
        backend.step(
            terms, starts, coefs, table(dtype, 64, 3), sigma, None, -1.0, 1.0, 0, 1, *rest[1:], True, levels=levels
        )
        backend.squared_error(terms, starts, coefs, sigma, table(dtype, 64), *rest, 1.0, True, levels=levels)
    assert {launch.kernel.__name__ for launch in launches} == {"combine", "step", "squared_error", "row_sums"}
    for launch in launches:
        if launch.kernel.__name__ != "row_sums":  # of one number a row
            check(launch, 90)


@pytest.mark.slow
def test_arithmetic_is_rounded_as_ieee_says():
    """What the bits of the noise rest on: fused multiply-adds, a correctly rounded root, subnormals kept."""
    ptx = static.compiled(static.launches([torch.float32])["combine float32"], 90).asm["ptx"]
    assert "fma.rn.f32" in ptx and "sqrt.rn.f32" in ptx and "mul.wide.u32" in ptx
    assert ".ftz" not in ptx and ".approx" not in ptx


def sources(call):
    """What Triton would look up its compiled kernels by, for the launches of a call."""
    with static.noted() as launches:
        call()
    return [static.compiled(launch, 90).hash for launch in launches]


def test_seeds_and_draws_share_one_kernel():
    """Numbers that Triton would treat apart (1, and those divisible by 16) must not compile another kernel."""
    shape, dtype, none = [2, 64], torch.float32, table(torch.float32, 1, 0)

    def call(key, stream):
        tables, noise = Tables(none, table(dtype, 1)), Noise(key, None, stream)
        static.backend.combine(Call([], tables, None, noise, shape, dtype), True)

    keys = [(1, 1), (16, 0), (2**63 - 1, 2**32 - 1), (-1, 3)]
    found = [sources(lambda key=key, stream=stream: call(key, stream)) for key in keys for stream in (0, 1)]
    assert all(hashes == found[0] for hashes in found)
