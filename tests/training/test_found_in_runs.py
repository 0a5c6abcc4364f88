"""What a review of training and run folders found: runs that nobody can open again, and weights from elsewhere."""

import json
import os

import numpy as np
import pytest
import torch
from small_run import PAIRS, make
from tiny import TINY, flags, tiny

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_data
from mmfast.cli import main
from mmfast.data.items import LONGEST_CAPTIONS, captions
from mmfast.training import fit, record, train
from mmfast.training import trainer as trainers
from mmfast.training.objective import losses
from mmfast.training.record import of_files


class Killed(BaseException):
    pass


def kill_after(monkeypatch, steps):
    step = trainers.Trainer.step

    def until(self, *args):
        if self.done == steps:
            raise Killed
        step(self, *args)

    monkeypatch.setattr(trainers.Trainer, "step", until)


def command(run, steps, *more):
    return main(["train", "digits", "--out", str(run), "--quiet", *flags([*TINY, ("train.steps", str(steps))]), *more])


# --- the config of a run ---


def test_captions_that_a_config_cannot_hold_are_fewer():
    texts = [f"{k} " + "ж" * 1000 for k in range(1000)]
    found = captions(texts)
    assert 250 <= len(found) < 1000 and {*found} <= {*texts}
    assert sum(len(x.encode()) for x in found) <= LONGEST_CAPTIONS
    assert captions(texts[:100]) == sorted(texts[:100])


def test_a_config_that_could_not_be_read_again_is_refused(tmp_path):
    config = tiny(train__steps=1)
    config.modalities["label"].names = [f"{k}" + "x" * 500_000 for k in range(10)]
    with pytest.raises(MmfastError, match=r"the config, with its names and captions, has 5,\d+,\d+ bytes"):
        fit(config, str(tmp_path / "run"), build_data(config), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_config_of_the_users_is_no_run(tmp_path, capsys):
    mine = tmp_path / "config.yaml"
    mine.write_text("# mine\n" + configs.to_yaml(tiny(train__steps=1)))
    before = mine.read_bytes()
    assert main(["train", str(mine), "--out", str(tmp_path), "--quiet"]) == 2
    assert "holds files that are not a run's (config.yaml)" in capsys.readouterr().err
    assert mine.read_bytes() == before and os.listdir(tmp_path) == ["config.yaml"]


# --- the record of the data ---


def test_small_files_leave_their_share_to_large_ones(tmp_path, monkeypatch):
    """All content of a data set of up to IN_ALL is compared, however many files it has."""
    monkeypatch.setattr(record, "IN_ALL", 4000)
    monkeypatch.setattr(record, "OF_EACH", 8)
    files = {f"{k}": tmp_path / f"{k}" for k in range(200)}
    for path in files.values():
        path.write_bytes(b"0123456789")
    files["table"] = tmp_path / "table"
    files["table"].write_bytes(b"a" * 2000)
    before = of_files(files)
    files["table"].write_bytes(b"a" * 1000 + b"b" + b"a" * 999)
    os.utime(files["table"], (1, 1))
    assert record.changes(before, of_files(files, before))
    assert before.portion == 2000


@pytest.mark.parametrize(
    ("sizes", "portion"),
    [([10] * 5, 10), ([], 8), ([10] * 10, 10), ([20] * 10, 10), ([5, 5, 200], 90), ([1] * 50 + [60, 70], 25)],
)
def test_the_portion_fills_what_there_is(monkeypatch, sizes, portion):
    """The largest p with the sum of min(size, p) at most IN_ALL, at least OF_EACH; or the largest size."""
    monkeypatch.setattr(record, "IN_ALL", 100)
    monkeypatch.setattr(record, "OF_EACH", 8)
    found = record._portion(sizes)
    assert found == portion
    assert sum(min(x, found) for x in sizes) <= 100 or found == 8


# --- weights from another run ---


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "run"
    train(tiny(train__steps=1), str(folder), quiet=True)
    return folder


def test_a_run_that_began_from_another_and_was_killed_needs_it_again(other, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            train(tiny(train__steps=2), str(run), quiet=True, start=str(other))
    assert json.loads((run / "from.json").read_text()) == {"from": str(other.resolve()), "step": 1}
    assert command(run, 2) == 2
    assert f"began from the weights of {other.resolve()} and has no checkpoint yet" in capsys.readouterr().err
    assert command(run, 2, "--from", str(tmp_path)) == 2
    assert f"the run in --out {run} began from {other.resolve()}" in capsys.readouterr().err
    assert command(run, 2, "--from", str(other)) == 0
    assert command(run, 3) == 0  # with a checkpoint it is not needed
    capsys.readouterr()
    assert command(run, 4, "--from", str(tmp_path / "moved")) == 0
    assert f"began from {other.resolve()}, so --from {tmp_path / 'moved'} has no effect" in capsys.readouterr().err


def test_a_start_that_comes_too_late_is_not_silent(other, tmp_path, capsys):
    train(tiny(train__steps=1, seed=1), str(tmp_path / "run"), quiet=True)
    assert command(tmp_path / "run", 2, "--seed", "1", "--from", str(other)) == 0
    assert f"did not begin from another run, so --from {other} has no effect" in capsys.readouterr().err


ROW = """anchor: row
data: {{kind: table, source: {source}}}
modalities: {{row: {{kind: table, columns: [a, b]}}}}
backbone: {{kind: mlp, width: 16, blocks: 1, features: 4}}
train: {{steps: 1, batch_size: 8, device: cpu, tensorboard: false, sample_every: 0, validate_every: 0}}
sample: {{steps: 1, count: 2, clamp: null}}
evaluate: {{samples: 0}}
"""


def test_a_tables_units_come_with_the_weights(tmp_path):
    for name, shift in (("x", 0.0), ("y", 5.0)):
        rows = np.random.default_rng(0).normal(shift, 1 + shift, (50, 2))
        (tmp_path / f"{name}.csv").write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in rows) + "\n")
        (tmp_path / f"{name}.yaml").write_text(ROW.format(source=f"{name}.csv"))
    config = {name: configs.load(str(tmp_path / f"{name}.yaml")) for name in "xy"}
    train(config["x"], str(tmp_path / "x"), quiet=True)
    run = train(config["y"], str(tmp_path / "y"), quiet=True, start=str(tmp_path / "x"))
    found, theirs = (configs.load_again(str(tmp_path / name / "config.yaml")).modalities["row"] for name in "yx")
    assert (found.means, found.scales) == (theirs.means, theirs.scales)
    assert run.config().modalities["row"].means == theirs.means


