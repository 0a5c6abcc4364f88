"""What a person sees of a long work: by a clock moved by hand, and on a real terminal."""

import contextlib
import fcntl
import os
import struct
import sys
import termios
import time

import pytest
import torch
import tqdm.std

from mmfast import errors, progress
from mmfast.data.judge import Classified, classifier
from mmfast.progress import Bar, duration, silenced


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, moved by hand; the machine's own goes back a day whenever it is looked at."""

    class Clock:
        now = 1000.0

    wall = [time.time()]

    def back():
        wall[0] -= 86400
        return wall[0]

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(tqdm.std, "time", back)
    return Clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than 1 s"), (1, "1 s"), (59.4, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3599, "59 min 59 s"),
     (3600, "1 h"), (7860, "2 h 11 min"), (86400, "1 day"), (180000, "2 days 2 h"), (172799, "1 day 23 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_plain_lines_say_how_far_how_fast_and_how_long(clock, capsys):
    bar = Bar(100, "training", done=20, examples=8)
    clock.now += 10
    bar.update(20)
    bar.show({"loss": "0.500", "label": "0.100"})
    clock.now += 10
    bar.update(60)
    bar.show({"loss": "0.250"})
    assert capsys.readouterr().err.splitlines() == [
        "training: 80 steps",
        # 20 steps of 8 examples in 10 s, and 60 are left; then 80 in 20 s.
        "training: step 40 of 100, loss 0.500, label 0.100, 16 examples/s, 30 s left",
        "training: step 100 of 100, loss 0.250, 32 examples/s",
    ]


def test_without_figures_a_line_a_minute(clock, capsys):
    bar = Bar(600, "evaluating")
    for _ in range(600):
        clock.now += 0.5
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluating: 600 steps" and lines[1] == "evaluating: step 120 of 600, 4 min left"
    assert len(lines) == 1 + 5


def test_a_thousand_lines_at_most(clock, capsys):
    bar = Bar(12_345, "training")
    for _ in range(12_345):
        bar.update()
        bar.show({"loss": "1"})
    assert 900 < capsys.readouterr().err.count("\n") <= 1001


def test_quiet_says_nothing(clock, capsys):
    with Bar(3, "training", quiet=True) as bar:
        for _ in range(3):
            clock.now += 100
            bar.update()
            bar.show({"loss": "1"})
    assert capsys.readouterr().err == ""


def read_all(terminal):
    os.set_blocking(terminal, False)
    found = b""
    with contextlib.suppress(BlockingIOError, OSError):
        while part := os.read(terminal, 65536):
            found += part
    return found.decode().replace("\r\n", "\n").replace("\r", "\n").splitlines()


def test_on_a_terminal_a_bar_that_goes_on_when_the_clock_is_set_back(clock, monkeypatch):
    keeper, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        with Bar(50, "training", leave=True) as bar:
            clock.now += 10
            bar.update(20)
            bar.show({"loss": "0.5"})
            errors.notice("a word")
            clock.now += 10
            bar.update(20)
        frames = read_all(keeper)
    os.close(keeper)
    assert any("20/50" in frame and "00:10<00:15" in frame and "loss=0.5" in frame for frame in frames), frames
    assert any("40/50" in frame and "00:20<00:" in frame for frame in frames), frames
    assert "mmfast: a word" in frames  # a line of its own


def test_what_a_bar_says_and_whether_it_stays(monkeypatch):
    asked = []

    class Terminal:
        def __init__(self, **options):
            asked.append(options)

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(progress, "_Terminal", Terminal)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    with Bar(5, "reading"), Bar(7, "training", "file", done=2, leave=True):
        pass
    usual = {"total": 5, "initial": 0, "desc": "reading", "unit": "step", "leave": False, "smoothing": 0.05}
    assert asked == [usual, {**usual, "total": 7, "initial": 2, "desc": "training", "unit": "file", "leave": True},
                     "closed", "closed"]  # fmt: skip
    with Bar(5, "reading", quiet=True):
        assert len(asked) == 4


@pytest.mark.parametrize("terminal", [True, False])
def test_a_reader_that_is_gone_ends_nothing(terminal, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, closefd=False) as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(progress, "on_terminal", lambda: terminal)
        with Bar(5, "training") as bar:
            for _ in range(5):
                bar.update()
                bar.show({"loss": "1"})
        errors.notice("nobody hears it")
        with contextlib.suppress(BrokenPipeError):
            stderr.close()
    os.close(writer)


def test_no_stderr_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.on_terminal()
    with Bar(2, "training") as bar:
        bar.update(2)
        bar.show({"loss": "1"})
    errors.notice("nobody hears it")


def test_silence_reaches_the_bars_inside(capsys):
    """What a command calls may have a bar of its own, as a judge's training has."""
    with silenced():
        with silenced(False):
            for _ in range(3):
                Bar(10, "deep").update()
        Bar(10, "quiet").show({"loss": "1"})
    assert capsys.readouterr().err == ""
    with silenced(False):
        Bar(10, "said")
    assert capsys.readouterr().err == "said: 10 steps\n"


def test_quiet_commands_train_no_judge_aloud(tmp_path, capsys):
    """And a judge that is not quiet says so in lines where there is no terminal, without a terminal's codes."""
    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    real = Classified(images, torch.arange(300) % 2, 2)
    with silenced():
        classifier(real, key={}, cache=tmp_path / "a", epochs=1, width=8)
    assert capsys.readouterr().err == ""
    classifier(real, key={}, cache=tmp_path / "b", epochs=1, width=8)
    assert capsys.readouterr().err == "training the judge: 2 steps\n"
