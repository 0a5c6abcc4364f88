"""A time for each block of channels, against the design's formulas of every block alone, in float64."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import truth
from hypothesis import given
from problems import everywhere
from torch.autograd import gradcheck

import mmfast
from mmfast import MmfastError, ops
from mmfast.ops import Block

T = 40
WEIGHTS = {"a": ("bridge", 2.0), "b": ("carried", 1.0), "c": ("bridge", 0.5)}
SCHED = mmfast.Schedule.cosine(T, {name: mmfast.schedule.Weight(*w) for name, w in WEIGHTS.items()})
ABAR = truth.cosine(T)
W = {name: truth.weight(*w, ABAR) for name, w in WEIGHTS.items()}
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Space:
    """Blocks of a random order and width: z0's is "z0", the encodings are named as the schedule's."""

    def __init__(self, seed, batch=3, names=("a", "b", "c"), dtype=torch.float32, z0_first=False, broadcast=True):
        g = torch.Generator().manual_seed(seed)
        self.names, self.dtype, self.batch = names, dtype, batch
        order = [("z0", *names)[i] for i in torch.randperm(1 + len(names), generator=g)]
        order = sorted(order, key=lambda name: z0_first and name != "z0")
        self.span, self.channels = {}, 0
        for name in order:
            width = int(torch.randint(1, 4, (), generator=g))
            self.span[name] = slice(self.channels, self.channels + width)
            self.channels += width
        self.shape = [batch, self.channels, *torch.randint(1, 7, (2,), generator=g).tolist()]
        self.x = {}
        for name, span in self.span.items():
            kinds = [self.shape[2:], [1, 1]] if broadcast and name != "z0" else [self.shape[2:]]
            size = kinds[int(torch.randint(0, len(kinds), (), generator=g))]
            self.x[name] = self.normal(g, batch, span.stop - span.start, *size)
        self.t = torch.randint(1, T + 1, (batch, 1 + len(names)), generator=g)
        self.s = (self.t * torch.rand(self.t.shape, generator=g)).long().clamp(max=T - 1)
        self.z_t, self.eps = self.normal(g, *self.shape), self.normal(g, *self.shape)

    def normal(self, g, *shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(self.dtype)

    def block(self, name, x=None):
        return Block(self.x[name] if x is None else x, self.span[name].start, self.channels)

    @property
    def encodings(self):
        return {name: self.block(name) for name in self.names}

    def q_sample(self, t=None, **options):
        return ops.q_sample(self.block("z0"), self.encodings, self.t if t is None else t, SCHED, **options)

    def each(self, t):
        """(sample, block's name, its channels, its own time) of every block."""
        for b in range(self.batch):
            for i, name in enumerate(("z0", *self.names)):
                yield b, name, self.span[name], int(t[b, i])

    def expect(self, found, terms_of, more=0.0):
        """found[b, span] is the sum of terms_of(b, name, t), to rounding."""
        assert found.dtype == self.dtype and list(found.shape) == self.shape
        for b, name, span, t in self.each(self.t):
            terms = [(c, np.asarray(x, np.float64)) for c, x in terms_of(b, name, span, t)]
            want, size = truth.total(terms), truth.size(terms)
            unit = max(UNIT[self.dtype], 2.0**-24 if self.dtype != torch.float64 else 0)
            # Noise is float32, within 4 ulp, whatever the type.
            bound = (2 * len(terms) + 6) * unit * size + 2.0**-21 * more + 2.0**-24
            error = np.abs(found[b, span].double().numpy() - want)
            assert (error <= bound).all(), (b, name, t, error.max())

    def value(self, name, b):
        return self.x[name][b].double().numpy()


def spaces(**fixed):
    return st.builds(
        Space,
        st.integers(0, 2**31),
        batch=st.integers(1, 4),
        names=st.sampled_from([(), ("b",), ("c", "a"), ("b", "c", "a")]),
        dtype=st.sampled_from(list(UNIT)),
        **{name: st.just(value) for name, value in fixed.items()},
    )


def noise_of(space, **identity):
    with ops.backend("reference"):
        return ops.randn(space.shape, **identity).double().numpy()


# --- forward ------------------------------------------------------------------------------------------------


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


# --- reverse ------------------------------------------------------------------------------------------------


def jump_of(space, s, b, name):
    return int(s[b, ("z0", *space.names).index(name)])


def posterior_terms(space, s):
    def terms(b, name, span, t):
        z, eps = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
        to = jump_of(space, s, b, name)
        if to == t:
            return [(1.0, z)]
        encoding = [] if name == "z0" else [space.value(name, b)]
        own = np.zeros((T + 1, 0)) if name == "z0" else W[name][:, None]
        return truth.posterior(ABAR, own, t, to, z, eps, encoding)

    return terms


@given(spaces(), st.booleans())
def test_the_posterior_of_each_block_alone(each_backend, space, default):
    s = (space.t - 1).clamp(min=0) if default else space.s
    noise = noise_of(space, seed=6)
    with ops.backend(each_backend):
        call = space.z_t, space.eps, space.encodings, space.t, SCHED, None if default else s
        mean, sample = ops.posterior_mean(*call), ops.posterior_sample(*call, seed=6)
    terms = posterior_terms(space, s)

    def with_noise(b, name, span, t):
        to = jump_of(space, s, b, name)
        return [*terms(b, name, span, t), (truth.deviation(ABAR, t, to) if to < t else 0.0, noise[b, span])]

    space.expect(mean, terms)
    space.expect(sample, with_noise, np.abs(noise).max())


@given(spaces(), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 0.4]), st.booleans())
def test_the_step_of_each_block_alone(each_backend, space, eta, clamp, whole):
    """z0's block by the clamped z0hat; an encoding's of z0hat = 0 there, or as its own part of the prediction says."""
    noise, s = noise_of(space, seed=6), space.s
    span0 = space.span["z0"]
    eps = space.eps if whole else space.block("z0", space.eps[:, span0])
    with ops.backend(each_backend):
        z, z0hat = ops.step(
            space.z_t, eps, space.encodings, space.t, SCHED, s, eta=eta, clamp=clamp, seed=6
        )  # fmt: skip
    assert z0hat.shape == space.x["z0"].shape

    def terms(b, name, span, t):
        to = jump_of(space, s, b, name)
        z_t, e = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
        if to == t:
            return [(1.0, z_t)]
        own, encoding = (np.zeros((T + 1, 0)), []) if name == "z0" else (W[name][:, None], [space.value(name, b)])
        hat = [(c, x) for c, x in truth.predicted_z0(ABAR, own, t, z_t, e, encoding)]
        if name == "z0" and clamp is not None:
            hat = [(1.0, np.clip(truth.total(hat), -clamp, clamp))]
        elif name != "z0" and not whole:
            hat = []
        sigma = eta * truth.deviation(ABAR, t, to)
        of_y = math.sqrt((1 - ABAR[to] - sigma**2) / (1 - ABAR[t])) if to else 0.0
        of_z0 = math.sqrt(ABAR[to]) - of_y * math.sqrt(ABAR[t])
        parts = [(of_z0 * c, x) for c, x in hat] + [(of_y, z_t), (sigma, noise[b, span])]
        return parts + [(-of_y * own[t, 0], x) for x in encoding] + [(own[to, 0], x) for x in encoding]

    space.expect(z, terms, np.abs(noise).max())
    for b, name, span, t in space.each(space.t):
        if name == "z0":
            z_t, e = space.z_t[b, span].double().numpy(), space.eps[b, span].double().numpy()
            hat = truth.predicted_z0(ABAR, np.zeros((T + 1, 0)), t, z_t, e, [])
            want, bound = truth.total(hat), 8 * UNIT[space.dtype] * truth.size(hat) + 2.0**-22
            want = want if clamp is None else np.clip(want, -clamp, clamp)
            assert (np.abs(z0hat[b].double().numpy() - want) <= bound + 2.0**-22 * truth.size(hat)).all()


