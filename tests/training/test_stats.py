"""stats.jsonl after a power cut, a disk or a hand: a line for each step, once, or a word that there is none."""

import json

import pytest
import torch
from small_run import PREVIOUS, STATE, again, assert_same
from tiny import tiny

from mmfast.errors import MmfastError
from mmfast.files import load_tensors, save_tensors
from mmfast.run import Run
from mmfast.training import stats
from mmfast.training.trainer import Trainer

JUNK = {
    "zeros": b"\0" * 300,
    "no UTF-8": b"\xff\xfe{\x80\xc3",
    "garbage": b'{"step": 3, "loss": 1.',
    "a number": b"17",
    "a list": b'["step"]',
    "a text": b'"step"',
    "no step": b'{"loss": 1.0}',
    "a step that is none": b"\n".join(
        b'{"step": %s}' % x for x in (b'"3"', b"null", b"true", b"3.0", b"1e999", b"[3]")
    ),
    "a step that was never": b'{"step": -1}\n{"step": 0}\n{"step": 7}\n{"step": 1000000000000}',
    "nesting": b"[" * 100_000,
    "nested keys": b'{"step":' * 100_000,
    "long": b"9" * 10_000,
    "separators": "\u2028\x85\x0b\x1c".encode(),
}


def forget(run):
    """The states are as earlier versions wrote them: without stats."""
    for name in (STATE, PREVIOUS):
        tensors, metadata = load_tensors(run / name)
        save_tensors(run / name, tensors, {"step": metadata["step"]})


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_between_and_in_place_of_lines(run, capsys, junk):
    file = run / "stats.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(junk + b"\n" + b"".join(lines) + junk)  # no step is touched
    assert Run.open(run).heal_stats(6).encode() == b"".join(lines)
    assert file.read_bytes() == b"".join(lines) and capsys.readouterr().err == ""
    file.write_bytes(b"".join([*lines[:2], junk, *lines[3:5], junk]))  # lines 3, 4 and 6 are gone: one joins the junk
    Run.open(run).heal_stats(6)
    assert file.read_bytes() == b"".join([*lines[:2], lines[4]])
    (words,) = capsys.readouterr().err.splitlines()
    assert words.startswith(f"mmfast: {file} was damaged: there is no line for steps 3 .. 4, 6; ")


@pytest.mark.parametrize("state", [STATE, PREVIOUS])
@pytest.mark.parametrize(
    "junk", [None, JUNK["zeros"], *(pytest.param(JUNK[x], marks=pytest.mark.slow) for x in ("no UTF-8", "nesting"))]
)
def test_what_the_checkpoint_holds_is_restored(run, straight, capsys, junk, state):
    """The whole file is junk, or gone; of the state before the newest the steps after it are made again."""
    file = run / "stats.jsonl"
    file.unlink()
    if junk is not None:
        file.write_bytes(junk)
    if state == PREVIOUS:
        (run / STATE).unlink()
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [2, 250, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 150, 600))])
def test_a_file_cut_anywhere_is_whole_again(run, straight, capsys, cut):
    file = run / "stats.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[:-cut] + b"\0" * cut)  # as ext4 leaves it
    assert again(run, capsys) == (0, [])
    assert file.read_bytes() == data
    file.write_bytes(data[:-cut])
    forget(run)
    kept = data[:-cut] + b"\n" if cut == 1 else data[: data[:-cut].rfind(b"\n") + 1]
    status, words = again(run, capsys)
    assert status == 0 and file.read_bytes() == kept
    assert len(words) == (cut > 1) and all("no line for steps" in line for line in words)


def heal(run, capsys, step, *steps, recent=""):
    """heal_stats of a file with lines of these steps, each with its place in the file; its lines and words."""
    run.stats_file.write_text("".join(f'{{"step": {n}, "place": {k}}}\n' for k, n in enumerate(steps)))
    text = run.heal_stats(step, recent)
    assert run.stats_file.read_text() == text
    found = [(line["step"], line["place"]) for line in map(json.loads, text.splitlines())]
    return found, capsys.readouterr().err.removeprefix(f"mmfast: {run.stats_file} was damaged: there is ").strip()


