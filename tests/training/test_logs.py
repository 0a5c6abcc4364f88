"""Logs beside stats.jsonl: what they are told, and that none of them ends a run, whatever happens to it."""

import json
import re
import resource
import sys
from typing import ClassVar

import numpy as np
import pytest
from small_run import PAIRS
from test_trainer import OPTIONS, Known, data
from tiny import flags, tiny

from mmfast.build import build_data
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import append_text
from mmfast.run import Run
from mmfast.training.loop import fit
from mmfast.training.trainer import Trainer
from mmfast.trust import allow_code

SMALL = {key.replace(".", "__"): value for key, value in PAIRS}
GONE = "training goes on without it; stats.jsonl has it all"


def lines_of(run):
    return [json.loads(line) for line in run.stats_file.read_text().splitlines()]


class Writer:
    """A log of one's own. `breaks`: the method that raises."""

    made: ClassVar[list] = []
    breaks = ""

    def __init__(self, log_dir, purge_step):
        self.how, self.scalars, self.images, self.closed = (log_dir, purge_step), [], [], 0
        Writer.made.append(self)
        self._did("make")

    def _did(self, what):
        if what == Writer.breaks:
            raise RuntimeError("the line\nis down")

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))
        self._did("add_scalar")

    def add_image(self, tag, picture, step, dataformats):
        self.images.append((tag, picture, step, dataformats))
        self._did("add_image")

    def flush(self):
        self._did("flush")

    def close(self):
        self.closed += 1
        self._did("close")


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    allow_code("test_logs:Writer")
    # By the name that the config has: pytest may have imported this file by another.
    monkeypatch.setitem(sys.modules, "test_logs", sys.modules[__name__])
    return "test_logs:Writer"


def test_a_log_of_ones_own_is_told_all(writer, tmp_path):
    options = {**SMALL, "train__log_to": f"[{writer}]", "train__validate_every": 3, "train__validate_examples": 8}
    run = fit(tiny(**options), str(tmp_path / "run"), build_data(tiny()), quiet=True).run
    (log,) = Writer.made
    assert log.how == (str(tmp_path / "run" / "log"), 1) and log.closed == 1
    told = {}
    for tag, value, step in log.scalars:
        told.setdefault(step, {})[tag.replace("/", ".")] = value
    wanted = {line.pop("step"): {k: x for k, x in line.items() if k != "images"} for line in lines_of(run)}
    assert told == wanted and "validation.loss" in told[3]
    assert [(tag, step, how) for tag, _, step, how in log.images] == [
        (name, step, "HWC") for step in (2, 4)
        for name in ("joint", "given-image", "given-label", "given-mask")]  # fmt: skip
    assert all(isinstance(x, np.ndarray) and x.ndim == 3 and x.dtype == np.uint8 for _, x, _, _ in log.images)


def test_of_a_validation_that_is_made_up_for_the_log_gets_what_it_lacked(writer, tmp_path, monkeypatch):
    """The rest of the line it has had: after a step is purged, twice."""
    options = {**SMALL, "train__log_to": f"[{writer}]", "train__validate_every": 3, "train__validate_examples": 8,
               "train__sample_every": 0}  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: (_ for _ in ()).throw(MmfastError("b.png is damaged")))
        with pytest.raises(MmfastError, match="damaged"):
            fit(tiny(**options), str(tmp_path / "run"), build_data(tiny()), quiet=True)
    fit(tiny(**options), str(tmp_path / "run"), build_data(tiny()), quiet=True)
    of_3 = [{tag for tag, _, step in log.scalars if step == 3} for log in Writer.made]
    assert "loss" in of_3[0] and of_3[1] and all(tag.startswith("validation/") for tag in of_3[1])


@pytest.fixture(scope="module")
def unlogged(tmp_path_factory):
    """The stats of the run without a log."""
    run = fit(tiny(**SMALL), str(tmp_path_factory.mktemp("unlogged") / "run"), build_data(tiny()), quiet=True).run
    return run.stats_file.read_bytes()


@pytest.mark.parametrize(
    "breaks",
    ["make", "add_scalar", *(pytest.param(x, marks=pytest.mark.slow) for x in ("flush", "close", "add_image"))],
)
def test_one_that_raises_is_left_out_and_said_once(writer, breaks, unlogged, tmp_path, monkeypatch, capsys):
    found = build_data(tiny())
    monkeypatch.setattr(Writer, "breaks", breaks)
    capsys.readouterr()
    run = fit(tiny(**SMALL, train__log_to=f"[{writer}]"), str(tmp_path / "run"), found, quiet=True).run
    assert capsys.readouterr().err == f"mmfast: the log {writer} cannot be written: the line is down; {GONE}\n"
    assert run.stats_file.read_bytes() == unlogged
    assert sum(len(log.scalars) for log in Writer.made) == {"make": 0, "add_scalar": 1}.get(
        breaks, 6 * 2 * 3 if breaks == "close" else len(Writer.made[0].scalars))  # fmt: skip


