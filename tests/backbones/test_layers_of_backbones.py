"""The layers of the backbones by value: formulas in float64, written out with numpy."""

import contextlib

import numpy as np
import pytest
import torch
from scipy.special import expit

from mmfast.backbones import features, mlp, unet


def filled(module):
    """In float64, with random weights everywhere; their values by name."""
    torch.manual_seed(0)
    for p in module.double().parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module.eval(), {name: p.detach().numpy() for name, p in module.named_parameters()}


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def silu(x):
    return x * expit(x)


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def group_norm(w, name, x, groups):
    shape = x.shape
    grouped = x.reshape(shape[0], groups, -1)
    normal = layer_norm(grouped).reshape(shape)
    return normal * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def sinusoids(t, width):
    half = width // 2
    angles = np.array(t)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((len(t), width % 2))], 1)


def conv(w, name, x):
    """3 x 3 with zeros around, or 1 x 1."""
    weight = w[f"{name}.weight"]
    side = weight.shape[2]
    padded = np.pad(x, [(0, 0), (0, 0), *[(side // 2,) * 2] * 2])
    H, W = x.shape[2:]
    parts = [
        np.einsum("oi,bihw->bohw", weight[:, :, i, j], padded[:, :, i : i + H, j : j + W])
        for i in range(side)
        for j in range(side)
    ]
    return sum(parts) + w[f"{name}.bias"][:, None, None]


@pytest.mark.parametrize("width", [8, 9])
def test_the_embedding_of_a_time(width):
    t = torch.tensor([0, 1, 7, 1000])
    found = features.timestep_embedding(t, width)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, sinusoids(t.tolist(), width), atol=1e-4)


def test_attention_is_a_mean_of_values_weighted_by_softmax():
    q, k, v = (random(2, 3, n, 5) for n in (4, 6, 6))
    v = v[::-1]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(5)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = features.attend(*(torch.from_numpy(x.copy()) for x in (q, k, v)))
    np.testing.assert_allclose(found, weights @ v, atol=1e-12)


def test_the_fast_way_of_attention_on_a_cpu_is_for_gradients_of_few_tokens():
    plain = contextlib.nullcontext
    cpu = torch.device("cpu")
    assert not isinstance(features.kernels(cpu, 1024), plain) and isinstance(features.kernels(cpu, 1025), plain)
    assert isinstance(features.kernels(torch.device("cuda"), 16), plain)
    with torch.no_grad():
        assert isinstance(features.kernels(cpu, 16), plain)


def test_what_a_head_reads_are_means_over_two_by_two():
    h = random(2, 3, 4, 6)
    found = features.averaged(torch.from_numpy(h).to(memory_format=torch.channels_last))
    np.testing.assert_allclose(found, h.reshape(2, 3, 2, 2, 2, 3).mean((3, 5)).reshape(2, 12))


@pytest.mark.parametrize("told", [False, True])
def test_the_mlp(told):
    """Residual blocks over the pixels of all channels at once; the decoder, the later half, is told more."""
    net, w = filled(mlp.Backbone(mlp.Spec(width=6, blocks=3, features=5), 2, (3, 4)))
    x, t, beside, more = random(2, 2, 3, 4), [3, 900], random(2, 6), random(2, 6)
    embedding = linear(w, "time.2", silu(linear(w, "time.0", sinusoids(t, 6).astype(np.float32)))) + beside
    h = linear(w, "first", x.reshape(2, -1))
    for k in range(3):
        if k == 1:
            before, embedding = h, embedding + more * told
        scale, shift = np.split(linear(w, f"blocks.{k}.time", silu(embedding)), 2, 1)
        inner = linear(w, f"blocks.{k}.inner", layer_norm(h) * (1 + scale) + shift)
        h = h + linear(w, f"blocks.{k}.outer", silu(inner))
    last = linear(w, "last", layer_norm(h) * w["norm.weight"] + w["norm.bias"]).reshape(2, 5, 3, 4)
    tensors = [torch.from_numpy(a) for a in (x, np.array(t), beside)]
    found = net(*tensors, torch.from_numpy(more) if told else None)
    np.testing.assert_allclose(found.pixels.detach(), last + conv(w, "past", x), atol=1e-5)
    np.testing.assert_allclose(found.before.detach(), before, atol=1e-5)
    assert (net.features, net.reads, net.embedding_width) == (5, 6, 6)


def test_the_mlp_begins_as_what_its_first_and_last_layers_are():
    net = mlp.Backbone(mlp.Spec(width=6, blocks=2, features=5), 2, 4)
    x, t = torch.randn(2, 2, 4, 4), torch.tensor([1, 9])
    assert torch.equal(net(x, t).before, net.first(x.flatten(1)))


@pytest.mark.parametrize("resample", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("outputs", [4, 8])
def test_a_residual_block_of_the_u_net(resample, outputs):
    block, w = filled(unet.Residual(4, outputs, 6, unet.Spec(norm="group"), resample))
    x, emb = random(2, 4, 4, 6), random(2, 6)

    def resized(x):
        if resample == 2:
            return x.repeat(2, 2).repeat(2, 3)
        return x if resample == 1 else x.reshape(*x.shape[:2], 2, 2, 3, 2).mean((3, 5))

    h = conv(w, "conv1", resized(silu(group_norm(w, "norm1", x, 4))))
    scale, shift = np.split(linear(w, "time", emb)[:, :, None, None], 2, 1)
    h = conv(w, "conv2", silu(group_norm(w, "norm2", h, outputs) * (1 + scale) + shift))
    passed = resized(x) if outputs == 4 else conv(w, "skip", resized(x))
    found = block(torch.from_numpy(x), torch.from_numpy(emb))
    np.testing.assert_allclose(found.detach(), passed + h, atol=1e-10)


@pytest.mark.parametrize(("head_channels", "heads"), [(64, 1), (3, 4), (5, 2), (1, 12)])
def test_self_attention_of_the_u_net(head_channels, heads):
    """As many heads as the channels of one allow, and divide all."""
    layer, w = filled(unet.Attention(12, unet.Spec(norm="group", head_channels=head_channels)))
    x = random(2, 12, 2, 3)
    qkv = conv(w, "qkv", group_norm(w, "norm", x, 4)).reshape(2, 3, heads, 12 // heads, 6).swapaxes(-1, -2)
    q, k, v = (qkv[:, i] for i in range(3))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(12 // heads))
    seen = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(-1, -2).reshape(2, 12, 2, 3)
    found = layer(torch.from_numpy(x), torch.zeros(0))
    np.testing.assert_allclose(found.detach(), x + conv(w, "out", seen), atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 2), (3, 1), (6, 2), (12, 4), (24, 8), (48, 16), (64, 32), (96, 32)]
)
def test_groups_of_channels_divide_them(channels, groups):
    assert unet.GroupNorm(channels).num_groups == groups
