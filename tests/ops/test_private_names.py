"""mmfast reads some names of torch that are not public: where one is gone it imports, and its results are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmfast
from mmfast.ops import around

# Each with where it stands. They are gone while mmfast is imported, and back afterwards: torch reads them too.
NAMES = {
    "_len_torch_dispatch_stack": "torch._C",
    "peek_interpreter_stack": "torch._C._functorch",
    "_get_tracing_state": "torch._C",
    "_AutoDispatchBelowAutograd": "torch._C",
    "is_legacy_batchedtensor": "torch._C._functorch",
    "_DisableFuncTorch": "torch._C",
    "_disable_current_modes": "torch.utils._python_dispatch",
    "_current_level": "torch.autograd.forward_ad",
    "_foreach_lerp_": "torch",
    "__dlpack_c_exchange_api__": "torch.Tensor",
}

# Every name is taken away in a child of a process that has torch alone.
PROGRAM = """
import importlib, os, sys, traceback
import numpy, omegaconf, PIL.Image, safetensors.torch, tqdm, yaml
import torch, torch.utils.data
import torch.autograd.forward_ad
import torch.utils._python_dispatch

torch.func.vmap(torch.sin)(torch.ones(2))  # its modules

def child(path, more):
    parent, _, name = path.rpartition(".")
    owner = eval(parent)
    kept = getattr(owner, name)
    delattr(owner, name)
    for module in ("mmfast", *more):
        importlib.import_module(module)
    setattr(owner, name, kept)
    exec(compile(RIGHT, "RIGHT", "exec"), {"__name__": "right"})

for path, *more in (words.split() for words in sys.argv[1:]):
    assert "mmfast" not in sys.modules
    process = os.fork()
    if process == 0:
        code = 1
        try:
            child(path, more)
            code = 0
        except BaseException:
            print(path, traceback.format_exc(), flush=True)
        os._exit(code)
    print(path, "right" if os.waitpid(process, 0)[1] == 0 else "wrong", flush=True)
"""
RIGHT = """
import mmfast, torch
from mmfast import ops

sched = mmfast.Schedule.cosine(100, {"a": mmfast.bridge(2.0)})
x, a, t = torch.ones(2, 3, 4), torch.full((2, 3, 1), 0.5, requires_grad=True), torch.tensor([7, 90])
rows = (sched.alpha_bar[t].sqrt(), sched.W[t, 0], (1 - sched.alpha_bar[t]).sqrt())
of_x, of_a, of_eps = (c.float()[:, None, None] for c in rows)
for _ in range(2):  # the second time by what the first one kept
    z, eps = ops.q_sample(x, {"a": a}, t, sched, seed=3)
    torch.testing.assert_close(z, of_x * x + of_a * a + of_eps * eps, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(z.sum(), a)
    torch.testing.assert_close(grad, of_a * 4 * torch.ones(2, 3, 1), rtol=1e-5, atol=1e-6)
    prediction = torch.zeros_like(x).requires_grad_()
    loss = ops.diffusion_loss(prediction, x, t, sched, seed=3)
    torch.testing.assert_close(loss, eps.square().mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, prediction)[0], -2 * eps / 24, rtol=1e-5, atol=1e-7)
    z_s, z0 = ops.step(z.detach(), eps, {"a": a.detach()}, t, sched, seed=4, eta=0.0)
    torch.testing.assert_close(z0, x, rtol=1e-3, atol=1e-3)
    hidden, mask = ops.block_mask(torch.ones(2, 1, 4, 4), 0.5, 2, seed=1)
    assert mask.sum() == 16 and torch.equal(hidden, mask)
    mean = torch.func.vmap(lambda w: ops.multimodal_mean([x, a.detach()], w[None]))(torch.ones(3, 2))
    torch.testing.assert_close(mean, (x + a.detach()).expand(3, 2, 3, 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_without_a_private_name():
    """One name at a time."""
    there = [n for n in NAMES if n != "__dlpack_c_exchange_api__" or hasattr(torch.Tensor, n)]
    words = [f"{NAMES[n]}.{n}" + " mmfast.training" * (n == "_foreach_lerp_") for n in there]  # who reads that one
    program = f"RIGHT = {RIGHT!r}\n{PROGRAM}"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == [f"{NAMES[n]}.{n} right" for n in there], run.stdout + run.stderr[-2000:]


def test_no_other_private_name_is_read():
    """Private names of torch stand in around.py alone, each through `private`, and each is taken away above."""
    folder = Path(mmfast.__file__).parent
    pattern = re.compile(r"torch\._[A-Za-z]|torch\.[\w.]*\._[a-z]|from torch[\w.]* import [^\n]*\b_[a-z]")
    for file in folder.rglob("*.py"):
        if file.name != "around.py":
            assert not pattern.search(file.read_text()), f"{file} reads a private name of torch"
    found = re.findall(r'private\("([\w.]+)"', Path(around.__file__).read_text())
    for path in found:
        name = path.rpartition(".")[2]
        # A method of a type that is built in cannot be taken away.
        assert name in NAMES or name == "_is_zerotensor", f"{path} is in no case of this test"
