"""The short way into C++ takes nothing that the checks would refuse, and treats nothing otherwise."""

import contextlib
import ctypes
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cuda_on_host import compiler
from mmfast import MmfastError, Schedule, bridge, ops
from mmfast.ops import Block, Tables, dispatch

SIDES = st.one_of(st.integers(1, 8), st.tuples(st.integers(1, 8), st.integers(1, 8)))
S = Schedule.cosine(10, {"a": bridge(1.0)})
Z, A, N, T = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1, 2, 3, 4])


@pytest.fixture(autouse=True, scope="module")
def kept():
    """Every table is kept: from now on the short way is tried."""
    ops.q_sample(Z, {"a": A}, T, S), ops.q_sample(Z, {}, T, S), ops.q_sample(Z, {"a": A}, T, S, noise=N)
    ops.diffusion_loss(Z, A, T, S, noise=N), ops.step(Z, N, {"a": A}, 3, S)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.q_sample(Z, {"a": A}, T, S, noise=N[:1]),
        lambda: ops.q_sample(Z, {"a": A}, T, S, noise=Block(N, 0, 3)),
        lambda: ops.diffusion_loss(Z, A, T, S, noise=N[:1]),
        lambda: ops.diffusion_loss(Z, A, T, S, noise=N[:, :1]),
        lambda: ops.diffusion_loss(Z, A, T, S, noise=Block(N[:, :1], 0, 3)),
        lambda: ops.diffusion_loss(Z, A, -2, S, noise=N, sample_weight=torch.ones(4)),
        lambda: ops.diffusion_loss(Z, A, T[:1], S, noise=N, sample_weight=torch.ones(4)),
        lambda: ops.q_sample(Z, {"a": A}, -2, S, present=torch.ones(4, 1)),
        lambda: ops.q_sample(Z, {"a": A}, T[:1], S, present=torch.ones(1, 1)),
        lambda: ops.q_sample(Z, ("a",), T, S),
        lambda: ops.step(Z, N, ("a",), 3, S),
        lambda: ops.step(Z, N, {"a": A}, 0, S),
        lambda: ops.combine([Z], None),
        lambda: ops.combine([Z], torch.ones(5, 1), torch.ones(1), rows=0),
        lambda: ops.combine([Z], torch.ones(1, 1), torch.ones(5), rows=T - T),
        lambda: ops.step_by_table([Z], Tables(None, None, torch.ones(4, 1))),
    ],
)
def test_what_the_checks_refuse_is_refused(call):
    with pytest.raises(MmfastError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.combine([(A, 0, 3)], torch.ones(4, 1)),
        lambda: ops.combine([Z, (A[:, :1], 0, 3)], torch.ones(4, 2)),
        lambda: ops.multimodal_mean([(A, 0, 3)], torch.ones(4, 1)),
        lambda: ops.q_sample(Z, {"a": (A, 0, 3)}, T, S),
        lambda: ops.step((Z, 0, 3), N, {"a": A}, 3, S),
        lambda: ops.step_by_table([Z, (A, 0, 3)], Tables(torch.ones(4, 3), None, torch.ones(4, 2))),
    ],
)
def test_a_tuple_is_no_block(call):
    with pytest.raises(MmfastError, match=r"is a tuple; it should be a tensor or a .*Block"):
        call()


