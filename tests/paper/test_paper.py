"""The runner of the paper's tasks: all of it in small, on digits; what is done is not done again; clear errors."""

import dataclasses
import json
import platform
import shutil
import signal

import pytest
import torch
import yaml

from benchmarks.paper import __main__ as paper
from benchmarks.paper import cells, curves, measures, report, supervised
from benchmarks.paper.core import OURS
from mmfast.build import build_model
from mmfast.errors import MmfastError
from mmfast.metrics.features import Extractor
from mmfast.training import fit

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")


def run(task, folder, *more):
    return paper.main([task, "--smoke", "--seeds", "1", "--work", str(folder), *more])


@pytest.mark.slow
@pytest.mark.parametrize("task", paper.TASKS)
def test_a_task_trains_evaluates_and_writes_its_page(task, tmp_path):
    assert run(task, tmp_path, "--images", "128") == 0
    found = json.loads((tmp_path / "results" / f"{task}.json").read_text())
    methods = [method.name for method in paper.load(task).methods]
    rows = {(row["method"], row["condition"], row["metric"]): row for row in found["rows"]}
    assert set(methods) <= {row["method"] for row in found["rows"]} and OURS in methods
    assert {"commit", "configs", "minutes", "rows", "verdicts"} <= set(found) and found["verdicts"]
    for row in found["rows"]:
        assert row["n_seeds"] == 1 and len(row["values"]) == 1 and isinstance(row["higher_is_better"], bool)
    # Every modality is shown in one direction at least, and the bound with its four parts; no total mixes units.
    columns = {metric for _, _, metric in rows}
    assert {f"{part} (bits per dimension)" for part in ("L0", "L1", "L2", "L3", "pixels")} <= columns
    assert not any(column.startswith("total") for column in columns)
    bounds = {row["condition"]: row["mean"] for row in found["rows"] if row["metric"].startswith("pixels (bits")}
    assert len(bounds) >= len(measures.REVERSES) and all(how in " ".join(bounds) for how in measures.REVERSES.values())
    assert {metric for _, condition, metric in rows if condition == curves.ERRORS} >= {"t = 1", "t = 1000"}
    page = (tmp_path / "results" / f"{task}.md").read_text()
    assert all(method in page for method in methods)
    assert list((tmp_path / "results").glob(f"{task}-*.png"))
    # The claims alone: of the same models, with the same figures and verdicts, and beside the full results.
    full = {file: file.read_bytes() for file in tmp_path.rglob("result.json")}
    assert run(task, tmp_path, "--images", "128", "--claims", "--out", str(tmp_path / "claims")) == 0
    brief = json.loads((tmp_path / "claims" / f"{task}.json").read_text())
    assert full and all(file.read_bytes() == text for file, text in full.items())
    needed = [method.name for method in paper.load(task).claiming]
    assert {row["method"] for row in brief["rows"]} == {*needed, cells.REAL} and {*needed} <= {*methods}
    of_ours = {row["condition"] for row in brief["rows"] if row["method"] != cells.REAL}
    assert {row["condition"] for row in brief["rows"]} == of_ours
    for row in brief["rows"]:
        assert row["values"] == rows[row["method"], row["condition"], row["metric"]]["values"]
    assert len(brief["rows"]) < len(rows) and "--claims" in (tmp_path / "claims" / f"{task}.md").read_text()
    verdicts = {v["claim"]: v for v in found["verdicts"]}
    assert brief["verdicts"] and all(v == verdicts[v["claim"]] for v in brief["verdicts"])


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    assert run("image-mask", tmp_path) == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("result.json")}

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "trained", fail)
    assert run("image-mask", tmp_path) == 0
    assert before and all(file.read_bytes() == text for file, text in before.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder in which the image alone is trained and measured by ten samples."""
    folder = tmp_path_factory.mktemp("alone")
    plan = plan_in(folder)
    cells.run(plan, plan.task.method("image alone"), 0)
    return folder


def plan_in(folder, samples="10"):
    return paper.plan_of(paper.parse(["image-mask", "--smoke", "--samples", samples, "--work", str(folder)]))


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    plan = plan_in(tmp_path)
    return plan, plan.task.method("image alone")


def test_a_model_of_another_config_is_never_taken(alone, tmp_path):
    plan, method = copied(alone, tmp_path)
    cells.trained(plan, method, 0)
    file = plan.folder(method, 0) / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["train"]["learning_rate"] = 0.5
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(MmfastError, match=r"another config .*train.learning_rate"):
        cells.trained(plan, method, 0)


def test_a_result_from_before_an_option_came_is_that_of_its_default(alone, tmp_path):
    plan, method = copied(alone, tmp_path)
    file = plan.folder(method, 0) / cells.RESULT
    for key, value, taken in (("steps", None, False), ("workers", None, True), ("gone", 1, False)):
        found = json.loads(file.read_text())
        for cell in found:
            cell["config"]["train"].pop(key, None)
            cell["config"]["train"] |= {} if value is None else {key: value}
        other = plan.folder(method, 1) / cells.RESULT  # its config says seed 0
        other.parent.mkdir(exist_ok=True)
        other.write_text(json.dumps([{**cell, "config": {**cell["config"], "seed": 1}} for cell in found]))
        if taken:
            assert plan.cells(method, 1)
        else:
            with pytest.raises(MmfastError, match="another config"):
                plan.cells(method, 1)


def test_options_are_chosen_by_other_images_in_a_folder_of_their_own(tmp_path):
    plan, choice = (
        paper.plan_of(paper.parse(["image-mask", "--work", str(tmp_path), *more])) for more in ([], ["--validate"])
    )
    assert choice.work != plan.work and not choice.work.match("*-images")
    of = [p.config(p.task.method(OURS), 0).data.validation for p in (plan, choice)]
    assert of == [False, True]
    assert paper.parse(["image-mask", "--work", str(tmp_path), "--validate"]).out == tmp_path / "validation"
    elsewhere = {paper.plan_of(paper.parse(["image-mask", "--data", data])).work.name for data in ("/a", "/b", "/a/.")}
    assert len(elsewhere) == 2 and plan.work.name not in elsewhere  # models of other data are others


def test_the_name_of_a_folder_stays_short_with_many_options(tmp_path):
    """A file system takes 255 bytes; other options still have another folder, in whatever order they are given."""
    many = [f"--set=modalities.mask.{key}={value}" for key, value in (
        ("given_probability", 0.125), ("unknown_probability", 0.25), ("own_time_probability", 0.375),
        ("given_at_T", 0.5), ("loss_weight", 0.0625), ("given_steps", 12), ("reads", "encoder"), ("encoder", "fixed"),
    )]  # fmt: skip
    args = ["image-mask", "--validate", "--data", "somewhere", "--work", str(tmp_path)]
    names = [paper.plan_of(paper.parse([*args, *more])).work.name for more in (many, many[::-1], many[1:], many[:1])]
    assert names[0] == names[1] != names[2] and all(len(name.encode()) <= 255 for name in names)
    for name in names:
        (tmp_path / name).mkdir(exist_ok=True)
    assert "modalities.mask.given_probability=0.125" in names[3]


def test_every_method_sees_as_many_images_and_has_the_same_backbone():
    for task in map(paper.load, paper.TASKS):
        configs = [task.config(method, 0, 6400, {}) for method in task.methods if method.share == 1]
        assert len(configs) >= 3 and len({config.train.steps * config.train.batch_size for config in configs}) == 1
        assert len({str(config.backbone) for config in configs}) == 1
        # But for what is drawn first, which one modality alone has no use for.
        assert len({str(dataclasses.replace(config.sample, first=[])) for config in configs}) == 1


@pytest.mark.slow
def test_supervised_training_learns_and_goes_on_where_it_was_stopped(tmp_path):
    plan = paper.plan_of(paper.parse(["image-label", "--smoke", "--images", "12800", "--work", str(tmp_path)]))
    method = plan.task.method("classifier alone")
    found, curve, minutes = cells.trained(plan, method, 0)
    truth = found.held_out(200).data
    said = found.said(truth, "image", "label")
    # 400 steps on 1,437 digits: a linear classifier has 0.96; chance is 0.1.
    assert float((said == truth["label"]).float().mean()) > 0.8 and curve[-1]["loss"] < curve[0]["loss"]
    again, kept, same = cells.trained(plan, method, 0)
    assert torch.equal(again.said(truth, "image", "label"), said)
    assert kept == curve and same == minutes

    config, seen = plan.config(method, 0), []
    loss = supervised.loss("image", "label")

    def stops(model, batch, numbers, config):
        seen.append(int(numbers[0]))
        if numbers[0] == 310 * 32 and seen.count(310 * 32) == 1:
            signal.raise_signal(signal.SIGTERM)
        return loss(model, batch, numbers, config)

    with pytest.raises(KeyboardInterrupt):
        fit(config, str(tmp_path / "stopped"), found.data, stops, quiet=True)
    stopped = fit(config, str(tmp_path / "stopped"), found.data, stops, quiet=True)
    assert seen.count(310 * 32) == 1 and torch.equal(
        supervised.answer(stopped.ema.model.eval(), truth, "image", "label", config.sample.precision), said
    )


@pytest.mark.slow
def test_options_of_every_config_go_to_a_folder_of_their_own_and_onto_the_page(tmp_path):
    options = ["--set", "train.batch_size=20", "--set", "modalities.mask.weight={kind: none}"]
    plan = paper.plan_of(paper.parse(["image-mask", "--smoke", "--work", str(tmp_path), *options]))
    for method in plan.task.methods:
        config = plan.config(method, 0)
        assert config.train.batch_size == 20 and config.train.steps == plan.images * method.share // 20
        assert "mask" not in config.modalities or config.modalities["mask"].weight.kind == "none"
    assert run("image-mask", tmp_path, *options) == 0
    again = ["--set", "modalities.mask.weight={kind: none}", "--set", "train.batch_size=8", *options[:2]]
    other = ["--set", "train.batch_size=8", "--set", "data.cache=a/b"]
    folders = [paper.plan_of(paper.parse(["image-mask", "--work", str(tmp_path), *o])).work for o in (again, other)]
    assert folders[0].name == f"96000-images{plan.work.name.removeprefix('smoke')}"  # the last of a key counts
    assert folders[1].parent == tmp_path
    assert plan.work.is_dir() and not (tmp_path / "smoke").exists()
    assert "--set 'modalities.mask.weight={kind: none}'" in (tmp_path / "results" / "image-mask.md").read_text()


def test_bad_arguments_are_named(tmp_path, capsys):
    for argument, value in (("--seeds", "0"), ("--images", "0"), ("--samples", "2"), ("--jobs", "0")):
        with pytest.raises(SystemExit):
            paper.main(["image-mask", argument, value, "--work", str(tmp_path)])
        assert f"{argument} is {value}" in capsys.readouterr().err
    for pair in ("train.batch_size", "=3", "seed=3"):
        with pytest.raises(SystemExit):
            paper.main(["image-mask", "--set", pair, "--work", str(tmp_path)])
        assert f"--set {pair}; it should be KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        paper.main(["image-mask", "--set", "train.steps=5", "--work", str(tmp_path)])
    assert "--set train.steps; the benchmark decides" in capsys.readouterr().err
    for pair, said in (("trian.steps=5", "trian"), ("modalities.maks.loss_weight=3", "maks"), ("anchor.x=1", "anchor"),
                       ("train.batch_size={x", "batch_size")):  # fmt: skip
        with pytest.raises(MmfastError, match=said):
            paper.main(["image-mask", "--set", pair, "--work", str(tmp_path)])
    with pytest.raises(MmfastError, match="method is 'mmfst'; it should be one of 'mmfast', "):
        paper.main(["image-label", "--cell", "mmfst", "0", "--work", str(tmp_path)])
    with pytest.raises(MmfastError, match=r"data\.root"):
        paper.main(["image-label", "--data", str(tmp_path / "none"), "--work", str(tmp_path)])


@pytest.mark.parametrize(
    ("capability", "precision", "lines"), [("AVX2", "bf16", 1), ("AVX2", "fp32", 0), ("AVX512", "bf16", 0)]
)
def test_bf16_is_said_to_be_slow_where_it_is(monkeypatch, capability, precision, lines):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    task = paper.load("image-label")
    config = task.config(task.method(OURS), 0, 64, {"train.precision": precision})
    found = list(paper.slow(config))
    assert len(found) == lines and all("--set train.precision=fp32" in line for line in found)


@pytest.mark.slow
def test_results_of_other_samples_are_made_again(alone, tmp_path):
    plan, method = copied(alone, tmp_path)
    other = plan_in(tmp_path, "12")
    assert plan.cells(method, 0) and other.cells(method, 0) is None
    cells.run(other, method, 0)
    assert other.cells(method, 0)[0].samples == 12


@pytest.mark.slow
def test_the_page_has_the_claims_with_other_numbers_of_images_too(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    args = paper.parse(["image-mask", "--smoke", "--seeds", "1", "--out", str(tmp_path / "results")])
    smoke = paper.plan_of(args)
    for images in (320, 640):
        plan = dataclasses.replace(smoke, images=images, work=tmp_path / f"{images}-images")
        for method in plan.task.methods:
            cells.run(plan, method, 0)
        paper._write(plan, args)
    page = (tmp_path / "results" / "image-mask.md").read_text()
    assert "| claim | 320 images seen | 640 images seen |" in page
    assert page.startswith("# Image and segmentation mask together (a smoke test, on digits)\n")
    assert "--images 640 --samples 40 --smoke --out results\n" in page
    (tmp_path / "0-images").mkdir()  # of a run that has found nothing yet
    other = dataclasses.replace(plan, changes={**plan.changes, "train.learning_rate": 0.5})
    assert [found.images for found in paper._elsewhere(plan, 1)] == [320] and paper._elsewhere(other, 1) == []


def test_features_of_real_images_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = paper.plan_of(paper.parse(["image-mask", "--smoke", "--work", str(tmp_path)]))
    config = plan.config(plan.task.method(OURS), 0)
    trained = cells.Trained(build_model(config), config, 0, 40, False, "pixels", lambda: build_model(config))
    calls = []
    monkeypatch.setattr(
        measures, "extractor", lambda name: Extractor(name, lambda x: calls.append(len(x)) or x.flatten(1), "cpu")
    )
    first = measures.reference_quality(trained, "drawn")
    assert sum(calls) == 80
    # The first half is what 40 samples are compared with.
    measures.image_quality(trained, "drawn", torch.zeros(40, 1, 8, 8))
    assert sum(calls) == 120 and measures.reference_quality(trained, "drawn") == first and sum(calls) == 120
