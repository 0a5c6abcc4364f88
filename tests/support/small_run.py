"""A run of six steps: states of steps 6 and 4, pictures of steps 2, 4 and 6; the command that makes it, repeated."""

import torch
from tiny import TINY, flags, tiny

from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.training import train

PAIRS = [*TINY, ("backbone.width", "16"), ("train.steps", "6"), ("train.checkpoint_every", "2"),
         ("train.log_every", "1"), ("train.sample_every", "2"), ("sample.steps", "1")]  # fmt: skip
COMMAND = ["train", "digits", "--quiet", *flags(PAIRS)]
STATE, PREVIOUS, DAMAGED = (f"trainer{x}.safetensors" for x in ("", ".previous", ".damaged"))


def make(folder):
    train(tiny(**{key.replace(".", "__"): value for key, value in PAIRS}), str(folder), quiet=True)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def again(run, capsys):
    """Repeat the command: its status, and the lines on stderr."""
    status = main([*COMMAND, "--out", str(run)])
    return status, capsys.readouterr().err.splitlines()


def kept(run):
    """The states that are kept for good, by their names in the run."""
    return sorted(p.relative_to(run).as_posix() for p in (run / "states").glob("*"))


def assert_same(run, straight, pictures=12):
    """The weights, the states, the stats and so many pictures, bit for bit; and nothing of which there was none."""
    assert kept(run) == kept(straight), kept(run)
    for name in ("model.safetensors", "ema.safetensors", STATE, *kept(straight)):
        (a, about), (b, other) = (load_tensors(folder / name) for folder in (straight, run))
        assert set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a), name
        assert about == other, name
    assert (run / "stats.jsonl").read_bytes() == (straight / "stats.jsonl").read_bytes(), "stats.jsonl"
    files, others = (contents(folder / "samples") for folder in (run, straight))
    assert files == others and len(files) == pictures, sorted(files)
