"""What training says to a person: what it is about to do, how long it will take, and how it goes."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from small_run import PAIRS
from tiny import flags, tiny

from mmfast import memory, progress
from mmfast.cli import main
from mmfast.training.watch import Watch


@pytest.mark.slow
def test_the_lines_of_a_run_without_a_terminal(tmp_path, capfd):
    few = [*PAIRS, ("train.steps", "4"), ("train.log_every", "2"), ("evaluate.samples", "4"),
           ("evaluate.bound_steps", "1"), ("train.validate_every", "2"), ("train.validate_examples", "8")]  # fmt: skip
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *flags(few)]) == 0
    out, err = capfd.readouterr()
    first, second = out.splitlines()[:2]
    assert re.fullmatch(r"[\d,]+ parameters, on cpu", first)
    assert second == "1,438 examples to train on, 359 held out"
    lines = err.splitlines()
    assert lines[0] == "training: 4 steps"
    (two, four) = (line for line in lines if line.startswith("training: step"))
    shown = [rf"{name} \d+\.\d{{3}}" for name in ("loss", "image", "label", "mask", "validation")]
    figures = ", ".join([*shown, r"[\d,.e+]+ examples/s"])
    assert re.fullmatch(rf"training: step 2 of 4, {figures}, .* left", two)
    assert re.fullmatch(rf"training: step 4 of 4, {figures}", four)
    # Pictures and figures are announced before they are drawn.
    assert lines.index("samples, step 2: 1 evaluation") < lines.index(four)
    drawing = lines.index(f"drawing 2 samples in each of 4 directions, for {tmp_path}/run/samples")
    assert lines.index(four) < drawing < lines.index("samples, step 4: 1 evaluation")
    figures = lines.index(f"drawing 4 samples in each direction, for {tmp_path}/run/metrics.json")
    assert drawing < figures < lines.index("evaluating, joint: 1 evaluation")


def test_quiet_says_nothing(tmp_path, capfd):
    few = [*PAIRS, ("train.steps", "1"), ("train.sample_every", "0")]
    assert main(["train", "digits", "--quiet", "--out", str(tmp_path / "run"), *flags(few)]) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.startswith("pictures: ") and out.count("\n") == 1


def test_how_long_it_will_take_is_of_the_steps_after_the_first(monkeypatch, capsys):
    """The first takes ten seconds, each other one half a second: told when two seconds of them have passed."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(memory, "peak", lambda device: 3 * 2**29)
    watch = Watch(tiny(train__steps=125), 20, torch.device("cpu"), quiet=False)
    for k in range(10):
        now[0] += 0.5 if k else 10.0
        watch.update()
        if k == 3:
            assert "a step" not in capsys.readouterr().err
    assert (
        capsys.readouterr().err
        == "0.5 s a step: about 50 s for the 100 steps left; 1.5 GiB of memory at the peak so far\n"
    )


def test_less_than_a_second_is_not_about_that(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(memory, "peak", lambda device: None)
    watch = Watch(tiny(train__steps=26), 20, torch.device("cpu"), quiet=False)
    for _ in range(5):
        now[0] += 0.5
        watch.update()
    assert capsys.readouterr().err.endswith("\n0.5 s a step: less than 1 s for the 1 step left\n")


def test_the_last_loss_on_held_out_examples_is_shown_whenever_it_was_measured(tmp_path, capfd):
    """Of step 3, between the lines of steps 2 and 4; and of step 6, whose line a checkpoint writes before that of 8."""
    few = [*PAIRS, ("train.steps", "8"), ("train.log_every", "2"), ("train.validate_every", "3"),
           ("train.validate_examples", "8"), ("train.checkpoint_every", "3"), ("train.sample_every", "0")]  # fmt: skip
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *flags(few)]) == 0
    stats = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    three, six = (f"validation {stats[k - 1]['validation.loss']:.3f}" for k in (3, 6))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("training: step")]
    shown = [re.search(r"validation \S+(?=,)", line) for line in lines]
    assert [found and found[0] for found in shown] == [None, three, six, six]


def test_what_is_not_finite_is_said_so(capsys):
    watch = Watch(tiny(train__steps=10), 0, torch.device("cpu"), quiet=False)
    watch.update()
    watch.figures({"step": 1, "loss": None, "loss.image": 0.25, "grad_norm": None})
    assert "step 1 of 10, loss not finite, image 0.250, " in capsys.readouterr().err
    watch.measured(float("nan"))
    watch.update()
    watch.figures({"step": 2, "loss": 1.0})
    assert "step 2 of 10, loss 1.000, validation not finite, " in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_the_hosts_memory_is_what_the_system_says():
    status = Path("/proc/self/status").read_text()
    kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert memory.peak(torch.device("cpu")) == pytest.approx(1024 * kibibytes, rel=0.05)


def test_on_a_terminal_the_bar_begins_where_the_run_does_and_stays(monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "_Terminal", lambda **how: shown.append(how))
    Watch(tiny(train__steps=10), 3, torch.device("cpu"), quiet=False)
    (how,) = shown
    assert {key: how[key] for key in ("total", "initial", "desc", "unit", "leave")} == {
        "total": 10, "initial": 3, "desc": "training", "unit": "step", "leave": True}  # fmt: skip
