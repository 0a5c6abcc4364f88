"""torch's own checks of the fused ops, and torch.compile of the public ones: one graph, eager's results."""

import pytest
import torch
from torch._dynamo.utils import counters

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import Block

SCHED = Schedule.cosine(40, {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.7)})
B, C, H, W = SHAPE = [3, 4, 5, 2]
KINDS = ["plain", "noise", "broadcast", "blocks", "rows", "bfloat16", "float64", "channels last", "needs grad"]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- opcheck --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [True, False])
def test_opcheck_step(each_backend, kind, wanted):
    """Schema, fake, autograd registration and AOT dispatch; x0 of all channels, or of two. Gradients are made of
    `combine`'s, so the op itself is not differentiated."""
    terms, starts, table, sigma, rows, identity, dtype = arguments(kind)
    terms, k = [x.detach() for x in terms], len(terms)
    x0 = (1, 2) if kind in ("blocks", "rows") else (-1, 0)
    args = (terms, starts, table(k, seed=8), table(k + 1, seed=9), sigma, rows, -1.0, 1.0, *x0, *identity, SHAPE, dtype)
    with ops.backend(each_backend):
        torch.library.opcheck(torch.ops.mmfast.step.default, (*args, wanted))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [True, False])
def test_opcheck_squared_error(each_backend, kind, wanted):
    """The same, differentiated in its first term where the gradient is not asked for as a result."""
    terms, starts, table, sigma, rows, identity, dtype = arguments(kind)
    if wanted:
        terms = [x.detach() for x in terms]
    args = (terms, starts, table(len(terms), seed=8), sigma, table(seed=9), rows, *identity, SHAPE, dtype, 0.1)
    with ops.backend(each_backend):
        torch.library.opcheck(torch.ops.mmfast.squared_error.default, (*args, wanted))


@pytest.mark.parametrize("ids", [None, torch.tensor([4, 1 << 40, 2])], ids=["in order", "ids"])
def test_opcheck_block_ranks(each_backend, ids):
    args = (torch.tensor((5, 2)), ids, 6, B, 7, torch.device("cpu"))
    with ops.backend(each_backend):
        torch.library.opcheck(torch.ops.mmfast.block_ranks.default, args)


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "float64", "channels last", "transposed", "needs grad"])
def test_opcheck_block_mask(each_backend, kind):
    x = randn(*SHAPE, dtype={"bfloat16": torch.bfloat16, "float64": torch.float64}.get(kind, torch.float32))
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        x = x.transpose(0, 3).contiguous().transpose(0, 3)
    if kind == "needs grad":
        x.requires_grad_()
    threshold = torch.tensor([0, 1 << 62, (1 << 63) - 1])
    args = (x, threshold, torch.tensor((5, 2)), torch.arange(B) + 7, 6, [2, 3])
    with ops.backend(each_backend):
        torch.library.opcheck(torch.ops.mmfast.block_mask.default, args)


# --- torch.compile --------------------------------------------------------------------------------------------


@pytest.fixture
def fresh():
    """Nothing compiled before, and nothing left behind; any recompilation is an error."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def step(x, y, t, present, seed, **options):
    """On leaves x and y; encodings broadcast and of a block."""
    encodings = {"mask": Block(y[:, :1] * 2, 3, 4), "label": x[:, :, :1, :1]}
    return ops.step(x, y, encodings, t, SCHED, seed=seed, draw=1, present=present, **options)


CALLS = {
    "step": lambda x, y, t, p, seed: step(x, y, t, p, seed, clamp=1.0),
    "step to s": lambda x, y, t, p, seed: step(x, y, t, None, seed, s=t // 2, target="v", eta=0.5),
    "step at a fixed t": lambda x, y, t, p, seed: ops.step(x, y, {}, 7, SCHED, 3, seed=seed),
    "step without noise": lambda x, y, t, p, seed: step(x, y, t, p, None, eta=0.0, target="x0", clamp=(-0.5, 2.0)),
    "step, guided": lambda x, y, t, p, seed: step(
        x, Block(y[:, 1:3], 1, 4), t, p, seed, unconditional=Block(x[:, :2], 1, 4), guidance_scale=3.0, clamp=1.0),
    "loss": lambda x, y, t, p, seed: ops.diffusion_loss(x, y.detach(), t, SCHED, seed=seed),
    "loss, each": lambda x, y, t, p, seed: ops.diffusion_loss(
        x, y.detach(), t, SCHED, seed=seed, target="v", min_snr_gamma=5.0, sample_weight=p[:, 0].float(),
        reduction="none"),
    "loss of both": lambda x, y, t, p, seed: ops.diffusion_loss(x, y, t, SCHED, seed=seed, target="x0"),
    "loss, noise given": lambda x, y, t, p, seed: ops.diffusion_loss(x, y, t, SCHED, noise=(x * 0 + 1).detach()),
    "loss at a fixed t": lambda x, y, t, p, seed: ops.diffusion_loss(x, y.detach(), 7, SCHED, seed=seed),
    "mask": lambda x, y, t, p, seed: ops.block_mask(x, 0.4, 2, seed=seed),
    "mask, by chance": lambda x, y, t, p, seed: ops.block_mask(x, t / 40, (2, 3), exact=False, seed=seed),
    "mask, each": lambda x, y, t, p, seed: ops.block_mask(x, t / 40, (2, 3), seed=seed),
}  # fmt: skip
INPUTS = [
    ((3, 10, 25), ((1, 1), (1, 1), (1, 1)), 5),
    ((1, 1, 33), ((1, 0), (0, 1), (0, 0)), -(1 << 60)),
    ((2, 30, 20), ((0, 0), (0, 1), (1, 0)), 1 << 62),
]


def results(function, t, present, seed, grad):
    """What it returns and, where asked for, its gradients in both leaves."""
    leaves = [randn(*SHAPE).requires_grad_(grad), randn(*SHAPE, seed=1).requires_grad_(grad)]
    found = function(*leaves, torch.tensor(t), torch.tensor(present).bool(), torch.tensor(seed))
    found = found if isinstance(found, tuple) else (found,)
    if not grad:
        return found
    total = sum((x * randn(*x.shape, seed=i + 3)).sum() for i, x in enumerate(found))
    return [*found, *(x for x in torch.autograd.grad(total, leaves, allow_unused=True) if x is not None)]


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", CALLS)
def test_compiled(each_backend, fresh, name, grad):
    """Eager's results for new times, subsets and seeds, in one graph: what is handed to the compiler as plain torch
    to be fused rounds products that a kernel does not, and 1/sqrt(abar_t) of up to 35 multiplies it."""
    with ops.backend(each_backend):
        compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
        for case in INPUTS:
            found, expected = results(compiled, *case, grad), results(CALLS[name], *case, grad)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
        assert counters["stats"]["unique_graphs"] == 1


def test_a_fresh_seed_for_each_call(fresh):
    """None as the seed: new blocks at each call, repeated by torch.manual_seed."""
    compiled = torch.compile(lambda x: ops.block_mask(x, 0.5, 1)[1], fullgraph=True, backend="aot_eager")
    x = torch.ones(2, 1, 9, 9)
    torch.manual_seed(3)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), first) and not torch.equal(first, second)
