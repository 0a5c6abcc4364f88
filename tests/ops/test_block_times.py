"""q_sample with a time for each block of channels, against the design's formulas of every block alone, in float64."""

import math

import hypothesis.strategies as st
import numpy as np
import optional
import pytest
import torch
from hypothesis import given
from problems import everywhere
from spaces import ABAR, SCHED, UNIT, Space, T, W, noise_of, spaces
from torch.autograd import gradcheck

import mmfast
from mmfast import MmfastError, Schedule, ops
from mmfast.ops import Block


def forward_terms(space, eps):
    def terms(b, name, span, t):
        weight = math.sqrt(ABAR[t]) if name == "z0" else W[name][t]
        return [(weight, space.value(name, b)), (math.sqrt(1 - ABAR[t]), eps[b, span])]

    return terms


@given(spaces())
def test_each_block_is_noised_alone(each_backend, space):
    """With the noise of its place in the whole space; by a fresh schedule, and by the tables that it then keeps."""
    identity = dict(seed=7, sample_ids=torch.arange(space.batch) * 2**33 + 5, stream=2, draw=9)
    eps = noise_of(space, **identity)
    SCHED.derived.clear()
    with ops.backend(each_backend):
        first, made = space.q_sample(**identity)
        ops.q_sample(space.block("z0"), space.encodings, 3, SCHED, **identity)
        again, _ = space.q_sample(**identity)
        alone = space.q_sample(**identity, return_noise=False)
    space.expect(first, forward_terms(space, eps), np.abs(eps).max())
    assert torch.equal(first, again) and torch.equal(first, alone)
    np.testing.assert_allclose(made.double().numpy(), eps, atol=0, rtol=4 * UNIT[space.dtype] + 2.0**-21)


@optional.short_way
def test_the_short_way_is_taken(monkeypatch):
    """Once the tables are kept no call is checked, with `present` or without, and its bits are those of a checked one;
    but none is taken that the checks refuse."""
    space, present = Space(1), torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]])
    SCHED.derived.clear()
    want = space.q_sample(seed=1), space.q_sample(seed=1, present=present)
    space.q_sample(torch.full([3], 3))
    with monkeypatch.context() as patch:
        patch.setattr(ops.forward, "gather", None)
        found = space.q_sample(seed=1), space.q_sample(seed=1, present=present)
        with pytest.raises(TypeError):
            space.q_sample(space.t[:1])
    assert all(torch.equal(a, b) for x, y in zip(found, want, strict=True) for a, b in zip(x, y, strict=True))


@given(spaces())
def test_noise_handed_in(each_backend, space):
    eps = space.eps.double().numpy()
    with ops.backend(each_backend):
        z, same = space.q_sample(noise=space.eps)
    assert same is space.eps
    space.expect(z, forward_terms(space, eps))


@given(spaces(), st.data())
def test_what_a_sample_lacks_is_not_read(each_backend, space, data):
    """Its block is noise alone, at its own level."""
    present = torch.tensor([[data.draw(st.booleans()) for _ in space.names] for _ in range(space.batch)])
    present = present.reshape(space.batch, len(space.names))
    eps = noise_of(space, seed=3)
    full = forward_terms(space, eps)
    for i, name in enumerate(space.names):
        space.x[name] = space.x[name].clone()
        space.x[name][~present[:, i]] = math.nan

    def terms(b, name, span, t):
        both = full(b, name, span, t)
        return both if name == "z0" or present[b, space.names.index(name)] else both[1:]

    with ops.backend(each_backend):
        z, _ = space.q_sample(seed=3, present=present)
        again, _ = space.q_sample(seed=3, present=present.float())
        handed_in, _ = space.q_sample(noise=torch.from_numpy(eps).to(space.dtype), present=present)
    space.expect(z, terms, np.abs(eps).max())
    assert torch.equal(z, again)
    space.expect(handed_in, terms, np.abs(eps).max() * UNIT[space.dtype] * 2.0**21)


@given(spaces())
def test_the_diagonal_has_the_bits_of_one_time(each_backend, space):
    """The arithmetic of an element is the same: its terms in their order, then its noise."""
    t = space.t[:, 0].contiguous()
    each = t[:, None].expand(-1, 1 + len(space.names))
    with ops.backend(each_backend):
        for options in ({"seed": 1}, {"noise": space.eps}, {"seed": 1, "present": torch.zeros(1, len(space.names))}):
            if "present" in options:
                options["present"] = options["present"].expand(space.batch, -1)
            for one, many in zip(space.q_sample(t, **options), space.q_sample(each, **options), strict=True):
                assert torch.equal(one, many)
        z, eps, e = space.z_t, space.eps, space.encodings
        assert torch.equal(ops.posterior_mean(z, eps, e, t, SCHED), ops.posterior_mean(z, eps, e, each, SCHED))
        one, many = (ops.posterior_sample(z, eps, e, times, SCHED, seed=5) for times in (t, each))
        assert torch.equal(one, many)
        prediction = space.block("z0", space.x["z0"])
        for options in ({}, {"eta": 0.0}, {"clamp": 0.3}, {"unconditional": prediction, "guidance_scale": 2.0}):
            pair = [ops.step(z, prediction, e, times, SCHED, seed=5, **options) for times in (t, each)]
            assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


