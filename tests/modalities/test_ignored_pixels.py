"""Pixels of a mask whose class is not known (`ignore`) count nowhere: by value, and whatever stands there."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import MmfastError, modalities
from mmfast import config as configs
from mmfast.build import build_model
from mmfast.cli import main
from mmfast.data import Batch
from mmfast.guess import DRAFT
from mmfast.likelihood import bound
from mmfast.modalities import SpaceShape
from mmfast.modalities.mask import Mask, MaskSpec
from mmfast.survey import survey
from mmfast.training.objective import losses

B, K, SIZE = 3, 4, 6


@pytest.fixture
def random():
    return np.random.default_rng(0)


def part(**options):
    made = modalities.kind("mask")
    return made("mask", made.Spec(classes=K, size=SIZE, ignore=255, **options), SpaceShape(SIZE, SIZE))


@pytest.fixture
def example(random):
    """Logits, and classes of which a third is not known; of the last example none is, of the one before one."""
    x = random.integers(0, K, (B, SIZE, SIZE))
    x[random.random(x.shape) < 1 / 3] = -1
    x[-2:] = -1
    x[-2, 0, 0] = 2
    return random.normal(size=(B, K, SIZE, SIZE)), x


def test_the_loss_is_the_mean_over_the_pixels_that_are_known(example):
    logits, x = example
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = [[-log_p[b, x[b, i, j], i, j] for i, j in zip(*np.nonzero(x[b] >= 0), strict=True)] for b in range(B)]
    prediction, truth = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(x)
    mask = part()
    np.testing.assert_allclose(mask.nll(prediction, truth).detach(), [sum(own) for own in each], rtol=1e-6)
    loss = mask.loss(prediction, truth)
    np.testing.assert_allclose(loss.detach(), [np.mean(own) if own else 0.0 for own in each], rtol=1e-6)
    loss.sum().backward()
    assert ((prediction.grad.abs().sum(1) > 0).numpy() == (x >= 0)).all()


@pytest.mark.parametrize("encoder", ["fixed", "learned"])
def test_it_leaves_no_trace_and_the_rest_is_as_it_was(example, encoder):
    mask, x = part(encoder=encoder), torch.from_numpy(example[1])
    E = mask.encode(x)
    assert (E[(x < 0)[:, None].expand_as(E)] == 0).all()
    whole = mask.encode(x.clamp(min=0))
    known = (x >= 0)[:, None].expand_as(E)
    assert torch.equal(E[known], whole[known])


def test_the_score_leaves_it_out():
    """Intersection over union of class 1, then of 2: 1 of 2 known pixels, 1 of 1; where it is not known both may be."""
    truth = torch.tensor([[1, 1, -1, -1, 2, 0]])[:, None]
    found = torch.tensor([[1, 0, 1, 2, 2, 0]])[:, None]
    assert part().score(found, truth) == pytest.approx((1 / 2 + 1) / 2)
    assert part().score(truth, found) == pytest.approx((1 / 2 + 1) / 2)


def test_it_is_grey_in_pictures_and_no_other_class_is(random):
    x = torch.arange(-1, K).repeat(8)[: SIZE * SIZE].reshape(SIZE, SIZE)
    shown = np.asarray(part().show(x, SIZE))
    assert ((shown == 128).all(-1) == (x < 0).numpy()).all()
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == K + 1


def test_what_is_no_mask():
    x = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    part().check(x - 1, "x")
    with pytest.raises(MmfastError, match=r"x runs from -2 to -2; it should be in -1 \.\. 3"):
        part().check(x - 2, "x")
    plain = modalities.kind("mask")
    with pytest.raises(MmfastError, match=r"should be in 0 \.\. 3"):
        plain("mask", plain.Spec(classes=K, size=SIZE), SpaceShape(SIZE, SIZE)).check(x - 1, "x")


@pytest.mark.parametrize(
    ("values", "classes", "ignore", "expected"),
    [
        ([0, 1, 255, 3], 4, 255, [0, 1, -1, 3]),
        ([0, 1, 255, 0], 2, 255, [0, 1, -1, 0]),  # without `ignore` these three values are refused
        ([0, 255, 128, 0], 2, 128, [0, 1, -1, 0]),
        ([255, 255, 255, 255], 2, 255, [-1, -1, -1, -1]),
        ([0, 2, 1, 2], 3, 0, [-1, 2, 1, 2]),
        ([0, 2, 1, 2], 3, 255, [0, 2, 1, 2]),
    ],
)
def test_files(tmp_path, values, classes, ignore, expected):
    Image.fromarray(np.array(values, np.uint8).reshape(2, 2)).save(tmp_path / "m.png")
    assert (
        Mask.read(tmp_path / "m.png", MaskSpec(classes=classes, size=2, ignore=ignore)).flatten().tolist() == expected
    )


def test_a_class_too_many_is_still_refused(tmp_path):
    Image.fromarray(np.array([[0, 255], [9, 1]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(MmfastError, match=r"holds class 9; the mask has classes 0 \.\. 3"):
        Mask.read(tmp_path / "m.png", MaskSpec(classes=4, size=2, ignore=255))


def config(root="x", **more):
    parts = {"image": {"kind": "image", "channels": 1, "size": SIZE},
             "mask": {"kind": "mask", "classes": K, "size": SIZE, "ignore": 255, **more}}  # fmt: skip
    data = {"kind": "folder", "root": str(root)}
    return configs.from_plain({**DRAFT, "data": data, "modalities": parts, "schedule": {"T": 10}}, "x")


def test_in_training_nothing_hangs_on_what_the_model_says_there(example):
    """The mask's head is free where nothing is known: its loss does not change with it, and is 0 if all is so."""
    chosen = config(given_probability=0.0)
    model = build_model(chosen)
    image, x = torch.rand(B, 1, SIZE, SIZE), torch.from_numpy(example[1])
    part, numbers = model.part("mask"), torch.arange(B)
    before = losses(model, Batch({"image": image, "mask": x}), numbers, chosen)
    head = part.head

    def other(features):
        return torch.where((x < 0)[:, None], 9 * torch.randn(B, K, SIZE, SIZE), head(features))

    part.head = other
    after = losses(model, Batch({"image": image, "mask": x}), numbers, chosen)
    assert before["mask"] > 0 and torch.equal(after["mask"], before["mask"])
    nothing = losses(model, Batch({"image": image, "mask": torch.full_like(x, -1)}), numbers, chosen)
    assert nothing["mask"] == 0


