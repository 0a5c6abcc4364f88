"""A few of the runs of `python -m tests.kills`, and that it would see a difference."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs fork")]


def test_runs_that_are_killed_end_as_the_one_that_was_not():
    """In a process of its own: its children fork, which autograd allows only before its first step."""
    command = [sys.executable, "-m", "tests.kills", "--runs", "4"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    runs, kills, equal = map(int, re.search(r"(\d+) runs, (\d+) kills: (\d+) ended equal", done.stdout).groups())
    assert runs == equal == 4 and kills > 2


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    from tests.kills import Kills

    return Kills(tmp_path_factory.mktemp("kills"), "table")


FILES = ("metrics.json", "stats.jsonl", "ema.safetensors", "samples/step-0000004-joint.png",
         "samples/scatter-0000004-joint-row.png", "states/step-0000002.safetensors")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_differs_is_seen(kills, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(kills.straight, run)
    kills.compare(run)
    with open(run / name, "ab") as file:
        file.write(b"x")
    with pytest.raises((AssertionError, ValueError)):
        kills.compare(run)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_seen(kills, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(kills.straight, run)
    (run / name).unlink()
    with pytest.raises((AssertionError, ValueError, OSError)):
        kills.compare(run)
