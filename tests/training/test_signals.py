"""Signals that ask a command to stop, wherever they find it: one line, status 130, and what is lost is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import STATE
from tiny import tiny

import mmfast
from mmfast.build import build_data
from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.progress import Bar
from mmfast.run import Run
from mmfast.signals import answered, interrupt
from mmfast.training.loop import _steps
from mmfast.training.trainer import Trainer

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
# In the place of torch, the first that takes long to import.
SLOW = "import os, signal, time\nos.kill(os.getpid(), {})\ntime.sleep(60)\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_command_starts(tmp_path, number):
    (tmp_path / "torch.py").write_text(SLOW.format(int(number)))
    path = os.pathsep.join([str(tmp_path), str(Path(mmfast.__file__).parents[1])])
    words = [sys.executable, "-m", "mmfast", "info"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mmfast: stopped before it had begun\n")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("words", [["sample", "--n", "8", "--out"], ["eval", "--samples", "8", "--json"]])
def test_sampling_and_evaluation_end_as_ctrl_c_ends_them(straight, tmp_path, monkeypatch, capsys, words, number):
    """In the middle of what they draw, and nothing is written."""
    monkeypatch.setattr(Bar, "update", lambda *args: os.kill(os.getpid(), number))
    before, seen = signal.signal(number, lambda *args: seen.append(args)), []  # unheard, it would end the tests
    try:
        out = tmp_path / ("drawn.png" if words[0] == "sample" else "figures.json")
        assert main([words[0], str(straight), *words[1:], str(out)]) == 130
        assert capsys.readouterr().err.splitlines()[-1] == "mmfast: stopped; no file is half written"
        assert not seen and list(tmp_path.iterdir()) == []
    finally:
        signal.signal(number, before)


def test_a_second_ctrl_c_keeps_what_was_saved_and_says_what_is_lost(tmp_path, capsys):
    config = tiny(train__steps=30, train__checkpoint_every=5)
    trainer = Trainer(config, Run.start(tmp_path / "run", config), build_data(config))
    step = trainer.step

    def interrupted(*args):
        step(*args)
        for _ in range(5 if trainer.done == 8 else 0):
            os.kill(os.getpid(), signal.SIGINT)

    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        _steps(trainer, quiet=True)
    assert load_tensors(tmp_path / "run" / STATE)[1]["step"] == 5
    said = "mmfast: stopped at once: steps 6 .. 8 are lost, without a checkpoint; the same command repeats them"
    assert capsys.readouterr().err.splitlines() == [said]


def test_the_first_alone_interrupts():
    """Later ones would come in the middle of what the first has begun to end."""
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        with answered(interrupt):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            for later in SIGNALS:
                signal.raise_signal(later)
    assert [signal.getsignal(number) for number in SIGNALS] == before