def test_a_clamped_posterior_sample_is_the_step_with_its_eps(each_backend):
    space = Space(8)
    call = space.encodings, space.t, SCHED, space.s
    with ops.backend(each_backend):
        sample = ops.posterior_sample(space.z_t, space.eps, *call, 0.3, seed=6)
        assert torch.equal(sample, ops.step(space.z_t, space.eps, *call, clamp=0.3, seed=6)[0])


@pytest.mark.parametrize("time", [0, 17, T])
def test_a_block_whose_time_stays_is_left_alone(each_backend, time):
    """Bit for bit, and from t = 0 too, where the formulas are 0/0; the others go on."""
    space, block = Space(3, dtype=torch.float32), Block
    names = ("z0", *space.names)
    prediction = block(space.eps[:, space.span["z0"]].contiguous(), space.span["z0"].start, space.channels)
    for still in names:
        t, s = space.t.clamp(min=2), torch.ones_like(space.t)
        t[:, names.index(still)] = s[:, names.index(still)] = time
        call = space.encodings, t, SCHED, s
        with ops.backend(each_backend):
            results = [
                ops.posterior_mean(space.z_t, space.eps, *call),
                ops.posterior_sample(space.z_t, space.eps, *call, seed=1),
                ops.posterior_sample(space.z_t, space.eps, *call, 0.5, seed=1),
                ops.step(space.z_t, space.eps, *call, seed=1)[0],
                ops.step(space.z_t, prediction, *call, seed=1, clamp=0.5)[0],
            ]
            if time == 0:  # by default too
                results.append(ops.posterior_sample(space.z_t, space.eps, *call[:-1], seed=1))
        for z in results:
            assert z.isfinite().all()
            for name, span in space.span.items():
                assert torch.equal(z[:, span], space.z_t[:, span]) == (name == still)


