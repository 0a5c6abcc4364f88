"""Bad input to the command line: one line that names the argument and the remedy, exit code 2, nothing lost."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY, flags, tiny

from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import train
from mmfast.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run to break copies of."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(train__steps=4, train__checkpoint_every=2), str(folder), quiet=True)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, argv, *words):
    """The command exits with 2 and one line on stderr that has these words."""
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and error.startswith("mmfast: error: "), error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--train.stepz", "5"], ["train.stepz", "steps"]),
        (["--trian.steps", "5"], ["trian", "train"]),
        (["--train.steps", "many"], ["train.steps", "many"]),
        (["--train.steps", "0"], ["train.steps", "at least 1"]),
        (["--train.steps", "-3"], ["train.steps", "-3"]),
        (["--train.learning_rate", "0"], ["train.learning_rate"]),
        (["--train.steps"], ["train.steps", "no value"]),
        (["stray"], ["stray"]),
        (["--train.batch_size", "16", "--train.accumulation", "3"], ["train.accumulation", "divide"]),
        (["--train.cuda_graphs", "true", "--train.accumulation", "2"], ["train.cuda_graphs", "accumulation=1"]),
        (["--train.cuda_graphs", "true", "--train.compile", "true"], ["train.cuda_graphs", "compile=false"]),
        (["--train.device", "tpu"], ["train.device", "tpu"]),
        (["--train.precision", "fp8"], ["train.precision", "fp8", "bf16"]),
        (["--loss.target", "noise"], ["loss.target", "noise", "eps"]),
        (["--sample.sampler", "euler"], ["sample.sampler", "euler", "ddim"]),
        (["--space", "ours"], ["space", "ours", "own"]),
        (["--anchor", "picture"], ["anchor", "picture", "image"]),
        (["--anchor", "label"], ["anchor", "label"]),
        (["--backbone.kind", "transformer"], ["backbone.kind", "transformer", "unet"]),
        (["--data.kind", "cifar"], ["data.kind", "cifar", "digits"]),
        (["--modalities.label.kind", "tag"], ["modalities.label.kind", "tag", "label"]),
        (["--modalities.label.classes", "5"], ["label", "0 .. 4"]),
        (["--modalities.label.weight.kind", "ramp"], ["modalities.label.weight.kind", "ramp", "bridge"]),
        (["--modalities.image.size", "16"], ["modalities", "size", "16"]),
        (["--modalities.depth.kind", "image"], ["depth"]),
        (["--modalities.image.channels", "2"], ["modalities.image.channels", "2", "1, 3"]),
        (["--modalities.mask.size", "4"], ["modalities.mask.size", "4", "8"]),
        (["--evaluate.samples", "1"], ["evaluate.samples"]),
        (["--space", "shared"], ["W_0", "shared"]),
        (["--schedule.T", "0"], ["schedule.T"]),
        (["--seed", "-1"], ["seed", "-1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_bad_options(capsys, tmp_path, extra, words):
    out = tmp_path / "run"
    refused(capsys, ["train", "digits", "--out", str(out), *flags(TINY), *extra], *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], ["no config", "digits"]),
        (["train", "digits"], ["--out"]),
        (["train", "digit", "--out", "x"], ["digit", "digits"]),
        (["train", "none.yaml", "--out", "x"], ["none.yaml"]),
        (["train", "--train.steps", "5", "none.yaml", "--out", "x"], ["the config comes first"]),
        (["train", "--train.steps", "5", "digits", "--out", "x"], ["the config comes first"]),
        (["sample", "nowhere"], ["nowhere", "train"]),
        (["eval", "nowhere"], ["nowhere", "train"]),
        (["sample"], ["RUN", "--help"]),
        (["paint"], ["paint"]),
        (["info", "--verbose"], ["--verbose"]),
    ],
)
def test_bad_commands(capsys, argv, words):
    refused(capsys, argv, *words)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "modalities: 3", "{}", "train: {steps: {}}"])
def test_bad_config_files(capsys, tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    refused(capsys, ["train", str(file), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--given", "label=11"], ["label", "11", "0 .. 9"]),
        (["--given", "label"], ["label", "no value"]),
        (["--given", "depth=1"], ["depth", "label"]),
        (["--given", "image=none.png"], ["none.png"]),
        (["--n", "0"], ["--n", "0"]),
        (["--n", "three"], ["--n", "three"]),
        (["--steps", "2000"], ["steps", "2000", "1000"]),
        (["--sampler", "euler"], ["sampler", "euler", "ddpm"]),
        (["--out", "picture.txt"], ["--out", ".png"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_bad_samples(capsys, finished, extra, words):
    before = contents(finished)
    refused(capsys, ["sample", str(finished), "--quiet", *extra], *words)
    assert contents(finished) == before


def test_another_config_is_refused_and_nothing_changes(capsys, finished):
    before = contents(finished)
    argv = ["train", "digits", "--out", str(finished), *flags(TINY), "--train.batch_size", "5"]
    refused(capsys, argv, "train.batch_size", "5", "--out")
    assert contents(finished) == before


def test_a_folder_of_other_things_is_refused(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(capsys, ["train", "digits", "--out", str(tmp_path), *flags(TINY)], "--out", "thesis.txt")
    assert contents(tmp_path) == {p: b"years of work" for p in contents(tmp_path)} and len(contents(tmp_path)) == 1


def test_a_file_in_the_way_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    refused(capsys, ["train", "digits", "--out", str(tmp_path / "file"), *flags(TINY)], "--out")
    refused(capsys, ["train", "digits", "--out", str(tmp_path / "file" / "run"), *flags(TINY)], "--out")


def test_an_unwritable_folder_is_refused(capsys, tmp_path, monkeypatch):
    # Root may write anywhere, so the system's answer is put in its mouth.
    monkeypatch.setattr(os, "access", lambda *args: False)
    refused(capsys, ["train", "digits", "--out", str(tmp_path / "run"), *flags(TINY)], "--out", "written")


def test_truncated_weights_are_refused(capsys, tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = run / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(capsys, ["sample", str(run)], "ema.safetensors", "truncated")
    weights.unlink()
    refused(capsys, ["sample", str(run)], "ema.safetensors", "does not exist")
    save_file({"x": torch.zeros(1)}, weights)
    refused(capsys, ["sample", str(run)], "ema.safetensors", "mmfast")


DAMAGED = {"empty": b"", "cut": b'{"samples": 16.0, "lab', "zeros": bytes(40), "no text": b"\xff\xfe",
           "list": b"[1, 2]", "null": b'{"a": null}'}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [pytest.param(x, id=name, marks=[pytest.mark.slow] * (name not in ("cut", "null"))) for name, x in DAMAGED.items()],
)
def test_damaged_figures_are_named(capsys, tmp_path, finished, content):
    run, command = tmp_path / "run", ["train", "digits", "--quiet", *flags(TINY), "--out", str(tmp_path / "run")]
    command += ["--train.steps", "4", "--train.checkpoint_every", "2"]
    shutil.copytree(finished, run)
    (run / "metrics.json").write_bytes(content)
    refused(capsys, command, "metrics.json", "remove it, and this command makes it again")


# --- folders of data ----------------------------------------------------------------------------------------------


CONFIG = """
data: {kind: folder, root: ROOT, test_fraction: 0.3}
modalities:
  image: {kind: image, channels: 3, size: 8}
  mask: {kind: mask, classes: 2, size: 8}
  label: {kind: label, classes: 2}
  code: {kind: embedding, dim: 5}
