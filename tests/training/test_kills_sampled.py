"""A few of the runs of `python -m tests.kills`, and that it would see a difference."""

import random
import shutil
import sys

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs fork")]


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    from tests.kills import Kills

    torch.set_num_threads(1)
    return Kills(tmp_path_factory.mktemp("kills"))


def test_runs_that_are_killed_end_as_the_one_that_was_not(kills, tmp_path):
    came = [part for k in range(6) for part in kills.run(random.Random(f"sample {k}"), tmp_path / str(k))]
    assert len(came) > 4 and len({*came}) > 2


@pytest.mark.parametrize("name", ["metrics.json", "stats.jsonl", "ema.safetensors", "samples/step-0000004-joint.png"])
def test_a_file_that_differs_is_seen(kills, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(kills.straight, run)
    kills.compare(run)
    with open(run / name, "ab") as file:
        file.write(b"x")
    with pytest.raises((AssertionError, ValueError)):
        kills.compare(run)


def test_each_part_takes_lines(kills):
    assert all(count > 10 for count in kills.lines.values()), kills.lines
