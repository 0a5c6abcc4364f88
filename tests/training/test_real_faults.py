"""Faults by their real causes: a disk that is full, and a file system that refuses locks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import COMMAND, assert_same, make
from tiny import flags

WITHOUT_LOCKS = Path(__file__).parents[1] / "support" / "without_locks.py"


def mounted(folder, options):
    """Whether a file system in memory is mounted there, or its options changed."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, and what sets its size in bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or not Path("/bin/mount").exists() or not mounted(folder, "size=1m"):
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder, lambda size: mounted(folder, f"remount,size={size}") or pytest.fail("remount")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The small run, without a fault."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.85])
def test_a_full_disk_costs_nothing(disk, straight, share):
    """Training stops with a line that says what to do, and after that was done ends as if nothing had been."""
    folder, resize = disk
    whole = sum(-(-file.stat().st_size // 4096) * 4096 for file in straight.rglob("*") if file.is_file())
    resize(int(share * whole))
    words = [sys.executable, "-m", "mmfast", *COMMAND, "--out", str(folder / "run")]
    full = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert full.returncode not in (0, -9), full
    said = full.stderr.strip().splitlines()
    assert "No space left on device" in said[-1] and "make room" in said[-1], said
    assert "Traceback" not in full.stderr
    resize(16 * whole)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_same(folder / "run", straight)


def begin(out, *pairs):
    words = [sys.executable, str(WITHOUT_LOCKS), *COMMAND, *flags(pairs), "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_without_locks_a_run_is_as_with_them(straight, tmp_path):
    process = begin(tmp_path / "run")
    _, said = process.communicate(timeout=120)
    if process.returncode == 77:
        pytest.skip("this kernel takes no filter of system calls")
    assert process.returncode == 0, said
    assert_same(tmp_path / "run", straight)


@pytest.mark.slow
def test_of_two_trainers_without_locks_one_goes_on(tmp_path):
    """The other says why it stops, and no step is there twice."""
    slow = [("train.steps", "4000"), ("train.checkpoint_every", "200"), ("train.log_every", "1"),
            ("train.sample_every", "0")]  # fmt: skip
    run = tmp_path / "run"
    first = begin(run, *slow)
    deadline = time.monotonic() + 60
    while not (run / "stats.jsonl").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if first.poll() == 77:
        pytest.skip("this kernel takes no filter of system calls")
    second = begin(run, *slow)
    ends = []
    try:
        while not ends and time.monotonic() < deadline + 120:
            ends = [process for process in (first, second) if process.poll() is not None]
            time.sleep(0.05)
        assert len(ends) == 1, "one of them stops"
        said = ends[0].communicate()[1]
        assert ends[0].returncode == 2 and "another one trains in this folder" in said, said
        other = first if ends[0] is second else second
        assert other.poll() is None
        other.terminate()
        other.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
    steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").open()]
    assert steps == [*range(1, len(steps) + 1)] and len(steps) > 1