def test_in_the_bound_a_mask_of_which_nothing_is_known_has_no_part(example):
    model = build_model(config()).eval()
    batch = Batch({"image": torch.rand(B, 1, SIZE, SIZE), "mask": torch.full((B, SIZE, SIZE), -1)})
    assert abs(bound(model, batch, steps=4)["bound.discrete.mask"]) < 1e-3
    some = Batch({**batch.data, "mask": torch.from_numpy(example[1]).clamp(min=0)})
    assert bound(model, some, steps=4)["bound.discrete.mask"] > 1


def test_a_folder_is_guessed_counted_and_trains(tmp_path, monkeypatch, capsys, random):
    monkeypatch.chdir(tmp_path)
    for k in range(8):
        numbers = random.integers(0, K, (SIZE, SIZE)).astype(np.uint8)
        numbers[:2] = 255
        for kind, pixels in (("image", random.integers(0, 256, (SIZE, SIZE))), ("mask", numbers)):
            file = tmp_path / "data" / kind / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    found = survey(config(tmp_path / "data"))
    assert not found.wrong and sum(found.seen["mask"].classes.values()) == 8 * SIZE * (SIZE - 2)
    assert main(["check", "data", "--quiet"]) == 0
    assert "mask, 8 x 8, 4 classes" in capsys.readouterr().out
