"""Any to any: which sets are given, what counts as level, and a smoke run of all of it."""

import dataclasses
import json
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from benchmarks.any_to_any import main
from benchmarks.paper import any_to_any as task
from benchmarks.paper import cells, core, matrix
from benchmarks.paper.core import OURS, TOTAL, its_share
from benchmarks.paper.report import Metric, Row
from mmfast.data import Batch
from mmfast.held_out import held_out

NAMES = ["image", "mask", "label", "embedding", "masked"]


def test_given_sets():
    """Nothing, all of one and of two, and some of more: none holds what another is made from, each leaves something."""
    found = task.given_sets(NAMES, {"masked": "image"}, larger=3)
    small = [s for n in range(3) for s in combinations(NAMES, n) if not {"image", "masked"} <= {*s}]
    assert found[: len(small)] == small and len(found) == len(small) + 3
    larger = found[len(small) :]
    possible = {s for n in (3, 4) for s in combinations(NAMES, n) if not {"image", "masked"} <= {*s}}
    left = {s for s in possible if {*NAMES} - {*s} - {"masked"}}  # something is left to be drawn
    assert len({*larger}) == 3 and {*larger} <= left
    assert found == task.given_sets(NAMES, {"masked": "image"}, larger=3)
    assert len(task.given_sets(NAMES, {"masked": "image"}, larger=99)) == len(small) + len(left)


def row(method, condition, metric, mean, higher=True):
    return Row(method, condition, metric, mean, 0.0, 1, [mean], higher)


def test_verdicts_count_what_is_level():
    """Of two directions: at equal images one twentieth behind is level, at equal compute it is not."""
    reads, draws = task.READ[1], task.DRAW[1]
    rows = [
        row(OURS, reads.condition, "accuracy", 0.96),
        row(reads.name, reads.condition, "accuracy", 1.0),
        row(OURS, draws.condition, "FD-x", 10.6, False),
        row(draws.name, draws.condition, "FD-x", 10.0, False),
    ]
    assert task.behind(rows, OURS, reads.name, reads.condition)[0] == pytest.approx(0.04)
    assert task.behind(rows, OURS, draws.name, draws.condition)[0] == pytest.approx(0.06)
    assert [v.holds for v in task.verdicts(rows, 1.0)] == [True, False, False]
    assert [v.holds for v in task.verdicts(rows, 0.0)] == [False, False, False]
    rows[2] = row(OURS, draws.condition, "FD-x", 9.0, False)
    assert [v.holds for v in task.verdicts(rows, 1.0)] == [True, True, True]


def test_the_matrix_marks_the_best_of_a_column():
    rows = [
        ("given a: b", "iou", 0.5), ("given c: b", "iou", 0.9),
        ("given b: a", "FD-x", 4.0), ("given c: a", "FD-x", 9.0), ("given c: a", "precision", 1.0),
    ]  # fmt: skip
    picture = matrix.picture(rows, ["a", "b"])
    given = ["a", "c", "b"]
    assert picture.size == (matrix.LEFT + 2 * matrix.COLUMN, matrix.TOP + 3 * matrix.ROW)

    def colour(row, column):
        return picture.getpixel(
            (matrix.LEFT + column * matrix.COLUMN + 3, matrix.TOP + given.index(row) * matrix.ROW + 3)
        )

    assert colour("c", 1) == matrix.BEST and colour("a", 1) == matrix.WORST
    assert colour("b", 0) == matrix.BEST and colour("c", 0) == matrix.WORST  # the lower distance is the better
    assert colour("a", 0) == matrix.PAPER


