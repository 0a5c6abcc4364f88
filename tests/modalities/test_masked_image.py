"""Hidden parts: made from the image, of the share asked for, hidden values without effect, and restored by the head."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.held_out import held_out
from mmfast.modalities import SpaceShape
from mmfast.modalities.masked_image import Masked, MaskedSpec
from mmfast.sample import sample
from mmfast.training.objective import losses

SIZE, B = 8, 6
OPTIONS = [
    ("data.kind", "digits"),
    ("backbone", "{kind: mlp, width: 32, blocks: 1, features: 8}"),
    ("modalities.masked", "{kind: masked, of: image, channels: 1, size: 8, block: 2}"),
]


def make(**options):
    part = Masked("masked", MaskedSpec(channels=3, size=SIZE, block=2, **options), SpaceShape(SIZE, SIZE))
    torch.manual_seed(0)
    part.build_head(8)
    return part, torch.rand(B, 3, SIZE, SIZE) * 2 - 1


def config(*more):
    return configs.load("digits", [*OPTIONS, *more])


def reading(target):
    """A model whose hidden parts are restored off the encoder, with weights that are not zero."""
    more = [
        ("backbone", "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"), ("loss.target", target),
        ("modalities.masked.reads", "encoder"),
    ]  # fmt: skip
    model = build_model(config(*more)).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("target", ["x0", "v", "eps"])
@torch.no_grad()
def test_where_visible_pixels_are_all_that_is_given_the_head_predicts_the_image(target):
    """In the first example alone; in the others something else is given too, or the image is at another time."""
    model = reading(target)
    names, T, n = [model.anchor_name, *model.names], model.schedule.T, 6
    generator = torch.Generator().manual_seed(1)
    z, image = (torch.randn(n, c, SIZE, SIZE, generator=generator) for c in (model.channels, 1))
    masked = model.part("masked").hide(image.clamp(-1, 1), 0.5, 0, torch.arange(n))
    masked[5, -1] = 0  # nothing is visible
    data = {"masked": masked, "label": torch.arange(n), "mask": torch.ones(n, SIZE, SIZE, dtype=torch.int64)}
    times = torch.full((n, len(names)), T)
    times[:, names.index("masked")] = 0
    times[1, 0] = T - 1
    times[2, names.index("masked")] = T
    times[3, names.index("label")] = 0
    times[4, names.index("mask")] = 500
    told = model.tell(None, model.encode(data), times)
    said = model(z, times, told)
    found, own, head = model.restored(said, z, times, told), said.anchor, said.heads["masked"]
    assert torch.equal(found[1:], own[1:])
    if target == "eps":  # whose network sees the noise of hidden pixels
        assert torch.equal(found, own)
    else:  # z_0 by the design's equations for this target
        abar = model.schedule.alpha_bar[T]
        z0 = {"x0": found[0], "v": abar.sqrt() * z[0, :1] - (1 - abar).sqrt() * found[0]}[target]
        torch.testing.assert_close(z0.float(), head[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found[0], own[0], atol=1e-2)


@torch.no_grad()
def test_one_step_restores_by_the_head_that_reads_the_encoder():
    model = reading("x0")
    image = torch.rand(B, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masked = model.part("masked").hide(image, 0.5, 0, torch.arange(B))
    drawn = sample(model, B, given={"masked": masked}, steps=1)["image"]
    times = torch.full((B, 1 + len(model.names)), model.schedule.T)
    times[:, 1 + model.names.index("masked")] = 0
    said = model(
        torch.zeros(B, model.channels, SIZE, SIZE), times, model.tell(None, model.encode({"masked": masked}), times)
    )
    torch.testing.assert_close(drawn, said.heads["masked"].clamp(-1, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_label_that_is_given_too_counts_from_the_first_step_on():
    model = reading("x0")
    image = torch.rand(B, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masked = model.part("masked").hide(image, 0.5, 0, torch.arange(B))
    one, other = (
        sample(model, B, given={"masked": masked, "label": torch.full((B,), k)}, steps=1)["image"] for k in (1, 2)
    )
    assert not torch.allclose(one, other, atol=1e-3)


def test_hides_whole_blocks_of_the_share_asked_for():
    part, image = make()
    for ratio in (0.0, 0.25, 0.5, 1.0):
        masked = part.hide(image, ratio, 3, torch.arange(B))
        blocks = masked[:, 3].unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2)  # [B, 4, 4, 4 pixels]
        assert bool((blocks == blocks[..., :1]).all())
        assert (blocks[..., 0] == 0).flatten(1).sum(1).tolist() == [round(16 * ratio)] * B
        assert torch.equal(masked[:, :3], image)


def test_derives_the_same_from_the_same_example_with_shares_spread_over_the_range():
    part, _ = make(ratios=[0.2, 0.8])
    numbers = torch.arange(4000)
    masked = part.derive(torch.zeros(4000, 3, SIZE, SIZE), 7, numbers)
    some = torch.tensor([17, 3, 3999])
    assert torch.equal(part.derive(torch.zeros(3, 3, SIZE, SIZE), 7, some), masked[some])
    hidden = (masked[:, 3] == 0).float().mean((1, 2)) * 16
    # Uniform on 0.2 .. 0.8 of 16 blocks, rounded: 3 .. 13, the ends 3.5 - 3.2 and 13 - 12.5 wide, of 9.6.
    expected = np.array([0.3, *[1.0] * 9, 0.3]) / 9.6
    found = np.bincount(hidden.round().long().numpy(), minlength=14)[3:14]
    assert hidden.min() >= 3 and hidden.max() <= 13
    assert stats.chisquare(found, expected / expected.sum() * 4000).pvalue > 1e-4


def test_hidden_values_have_no_part_in_the_encoding():
    part, image = make()
    masked = part.hide(image, 0.5, 0, torch.arange(B))
    other = masked.clone()
    other[:, :3] = torch.where(masked[:, 3:] > 0, masked[:, :3], float("nan"))
    assert torch.equal(part.encode(masked), part.encode(other))
    assert torch.equal(part.encode(masked)[:, 3] > 0, masked[:, 3] > 0)


def test_nll_counts_what_is_seen_and_the_loss_everything():
    part, image = make(sigma=0.2)
    masked, prediction = part.hide(image, 0.5, 0, torch.arange(B)), torch.rand_like(image)
    density = stats.norm(prediction.numpy(), 0.2).logpdf(image.numpy()) * masked[:, 3:].numpy()
    torch.testing.assert_close(part.nll(prediction, masked), -torch.from_numpy(density.sum((1, 2, 3))).float())
    torch.testing.assert_close(part.loss(prediction, masked), (prediction - image).square().mean((1, 2, 3)))


def test_scores_the_hidden_pixels():
    part, image = make()
    masked = part.hide(image, 0.5, 0, torch.arange(B))
    assert part.score(torch.where(masked[:, 3:] > 0, -image, image), masked) == 0.0
    assert part.score(torch.where(masked[:, 3:] > 0, image, image + 0.5), masked) == pytest.approx(0.5)


def test_a_picture_with_transparent_pixels_is_read_as_hidden_parts(tmp_path):
    pixels = np.full((SIZE, SIZE, 4), 255, dtype=np.uint8)
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    masked = Masked.read(tmp_path / "x.png", MaskedSpec(channels=3, size=SIZE))
    assert masked.shape == (4, SIZE, SIZE)
    assert bool((masked[3, :4] == 0).all()) and bool((masked[3, 4:] == 1).all()) and bool((masked[:3, 4:] == 1).all())
    assert Masked("m", MaskedSpec(channels=3, size=SIZE), SpaceShape(SIZE, SIZE)).show(masked, 32).size == (32, 32)


def test_the_data_need_not_hold_it_and_its_loss_counts_where_it_is_given():
    chosen = config(("modalities.masked.given_probability", "1.0"), ("train.given_probability", "0.0"))
    model, data = build_model(chosen), build_data(chosen)
    batch, numbers = data.train.__getitems__(range(8)), torch.arange(8)
    assert "masked" not in batch.data
    assert float(losses(model, batch, numbers, chosen)["masked"].detach()) > 0
    # With the image given as well there is nothing left to restore.
    model.part("image").spec.given_probability = 1.0
    assert float(losses(model, batch, numbers, chosen)["masked"].detach()) == 0
    assert held_out(data.test, 5, model).data["masked"].shape == (5, 2, 8, 8)


def test_it_is_missing_where_the_image_is():
    model = build_model(config())
    x = torch.zeros(2, 1, 8, 8)
    there = torch.tensor([True, False])
    assert torch.equal(
        model.complete(Batch({"image": x}, {"image": there}), 0, torch.arange(2)).present["masked"], there
    )


def test_sampling_takes_it_as_given():
    chosen = config()
    model, data = build_model(chosen), build_data(chosen)
    truth = held_out(data.test, 4, model).data
    drawn = sample(model, 4, {"masked": truth["masked"]}, steps=2)
    assert drawn["image"].shape == (4, 1, 8, 8) and torch.equal(drawn["masked"], truth["masked"])
    joint = sample(model, 4, steps=2)["masked"]
    assert joint.shape == (4, 2, 8, 8) and bool((joint[:, 1] == 1).all())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("modalities.masked.of", "label", "modalities.masked.of is 'label'; it should be an image"),
        ("modalities.masked.channels", "3", "it should be an image with 3 channels"),
        ("modalities.masked.ratios", "[0.5, 0.1]", "modalities.masked.ratios is"),
        ("modalities.masked.encoder", "learned", "needs space=own and encoder=fixed"),
        ("modalities.masked.given_probability", "1.5", "modalities.masked.given_probability is 1.5"),
    ],
)
def test_bad_options_are_named(key, value, message):
    with pytest.raises(MmfastError, match=message):
        build_model(config((key, value)))


def test_the_spec_says_none_by_default():
    assert dataclasses.asdict(MaskedSpec())["weight"]["kind"] == "none"


@pytest.mark.slow
def test_the_evaluation_measures_the_restoration_and_names_its_features():
    from mmfast.evaluate import evaluate
    from mmfast.trust import allow_code

    chosen = config(("evaluate.samples", "20"), ("evaluate.bound_steps", "1"), ("sample.steps", "2"))
    model, data = build_model(chosen), build_data(chosen)
    found = evaluate(model, chosen, data, quiet=True)
    assert found["masked.conditional_rmse"] > 0 and not any(name.startswith("masked.joint") for name in found)
    for who in ("samples", "real_halves"):
        assert 0 <= found[f"precision.{who}"] <= 1 and 0 <= found[f"recall.{who}"] <= 1 and f"frechet.{who}" in found
    assert found["precision.real_halves"] > found["precision.samples"]  # an untrained model draws no digits
    chosen.evaluate.features = "mmfast.metrics.nothing:here"
    allow_code(chosen.evaluate.features)
    with pytest.raises(MmfastError, match=r"mmfast\.metrics\.nothing"):
        evaluate(model, chosen, data, quiet=True)


def test_sampling_in_bfloat16_stays_near_float32():
    model = build_model(config())
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():  # a new network has zeros in it, and says the same in any precision
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    exact = sample(model, 8, steps=3)["image"]
    rough = sample(model, 8, steps=3, precision="bf16")["image"]
    assert not torch.equal(exact, rough)
    # bfloat16 keeps 8 bits: some 0.4 per cent a rounding, and a few tens of them one after the other.
    assert float((exact - rough).square().mean().sqrt()) < 0.05 * float(exact.square().mean().sqrt())
    with pytest.raises(MmfastError, match="precision is 'fp8'"):
        sample(model, 8, steps=3, precision="fp8")
