"""A seventh modality: what each model is trained with, and what counts as level with all seven from nothing."""

import json

import pytest

from benchmarks.paper import __main__ as paper
from benchmarks.paper import added_modality as task
from benchmarks.paper.any_to_any import NAMES, Direction
from benchmarks.paper.cells import REAL
from benchmarks.paper.core import OURS
from benchmarks.paper.report import Row

SEVEN = [*NAMES, task.VECTOR]


def configs(name):
    """That of all from nothing, of the six, and of the added stage."""
    method = task.TASK.method(task.named(name))
    return [task.TASK.config(m, 0, 4800, task.SEVENTH) for m in (task.TASK.method(OURS), method.first, method)]


@pytest.mark.parametrize("name", task.ADDED)
def test_six_are_trained_first_and_then_all_seven_for_a_third(name):
    whole, six, added = configs(name)
    assert list(whole.modalities) == list(added.modalities) == SEVEN
    assert list(six.modalities) == [x for x in SEVEN if x != name]
    assert (whole.train.steps, six.train.steps, added.train.steps) == (300, 300, 100)
    assert whole.train.learning_rate == six.train.learning_rate == added.train.learning_rate
    given = {n: spec.given_probability for n, spec in added.modalities.items()}
    throughout = {n: spec.given_probability for n, spec in whole.modalities.items()}
    assert given.pop(name) == pytest.approx(3 * throughout.pop(name))
    assert given == throughout
    assert six.backbone == whole.backbone == added.backbone


def row(method, condition, metric, mean, higher=True):
    return Row(method, condition, metric, mean, 0.0, 1, [mean], higher)


def test_verdicts_are_of_the_added_modalitys_directions_and_of_all():
    reads, draws, other = Direction("image", "mask"), Direction("mask", "image"), Direction("image", "label")
    name = task.named("mask")
    rows = [
        row(OURS, reads.condition, "iou", 0.8), row(name, reads.condition, "iou", 0.77),
        row(OURS, draws.condition, "FD-x", 10.0, False), row(name, draws.condition, "FD-x", 10.4, False),
        row(OURS, other.condition, "accuracy", 0.5), row(name, other.condition, "accuracy", 0.4),
    ]  # fmt: skip
    found = task.verdicts(rows)
    assert [(v.holds, v.evidence) for v in found] == [(True, "0.770 and 0.800"), (True, "10.4 and 10.0"), (False, "2")]
    assert found[0].claim == "mask added: given image: mask, iou within 5% of all from nothing"
    rows[3] = row(name, draws.condition, "FD-x", 10.6, False)
    assert [v.holds for v in task.verdicts(rows)] == [True, False, False]
    rows[3], rows[5] = row(name, draws.condition, "FD-x", 9.0, False), row(name, other.condition, "accuracy", 0.6)
    assert [v.holds for v in task.verdicts(rows)] == [True, True, True]


@pytest.mark.slow
def test_a_smoke_run_writes_its_page(tmp_path):
    assert paper.begin(["added-modality", "--smoke", "--seeds", "1", "--work", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results" / "added-modality.json").read_text())
    conditions = {(row["method"], row["condition"]) for row in found["rows"]}
    methods = {OURS, task.named("mask")}
    assert {method for method, _ in conditions} == {*methods, REAL}  # digits have no vector
    for given, drawn in (("image", "mask"), ("mask", "image"), ("image", "label"), ("label", "image")):
        assert {(method, Direction(given, drawn).condition) for method in methods} <= conditions
    assert found["images"][task.named("mask")] == 640 + 208  # a third of 40 steps of 16
    assert (tmp_path / "results" / "added-modality.md").exists()
