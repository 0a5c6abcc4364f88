"""A sample of the fuzzed inputs (python -m tests.fuzz has the rest), and the inputs that were faults once."""

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import COMMAND, make

import mmfast
from mmfast import MmfastError, Schedule, ops
from mmfast import config as configs
from mmfast.build import build_model
from mmfast.cli import main
from mmfast.loaded import load
from mmfast.modalities.embedding import read_numbers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
fuzz = pytest.importorskip("tests.fuzz.kinds") if sys.platform == "linux" else None

SCHED = Schedule.cosine(20, {"label": mmfast.bridge(2.0)})
X = torch.zeros(2, 3, 4, 4)
MANY = torch.randn(3, 4)  # prints as several lines


def sample(kind, count, place):
    from tests.fuzz import pool

    prepared = fuzz.prepared(kind, place)
    found = list(pool.run(prepared, f"sample {kind}", range(count), 1, place))
    assert sorted(x.number for x in found) == list(range(count))
    assert [f"{x.number}: {x.fault}" for x in found if x.fault] == []
    assert {x.what for x in found} == {"result", "error"}  # of each there are some


# Such as take a millisecond; the slow ones are files and folders.
@pytest.mark.parametrize(("kind", "count"), [("ops", 150)])
def test_a_sample(kind, count, tmp_path):
    sample(kind, count, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"), [("ops", 3000), ("config", 60), ("checkpoint", 30), ("command", 20), ("data", 40)]
)
def test_a_larger_sample(kind, count):
    """In a process of its own: its children fork, which autograd allows only before its first step."""
    command = [sys.executable, "-m", "tests.fuzz", "--kind", kind, "--inputs", str(count), "--jobs", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count:,} inputs" in done.stdout.replace("  ", " ") and " 0 faults" in done.stdout


