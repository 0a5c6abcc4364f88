"""The DiT: its blocks against a second writing in numpy, what zero gates leave of it, its positions, its learning."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmfast import config as configs
from mmfast.backbones import dit
from mmfast.backbones.features import averaged
from mmfast.build import build_data, build_model
from mmfast.errors import MmfastError
from mmfast.training.objective import losses


def small(**options):
    torch.manual_seed(0)
    spec = dit.Spec(**{"width": 16, "blocks": 4, "heads": 2, "patch": 2, "features": 3, "ratio": 1.5, **options})
    return dit.Backbone(spec, 5, 8)


def moved(module):
    """Random weights everywhere: what starts at zero would hide what is behind it."""
    torch.manual_seed(1)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def in_numpy(block, h, emb):
    """Equations of the paper's block, one example and one head at a time, in float64."""
    W = {name: p.detach().double().numpy() for name, p in block.named_parameters()}
    h, emb = h.double().numpy(), emb.double().numpy()

    def linear(x, name):
        return x @ W[f"{name}.weight"].T + W[f"{name}.bias"]

    def norm(x):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)

    found = []
    for x, e in zip(h, emb, strict=True):
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(e, "time"), 6)
        q, k, v = np.split(linear(norm(x) * (1 + scale1) + shift1, "qkv"), 3, axis=-1)
        size, heads = q.shape[-1] // block.heads, []
        for i in range(block.heads):
            own = slice(i * size, (i + 1) * size)
            scores = np.exp(q[:, own] @ k[:, own].T / math.sqrt(size))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, own])
        x = x + gate1 * linear(np.concatenate(heads, 1), "out")
        a = linear(norm(x) * (1 + scale2) + shift2, "inner")
        gelu = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        found.append(x + gate2 * linear(gelu, "outer"))
    return np.stack(found)


def test_a_block_is_the_papers():
    block = moved(dit.Block(dit.Spec(width=12, heads=3, ratio=2.5)))
    h, emb = torch.randn(2, 5, 12), torch.randn(2, 12)
    found = block(h, emb).detach().numpy()
    np.testing.assert_allclose(found, in_numpy(block, h, emb), rtol=2e-4, atol=2e-4)


def test_at_first_the_blocks_pass_their_tokens_on():
    """Gates of zero: the last layer sees the tokens as they came in, and every pixel's own input goes past them."""
    net, x, t = small(), torch.randn(2, 5, 8, 8), torch.tensor([3, 700])
    tokens = net.first(F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)) + dit.positions(16, 4)
    normal = F.layer_norm(tokens, (16,), eps=1e-6)
    expected = F.pixel_shuffle(net.last(normal).transpose(1, 2).reshape(2, 12, 4, 4), 2) + net.past(x)
    found = net(x, t)
    torch.testing.assert_close(found.pixels, expected)
    # Read twice, after one block and after two; in quarters of the image, of 2 x 2 tokens each.
    quarters = tokens.reshape(2, 2, 2, 2, 2, 16).mean((2, 4)).permute(0, 3, 1, 2).flatten(1)
    torch.testing.assert_close(found.before, torch.cat((quarters, quarters), 1))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 1), (3, 2)])
def test_a_position_is_sines_and_cosines_of_row_and_column(row, column):
    found = dit.positions(12, 4).reshape(4, 4, 12)[row, column]
    angles = [[place * 10_000 ** (-k / 3) for k in range(3)] for place in (row, column)]
    expected = [f(a) for line in angles for f in (math.sin, math.cos) for a in line]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_positions_are_fixed_and_no_part_of_a_checkpoint():
    net = small()
    assert not any("positions" in name for name in net.state_dict()) and not net.positions.requires_grad


