"""A run by what it leaves: what is written at which step, what a stop leaves, and what is refused or warned of."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_trainer import LENGTH, OPTIONS, Known, data, flat
from tiny import tiny

from mmfast.build import build_data
from mmfast.data import Batch, Data, folder
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import Ranks
from mmfast.run import Run
from mmfast.training import log
from mmfast.training import loop as module
from mmfast.training.loop import fit, train
from mmfast.training.trainer import Trainer


def test_what_happens_at_which_step(tmp_path, monkeypatch):
    """Stats every 2nd step, checkpoints every 3rd, pictures every 4th, and all of them at the end; then the figures."""
    events, taken = [], []
    for name in ("flush", "checkpoint"):
        method = getattr(Trainer, name)
        monkeypatch.setattr(
            Trainer, name, lambda self, n=name, m=method, **how: events.append((n, self.done)) or m(self, **how)
        )
    monkeypatch.setattr(module, "sample_run", lambda gallery, model, *rest, **how: events.append(
        ("pictures", gallery.step, not model.training, gallery.board is not None)))  # fmt: skip
    monkeypatch.setattr(module, "evaluate_run", lambda run, model, *rest, **how: taken.append((run, model)))
    monkeypatch.setattr(module, "build_data", lambda config: data())
    options = {"train__log_every": 2, "train__checkpoint_every": 3, "train__sample_every": 4}
    run = train(tiny(train__steps=8, **options), str(tmp_path / "run"), quiet=True)
    assert [e for e in events if e[0] == "pictures"] == [("pictures", 4, True, True), ("pictures", 8, True, True)]
    assert [step for name, step, *_ in events if name == "checkpoint"] == [3, 6, 8] and not taken
    # A checkpoint writes what has not been written, and so is what comes before a picture.
    assert [step for name, step, *_ in events if name == "flush"] == [2, 3, 4, 4, 6, 6, 8, 8]
    assert load_tensors(run.folder / "ema.safetensors")[1] == {"step": 8}
    config = tiny(train__steps=2, evaluate__samples=5)
    run = train(config, str(tmp_path / "figures"), quiet=True)
    ((where, model),) = taken
    kept, raw = (load_tensors(run.folder / f"{name}.safetensors")[0] for name in ("ema", "model"))
    assert where == run and all(torch.equal(x, kept[name]) for name, x in model.state_dict().items())
    assert not all(torch.equal(kept[name], raw[name]) for name in kept)
    (run.folder / "metrics.json").write_text("{}")
    train(config, str(tmp_path / "figures"), quiet=True)
    assert len(taken) == 1  # they are there


def test_on_resuming_pictures_that_are_there_are_not_drawn_again(tmp_path, monkeypatch):
    """Stopped after the checkpoint of step 4, whose pictures may be there; those of step 6 are of this part."""
    drawn = []
    monkeypatch.setattr(module, "sample_run", lambda *args, again=True, **how: drawn.append((args[0].step, again)))
    options = {"train__steps": 7, "train__sample_every": 2, "train__checkpoint_every": 2}

    class Stops(Known):
        def __call__(self, model, batch, numbers, config):
            if int(numbers[0]) == 64:
                raise KeyError("stopped")
            return super().__call__(model, batch, numbers, config)

    with pytest.raises(KeyError, match="stopped"):
        fit(tiny(**options), str(tmp_path / "run"), data(), Stops(), quiet=True)
    assert drawn == [(2, True), (4, True)]
    drawn.clear()
    fit(tiny(**options), str(tmp_path / "run"), data(), Known(), quiet=True)
    assert drawn == [(4, False), (6, True)]


def test_training_in_python_speaks_and_refuses_other_data(tmp_path, monkeypatch, capsys):
    """As the command does without --quiet and --allow-changed-data."""
    monkeypatch.setattr(module, "build_data", lambda config: data())
    out = str(tmp_path / "run")
    train(tiny(train__steps=1), out)
    said = capsys.readouterr()
    assert "50 examples to train on, 50 held out\n" in said.out and "training: step 1 of 1" in said.err
    other = {**data().train.tensors, "label": data().train.tensors["label"].flip(0)}
    monkeypatch.setattr(module, "build_data", lambda config: Data(InMemory(other), InMemory(other)))
    with pytest.raises(MmfastError, match="the data has changed since"):
        train(tiny(train__steps=2), out)


class Second(Ranks):
    """What is not the first of its job, which has told it where they begin."""

    first = False

    def told(self, value):
        return {"step": 0, "best": None, "stats": ""} if isinstance(value, dict) else value


def test_a_rank_that_is_not_the_first_writes_and_says_nothing(tmp_path, monkeypatch, capsys):
    """It takes the same steps: a log of one's own, which it would make, is made by the first alone."""
    made = []
    monkeypatch.setattr(log, "_made", lambda *args: made.append(args) or pytest.fail("a log was made"))
    options = {"train__log_every": 1, "train__checkpoint_every": 1, "train__tensorboard": "true"}
    begun = fit(tiny(train__steps=1), str(tmp_path / "run"), data(), Known(), quiet=True)
    before = {x: x.read_bytes() for x in sorted((tmp_path / "run").rglob("*")) if x.is_file()}
    capsys.readouterr()
    monkeypatch.setattr(module, "joined", lambda: contextlib.nullcontext(Second()))
    found = fit(tiny(train__steps=3, **options), str(tmp_path / "run"), data(), Known())
    assert begun.done == 1 and found.done == 3 and not made
    assert {x: x.read_bytes() for x in sorted((tmp_path / "run").rglob("*")) if x.is_file()} == before
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_encodings_of_another_size_are_warned_of(tmp_path):
    """Of what the examples have: a picture of 1 / rms is one of 4 here, and where it is missing nothing counts."""
    options = {"modalities__other": "{kind: image, channels: 1, size: 8, rms: 0.25}", "train__steps": 1}
    part = {**data().train.tensors, "other": torch.ones(LENGTH, 1, 8, 8)}
    with pytest.warns(UserWarning, match=r"the encodings of 'other' have an RMS of 4\.00; it should be near 1"):
        fit(tiny(**options), str(tmp_path / "run"), Data(InMemory(part), InMemory(part)), Known(), quiet=True)


