"""Tensors of more than 2^31 elements, for indices cut to 32 bits anywhere.

Everything is bfloat16, of 4 GiB a tensor and at most two of them at a time. What is expected comes from the noise's
definition at chosen elements, from the same op on small tensors, and from inputs that are zero but there.
"""

import pytest
import torch
from flat import cpu, reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable())),
]

CHANNELS, WIDTH = 2**21 + 7, 1024
SHAPE = [1, CHANNELS, WIDTH]
LARGE = CHANNELS * WIDTH
KEY, STREAM = (-(2**62) + 12345, 2**32 - 2), 3
DTYPE = torch.bfloat16
# Windows of a sample's elements: at its ends, and about the indices where 31 bits end, in elements and in bytes.
WINDOWS = [0, 2**30 - 64, 2**31 - 64, LARGE - 128]
# Powers of two, so that sums of their squares and products are exact.
PLACES = torch.tensor([0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, LARGE - 1])
VALUES = 2.0 ** torch.arange(len(PLACES))


def noise_at(first, count, sample_id=0):
    """Elements [first, first + count) of a sample's noise, by reference.py's generator; both multiples of 4."""
    block = torch.arange(first // 4, (first + count) // 4)
    seed, draw = KEY
    low, high = sample_id & 0xFFFFFFFF, (sample_id >> 32 & 0xFFFF) | STREAM << 16
    counter = torch.stack([block, *(torch.full_like(block, x) for x in (draw, low, high))], -1)
    words = reference.philox4x32(counter, torch.tensor([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]))
    return reference.box_muller(words).flatten()


def sparse():
    """A tensor of SHAPE that is zero but for VALUES at PLACES."""
    x = torch.zeros(SHAPE, dtype=DTYPE)
    x.view(-1)[PLACES] = VALUES.to(DTYPE)
    return x


def close(found, want):
    """A float32 sum of few terms, off by no more than 4 ulp of its noise, rounded once to bfloat16."""
    want = want.double()
    bound = want.abs() * (torch.finfo(DTYPE).eps / 2 + 2e-6) + 1e-6
    return bool(((found.double() - want).abs() <= bound).all())


def test_noise_of_one_sample():
    out, eps = cpu.combine([], [], torch.ones(1, 0), torch.full([1], 2.0), None, KEY, None, STREAM, SHAPE, DTYPE, True)
    for first in WINDOWS:
        want = noise_at(first, 128)
        assert close(out.view(-1)[first : first + 128], 2 * want) and close(eps.view(-1)[first : first + 128], want)


def test_a_whole_term_and_a_block_of_the_last_channels():
    x, last = sparse(), torch.full([1, 5, WIDTH], 16.0, dtype=DTYPE)
    coefs, sigma, start = torch.tensor([[0.5, 2.0]]), torch.ones(1), CHANNELS - 6
    out, _ = cpu.combine([x, last], [-1, start], coefs, sigma, None, KEY, None, STREAM, SHAPE, DTYPE, False)
    for first in WINDOWS:
        window = slice(first, first + 128)
        assert close(out.view(-1)[window], 0.5 * x.view(-1)[window].double() + noise_at(first, 128))
    for channel, add in [(start - 1, 0.0), (start, 32.0), (start + 4, 32.0), (start + 5, 0.0)]:
        want = add + 0.5 * x[0, channel].double() + noise_at(channel * WIDTH, WIDTH)
        assert close(out[0, channel], want)


def test_many_samples():
    batch, n = 2**16 + 64, 2**15 + 3
    shape, per_sample = [batch, n], torch.arange(batch)
    x = (per_sample % 251)[:, None].to(DTYPE)
    coefs, sigma = (1 + per_sample % 7)[:, None].float(), (per_sample % 5).float()
    out, _ = cpu.combine([x], [-1], coefs, sigma, None, KEY, None, STREAM, shape, DTYPE, False)
    ids = torch.tensor([0, 1, 2**15 - 1, 2**15, 2**16 - 7, 2**16 - 6, 2**16 - 5, 2**16 - 1, 2**16, batch - 1])
    small = [x[ids]], [-1], coefs[ids], sigma[ids], None, KEY, ids, STREAM, [len(ids), n], DTYPE, False
    assert batch * n > 2**31 and torch.equal(out[ids], cpu.combine(*small)[0])
    assert close(out[-1, : n // 4 * 4], coefs[-1] * x[-1] + sigma[-1] * noise_at(0, n // 4 * 4, batch - 1))


@pytest.mark.parametrize("start", [-1, CHANNELS - 3])
def test_step(start):
    """x0 in the last channels alone; or everywhere and not returned, which would be a third large tensor."""
    x, sigma = sparse(), torch.full([1], 0.25)
    to_x0, coefs, count = torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0]]), 2 if start >= 0 else CHANNELS
    out, x0 = cpu.step(
        [x], [-1], to_x0, coefs, sigma, None, 0.5, 4.0, start, count, KEY, None, STREAM, SHAPE, DTYPE, start >= 0
    )
    inside = slice(max(start, 0) * WIDTH, (max(start, 0) + count) * WIDTH)
    windows = [*WINDOWS, (CHANNELS - 3) * WIDTH - 64, (CHANNELS - 1) * WIDTH - 64]
    for first in windows:
        at = torch.arange(first, first + 128)
        z = x.view(-1)[at].double()
        covered = (at >= inside.start) & (at < inside.stop)
        want = 3 * z + torch.where(covered, 5 * (2 * z).clamp(0.5, 4.0), 0.0) + 0.25 * noise_at(first, 128)
        assert close(out.view(-1)[at], want)
    if start >= 0:
        assert torch.equal(x0, (2 * x[:, start : start + count]).clamp(0.5, 4.0))


