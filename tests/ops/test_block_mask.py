"""Blocks of an image hidden: the kernel against plain integers, and the op's counts, frequencies and gradients."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import truth
from flat import Guards, cpu, reference
from hypothesis import given
from problems import DTYPES, KEY, everywhere, identical, many, poisoned

from mmfast import ops
from mmfast.ops.call import Noise
from mmfast.streams import MASK

BACKENDS = [reference] if cpu.unavailable() else [cpu, reference]
BUILT = pytest.mark.skipif(cpu not in BACKENDS, reason="the extension is not built")
ALL = (1 << 63) - 1


def grid(H, W, block):
    """The number of the block that each pixel lies in, [H, W], and how many there are."""
    across = math.ceil(W / block[1])
    number = np.arange(H)[:, None] // block[0] * across + np.arange(W)[None] // block[1]
    return torch.from_numpy(number), math.ceil(H / block[0]) * across


def ranks(ids, stream, blocks, key=KEY):
    """word_j 2^31 + j of every sample, in plain integers."""
    return [[(w << 31) + j for j, w in enumerate(truth.words(key[0], stream, i, key[1], blocks))] for i in ids]


# --- the kernel -----------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.integers(0, 40), st.sampled_from([0, 3, 65535]), st.booleans())
def test_ranks_are_what_the_counter_says(batch, blocks, stream, given_ids):
    ids = [7, 2**47 + 3, 2**32, 0][:batch] if given_ids else list(range(batch))
    want = torch.tensor(ranks(ids, stream, blocks), dtype=torch.int64).reshape(batch, blocks)
    tensor = torch.tensor(ids, dtype=torch.int64) if given_ids else None
    for backend in BACKENDS:
        for key in (KEY, torch.tensor(KEY)):
            with poisoned():
                found = backend.block_ranks(key, tensor, stream, batch, blocks, torch.device("cpu"))
            assert torch.equal(found, want)


@many
@given(st.data())
def test_kernel_against_plain_integers(data):
    """Any size, type and layout, blocks larger than the image too; NaN that is hidden becomes zero."""
    draw = data.draw
    shape = [draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 9)), draw(st.integers(0, 21))]
    block, dtype = [draw(st.integers(1, 10)), draw(st.integers(1, 10))], draw(st.sampled_from(DTYPES))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    number, blocks = grid(*shape[2:], block)
    ids, stream = torch.arange(shape[0]) * 2**33 + 5, draw(st.integers(0, 65535))
    rank = torch.tensor(ranks(ids.tolist(), stream, blocks), dtype=torch.int64).reshape(shape[0], blocks)
    # A threshold at a rank, the one after it, below all and above all.
    chosen = [draw(st.sampled_from([0, ALL, *(r + more for r in row.tolist() for more in (0, 1))])) for row in rank]
    threshold = torch.tensor(chosen, dtype=torch.int64)
    visible = (rank >= threshold[:, None])[:, number.reshape(-1)].reshape(shape[0], 1, *shape[2:])
    x = torch.where(visible, x, torch.nan)
    layout = draw(st.sampled_from(["contiguous", "channels last", "transposed", "sliced"]))
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "sliced":
        x = x.repeat_interleave(2, 3)[..., ::2]
    want = torch.where(visible, x, 0.0)
    for backend in BACKENDS:

        def call(backend=backend):
            return backend.block_mask(x, threshold, KEY, ids, stream, block)

        out, mask = everywhere(call) if backend is cpu else call()
        assert identical(out, want) and identical(mask, visible.to(dtype))


@BUILT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_outside(dtype, monkeypatch):
    """Outputs in the middle of buffers, at every alignment; the words too (int64)."""
    guard, size = 50, [2, 3, 5, 7]
    for offset in range(17):
        buffer = torch.full([2 * guard + 210], 77.0, dtype=dtype)
        x = buffer[guard - offset : guard - offset + 210].view(size).fill_(2.0)
        words = torch.full([2 * guard + 70], -7)
        inside = slice(guard - offset, guard - offset + 70)
        cpu._cpu.random_words(Noise(KEY), words[inside].view(2, 35))
        assert (words[inside] >= 0).all() and (words[inside] < 2**32).all()
        assert (words[: inside.start] == -7).all() and (words[inside.stop :] == -7).all()
        with Guards(monkeypatch, offset):
            out, mask = cpu.block_mask(x, torch.tensor([0, ALL]), KEY, None, 0, (2, 3))
        assert (out.reshape(2, -1) == torch.tensor([[2.0], [0.0]])).all()
        assert (mask.reshape(2, -1) == torch.tensor([[1.0], [0.0]])).all()


@BUILT
def test_threads_on_many_samples():
    """Enough work to be shared out."""
    x = torch.randn(9, 3, 65, 67)
    threshold = torch.arange(9) << 59
    everywhere(lambda: cpu.block_mask(x, threshold, KEY, None, 1, [4, 5]))
    everywhere(lambda: [cpu.block_ranks(KEY, None, 1, 9, 20_000, torch.device("cpu"))])


# --- the op ---------------------------------------------------------------------------------------------------


def hidden(mask, block):
    """How many blocks of each sample are hidden; every block is hidden as a whole or not at all."""
    number, blocks = grid(*mask.shape[2:], block)
    counts = []
    for one in mask[:, 0]:
        values = [one[number == j].unique() for j in range(blocks)]
        assert all(len(v) == 1 and float(v) in (0.0, 1.0) for v in values)
        counts.append(sum(1 - int(v) for v in values))
    return counts


@given(st.floats(0, 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_exact_counts(ratio, H, W, height, width):
    """round(ratio * blocks) of them, cut ones counted like the rest, for numbers and ratios of each sample."""
    x, blocks = torch.ones(3, 2, H, W), grid(H, W, (height, width))[1]
    for name in [b.name for b in BACKENDS]:
        with ops.backend(name):
            out, mask = ops.block_mask(x, ratio, (height, width), seed=3)
            assert hidden(mask, (height, width)) == [round(ratio * blocks)] * 3
            assert torch.equal(out, mask.expand_as(x)) and mask.dtype == x.dtype
            each = torch.tensor([0.0, ratio, 1.0], dtype=torch.float64)
            _, mask = ops.block_mask(x, each, (height, width), seed=3)
            assert hidden(mask, (height, width)) == [0, round(ratio * blocks), blocks]


@pytest.mark.parametrize("exact", [True, False])
def test_none_and_all(each_backend, exact):
    """Ratios of 0 and 1, as numbers and as tensors, hide nothing and everything: NaN and infinity too."""
    x = torch.full((3, 2, 6, 7), torch.nan)
    x[0, 0, 0, 0] = torch.inf
    with ops.backend(each_backend):
        for ratio in (0, 1, torch.zeros(3), torch.ones(3)):
            out, mask = ops.block_mask(x, ratio, 2, exact=exact, seed=1)
            full = float(ratio if isinstance(ratio, int) else ratio[0]) == 0
            assert torch.equal(mask, torch.full((3, 1, 6, 7), float(full)))
            assert identical(out, x if full else torch.zeros_like(x))


@pytest.mark.parametrize("exact", [True, False])
def test_the_same_in_any_batch(each_backend, exact):
    """A sample's mask is a function of its identity: any batch, order, seed tensor, type; another draw, another mask.

    The stream is its own, so that a mask is no function of the noise.
    """
    x, ids = torch.randn(4, 3, 12, 12), torch.tensor([7, 2**45, 3, 11])
    options = {"exact": exact, "seed": 5}
    with ops.backend(each_backend):
        out, mask = ops.block_mask(x, 0.5, (3, 2), sample_ids=ids, **options)
        order = torch.tensor([2, 0, 3, 1])
        other = ops.block_mask(x[order], 0.5, (3, 2), sample_ids=ids[order], **options)
        assert torch.equal(other[0], out[order]) and torch.equal(other[1], mask[order])
        for b in range(4):
            _, one = ops.block_mask(x[b : b + 1, :1].half(), 0.5, (3, 2), sample_ids=ids[b : b + 1], **options)
            assert torch.equal(one[0].float(), mask[b])
        same = ops.block_mask(x, 0.5, (3, 2), sample_ids=ids, exact=exact, seed=torch.tensor(5), stream=MASK)
        assert torch.equal(same[1], mask)
        for change in ({"seed": 6}, {"draw": 1}, {"stream": 0}):
            assert not torch.equal(ops.block_mask(x, 0.5, (3, 2), sample_ids=ids, **options | change)[1], mask)


def test_backends_agree():
    """And samples alike hide different blocks: not all masks of a batch are one."""
    x, results = torch.randn(5, 2, 9, 10), []
    for backend in BACKENDS:
        with ops.backend(backend.name):
            results += [ops.block_mask(x, 0.4, 3, exact=exact, seed=2) for exact in (True, False)]
    for found, expected in zip(results, results[:2] * len(BACKENDS), strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert all(len(mask.flatten(1).unique(dim=0)) > 1 for _, mask in results)


@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("exact", [True, False])
def test_frequencies(ratio, exact):
    """Each block of 40,000 masks is hidden as often as the ratio says, within 5 sigma, and pairs as independence
    (or, for exact counts, drawing without replacement) says."""
    n, x = 40_000, torch.ones(40_000, 1, 2, 5)
    mask = 1 - ops.block_mask(x, ratio, 1, exact=exact, seed=11)[1].flatten(1).double()
    count = round(ratio * 10)
    p = count / 10 if exact else ratio
    both = count * (count - 1) / 90 if exact else ratio**2
    of_one, of_pairs = mask.mean(0), mask.T @ mask / n
    assert ((of_one - p).abs() <= 5 * math.sqrt(p * (1 - p) / n) + 1e-12).all()
    off = ~torch.eye(10, dtype=torch.bool)
    assert ((of_pairs[off] - both).abs() <= 5 * math.sqrt(both * (1 - both) / n) + 1e-12).all()


def test_ratios_of_each_sample_by_chance():
    """[B] ratios without exact counts: each sample's own frequency."""
    ratio = torch.tensor([0.1, 0.5, 0.9])
    share = 1 - ops.block_mask(torch.ones(3, 1, 200, 200), ratio, 1, exact=False, seed=4)[1].double().mean((1, 2, 3))
    assert ((share - ratio).abs() <= 5 * (ratio * (1 - ratio) / 200**2).sqrt()).all()


