"""What the paper's tasks compare with: models that do one job as well as they can, in the same arithmetic."""

import pytest
import torch

from benchmarks.paper import any_to_any, image_embedding, image_label, image_mask, masked_image, supervised
from benchmarks.paper.core import OURS, TOTAL
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


@pytest.mark.parametrize(
    ("task", "image", "single", "name"),
    [
        (image_mask.TASK, image_mask.IMAGE, image_mask.SEGMENTATION, "mask"),
        (masked_image.TASK, masked_image.IMAGE, masked_image.RESTORATION, "masked"),
        (image_embedding.TASK, image_embedding.IMAGE, image_embedding.REGRESSOR, "embedding"),
    ],
    ids=["mask", "hidden parts", "map"],
)
def test_single_models_predict_by_the_decoder_and_draw_without_a_pass_of_what_is_read(task, image, single, name):
    def config(method, task=task):
        return task.config(method, 0, 1000, {})

    drawing = config(task.method(image))
    assert drawing.train.clean_pass == 0 and [*drawing.modalities] == ["image"]
    others = [task.method(single), *([task.judge] if task.judge else [])]
    assert {config(method).modalities[name].reads for method in others} == {"decoder"}
    assert config(task.method(OURS)).modalities[name].reads == "encoder"
    six = {method.name: config(method, any_to_any.TASK).modalities.get(name) for method in any_to_any.TASK.methods}
    reads = {method: spec.reads for method, spec in six.items() if spec is not None}
    assert {method for method, features in reads.items() if features == "encoder"} == {OURS, TOTAL}


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