def killed(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


# What no input may do, and the fault that it is.
WRONG = {
    "the process died, exit code -11": killed,
    "KeyError: 'x'": lambda folder: {}["x"],
    "opened ": lambda folder: (folder.parent.parent / "outside").write_text("x"),
    "changed a file outside its folder": lambda folder: (folder.parent.parent / "new").mkdir(),
    "ran a program": lambda folder: os.system("true"),
    # Not from the heap, which may hold as much that an earlier test has freed.
    "MB more memory": lambda folder: np.frombuffer(mmap.mmap(-1, 2**30 + 2**29), np.uint8).fill(1),
    "left open": lambda folder: os.dup(os.open(__file__, os.O_RDONLY)),
    "an error that is not one short line": lambda folder: "two\nlines",
}


class Wrong:
    def prepare(self, base):
        pass

    def attempt(self, rng, folder):
        (folder / "own").write_text("x")
        found = [*WRONG.values(), lambda folder: None][int(folder.name.removeprefix("input-"))](folder)
        return found if isinstance(found, str) else None


@pytest.mark.slow
def test_the_fuzzer_sees_what_goes_wrong(tmp_path):
    from tests.fuzz import pool

    found = {x.number: x.fault for x in pool.run(Wrong(), "s", range(len(WRONG) + 1), 1, tmp_path)}
    assert found.pop(len(WRONG)) is None
    for number, beginning in enumerate(WRONG):
        assert beginning in str(found[number]), (beginning, found)


@pytest.mark.slow
def test_a_hang_is_seen(tmp_path, monkeypatch):
    from tests.fuzz import pool

    class Hangs(Wrong):
        def attempt(self, rng, folder):
            os.mkfifo(folder / "pipe")
            (folder / "pipe").read_bytes()

    limits = ((signal.SIGALRM, signal.ITIMER_REAL, 0.5), (signal.SIGPROF, signal.ITIMER_PROF, 5.0))
    monkeypatch.setattr(pool, "LIMITS", limits)
    (found,) = pool.run(Hangs(), "s", [0], 1, tmp_path)
    assert "a hang" in found.fault


def test_the_fuzzer_writes_through_no_link_of_its_own(tmp_path):
    """An input may put a link, or a pipe that nobody reads, where it writes its next file."""
    from tests.fuzz.data import write

    (tmp_path / "outside").write_text("kept")
    (tmp_path / "0.txt").symlink_to("outside")
    write(random.Random(0), tmp_path / "0", "label", 0)
    assert (tmp_path / "outside").read_text() == "kept"
    assert not (tmp_path / "0.txt").is_symlink() and (tmp_path / "0.txt").read_text().strip() in ("0", "1")


# --- what was found -------------------------------------------------------------------------------------------------

CALLS = {
    "an argument of several lines": lambda: ops.step(X, X, {}, 5, SCHED, target=MANY),
    "a stream that is a tensor": lambda: ops.randn([2, 3], stream=MANY),
    "return_noise a tensor": lambda: ops.q_sample(X, {}, 5, SCHED, return_noise=MANY),
    "return_noise an empty tensor": lambda: ops.combine([X], torch.ones(1, 1), return_noise=torch.zeros(0)),
    "exact a tensor": lambda: ops.block_mask(X, 0.5, 2, exact=MANY),
    "fused a tensor": lambda: ops.diffusion_loss(X, X, 5, SCHED, seed=1, fused=MANY),
    "a device that is none": lambda: ops.randn([2, 3], device=1.5),
    "a device of no name": lambda: ops.random_words([2, 3], device="x"),
    "a GPU that is not there": lambda: ops.randn([2, 3], device="cuda:77" if torch.cuda.is_available() else "cuda"),
    "an empty clamp": lambda: ops.step(X, X, {}, 5, SCHED, clamp=()),
    "s a list": lambda: ops.posterior_mean(X, X, {}, 5, SCHED, [3]),
    "T of 10^20": lambda: Schedule.cosine(10**20),
    "min_snr_gamma of 10^400": lambda: ops.diffusion_loss(X, X, 5, SCHED, seed=1, min_snr_gamma=10**400),
    "present sparse": lambda: ops.q_sample(X, {"label": X}, 5, SCHED, present=torch.ones(2, 1).to_sparse()),
    "coefs sparse": lambda: ops.combine([X], torch.ones(2, 1).to_sparse()),
    "a term that is sparse": lambda: ops.combine([X.to_sparse()], torch.ones(2, 1)),
    "a draw that is a bool": lambda: ops.random_words([2, 3], draw=True),
    "a side that is a bool": lambda: ops.block_mask(X, 0.5, True),
    "a pair with a bool": lambda: ops.block_mask(X, 0.5, (2, True)),
    "a shape with a bool": lambda: ops.randn([True, 3], seed=0),
    "a count that is a bool": lambda: ops.random_words([2, True], seed=0),
    "a batch that is a bool": lambda: ops.random_words([True, 2], seed=0),
    "a Block from a bool": lambda: ops.combine([X, ops.Block(X[:, :1], True, 3)], torch.ones(2, 2)),
    "a Block of a bool": lambda: ops.combine([ops.Block(X[:, :1], 0, True)], torch.ones(2, 1)),
    "a ratio on another device": lambda: ops.block_mask(X, torch.zeros(2, device="meta"), 2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_arguments_of_ops_that_were_faults(call, each_backend):
    with ops.backend(each_backend), pytest.raises(MmfastError) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_flag_may_be_a_number(each_backend):
    with ops.backend(each_backend):
        grad = X.clone().requires_grad_()
        out, eps = ops.combine([grad], torch.ones(2, 1), torch.ones(2), seed=0, return_noise=1)
        same, alike = ops.combine([X], torch.ones(2, 1), torch.ones(2), seed=0, return_noise=True)
        assert torch.equal(out.detach(), same) and torch.equal(eps, alike)


def test_a_clamp_beyond_float32_is_none(each_backend):
    z = torch.randn(2, 3, 4, 4)
    with ops.backend(each_backend):
        for found, wanted in zip(
            ops.step(z, z, {}, 5, SCHED, clamp=1e308, seed=0), ops.step(z, z, {}, 5, SCHED, seed=0), strict=True
        ):
            torch.testing.assert_close(found, wanted)


def test_messages_are_short_and_printable():
    found = str(MmfastError(f"x is {list(range(10**5))}\n; a file \x1b[31m\udcff\nis bad"))
    assert found.startswith("x is [0, 1, 2") and found.endswith(r"; a file \x1b[31m\udcff is bad")
    assert len(found) < 2000 and found.isprintable()
    text = "Caught MmfastError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert str(MmfastError(f"{text}mmfast.errors.MmfastError: what is wrong\n")) == "what is wrong"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_report_waits_for_no_pipe(tmp_path, capsys):
    run = tmp_path / "run"
    make(run)
    for name in ("stats.jsonl", "metrics.json", "config.yaml"):
        kept = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
        assert main(["report", str(run)]) == 0
        assert f"{name} cannot be read: it is a pipe" in (run / "report.html").read_text()
        (run / name).unlink()
        if kept:
            (run / name).write_bytes(kept)
    (run / "report.html").unlink()
    (run / "report.html").symlink_to("/dev/zero")
    assert main(["report", str(run)]) == 2 and "it is a pipe, a socket or a device" in capsys.readouterr().err
    (run / "report.html").unlink()
    with open(run / "stats.jsonl", "wb") as file:
        file.truncate(2**40)
    assert main(["report", str(run)]) == 0
    assert "stats.jsonl cannot be read: it has more than" in (run / "report.html").read_text()


@pytest.mark.parametrize("width", [2**40, 10**18])
def test_a_network_larger_than_memory_is_one_line(width):
    config = configs.load("digits", [("backbone", f"{{kind: mlp, width: {width}, blocks: 1, features: 4}}")])
    with pytest.raises(MmfastError, match="backbone") as found:
        build_model(config)
    assert "\n" not in str(found.value)


HEADERS = {
    "open": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), \n",
    "zeros": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4\0\0), }\n",
    "nested": b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 5000 + b"\n",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_damaged_headers_of_numbers(header, tmp_path):
    file = tmp_path / "x.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    with pytest.raises(MmfastError, match=r"x\.npy cannot be read as a vector"):
        read_numbers(file, (4,))


@pytest.mark.parametrize("key", [".", "..", ".train", "train.", "a[0]", "[", "train[0].steps", "modalities..kind"])
def test_odd_names_of_options(key):
    with pytest.raises(MmfastError) as found:
        configs.load("digits", [(key, "3")])
    assert f"--{key}" in str(found.value) or "not an option" in str(found.value) or "should be one" in str(found.value)


LONG = "a" * 400  # longer than a file's name can be


@pytest.mark.parametrize(
    "words",
    [
        ["sample", LONG],
        ["eval", LONG],
        ["report", LONG],
        ["sweep", LONG, "--over", "steps=1,2"],
        ["check", LONG],
        ["init", LONG],
        ["train", f"{LONG}.yaml", "--out", "run"],
        ["train", "digits", "--out", LONG],
        ["train", "digits", "--out", "run", "--from", LONG],
        ["train", "digits", "--out", "run", "--data", f"{{kind: folder, root: {LONG}}}"],
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_a_name_too_long_for_a_file_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmfast: error: ") and said.count("\n") == 1 and LONG in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(MmfastError, match="holds no run"):
        load(LONG)


@pytest.mark.parametrize("name", ["a" * 70_000, f"two\nlines \x1b[31m{LONG}"], ids=["very long", "two lines"])
@pytest.mark.parametrize("command", ["report", "sample", "check"])
def test_whatever_the_name_its_error_is_one_short_line(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([command, name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmfast: error: ") and len(line) < 2000 and line.isprintable()


MANY_SAMPLES = {
    "sample": (["--n", str(2**40)], "n"),
    "sample of each class": (["--given", "label=all", "--n", str(2**40)], "n"),
    "sample given data": (["--given", "label=data", "--n", str(2**40)], "n"),
    "eval": (["--samples", str(2**40)], "evaluate.samples"),
    "sweep": (["--over", "steps=1,2", "--samples", str(2**40)], "evaluate.samples"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("words", "name"), MANY_SAMPLES.values(), ids=MANY_SAMPLES)
def test_samples_beyond_the_memory(words, name, run, request, capsys):
    command = request.node.callspec.id.split()[0]
    assert main([command, str(run), "--device", "cpu", "--quiet", *words]) == 2
    count = 2**40 * (10 if "label=all" in words else 1)
    # An image of 8 x 8 floats, a mask of as many class numbers, and a label: 776 bytes.
    assert capsys.readouterr().err.startswith(
        f"mmfast: error: {name} asks for {count:,} samples, {count * 776 / 2**30:,.0f} GB; the memory here has "
    )


@pytest.mark.parametrize("option", ["sample.count", "evaluate.samples"])
def test_samples_beyond_the_memory_are_refused_before_training(option, tmp_path, capsys):
    assert main([*COMMAND, "--out", str(tmp_path / "run"), f"--{option}", str(2**40)]) == 2
    assert f"{option} asks for 1,099,511,627,776 samples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