backbone: {kind: mlp, width: 16, blocks: 1, features: 4}
train: {steps: 3, batch_size: 4, tensorboard: false, sample_every: 0}
sample: {steps: 2, count: 2}
evaluate: {samples: 4}
"""


@pytest.fixture
def folder(tmp_path):
    """Ten examples in two classes; some lack their mask or their embedding."""
    random = np.random.default_rng(0)
    root = tmp_path / "data"
    for i in range(10):
        stem = f"{'cat' if i % 2 else 'dog'}/{i:03d}"
        for name in ("image", "mask", "code"):
            (root / name / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(root / "image" / f"{stem}.png")
        if i != 3:
            mask = (random.random((12, 10)) > 0.5).astype(np.uint8) * 255
            Image.fromarray(mask).save(root / "mask" / f"{stem}.png")
        if i != 4:
            np.save(root / "code" / f"{stem}.npy", random.normal(size=5).astype(np.float32))
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("ROOT", str(root)))
    return tmp_path


def start(folder, *extra):
    return ["train", str(folder / "config.yaml"), "--out", str(folder / "run"), "--quiet", *extra]


@pytest.mark.slow
def test_ones_own_folder_trains(capsys, folder):
    assert main(start(folder)) == 0
    lines = [json.loads(line) for line in (folder / "run" / "stats.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all({"loss.image", "loss.mask", "loss.label", "loss.code"} <= set(x) for x in lines)
    # In every direction, from the command line too.
    picture = next((folder / "data" / "image").rglob("*.png"))
    vector = next((folder / "data" / "code").rglob("*.npy"))
    for given in (f"image={picture}", f"code={vector}", "mask=data", "label=1"):
        file = folder / "out.png"
        words = ["--given", given, "--n", "2", "--quiet", "--out", str(file), "--overwrite"]
        assert main(["sample", str(folder / "run"), *words]) == 0
        assert Image.open(file).size[0] > 100


@pytest.mark.slow
def test_folders_that_are_classes_keep_their_names(capsys, folder):
    """In the run's config and on the command line; the same command goes on, and other names are refused."""
    assert main(start(folder)) == 0 and main(start(folder)) == 0
    assert Run.open(folder / "run").config().modalities["label"].names == ["cat", "dog"]
    drawn = []
    for k, given in enumerate(("dog", "1")):
        file = folder / f"{k}.npz"
        argv = ["sample", str(folder / "run"), "--given", f"label={given}", "--n", "2", "--quiet", "--npz", str(file)]
        assert main(argv) == 0
        drawn.append(np.load(file)["label"].tolist())
    assert drawn == [[1, 1], [1, 1]]
    refused(capsys, ["sample", str(folder / "run"), "--given", "label=dragon"], "dragon", "cat, dog")


