"""A backend by the flat arguments that the tests of kernels draw: terms and starts, tables, rows, key and ids apart."""

import torch

from mmfast.ops import autograd, library
from mmfast.ops.call import Bounds, Call, Noise, Tables


def call_of(terms, starts, tables, rows, *identity_and_result):
    """The Call of flat arguments; identity_and_result: key, sample_ids, stream, shape, dtype."""
    key, ids, stream, shape, dtype = identity_and_result
    noise = None if key is None else Noise(key, ids, stream)
    shape = [int(n) for n in shape]
    return Call(library._terms(terms, starts, shape), tables, rows, noise, shape, dtype)


class Flat:
    """Its ops as they were before they took a Call; anything else is the backend's own."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def _served(self, terms):
        from mmfast.ops import backends

        return backends.for_terms(self._backend, terms)

    @staticmethod
    def _both(found, dtype):
        first, second = found
        return first, first.new_empty(0, dtype=dtype) if second is None else second

    def combine(self, terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype, return_noise):
        call = call_of(terms, starts, Tables(coefs, sigma), rows, key, sample_ids, stream, shape, dtype)
        return self._both(self._served(terms).combine(call, return_noise), dtype)

    def step(self, terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels, key, sample_ids,
             stream, shape, dtype, return_x0):  # fmt: skip
        call = call_of(terms, starts, Tables(coefs, sigma, to_x0), rows, key, sample_ids, stream, shape, dtype)
        return self._both(self._served(terms).step(call, Bounds(low, high, x0_start, x0_channels), return_x0), dtype)

    def squared_error(self, terms, starts, coefs, sigma, weight, rows, key, sample_ids, stream, shape, dtype, scale,
                      return_grad):  # fmt: skip
        call = call_of(terms, starts, Tables(coefs, sigma, None, weight), rows, key, sample_ids, stream, shape, dtype)
        return self._both(self._served(terms).squared_error(call, scale, return_grad), dtype)

    def combine_backward(self, grad, terms, starts, coefs, sigma, key, sample_ids, stream, needs):
        call = call_of(terms, starts, Tables(coefs, sigma), None, key, sample_ids, stream, grad.shape, grad.dtype)
        needs = [*needs[:-1], needs[-1] and sigma is not None and key is not None]
        places = [(x.shape, start) for x, start in zip(terms, starts, strict=True)]
        return autograd.combine_backward(self._backend, call, grad, places, needs)

    def block_ranks(self, key, sample_ids, stream, batch, blocks, device):
        words = self._backend.random_words(Noise(key, sample_ids, stream), batch, blocks, torch.device(device))
        return (words << 31) + torch.arange(blocks, device=words.device)

    def block_mask(self, x, threshold, key, sample_ids, stream, block):
        return self._backend.block_mask(x, threshold, Noise(key, sample_ids, stream), tuple(block), False)

    def noise(self, key, ids, stream, shape):
        return self._backend.normals(Noise(key, ids, stream), shape, ids.device)