@given(spaces())
def test_every_instruction_set_and_number_of_threads_alike(space):
    everywhere(
        lambda: [
            *space.q_sample(seed=1),
            ops.posterior_sample(space.z_t, space.eps, space.encodings, space.t, SCHED, space.s, seed=2),
            *ops.step(space.z_t, space.block("z0"), space.encodings, space.t, SCHED, space.s, seed=2, clamp=0.5),
        ]
    )


@pytest.mark.parametrize("dtype", list(UNIT))
def test_many_blocks_over_several_items_of_work(each_backend, dtype):
    """Levels that begin and end in the middle of items of 8,192 elements, and of vectors."""
    widths = [5, 1, 9, 2]
    starts = np.cumsum([0, *widths])
    blocks = [Block(torch.randn(2, n, 41, 43).to(dtype), int(a), 17) for n, a in zip(widths, starts, strict=False)]
    t = torch.tensor([[3, 40, 11, 1], [40, 2, 0, 25]])
    with ops.backend(each_backend):
        z, _ = ops.q_sample(blocks[0], dict(zip("abc", blocks[1:], strict=True)), t, SCHED, seed=3)
        known = ops.randn([2, 17, 41, 43], seed=3)
    for b in range(2):
        for i, (name, x) in enumerate(zip(("z0", *"abc"), blocks, strict=True)):
            k, part = t[b, i], slice(x.start, x.start + widths[i])
            weight = math.sqrt(ABAR[k]) if name == "z0" else W[name][k]
            want = weight * x.tensor[b].double() + math.sqrt(1 - ABAR[k]) * known[b, part].double()
            torch.testing.assert_close(z[b, part].double(), want, rtol=4 * UNIT[dtype], atol=1e-5 + 8 * UNIT[dtype])


def test_the_loss_makes_the_anchors_noise_again():
    """diffusion_loss at t_0 over the anchor's block alone, which comes first, knows the eps of its block of z_t."""
    space = Space(5, z0_first=True)
    identity = dict(seed=4, sample_ids=torch.tensor([9, 2, 7]), stream=3, draw=1)
    _, eps = space.q_sample(**identity)
    own, x0 = eps[:, space.span["z0"]], space.x["z0"]
    loss = ops.diffusion_loss(own, x0, space.t[:, 0].contiguous(), SCHED, **identity)
    assert loss == 0
    v = ops.diffusion_loss(torch.zeros_like(own), x0, space.t[:, 0].contiguous(), SCHED, target="v", **identity)
    abar = torch.from_numpy(ABAR[space.t[:, 0].numpy()]).reshape(-1, 1, 1, 1)
    want = (abar.sqrt() * own.double() - (1 - abar).sqrt() * x0.double()).square().mean()
    torch.testing.assert_close(v.double(), want, rtol=1e-5, atol=0)


