"""The benchmark of the losses' balance: what is held out, what is compared, and a run of all of it."""

import json

import pytest
import torch

from benchmarks import arms, balance
from mmfast.build import build_data


def test_a_tenth_of_the_training_set_is_held_out_and_the_test_set_is_not_seen():
    pytest.importorskip("sklearn")
    config = balance.STUDY.config("uncertainty", 8, 20, 3)
    whole, found = build_data(config), balance.validation(config)
    images = [whole.train.__getitems__(range(len(whole.train))).data["image"]]
    images += [part.__getitems__(range(len(part))).data["image"] for part in (found.train, found.test)]
    assert torch.equal(images[2], images[0][::10])
    rest = torch.ones(len(images[0]), dtype=torch.bool)
    rest[::10] = False
    assert torch.equal(images[1], images[0][rest])


def test_the_arms():
    """One has the preset's weights; the others start from 1, and two of them find their own."""
    configs = [balance.STUDY.config(name, 8, 20, 3) for name in balance.ARMS]
    assert [c.loss.balance for c in configs] == ["none", "none", "uncertainty", "gradient_norm"]
    weights = [[c.modalities[name].loss_weight for name in ("label", "mask")] for c in configs]
    assert weights[0] != [1, 1] and weights[1:] == [[1, 1]] * 3
    assert {(c.seed, c.train.steps, c.evaluate.samples) for c in configs} == {(3, 8, 20)}


def test_the_table_has_means_and_ranges():
    one = dict.fromkeys(arms.FIGURES, 0.5) | {"milliseconds": 10.0}
    two = dict.fromkeys(arms.FIGURES, 0.75) | {"milliseconds": 30.0}
    lines = arms.table({"a": [one, two], "b": [two, two]}).splitlines()
    assert lines[0] == "| | a | b |" and lines[-1] == "| CPU milliseconds a step | 20 | 30 |"
    assert lines[2].endswith("| 0.625 (0.5 .. 0.75) | 0.75 (0.75 .. 0.75) |")


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("sklearn")
    argv = ["--steps", "3", "--samples", "8", "--seeds", "1", "--work", str(tmp_path / "w"), "--out", str(tmp_path)]
    assert balance.main(argv) == 0
    first = json.loads((tmp_path / "balance.json").read_text())
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    assert len(times) == 4 and balance.main(argv) == 0
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "w").rglob("figures.json")}
    assert json.loads((tmp_path / "balance.json").read_text()) == first
    assert set(first["arms"]["uncertainty"][0]["weights"]) == {f"balance.{n}" for n in ("image", "label", "mask")}
