"""The ablations and few labels: what a variant changes, what counts as a difference, and runs in small."""

import pytest
import torch

from benchmarks.paper import __main__ as paper
from benchmarks.paper import cells
from benchmarks.paper.core import OURS
from benchmarks.paper.report import Row
from mmfast.build import build_model
from mmfast.config import changes

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")


@pytest.mark.slow
@pytest.mark.parametrize("name", paper.ABLATIONS)
def test_an_ablation_changes_one_thing_at_a_time_and_every_variant_builds(name):
    task = paper.load(name)
    usual = task.config(task.method(OURS), 0, 6400, {})
    for method in task.methods[1:]:
        config = task.config(method, 0, 6400, {})
        changed = list(changes(usual, config))
        assert changed and {key.rsplit(".", 1)[0].removesuffix(".weight") for key in changed} <= {
            whole.removesuffix(".weight") for key in method.change for whole in (key, key.rsplit(".", 1)[0])
        }
        with torch.device("meta"):  # without numbers, which take longest
            build_model(config)


def test_the_ablation_counts_differences_beyond_two_standard_errors():
    def row(method, mean, stderr):
        return Row(method, "given the label", "label accuracy", mean, stderr, 3, [mean] * 3, True)

    task = paper.load(paper.ABLATIONS[0])
    near, better, worse = task.verdicts(
        [row(OURS, 0.9, 0.01), row("near", 0.92, 0.01), row("better", 0.95, 0.01), row("worse", 0.8, 0.01)], 1.0
    )
    assert near.holds and worse.holds and not better.holds
    assert "better in 1 (label accuracy given the label +0.050)" in better.evidence
    (alone,) = task.verdicts([row(OURS, 0.9, None), row("one seed", 0.8, None)], 1.0)
    assert not alone.holds and "of 0 measures" in alone.evidence


def test_few_labels_are_those_of_a_share_and_single_models_have_no_other_images():
    task = paper.load("few-labels")
    assert len(task.methods) == 1 + 3 * 4
    for method in task.methods[1:]:
        label = task.config(method, 0, 6400, {}).modalities["label"]
        share = float(method.name.rsplit(", ", 1)[1].split("%")[0]) / 100
        assert label.labelled_fraction == share and label.labelled_only == (not method.name.startswith(OURS))
        assert label.labelled_share == (0.5 if "repeated" in method.name else None)

    def rows(name, accuracy, fd, agree):
        found = [("given the image", "accuracy", accuracy, True), ("given the label", "FD-Classifier", fd, False),
                 ("given the label", "consistency", agree, True)]  # fmt: skip
        return [Row(name, where, what, x, 0.1, 3, [x] * 3, up) for where, what, x, up in found]

    table = [*rows(f"{OURS}, 5% labelled", 0.8, 9.0, 0.6), *rows("classifier alone, 5% labelled", 0.7, 0.0, 0.0),
             *rows("class-conditional DDPM, label dropped, 5% labelled", 0.0, 8.0, 0.5)]  # fmt: skip
    of = {v.claim: v.holds for v in task.verdicts(table, 1.0) if v.claim.endswith("with 5% labelled")}
    assert list(of.values()) == [True, False, True]
    table += rows(f"{OURS}, labels repeated, 5% labelled", 0.6, 7.0, 0.4)  # where there are some, it is about those
    of = {v.claim: v.holds for v in task.verdicts(table, 1.0) if v.claim.endswith("with 5% labelled")}
    assert list(of.values()) == [False, True, False]


@pytest.mark.slow
def test_few_labels_run(tmp_path):
    assert paper.main(["few-labels", "--smoke", "--seeds", "1", "--work", str(tmp_path)]) == 0
    page = (tmp_path / "results" / "few-labels.md").read_text()
    assert all(f"{name}, 20% labelled" in page for name in (OURS, "classifier alone"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "metrics"),
    [
        ("ablation", "sampled self-conditioning", {"label agreement", "mask IoU", "FD-pixels"}),
        (
            "ablation-mask",
            "read off the decoder, unknown in 0.6, at little noise",
            {"mask against judge", "mean IoU", "FD-pixels"},
        ),
        ("ablation-label", "W of the label: bridge, 2", {"consistency", "accuracy", "FD-pixels"}),
    ],
)
def test_a_variant_of_an_ablation_runs_and_its_result_is_found_again(tmp_path, name, variant, metrics):
    plan = paper.plan_of(paper.parse([name, "--smoke", "--work", str(tmp_path)]))
    for method in (plan.task.method(OURS), plan.task.method(variant)):
        cells.run(plan, method, 0)
        found = plan.cells(method, 0)
        assert found and {m.metric for m in found[0].metrics} >= metrics