# --- what a loss returns, and where pictures go ---


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda *a: {}, r"losses returned \{\}; it should be a dict"),
        (lambda *a: {"a": 1.0}, r"losses returned 1.0 as 'a'; it should be a scalar tensor"),
        (lambda *a: {"a": torch.ones(2, requires_grad=True)}, r"losses returned a tensor \[2\] as 'a'"),
    ],
)
def test_a_loss_is_checked_before_there_is_a_folder(tmp_path, loss, said):
    config = tiny(train__steps=1)
    with pytest.raises(MmfastError, match=said):
        fit(config, str(tmp_path / "run"), build_data(config), loss, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_depends_on_no_weight(tmp_path):
    config = tiny(train__steps=1)
    with pytest.raises(MmfastError, match="losses returned no part that depends on the model's weights"):
        fit(config, str(tmp_path / "run"), build_data(config), lambda *a: {"a": torch.tensor(1.0)}, quiet=True)


def test_a_part_of_the_loss_that_only_some_batches_have(tmp_path):
    def mine(model, batch, numbers, config):
        found = losses(model, batch, numbers, config)
        return found | ({"extra": found["image"] * 0 + 7} if int(numbers[0]) // 16 % 2 else {})

    config = tiny(train__steps=4)
    fit(config, str(tmp_path / "run"), build_data(config), mine, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [line.get("loss.extra") for line in lines] == [None, 7.0, None, 7.0]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["loss"] > 0 for line in lines)


def test_the_last_pictures_are_logged_too(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {k.replace(".", "__"): v for k, v in PAIRS if k != "train.tensorboard"}
    train(tiny(**options, train__tensorboard="true"), str(tmp_path / "run"), quiet=True)
    found = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0})
    found.Reload()
    assert [x.step for x in found.Images("joint")] == [2, 4, 6]
    assert [x.step for x in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_small_run_is_as_before(tmp_path):
    make(tmp_path / "run")
    assert not (tmp_path / "run/from.json").exists()