def test_from_z_t_back_to_an_earlier_marginal(each_backend):
    """With the true eps the jump's mean is sqrt(abar_s) z_0 + c eps (W_s E_i + c eps), c = sqrt(a) (1 - abar_s)/sqrt(1
    - abar_t): the marginal's mean at s and its share of the noise."""
    space = Space(4, dtype=torch.float64)
    with ops.backend(each_backend):
        z_t, eps = space.q_sample(seed=2)
        mean = ops.posterior_mean(z_t, eps, space.encodings, space.t, SCHED, space.s)

    def terms(b, name, span, t):
        to = jump_of(space, space.s, b, name)
        weight = math.sqrt(ABAR[to]) if name == "z0" else W[name][to]
        share = math.sqrt(ABAR[t] / ABAR[to]) * (1 - ABAR[to]) / math.sqrt(1 - ABAR[t])
        return [(weight, space.value(name, b)), (share, eps[b, span].numpy())]

    for b, name, span, t in space.each(space.t):
        parts = terms(b, name, span, t)
        np.testing.assert_allclose(mean[b, span].numpy(), truth.total(parts), rtol=0, atol=1e-9 * 10)


def test_a_step_that_reads_no_missing_encoding(each_backend):
    space = Space(6)
    present = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]])
    for i, name in enumerate(space.names):
        space.x[name] = space.x[name].clone()
        space.x[name][present[:, i] == 0] = math.nan
    call = space.encodings, space.t, SCHED, space.s
    with ops.backend(each_backend):
        z, _ = ops.step(space.z_t, space.block("z0"), *call, seed=1, present=present)
        for name in space.names:
            space.x[name].nan_to_num_(0.0)
        zero, _ = ops.step(space.z_t, space.block("z0"), *call, seed=1)
    torch.testing.assert_close(z, zero, rtol=0, atol=1e-6)


# --- around it ----------------------------------------------------------------------------------------------


