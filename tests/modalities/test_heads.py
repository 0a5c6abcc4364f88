"""Draws from the heads: the distribution that the head says, the same for a sample in any batch; and what is untold."""

import optional
import pytest
import torch
from scipy import stats

from mmfast import config as configs
from mmfast.build import build_model
from mmfast.errors import MmfastError
from mmfast.modalities.base import draw_class
from mmfast.modalities.heads import READS, Pyramid, head_norm, one_head
from mmfast.sample import sample


def test_classes_are_drawn_with_the_heads_probabilities():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0]).expand(40_000, 4)
    drawn = draw_class(logits, torch.randn(40_000, 4, generator=torch.Generator().manual_seed(0)))
    expected = logits[0].softmax(0) * len(drawn)
    assert (
        stats.chisquare(drawn.bincount(minlength=4).numpy(), expected.double() * len(drawn) / expected.sum()).pvalue
        > 1e-3
    )
    # So far in the tail that the uniform is 0 in float32: still a number.
    assert bool(torch.isfinite(torch.log(-torch.special.log_ndtr(torch.tensor([-30.0, 5.0])))).all())


def test_sampled_heads_depend_on_the_sample_and_not_on_the_batch():
    model = build_model(configs.load("digits"))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    whole = sample(model, 6, steps=3, heads="sampled")
    split = sample(model, 6, steps=3, heads="sampled", batch_size=2)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole["image"], sample(model, 6, steps=3)["image"], atol=1e-3)
    with pytest.raises(MmfastError, match="heads is 'hard'"):
        sample(model, 6, steps=3, heads="hard")


def test_an_untold_network_sees_zeros_whatever_is_given():
    told, untold = (build_model(configs.load("digits", [("told", value)])) for value in ("true", "false"))
    image, label, flags = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.ones(2, 3)
    encodings = told.encode({"label": label})
    t = torch.tensor([5, 6])
    heard, unheard = (model.tell(image, encodings, model.times(t, flags)) for model in (told, untold))
    assert all(float(heard[name].abs().sum()) > 0 for name in ("image", "label"))
    assert all(float(unheard[name].abs().sum()) == 0 for name in ("image", "label"))
    assert {name: x.shape for name, x in heard.items()} == {name: x.shape for name, x in unheard.items()}


GROUPS = {256: 32, 128: 32, 96: 16, 64: 16, 48: 8, 32: 8, 24: 4, 16: 4, 12: 2, 8: 2, 6: 1, 4: 1, 7: 1}


def test_a_head_of_a_picture_has_groups_of_four_channels_at_least():
    for features, groups in GROUPS.items():
        norm, activation = head_norm(features)
        assert (norm.num_groups, norm.num_channels) == (groups, features) and isinstance(activation, torch.nn.SiLU)
        assert head_norm(features, pixels=1)[0].num_groups == 1


def test_the_sizes_of_a_head_of_what_an_image_has_one_of():
    """Checkpoints hold them: 128 numbers between, and of the last features a grid of 4 x 4."""
    shapes = {reads: [list(p.shape) for p in one_head(reads, 10, 3).parameters()] for reads in READS}
    ends = [[128], [3, 128], [3]]
    assert shapes["encoder"] == [[10], [10], [128, 10], *ends]
    assert shapes["decoder"] == [[160], [160], [128, 160], *ends]
    pooled, x = one_head("decoder", 2, 3), torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = x.reshape(5, 2, 4, 2, 4, 2).mean((3, 5)).flatten(1)
    for layer in list(pooled)[2:]:
        found = layer(found)
    torch.testing.assert_close(pooled(x), found)


def normed(x, layer):
    """GroupNorm by its definition, then SiLU."""
    grouped = x.unflatten(1, (layer.num_groups, -1)).flatten(2)
    mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    normal = ((grouped - mean) / (var + layer.eps).sqrt()).view(x.shape)
    normal = normal * layer.weight[:, None, None] + layer.bias[:, None, None]
    return normal * normal.sigmoid()


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_pyramid_adds_the_coarse_levels_to_the_finer_ones_up_to_the_input():
    """Level by level with torch's own convolutions; two levels of one size are added as they are."""
    generator = torch.Generator().manual_seed(1)
    sizes = {3: (8, 12), 5: (4, 6), 6: (2, 3), 7: (2, 3)}  # of the input, and of three levels, by their channels
    levels = [torch.randn(2, c, *size, generator=generator).double() for c, size in sizes.items()]
    head = Pyramid([*sizes], 4, width=16).double()
    for p in head.parameters():
        p.data = torch.randn(p.shape, generator=generator).double() * 0.2
    h = 0
    for k in (2, 1, 0):
        norm1, conv1, norm2, conv2 = head.blocks[k].layers
        h = head.lateral[k](levels[k + 1]) + (doubled(h) if k == 0 else h)
        h = h + conv2(normed(conv1(normed(h, norm1[0])), norm2[0]))
    norm, out = head.out
    h = out(normed(head.last(doubled(h)) + head.past(levels[0]), norm[0]))
    found = head([levels[0], *(x.to(memory_format=torch.channels_last) for x in levels[1:])])
    assert found.shape == (2, 4, 8, 12)
    torch.testing.assert_close(found, h)


def test_every_block_of_a_pyramid_begins_as_the_identity():
    head = Pyramid([3, 5], 4, width=16)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(head.blocks[0](x), x)


@pytest.mark.parametrize("kind", ["unet", "dit", "adm", "diffusers"])
def test_a_mask_that_the_encoder_reads_is_told_nothing_of_the_label(kind):
    """Through the model: from the levels of every backbone with a grid, with and without the decoder."""
    if kind == "diffusers":
        optional.diffusers()
    small = {
        "unet": "{kind: unet, channels: 16, multipliers: [1, 2], norm: group}",
        "dit": "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}",
        "adm": "{kind: adm, channels: 16, multipliers: [1, 2], blocks: 1, attention: []}",
        "diffusers": "{kind: diffusers, block_out_channels: [8, 16], down_block_types: [DownBlock2D, DownBlock2D], "
        "up_block_types: [UpBlock2D, UpBlock2D], layers_per_block: 1, norm_num_groups: 4}",
    }
    pairs = [("backbone", small[kind]), ("modalities.mask.reads", "encoder")]
    model = build_model(configs.load("digits", pairs)).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    z = torch.randn(3, model.channels, 8, 8, generator=generator)
    times = torch.tensor([[5, 0, 5]] * 3)
    assert model.names == ("label", "mask")
    told = [model.tell(None, model.encode({"label": torch.full((3,), k)}), times) for k in (1, 2)]
    one, other = (model(z, times, x) for x in told)
    assert one.heads["mask"].shape == (3, 2, 8, 8)
    assert torch.equal(one.heads["mask"], other.heads["mask"]) and not torch.equal(one.anchor, other.anchor)
    alone = model(z, times, told[0], only_heads=["mask"])
    assert alone.anchor is None and [*alone.heads] == ["mask"]
    torch.testing.assert_close(alone.heads["mask"], one.heads["mask"])
    assert [x.shape[1] for x in one.features.levels] == [*model.backbone.levels]
    half = model.half()
    assert half(z.half(), times, told[0]).heads["mask"].dtype == torch.float32


def test_a_backbone_without_a_grid_cannot_be_read_by_a_mask():
    with pytest.raises(
        MmfastError, match=r"modalities\.mask\.reads is encoder, but the encoder of this backbone has no"
    ):
        build_model(configs.load("digits", [("modalities.mask.reads", "encoder")]))