def test_gradients(traced_backend):
    """Where it is visible the gradient passes, elsewhere it is zero, whatever comes from above; the mask has none."""
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    with ops.backend(traced_backend):
        assert torch.autograd.gradcheck(lambda x: ops.block_mask(x, 0.5, (2, 3), seed=1)[0], x, fast_mode=True)
        assert torch.autograd.gradgradcheck(
            lambda x: ops.block_mask(x, 0.5, (2, 3), seed=1)[0].square(), x, fast_mode=True
        )
        out, mask = ops.block_mask(x, 0.5, (2, 3), seed=1)
    assert not mask.requires_grad
    above = torch.where(mask.expand_as(x) > 0, 2.0, torch.nan)
    (found,) = torch.autograd.grad(out, x, above)
    assert torch.equal(found, 2 * mask.expand_as(x))


def test_a_fresh_seed_repeats_with_torchs(each_backend):
    x = torch.ones(2, 1, 8, 8)
    with ops.backend(each_backend):
        torch.manual_seed(1)
        first, second = ops.block_mask(x, 0.5, 1)[1], ops.block_mask(x, 0.5, 1)[1]
        torch.manual_seed(1)
        assert torch.equal(ops.block_mask(x, 0.5, 1)[1], first) and not torch.equal(first, second)