def test_gradients(each_backend):
    """Against finite differences, through the short way, the checked one and the noise handed in."""
    space = Space(2, batch=2, names=("b", "a"), dtype=torch.float64)
    leaves = [space.x[name].requires_grad_() for name in ("z0", "b", "a")]
    with ops.backend(each_backend):
        assert gradcheck(lambda *_: space.q_sample(seed=1)[0], leaves)
        noise = space.eps.requires_grad_()
        assert gradcheck(lambda *_: space.q_sample(noise=noise)[0], [*leaves, noise])
        z, call = space.z_t.requires_grad_(), (space.encodings, space.t, SCHED, space.s)
        assert gradcheck(lambda *_: ops.posterior_sample(z, noise, *call, seed=1), [z, noise, *leaves[1:]])
        assert gradcheck(lambda *_: ops.step(z, noise, *call, seed=1, eta=0.5), [z, noise, *leaves[1:]])
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


SPACE = Space(1, names=("a", "b"), z0_first=True)
Z0, E, TIMES = SPACE.block("z0"), SPACE.encodings, SPACE.t
PLAIN = SPACE.x["z0"].new_zeros(SPACE.shape)


def q(z0=Z0, encodings=E, t=TIMES, **options):
    return ops.q_sample(z0, encodings, t, SCHED, **options)


def jump(z_t=PLAIN, eps=PLAIN, encodings=E, t=TIMES, s=None):
    return ops.posterior_mean(z_t, eps, encodings, t, SCHED, s)


def moved(block, by):
    return Block(block.tensor, block.start + by, block.channels + by)


WRONG = {
    "a time for too few": (lambda: q(t=TIMES[:, :2]), r"t is torch.int64 \[3, 2\].*int64 \[3, 3\]"),
    "a time for too few samples": (lambda: q(t=TIMES[:1]), r"t is torch.int64 \[1, 3\].*int64 \[3, 3\]"),
    "times of floats": (lambda: q(t=TIMES.float()), r"t is torch.float32"),
    "a time too late": (lambda: q(t=TIMES + T), f"t runs from .*0 .. {T}"),
    "a time too early": (lambda: q(t=TIMES - T - 1), f"t runs from .*0 .. {T}"),
    "z0 no block": (lambda: q(PLAIN), "t is .*z0 is a tensor of all channels.*Block"),
    "an encoding no block": (lambda: q(encodings={**E, "a": PLAIN}), r"encodings\['a'\] is a tensor of all channels"),
    "blocks that overlap": (lambda: q(encodings={**E, "a": Z0}), "z0, encodings cover the channels .*not overlap"),
    "as many channels as there are, some twice": (
        lambda: q(
            Block(torch.zeros(3, 2, 4), 0, 6),
            {"a": Block(torch.zeros(3, 2, 4), 1, 6), "b": Block(torch.zeros(3, 2, 4), 4, 6)},
        ),
        "z0 0 .. 1, a 1 .. 2, b 4 .. 5 of 6",
    ),
    "channels of nobody": (
        lambda: q(moved(Z0, 1), {name: moved(x, 1) for name, x in E.items()}),
        "z0, encodings cover the channels .*cover all",
    ),
    "an encoding left out": (lambda: q(encodings={"a": E["a"]}, t=TIMES[:, :2]), "z0, encodings cover the channels"),
    "z_t a block": (lambda: jump(Z0), "z_t is .*a tensor"),
    "s after t": (lambda: jump(t=TIMES * 0 + 3, s=TIMES * 0 + 4), "s is after t"),
    "s for the batch": (lambda: jump(s=TIMES[:, 0]), r"s is torch.int64 \[3\].*int64 \[3, 3\]"),
    "t for the batch": (lambda: jump(t=TIMES[:, 0], s=TIMES), r"t is torch.int64 \[3\].*int64 \[3, 3\]"),
    "t an int": (lambda: jump(t=5, s=TIMES), r"t is 5.*int64 \[3, 3\]"),
    "encodings that overlap": (lambda: jump(encodings={**E, "a": Z0, "b": Z0}), "encodings cover .*one run"),
    "a prediction of other channels": (lambda: jump(eps=E["a"]), "eps is a Block of .*z0's"),
    "the loss": (lambda: ops.diffusion_loss(PLAIN, PLAIN, TIMES, SCHED, seed=1), "t "),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name, kept):
    SCHED.derived.clear()
    if kept:
        q(t=3), jump(t=3)
    call, message = WRONG[name]
    with pytest.raises(MmfastError, match=message):
        call()
