"""A file that the user names is never overwritten without a word, which is said before any work is done for it."""

import os

import numpy as np
import pytest
from PIL import Image
from small_run import make

from mmfast.cli import COMMANDS, main
from mmfast.cli.shared import write_picture
from mmfast.sweep import Point


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("overwrite")
    make(folder / "run")
    (folder / "data/image").mkdir(parents=True)
    for k in range(12):
        Image.fromarray(np.full((8, 8), 20 * k, np.uint8)).save(folder / f"data/image/{k}.png")
    return folder


SAMPLE = ["sample", "run", "--n", "1", "--steps", "1", "--device", "cpu", "--quiet"]
# Each command that writes a file of the user's naming: the words before its name, and what it begins with.
WRITES = {
    "x.yaml": (["init", "data", "--quiet", "--out"], b"# Written by"),
    "sheet.png": (["check", "data", "--quiet", "--sheet"], b"\x89PNG"),
    "x.png": ([*SAMPLE, "--out"], b"\x89PNG"),
    "x.npz": ([*SAMPLE, "--npz"], b"PK"),
    "x.json": (["eval", "run", "--samples", "2", "--device", "cpu", "--quiet", "--json"], b"{\n"),
    "x.html": (["report", "run", "--out"], b"<!DOCTYPE html>"),
}
# What does each command's work.
WORK = {
    "init": "mmfast.guess.guess",
    "check": "mmfast.survey.survey",
    "sample": "mmfast.loaded.load",
    "eval": "mmfast.build.load_run",
    "report": "mmfast.report.gather",
}


@pytest.fixture(params=WRITES)
def written(request, place, monkeypatch):
    """The words of a command, the file that it writes, how that begins, and the function that works for it."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: 0.5)  # what takes long is not asked about here
    monkeypatch.setattr("mmfast.evaluate.evaluate", lambda *args, **more: {"samples": 2.0})
    yield *WRITES[request.param], place / request.param
    for file in (*(place / name for name in WRITES), place / "target"):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)


def refused(words, file, capsys, monkeypatch, more=()):
    """The one line with which a command ends before its work."""
    with monkeypatch.context() as here:
        here.setattr(WORK[words[0]], lambda *args, **more: pytest.fail("it has begun to work"))
        assert main([*words, str(file), *more]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f" {words[-1]} is {file}" in said
    return said


def test_what_is_there_stays_unless_it_is_to_be_overwritten(written, capsys, monkeypatch):
    """A link is there, too, even one to nothing; and it is what is overwritten, not the file that it leads to."""
    words, begins, file = written
    target, usual = file.parent / "target", "which already exists; choose another name, or add --overwrite\n"
    file.symlink_to(target)
    assert refused(words, file, capsys, monkeypatch).endswith(usual)
    target.write_text("mine")
    assert refused(words, file, capsys, monkeypatch).endswith(usual) and target.read_text() == "mine"
    assert main([*words, str(file), "--overwrite"]) == 0
    assert target.read_text() == "mine" and not file.is_symlink() and file.read_bytes().startswith(begins)
    assert refused(words, file, capsys, monkeypatch).endswith(usual) and file.read_bytes().startswith(begins)


def test_what_is_no_file_and_where_there_is_no_folder(written, capsys, monkeypatch):
    words, _, file = written
    for more in ((), ("--overwrite",)):
        file.mkdir()
        assert "which exists and is not a file" in refused(words, file, capsys, monkeypatch, more)
        file.rmdir()
        os.mkfifo(file)
        assert "which exists and is not a file" in refused(words, file, capsys, monkeypatch, more)
        file.unlink()
        lost = file.parent / "none" / file.name
        assert f"{lost.parent} is not a folder; create it" in refused(words, lost, capsys, monkeypatch, more)
        below = file.parent / "data/image/0.png" / file.name
        assert "0.png is not a folder; create it" in refused(words, below, capsys, monkeypatch, more)


def test_a_folder_that_cannot_be_written_to(written, capsys, monkeypatch):
    words, _, file = written
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert f"{file.parent} cannot be written to; choose another place" in refused(words, file, capsys, monkeypatch)


def test_no_command_is_left_out():
    """Whatever takes a file or a folder to write is above, or makes new folders alone."""
    assert {words[0] for words, _ in WRITES.values()} | {"train", "sweep", "presets", "info"} == {*COMMANDS}


SWEEP = ["sweep", "run", "--over", "steps=1", "--samples", "2", "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("words", [[*SAMPLE, "--save"], [*SWEEP, "--out"]], ids=["sample", "sweep"])
def test_folders_are_new_ones(words, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (tmp_path / "mine").write_text("mine")
    assert main([*words, str(tmp_path)]) == 2
    assert f"{tmp_path}, which already exists; nothing is overwritten: choose a new" in capsys.readouterr().err
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("mine", "mine")]


def test_an_empty_folder_is_as_good_as_a_new_one(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    points = [Point({"steps": "1"}, {"evaluations": 1.0, "frechet": 1.0, "recall": 1.0})]
    monkeypatch.setattr("mmfast.sweep.sweep", lambda *args: args[-1](points) or points)
    assert main([*SWEEP, "--out", str(tmp_path)]) == 0 and (tmp_path / "sweep.json").exists()


def test_a_picture_that_is_too_large_for_jpeg_is_a_png(tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"another")
    for name, size, written in (("x.jpg", (1, 65_501), "x-1.png"), ("y.jpeg", (65_500, 1), "y.jpeg")):
        assert write_picture(tmp_path / name, Image.new("L", size)) == tmp_path / written
        assert Image.open(tmp_path / written).size == size
    assert capsys.readouterr().err == (
        f"mmfast: the picture is 1 x 65,501 pixels, and a JPEG has at most 65,500 per side; it is written to "
        f"{tmp_path / 'x-1.png'} instead of {tmp_path / 'x.jpg'}\n"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x-1.png", "x.png", "y.jpeg"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")  # the user's own place may be one
    assert write_picture(tmp_path / "link/x.jpg", Image.new("L", (1, 65_501))).exists()


def test_where_a_grid_went_is_printed(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("mmfast.cli.shared.LARGEST_JPEG", 100)
    assert main([*SAMPLE, "--out", "large.jpg"]) == 0
    assert capsys.readouterr().out == "large.png\n" and Image.open(place / "large.png").size[0] > 100


def test_the_picture_may_go_into_the_folder_of_the_samples(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    out = tmp_path / "drawn.png"
    assert main([*SAMPLE, "--save", str(tmp_path), "--out", str(out)]) == 0
    assert out.exists() and (tmp_path / "samples.jsonl").exists()
