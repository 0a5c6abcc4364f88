"""Runs, configs and data from elsewhere: they are read, and do nothing."""

import faulthandler
import json
import os
import shutil
import struct
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_run import COMMAND, PAIRS, STATE, make
from tiny import flags

from mmfast import config as configs
from mmfast import trust
from mmfast.cli import main
from mmfast.data import folder
from mmfast.errors import MmfastError
from mmfast.files import load_tensors, save_tensors
from mmfast.image_files import load_picture
from mmfast.modalities.embedding import mapped, read_numbers
from mmfast.modalities.label import read_text
from mmfast.run import Run
from mmfast.warm_start import _read as read_adm


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    make(folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported, and whose function gives features: its file."""
    monkeypatch.setattr(trust, "_allowed", set())
    (tmp_path / "code").mkdir()
    sprung = tmp_path / "sprung"
    text = f"open({str(sprung)!r}, 'a').close()\ndef net():\n    return lambda x: x.flatten(1)[:, :8]\n"
    (tmp_path / "code" / "a_trap.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield sprung
    sys.modules.pop("a_trap", None)


def plant(file, key, value):
    """A config with one option set in its file."""
    raw = configs.load_yaml(file.read_text(), "")
    *parents, last = key.split(".")
    part = raw
    for name in parents:
        part = part[name]
    part[last] = value
    file.write_text(json.dumps(raw))  # which is YAML


def error(capsys, *command):
    status, err = main([str(x) for x in command]), capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1, err
    return err


@pytest.mark.slow
def test_the_features_of_a_run_from_elsewhere_need_the_users_word(run, trap, capsys):
    plant(run / "config.yaml", "evaluate.features", "a_trap:net")
    command = ["eval", run, "--samples", "4", "--device", "cpu", "--quiet"]
    assert "evaluate.features is 'a_trap:net'" in (err := error(capsys, *command))
    assert "--allow-code a_trap:net" in err and not trap.exists()
    assert "should be module:function" in error(capsys, *command, "--allow-code", "a_trap")
    error(capsys, *command, "--allow-code", "another:net")
    assert not trap.exists()
    assert main([str(x) for x in [*command, "--allow-code", "a_trap:net"]]) == 0 and trap.exists()


@pytest.mark.slow
def test_features_said_on_the_command_line_are_the_users_word(run, trap):
    assert main(["eval", str(run), "--samples", "4", "--device", "cpu", "--quiet", "--features", "a_trap:net"]) == 0
    assert trap.exists()


def test_a_config_that_names_code_is_refused_before_there_is_a_run(run, trap, tmp_path, capsys):
    file = tmp_path / "theirs.yaml"
    shutil.copy(run / "config.yaml", file)
    plant(file, "evaluate.features", "a_trap:net")
    plant(file, "evaluate.samples", 4)
    assert "--allow-code a_trap:net" in error(capsys, "train", file, "--out", tmp_path / "new", "--quiet")
    assert not trap.exists() and not (tmp_path / "new").exists()


def test_the_network_of_a_modality_needs_the_users_word(run, trap, tmp_path, capsys):
    file = tmp_path / "theirs.yaml"
    shutil.copy(run / "config.yaml", file)
    plant(file, "modalities.emb", {"kind": "embedding", "dim": 2, "network": "a_trap:net"})
    sheet = ["--sheet", tmp_path / "sheet.png", "--quiet"]
    said = main(["check", str(file), *map(str, sheet)]), capsys.readouterr()
    assert said[0] == 2 and "--allow-code a_trap:net" in said[1].out + said[1].err
    err = error(capsys, "train", file, "--out", tmp_path / "new", "--quiet")
    assert "modalities.emb.network is 'a_trap:net'" in err and not trap.exists()
    configs.load(str(file), [("modalities.emb", "{kind: embedding, dim: 2, network: a_trap:net}")])
    trust.check_code("modalities.emb.network", "a_trap:net")  # it was said in an option


@pytest.mark.slow
def test_nothing_is_written_through_a_link_in_a_run(run, tmp_path, capsys):
    treasure, chest = tmp_path / "treasure", tmp_path / "chest"
    chest.mkdir()
    for name, target in ((".lock", treasure), ("stats.jsonl", treasure), ("samples", chest), ("tensorboard", chest)):
        treasure.write_text("gold\n")
        place, kept = run / name, tmp_path / "kept"
        if place.exists():
            place.rename(kept)
        place.symlink_to(target)
        assert f"{name} is a link" in error(capsys, *COMMAND, "--out", run, "--train.steps", "8")
        assert treasure.read_text() == "gold\n" and not list(chest.iterdir())
        if name == "samples":
            assert "is a link" in error(capsys, "sample", run, "--n", "1", "--device", "cpu", "--quiet")
        place.unlink()
        if kept.exists():
            kept.rename(place)
    shutil.copy(run / "trainer.safetensors", treasure)
    before = treasure.read_bytes()
    names = ("trainer.safetensors", "model.safetensors", "ema.safetensors")
    for name in names:
        (run / name).unlink()
        (run / name).symlink_to(treasure)
    assert main([*COMMAND, "--out", str(run), "--train.steps", "8"]) == 0
    assert treasure.read_bytes() == before and not any((run / name).is_symlink() for name in names)


def test_stats_are_not_appended_through_a_link_planted_meanwhile(tmp_path):
    (tmp_path / "treasure").write_text("gold\n")
    (tmp_path / "stats.jsonl").symlink_to(tmp_path / "treasure")
    with pytest.raises(MmfastError, match="cannot be written to"):
        Run(tmp_path).append_stats("{}\n")
    assert (tmp_path / "treasure").read_text() == "gold\n"


def test_a_lock_is_not_emptied(run):
    os.link(run / "config.yaml", run / "twin")
    (run / ".lock").unlink(missing_ok=True)
    os.link(run / "twin", run / ".lock")  # a hard link cannot be told from a file
    before = (run / "twin").read_bytes()
    assert main([*COMMAND, "--out", str(run)]) == 0
    assert (run / "twin").read_bytes() == before


def test_only_what_mmfast_left_half_written_is_cleared_away(run, tmp_path):
    mine = [run / ".tmp-notes", run / ".tmp-mmfast-notes", run / "own" / ".tmp-mmfast-x.png-abcdefg1.png"]
    (run / "own").mkdir()
    for file in mine:
        file.write_text("mine")
    ours = [run / ".tmp-mmfast-trainer.safetensors-ab12_x9z.safetensors", run / "samples" / ".tmp-mmfast-a.b-ab12_x9z",
            run / "states" / ".tmp-mmfast-step-0000002.safetensors-ab12_x9z.safetensors"]  # fmt: skip
    (run / "states").mkdir()
    for file in ours:
        file.write_text("half")
    link = run / ".tmp-mmfast-ema.safetensors-abcdefgh.safetensors"
    link.symlink_to(mine[0])
    assert main([*COMMAND, "--out", str(run)]) == 0
    assert all(file.read_text() == "mine" for file in mine) and link.is_symlink()
    assert not any(file.exists() for file in ours)


def safetensors_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_headers_of_tensors_are_bounded(tmp_path):
    file = tmp_path / "x.safetensors"
    entry = lambda a, b, n=1: {"dtype": "F32", "shape": [n], "data_offsets": [a, b]}  # noqa: E731
    wrong = {
        "longer than the file": ({}, b"", 2**33),
        "overlapping": ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(8), None),
        "out of range": ({"a": entry(0, 4 * 10**12, 10**12)}, bytes(4), None),
        "backwards": ({"a": entry(4, 0)}, bytes(4), None),
        "metadata": ({"__metadata__": {"mmfast": "[" + "{}," * 2**21 + "{}]"}}, b"", None),
    }
    for header, data, length in wrong.values():
        safetensors_file(file, header, data, length)
        with pytest.raises(MmfastError, match="truncated or damaged") as found:
            load_tensors(file)
        assert "\n" not in str(found.value)
    with open(file, "wb") as sparse:  # it does have the gigabytes that it claims
        sparse.write(struct.pack("<Q", 2**33))
        sparse.truncate(2**34)
    with pytest.raises(MmfastError, match="33554432 is the most"):
        load_tensors(file)
    save_tensors(file, {"a": torch.ones(2)}, {"stats": "x" * 2**20})
    assert load_tensors(file)[1]["stats"] == "x" * 2**20
    save_file({"a": torch.ones(1)}, file, {"mmfast": "{}"})
    assert load_tensors(file)[1] == {}


def test_headers_of_numbers_are_bounded(tmp_path, monkeypatch):
    file = tmp_path / "x.npy"
    with open(file, "wb") as sparse:
        sparse.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))
        sparse.truncate(2**33)
    monkeypatch.setattr(np, "load", None)  # nothing of it is read
    with pytest.raises(MmfastError, match="header should be at most 10000"):
        read_numbers(file, (4,))
    monkeypatch.undo()
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    with pytest.raises(MmfastError):
        read_numbers(file, (4,))
    with open(file, "wb") as whole:
        np.lib.format.write_array(whole, np.arange(4.0), version=(2, 0))
    assert mapped(file).tolist() == [0, 1, 2, 3]


def in_time(call):
    """What a call raises, which has to come at once: a pipe that nobody writes to is waited for otherwise."""
    found = []

    def run():
        try:
            call()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)  # where it hangs
    assert not thread.is_alive(), "it hangs"
    (error,) = found
    assert isinstance(error, MmfastError) and "\n" not in str(error)
    return str(error)


READERS = {
    "tensors": load_tensors,
    "picture": load_picture,
    "numbers": lambda path: read_numbers(path, (4,)),
    "label": read_text,
    "adm": read_adm,
    "config": lambda path: configs.load(str(path)),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_an_error_at_once(reader, tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    link = tmp_path / "zero.yaml"
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        assert "file" in in_time(lambda path=path: READERS[reader](path))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_in_a_run(run, capsys):
    for name in ("config.yaml", "stats.jsonl", "metrics.json", ".lock", STATE):
        kept = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
        if name == "metrics.json":
            pairs = [*PAIRS, ("evaluate.samples", "2")]
            found = in_time(lambda pairs=pairs: main_or_raise(["train", "digits", "--quiet", *flags(pairs)], run))
        elif name in (".lock", STATE):  # the one is never read, and the other has one before it
            assert main([*COMMAND, "--out", str(run)]) == 0
            assert name == ".lock" or f"{STATE} cannot be read: it is a pipe" in capsys.readouterr().err
            continue
        else:
            found = in_time(lambda: main_or_raise(COMMAND, run))
        assert "pipe" in found, name
        (run / name).unlink()
        if kept is not None:
            (run / name).write_bytes(kept)


def main_or_raise(command, run):
    from mmfast.cli import COMMANDS, parser
    from mmfast.ranks import ALONE

    args, rest = parser().parse_known_args([*command, "--out", str(run)])
    args.ranks = ALONE
    COMMANDS["train"].run(args, rest)


def test_a_config_is_not_read_beyond_a_length(tmp_path):
    with open(tmp_path / "x.yaml", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(MmfastError, match="more than 4194304 bytes"):
        configs.load(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("where", ["../secret", "/etc", "image/../../secret", ".."])
def test_folders_of_data_lie_below_its_root(where, tmp_path):
    modalities = configs.load("digits").modalities
    (tmp_path / "root").mkdir()
    spec = folder.Spec(root=str(tmp_path / "root"), folders={"image": where})
    with pytest.raises(MmfastError, match=r"leads out of data.root.*--data.outside true"):
        folder.look(spec, modalities, "image")
    spec.outside = True
    assert "holds no image files" in folder.look(spec, modalities, "image").problems[0]
