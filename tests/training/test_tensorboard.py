"""TensorBoard's files: folders that go, clocks that are set back, a full disk."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from small_run import PAIRS, make
from test_logs import GONE, lines_of
from test_trainer import OPTIONS, Known, data
from tiny import flags, tiny

from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import log
from mmfast.training.loop import fit
from mmfast.training.trainer import Trainer

BOARD = {**OPTIONS, "train__tensorboard": "true", "train__log_every": 1, "train__checkpoint_every": 1}


def steps_shown(folder):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = event.EventAccumulator(str(folder)).Reload()
    return [x.step for x in shown.Scalars("loss")]


def test_a_folder_that_is_deleted_under_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    step = Trainer.step

    def deletes(self, *args):
        if self.done == 3:
            shutil.rmtree(self.run.folder / "tensorboard")
        step(self, *args)

    monkeypatch.setattr(Trainer, "step", deletes)
    run = fit(tiny(**BOARD), str(tmp_path / "run"), data(), Known(), quiet=True).run
    said = capsys.readouterr().err
    assert said == f"mmfast: the log tensorboard cannot be written: {run.folder}/tensorboard is gone; {GONE}\n"
    assert len(lines_of(run)) == 7


@pytest.mark.slow
def test_a_clock_that_is_set_back_loses_nothing_of_a_run_that_goes_on(tmp_path, monkeypatch):
    """Each part of the run is a day before the one before it; the last step of each but the last is made again."""
    pytest.importorskip("tensorboard")
    real, day, step = time.time, [0.0], Trainer.step
    monkeypatch.setattr(time, "time", lambda: real() - day[0] * 86400)
    for until in (3, 5, 99):

        def stops(self, *args, until=until):
            step(self, *args)
            if self.done == until:
                self.flush()  # logged, and not in a checkpoint
                raise KeyError("stopped")

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", stops)
            try:
                fit(tiny(**BOARD), str(tmp_path / "run"), data(), Known(), quiet=True)
            except KeyError:
                day[0] += 1
    assert day[0] == 2 and len({*(tmp_path / "run" / "tensorboard").iterdir()}) == 3
    assert steps_shown(tmp_path / "run" / "tensorboard") == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_flushed_can_be_read_and_what_was_before_is_put_back(tmp_path):
    pytest.importorskip("tensorboard")
    before = threading.excepthook
    board = log.TensorBoard(tmp_path, tiny(), 0)
    assert threading.excepthook is not before
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    board.add_scalar("loss", 1.0, 1)
    board.add_image("joint", pixels, 1, dataformats="HWC")
    board.flush()
    assert steps_shown(tmp_path / "tensorboard") == [1]
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (image,) = event.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("joint")
    assert np.array_equal(Image.open(io.BytesIO(image.encoded_image_string)), pixels)
    board.close()
    assert threading.excepthook is before
    board = log.TensorBoard(tmp_path, tiny(), 2)
    threading.excepthook = mine = lambda found: None  # another has come since: it stays
    board.close()
    assert threading.excepthook is mine
    threading.excepthook = before


NAMES = {  # the files there, the new one's time, and what their times are then
    "later": ([100, 200], 150, [100, 149]),
    "at the same time": ([150], 150, [149]),
    "all later": ([300, 200, 160], 150, [149, 148, 147]),
    "in between": ([148, 300, 149], 150, [147, 149, 148]),
    "earlier": ([100, 120], 150, [100, 120]),
}


@pytest.mark.parametrize(("there", "new", "then"), NAMES.values(), ids=NAMES)
def test_older_files_of_events_have_earlier_names_in_the_same_order(tmp_path, there, new, then):
    files = [tmp_path / f"{log.PREFIX}{time:010d}.host.{k}" for k, time in enumerate(there)]
    for k, file in enumerate(files):
        file.write_text(str(k))
    latest = tmp_path / f"{log.PREFIX}{new:010d}.host.new"
    latest.write_text("new")
    log._name_first({*files}, {*files, latest})
    names = sorted(tmp_path.iterdir())
    assert sorted(int(x.name.removeprefix(log.PREFIX)[:10]) for x in names[:-1]) == sorted(then)
    order = [str(k) for _, k in sorted((file.name, k) for k, file in enumerate(files))]
    assert [file.read_text() for file in names] == [*order, "new"]
    log._name_first({*names}, {*names})  # nothing new
    assert sorted(tmp_path.iterdir()) == names


def can_mount():
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


@pytest.mark.slow
def test_a_full_disk_under_tensorboard(tmp_path):
    """A file system of its own, of 8 KiB, in the place of its folder."""
    pytest.importorskip("tensorboard")
    if shutil.which("unshare") is None or not can_mount():
        pytest.skip("no file system can be mounted here")
    out = tmp_path / "run"
    more = [("train.sample_every", "0"), ("train.tensorboard", "true"), ("train.checkpoint_every", "100")]
    make(out)
    (out / "tensorboard").mkdir()
    command = [sys.executable, "-m", "mmfast", "train", "digits", "--quiet", "--out", str(out),
               *flags([*PAIRS, *more, ("train.steps", "200"), ("train.log_every", "5")])]  # fmt: skip
    script = f'mount -t tmpfs -o size=8k none {out}/tensorboard && exec "$@"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *command], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, said = done.stderr.splitlines()
    assert said.startswith("mmfast: the log tensorboard cannot be written: ") and said.endswith(GONE)
    assert "No space left" in said and "Traceback" not in done.stderr and done.stderr.count("\n") == 2
    assert load_tensors(out / "trainer.safetensors")[1]["step"] == 200 == len(lines_of(Run(out)))
