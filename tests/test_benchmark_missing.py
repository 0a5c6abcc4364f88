"""The benchmark of missing modalities: its arms, what a cost is, and a run of all of it."""

import json

import pytest
import torch

from benchmarks import arms, missing
from mmfast.build import build_data
from mmfast.errors import MmfastError


@pytest.mark.slow
def test_the_arms_lack_a_modality_or_the_same_examples():
    pytest.importorskip("sklearn")
    study = missing.study("digits")
    assert list(study.arms) == [
        "all examples, whole",
        "half without label",
        "half without label, the others repeated and weighted",
        "half without label, the others repeated, weighted and given",
        "half without mask",
        "half without mask, the others repeated and weighted",
        "half without mask, the others repeated, weighted and given",
        "half of the examples",
    ]
    data = {arm: study.data(study.config(arm, 8, 20, 3)).train for arm in study.arms}
    every = data[missing.ALL].__getitems__(range(len(data[missing.ALL])))
    assert not every.present
    has = {}
    for name in ("label", "mask"):
        batch = data[f"half without {name}"].__getitems__(range(len(every)))
        assert list(batch.present) == [name]
        has[name] = batch.present[name]
        assert torch.equal(batch.data["image"], every.data["image"])
        repeated = data[f"half without {name}, the others repeated and weighted"]
        present = repeated.__getitems__(range(len(repeated))).present[name]
        assert float(present.double().mean()) == pytest.approx(0.75, abs=0.001)
        assert int((~present).sum()) == int((~has[name]).sum())
        # The preset's weight, and how often it is given; divided by the share of what has it where that is repeated.
        weight, given = {"label": (0.2, 0.4), "mask": (0.5, None)}[name]
        both = [missing.lacking(name, repeated=True), missing.lacking(name, given=True)]
        for arm in study.arms:
            spec = study.config(arm, 8, 20, 3).modalities[name]
            assert spec.loss_weight == pytest.approx(weight / (0.75 if arm in both else 1), abs=1e-3)
            expected = given if arm != both[1] else {"label": 0.4, "mask": 0.25}[name] / 0.75
            assert spec.given_probability == pytest.approx(expected, abs=1e-3)
    assert torch.equal(has["label"], has["mask"]) and 0.45 < float(has["mask"].double().mean()) < 0.55
    left = data[missing.LEFT_OUT]
    assert torch.equal(left.__getitems__(range(len(left))).data["image"], every.data["image"][has["mask"]])
    assert len({len(build_data(study.config(arm, 8, 20, 3)).test) for arm in study.arms}) == 1


def test_some_modalities_alone_have_arms():
    pytest.importorskip("sklearn")
    lacking = [missing.lacking("mask"), missing.lacking("mask", repeated=True), missing.lacking("mask", given=True)]
    names = [missing.ALL, *lacking, missing.LEFT_OUT]
    assert [*missing.study("digits", only=["mask"]).arms] == names
    with pytest.raises(MmfastError, match="--only is 'masks'; it should be one of label, mask"):
        missing.study("digits", only=["masks"])


def figures(agreement, distance):
    return {"label.joint_agreement": agreement, "frechet.samples": distance, "milliseconds": 1.0}


FOUND = {
    missing.ALL: [figures(0.9, 1.0), figures(0.7, 3.0)],  # errors 0.2 and 2
    "half without label": [figures(0.7, 2.0), figures(0.7, 2.0)],  # 1.5 times the first
    "half without mask": [figures(0.6, 4.0), figures(0.6, 4.0)],  # twice each
    missing.LEFT_OUT: [figures(0.6, 4.5), figures(0.6, 4.5)],  # 2 and 2.25 times
}


def test_a_cost_is_the_mean_ratio_of_the_errors():
    keys = arms.measured(FOUND)
    assert keys == ["label.joint_agreement", "frechet.samples"]
    assert missing.cost(FOUND, missing.ALL, keys) == pytest.approx(0)
    assert missing.cost(FOUND, "half without label", keys) == pytest.approx(1.5**0.5 - 1)  # 0.225
    assert missing.cost(FOUND, "half without mask", keys) == pytest.approx(1)
    assert missing.cost(FOUND, missing.LEFT_OUT, keys) == pytest.approx(4.5**0.5 - 1)  # 1.121
    assert missing.verdicts(FOUND) == [
        "- half of the examples: errors +112.1%",
        "- half without label: errors +22.5%, under half of that",
        "- half without mask: errors +100.0%, **not under half of that**",
    ]


def test_a_perfect_figure_costs_something_finite():
    found = {arm: [{"mask.recovered_iou": value}] for arm, value in ((missing.ALL, 1.0), (missing.LEFT_OUT, 0.99))}
    assert missing.cost(found, missing.LEFT_OUT, ["mask.recovered_iou"]) == pytest.approx(99)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path, capsys):
    pytest.importorskip("sklearn")
    argv = ["--steps", "3", "--samples", "8", "--seeds", "1", "--work", str(tmp_path / "w"), "--out", str(tmp_path)]
    assert missing.main([*argv, "--name", "mine"]) == 0
    said = capsys.readouterr().out
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    assert len(times) == 8 and missing.main([*argv, "--name", "mine"]) == 0
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    found = json.loads((tmp_path / "mine.json").read_text())
    assert found["steps"] == 3 and said.endswith(capsys.readouterr().out)
    assert "\n".join(missing.verdicts(found["arms"])) in said
