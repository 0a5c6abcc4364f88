"""The benchmark of a modality that is added to a trained model: its arms, what counts as behind, and a run of it."""

import argparse
import json

import pytest

from benchmarks import adding, arms
from mmfast.build import build_data
from mmfast.errors import MmfastError
from mmfast.run import Run

LABEL, MASK = adding.added("label"), adding.added("mask")


def test_what_is_trained_on_what():
    study = adding.study("digits", {"train.learning_rate": "0.004"}, 0.7)
    assert [*study.arms] == [adding.ALL, "without label", "without mask", LABEL, MASK]
    assert study.after == {LABEL: ("without label", 1 / 3), MASK: ("without mask", 1 / 3)}
    whole, lacks, added = (study.config(arm, 30, 8, 1) for arm in (adding.ALL, "without mask", MASK))
    assert [*whole.modalities] == ["image", "label", "mask"] == [*added.modalities]
    assert [*lacks.modalities] == ["image", "label"]
    assert whole.train.device == "cpu" and study.config(MASK, 30, 8, 1, "cuda").train.device == "cuda"
    assert [config.train.steps for config in (whole, lacks, added)] == [30, 30, 10]
    assert [config.train.learning_rate for config in (whole, lacks, added)] == [0.002, 0.002, 0.004]
    assert [config.modalities["mask"].given_probability for config in (whole, added)] == [None, 0.7]
    assert [config.modalities["label"].given_probability for config in (whole, added)] == [0.4, 0.4]


def figures(agreement, distance):
    return {"label.joint_agreement": agreement, "frechet.samples": distance, "milliseconds": 1.0}


FOUND = {
    adding.ALL: [figures(0.9, 1.0), figures(0.7, 3.0)],  # 0.8 and 2
    LABEL: [figures(0.768, 2.2), figures(0.768, 2.2)],
    MASK: [figures(0.84, 1.8), figures(0.84, 1.8)],
}


def test_a_figure_is_behind_by_its_share():
    assert adding.behind(FOUND, LABEL, "label.joint_agreement") == pytest.approx(0.04)
    assert adding.behind(FOUND, LABEL, "frechet.samples") == pytest.approx(0.1)
    assert adding.behind(FOUND, MASK, "label.joint_agreement") == pytest.approx(-0.05)
    assert adding.behind(FOUND, MASK, "frechet.samples") == pytest.approx(-0.1)
    assert adding.compared({**FOUND, "without label": [{}]}) == FOUND
    assert adding.verdicts(FOUND) == [
        f"- {LABEL}: 1 of 2 figures within 5 per cent; frechet.samples +10.0%",
        f"- {MASK}: 2 of 2 figures within 5 per cent; label.joint_agreement -5.0%",
    ]


def test_a_change_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        adding.main(["--set", "train.steps"])
    assert "--set train.steps; it should be KEY=VALUE" in capsys.readouterr().err


@pytest.mark.slow
def test_it_begins_with_the_weights_and_goes_on_where_it_stopped(tmp_path, capsys):
    pytest.importorskip("sklearn")
    argv = ["--steps", "6", "--samples", "8", "--seeds", "1", "--work", str(tmp_path / "w"), "--out", str(tmp_path)]
    assert adding.main([*argv, "--given-probability", "0.7"]) == 0
    said = capsys.readouterr().out
    assert "without-label-0: kept the backbone and image, mask; fresh: label" in said
    added = tmp_path / "w" / "6-steps" / f"{MASK.replace(' ', '-')}-0"
    assert len((added / "stats.jsonl").read_text().splitlines()) == 2
    assert Run.open(added).config().modalities["mask"].given_probability == 0.7
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    assert len(times) == 5 and adding.main([*argv, "--given-probability", "0.7"]) == 0
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    for more in ([], ["--validate", "--given-probability", "0.7"], ["--samples", "10", "--given-probability", "0.7"]):
        with pytest.raises(MmfastError, match="is of other options or other data; choose another --work"):
            adding.main([*argv, *more])
    found = json.loads((tmp_path / "adding.json").read_text())["arms"]
    assert "\n".join(adding.verdicts(adding.compared(found))) in said
    assert {*arms.measured(found)} < {*arms.measured(adding.compared(found))}


@pytest.mark.slow
def test_the_time_of_a_step_is_of_the_steps_that_it_was_taken_over(tmp_path, monkeypatch):
    """Where a cell is stopped after training and begun again, the time is that of training all the same."""
    pytest.importorskip("sklearn")
    study = arms.Study("s", "digits", {"a": {"backbone.width": "16", "backbone.blocks": "1"}}, build_data)
    args = argparse.Namespace(steps=4, samples=8, device="cpu", work=tmp_path)
    clock = iter([10.0, 18.0, 50.0, 51.0])
    monkeypatch.setattr(arms.time, "process_time", lambda: next(clock))
    with monkeypatch.context() as patch:
        patch.setattr(arms, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.cell("a", 0, args)
    assert study.cell("a", 0, args)["milliseconds"] == 2000
