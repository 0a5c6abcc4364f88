"""What a review of training found: files that one rank cannot write, two trainers without locks, losses by turns."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from processes import Job
from rank_runs import command
from tiny import tiny

from mmfast import MmfastError, from_run, lock
from mmfast import run as runs
from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.grids import Gallery
from mmfast.run import Run
from mmfast.training import fit, train
from mmfast.training.advice import slow_here, without_effect
from mmfast.training.trainer import Trainer


def step_of(run):
    return load_tensors(Path(run) / "trainer.safetensors")[1]["step"]


class Killed(BaseException):
    pass


def killed_after(monkeypatch, steps):
    step = Trainer.step

    def until(self, *args):
        if self.done == steps:
            raise Killed
        step(self, *args)

    monkeypatch.setattr(Trainer, "step", until)


# --- ranks --------------------------------------------------------------------------------------------------------


def without(what, argv):
    """The command, of which the first rank cannot write a picture, or the best average."""
    from mmfast import run

    def full(*args):
        assert os.environ["RANK"] == "0"
        raise MmfastError("the disk is full")

    if what == "a picture":
        Gallery.hang = full
    else:
        save = run.save_tensors
        run.save_tensors = lambda path, *x: full() if path.name == run.BEST else save(path, *x)
    return main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
@pytest.mark.parametrize("what", ["a picture", "the best average"])
def test_what_the_first_rank_cannot_write_ends_all_and_loses_no_step(tmp_path, what, shard):
    options = {
        "train__sample_every": 2,
        "train__validate_every": 0 if what == "a picture" else 2,
        "train__shard": shard,
    }
    job = Job(2, tmp_path / "logs", without, what, command(tmp_path / "run", 50, **options))
    assert job.wait(90) == [2, 2] and job.said() == ["mmfast: error: the disk is full\n", ""]
    assert step_of(tmp_path / "run") == 2


# --- one trainer at a time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"train__validate_every": 3}])
def test_without_locks_the_trainer_that_stops_writes_nothing_more(tmp_path, monkeypatch, more):
    """Whether it meets the other's lines before pictures, or as it saves the best average."""
    monkeypatch.setattr(lock, "take", lambda path: None)
    step = Trainer.step

    def beside(self, *args):
        step(self, *args)
        if self.done == 3:
            with open(self.run.stats_file, "a") as file:
                file.write('{"step": 4}\n')

    monkeypatch.setattr(Trainer, "step", beside)
    options = {"train__sample_every": 3, "train__log_every": 2, "train__checkpoint_every": 2, **more}
    with pytest.raises(runs.NotAlone, match="This one stops, and saves nothing more"):
        train(tiny(train__steps=8, **options), str(tmp_path / "run"), quiet=True)
    assert step_of(tmp_path / "run") == 2 and not (tmp_path / "run" / runs.BEST).exists()
    for file in ("model.safetensors", "ema.safetensors"):
        assert load_tensors(tmp_path / "run" / file)[1]["step"] == 2


def test_a_state_is_not_saved_beside_another_trainers(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "take", lambda path: None)
    run = Run.start(tmp_path / "run", tiny())
    run.append_stats('{"step": 1}\n')
    run.save_state({}, {"step": 1})
    run.stats_file.write_text('{"step": 1}\n{"step": 2}\n')
    for write in (lambda: run.save_state({}, {"step": 2}), lambda: run.save("model.safetensors", {}, {})):
        with pytest.raises(runs.NotAlone, match="another one trains in this folder"):
            write()
    assert step_of(run.folder) == 1 and not (run.folder / "model.safetensors").exists()


# --- losses -------------------------------------------------------------------------------------------------------


def by_turns(model, batch, numbers, config):
    """The parameters with even numbers in one step, those with odd ones in the next."""
    turn = int(numbers[0]) // config.train.batch_size % 2
    return {"x": sum((p**2).sum() for p in [*model.parameters()][turn::2])}


def test_parameters_that_take_turns_resume(tmp_path, monkeypatch):
    config = tiny(train__steps=6, train__checkpoint_every=1)
    data = build_data(config)
    whole = fit(config, str(tmp_path / "whole"), data, by_turns, quiet=True)
    with monkeypatch.context() as patch:
        killed_after(patch, 5)
        with pytest.raises(Killed):
            fit(config, str(tmp_path / "run"), data, by_turns, quiet=True)
    tensors, metadata = load_tensors(tmp_path / "run" / "trainer.safetensors")
    assert metadata["step"] == 5 and metadata["taken"] == 3
    found = fit(config, str(tmp_path / "run"), data, by_turns, quiet=True)
    for a, b in zip(found.model.parameters(), whole.model.parameters(), strict=True):
        assert a.equal(b)
    # What it has counted is still held to what was recorded.
    for taken in (2, 4, "3", None):
        found.run.save_state(tensors, {**metadata, "taken": taken})
        found.run.folder.joinpath("trainer.previous.safetensors").unlink()
        with pytest.raises(MmfastError, match="is of step 5, but its optimiser has taken 3; both should be the same"):
            Trainer(config, found.run, data).restore()


