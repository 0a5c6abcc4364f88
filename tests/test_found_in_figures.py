"""What a review of figures, pictures and exports found: each by what it did."""

import math

import numpy as np
import pytest
import torch
from small_run import make
from tiny import tiny

from benchmarks.paper import any_to_any, matrix
from benchmarks.paper.report import Row
from mmfast import MmfastError, trust
from mmfast import config as configs
from mmfast import evaluate as evaluation
from mmfast.build import build_data, build_model, load_run
from mmfast.data.base import Batch, InMemory
from mmfast.evaluate import evaluate, evaluate_run
from mmfast.export import to_diffusers
from mmfast.grids import sample_run
from mmfast.held_out import different, held_out
from mmfast.pictures import scatter_matrix
from mmfast.report.content import Content
from mmfast.report.figures import explain
from mmfast.report.page import _figures

ME = __name__


# --- pictures of rows ---


@pytest.mark.parametrize("base", [1e20, 1.7e9, 3.3e8, 2e7, 2020.0])
def test_columns_whose_values_are_close_for_their_size(base):
    rows = np.full((20, 2), base, np.float32)
    rows[:, 1] += np.float32(128) * (np.arange(20) % 3)
    picture = scatter_matrix(["a", "b"], rows, rows)
    assert picture.size == scatter_matrix(["a", "b"], rows % 7, rows).size


def test_rows_that_are_not_finite_are_left_out_of_a_scatter_plot():
    rows = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    bad = np.concatenate((rows, np.array([[np.nan, 0], [np.inf, 1]], np.float32)))
    a, b = (np.asarray(scatter_matrix(["a", "b"], rows, x)) for x in (rows, bad))
    assert np.array_equal(a, b)
    assert scatter_matrix(["a", "b"], bad[20:], bad[20:]).size == (a.shape[1], a.shape[0])


def table(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    (tmp_path / "x.csv").write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in rows) + "\n")
    plain = {
        "anchor": "row",
        "data": {"kind": "table", "source": str(tmp_path / "x.csv")},
        "modalities": {"row": {"kind": "table", "columns": ["a", "b"]}, "label": {"kind": "label", "classes": 2}},
        "backbone": {"kind": "mlp", "width": 16, "blocks": 1, "features": 4},
        "sample": {"steps": 1, "count": 4, "clamp": None},
    }
    return configs.from_plain(plain, "x")


def test_given_rows_are_not_shown_against_themselves(tmp_path):
    config = table(tmp_path)
    model = build_model(config).eval()
    real = {"row": torch.randn(4, 2), "label": torch.zeros(4, dtype=torch.int64)}
    hung = []
    gallery = type("Hung", (), {"step": 1, "file": lambda self, name: tmp_path / name})()
    gallery.hang = lambda picture, name, kind="step": hung.append((name, kind))
    sample_run(gallery, model, config, {"row": real, "label": real}, quiet=True)
    assert ("given-label-row", "scatter") in hung and ("joint-row", "scatter") in hung
    assert ("given-row", "step") in hung and ("given-row-row", "scatter") not in hung


# --- the words of the report ---


def test_the_report_says_that_errors_are_of_latents():
    assert explain("x0_error.5").meaning.endswith("nothing given; pixels lie in -1 to 1.")
    assert explain("x0_error.5", latents=True).meaning.endswith("nothing given; of its latents.")
    for network, said in (("", "pixels lie in -1 to 1"), ("somewhere", "of its latents")):
        config = tiny()
        config.modalities["image"].autoencoder.network = network
        content = Content(None, config, metrics={"x0_error.5": 0.1})
        assert f"nothing given; {said}." in str(_figures(content))


# --- nothing is drawn in vain ---


def wrong():
    return lambda x: torch.zeros(len(x), 3, 1, 1)


def test_features_are_tried_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", {("", f"{ME}:wrong")})
    config = tiny(evaluate__samples="8", evaluate__features=f"{ME}:wrong")
    model, data = build_model(config).eval(), build_data(config)
    monkeypatch.setattr(evaluation, "generate", lambda *args, **how: pytest.fail("it drew first"))
    with pytest.raises(MmfastError, match=r"they should be \[\d+, D\]"):
        evaluate(model, config, data, quiet=True)


def test_figures_that_cannot_be_written_are_shown(tmp_path, monkeypatch, capsys):
    make(tmp_path / "run")
    run, config, model = load_run(tmp_path / "run", "cpu")
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: {"frechet.samples": 1.25})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_text", full)
    with pytest.raises(MmfastError, match="cannot be written to: No space left on device"):
        evaluate_run(run, model, config, None)
    assert "frechet.samples  1.25" in capsys.readouterr().err


def test_no_example_counts_twice_in_the_bound():
    config = tiny()
    model, data = build_model(config), build_data(config)
    few = Batch(data.test.__getitems__(range(20)).data, {"label": torch.arange(20) < 12})

    class Some(InMemory):
        def __getitems__(self, indices):
            found = super().__getitems__(indices)
            return Batch(found.data, {"label": few.present["label"][torch.as_tensor(indices)]})

    some = Some(few.data)
    assert len(held_out(some, 20, model)) == 20 and len(different(some, 20, model)) == 12
    assert len(different(some, 5, model)) == 5


# --- exports, and the pages of the benchmarks ---


@pytest.mark.parametrize(
    "kind", [{"kind": "mask", "classes": 4, "size": 8}, {"kind": "feature_map", "dim": 3, "cells": 8}]
)
def test_only_images_are_exported(tmp_path, kind):
    pytest.importorskip("diffusers")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    network = {"kind": "diffusers", "block_out_channels": [8], "norm_num_groups": 4, **blocks}
    plain = {"anchor": "x", "modalities": {"x": kind}, "backbone": network}
    config = configs.from_plain(plain, "test")
    with pytest.raises(MmfastError, match=f"the anchor, x, is of kind {kind['kind']}; export needs a run whose anchor"):
        to_diffusers(build_model(config).eval(), config, tmp_path / "out")


def rows(ours, theirs):
    return [
        Row(method, "given image: mask", "iou", x, None, 1, [x], True) for method, x in (("a", ours), ("b", theirs))
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "behind"),
    [(math.nan, 0.0, math.inf), (0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.5, 1.0, 0.5), (math.nan, 1.0, math.nan)],
)
def test_a_failed_measurement_is_behind_everything(ours, theirs, behind):
    found = any_to_any.behind(rows(ours, theirs), "a", "b", "given image: mask")[0]
    assert found == behind or (math.isnan(behind) and not found <= 0.05)


def test_a_score_that_is_missing_does_not_spoil_the_matrix():
    scores = [("given a: b", "iou", math.nan), ("given c: b", "iou", 0.5), ("given d: b", "iou", 0.7)]
    assert matrix.picture(scores, ["b"]).size == matrix.picture([(*x[:2], 0.6) for x in scores], ["b"]).size
