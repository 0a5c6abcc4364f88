"""torch.compile: the whole graph, the same results, and no recompilation for new seeds, times and subsets."""

import pytest
import torch
from torch._dynamo.utils import counters

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import Block

SCHED = Schedule.cosine(40, {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.7)})


pytestmark = pytest.mark.usefixtures("fresh")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors():
    """z_0 in channels 0-2 of 4, a label for all four, a mask in the last channel, all to be differentiated."""
    return [randn(*s, seed=i).requires_grad_() for i, s in enumerate([(4, 3, 6, 5), (4, 4, 1, 1), (4, 1, 6, 5)])]


def there_and_back(z0, label, mask, t, present, seed, ids):
    """q_sample, a prediction, both forms of the reverse step, and a mean: every op once."""
    encodings = {"mask": Block(mask, 3, 4), "label": label}
    z, eps = ops.q_sample(Block(z0, 0, 4), encodings, t, SCHED, seed=seed, sample_ids=ids, present=present)
    eps_hat = torch.tanh(z) + 0.1 * eps
    mean = ops.posterior_mean(z, eps_hat, encodings, t, SCHED, present=present)
    step = ops.posterior_sample(
        z, eps_hat, encodings, t, SCHED, t // 2, 1.0, seed=seed, sample_ids=ids, draw=1, present=present
    )
    m = ops.multimodal_mean([z, label], torch.ones(4, 2))
    return step.sin() + mean * z + m, eps


INPUTS = [
    ((3, 10, 25, 40), ((1, 1), (1, 1), (1, 1), (1, 1)), 5, (0, 1, 2, 3)),
    ((1, 1, 40, 7), ((1, 0), (0, 1), (0, 0), (1, 1)), -(1 << 60), (9, 8, 7, 1 << 40)),
    ((2, 39, 20, 30), ((0, 0), (0, 0), (0, 1), (1, 0)), 1 << 62, (5, 6, 0, 1)),
]


def arguments(t, present, seed, ids):
    return torch.tensor(t), torch.tensor(present).bool(), torch.tensor(seed), torch.tensor(ids)


def with_gradients(function, *others):
    leaves = tensors()
    out, eps = function(*leaves, *others)
    return [out, eps, *torch.autograd.grad(out, leaves, randn(*out.shape, seed=30))]


# Inductor compiles C++, which takes 20 seconds; it is given the same graph.
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_whole_path(traced_backend, compiler):
    """Forward and backward equal eager's, in one graph, compiled once for all times, subsets, seeds and ids.

    The ops are the same kernels; what inductor fuses around them rounds differently, by units in the last place.
    """
    with ops.backend(traced_backend):
        compiled = torch.compile(there_and_back, fullgraph=True, backend=compiler)
        for case in INPUTS:
            found = with_gradients(compiled, *arguments(*case))
            for a, b in zip(found, with_gradients(there_and_back, *arguments(*case)), strict=True):
                # 1/sqrt(abar_T) of up to 800 multiplies a rounding of z on its way through the clamped form.
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == 1


CALLS = {
    "randn": lambda x, t, p, seed: ops.randn((4, 3, 5), seed=seed, draw=2),
    "combine": lambda x, t, p, seed: ops.combine([x, x[:1]], p.float() + 1, t.float(), seed=seed),
    "return_noise": lambda x, t, p, seed: ops.combine([x, x], p.float(), seed=seed, return_noise=True),
    "multimodal_mean": lambda x, t, p, seed: ops.multimodal_mean([x, x], p.float()),
    "q_sample": lambda x, t, p, seed: ops.q_sample(x, {"label": x}, t, SCHED, seed=seed, present=p[:, :1]),
    "q_sample at 0": lambda x, t, p, seed: ops.q_sample(x, [x, x], t * 0, SCHED, seed=seed),
    "posterior_mean": lambda x, t, p, seed: ops.posterior_mean(x, x, {"mask": x}, t, SCHED, t - 1),
    "posterior_sample": lambda x, t, p, seed: ops.posterior_sample(x, x, {}, t, SCHED, seed=seed),
    "a fixed t": lambda x, t, p, seed: ops.posterior_sample(x, x, {"label": x}, 7, SCHED, 3, 1.0, seed=seed),
}


