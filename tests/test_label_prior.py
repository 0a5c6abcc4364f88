"""A label that is drawn before all else comes from the shares of the classes in the training data, not the network."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_generate import Both
from tiny import tiny

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_data, build_model, with_found
from mmfast.data import fashion
from mmfast.generate import generate, how_drawn
from mmfast.ranks import ALONE

COUNTS = [5, 0, 1, 2, 0, 0, 0, 0, 0, 8]


@pytest.fixture
def model():
    return model_of(COUNTS)


def model_of(counts):
    config = tiny(modalities__label__class_counts=counts)
    return build_model(config).eval(), config


def asked(model):
    """The times at which the network is asked from now on."""
    found = []
    model.register_forward_hook(lambda model, args, out: found.append(args[1]))
    return found


def of_classes(root):
    for k, name in enumerate(["0", "0", "0", "1", "3", "3"] * 8):
        file = root / "image" / name / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(file)
    return {"kind": "folder", "root": str(root)}


def of_a_table(root):
    """Labels by name, of some of the pictures."""
    lines = ["file_name,label"]
    for k in range(40):
        (root / "image").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(root / "image" / f"{k}.png")
        lines.append(f"{k}.png,{['ape', 'bee', 'cow', 'bee', ''][k % 5]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return {"kind": "folder", "root": str(root)}


SIZED = {"image": {"kind": "image", "channels": 1, "size": 4}}
SOURCES = {
    "folders": (of_classes, SIZED, 4),
    "table of a folder": (of_a_table, SIZED, 3),
    "digits": (lambda root: {"kind": "digits"}, {"image": {"kind": "image", "channels": 1, "size": 8}}, 10),
    "columns": (lambda root: {"kind": "table", "source": "iris", "columns": {"label": "target"}},
                {"row": {"kind": "table"}}, 3),
    "fashion": (lambda root: {"kind": "fashion", "validation": True},
                {"image": {"kind": "image", "channels": 1, "size": 16}}, 10),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_classes_are_counted_among_the_training_examples(source, tmp_path):
    data, anchor, classes = SOURCES[source]
    if source == "fashion" and not Path(fashion.Spec().root).is_dir():
        pytest.skip(f"needs {fashion.PACKAGE}")
    if source in ("digits", "columns"):
        pytest.importorskip("sklearn")
    parts = {**anchor, "label": {"kind": "label", "classes": classes}}
    config = configs.from_plain({"anchor": next(iter(anchor)), "data": data(tmp_path), "modalities": parts}, "x")
    found = with_found(config)
    batch = (train := build_data(found).train).__getitems__(range(len(train)))
    there = batch.present.get("label", torch.ones(len(train), dtype=torch.bool))
    seen = Counter(batch.data["label"][there].tolist())
    counts = found.modalities["label"].class_counts
    assert counts == [seen[k] for k in range(classes)] and sum(counts) == int(there.sum()) > 0
    own = dataclasses.replace(config.modalities["label"], class_counts=[1] * classes)
    assert (
        with_found(dataclasses.replace(config, modalities={**config.modalities, "label": own}))
        .modalities["label"]
        .class_counts
        == [1] * classes
    )


def test_a_label_that_is_no_class_is_told_of_when_it_is_read(tmp_path):
    data = of_classes(tmp_path)
    parts = {**SIZED, "label": {"kind": "label", "classes": 3}}
    config = configs.from_plain({"data": data, "modalities": parts}, "x")
    assert with_found(config).modalities["label"].class_counts == []
    with pytest.raises(MmfastError, match="classes is 3"):
        build_data(config)


def test_the_label_is_drawn_by_its_counts_and_the_rest_given_it(model):
    model, config = model
    times = asked(model)
    drawn = generate(model, config, 4000, first=["label"], steps=1, batch_size=4000)
    assert len(times) == 1  # for the image and mask
    found, wanted = torch.bincount(drawn["label"], minlength=10), np.array(COUNTS) / sum(COUNTS)
    there = wanted > 0
    assert found[~there].sum() == 0
    assert stats.chisquare(found[there], 4000 * wanted[there]).pvalue > 1e-4
    again = generate(model, config, 4000, given={"label": drawn["label"]}, steps=1, batch_size=4000, seed=1 << 40)
    assert torch.equal(drawn["mask"], again["mask"])
    torch.testing.assert_close(drawn["image"], again["image"], rtol=0, atol=0)


def test_a_sample_is_its_own_whatever_it_is_drawn_with(model):
    model, config = model
    whole = generate(model, config, 30, first="label", steps=1)["label"]
    some = torch.tensor([3, 29, 7])
    assert torch.equal(generate(model, config, 3, first="label", steps=1, sample_ids=some)["label"], whole[some])
    assert not torch.equal(generate(model, config, 30, first="label", steps=1, seed=5)["label"], whole)


@pytest.mark.parametrize(
    ("first", "given"),
    [
        (["mask", "label"], []),
        (["label"], ["mask"]),
        (["label"], ["image"]),
        ([], []),
        (["image", "mask", "label"], []),
    ],
)
def test_else_the_network_draws_it(first, given):
    """After another, given another, or together: as without the counts."""
    drawn = []
    for counts in (COUNTS, []):
        model, config = model_of(counts)
        known = {"mask": torch.ones(6, 8, 8).long(), "image": torch.zeros(6, 1, 8, 8)}
        known = {name: known[name] for name in given}
        drawn.append(generate(model, config, 6, known, first=first, steps=2))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_part_of_a_mask_that_is_known_counts_as_given():
    drawn = []
    for counts in (COUNTS, []):
        model, config = model_of(counts)
        there = torch.zeros(6, 8, 8, dtype=torch.bool)
        there[:, :4] = True
        mask = torch.ones(6, 8, 8).long()
        drawn.append(generate(model, config, 6, {"mask": mask}, known={"mask": there}, first="label", steps=2)["label"])
    assert torch.equal(*drawn)


def test_what_is_said_of_the_steps_is_what_was_done(model):
    """No step draws a label by its prior; whatever is given, in part too, has the network draw it."""
    model, config = model
    config.modalities["label"].given_steps = 1
    how = {"first": ["label"]}
    assert how_drawn(model, config, [], how)["steps"] == 1
    assert how_drawn(model, config, [], how, in_part=["mask"])["steps"] == [2, 1]
    assert how_drawn(model, config, ["mask"], how)["steps"] == [2, 1]
    assert how_drawn(model, config, [], {})["steps"] == 2


@pytest.mark.parametrize(
    ("counts", "text"),
    [([1, 2], r"\[1, 2\], of length 2"), ([0] * 10, "0, 0"), ([-1, *[1] * 9], r"\[-1, 1, 1, 1, 1, \.\.\.\]")],
)
def test_counts_that_cannot_be(counts, text):
    with pytest.raises(MmfastError, match=f"modalities.label.class_counts is .*{text}.*should have 10 numbers"):
        model_of(counts)


def test_they_are_free_to_change_in_a_run():
    a, b = (tiny(modalities__label__class_counts=counts) for counts in (COUNTS, []))
    changed = configs.changes(a, b)
    assert [*changed] == ["modalities.label.class_counts"] and configs.fixed(changed) == []


def test_ranks_draw_what_one_process_does(model):
    model, config = model
    one, both = (generate(model, config, 9, first="label", steps=1, ranks=r) for r in (ALONE, Both()))
    assert all(torch.equal(one[name], both[name]) for name in one)
