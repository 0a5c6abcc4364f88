"""A run whose files were damaged: what can be made again is, bit for bit; the rest is said in one line."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import DAMAGED, PREVIOUS, STATE, again, assert_same, contents

from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.files import load_tensors, save_tensors
from mmfast.run import Run
from mmfast.training.trainer import Trainer


def flip(path, at):
    """Change one bit, in place; at: from the end if it is negative."""
    with open(path, "rb+") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def rewrite(path, change, step=6, whole=False):
    """Tensors changed, as a file of an earlier version, without a digest; or as a whole file of today."""
    tensors = change(load_file(path))
    save_tensors(path, tensors, {"step": step}) if whole else save_file(
        tensors, path, {"mmfast": json.dumps({"step": step})}
    )


def places(path):
    """A byte of each region of a file: the header's length, its beginning and end, the metadata, and each tensor."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = data.index(b"__metadata__")
    starts = [
        8 + length + (x["data_offsets"][0] + x["data_offsets"][1]) // 2
        for n, x in header.items()
        if n != "__metadata__"
    ]
    return [0, 2, 7, 8, about, data.index(b'\\"step\\"'), data.index(b'"digest"'), data.index(b'"shape"'), *starts]


# The state has four times the tensors, and one digest as they have.
@pytest.mark.parametrize("name", ["ema.safetensors", "model.safetensors", pytest.param(STATE, marks=pytest.mark.slow)])
def test_a_flipped_byte_is_noticed_in_every_region_and_tensor(run, name):
    found = places(run / name)
    assert len(found) > 8 + len(load_file(run / name)) - 1
    for at in found:
        flip(run / name, at)
        with pytest.raises(ValueError, match=name):
            load_tensors(run / name)
        flip(run / name, at)
    load_tensors(run / name)


OLD_FILES = {
    "no optimiser": lambda p: rewrite(p, lambda x: {n: t for n, t in x.items() if not n.startswith("optimizer.")}),
    "half an optimiser": lambda p: rewrite(p, lambda x: {n: t for n, t in x.items() if n != "optimizer.3.exp_avg"}),
    "optimizes": lambda p: rewrite(p, lambda x: {n.replace("optimizer.0.", "optimizes.0."): t for n, t in x.items()}),
    "no dot": lambda p: rewrite(p, lambda x: {**x, "alone": torch.zeros(1)}),
    "a parameter too many": lambda p: rewrite(p, lambda x: {**x, "optimizer.999.step": torch.tensor(6.0)}),
    "a weight less": lambda p: rewrite(p, lambda x: dict([*x.items()][:-1])),
    "more steps than the run has": lambda p: rewrite(
        p, lambda x: {n: t + 1 if n.endswith(".step") else t for n, t in x.items()}, step=7
    ),
    "a moment of another shape": lambda p: rewrite(p, lambda x: {**x, "optimizer.0.exp_avg": torch.zeros(1, 1)}),
    "NaN": lambda p: rewrite(p, lambda x: {n: t * float("nan") for n, t in x.items()}, whole=True),
    **{
        f"step {step}": (lambda p, step=step: rewrite(p, dict, step=step))
        for step in (10**9, -1, 7, 5, "6", True, None)
    },
}
CUT = {f"cut at {n}": (lambda p, n=n: p.write_bytes(p.read_bytes()[:n])) for n in (0, 5000)}
FLIPPED = {f"flipped at {at}": (lambda p, at=at: flip(p, at)) for at in (3, 100, -1)}
DAMAGES = {**OLD_FILES, **CUT, **FLIPPED}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_not_taken_up(run, capsys, damage):
    damage(run / STATE)
    config = Run.open(run).config()
    trainer = Trainer(config, Run.open(run), build_data(config))
    trainer.restore()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmfast: {run / STATE} ") and f"{PREVIOUS}, of step 4" in line
    (before, about), now = load_tensors(run / PREVIOUS), trainer.state()
    assert trainer.done == about["step"] == 4
    assert before.keys() == now.keys() and all(torch.equal(x, now[name]) for name, x in before.items())