def test_moving_patches_with_their_positions_moves_the_features():
    """Attention knows no order but the positions'."""
    net, x, t = moved(small()).double(), torch.randn(2, 5, 8, 8).double(), torch.tensor([3, 700])
    before = net(x, t).pixels
    order = torch.randperm(16)
    cells = F.pixel_unshuffle(x, 2).flatten(2)[:, :, order].reshape(2, 20, 4, 4)
    net.positions = net.positions[order]
    after = net(F.pixel_shuffle(cells, 2), t).pixels
    expected = F.pixel_shuffle(F.pixel_unshuffle(before, 2).flatten(2)[:, :, order].reshape(2, 12, 4, 4), 2)
    torch.testing.assert_close(after, expected)
    net.positions = dit.positions(16, 4).double()
    assert not torch.allclose(net(F.pixel_shuffle(cells, 2), t).pixels, expected, atol=1e-3)


@pytest.mark.parametrize("blocks", [2, 3, 6])
def test_the_encoder_is_half_of_the_blocks(blocks):
    """A block of the encoder moves what is read; one of the decoder does not, and moves the pixels."""
    net, x, t = moved(small(blocks=blocks)), torch.randn(2, 5, 8, 8), torch.tensor([3, 700])
    plain = net(x, t)
    for k, block in enumerate(net.blocks):
        nn.init.normal_(block.outer.bias, std=3.0)
        found = net(x, t)
        assert torch.equal(found.before, plain.before) == (k >= blocks // 2)
        assert not torch.allclose(found.pixels, plain.pixels, atol=1e-3)
        plain = found


@pytest.mark.parametrize("decode", [True, False])
def test_the_levels_are_the_tokens_halfway_through_the_encoder_and_at_its_end(decode):
    net, x, seen = moved(small(blocks=8)), torch.randn(2, 5, 8, 8), {}
    for k, block in enumerate(net.blocks, 1):
        block.register_forward_hook(lambda module, inputs, out, k=k: seen.__setitem__(k, out))
    found = net(x, torch.tensor([3, 700]), decode=decode)
    image, *levels = found.levels
    assert image is x and [x.shape[1] for x in found.levels] == [*net.levels] == [5, 16, 16]
    for k, level in zip((2, 4), levels, strict=True):
        assert torch.equal(level, seen[k].transpose(1, 2).reshape(2, 16, 4, 4))
    assert torch.equal(found.before, torch.cat([averaged(level) for level in levels], 1))
    assert (8 in seen) == decode


def test_each_block_of_the_decoder_is_told_and_none_of_the_encoder():
    net, x, t = moved(small()), torch.randn(2, 5, 8, 8), torch.tensor([3, 700])
    beside, told, seen = torch.randn(2, 16), torch.randn(2, 16), []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    net(x, t, beside, told)
    angles = t[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
    time = net.time(torch.cat((angles.cos(), angles.sin()), 1)) + beside
    for k, emb in enumerate(seen):
        torch.testing.assert_close(emb, F.silu(time if k < 2 else time + told), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "backbone.patch is 3; it should divide 8 pixels"),
        ({"width": 18}, "backbone.width is 18; it should be a multiple of 4 and of 2 heads"),
        ({"width": 16, "heads": 3}, "backbone.width is 16; it should be a multiple of 4 and of 3 heads"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(MmfastError, match=message):
        small(**options)


@pytest.mark.slow
def test_it_learns_the_digits():
    """Every part of the loss falls, the label's too, which is read off the encoder."""
    options = "{kind: dit, width: 48, blocks: 2, heads: 3, patch: 2, features: 8}"
    config = configs.load("digits", [("backbone", options), ("modalities.label.weight.kind", "none")])
    model, data = build_model(config), build_data(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    found = []
    for step in range(60):
        numbers = torch.arange(32 * step, 32 * step + 32)
        batch = data.train.__getitems__((numbers % len(data.train)).tolist())
        parts = losses(model, batch, numbers, config)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step(), optimizer.zero_grad()
        found.append(torch.stack(list(parts.values())).detach())
    first, last = torch.stack(found[:10]).mean(0), torch.stack(found[-10:]).mean(0)
    assert list(parts) == ["image", "label", "mask"]
    assert bool((last < first * torch.tensor([0.6, 0.9, 0.7])).all()), (first, last)
