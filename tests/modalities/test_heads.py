"""Draws from the heads: the distribution that the head says, the same for a sample in any batch; and what is untold."""

import pytest
import torch
from scipy import stats

from mmfast import config as configs
from mmfast.build import build_model
from mmfast.errors import MmfastError
from mmfast.modalities.base import draw_class
from mmfast.modalities.heads import READS, head_norm, one_head
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