def test_a_usual_state_says_nothing_of_the_count(tmp_path):
    run = train(tiny(train__steps=2), str(tmp_path / "run"), quiet=True)
    assert "taken" not in load_tensors(run.folder / "trainer.safetensors")[1]


# --- weights from another run -------------------------------------------------------------------------------------


def test_a_run_that_begins_again_from_later_weights_says_so(tmp_path, monkeypatch, capsys):
    other, run = str(tmp_path / "other"), str(tmp_path / "run")
    train(tiny(train__steps=1), other, quiet=True)
    for _ in range(2):
        with monkeypatch.context() as patch:
            killed_after(patch, 1)
            with pytest.raises(Killed):
                train(tiny(train__steps=2), run, quiet=True, start=other)
    assert "has changed" not in capsys.readouterr().err
    train(tiny(train__steps=3), other, quiet=True)
    train(tiny(train__steps=2), run, quiet=True, start=other)
    assert (
        f"--from {other} has changed: the run in --out {run} began from its weights of step 1, has no checkpoint "
        "yet, and begins again from those of step 3"
    ) in capsys.readouterr().err
    assert json.loads(Path(run, "from.json").read_text())["step"] == 3


def test_the_record_of_older_runs_has_no_step(tmp_path):
    (tmp_path / "from.json").write_text(json.dumps({"from": "a"}))
    before = from_run.recorded_start(str(tmp_path))
    assert before == from_run.Start("a", None)
    assert from_run.moved_on("run", before, from_run.Kept(Path("a"), (), (), (), step=3)) == ""
    for text in ("[]", "{}", '{"from": 1}', "?"):
        (tmp_path / "from.json").write_text(text)
        assert from_run.recorded_start(str(tmp_path)) is None


def test_the_record_is_there_before_the_config(tmp_path, monkeypatch):
    other, run = str(tmp_path / "other"), str(tmp_path / "run")
    train(tiny(train__steps=1), other, quiet=True)

    def kill(path, text):
        assert path.name == "config.yaml"
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_text", kill)
        with pytest.raises(Killed):
            train(tiny(train__steps=2), run, quiet=True, start=other)
    with pytest.raises(MmfastError, match=r"began from the weights of .*other and has no checkpoint yet"):
        train(tiny(train__steps=2), run, quiet=True)
    assert train(tiny(train__steps=2), run, quiet=True, start=other).exists


# --- changed data -------------------------------------------------------------------------------------------------


def test_what_is_set_aside_replaces_nothing(tmp_path):
    run = Run(tmp_path)
    for text, number in (("a", 0), ("b", 0), ("c", 0), ("d", 10)):
        run.metrics_file.write_text(text)
        if text != "b":
            (tmp_path / runs.BEST).write_text(text)
        run.set_aside(number)
    figures = {n: (tmp_path / f"metrics.data-{n}.json").read_text() for n in (0, 1, 2, 10)}
    assert figures == {0: "a", 1: "b", 2: "c", 10: "d"}
    assert [file.read_text() for file in run.best_of_other_data] == ["a", "c", "d"]
    run.set_aside(0)  # nothing is there
    assert len([*tmp_path.iterdir()]) == 7


def test_the_best_of_other_data_is_named(tmp_path, capsys):
    """And that it is no longer there is not said in each later command."""
    config = tiny(train__steps=2, train__validate_every=1)
    found = fit(config, str(tmp_path / "run"), build_data(config), quiet=True)
    run, model = found.run, build_model(config)
    run.set_aside(0)
    with pytest.raises(
        MmfastError, match=r"none has been measured since the data changed \(ema.best.data-0.safetensors"
    ):
        run.load_weights(model, "best")
    assert run.best({"best": found.best}) is None and not capsys.readouterr().err
    (tmp_path / "run" / "ema.best.data-0.safetensors").unlink()
    assert run.best({"best": found.best}) is None and "does not exist; the best average" in capsys.readouterr().err
    with pytest.raises(MmfastError, match=r"no step of train.validate_every was reached, or it is 0; use the last"):
        run.load_weights(model, "best")


# --- options without effect ---------------------------------------------------------------------------------------


def test_shards_of_one_process_and_graphs_without_a_gpu_are_named():
    config = tiny(train__shard="true")
    model = build_model(config)
    assert list(without_effect(model, config)) == [
        "train.shard is true, but there is one process: start several with torchrun to divide the model"
    ]
    assert not list(without_effect(model, config, 2))
    graphs = dataclasses.replace(config, train=dataclasses.replace(config.train, cuda_graphs=True))
    import torch

    assert list(slow_here(graphs, torch.device("cpu"))) == [
        "train.cuda_graphs is true, but the device is cpu, which has none"
    ]
    assert not list(slow_here(graphs, torch.device("cuda")))
