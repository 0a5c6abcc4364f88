"""torch.compile of the fused public ops: the whole graph, compiled once, and eager's results."""

import pytest
import torch
from torch._dynamo.utils import counters

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import Block

SCHED = Schedule.cosine(40, {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.7)})
SHAPE = [3, 4, 5, 2]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def step(x, y, t, present, seed, **options):
    """With encodings broadcast and of a block."""
    encodings = {"mask": Block(y[:, :1] * 2, 3, 4), "label": x[:, :, :1, :1]}
    return ops.step(x, y, encodings, t, SCHED, seed=seed, draw=1, present=present, **options)


def guided(x, y, t, present, seed):
    """With predictions of two of the channels."""
    told, untold = Block(y[:, 1:3], 1, 4), Block(x[:, :2], 1, 4)
    return ops.step(x, told, [y, x], t, SCHED, seed=seed, present=present, unconditional=untold, guidance_scale=3.0,
                    clamp=1.0)  # fmt: skip


CALLS = {
    "step": lambda x, y, t, p, seed: step(x, y, t, p, seed, clamp=1.0),
    "step to s": lambda x, y, t, p, seed: step(x, y, t, None, seed, s=t // 2, target="v", eta=0.5),
    "step at a fixed t": lambda x, y, t, p, seed: ops.step(x, y, {}, 7, SCHED, 3, seed=seed),
    "step without noise": lambda x, y, t, p, seed: step(x, y, t, p, None, eta=0.0, target="x0", clamp=(-0.5, 2.0)),
    "step, guided": guided,
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


# Without a gradient, one of each op: its results are compared with a gradient too.
FORWARD = ("step, guided", "loss, each", "mask")
# Seconds each, for what others show as well: a fixed t, and options of the formula.
REPEATED = (*(name for name in CALLS if name.startswith("step")), "loss at a fixed t", "loss of both")


@pytest.mark.parametrize(
    ("name", "grad"),
    [
        pytest.param(name, grad, id=name + (", backward" if grad else ""), marks=[pytest.mark.slow] * (not usual))
        for name in CALLS
        for grad, usual in ((True, name not in REPEATED), (False, name in FORWARD))
    ],
)
def test_compiled(traced_backend, fresh, name, grad):
    """Eager's results for new times, subsets and seeds, in one graph: what is handed to the compiler as plain torch
    to be fused rounds products that a kernel does not, and 1/sqrt(abar_t) of up to 35 multiplies it."""
    with ops.backend(traced_backend):
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
