"""data.on_error: what cannot be read stops training, its state saved, or is left out, counted, named and replaced."""

import copy as copies
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast.cli import main
from mmfast.data import folder
from mmfast.data.base import InMemory
from mmfast.data.skipping import Skipping
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.guess import DRAFT
from mmfast.survey import survey
from mmfast.training import train

SIZE, COUNT = 4, 12
MODALITIES = {"image": {"kind": "image", "channels": 1, "size": SIZE}, "label": {"kind": "label", "classes": 12}}
FEW = {
    "train": {"steps": 6, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu", "log_every": 1},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}


@pytest.fixture
def root(tmp_path):
    """Example k is a picture of the grey k, with the label k."""
    root = tmp_path / "data"
    for name in ("image", "label"):
        (root / name).mkdir(parents=True)
    for k in range(COUNT):
        Image.fromarray(np.full((SIZE, SIZE), k, np.uint8)).save(root / "image" / f"{k:02}.png")
        (root / "label" / f"{k:02}.txt").write_text(str(k))
    return root


def config(root, on_error="skip", gb=0.0, **more):
    data = {"kind": "folder", "root": str(root), "on_error": on_error, "cache_gb": gb, "test_fraction": 0.2}
    return configs.from_plain({**DRAFT, **FEW, "data": data, "modalities": MODALITIES, **more}, "x")


def opened(root, on_error="skip"):
    return folder.open(config(root, on_error).data, config(root).modalities, "image")


def greys(batch):
    return [round(float(x)) for x in (batch.data["image"][:, 0, 0, 0] + 1) * 127.5]


class Some(InMemory):
    """Numbers, of which some cannot be read."""

    bad = frozenset()

    def __getitems__(self, rows):
        for row in rows:
            if row in self.bad:
                raise MmfastError(f"file {row} is damaged")
        return super().__getitems__(rows)


def test_what_is_known_of_the_examples_goes_with_them_to_another_process():
    part = Skipping(Some({"x": torch.arange(5)}))
    part.examples.stems = ["a", "b"]
    part.unreadable[3] = True
    for copy in (pickle.loads(pickle.dumps(part)), copies.copy(part)):
        assert copy.unreadable.tolist() == [False, False, False, True, False] and copy.unreadable.dtype == torch.bool
        assert copy.stems == ["a", "b"] and copy.__getitems__([3]).data["x"].tolist() == [4] and copy.reason(0) == ""
    assert "tensor" not in repr(Skipping("others' examples"))
    with pytest.raises(AttributeError):
        part.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("bad", "expected"),
    [({}, [0, 1, 2, 3, 4]), ({1}, [0, 2, 2, 3, 4]), ({1, 2}, [0, 3, 3, 3, 4]), ({4, 0}, [1, 1, 2, 3, 1])],
)
def test_the_next_that_can_be_read_takes_the_place(capsys, bad, expected):
    examples = Some({"x": torch.arange(5)})
    examples.bad = bad
    part = Skipping(examples)
    assert len(part) == 5
    for _ in range(2):
        assert part.__getitems__([0, 1, 2, 3, 4]).data["x"].tolist() == expected
        assert part.__getitems__([4, 1]).data["x"].tolist() == [expected[4], expected[1]]
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(" is damaged; it is left out")[0] for line in lines) == [
        f"mmfast: file {k}" for k in sorted(bad)
    ]


def test_where_nothing_can_be_read_it_is_an_error():
    examples = Some({"x": torch.arange(3)})
    examples.bad = {0, 1, 2}
    with pytest.raises(MmfastError, match=r"no example can be read, .* file . is damaged"):
        Skipping(examples).__getitems__([0, 1])