def test_what_cannot_be_had_is_said_before_there_is_a_run(tmp_path, monkeypatch):
    def refused(name, words):
        config = tiny(train__steps=1)
        config.train.log_to = [name]  # as from a file, and not by the user
        with pytest.raises(MmfastError, match=words):
            fit(config, str(tmp_path / "run"), data(), Known(), quiet=True)
        assert not (tmp_path / "run").exists()

    refused(
        "tensorbord", r"train\.log_to is 'tensorbord'; it should be one of tensorboard, wandb, module:function; did"
    )
    refused("json:dumps", r"train\.log_to is 'json:dumps', code that a config names; .* --allow-code json:dumps")
    allow_code("json:nothing", "no_such_module:x", "json:__name__")
    refused("json:nothing", r"train\.log_to is 'json:nothing', which cannot be imported: .*nothing")
    refused("no_such_module:x", r"which cannot be imported: No module named 'no_such_module'")
    refused("json:__name__", r"which is not callable")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("wandb", r"train\.log_to: \[wandb\] needs wandb, which is not installed: pip install 'mmfast\[wandb\]'")


WANDB = """
runs = []
class Image:
    def __init__(self, pixels):
        self.shape = pixels.shape
class Run:
    def __init__(self, how):
        self.how, self.logged, self.finished = how, [], 0
    def log(self, values, step):
        self.logged.append((values, step))
    def finish(self):
        self.finished += 1
def init(**how):
    runs.append(Run(how))
    return runs[-1]
"""


def test_weights_and_biases(tmp_path, monkeypatch):
    """A stand-in with the calls of wandb's that are used: init, Run.log, Run.finish, Image."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = fit(tiny(**SMALL, train__log_to="[wandb]"), str(tmp_path / "a run"), build_data(tiny()), quiet=True).run
    import wandb

    (found,) = wandb.runs
    sys.modules.pop("wandb")
    assert found.finished == 1 and {k: found.how[k] for k in ("project", "name", "resume", "dir")} == {
        "project": "mine", "name": "a run", "resume": "allow", "dir": str(run.folder)}  # fmt: skip
    assert re.fullmatch("a-run-[0-9a-f]{8}", found.how["id"])
    assert found.how["config"]["train"]["steps"] == 6
    lines = {line["step"]: line for line in lines_of(run)}
    scalars = [(tag, x, step) for values, step in found.logged for tag, x in values.items() if isinstance(x, float)]
    assert len(scalars) == 6 * 6 and all(lines[step][tag.replace("/", ".")] == x for tag, x, step in scalars)
    assert [step for values, step in found.logged if "joint" in values] == [2, 4]
    steps = [step for _, step in found.logged]
    assert steps == sorted(steps)  # W&B drops what comes late


@pytest.mark.slow
def test_a_run_of_weights_and_biases_goes_on_and_is_no_other_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder, steps in (("a", 2), ("b", 2), ("a", 3)):
        options = {**SMALL, "train__decay": "constant", "train__steps": steps, "train__log_to": "[wandb]"}
        fit(tiny(**options), str(tmp_path / folder / "run"), build_data(tiny()), quiet=True)
    import wandb

    first, other, again = (run.how["id"] for run in wandb.runs)
    sys.modules.pop("wandb")
    assert first == again != other


# --- stats.jsonl itself -------------------------------------------------------------------------------------------


class Limit:
    """No file may grow beyond so many bytes in this process: the system refuses, as on a full disk."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_text_is_added_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x"
    append_text(file, "one\n")
    with Limit(10), pytest.raises(OSError):
        append_text(file, "a longer line\n")
    assert file.read_text() == "one\n"
    append_text(file, "caf\u00e9\n")
    assert file.read_bytes() == "one\ncaf\u00e9\n".encode()


def test_stats_that_the_disk_does_not_take_are_written_later(tmp_path, monkeypatch, capsys):
    """It is full from step 2 to step 4, and the checkpoint is of step 6."""
    options = {**OPTIONS, "train__log_every": 1, "train__checkpoint_every": 6}
    straight = fit(tiny(**options), str(tmp_path / "straight"), data(), Known(), quiet=True)
    flush = Trainer.flush

    def full(self):
        if self.done in (2, 3, 4):
            with Limit(self.run.stats_file.stat().st_size + 10):
                return flush(self)
        return flush(self)

    monkeypatch.setattr(Trainer, "flush", full)
    run = fit(tiny(**options), str(tmp_path / "run"), data(), Known(), quiet=True).run
    assert run.stats_file.read_bytes() == straight.run.stats_file.read_bytes()
    (said,) = capsys.readouterr().err.splitlines()
    assert "File too large" in said and said.endswith("training goes on until the next checkpoint")


def test_a_checkpoint_insists_on_them(tmp_path, monkeypatch):
    real = Run.append_stats

    def full(self, text):
        with Limit(10):
            real(self, text)

    monkeypatch.setattr(Run, "append_stats", full)
    with pytest.raises(MmfastError, match="cannot be written to: File too large; make room or permit it"):
        fit(tiny(**OPTIONS, train__log_every=1), str(tmp_path / "run"), data(), Known(), quiet=True)
    assert Run(tmp_path / "run").load_state() is None


def test_the_command_line_names_its_own_logs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_logs", sys.modules[__name__])
    monkeypatch.setattr(Writer, "made", [])
    words = [
        "train",
        "digits",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
        *flags([*PAIRS, ("train.sample_every", "0")]),
    ]
    assert main([*words, "--train.log_to", "[test_logs:Writer]"]) == 0
    assert len(Writer.made) == 1 and len(Writer.made[0].scalars) == 6 * 6