def test_what_is_missing_has_no_size(tmp_path, recwarn):
    """A quarter of the examples have pictures of unit RMS; the blanks of the others would make that a half."""

    class Quarter(InMemory):
        def __getitems__(self, rows):
            return Batch(super().__getitems__(rows).data, {"other": torch.as_tensor(rows) % 4 == 0})

    options = {"modalities__other": "{kind: image, channels: 1, size: 8, rms: 1.0}", "train__steps": 1}
    part = Quarter({**data().train.tensors, "other": torch.ones(LENGTH, 1, 8, 8)})
    fit(tiny(**options), str(tmp_path / "run"), Data(part, part), Known(), quiet=True)
    assert not [warning for warning in recwarn if "RMS" in str(warning.message)]


def test_what_a_kill_left_unwritten_is_written_by_the_same_command(tmp_path):
    """It may come between a checkpoint and the files of weights beside it."""
    config = tiny(train__steps=2)
    run = fit(config, str(tmp_path / "run"), data(), Known(), quiet=True).run
    files = [run.folder / f"{name}.safetensors" for name in ("model", "ema")]
    before = [load_tensors(file)[0] for file in files]
    for file in files:
        file.unlink()
    fit(config, str(tmp_path / "run"), data(), Known(), quiet=True)
    for file, tensors in zip(files, before, strict=True):
        again = load_tensors(file)[0]
        assert set(again) == set(tensors) and all(torch.equal(x, again[name]) for name, x in tensors.items())


def test_bad_data_is_named_before_there_is_a_run_and_during_it(tmp_path):
    wrong = InMemory({**data().train.tensors, "label": torch.full((LENGTH,), 11)})
    for both in (Data(wrong, data().test), Data(data().train, wrong)):
        with pytest.raises(MmfastError, match=r"data: label runs from 11 to 11"):
            fit(tiny(train__steps=1), str(tmp_path / "run"), both, Known(), quiet=True)
        assert not (tmp_path / "run").exists()
    known = Known()
    fit(tiny(train__steps=3), str(tmp_path / "order"), data(), known, quiet=True)
    row = next(row for _, row in known.seen[32:] if row >= 16)  # of the third batch, and not looked at before
    late = data().train.tensors["label"].clone()
    late[row] = 10
    part = InMemory({**data().train.tensors, "label": late})
    with pytest.raises(MmfastError, match=r"data: label runs from . to 10"):
        fit(tiny(train__steps=9), str(tmp_path / "run"), Data(part, data().test), Known(), quiet=True)
    assert Run.open(tmp_path / "run").load_state()[1]["step"] == 2  # what was learnt before it is kept


@pytest.mark.parametrize("on_error", ["stop", "skip", None])
def test_an_example_that_cannot_be_read_is_said_with_the_option_that_leaves_it_out(on_error):
    """Where the data set has that option and does not use it."""
    config = tiny()
    if on_error is not None:
        config = dataclasses.replace(config, data=folder.Spec(root="here", on_error=on_error))

    def batches():
        raise MmfastError("x.png cannot be read")
        yield

    hint = "; to leave such examples out, repeat the command with --data.on_error skip" if on_error == "stop" else ""
    with pytest.raises(MmfastError, match=rf"^x\.png cannot be read{hint}$"):
        Trainer(config, Run(Path()), data(), Known()).step(batches(), None)


def test_a_run_taken_up_again_has_the_same_stats_each_once(tmp_path):
    """Stopped after step 4 with a checkpoint of step 3: the fourth line is made again, in TensorBoard too."""
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    class Stops(Known):
        def __call__(self, model, batch, numbers, config):
            if int(numbers[0]) == 64:
                raise KeyError("stopped")
            return super().__call__(model, batch, numbers, config)

    options = {**OPTIONS, "train__checkpoint_every": 3, "train__log_every": 1, "train__tensorboard": "true"}
    config = tiny(**options)
    straight = fit(config, str(tmp_path / "straight"), data(), Known(), quiet=True)
    with pytest.raises(KeyError, match="stopped"):
        fit(config, str(tmp_path / "run"), data(), Stops(), quiet=True)
    assert len((tmp_path / "run" / "stats.jsonl").read_text().splitlines()) == 4
    known = Known()
    found = fit(config, str(tmp_path / "run"), data(), known, quiet=True)
    assert known.seen[0][0] == 48
    assert found.run.stats_file.read_text() == straight.run.stats_file.read_text()
    assert np.array_equal(flat(found.model), flat(straight.model))
    assert np.array_equal(flat(found.ema.model), flat(straight.ema.model))
    shown = event.EventAccumulator(str(found.run.folder / "tensorboard")).Reload()
    assert [x.step for x in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_shows_the_stats(tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(train__steps=3, train__tensorboard="true")
    run = fit(config, str(tmp_path / "run"), build_data(config), quiet=True).run
    found = event.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    lines = [json.loads(line) for line in run.stats_file.read_text().splitlines()]
    names = {name.replace(".", "/"): name for name in lines[0] if name not in ("step", "images")}
    assert set(found.Tags()["scalars"]) == set(names)
    for tag, name in names.items():
        assert [(x.step, x.value) for x in found.Scalars(tag)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines
        ]