# One of each way: another program's tensors, another step, no whole file. What is found of the others is above.
WAYS = ["half an optimiser", "step 7", "cut at 5000"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [DAMAGES[name] for name in WAYS], ids=WAYS)
def test_a_damaged_state_costs_the_steps_since_the_one_before(run, straight, capsys, damage):
    damage(run / STATE)
    spoilt, before = ((run / name).read_bytes() for name in (STATE, PREVIOUS))
    status, lines = again(run, capsys)
    assert status == 0 and len(lines) == 1
    assert lines[0].startswith(f"mmfast: {run / STATE} ") and f"{PREVIOUS}, of step 4" in lines[0]
    assert_same(run, straight)
    # What is damaged takes the place of no good one, and is there to be looked at.
    assert (run / DAMAGED).read_bytes() == spoilt and (run / PREVIOUS).read_bytes() == before
    assert again(run, capsys) == (0, [])


def test_only_what_is_damaged_is_put_aside(tmp_path, capsys):
    run, tensors = Run(tmp_path), {"x": torch.ones(2)}
    for step in (1, 2):
        run.save_state(tensors, {"step": step})
    flip(tmp_path / STATE, -1)
    assert run.load_state()[1] == {"step": 1} and capsys.readouterr().err.count("\n") == 1
    for step in (2, 3):
        run.save_state(tensors, {"step": step})
    assert [load_tensors(tmp_path / name)[1]["step"] for name in (STATE, PREVIOUS)] == [3, 2]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_no_whole_state_is_an_error_that_changes_nothing(run, straight, capsys, count):
    if count == 1:
        (run / PREVIOUS).unlink()
    files = [run / name for name in (STATE, PREVIOUS)][:count]
    for file in files:
        flip(file, -1)
    before = contents(run)
    status, lines = again(run, capsys)
    assert status == 2 and len(lines) == 1 and contents(run) == before
    assert all(str(file) in lines[0] for file in files) and "start again" in lines[0]
    for file in run.glob("trainer*.safetensors"):  # the remedy that the message names
        file.unlink()
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


def test_a_kill_between_the_renames_of_a_checkpoint_goes_on_unsaid(run, straight, capsys):
    (run / STATE).unlink()
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


def test_a_run_of_an_earlier_version_goes_on(run, straight, capsys):
    """No file of it has a digest, and the state no stats."""
    for name, step in ((STATE, 6), (PREVIOUS, 4), ("model.safetensors", 6), ("ema.safetensors", 6)):
        rewrite(run / name, dict, step=step)
    Run.open(run).load_weights(build_model(Run.open(run).config()))
    assert again(run, capsys) == (0, [])
    (run / STATE).unlink()
    assert again(run, capsys) == (0, [])
    assert_same(run, straight)


@pytest.mark.parametrize("damage", ["flip", "cut", "NaN", "old NaN", "another shape"])
def test_damaged_weights_draw_nothing(run, straight, capsys, damage):
    ema = run / "ema.safetensors"
    spoil = {
        "flip": lambda: flip(ema, -1),
        "cut": lambda: ema.write_bytes(ema.read_bytes()[:1000]),
        "NaN": lambda: rewrite(ema, lambda x: {n: t * float("nan") for n, t in x.items()}, whole=True),
        "old NaN": lambda: rewrite(ema, lambda x: {n: t * float("nan") for n, t in x.items()}),
        "another shape": lambda: rewrite(ema, lambda x: {n: t[..., None] for n, t in x.items()}, whole=True),
    }
    spoil[damage]()
    before = contents(run)
    for command in ("sample", "eval"):
        assert main([command, str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "ema.safetensors" in line and "repeat the run's `mmfast train` command to write it again" in line
        assert contents(run) == before
    assert again(run, capsys) == (0, [])  # the remedy
    assert_same(run, straight)


def test_the_stats_are_on_the_disk_before_the_state_that_follows_them(run, straight, monkeypatch, capsys):
    for name in (STATE, PREVIOUS):
        (run / name).unlink()
    synced, sync = [], os.fsync

    def spy(handle):
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    assert again(run, capsys) == (0, [])
    sizes = [sum(map(len, (straight / "stats.jsonl").read_bytes().splitlines(keepends=True)[:n])) for n in (2, 4, 6)]
    states = [k for k, (name, _) in enumerate(synced) if name.startswith(f".tmp-mmfast-{STATE}")]
    assert [synced[k - 1] for k in states] == [("stats.jsonl", size) for size in sizes]
