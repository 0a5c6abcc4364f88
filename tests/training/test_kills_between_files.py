"""A run that is killed just after it has put one of its files in place ends with every file, as if it had not been."""

import os

import pytest
from tiny import TINY

from mmfast import config as configs
from mmfast.training import train

PAIRS = [*TINY, ("train.steps", "2"), ("train.checkpoint_every", "1"), ("train.keep_every", "1"),
         ("train.log_every", "1"), ("train.sample_every", "1"), ("sample.steps", "1"), ("train.validate_every", "1"),
         ("train.validate_examples", "8")]  # fmt: skip
KEPT, STATE = "states/step-0000001.safetensors", "trainer.safetensors"
PICTURE = "samples/step-0000001-{}.png"
OVERVIEW = "samples/scatter-0000001-{}-row.png"


class Killed(BaseException):
    """Nothing catches it, and nothing is written after it."""


def run_until(folder, last=None):
    """Train into the folder, until the file of this name is in place; None: to the end. Returns those put, in turn."""
    put, found = os.replace, []

    def puts(source, target):
        put(source, target)
        found.append(os.path.relpath(target, folder))
        if found[-1] == last:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", puts)
        # A table: its pictures have overviews beside them.
        if last is None:
            train(configs.load("table", PAIRS), str(folder), quiet=True)
        else:
            with pytest.raises(Killed):
                train(configs.load("table", PAIRS), str(folder), quiet=True)
    return found


def contents(folder):
    """The bytes of all files; of weights that they are there: the order of their metadata may differ."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: b"" if name.endswith(".safetensors") else p.read_bytes() for name, p in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    files = run_until(folder)
    return contents(folder), files


@pytest.mark.slow
@pytest.mark.parametrize("last", [STATE, pytest.param(PICTURE.format("joint"), marks=pytest.mark.slow)])
def test_every_file_is_there_in_the_end(whole, tmp_path, last):
    assert {KEPT, OVERVIEW.format("joint"), PICTURE.format("given-label")} < whole[0].keys()
    run_until(tmp_path / "run", last)
    run_until(tmp_path / "run")
    assert contents(tmp_path / "run") == whole[0]


@pytest.mark.slow
def test_whichever_file_is_the_last(whole, tmp_path):
    for k, last in enumerate(dict.fromkeys(whole[1])):
        run_until(tmp_path / str(k), last)
        run_until(tmp_path / str(k))
        assert contents(tmp_path / str(k)) == whole[0], last
