"""The paper's tasks at other budgets, fine-tuned, and with the claims' measures alone."""

import dataclasses

import pytest
import torch

from benchmarks.paper import __main__ as paper
from benchmarks.paper import cells, core
from benchmarks.paper.core import OURS
from benchmarks.paper.report import Row
from mmfast.build import build_model, load_run
from mmfast.errors import MmfastError

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")


def test_claims_are_of_the_papers_tasks(tmp_path):
    for task in {*paper.TASKS, *paper.ABLATIONS, *paper.OTHERS}:
        for method in paper.load(task).needed:
            assert paper.load(task).method(method) in paper.load(task).claiming
    with pytest.raises(MmfastError, match="--claims: few-labels has no measures that its claims do not need"):
        paper.main(["few-labels", "--smoke", "--claims", "--work", str(tmp_path)])


def test_other_budgets_and_what_is_claimed_there():
    """Ours on twice the images against both single models; and those on half of them. IoU and FD by hand."""
    task = paper.load("image-mask")
    images = {m.name: task.config(m, 0, 6400, {}).train.steps * 16 for m in task.methods}
    half = {core.its_share(name): 3200 for name in ("image alone", "segmentation alone")}
    last = {f"{OURS}, fine-tuned as segmentation alone": 1600}
    assert images == {OURS: 6400, "image alone": 6400, "segmentation alone": 6400, core.TOTAL: 12800, **half, **last}
    of = {m.name: m for m in task.methods}
    for name in half:
        assert dataclasses.replace(of[name], name="", share=1.0, evaluate=print) == dataclasses.replace(
            of[name.split(",")[0]], name="", evaluate=print
        )

    def rows(name, iou=None, fd=None):
        found = [("given the image", "mean IoU", iou, True), ("drawn together", "FD-EffNetLite0", fd, False)]
        return [Row(name, where, what, x, 0.1, 3, [x] * 3, up) for where, what, x, up in found if x is not None]

    table = [
        *rows(OURS, 0.80, 100.0), *rows("image alone", fd=105.0), *rows("segmentation alone", 0.81),
        *rows(core.TOTAL, 0.815, 106.0), *rows(core.its_share("image alone"), fd=99.0),
        *rows(core.its_share("segmentation alone"), 0.79),
    ]  # fmt: skip
    first, *_ = task.verdicts(table, 1.0)
    assert first.claim == "mean IoU within 0.02 of the segmentation model's" and first.holds
    total, share = core.sections(task, table)
    assert [(v.claim.split(" the ")[0], v.holds) for v in total.verdicts[:2]] == [
        ("mean IoU no worse than", True), ("FD-EffNetLite0 no worse than", False)]  # fmt: skip
    assert [v.holds for v in share.verdicts[:2]] == [True, False]
    assert total.own == [core.TOTAL] and share.own == list(half) and share.methods[0] == OURS
    assert core.sections(task, rows(OURS, 0.8)) == []
    (alone,) = core.sections(task, [row for row in table if row.method not in half])  # the shares were not trained
    assert alone == total and alone.methods == [core.TOTAL, "image alone", "segmentation alone"]
    assert alone.text == "One model of 2 N images against 2 models of N images each."


@pytest.mark.slow
def test_a_fine_tuned_model_goes_on_from_ours_with_one_task(tmp_path):
    """Three quarters of the images as ours, then one; at a rate near zero there the weights are the first part's."""
    plan = paper.plan_of(paper.parse(["image-label", "--smoke", "--samples", "10", "--work", str(tmp_path)]))
    drawn, read = (m for m in plan.task.methods if m.first)
    for method, given in ((drawn, {"image": 0.0, "label": 0.9}), (read, {"image": None, "label": 0.95})):
        config = plan.config(method, 0)
        assert {name: spec.given_probability for name, spec in config.modalities.items()} == given
        assert config.train.learning_rate == plan.config(plan.task.method(OURS), 0).train.learning_rate / 2
        method = dataclasses.replace(method, rate=1e-9)
        found, _, _ = cells.trained(plan, method, 0)
        cells.run(plan, method, 0)
        (cell,) = plan.cells(method, 0)
        folder = plan.folder(method, 0)
        first, config = load_run(folder / "first")[2], load_run(folder / "first")[1]
        assert (config.train.steps, found.config.train.steps) == (30, 10) and config.train.learning_rate == 2e-3
        assert all(torch.allclose(x, found.model.state_dict()[n], atol=1e-6) for n, x in first.state_dict().items())
        other = build_model(found.config)  # as it begins
        assert not all(torch.allclose(x, other.state_dict()[n], atol=1e-6) for n, x in first.state_dict().items())
        assert cell.images == 640 and cell.method == method.name


def test_a_cell_runs_with_the_options_of_the_whole(tmp_path, monkeypatch):
    class Process:
        def __init__(self, command, **_):
            self.command = command

        def wait(self):
            options.extend(self.command[3:])  # after python -m benchmarks.paper
            return 0

    options = []
    monkeypatch.setattr(paper.subprocess, "Popen", Process)
    given = ["--images", "640", "--samples", "20", "--work", str(tmp_path), "--validate", "--claims"]
    args = paper.parse(["image-mask", *given, "--set", "train.batch_size=8", "--data", "somewhere"])
    plan = paper.plan_of(args)
    assert paper._cell(plan, plan.task.method("image alone"), 2, args) == ""
    cell = paper.parse(options)
    assert cell.cell == ["image alone", "2"] and paper.plan_of(cell) == plan and plan.claims