def harm(root, k):
    (root / "image" / f"{k:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def test_check_and_train_count_and_name_what_is_left_out(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = opened(root).train
    bad = [int(part.stems[1]), int(part.stems[4])]
    for k in bad:
        harm(root, k)
    found = survey(config(root))
    assert not found.wrong and len(found.unreadable) == 2 and found.train + found.test == COUNT
    assert all(f"{k:02}.png cannot be read" in " ".join(found.unreadable) for k in bad)
    assert found.seen["label"].there == COUNT - 2 and all(found.seen["label"].classes[str(k)] == 0 for k in bad)
    assert [line.split(" cannot")[0][-6:] for line in survey(config(root, "stop")).wrong] == [
        f"{k:02}.png" for k in sorted(bad)
    ]
    file = tmp_path / "x.yaml"
    data = {"kind": "folder", "root": "data", "on_error": "skip", "test_fraction": 0.2}
    file.write_text(json.dumps({**DRAFT, **FEW, "data": data, "modalities": MODALITIES}))
    assert main(["check", "x.yaml", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be read: 2 examples, left out by data.on_error: skip" in shown and "nothing is wrong" in shown
    assert main(["train", "x.yaml", "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "2 of the examples cannot be read, and others take their places" in out
    for k in bad:
        assert out.count(f"{k:02}.png cannot be read") == 1
        assert err.count(f"{k:02}.png cannot be read") == 1  # when it is met
    assert main(["train", "x.yaml", "--out", "other", "--data.on_error", "stop"]) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_is_damaged_during_training_ends_it_or_not(root, tmp_path, capfd, workers, monkeypatch):
    """After the second step. With `stop` what was learnt until then is kept, and goes on where the file is mended."""
    from mmfast.training import trainer as trainers

    more = {"train": {**FEW["train"], "workers": workers, "steps": 12}}
    train(config(root, "stop", **more), str(tmp_path / "straight"), quiet=True)
    step, bad = trainers.Trainer.step, int(opened(root).train.stems[3])
    path = root / "image" / f"{bad:02}.png"
    content = path.read_bytes()

    def harming(self, *args):
        step(self, *args)
        if self.done == 2:
            harm(root, bad)

    monkeypatch.setattr(trainers.Trainer, "step", harming)
    train(config(root, **more), str(tmp_path / "skips"), quiet=True)
    assert capfd.readouterr().err.count(f"{bad:02}.png cannot be read") == 1  # workers say it once, too
    assert load_tensors(tmp_path / "skips" / "trainer.safetensors")[1]["step"] == 12
    path.write_bytes(content)
    with pytest.raises(MmfastError, match=f"{bad:02}.png cannot be read"):
        train(config(root, "stop", **more), str(tmp_path / "stops"), quiet=True)
    done = load_tensors(tmp_path / "stops" / "trainer.safetensors")[1]["step"]
    assert 2 <= done < 12
    monkeypatch.setattr(trainers.Trainer, "step", step)
    shutil.copytree(tmp_path / "stops", tmp_path / "goes on")
    with pytest.raises(MmfastError, match=f"1 file altered .image/{bad:02}.png"):  # which is said first
        train(config(root, **more), str(tmp_path / "goes on"), quiet=True)
    train(config(root, **more), str(tmp_path / "goes on"), quiet=True, allow_changed_data=True)  # without it
    path.write_bytes(content)
    train(config(root, "stop", **more), str(tmp_path / "stops"), quiet=True)
    for one, other in (("straight", "stops"), ("skips", "goes on")):
        (a, _), (b, _) = (load_tensors(tmp_path / name / "model.safetensors") for name in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_places_of_the_others_do_not_move(root):
    """So that a run goes on alike, whenever a file turns out to be damaged."""
    before = opened(root).train
    rows = list(range(len(before)))
    whole = greys(before.__getitems__(rows))
    harm(root, whole[2])
    after = opened(root).train
    assert after.stems == before.stems
    assert greys(after.__getitems__(rows)) == [*whole[:2], whole[3], *whole[3:]]
    assert after.__getitems__(rows).data["label"].tolist() == greys(after.__getitems__(rows))
    with pytest.raises(MmfastError, match=f"{whole[2]:02}.png"):
        opened(root, "stop").train.__getitems__(rows)