@pytest.mark.slow
def test_a_smoke_run_writes_its_page(tmp_path):
    assert main(["--smoke", "--seeds", "1", "--work", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results" / "any_to_any.json").read_text())
    methods = {row["method"] for row in found["rows"]}
    single = {"image to mask alone", "label to image alone", "masked to image alone"}
    assert {OURS, TOTAL, *single, *map(its_share, single)} <= methods
    conditions = {row["condition"] for row in found["rows"] if row["method"] == OURS}
    names = ["image", "mask", "label", "masked"]
    for given in task.given_sets(names, {"masked": "image"}):
        for name in ("image", "mask", "label"):
            if name not in given:
                assert task.condition(given, name) in conditions
    assert (tmp_path / "results" / "any_to_any.md").exists()
    assert list((tmp_path / "results").glob("any_to_any-matrix.png"))


def test_the_picture_shows_what_was_measured_and_draws_nothing_again(monkeypatch):
    drawn = []

    def scores(trained, given):
        drawn.append(given)
        return [Metric(task.condition(given, "image"), "FD-x", len(drawn), False)]

    monkeypatch.setattr(task, "_scores", scores)
    model = SimpleNamespace(parts={name: SimpleNamespace(derived=False) for name in ("image", "mask", "label")})
    trained = core.Trained(model, SimpleNamespace(modalities={}), 0, 8, True, "pixels", lambda: model)
    assert [m.value for m in task.ours(trained)[OURS]] == [*range(1, 8)]  # nothing, each of three and each pair
    (picture,) = task.pictures(trained).values()
    assert len(drawn) == 7 and picture[1].size[1] == matrix.TOP + 7 * matrix.ROW


def test_unidiffuser_has_a_time_for_each_and_no_heads():
    """By its config: nothing is given or at the anchor's time but hidden parts, and nothing is drawn in fewer steps."""
    config = task.TASK.config(task.TASK.method("UniDiffuser"), 0, 32, {})
    image, *others = config.modalities.values()
    assert (image.given_probability, image.given_at_T, image.given_steps, image.diffused) == (0, None, None, False)
    hidden = others.pop()
    assert hidden.kind == "masked" and hidden.loss_weight == 0 and not hidden.diffused
    for spec in others:
        assert (
            spec.diffused and spec.given_probability == 0 and spec.given_steps is None and spec.weight.kind == "carried"
        )
        assert spec.unknown_probability + spec.own_time_probability == 1
    scales = {spec.kind: spec.weight.scale for spec in others}
    assert scales == {"mask": 1, "label": 0.25, "feature_map": 1, "caption": 0.25}
    ours = task.TASK.config(task.TASK.method(OURS), 0, 32, {})
    assert config.train == dataclasses.replace(ours.train, clean_pass=0.0) and ours.train.clean_pass > 0
    assert config.backbone == ours.backbone and config.sample == ours.sample


def test_the_mixture_costs_what_the_joint_model_does():
    single = [m for m in task.TASK.methods if m.name.endswith(" alone")]
    shares = {m.name: m.share for m in task.TASK.methods}
    assert len(single) == 8 and sum(shares[its_share(m.name)] for m in single) == pytest.approx(1)
    assert all(m.share == 1 for m in single) and shares[TOTAL] == 8 and shares["UniDiffuser"] == shares[OURS] == 1


def test_every_method_is_evaluated_on_the_examples_that_have_all():
    """A model of fewer modalities, on the data of ours: what lacks one that it does not know is no example for it."""
    assert task.TASK.complete
    image = SimpleNamespace(derived=False)
    model = SimpleNamespace(parts={"image": image}, complete=lambda batch, seed, numbers: batch)

    class Examples:
        """Every other one has a caption."""

        def __len__(self):
            return 8

        def __getitems__(self, indices):
            rows = torch.as_tensor(list(indices))
            return Batch({"image": rows.float()}, {"caption": rows % 2 == 0})

    assert held_out(Examples(), 6, model).data["image"].tolist() == [0, 2, 4, 6, 0, 2]
    asked = SimpleNamespace(data=SimpleNamespace(kind="of ours"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "build_data", lambda config: config)
        trained = core.Trained(model, "its own", 0, 8, True, "pixels", lambda: model, asked)
        assert trained.data is asked and dataclasses.replace(trained, examples=None).data == "its own"


def test_the_config_of_a_cell_has_what_its_data_says(tmp_path):
    """A run's has, with which it is compared: else no cell with captions, or of a table, would ever be taken."""
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")
    method = core.Method(OURS, lambda trained: {})
    table = dataclasses.replace(task.TASK, methods=[method], preset="table")
    found = cells.Plan(table, 640, 8, tmp_path, {}, True).config(method, 0)
    assert "mean radius" in found.modalities["row"].columns and len(found.modalities["label"].names) == 2
