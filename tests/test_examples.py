"""The examples, as a reader runs them but with few steps: the loss falls, and the picture is of something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"train_plain": ["sklearn"], "train_diffusers": ["sklearn", "diffusers"]}


def run(name, out, *options):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--out", out, "--batch", "32", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NEEDS, "emoji"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("train_plain", ["--steps", "80"]), ("train_diffusers", ["--steps", "40", "--inference-steps", "4"])],
    ids=list(NEEDS),
)
@pytest.mark.slow
def test_trains_and_draws(name, options, tmp_path):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    picture = tmp_path / "digits.png"
    done = run(name, picture, *options)
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.findall(r"(\d+\.\d+) in the", done.stdout))
    assert last < 0.7 * first  # from 1, the loss of predicting nothing
    assert str(picture) in done.stdout and re.search(r"train: 100%.*loss=", done.stderr)
    with Image.open(picture) as image:
        assert image.size == (480, 480)
        # Its pixels are blocks of one colour, and not all alike.
        pixels = np.asarray(image).reshape(80, 6, 80, 6)
    assert pixels.std() > 10 and (pixels == pixels[:, :1, :, :1]).all()
