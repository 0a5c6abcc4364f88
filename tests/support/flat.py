"""A backend by the flat arguments that the tests of kernels draw: terms and starts, tables, rows, key and ids apart."""

import math

import torch

from mmfast.ops import backends, gradients, library
from mmfast.ops import reference as _reference
from mmfast.ops.backends import cpu as _cpu
from mmfast.ops.backends import cuda as _cuda
from mmfast.ops.call import Bounds, Call, Noise, Tables


def call_of(terms, starts, tables, rows, *identity_and_result, levels=()):
    """The Call of flat arguments; identity_and_result: key, sample_ids, stream, shape, dtype."""
    key, ids, stream, shape, dtype = identity_and_result
    noise = None if key is None else Noise(key, ids, stream, tuple(levels))
    shape = [int(n) for n in shape]
    return Call(library._terms(terms, starts, shape), tables, rows, noise, shape, dtype)


class Flat:
    """Its ops as they were before they took a Call; anything else is the backend's own."""

    def __init__(self, backend):
        self.__dict__["_backend"] = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def __setattr__(self, name, value):
        setattr(self._backend, name, value)

    def __delattr__(self, name):
        delattr(self._backend, name)

    def _served(self, terms):
        return backends.for_terms(self._backend, terms)

    @staticmethod
    def _both(found, dtype):
        first, second = found
        return first, first.new_empty(0, dtype=dtype) if second is None else second

    def combine(
        self, terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype, return_noise, levels=()
    ):
        identity = key, sample_ids, stream
        call = call_of(terms, starts, Tables(coefs, sigma), rows, *identity, shape, dtype, levels=levels)
        return self._both(self._served(terms).combine(call, return_noise), dtype)

    def step(self, terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels, key, sample_ids,
             stream, shape, dtype, return_x0, levels=()):  # fmt: skip
        tables, identity = Tables(coefs, sigma, to_x0), (key, sample_ids, stream)
        call = call_of(terms, starts, tables, rows, *identity, shape, dtype, levels=levels)
        return self._both(self._served(terms).step(call, Bounds(low, high, x0_start, x0_channels), return_x0), dtype)

    def squared_error(self, terms, starts, coefs, sigma, weight, rows, key, sample_ids, stream, shape, dtype, scale,
                      return_grad, levels=()):  # fmt: skip
        tables, identity = Tables(coefs, sigma, None, weight), (key, sample_ids, stream)
        call = call_of(terms, starts, tables, rows, *identity, shape, dtype, levels=levels)
        return self._both(self._served(terms).squared_error(call, scale, return_grad), dtype)

    def combine_backward(self, grad, terms, starts, coefs, sigma, key, sample_ids, stream, needs, levels=()):
        tables, identity = Tables(coefs, sigma), (key, sample_ids, stream)
        call = call_of(terms, starts, tables, None, *identity, grad.shape, grad.dtype, levels=levels)
        needs = [*needs[:-1], needs[-1] and sigma is not None and key is not None]
        places = [(x.shape, start) for x, start in zip(terms, starts, strict=True)]
        return gradients.combine_backward(self._backend, call, grad, places, needs)

    def block_ranks(self, key, sample_ids, stream, batch, blocks, device):
        words = self._backend.random_words(Noise(key, sample_ids, stream), batch, blocks, torch.device(device))
        return (words << 31) + torch.arange(blocks, device=words.device)

    def block_mask(self, x, threshold, key, sample_ids, stream, block):
        return self._backend.block_mask(x, threshold, Noise(key, sample_ids, stream), tuple(block), False)

    # Of the reference's parts.

    def random_words(self, key, ids, stream, blocks):
        words = self._backend.random_words(Noise(key, ids, stream), len(ids), 4 * blocks, ids.device)
        return words.unflatten(1, (blocks, 4))

    def noise(self, key, ids, stream, shape):
        return self._backend.normals(Noise(key, ids, stream), shape, ids.device)

    @staticmethod
    def identities(ids, shape, device):
        return torch.arange(shape[0], device=device) if ids is None else ids

    @staticmethod
    def arithmetic(dtype):
        return torch.float64 if dtype == torch.float64 else torch.float32


cpu, cuda, reference = Flat(_cpu), Flat(_cuda), Flat(_reference)


def load(name):
    """A backend by name, and why it cannot run."""
    module, reason = backends.load(name)
    return Flat(module), reason


class Guards:
    """New tensors lie between guards while it is entered, and the guards are whole when it is left."""

    SIZE = 64

    def __init__(self, monkeypatch, offset=0):
        self.monkeypatch, self.offset, self.kept = monkeypatch, offset, []

    def _make(self, like, shape, dtype=None):
        shape = shape[0] if shape and not isinstance(shape[0], int) else shape
        count = math.prod(shape)
        whole = torch.full([2 * self.SIZE + self.offset + count], 77, dtype=dtype or like.dtype, device=like.device)
        first = self.SIZE + self.offset
        self.kept.append((whole, first, count))
        inside = whole[first : first + count]
        return inside.fill_(math.nan if inside.is_floating_point() else -1).view(shape)

    def __enter__(self):
        self.monkeypatch.setattr(torch, "empty_like", lambda x: self._make(x, x.shape))
        self.monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape, dtype=None: self._make(x, shape, dtype))
        return self

    def __exit__(self, *error):
        self.monkeypatch.undo()
        assert self.kept
        for whole, first, count in self.kept:
            assert (whole[:first] == 77).all() and (whole[first + count :] == 77).all()
