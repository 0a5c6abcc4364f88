"""What the paper's tasks compare with: models that do one job as well as they can, in the same arithmetic."""

import torch

from benchmarks.paper import any_to_any, image_embedding, image_label, image_mask, masked_image, supervised
from benchmarks.paper.core import OURS
from mmfast.build import build_data, build_model


def test_a_model_that_draws_alone_learns_nothing_else():
    """Nothing of what the joint model has for the sake of the other jobs, which would hold a baseline back."""
    more = {"train.low_noise.share": 0.2, "train.clean_pass": 0.5}
    train = image_label.TASK.config(image_label.TASK.method(OURS), 0, 1000, more).train
    assert train.low_noise.share == 0.2 and train.clean_pass == 0.5
    for name in (image_label.CONDITIONAL, image_label.DROPPED, image_label.IMAGE):
        found = image_label.TASK.config(image_label.TASK.method(name), 0, 1000, more)
        assert found.train.low_noise.share == found.train.clean_pass == 0
        assert all(spec.loss_weight == 0 for n, spec in found.modalities.items() if n != "image")
    for method, _ in any_to_any.SINGLE:
        if method.supervised:
            continue
        found = any_to_any.TASK.config(method, 0, 1000, {"train.clean_pass": 0.5})
        assert found.train.clean_pass == 0
        (other,) = [spec for n, spec in found.modalities.items() if n != "image"]
        assert other.loss_weight == 0 and not other.given_at_T and other.given_probability == 0.9
        assert found.modalities["image"].given_probability == 0 and other.weight.kind == "none"


def test_the_models_that_a_mask_is_compared_with_have_the_better_of_its_heads_and_no_pass_of_its_own():
    task = image_mask.TASK
    image, alone = (task.config(task.method(name), 0, 1000, {}) for name in (image_mask.IMAGE, image_mask.SEGMENTATION))
    assert image.train.clean_pass == 0 and [*image.modalities] == ["image"]
    judge = task.config(task.judge, 0, 1000, {})
    assert alone.modalities["mask"].reads == judge.modalities["mask"].reads == "decoder"
    assert task.config(task.method(OURS), 0, 1000, {}).modalities["mask"].reads == "encoder"
    # Of those of six modalities, every mask is read off the decoder, as it was measured.
    for method in any_to_any.TASK.methods[:3]:
        mask = any_to_any.TASK.config(method, 0, 1000, {}).modalities.get("mask")
        assert mask is None or mask.reads == "decoder"


def test_the_models_that_restoration_is_compared_with_have_the_better_of_its_heads_and_no_pass_of_their_own():
    task = masked_image.TASK
    image, alone = (
        task.config(task.method(name), 0, 1000, {}) for name in (masked_image.IMAGE, masked_image.RESTORATION)
    )
    assert image.train.clean_pass == 0 and [*image.modalities] == ["image"]
    assert alone.modalities["masked"].reads == "decoder"
    assert task.config(task.method(OURS), 0, 1000, {}).modalities["masked"].reads == "encoder"
    for method in any_to_any.TASK.methods:
        masked = any_to_any.TASK.config(method, 0, 1000, {}).modalities.get("masked")
        assert masked is None or masked.reads == "decoder"


def test_the_models_that_a_map_is_compared_with_have_the_better_of_its_heads_and_no_pass_of_its_own():
    task = image_embedding.TASK
    image, regressor = (
        task.config(task.method(name), 0, 1000, {}) for name in (image_embedding.IMAGE, image_embedding.REGRESSOR)
    )
    assert image.train.clean_pass == 0 and [*image.modalities] == ["image"]
    assert regressor.modalities["embedding"].reads == "decoder"
    # That of six modalities was measured with the decoder, ours and its own model's.
    (alone,) = [method for method, _ in any_to_any.SINGLE if method.name == "image to embedding alone"]
    for method in (any_to_any.TASK.method(OURS), alone):
        assert any_to_any.TASK.config(method, 0, 1000, {}).modalities["embedding"].reads == "decoder"


def test_an_option_of_a_section_that_the_preset_does_not_write():
    task = image_label.TASK
    changes = {"sample.offset.label": 0.2, "evaluate.samples": 3}
    assert task.config(task.method(OURS), 0, 1000, changes).sample.offset == {"label": 0.2}
    # Of a modality that a baseline drops it is none.
    image = task.config(task.method(image_label.IMAGE), 0, 1000, {"modalities.label.loss_weight": 2})
    assert [*image.modalities] == ["image"]


def test_supervised_models_have_the_precision_of_the_others(monkeypatch):
    seen = []

    class Autocast:
        def __init__(self, device, dtype, enabled=True):
            seen.append(enabled)

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(torch, "autocast", Autocast)
    for precision in ("fp32", "bf16"):
        how = {"train.precision": precision, "sample.precision": precision, **dict(image_label.TASK.smoke)}
        config = image_label.TASK.config(image_label.TASK.method(image_label.CLASSIFIER), 0, 1000, how)
        model, data = build_model(config), build_data(config).test.__getitems__([0, 1])
        supervised.loss("image", "label")(model, data, torch.arange(2), config)
        supervised.answer(model, data.data, "image", "label", precision)
    assert seen == [False, False, True, True]
