"""Training: a run, what it leaves, and that no kill loses or repeats anything."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from processes import Job
from tiny import TINY, flags, tiny

from mmfast import config as configs
from mmfast import files, lock
from mmfast.build import build_data, with_found
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training.loop import _steps, train
from mmfast.training.trainer import Trainer

# --- what example number n is -------------------------------------------------------------------------------------


# --- a run --------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(tmp_path):
    config = tiny(
        train__steps=100,
        train__warmup=10,
        backbone__width=64,
        train__decay="constant",
        evaluate__samples=20,
        train__log_every=20,
    )
    run = train(config, str(tmp_path / "run"), quiet=True)
    stats = [json.loads(line) for line in run.stats_file.read_text().splitlines()]
    assert [line["step"] for line in stats] == list(range(1, 101))
    assert [line["images"] for line in stats] == [16 * n for n in range(1, 101)]
    first, last = (sum(line["loss"] for line in part) for part in (stats[:20], stats[-20:]))
    assert last < 0.7 * first
    for name in ("model.safetensors", "ema.safetensors", "config.yaml", "metrics.json"):
        assert (run.folder / name).stat().st_size > 0
    assert len(list(run.samples.glob("*.png"))) == 4
    metrics = json.loads((run.folder / "metrics.json").read_text())
    for name in ("label.joint_agreement", "label.conditional_accuracy", "label.recovered_accuracy"):
        assert 0 <= metrics[name] <= 1
    assert {"mask.joint_iou", "mask.conditional_iou", "frechet.samples", "frechet.real_halves"} <= set(metrics)
    # A probability of pixels and of each discrete modality, with every reverse process; and the error of z_0 against t.
    for prefix in ("bound", "bound.fitted", "bound.nearer"):
        assert {f"{prefix}.{key}" for key in ("pixels_bits", "discrete.label_bits", "discrete.mask_bits")} <= set(
            metrics
        )
    assert {f"bound.L{k}" for k in range(4)} | {"x0_error.1", "x0_error.1000"} <= set(metrics)
    # The fit is worth it: nothing but the training split is known to it.
    assert metrics["bound.fitted.pixels"] < metrics["bound.pixels"]
    assert Run.open(run.folder).config() == with_found(config)


def test_accumulation_sees_the_same_examples(tmp_path):
    ends = []
    for k in (1, 4):
        run = train(tiny(train__steps=5, train__accumulation=k), str(tmp_path / str(k)), quiet=True)
        ends.append(load_tensors(run.folder / "model.safetensors")[0])
    # Float32 sums in another order, through five AdamW steps of size 2e-3 at most: far below one step.
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=2e-4) for n in ends[0])


def test_tensorboard_files_hold_each_step_once(tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pairs = dict(train__steps=12, train__checkpoint_every=4, train__log_every=2, train__tensorboard="true")
    run = train(tiny(**pairs), str(tmp_path / "run"), quiet=True)
    found = event.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [x.step for x in found.Scalars("loss")] == list(range(1, 13))


def test_restoring_brings_back_every_bit(tmp_path):
    config = tiny(train__steps=6, train__checkpoint_every=3)
    run = train(config, str(tmp_path / "run"), quiet=True)
    trainer = Trainer(config, run, build_data(config))
    trainer.restore()
    kept, _ = load_tensors(run.folder / "trainer.safetensors")
    again = trainer.state()
    assert trainer.done == 6 and set(kept) == set(again)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


# The last: Ctrl-C reaches all processes of a terminal, and one of them passes it on.
@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM]]
)
def test_asked_to_stop_it_keeps_the_steps_done(tmp_path, numbers):
    config = tiny(train__steps=30, train__checkpoint_every=1000, train__log_every=1)
    run = Run.start(tmp_path / "run", config)
    trainer = Trainer(config, run, build_data(config))
    step = trainer.step

    def interrupted(*args):
        if trainer.done == 7:
            for number in numbers:
                os.kill(os.getpid(), number)
        step(*args)

    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        _steps(trainer, quiet=True)
    assert load_tensors(run.folder / "trainer.safetensors")[1]["step"] == 8
    assert all(signal.getsignal(number) not in (None, trainer) for number in numbers)


def test_training_leaves_torchs_generator_and_no_open_lock(tmp_path):
    """What the caller draws next does not hang on it, and the lock is closed with the run."""
    config = tiny(train__steps=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        train(config, str(tmp_path / "run"), quiet=True)
        gc.collect()
    assert torch.equal(torch.rand(3), expected)
    assert not [x for x in seen if issubclass(x.category, ResourceWarning)]
    if Path("/proc/self/fd").exists():
        opened = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        assert str((tmp_path / "run" / ".lock").resolve()) not in opened


@pytest.mark.slow
def test_two_processes_do_not_train_one_run(tmp_path):
    run = Run.start(tmp_path / "run", tiny())
    second = Job(1, tmp_path / "second", main, ["train", "digits", "--out", str(run.folder), "--quiet", *flags(TINY)])
    assert second.wait() == [2]
    (said,) = second.said()
    assert "another process" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_process_may_start_a_run_twice_and_keeps_the_lock(tmp_path):
    """A notebook after Ctrl-C: the run that it drops ends the lock no more than a worker that is forked has it."""
    first = Run.start(tmp_path / "run", tiny())
    second = Run.start(tmp_path / "run", tiny())
    del first
    gc.collect()
    assert _taken(tmp_path / "run")
    del second
    gc.collect()
    assert not _taken(tmp_path / "run")


def _taken(folder):
    """Whether a process that is forked now is refused."""
    child = os.fork()
    if child == 0:
        try:
            Run.start(folder, tiny())
            os._exit(0)
        except MmfastError as error:
            os._exit(7 if "is being trained by another process" in str(error) else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 7)
    return status == 7


def test_where_there_are_no_locks_a_second_trainer_is_noticed(tmp_path, monkeypatch):
    """No line is there twice, and the one that goes on is whole."""

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    config = tiny(train__steps=4, train__log_every=1, train__checkpoint_every=2)
    trainers = [Trainer(config, Run.start(tmp_path / "run", config), build_data(config)) for _ in range(2)]
    for trainer in trainers:
        trainer.restore()
    one, other = trainers
    step = one.step

    def both(*args):
        step(*args)
        if one.done == 3:
            with pytest.raises(ValueError, match=r"another one trains in this folder, .*saves nothing more"):
                _steps(other, quiet=True)

    one.step = both
    _steps(one, quiet=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "stats.jsonl").open()] == [1, 2, 3, 4]
    assert load_tensors(tmp_path / "run" / "trainer.safetensors")[1]["step"] == 4 and other.done == 1


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = tiny(train__steps=6, train__checkpoint_every=2)
    saved, real = [], files.save_file

    def full(tensors, file, metadata):
        if json.loads(metadata["mmfast"])["step"] == 4:
            file.write_bytes(b"half of it")
            raise files.SafetensorError("No space left on device")
        saved.append(file)
        real(tensors, file, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(ValueError, match="No space left on device; make room"):
        train(config, str(tmp_path / "run"), quiet=True)
    monkeypatch.setattr(files, "save_file", real)
    assert saved and Run.open(tmp_path / "run").load_state()[1]["step"] == 2
    straight = train(config, str(tmp_path / "straight"), quiet=True)
    again = train(config, str(tmp_path / "run"), quiet=True)
    a, b = (load_tensors(run.folder / "model.safetensors")[0] for run in (straight, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_workers_load_the_same_data(tmp_path):
    ends = [train(tiny(train__steps=3, train__workers=n), str(tmp_path / str(n)), quiet=True) for n in (0, 2)]
    a, b = (load_tensors(run.folder / "model.safetensors")[0] for run in ends)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "moments"), [("fp32", [25]), ("fp32", [5, 25, 40]), ("bf16", [25])])
def test_killed_anywhere_it_ends_with_the_same_weights(tmp_path, precision, moments):
    """SIGKILL after so many steps (5: before the first checkpoint); the same command each time, at last in here."""
    pairs = [*TINY, ("train.steps", "60"), ("train.checkpoint_every", "7"), ("train.log_every", "3"),
             ("train.precision", precision), ("backbone.dropout", "0.1")]  # fmt: skip
    straight = train(configs.load("digits", pairs), str(tmp_path / "straight"), quiet=True)
    out = tmp_path / "killed"
    words = ["train", "digits", "--out", str(out), "--quiet", *flags(pairs)]
    command = [sys.executable, "-m", "mmfast", *words]
    # One thread count for all: torch's sums depend on it.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for lines in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        stats, deadline = out / "stats.jsonl", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if stats.exists() and stats.read_text().count("\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
    assert main(words) == 0
    for name in ("model", "ema", "trainer"):
        a, b = (load_tensors(folder / f"{name}.safetensors")[0] for folder in (straight.folder, out))
        assert set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)
    steps = [json.loads(line)["step"] for line in (out / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    losses_of = [
        [json.loads(line)["loss"] for line in (folder / "stats.jsonl").read_text().splitlines()]
        for folder in (straight.folder, out)
    ]
    assert losses_of[0] == losses_of[1]
    assert not list(out.rglob(".tmp-*"))  # a kill may leave a half-written file: it is cleared away