USUAL = {
    "q_sample": lambda: ops.q_sample(Z, {"a": A}, T, S),
    "q_sample, the noise given": lambda: ops.q_sample(Z, {"a": A}, T, S, noise=N),
    "q_sample, of some": lambda: ops.q_sample(Z, {"a": A}, T, S, present=torch.ones(4, 1)),
    "loss": lambda: ops.diffusion_loss(Z, A, T, S, noise=N),
    "loss, the noise made again": lambda: ops.diffusion_loss(Z, A, T, S, seed=3),
    "loss, weighted": lambda: ops.diffusion_loss(Z, A, T, S, noise=N, sample_weight=torch.ones(4)),
    "posterior_mean": lambda: ops.posterior_mean(Z, N, {"a": A}, T, S),
    "posterior_sample": lambda: ops.posterior_sample(Z, N, {"a": A}, T, S, seed=3),
    "posterior_sample, clamped": lambda: ops.posterior_sample(Z, N, {"a": A}, 3, S, clamp=1.0),
    "step": lambda: ops.step(Z, N, {"a": A}, T, S, sample_ids=T),
    "step, deterministic": lambda: ops.step(Z, N, {"a": A}, 3, S, target="x0", eta=0.0),
    "step, guided": lambda: ops.step(Z, N, {}, 3, S, unconditional=A, guidance_scale=2.0),
    "combine": lambda: ops.combine([Z, A], torch.ones(4, 2), torch.ones(4), return_noise=True),
    "multimodal_mean": lambda: ops.multimodal_mean({"a": A, "b": Z}, torch.ones(1, 2)),
    "step_by_table": lambda: ops.step_by_table([Z], Tables(torch.ones(4, 2), None, torch.ones(4, 1)), T - T),
    "randn": lambda: ops.randn([2, 3]),
    "block_mask": lambda: ops.block_mask(Z.reshape(1, 1, 4, 3), 0.5, 1),
    "block_mask, each block on its own": lambda: ops.block_mask(Z.reshape(1, 1, 4, 3), 0.5, 1, exact=False),
    "block_mask, sides in a list": lambda: ops.block_mask(Z.reshape(1, 1, 4, 3), 0.5, [1, 2]),
    "block_mask, a ratio for each": lambda: ops.block_mask(Z.reshape(2, 1, 2, 3), torch.tensor([0.1, 0.5]), 1),
}


LOOKS = isinstance(ops.backends.look("combine", [Z], Tables(torch.ones(4, 1)), None, None, False, False), tuple)


@pytest.mark.skipif(not LOOKS, reason="the extension cannot look for itself with this torch, or there is none")
@pytest.mark.parametrize("name", USUAL)
def test_usual_calls_take_the_short_way(name, monkeypatch):
    def checked(*args):
        raise AssertionError("the long way")

    USUAL[name]()  # its tables are kept from here on
    monkeypatch.setattr(dispatch, "choose", checked)
    monkeypatch.setattr(dispatch, "of_call", checked)
    monkeypatch.setattr(dispatch, "squared_error", checked)
    USUAL[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [[3], [2, 5_000], (2, 3, 4), range(2, 4), [0, 3], [2, 0], []], ids=str)
def test_noise_alone_has_the_same_bits_by_either_way(shape, dtype):
    """And lies contiguous, without a gradient."""
    options = {"seed": 2**40, "stream": 5, "draw": 3, "dtype": dtype}
    found = ops.randn(shape, **options)
    with ops.backend("cpu"):
        wanted = ops.randn(shape, **options)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    assert (
        found.shape == wanted.shape == (*shape,)
        and found.dtype == dtype
        and found.is_contiguous()
        and not found.requires_grad
    )
    assert torch.equal(found.view(bits), wanted.view(bits))


# Each is given back by the extension for another reason, and then served by the long way.
GIVEN_BACK = {
    "times of another type": lambda x, a: ops.q_sample(x, {"a": a}, T.int(), S, seed=1),
    "a time of no dimension": lambda x, a: ops.step(x, x, {"a": a}, torch.tensor(3), S),
    "times that lie apart": lambda x, a: ops.q_sample(x, {"a": a}, torch.arange(1, 9)[::2], S, seed=1),
    "terms of two types": lambda x, a: ops.q_sample(x, {"a": a.bfloat16()}, T, S, seed=1),
    "terms that do not fit": lambda x, a: ops.combine([x, a[:, :2]], torch.ones(4, 2)),
    "a mask of integers": lambda x, a: ops.block_mask(x.long()[None, None], 0.5, 1),
}


@pytest.mark.parametrize("name", GIVEN_BACK)
def test_what_is_given_back_is_not_kept(name):
    """No reference to a term stays behind, however far the extension had come with it."""
    x, a, counts = Z.clone(), A.clone(), []
    for _ in range(5):
        with contextlib.suppress(MmfastError):
            GIVEN_BACK[name](x, a)
        counts.append((sys.getrefcount(x), sys.getrefcount(a)))
    assert len({*counts}) == 1


def test_a_fresh_seed_is_kept_for_the_gradient_of_sigma():
    sigma = torch.rand(4).requires_grad_()
    torch.manual_seed(0)
    out, eps = ops.combine([Z], torch.zeros(4, 1), sigma, return_noise=True)
    (found,) = torch.autograd.grad(out.sum(), sigma)
    torch.testing.assert_close(found, eps.sum(1), rtol=1e-5, atol=1e-6)


