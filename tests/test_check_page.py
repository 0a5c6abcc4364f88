"""The page of `mmfast check`, line by line, of a survey made by hand; and what of it training begins with."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace as Some

import pytest
import torch

from mmfast import config as configs
from mmfast import survey as surveys
from mmfast.cli import check, main
from mmfast.data import Batch, Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.survey import Seen, Survey, join

KINDS = {
    "photo": {"kind": "image", "channels": 3, "size": [8, 12]},
    "mask": {"kind": "mask", "classes": 2, "size": [8, 12]},
    "label": {"kind": "label", "classes": 14},
    "vector": {"kind": "embedding", "dim": 4},
    "hidden": {"kind": "masked", "channels": 1, "size": [8, 12]},
}


def config(**kinds):
    return configs.from_plain({**DRAFT, "anchor": "photo", "data": {"kind": "digits"}, "modalities": kinds}, "x")


@pytest.fixture
def found():
    seen = {
        "photo": Seen(1200, 0, formats=Counter({"PNG RGB": 1100, "JPEG RGB": 90, "BMP L": 6, "GIF P": 3, "WEBP L": 1}),
                      sizes=Counter({(12, 8): 1150, (640, 480): 50})),
        "mask": Seen(900, 300, Counter({"0": 3, "1": 1})),
        "label": Seen(1200, 0, Counter({str(k): 100 - k for k in range(14)})),
        "vector": Seen(0, 0),
    }  # fmt: skip
    found = Survey(config(**KINDS), 1000, 200, seen=seen)
    paths = [Path(f"{k}.png") for k in range(1500)]
    found.odd = {("photo", "grey"): paths[:2], ("mask", "turned"): paths}
    found.left_out = {"no folder of a modality": paths[:3]}
    found.notes = ["one", "two"]
    return found


def test_the_page(found):
    labels = ", ".join(f"{k} {100 - k}" for k in range(12))
    assert check.page(found, "my/data") == [
        "my/data: 1,200 examples, 200 (17 per cent) of them held out; read as",
        "  photo   image, colour, 8 x 12 (height x width): 1,200 of 1,200 examples (the anchor)",
        "          files: PNG RGB 1,100, JPEG RGB 90, BMP L 6, GIF P 3 and 1 more; 12 x 8 1,150, 640 x 480 50",
        "  mask    mask, 8 x 12 (height x width), 2 classes: 900 of 1,200 examples",
        "          classes, per cent of the pixels: 0 75.0, 1 25.0",
        "  label   label, 14 classes: 1,200 of 1,200 examples",
        f"          classes: {labels} and 2 more",
        "  vector  embedding, 4 numbers: not read",
        "  hidden  masked, 8 x 12 (height x width): made from the rest",
        "",
        "unusual files, and how they are handled",
        "  photo: 2 grey (0.png, 1.png)",
        "  mask: 1,500 turned (0.png, 1.png, ...)",
        "",
        "left out",
        "  3 no folder of a modality: 0.png, 1.png, ...",
        "",
        "note",
        "  one",
        "  two",
        "",
        "nothing is wrong: this can be trained on",
    ]


def test_the_page_where_training_would_stop(found):
    found.odd, found.left_out, found.notes = {}, {}, []
    found.wrong, found.unreadable = [f"wrong {k}" for k in range(20)], [f"bad {k}" for k in range(1021)]
    assert check.page(found, "x")[9:] == [
        "",
        "cannot be read: 1,021 examples, left out by data.on_error: skip",
        *(f"  bad {k}" for k in range(20)),
        "  and 1,001 more",
        "",
        "wrong: training would stop",
        *(f"  wrong {k}" for k in range(20)),
    ]


def test_the_page_of_nothing_that_can_be_read():
    found = Survey(config(photo={"kind": "image", "channels": 1, "size": 8}), wrong=["no folder"])
    assert check.page(found, "x") == ["  photo  image, grey, 8 x 8", "", "wrong: training would stop", "  no folder"]
    found.seen["photo"] = Seen(3, 0, Counter({f"c{k:02}": 0 for k in range(15)}))  # as of a mask that counts nowhere
    shown = ", ".join(f"c{k:02} 0.0" for k in range(12))
    assert check.page(found, "x")[1] == f"         classes, per cent of the pixels: {shown} and 3 more"


def test_classes_that_no_example_has():
    found = Survey(config(photo=KINDS["photo"]))
    found.seen = {
        "label": Seen(3, 0, Counter({f"c{k}": int(k == 4) for k in range(12)})),
        "mask": Seen(0, 3, Counter({"0": 0})),
        "other": Seen(3, 0, Counter({"a": 1, "b": 0})),
    }
    trained = {"label": Counter({"c4": 1}), "mask": Counter({"0": 0})}
    assert surveys._empty_classes(found, trained) == [
        "label: no example has c0, c1, c2, c3, c5, c6, c7, c8 and 3 more, of 12 classes",
        "other: no example has b, of 2 classes",
        "other: only held-out examples have a, of 2 classes; training never sees them",
    ]


class Bad(InMemory):
    """The examples whose number is a multiple of `every` cannot be read."""

    every = 2

    def __getitems__(self, rows):
        for row in rows:
            if row % self.every == 0:
                raise MmfastError(f"example {row} is damaged")
        return super().__getitems__(rows)


@pytest.mark.parametrize(("count", "more"), [(20, 0), (22, 1), (4002, 1991)])
def test_training_begins_with_what_cannot_be_read(count, more, monkeypatch):
    monkeypatch.setattr(surveys, "check_batch", lambda model, batch: None)
    monkeypatch.setattr(surveys, "AT_ONCE", 4096)
    examples = Bad({"x": torch.zeros(count)})
    lines = surveys._unreadable(Data(examples, InMemory({"x": torch.zeros(5)})), None)
    bad = count // 2
    assert lines[0] == (f"{bad:,} of the examples cannot be read, and others take their places (data.on_error: skip)")
    assert lines[1:11] == [f"example {k} is damaged" for k in range(0, 20, 2)]
    assert lines[11:] == ([f"and {more:,} more"] if more else [])
    assert surveys._unreadable(Data(InMemory({"x": torch.zeros(5)}), InMemory({"x": torch.zeros(5)})), None) == []


def test_what_can_be_read_is_read_once_and_in_order(monkeypatch):
    monkeypatch.setattr(surveys, "check_batch", lambda model, batch: None)
    examples, wrong = Bad({"x": torch.arange(150)}), []
    examples.every = 7
    read = [x for batch in surveys._batches(examples, None, wrong) for x in batch.data["x"].tolist()]
    assert read == [k for k in range(150) if k % 7] and len(wrong) == 22 and wrong[1] == "example 7 is damaged"


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_reading_has_a_bar_on_a_terminal_alone(monkeypatch, terminal, quiet):
    asked = []

    class Bar:
        def __init__(self, *args, quiet):
            asked.append((*args, quiet))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, count):
            asked.append(count)

    monkeypatch.setattr(surveys, "Bar", Bar)
    monkeypatch.setattr(surveys, "on_terminal", lambda: terminal)
    monkeypatch.setattr(surveys, "check_batch", lambda model, batch: None)
    found = Survey(None)
    surveys._read(found, InMemory({"x": torch.arange(70)}), Some(parts={}), [], quiet)
    assert asked == [(70, "reading", "example", quiet or not terminal), 64, 6]
    assert (found.seen["x"].there, found.seen["x"].missing) == (70, 0)


def test_batches_joined_know_who_has_what():
    one = Batch({"x": torch.arange(2), "y": torch.arange(2)}, {"x": torch.tensor([True, False])})
    two = Batch({"x": torch.arange(3), "y": torch.arange(3)}, {"y": torch.tensor([False, True, True])})
    found = join([one, two])
    assert {name: x.tolist() for name, x in found.data.items()} == {"x": [0, 1, 0, 1, 2], "y": [0, 1, 0, 1, 2]}
    assert {name: x.tolist() for name, x in found.present.items()} == {
        "x": [True, False, True, True, True],
        "y": [True, True, False, True, True],
    }
    assert join([Batch({"x": torch.arange(2)})]).present == {}


def test_the_sheet_is_of_examples_from_all_over(monkeypatch):
    drawn = {}
    model = Some(parts={"x": "part"}, part=lambda name: name, complete=lambda batch, seed, ids: drawn.update(
        completed=(seed, ids.tolist())) or batch)  # fmt: skip
    monkeypatch.setattr(surveys, "check_batch", lambda model, batch: None)
    monkeypatch.setattr(surveys, "sample_grid", lambda parts, data, title, present: drawn.update(
        parts=parts, data=data, title=title) or "sheet")  # fmt: skip
    found = Survey(Some(seed=3))
    assert surveys._sheet(found, InMemory({"x": torch.arange(40), "no part": torch.arange(40)}), model) == "sheet"
    assert drawn["data"]["x"].tolist() == [k * 40 // 16 for k in range(16)] and [*drawn["data"]] == ["x"]
    assert drawn["title"] == "16 of 40 examples, as the model will see them"
    assert drawn["completed"] == (3, [*range(16)])
    surveys._sheet(found, InMemory({"x": torch.arange(3)}), model)
    assert drawn["data"]["x"].tolist() == [0, 1, 2]
    every = Bad({"x": torch.arange(3)})
    every.every = 1
    assert surveys._sheet(found, every, model) is None


def test_check_hands_on_what_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []
    found = Survey(config(photo=KINDS["photo"]), 1, 1, notes=["of the survey"])

    def survey(config, quiet):
        calls.append((config.data.root, config.data.outside, config.train.steps, quiet))
        found.notes = ["of the survey"]
        return found

    def guess(data, most, outside):
        calls.append((data, most, outside))
        return Some(anchor="photo", modalities={"photo": KINDS["photo"]}, notes=["a.txt is nothing"],
                    remarks=["of splits"], data=lambda: {"kind": "folder", "root": data})  # fmt: skip

    monkeypatch.setattr("mmfast.survey.survey", survey)
    monkeypatch.setattr("mmfast.guess.guess", guess)
    monkeypatch.setattr("mmfast.guess.most_pixels", lambda: 999)
    Path("data").mkdir()
    assert main(["check", "data", "--quiet", "--train.steps", "7", "--data.outside", "TRUE"]) == 0
    assert calls == [("data", 999, True), (str(tmp_path / "data"), True, 7, True)]
    assert "  a.txt is nothing; left out\n  of splits\n  of the survey\n" in capsys.readouterr().out
    main(["check", "data"])
    assert calls[2:] == [("data", 999, False), (str(tmp_path / "data"), False, calls[3][2], False)]
    found.wrong = ["all of it"]
    assert main(["check", "data", "--sheet", "x.txt"]) == 2 and "it should end in .png or .jpg or .jpeg" in (
        capsys.readouterr().err
    )
    assert main(["check", "data"]) == 2 and main(["check", "no"]) == 2
    assert capsys.readouterr().err.startswith(
        "mmfast: error: 'no' is not a folder; it should be a folder, a .yaml or .csv file"
    )


def test_no_sheet_is_written_among_the_data(tmp_path, monkeypatch, capsys):
    def beside(config, what, place):
        raise MmfastError(f"{what} is {place}, among the data")

    monkeypatch.chdir(tmp_path)
    found = Survey(config(photo=KINDS["photo"]), sheet=Some(save=lambda file: pytest.fail("written")))
    monkeypatch.setattr("mmfast.survey.survey", lambda config, quiet: found)
    monkeypatch.setattr("mmfast.build.check_beside_data", beside)
    assert main(["check", "digits"]) == 0
    assert capsys.readouterr().out.endswith("\n\nno contact sheet: --sheet is check-digits.png, among the data\n")
    assert main(["check", "digits", "--sheet", "x.png"]) == 2
    assert capsys.readouterr().err == "mmfast: error: --sheet is x.png, among the data\n"
