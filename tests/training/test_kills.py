"""A run that is killed where it hurts, or whose terminal closes: the same command ends it as if nothing had been."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from small_run import COMMAND, PAIRS, STATE, again, assert_same, contents
from tiny import tiny

from mmfast.build import build_data
from mmfast.files import load_tensors
from mmfast.grids import Gallery
from mmfast.run import Run
from mmfast.training import loop as module
from mmfast.training.examples import _leave_signals
from mmfast.training.loop import _steps
from mmfast.training.trainer import Trainer

SMALL = {key.replace(".", "__"): value for key, value in PAIRS}


class Killed(BaseException):
    """Nothing catches it, and nothing is written after it."""


def kill_before(monkeypatch, picture):
    """The process ends before it writes a picture, of twelve; returns those that were written."""
    hang, written = Gallery.hang, []

    def hangs(self, drawn, *name):
        if len(written) == picture:
            raise Killed
        hang(self, drawn, *name)
        written.append(self.file(*name).name)

    monkeypatch.setattr(Gallery, "hang", hangs)
    return written


# Before the first, within, at the end: the slow ones are such places of other steps.
@pytest.mark.slow
@pytest.mark.parametrize("picture", [0, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 8, 11))])
def test_pictures_that_a_kill_left_undrawn_are_drawn(tmp_path, straight, monkeypatch, capsys, picture):
    """Checkpoints and pictures are of steps 2, 4 and 6: one comes after the other."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        written = kill_before(patch, picture)
        with pytest.raises(Killed):
            again(run, capsys)
    assert load_tensors(run / STATE)[1]["step"] == 2 * (1 + picture // 4)
    with monkeypatch.context() as patch:
        rest = kill_before(patch, -1)
        assert again(run, capsys) == (0, [])
    assert_same(run, straight)
    # Only the last are drawn anew by every repetition.
    assert sorted(set(written) & set(rest)) == sorted(name for name in written if "step-0000006" in name)
    assert len(written) == picture


def test_pictures_of_steps_that_are_made_again_are_drawn_again(run, straight, monkeypatch, capsys):
    """TensorBoard has forgotten them."""
    (run / STATE).unlink()
    seen = []
    monkeypatch.setattr(module, "sample_run", lambda gallery, *rest, **how: seen.append((gallery.step, how)))
    monkeypatch.setattr(Run, "load_state", lambda self, check: None)
    assert again(run, capsys) == (0, [])
    assert [(step, how.get("again")) for step, how in seen] == [(2, True), (4, True), (6, None)]


@pytest.mark.slow
def test_asked_to_stop_where_a_picture_is_due(tmp_path, straight, monkeypatch, capsys):
    run, step = tmp_path / "run", Trainer.step

    def interrupted(self, *args):
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert again(run, capsys) == (130, ["mmfast: stopped; repeat the `mmfast train` command to resume"])
    assert load_tensors(run / STATE)[1]["step"] == 4 and not list((run / "samples").glob("step-0000004*"))
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


def test_under_nohup_a_closed_terminal_is_ignored(tmp_path):
    config = tiny(**SMALL)
    run = Run.start(tmp_path / "run", config)
    trainer = Trainer(config, run, build_data(config))
    step = trainer.step

    def closed(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        step(*args)

    trainer.step = closed
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _steps(trainer, quiet=True)
        assert trainer.done == 6 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_loads_data_leaves_signals_to_the_trainer():
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        _leave_signals(0)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 3
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# --- real processes -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from mmfast.cli import main
from mmfast.training import loop as trainer
draw = trainer.sample_run
def killed(gallery, *rest, **how):
    if gallery.step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    draw(gallery, *rest, **how)
trainer.sample_run = killed
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_between_checkpoint_and_pictures(tmp_path, straight, capsys):
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for step in (2, 4, 6):
        words = [sys.executable, "-c", KILLED, str(step), *COMMAND, "--out", str(run)]
        assert subprocess.run(words, env=environment, timeout=300).returncode == -signal.SIGKILL
        assert load_tensors(run / STATE)[1]["step"] == step
        assert not any(f"step-{step:07d}" in name for name in contents(run / "samples"))
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_terminal_that_closes_ends_training_as_ctrl_c_does(tmp_path, workers):
    """A real terminal, of which it is the foreground: nothing can be written there any more."""
    import fcntl
    import pty
    import select
    import termios
    import time

    keeper, terminal = pty.openpty()
    options = ["--train.steps", "100000", "--train.checkpoint_every", "100000", "--train.workers", str(workers)]
    words = [word for word in COMMAND if word != "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmfast", *words, *options, "--out", str(tmp_path / "run")],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={key: x for key, x in os.environ.items() if key != "PYTHONUNBUFFERED"},  # nothing would wait
    )  # fmt: skip
    os.close(terminal)
    deadline = time.monotonic() + 120
    stats = tmp_path / "run" / "stats.jsonl"
    while time.monotonic() < deadline and not (stats.exists() and stats.read_bytes().count(b"\n") > 5):
        if select.select([keeper], [], [], 0.01)[0]:
            os.read(keeper, 100_000)
    os.close(keeper)
    os.killpg(process.pid, signal.SIGHUP)  # as a shell does to its jobs
    assert process.wait(timeout=60) == 130
    step = load_tensors(tmp_path / "run" / STATE)[1]["step"]
    assert 5 < step < 100_000 and stats.read_bytes().count(b"\n") == step