def test_squared_error_and_its_gradient():
    x = sparse()
    one = torch.ones(1)
    args = [x], [-1], torch.tensor([[2.0]]), None, one, None, None, None, STREAM, SHAPE, DTYPE, 0.5
    loss, grad = cpu.squared_error(*args, True)
    assert loss.item() == 0.5 * (2 * VALUES).square().sum().item()
    assert torch.equal(grad.view(-1)[PLACES].float(), 2 * 0.5 * 2 * 2 * VALUES)
    assert torch.count_nonzero(grad) == len(PLACES)
    assert torch.equal(cpu.squared_error(*args, False)[0], loss)


def test_squared_error_of_noise():
    """Of n normals: the mean is 1, and its deviation sqrt(2 / n); of this one draw."""
    x = torch.zeros(SHAPE, dtype=DTYPE)
    one = torch.ones(1)
    loss, _ = cpu.squared_error([x], [-1], one[:, None], one, one, None, KEY, None, STREAM, SHAPE, DTYPE, 1.0, False)
    assert abs(loss.item() / LARGE - 1) < 5 * (2 / LARGE) ** 0.5 + 2.0**-24


def test_backward():
    """Products with the gradient, and its sums over what a term was broadcast along."""
    grad = sparse()
    whole, row = grad, torch.ones(1, CHANNELS, 1, dtype=DTYPE)
    of_row, of_coefs = cpu.combine_backward(
        grad, [whole, row], [-1, -1], torch.tensor([[1.0, 2.0]]), None, None, None, STREAM, [False, True, True, False]
    )
    assert of_coefs.tolist() == [[VALUES.square().sum().item(), VALUES.sum().item()]]
    want = torch.zeros(CHANNELS, dtype=torch.float64).index_add_(0, PLACES // WIDTH, 2 * VALUES.double())
    assert torch.equal(of_row.flatten(), want.to(DTYPE))


def test_block_mask():
    x = torch.ones(1, CHANNELS, 32, 32, dtype=DTYPE)
    threshold, block = torch.tensor([2**62]), [5, 16]
    out, mask = cpu.block_mask(x, threshold, KEY, None, STREAM, block)
    want = reference.block_mask(x[:, :1], threshold, KEY, None, STREAM, block)[1]
    assert torch.equal(mask, want) and 0 < want.sum() < want.numel()
    for channel in (0, 2**20 - 1, 2**20, 2**21 - 1, 2**21, CHANNELS - 1):
        assert torch.equal(out[:, channel], want[:, 0])
    del x
    assert torch.count_nonzero(out) == CHANNELS * torch.count_nonzero(want)