def drawn_and_wanted():
    """The noise of an op without a seed, and of the same op with the seed that it should have drawn."""
    torch.manual_seed(7)
    drawn = ops.q_sample(Z, {}, T, S)[1]
    torch.manual_seed(7)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(1 << 63), None))
    return drawn, ops.q_sample(Z, {}, T, S, seed=seed)[1]


def test_each_thread_draws_its_own_fresh_seeds():
    """Threads that end leave their buffers to nobody."""
    found = []
    for _ in range(50):
        thread = threading.Thread(target=lambda: found.append(drawn_and_wanted()))
        thread.start()
        thread.join()
    assert len(found) == 50 and all(torch.equal(a, b) for a, b in found)


TWICE = """
#include <pthread.h>
static void* twice(void* f) { ((void (*)(void))f)(); ((void (*)(void))f)(); return 0; }
extern "C" int run(void (*f)(void)) {
    pthread_t thread;
    return pthread_create(&thread, 0, twice, (void*)f) || pthread_join(thread, 0);
}
"""


@pytest.mark.skipif(compiler() is None, reason="there is no g++")
def test_fresh_seeds_in_a_thread_that_enters_python_twice(tmp_path):
    """A thread of C's has another Python thread, and so another buffer, each time that it enters Python."""
    (tmp_path / "twice.cpp").write_text(TWICE)
    library = tmp_path / "twice.so"
    subprocess.run([compiler(), "-shared", "-fPIC", "-pthread", tmp_path / "twice.cpp", "-o", library], check=True)
    found, others = [], []

    @ctypes.CFUNCTYPE(None)
    def enters():
        others.extend(torch.ones((), dtype=torch.int64) for _ in range(100))  # one is where the first buffer was
        found.append(drawn_and_wanted())

    assert ctypes.CDLL(str(library)).run(enters) == 0
    assert len(found) == 2 and all(torch.equal(a, b) for a, b in found)
    assert len(others) == 200 and all(int(x) == 1 for x in others)


def test_a_registered_backend_is_asked_again_after_another_was_forced(monkeypatch):
    monkeypatch.setattr(ops.backends, "_ADDED", ["mine"])
    monkeypatch.setattr(ops.backends, "LOOKING", ops.backends._looking())
    with ops.backend("reference"):
        pass
    assert not any(ops.backends.LOOKING.values())


@pytest.mark.skipif(not LOOKS, reason="the extension cannot look for itself with this torch, or there is none")
@given(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.integers(1, 7), st.integers(1, 7), SIDES)
def test_a_share_of_blocks_is_rounded_as_python_rounds(ratio, H, W, block):
    """Half of 5 blocks is 2 and of 7 is 4, to even; a block is cut at the edge, and one int is both its sides."""
    x = torch.ones(2, 3, H, W)
    found = ops.backends.look("block_mask", x, ratio, ((3, 0), None, 4, ()), block, True)
    height, width = (block, block) if isinstance(block, int) else block
    blocks = -(-H // min(height, H)) * -(-W // min(width, W))
    with ops.backend("reference"):
        wanted = ops.block_mask(x, torch.full((2,), ratio, dtype=torch.float64), block, seed=3, stream=4)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    rows, columns = torch.arange(H) // height, torch.arange(W) // width
    number = rows[:, None] * -(-W // width) + columns
    seen = [len(number[mask[0] == 1].unique()) for mask in found[1]]
    assert seen == [blocks - round(ratio * blocks)] * 2


@pytest.mark.skipif(not LOOKS, reason="the extension cannot look for itself with this torch, or there is none")
@pytest.mark.parametrize(
    ("ratio", "block", "exact"),
    [(1.5, 2, True), (-0.1, 2, True), (float("nan"), 2, True), (0.5, 0, True), (0.5, True, True), (0.5, (2,), True),
     (0.5, [2, 2], True), (0.5, (2, 2.0), True), (0.5, (2, 2, 3), True), (0.5, 2, 1), (0.5, 2, "yes"), (0.5, 2, False)],
)  # fmt: skip
def test_shares_and_blocks_that_are_for_the_checks(ratio, block, exact):
    x = torch.ones(1, 1, 4, 4)
    assert ops.backends.look("block_mask", x, ratio, ((3, 0), None, 4, ()), block, exact) is None
