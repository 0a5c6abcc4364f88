"""A run's folder by what is in it: states in turn, lines of stats, what a new run may find there."""

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny

from mmfast import config as configs
from mmfast.errors import MmfastError
from mmfast.files import TEMPORARY, is_temporary, load_tensors
from mmfast.run import Run
from mmfast.stats_lines import _ranges, stats_lines


def test_numbers_are_said_as_ranges():
    said = {(1, 2, 3, 5): "1 .. 3, 5", (7,): "7", (1, 3): "1, 3", (4, 5): "4 .. 5", (): "",
            (1, 3, 5, 7, 8): "1, 3, 5, 7 .. 8", (1, 3, 5, 7, 9): "1, 3, 5, 7, ..."}  # fmt: skip
    assert {numbers: _ranges(list(numbers)) for numbers in said} == said


def test_a_run_is_its_folder(tmp_path):
    assert Run(tmp_path, damaged=True) == Run(tmp_path) != Run(tmp_path / "other")
    assert "damaged" not in repr(Run(tmp_path))


def test_a_line_of_stats_has_a_whole_number_of_its_step():
    lines = [
        '{"step": 1, "loss": 2.0}',
        '{"step": true}',
        '{"step": 2.0}',
        '{"loss": 3}',
        "[1]",
        "",
        "{",
        '{"step": 7}',
    ]
    data = "\n".join(lines).encode() + b'\n{"step": 8, "a": "\xff"}\n' + b"[" * 100_000 + b'\n{"step": 9}'
    assert list(stats_lines(data)) == [(1, lines[0] + "\n"), (7, lines[7] + "\n"), (9, '{"step": 9}\n')]


def test_the_state_before_is_kept_and_a_damaged_one_is_put_aside(tmp_path):
    run = Run.start(tmp_path / "run", tiny())
    assert run.load_state() is None
    names = [run.folder / f"trainer{x}.safetensors" for x in ("", ".previous", ".damaged")]

    def steps():
        return [load_tensors(file)[1]["step"] if file.exists() else None for file in names]

    for step in (1, 2, 3):
        run.save_state({"w": torch.full((2,), float(step))}, {"step": step})
    assert steps() == [3, 2, None]
    tensors, metadata = run.load_state()
    assert metadata == {"step": 3} and tensors["w"].tolist() == [3, 3]

    def check(tensors, metadata, path):
        if metadata["step"] == 3:
            raise MmfastError(f"{path.name} is not right")

    assert run.load_state(check)[1] == {"step": 2} and run.damaged
    run.save_state({"w": torch.zeros(2)}, {"step": 4})
    assert steps() == [4, 2, 3] and not run.damaged
    run.save_state({"w": torch.zeros(2)}, {"step": 5})
    assert steps() == [5, 4, 3]


def test_a_folder_with_other_things_in_it_is_no_run(tmp_path):
    """A lock, and what a kill left of the first file, are a run's own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".tmp-mmfast-config.yaml-abcdefgh.yaml"):
        (folder / name).write_text("")
    run = Run.start(folder, tiny())
    assert sorted(file.name for file in folder.iterdir()) == [".lock", "config.yaml", "samples"]
    assert run.config() == configs.load(str(run.config_file)) == tiny()
    other = tmp_path / "other"
    other.mkdir()
    for name in "dcba":
        (other / name).write_text(name)
    with pytest.raises(MmfastError, match=r"holds files that are not a run's \(a, b, c\); choose a new folder"):
        Run.start(other, tiny())
    assert sorted(file.name for file in other.iterdir()) == [*"abcd"]
    (tmp_path / "file").write_text("")
    with pytest.raises(MmfastError, match=r"--out .*file/run cannot be made: Not a directory"):
        Run.start(tmp_path / "file" / "run", tiny())
    with pytest.raises(MmfastError, match=r"none holds no run \(no config\.yaml\); `mmfast train PRESET --out"):
        Run.open(tmp_path / "none")


def test_another_config_is_refused_with_four_of_its_keys(tmp_path):
    Run.start(tmp_path / "run", tiny())
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    more = {"seed": 3, "train__warmup": 7, "loss__target": "v", "train__grad_clip": 9.0, "train__ema_decay": 0.5}
    for options, end in ((dict(list(more.items())[:4]), r"-> 9\.0\); nothing"), (more, r"; \.\.\.\); nothing")):
        with pytest.raises(MmfastError, match=rf"holds a run with another config \(seed 0 -> 3; .*{end} was changed"):
            Run.start(tmp_path / "run", tiny(**options))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_what_may_change_is_written_and_said(tmp_path, capsys):
    Run.start(tmp_path / "run", tiny(train__steps=5))
    capsys.readouterr()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    run = Run.start(tmp_path / "run", tiny(train__steps=5))
    assert capsys.readouterr().err == "" and run.metrics_file.exists()
    Run.start(tmp_path / "run", tiny(train__steps=5, train__log_every=3))
    assert "resuming with train.log_every 50 -> 3" in capsys.readouterr().err and run.metrics_file.exists()
    Run.start(tmp_path / "run", tiny(train__steps=8, train__log_every=3))
    assert (tmp_path / "run" / "metrics.step-0000005.json").exists() and not run.metrics_file.exists()
    assert run.config().train.steps == 8
    with pytest.raises(MmfastError, match=r"train\.steps is 7; the run in --out .* has 8, and cannot get shorter"):
        Run.start(tmp_path / "run", tiny(train__steps=7, train__log_every=3))


def test_what_the_system_refuses_is_said_with_what_to_do(tmp_path):
    def full():
        raise OSError(28, "No space left on device")

    said = r"run cannot be written to: No space left on device; make room or permit it, then repeat the command"
    with pytest.raises(MmfastError, match=said):
        Run(tmp_path / "run").guard(full)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(MmfastError, match="cannot be written to; choose another folder"):
        Run.start(tmp_path / "run", tiny())


def test_what_a_kill_left_half_written_is_cleared_away_everywhere(tmp_path, monkeypatch):
    """Beside the states that are kept for good too, where each is as large as the run; what is the user's stays."""
    config, left = tiny(), f"{TEMPORARY}step-0000004-abcdefgh.safetensors"
    Run.start(tmp_path / "run", config)
    (tmp_path / "run" / "states").mkdir()
    places = [tmp_path / "run" / place for place in (".", "samples", "states")]
    for place in places:
        (place / left).write_bytes(b"half")
        (place / ".mine").write_bytes(b"whole")
    Run.start(tmp_path / "run", config)
    # One that another process clears away meanwhile: seen, and gone.
    ghost, listed = tmp_path / "run" / "samples" / left, Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), ghost])
    monkeypatch.setattr("mmfast.run.is_temporary", lambda path: path == ghost or is_temporary(path))
    Run.start(tmp_path / "run", config)
    monkeypatch.undo()
    assert [sorted(x.name for x in place.iterdir() if x.name in (left, ".mine")) for place in places] == [[".mine"]] * 3
