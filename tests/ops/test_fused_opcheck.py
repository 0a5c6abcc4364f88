"""torch's own checks of the fused ops: schema, fake, autograd registration and AOT dispatch."""

import pytest
import torch

from mmfast import ops

B, C, H, W = SHAPE = [3, 4, 5, 2]
KINDS = ["plain", "noise", "broadcast", "blocks", "rows", "bfloat16", "float64", "channels last", "needs grad"]


# With and without what may be asked for beside; without it the kinds whose graphs differ, and the others are slow.
ASKED = [
    pytest.param(
        kind, wanted, marks=[pytest.mark.slow] * (not wanted and kind not in ("plain", "blocks", "needs grad"))
    )
    for wanted in (True, False)
    for kind in KINDS
]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(kind):
    """terms, starts; a maker of tables; sigma, rows; key, sample_ids, stream; shape, dtype."""
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(kind, torch.float32)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = {
        "broadcast": [SHAPE, (B, C, 1, 1), (1, C, H, W), (B, 1, H, W)],
        "blocks": [SHAPE, (B, 2, H, W), (B, 1, 1, 1)],
    }.get(kind, [SHAPE, SHAPE])
    terms = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    if kind == "channels last":
        terms = [x.contiguous(memory_format=torch.channels_last) for x in terms]
    if kind == "needs grad":
        terms[0].requires_grad_()
    starts = [-1, 1, 3] if kind == "blocks" else [-1] * len(terms)
    rows = torch.tensor([4, 0, 4]) if kind == "rows" else None
    count = 5 if kind == "rows" else B

    def table(*columns, seed):
        return randn(count, *columns, dtype=compute, seed=seed)

    noisy = kind != "plain"
    identity = (torch.tensor((5, 2)), torch.arange(B) + 7, 6) if noisy else (None, None, 0)
    return terms, starts, table, table(seed=10) if noisy else None, rows, identity, dtype


@pytest.mark.parametrize(("kind", "wanted"), ASKED)
def test_opcheck_step(traced_backend, kind, wanted):
    """Schema, fake, autograd registration and AOT dispatch; x0 of all channels, or of two. Gradients are made of
    `combine`'s, so the op itself is not differentiated."""
    terms, starts, table, sigma, rows, identity, dtype = arguments(kind)
    terms, k = [x.detach() for x in terms], len(terms)
    x0 = (1, 2) if kind in ("blocks", "rows") else (-1, 0)
    tables = table(k + 1, seed=9), sigma, table(k, seed=8), None
    args = (terms, starts, *tables, rows, *identity, SHAPE, dtype, -1.0, 1.0, *x0)
    with ops.backend(traced_backend):
        torch.library.opcheck(torch.ops.mmfast.step.default, (*args, wanted))


@pytest.mark.parametrize(("kind", "wanted"), ASKED)
def test_opcheck_squared_error(traced_backend, kind, wanted):
    """The same, differentiated in its first term where the gradient is not asked for as a result."""
    terms, starts, table, sigma, rows, identity, dtype = arguments(kind)
    if wanted:
        terms = [x.detach() for x in terms]
    tables = table(len(terms), seed=8), sigma, None, table(seed=9)
    args = (terms, starts, *tables, rows, *identity, SHAPE, dtype, 0.1)
    with ops.backend(traced_backend):
        torch.library.opcheck(torch.ops.mmfast.squared_error.default, (*args, wanted))


@pytest.mark.parametrize("ids", [None, torch.tensor([4, 1 << 40, 2])], ids=["in order", "ids"])
def test_opcheck_random_words(traced_backend, ids):
    args = (torch.tensor((5, 2)), ids, 6, B, 7, torch.device("cpu"))
    with ops.backend(traced_backend):
        torch.library.opcheck(torch.ops.mmfast.random_words.default, args)


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "float64", "channels last", "transposed", "needs grad"])
def test_opcheck_block_mask(traced_backend, kind):
    x = randn(*SHAPE, dtype={"bfloat16": torch.bfloat16, "float64": torch.float64}.get(kind, torch.float32))
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        x = x.transpose(0, 3).contiguous().transpose(0, 3)
    if kind == "needs grad":
        x.requires_grad_()
    threshold = torch.tensor([0, 1 << 62, (1 << 63) - 1])
    for hidden, exact in ((threshold, False), (torch.tensor([0, 1, 3]), True)):
        args = (x, hidden, torch.tensor((5, 2)), torch.arange(B) + 7, 6, [2, 3], exact)
        with ops.backend(traced_backend):
            torch.library.opcheck(torch.ops.mmfast.block_mask.default, args)
