"""Spaces of blocks, each with a time of its own, and the design's formulas of every block alone, in float64."""

import hypothesis.strategies as st
import numpy as np
import torch
import truth

import mmfast
from mmfast import ops
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
