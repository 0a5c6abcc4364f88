"""What may be at work around an op: modes, transforms, interrupts, changes between forward and backward."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import around


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def setting():
    sched = Schedule.cosine(1000, {"a": mmfast.bridge(1.0), "b": mmfast.bridge(0.5)})
    return sched, *(randn(4, 3, 8, 8, seed=i) for i in range(3)), torch.tensor([10, 200, 500, 900])


@pytest.mark.parametrize("what", ["t", "sample_ids"])
def test_a_change_in_place_between_forward_and_backward_is_an_error(what):
    """Times and ids are kept for the backward pass, not copied: autograd sees that they were changed."""
    sched, z, a, b, t = setting()
    a, ids, sigma = a.requires_grad_(), torch.arange(4), torch.ones(4, requires_grad=True)
    ops.q_sample(z, {"a": a.detach(), "b": b}, t, sched)  # now the tables are known, and the short way is open
    if what == "t":
        out = ops.q_sample(z, {"a": a, "b": b}, t, sched, seed=1, return_noise=False)
        t.fill_(1)
    else:
        out = ops.combine([z], torch.ones(4, 1), sigma, seed=1, sample_ids=ids)
        ids += 10
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_seed_is_drawn_for_a_call_whatever_its_layout():
    """The same manual_seed, the same noise: the first time, later, and where a term is laid out otherwise."""
    sched, z, a, b, t = setting()
    other = a.to(memory_format=torch.channels_last)
    found = []
    for x in (a, other, a, other):
        torch.manual_seed(0)
        found.append((ops.q_sample(z, {"a": x, "b": b}, t, sched)[1], torch.rand(())))
    assert all(torch.equal(eps, found[0][0]) and torch.equal(after, found[0][1]) for eps, after in found[1:])


def modes():
    def functional(call, z):
        torch.func.grad(lambda x: call(x).sum())(z)

    def inference(call, z):
        with torch.inference_mode():
            call(z)

    def fake(call, z):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            call(mode.from_tensor(z))

    def elsewhere(call, z):
        with torch.device("meta"):
            call(z)

    return {"torch.func": functional, "inference mode": inference, "fake tensors": fake, "another device": elsewhere}


@pytest.mark.parametrize("name", modes())
@pytest.mark.parametrize("seed", [None, 1])
def test_a_first_call_in_a_mode_leaves_the_schedule_as_it_was(name, seed):
    """The tables that it derives outlive the mode."""
    sched, z, a, b, t = setting()
    encodings = {"a": a, "b": b}
    modes()[name](lambda x: ops.step(x, a, encodings, t, sched, seed=seed)[0], z)
    leaf, other = a.clone().requires_grad_(), setting()[0]
    for s in (sched, other):
        out, _ = ops.step(leaf, a, encodings, t, s, seed=1)
        out.sum().backward()
    assert torch.equal(ops.step(z, a, encodings, t, sched, seed=1)[0], ops.step(z, a, encodings, t, other, seed=1)[0])


class Seen(TorchDispatchMode):
    """The ops of this package that pass by."""

    def __init__(self):
        super().__init__()
        self.ours = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mmfast":
            self.ours.append(func._schema.name.removeprefix("mmfast::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(around.BELOW_AUTOGRAD is None, reason="without it a mode sees torch's own ops")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_dispatch_mode_sees_each_op_as_one(depth):
    """One mode is enough; without a gradient, with one, and in the backward pass."""
    sched, z, a, b, t = setting()
    encodings = {"a": b}
    calls = {
        "q_sample": (lambda: ops.q_sample(z, {"a": a}, t, sched, seed=1)[0], ["combine"], ["combine_backward"]),
        "loss": (lambda: ops.diffusion_loss(a, z, t, sched, seed=1), ["squared_error"], ["combine"]),
        "block_mask": (lambda: ops.block_mask(a, 0.5, 4, seed=1)[0], ["block_mask"], []),
        "step": (lambda: ops.step(z, a, encodings, t, sched, seed=1)[0], ["step"], ["combine_backward"] * 2),
    }

    def seen(call):
        with Seen() as mode:
            if depth == 1:
                return call(), mode.ours
            with Seen() as inner:
                return call(), inner.ours

    for name, (call, forward, backward) in calls.items():
        a.requires_grad_(False)
        assert seen(call)[1] == forward, name
        a.requires_grad_(True)
        out, found = seen(call)
        assert found == (["combine"] * 2 if name == "step" else forward), name  # a step is two around a clamp
        assert seen(out.sum().backward)[1] == backward, name


def test_a_fresh_seed_has_64_bits_that_are_all_drawn():
    found = [around.fresh_seed(torch.Generator().manual_seed(i)) for i in range(64)]
    words = [torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=torch.Generator().manual_seed(i))
             for i in range(64)]  # fmt: skip
    assert found == [int(word) for word in words]
    ones = zeros = 0
    for seed in found:
        ones, zeros = ones | seed & ~-(1 << 64), zeros | ~seed & ~-(1 << 64)
    assert ones == zeros == (1 << 64) - 1


def test_what_is_written_in_inference_mode_has_no_version():
    x = torch.zeros(3)
    assert around.version(x) == 0 and around.version(x.add_(1)) == 1
    with torch.inference_mode():
        assert around.version(torch.zeros(3).add_(1)) == 0


def test_batches_of_gradients():
    """is_grads_batched and vmap over the backward pass give what a loop gives."""
    sched, z, a, b, t = setting()
    a = a.requires_grad_()
    ops.q_sample(z, {"a": a.detach(), "b": b}, t, sched)
    losses = ops.diffusion_loss(a, z, t, sched, seed=1, reduction="none")
    for out, grads in (
        (ops.q_sample(z, {"a": a, "b": b}, t, sched, seed=1)[0], randn(3, *z.shape, seed=9)),
        (losses, torch.eye(4)),
    ):
        (together,) = torch.autograd.grad(out, a, grads, is_grads_batched=True, retain_graph=True)
        mapped = torch.vmap(lambda g, y=out: torch.autograd.grad(y, a, g, retain_graph=True)[0])(grads)
        alone = torch.stack([torch.autograd.grad(out, a, g, retain_graph=True)[0] for g in grads])
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(mapped, alone)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_traced():
    sched, z, a, b, t = setting()
    ops.q_sample(z, {"a": a, "b": b}, t, sched, noise=b)  # the tables are derived: both of the tracer's runs find them
    traced = torch.jit.trace(lambda x: ops.q_sample(x, {"a": a, "b": b}, t, sched, noise=b)[0], (z,))
    torch.testing.assert_close(traced(a), ops.q_sample(a, {"a": a, "b": b}, t, sched, noise=b)[0])


def test_pending_negations_everywhere():
    """Coefficients, images and incoming gradients whose negation is pending."""
    _, z, a, _, _ = setting()
    pending = torch._neg_view(-randn(4, 1, seed=5))
    assert torch.equal(ops.combine([z], pending), ops.combine([z], pending.clone()))
    assert torch.equal(ops.block_mask(torch._neg_view(-z), 0.0, 4, seed=1)[0], z)
    leaf = a.requires_grad_()
    out = ops.combine([leaf], torch.ones(4, 1))
    assert torch.equal(torch.autograd.grad(out, leaf, torch._neg_view(-z))[0], z)


def test_a_copy_of_a_schedule_derives_its_own():
    import copy
    import pickle

    sched, z, a, b, t = setting()
    ops.q_sample(z, {"a": a, "b": b}, t, sched)
    assert sched.derived
    for other in (copy.deepcopy(sched), pickle.loads(pickle.dumps(sched))):
        assert not other.derived and torch.equal(other.W, sched.W)
        found, expected = (ops.q_sample(z, {"a": a, "b": b}, t, s, seed=1)[0] for s in (other, sched))
        assert torch.equal(found, expected)


def test_a_block_larger_than_the_image():
    x = randn(2, 1, 3, 3)
    for size in (4, 2**63 - 1, 2**70):
        assert torch.equal(ops.block_mask(x, 0.0, size, seed=1)[0], x)
        assert not ops.block_mask(x, 1.0, size, seed=1)[1].any()