def test_gradients(traced_backend):
    """Against finite differences, through the short way, the checked one and the noise handed in."""
    space = Space(2, batch=2, names=("b", "a"), dtype=torch.float64)
    leaves = [space.x[name].requires_grad_() for name in ("z0", "b", "a")]
    with ops.backend(traced_backend):
        assert gradcheck(lambda *_: space.q_sample(seed=1)[0], leaves, fast_mode=True)
        noise = space.eps.requires_grad_()
        assert gradcheck(lambda *_: space.q_sample(noise=noise)[0], [*leaves, noise], fast_mode=True)
        z, call = space.z_t.requires_grad_(), (space.encodings, space.t, SCHED, space.s)
        assert gradcheck(
            lambda *_: ops.posterior_sample(z, noise, *call, seed=1), [z, noise, *leaves[1:]], fast_mode=True
        )
        assert gradcheck(lambda *_: ops.step(z, noise, *call, seed=1, eta=0.5), [z, noise, *leaves[1:]], fast_mode=True)
    single = Space(2, batch=2, names=("b", "a"))
    leaves = [single.x[name].requires_grad_() for name in ("z0", "b", "a")]
    for _ in range(2):  # the second time by the kept tables
        z, _ = single.q_sample(seed=1)
        found = torch.autograd.grad(z.sum(), leaves)
        single.q_sample(torch.tensor([1, 1]))
        for i, (name, x) in enumerate(zip(("z0", "b", "a"), found, strict=True)):
            weight = ABAR**0.5 if name == "z0" else W[name]
            want = torch.from_numpy(weight[single.t[:, i].numpy()]).reshape(-1, 1, 1, 1).expand(x.shape)
            count = math.prod(single.shape[2:]) / math.prod(x.shape[2:])
            torch.testing.assert_close(x.double(), want * count, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_into_one_graph(traced_backend):
    space = Space(9)

    def run(z0, a, b, c, t, s):
        encodings = {name: space.block(name, x) for name, x in zip(space.names, (a, b, c), strict=True)}
        z, eps = ops.q_sample(space.block("z0", z0), encodings, t, SCHED, seed=1)
        other, _ = ops.q_sample(space.block("z0", z0), encodings, t, SCHED, noise=eps * 2)
        return z, other, *ops.step(z, space.block("z0", z0), encodings, t, SCHED, s, seed=2, clamp=1.0)

    args = *(space.x[name] for name in ("z0", *space.names)), space.t, space.s
    with ops.backend(traced_backend):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(*args), run(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_more_blocks_than_can_have_times_are_an_error():
    """z0's and 31 more have; with one more it is one line, where each is to have a time of its own."""

    def noised(blocks, t):
        z0 = Block(torch.zeros(2, 1, 2, 2), 0, blocks)
        encodings = {f"m{i}": Block(torch.zeros(2, 1, 2, 2), i, blocks) for i in range(1, blocks)}
        sched = Schedule.cosine(10, dict.fromkeys(encodings, mmfast.carried(1.0)))
        z_t, _ = ops.q_sample(z0, encodings, t, sched, seed=1)
        z_s, _ = ops.step(z_t, z0, encodings, t, sched, s=torch.zeros_like(t), target="x0", seed=1)
        return z_t.shape, z_s.shape

    assert noised(32, torch.full([2, 32], 3)) == ((2, 32, 2, 2),) * 2
    assert noised(33, torch.full([2], 3)) == ((2, 33, 2, 2),) * 2
    z_t, encodings = torch.zeros(2, 33, 2, 2), {f"m{i}": Block(torch.zeros(2, 1, 2, 2), i, 33) for i in range(1, 33)}
    sched = Schedule.cosine(10, dict.fromkeys(encodings, mmfast.carried(1.0)))
    for call in (
        lambda: noised(33, torch.full([2, 33], 3)),
        lambda: ops.step(
            z_t, Block(z_t[:, :1], 0, 33), encodings, torch.full([2, 33], 3), sched, s=torch.zeros(2, 33).long(), seed=1
        ),
    ):
        with pytest.raises(
            MmfastError, match=r"^encodings has 32 blocks; there are times of their own for 31 at most$"
        ):
            call()


class InOrder(Space):
    """Blocks that lie in the order of their names, so that the times are rows of the tables as they lie."""

    def __init__(self, seed, **options):
        super().__init__(seed, **options)
        spans = [self.x[name].shape[1] for name in ("z0", *self.names)]
        starts = np.cumsum([0, *spans]).tolist()
        self.span = {n: slice(*starts[i : i + 2]) for i, n in enumerate(("z0", *self.names))}


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "c")])
def test_times_that_are_rows_of_the_tables(each_backend, dtype, names, monkeypatch):
    """Read where they lie, with the bits of rows that torch picks; as columns of another tensor too."""
    space = InOrder(3, names=names, dtype=dtype, batch=5)
    SCHED.derived.clear()
    with ops.backend(each_backend), monkeypatch.context() as patch:
        patch.setattr(ops.block_times, "kept_rows", lambda *_: None)
        first, picked = space.q_sample(seed=1), space.q_sample(seed=1)
    part = torch.cat((space.t, space.t), 1)[:, : space.t.shape[1]]
    with ops.backend(each_backend):
        found, apart = space.q_sample(seed=1), space.q_sample(part, seed=1)
        alone = space.q_sample(seed=1, return_noise=False)
        for wrong in (T + 1, -1):
            t = space.t.clone()
            t[2, -1] = wrong
            with pytest.raises(MmfastError, match=rf"t holds {wrong}|t runs|{wrong}"):
                space.q_sample(t, seed=1)
        for t in (space.t[:, :-1], space.t[:4], space.t.float(), space.t[:, :, None]):
            with pytest.raises(MmfastError):
                space.q_sample(t, seed=1)
    for pair in (first, picked, apart):
        assert all(torch.equal(a, b) for a, b in zip(pair, found, strict=True))
    assert torch.equal(alone, found[0])


@optional.short_way
def test_times_that_are_rows_are_not_picked(monkeypatch):
    """In one call, without a gather; but where a gradient is to be recorded, torch picks them."""
    space = InOrder(3)
    space.q_sample(torch.full([3], 3))
    with monkeypatch.context() as patch:
        patch.setattr(ops.block_times, "kept_marginal", None)
        found = space.q_sample(seed=1)
    want = space.q_sample(seed=1, present=torch.ones(3, 3))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    space.x["a"].requires_grad_()
    z, _ = space.q_sample(seed=1)
    (grad,) = torch.autograd.grad(z.sum(), space.x["a"])
    weights = torch.tensor([W["a"][t] for t in space.t[:, 1]], dtype=torch.float64)
    pixels = z[0, 0].numel() // space.x["a"][0, 0].numel()
    assert torch.allclose(grad.double(), (weights * pixels)[:, None, None, None].expand_as(grad), rtol=1e-5)