def test_nan_in_the_data_names_the_modality(capsys, folder):
    for file in (folder / "data" / "code").rglob("*.npy"):
        np.save(file, np.full(5, np.nan, np.float32))
    refused(capsys, start(folder), "code", "NaN")


def test_empty_and_missing_folders(capsys, folder):
    refused(capsys, start(folder, "--data.root", str(folder / "none")), "data.root", "none")
    shutil.rmtree(folder / "data" / "code")
    refused(capsys, start(folder), "data.root", "code", ".npy")
    shutil.rmtree(folder / "data" / "image")
    (folder / "data" / "image").mkdir()
    refused(capsys, start(folder), "data.root", "image", "no image files")
    assert not (folder / "run").exists()


def test_files_that_are_not_what_they_say(capsys, folder):
    for file in (folder / "data" / "image").rglob("*.png"):
        file.write_bytes(b"no picture")
    refused(capsys, start(folder), ".png", "cannot be read as a picture")
    assert not (folder / "run").exists()


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_file_that_breaks_later_keeps_the_steps_before(capsys, folder, workers):
    argv = start(folder, "--train.steps", "20", "--train.checkpoint_every", "1000", "--train.workers", workers)
    # The first file of either split is read before the run begins; the last of the training split comes later.
    files = sorted((folder / "data" / "image").rglob("*.png"))
    run = folder / "run"
    for file in reversed(files):
        whole = file.read_bytes()
        file.write_bytes(b"no picture")
        shutil.rmtree(run, ignore_errors=True)
        if main([*argv, "--train.batch_size", "1"]) == 2 and (run / "trainer.safetensors").exists():
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith("mmfast: error: ") and file.name in error
            assert not multiprocessing.active_children()  # which would keep the process from ending
            file.write_bytes(whole)
            assert main([*argv, "--train.batch_size", "1"]) == 2  # the data is another than the run began with
            assert file.name in capsys.readouterr().err
            assert main([*argv, "--train.batch_size", "1", "--allow-changed-data"]) == 0
            steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()]
            assert steps == list(range(1, 21))
            return
        file.write_bytes(whole)
    pytest.fail("no file broke after the start")


@pytest.mark.slow
def test_a_process_that_loads_data_and_dies_keeps_the_steps_before(capsys, folder, monkeypatch):
    """It is killed while a step is computed, as for its memory, and told of where its next batch is missing."""
    argv = start(folder, "--train.steps", "20", "--train.checkpoint_every", "1000", "--train.workers", "1")
    before = signal.getsignal(signal.SIGCHLD)

    def killed(self, *args):
        if self.done == 3:
            (process,) = multiprocessing.active_children()
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        step(self, *args)

    step = Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        assert main(argv) == 2
    said = "mmfast: error: a process that loads data has died, perhaps because memory ran out: lower train.workers, "
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert load_tensors(folder / "run" / "trainer.safetensors")[1]["step"] >= 3
    assert not multiprocessing.active_children()
    assert main(argv) == 0
    steps = [json.loads(line)["step"] for line in (folder / "run" / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21)) and before in (signal.SIG_DFL, signal.getsignal(signal.SIGCHLD))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("begun", [pytest.param(0, marks=pytest.mark.slow), 1, None])
def test_a_process_or_thread_that_cannot_begin_is_one_line(capsys, folder, monkeypatch, begun):
    """As where the user may have no more processes, or, with None, no more of the threads that feed them.

    Those that have begun end, and what was learnt is there.
    """
    assert main(start(folder)) == 0
    fork, left = os.fork, [99 if begun is None else begun]
    starts = threading.Thread.start

    def feeds_nothing(thread):
        if thread.name.startswith("QueueFeeder"):
            raise RuntimeError("can't start new thread")
        starts(thread)

    def refuses():
        left[0] -= 1
        if left[0] < 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    longer = start(folder, "--train.steps", "5")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuses)
        if begun is None:
            patch.setattr(threading.Thread, "start", feeds_nothing)
        capsys.readouterr()
        assert main([*longer, "--train.workers", "2"]) == 2
    *_, said = capsys.readouterr().err.splitlines()
    reason = "can't start new thread" if begun is None else "Resource temporarily unavailable"
    assert said == (
        f"mmfast: error: train.workers is 2, but the system cannot start that many processes ({reason}); lower it, "
        "or free some memory, and repeat the command"
    )
    assert not multiprocessing.active_children() and left == [97 if begun is None else -1]
    assert load_tensors(folder / "run" / "trainer.safetensors")[1]["step"] == 3
    assert main([*longer, "--train.workers", "1"]) == 0


def test_classes_that_do_not_fit(capsys, folder):
    refused(capsys, start(folder, "--modalities.label.classes", "3"), "modalities.label.classes", "3", "cat")
