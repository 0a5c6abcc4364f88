"""The bits of the ops stay: digests recorded at 642132b, before calls and noise became objects.

The same on every instruction set and number of threads.
"""

import hashlib

import pytest
import torch
from flat import cpu

import mmfast
from mmfast import ops

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)

RECORDED = {
    "randn float32": "db6ecd711d1b478b",
    "q_sample float32": "dcfd1a59e4e78c66",
    "q_sample present float32": "5594b9c364379f1d",
    "step float32": "6fa805c4dca14c64",
    "step ddim float32": "72eaa31b7e30e945",
    "posterior_sample float32": "4f19ce07115cf634",
    "loss float32": "3210a80ed72020b2",
    "q_sample backward float32": "2fd7611d60327615",
    "combine float32": "6053ae0b24444547",
    "block_mask float32": "268d6e032e9828c8",
    "randn float64": "bb9481268de5bd7b",
    "q_sample float64": "b121ea8392e481e6",
    "q_sample present float64": "21a05ae460c06808",
    "step float64": "548ced8ed50acb65",
    "step ddim float64": "755dc14893eda2b2",
    "posterior_sample float64": "9f7275b1dbad3f7b",
    "loss float64": "97b4bcec82672f22",
    "q_sample backward float64": "3c755e7a339de58f",
    "combine float64": "9ab889d2e0bc7910",
    "block_mask float64": "e6d6cc674ed9ca9c",
    "randn bfloat16": "bedacf12305e403f",
    "q_sample bfloat16": "6e0ec57c277d024a",
    "q_sample present bfloat16": "49a5a5936e63680b",
    "step bfloat16": "bdcdb5185e5877c7",
    "step ddim bfloat16": "7dc446e8f5c398d5",
    "posterior_sample bfloat16": "1547c5a774e866f4",
    "loss bfloat16": "1b615855418cab25",
    "q_sample backward bfloat16": "cba944e735074e42",
    "combine bfloat16": "69064f200b2e8e05",
    "block_mask bfloat16": "e2cb70dd5a5b8ffd",
    "randn float16": "5ca32de611f7ef53",
    "q_sample float16": "239d50403a6d1eee",
    "q_sample present float16": "c41ed09dc9b870c7",
    "step float16": "7e505829b3933760",
    "step ddim float16": "1e3c9a9953f6500f",
    "posterior_sample float16": "81a9ecae66ff40b1",
    "loss float16": "ff8d6a65d7bc11f8",
    "q_sample backward float16": "0e35fb7a2cb9ef31",
    "combine float16": "d333871c508a64ee",
    "block_mask float16": "bc41eb6487819cbe",
}


def digest(*tensors):
    """Of the tensors' bytes."""
    h = hashlib.sha256()
    for x in tensors:
        h.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def digests():
    """By op and type, digests of results whose inputs are made by `randn`."""
    found = {}
    sched = mmfast.Schedule.cosine(1000, {"a": mmfast.bridge(2.0), "b": mmfast.carried(1.0)})
    ids = torch.tensor([5, 2**40 + 3, 7, 0, 11])
    t = torch.tensor([1, 1000, 500, 37, 998])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):

        def made(stream, *shape, dtype=dtype):
            return ops.randn(shape, seed=123, stream=stream).to(dtype)

        name = str(dtype).removeprefix("torch.")
        shape = (5, 6, 13, 7)
        z0, a, p = made(1, *shape), made(2, 5, 6, 1, 1), made(4, *shape)
        b = ops.Block(made(3, 5, 2, 13, 7), 3, 6)
        noise = dict(seed=2**63 + 17, sample_ids=ids, stream=3, draw=9)
        found[f"randn {name}"] = digest(ops.randn(shape, dtype=dtype, **noise))
        found[f"q_sample {name}"] = digest(*ops.q_sample(z0, {"a": a, "b": b}, t, sched, **noise))
        present = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 1]])
        found[f"q_sample present {name}"] = digest(
            *ops.q_sample(z0, {"a": a, "b": b}, t, sched, present=present, **noise)
        )
        found[f"step {name}"] = digest(
            *ops.step(
                z0, p, {"a": a, "b": b}, t, sched, clamp=0.7, unconditional=a.expand(shape), guidance_scale=2.5, **noise
            )
        )
        found[f"step ddim {name}"] = digest(*ops.step(z0, p, {"a": a, "b": b}, 700, sched, 500, eta=0.0, target="v"))
        found[f"posterior_sample {name}"] = digest(ops.posterior_sample(z0, p, {"a": a, "b": b}, t, sched, **noise))
        leaf = p.clone().requires_grad_()
        loss = ops.diffusion_loss(leaf, z0, t, sched, target="v", min_snr_gamma=5.0, **noise)
        loss.backward()
        found[f"loss {name}"] = digest(loss, leaf.grad)
        leaves = [x.clone().requires_grad_() for x in (z0, a, b.tensor)]
        z, _ = ops.q_sample(leaves[0], {"a": leaves[1], "b": ops.Block(leaves[2], 3, 6)}, t, sched, **noise)
        z.backward(p)
        found[f"q_sample backward {name}"] = digest(*(x.grad for x in leaves))
        coefs = (
            ops.randn((5, 3), seed=3).to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
        )
        sigma = ops.randn((5,), seed=4).to(coefs.dtype).requires_grad_()
        out, eps = ops.combine([z0, a, b], coefs, sigma, return_noise=True, **noise)
        out.backward(p)
        found[f"combine {name}"] = digest(out, eps, coefs.grad, sigma.grad)
        found[f"block_mask {name}"] = digest(
            *ops.block_mask(z0, 0.5, 3, seed=7, sample_ids=ids),
            *ops.block_mask(z0, torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0]), (2, 3), exact=False, seed=7),
        )
    return found


@pytest.mark.parametrize("isa", cpu.isas())
@pytest.mark.parametrize("count", [1, 3])
def test_the_bits_are_those_recorded(isa, count, threads):
    threads(count)
    cpu.set_isa(isa)
    try:
        assert digests() == RECORDED
    finally:
        cpu.set_isa(None)
