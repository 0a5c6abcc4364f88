"""Small runs by one rank and by several, compared; and commands of which something happens to a rank."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, flags

from mmfast.cli import main
from mmfast.files import load_tensors

PAIRS = [*TINY, ("backbone.width", "16"), ("train.log_every", "5")]
TRAIN = ["train", "digits", "--quiet", *flags(PAIRS)]
OPTIONS = {key.replace(".", "__"): value for key, value in PAIRS}


def command(out, steps, **options):
    more = {"train.steps": steps, **{key.replace("__", "."): value for key, value in options.items()}}
    return [*TRAIN, "--out", str(out), *flags([(key, str(value)) for key, value in more.items()])]


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_one_curve(run, other, within=1e-5):
    """The losses, norms and rates of every step, and the weights at the end."""
    lines, others = stats(run), stats(other)
    assert [line["step"] for line in lines] == list(range(1, len(others) + 1)) and lines
    for line, wanted in zip(lines, others, strict=True):
        assert line == {name: pytest.approx(x, abs=within) for name, x in wanted.items()}
    for name in ("model", "ema"):
        (a, about), (b, wanted) = (load_tensors(folder / f"{name}.safetensors") for folder in (run, other))
        assert about == wanted and a.keys() == b.keys()
        for key, x in a.items():
            torch.testing.assert_close(x, b[key], rtol=0, atol=within, msg=key)


def assert_same_pictures(run, other):
    """But for rounding: a level of grey here and there."""
    names = [sorted(p.name for p in (folder / "samples").iterdir()) for folder in (run, other)]
    assert names[0] == names[1] and len(names[0]) == 4
    for name in names[0]:
        a, b = (np.asarray(Image.open(folder / "samples" / name)).astype(int) for folder in (run, other))
        assert a.shape == b.shape and np.abs(a - b).max() <= 1


def stopping(until, argv):
    """The command, of which the last rank is asked to stop in a step."""
    from mmfast.training.trainer import Trainer

    step = Trainer.step

    def asked(self, *args):
        step(self, *args)
        if self.done == until and self.ranks.index == self.ranks.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    Trainer.step = asked
    return main(argv)


def killed(rank, argv):
    from mmfast.training.trainer import Trainer

    step = Trainer.step

    def dies(self, *args):
        if self.done == 8 and self.ranks.index == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *args)

    Trainer.step = dies
    return main(argv)