def test_a_step_that_is_there_twice_is_said_and_kept_once(tmp_path, capsys):
    run = Run(tmp_path)
    assert heal(run, capsys, 3, 1, 2, 3, 4) == ([(1, 0), (2, 1), (3, 2)], "")  # the fourth will be made again
    found, words = heal(run, capsys, 3, 1, 2, 2, 3)
    assert found == [(1, 0), (2, 1), (3, 3)]
    assert words == "two for steps 2, of which the first is kept; training itself is not affected"
    found, words = heal(run, capsys, 12, 12, 3, 3, 7, 9)
    assert found == [(3, 1), (7, 3), (9, 4), (12, 0)]
    assert words.startswith("no line for steps 1 .. 2, 4 .. 6, 8, 10 .. 11, and two for steps 3, of which")
    assert "4 .. 6, 8, ..., and" in heal(run, capsys, 20, 3, 7, 9, 9, 11, 13)[1].replace("10, ", "")
    # Those that the state knows are right, whatever the file has.
    known = '"step": 0}\n{"step": 2, "place": 9}\n{"step": 1, "place": 8}\n'
    assert heal(run, capsys, 3, 2, 2, 3, recent=known) == ([(1, 8), (2, 9), (3, 2)], "")


def test_the_same_line_twice_is_one(tmp_path, capsys):
    run = Run(tmp_path)
    run.stats_file.write_text('{"step": 1}\n{"step": 1}\n{"step": 2}')
    assert run.heal_stats(2) == '{"step": 1}\n{"step": 2}\n' and capsys.readouterr().err == ""


def test_a_state_holds_the_end_of_the_stats_alone(run, monkeypatch):
    monkeypatch.setattr(stats, "RECENT", 400)
    whole = (run / "stats.jsonl").read_text()
    trainer = Trainer(Run.open(run).config(), Run.open(run), None)  # type: ignore[arg-type]
    trainer.restore()
    assert trainer.stats.recent == whole[-400:]
    trainer.stats.pending = [{"step": 7, "loss": torch.tensor(1.5), "grad_norm": torch.tensor(2.0)}]
    trainer.checkpoint()
    line = '{"step": 7, "loss": 1.5, "grad_norm": 2.0}\n'
    assert load_tensors(run / STATE)[1] == {"step": 6, "stats": (whole + line)[-400:]}


def test_stats_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "stats.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"stats\.jsonl cannot be read: Is a directory"):
        Run(tmp_path).heal_stats(3)


@pytest.mark.slow  # 3 GB of memory
def test_stats_of_any_length_are_healed(tmp_path):
    lines = [b'{"step": 1}\n', b'{"step": 2}\n']
    file = tmp_path / "stats.jsonl"
    file.write_bytes(lines[0])
    with file.open("rb+") as opened:
        opened.seek(2**30)
        opened.write(b"\n" + lines[1])
    assert Run(tmp_path).heal_stats(2).encode() == file.read_bytes() == b"".join(lines)


def test_stats_beyond_the_memory_are_named(tmp_path, monkeypatch):
    def full(*args):
        raise MemoryError

    (tmp_path / "stats.jsonl").write_bytes(b"{}\n" * 500)
    monkeypatch.setattr("mmfast.run.healed", full)
    with pytest.raises(MmfastError, match=r"the memory has no room for its 1,500 bytes; make room, and repeat"):
        Run(tmp_path).heal_stats(2)


def test_of_the_last_hundred_steps_those_left_out_count(tmp_path):
    """At step 150 they are 51 .. 150; a step on, 52 .. 151. What is not exactly true was not left out."""
    config = tiny(train__steps=200, train__max_skipped=1)
    lines = [{"step": n, "loss": 1.0} for n in range(49, 151)]
    for n, value in ((49, True), (50, True), (51, True), (60, False), (70, 1), (150, True)):
        lines[n - 49]["skipped"] = value
    found = stats.Stats(config, Run(tmp_path), writes=False)
    found.taken_up(150, 7, "".join(json.dumps(line) + "\n" for line in lines))
    assert (found.lately, found.skipped) == ([51, 150], 7)
    with pytest.raises(MmfastError, match=r"^2 of the last 100 steps, up to step 150, were left out"):
        found.check()
    found.pending = [{"step": 151, "loss": torch.tensor(1.0), "skipped": torch.tensor(0.0)}]
    assert found.flush() == [{"step": 151, "loss": 1.0}] and found.pending == [] == found.flush()
    assert (found.lately, found.skipped) == ([150], 7)
    found.check()
    found.pending = [
        {"step": 152, "loss": torch.tensor(torch.inf), "skipped": torch.tensor(1.0)},
        {"step": 153, "loss": torch.tensor(2.0), "skipped": torch.tensor(0.0)},
    ]
    assert found.flush() == [{"step": 152, "loss": None, "skipped": True}, {"step": 153, "loss": 2.0}]
    assert (found.lately, found.skipped) == ([150, 152], 8) and not (tmp_path / "stats.jsonl").exists()
    with pytest.raises(MmfastError, match=r"^2 of the last 100 steps, up to step 152, were left out"):
        found.check()