PLAIN = ("multimodal_mean", "posterior_mean")


@pytest.mark.parametrize("name", CALLS)
def test_each_op(traced_backend, name):
    """The same as eager, for new times, subsets and seeds without a new graph: to the bit where noise is made inside;
    else the graph gets plain torch, to be fused, which rounds products that the kernel does not."""
    function, x = CALLS[name], randn(4, 3, 5)
    with ops.backend(traced_backend):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for case in INPUTS:
            t, present, seed, _ = arguments(*case)
            found, expected = compiled(x, t, present, seed), function(x, t, present, seed)
            exact = {"rtol": 0, "atol": 0} if name not in PLAIN else {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(found, expected, **exact, equal_nan=True)
        assert counters["stats"]["unique_graphs"] == 1


def test_no_seed_under_compile():
    """A fresh seed for each call, from torch's generator: repeated by manual_seed, never shared."""
    compiled = torch.compile(lambda x: ops.q_sample(x, {}, 9, SCHED)[1], fullgraph=True, backend="aot_eager")
    x = torch.zeros(2, 30)
    torch.manual_seed(3)
    a, b = compiled(x), compiled(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), a)
    assert (a == b).float().mean() < 0.05
    assert abs(float(torch.cat((a, b)).std()) - 1) < 0.35  # 120 values: five deviations


def test_sizes_may_be_dynamic(traced_backend):
    """Another batch or picture size, marked dynamic, is the same graph."""

    def function(x, t, seed):
        return ops.q_sample(x, {"label": x[:, :, :1, :1]}, t, SCHED, seed=seed)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    with ops.backend(traced_backend):
        for B, H, W in ((6, 7, 5), (3, 8, 2), (7, 5, 9)):
            x, t = randn(B, 3, H, W), torch.arange(1, B + 1)
            assert torch.equal(compiled(x, t, torch.tensor(1)), function(x, t, torch.tensor(1)))
        assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", [pytest.param("contiguous", marks=pytest.mark.slow), "channels last"])
def test_gradients_of_other_layouts(traced_backend, layout):
    """Inductor relies on the strides that the fake kernel promises; the backward gets gradients of any."""
    form = torch.channels_last if layout == "channels last" else torch.contiguous_format
    conv = torch.nn.Conv2d(4, 4, 1).to(memory_format=form)
    x, block = randn(2, 4, 6, 6).to(memory_format=form), randn(2, 2, 6, 6, seed=1)

    def function(x, block):
        return conv(ops.combine([x * 2, Block(block + 1, 1, 4)], torch.ones(2, 2)).to(memory_format=form)).square()

    with ops.backend(traced_backend):
        results = []
        for f in (function, torch.compile(function, fullgraph=True)):
            leaves = [x.clone().requires_grad_(), block.clone().requires_grad_()]
            results.append(torch.autograd.grad(f(*leaves).sum(), leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_schedule_within_a_compiled_module(traced_backend):
    """The schedule as a submodule of a training step, as a user writes one: no graph break, trained weights move."""

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sched, self.layer = SCHED, torch.nn.Linear(5, 5)

        def forward(self, z0, label, t, seed):
            z, eps = ops.q_sample(z0, {"label": self.layer(label)}, t, self.sched, seed=seed)
            return (self.layer(z) - eps).square().mean()

    step = Step()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    z0, label = randn(3, 5), randn(3, 5, seed=1)
    with ops.backend(traced_backend):
        for t, seed in (((1, 2, 40), 4), ((7, 7, 7), 5)):
            grads = []
            for model in (compiled, step):
                step.zero_grad()
                model(z0, label, torch.tensor(t), torch.tensor(seed)).backward()
                grads.append(step.layer.weight.grad.clone())
            torch.testing.assert_close(*grads)
            assert grads[0].abs().sum() > 0
