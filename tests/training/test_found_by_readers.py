"""Faults of the training that readers found: each by what it did."""

import os
from types import SimpleNamespace

import pytest
import torch
from test_trainer import Known, data
from tiny import tiny

from mmfast import MmfastError
from mmfast import config as configs
from mmfast import run as runs
from mmfast.build import build_data, files_of
from mmfast.cli import main
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import loop
from mmfast.training.log import WandB
from mmfast.training.loop import fit

SMALL = {"train__steps": 6, "train__decay": "constant", "train__log_every": 1, "train__checkpoint_every": 1000}


def table(folder, change=0, columns="x,y,label", more=""):
    file = folder / "t.csv"
    rows = "".join(f"{k},{k * k % 7 + change * (k == 333)},{'ab'[k % 2]}{more}\n" for k in range(600))
    file.write_text(f"{columns}\n{rows}")
    (folder / "my.yaml").write_text(
        f"anchor: row\ndata: {{kind: table, source: {file}}}\nbackbone: {{kind: mlp, width: 8, blocks: 1}}\n"
        "modalities:\n  row: {kind: table}\n  label: {kind: label, classes: 2}\n"
    )
    few = ["--schedule.T", "10", "--evaluate.samples", "0", "--sample.steps", "1", "--train.decay", "constant"]
    return ["train", str(folder / "my.yaml"), "--out", str(folder / "run"), "--quiet", *few, "--train.steps"]


@pytest.mark.slow
def test_one_cell_of_a_table_that_changed_is_a_change_of_the_data(tmp_path, capsys):
    command = table(tmp_path)
    assert main([*command, "1"]) == 0
    assert files_of(configs.load(str(tmp_path / "my.yaml"))) == {"t.csv": tmp_path / "t.csv"}
    table(tmp_path, change=1)
    assert main([*command, "2"]) == 2 and "the data has changed since the run" in capsys.readouterr().err
    table(tmp_path, columns="x,y,label,z", more=",5")
    assert (
        main([*command, "2"]) == 2
        and "holds a run with another config (modalities.row.columns" in capsys.readouterr().err
    )


def test_pictures_that_fail_keep_what_was_learnt(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MmfastError("b.png is damaged")

    monkeypatch.setattr(loop, "sample_run", fails)
    with pytest.raises(MmfastError, match=r"b\.png is damaged"):
        fit(tiny(**SMALL, train__sample_every=3), str(tmp_path / "run"), data(), Known(), quiet=True)
    assert Run.open(tmp_path / "run").load_state()[1]["step"] == 3


@pytest.mark.slow
def test_a_best_average_that_could_not_be_written_is_written_by_the_next_command(tmp_path, monkeypatch):
    options = {**SMALL, "train__validate_every": 2, "train__validate_examples": 24}
    whole = fit(tiny(**options), str(tmp_path / "whole"), build_data(tiny()), quiet=True)
    folder, real, full = tmp_path / "run", runs.save_tensors, []

    def save(path, tensors, metadata):
        if path.name == "ema.best.safetensors" and metadata["step"] == 4 and not full:
            full.append(path)
            raise OSError(28, "No space left on device")
        real(path, tensors, metadata)

    monkeypatch.setattr(runs, "save_tensors", save)
    with pytest.raises(MmfastError, match="No space left"):
        fit(tiny(**options), str(folder), build_data(tiny()), quiet=True)
    again = fit(tiny(**options), str(folder), build_data(tiny()), quiet=True)
    assert full and again.best == whole.best
    assert again.run.stats_file.read_bytes() == whole.run.stats_file.read_bytes()
    (a, about), (b, wanted) = (load_tensors(f / "ema.best.safetensors") for f in (folder, whole.run.folder))
    assert about == wanted and all(torch.equal(x, b[name]) for name, x in a.items())


def test_what_is_no_identity_is_not_sent_to_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", SimpleNamespace(init=lambda **how: pytest.fail("sent")))
    secret = tmp_path / "secret"
    secret.write_text("password1")
    for make in (lambda f: f.symlink_to(secret), lambda f: f.write_text("two words\nand more")):
        kept = tmp_path / "wandb.id"
        kept.unlink(missing_ok=True)
        make(kept)
        with pytest.raises(MmfastError, match=r"wandb\.id does not hold a run's ID; remove it"):
            WandB(tmp_path, tiny(), 0)


def test_a_batch_beyond_the_memory_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(MmfastError, match=r"train\.batch_size asks for 1,000,000,000,000 samples"):
        fit(tiny(train__batch_size=10**12), str(tmp_path / "run"), build_data(tiny()), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_path_that_weights_cannot_be_read_from_is_refused(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9")
    with pytest.raises(MmfastError, match="is not UTF-8, so no weights could be read from there"):
        fit(tiny(train__steps=1), folder, build_data(tiny()), quiet=True)
    assert not os.path.exists(folder)
