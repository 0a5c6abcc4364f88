"""A run in Python: values of every kind become x, and samples are what generate draws."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_run import MASK, NAMES, PHOTO, SIZE, VECTOR, X, make
from PIL import Image

import mmfast
from mmfast import MmfastError
from mmfast.cli import main
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.generate import generate
from mmfast.given import Several


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make(tmp_path_factory.mktemp("loaded"))


@pytest.fixture(scope="module")
def run(place):
    return mmfast.load(place / "run", "cpu")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


FORMS = {
    "label": ["dogs", "1", 1, np.int64(1), torch.tensor(1), np.array(1, np.uint8), Path("label.txt"), [1, "dogs"]],
    "photo": ["photo.png", Path("photo.png"), PHOTO, Image.fromarray(PHOTO), X["photo"], X["photo"].double().numpy()],
    "mask": ["mask.png", Path("mask.png"), MASK, Image.fromarray(MASK), X["mask"], X["mask"].to(torch.int8)],
    "embedding": ["embedding.npy", Path("embedding.npy"), VECTOR, X["embedding"], VECTOR.astype(np.float64)],
}
FORMS["photo"] += [[PHOTO, "photo.png"], X["photo"].expand(2, -1, -1, -1), Image.fromarray(PHOTO).convert("RGBA")]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_value_is_the_same_x(name, run, place, monkeypatch):
    monkeypatch.chdir(place)
    for value in FORMS[name]:
        drawn = run.sample(2, **{name: value}, steps=1)
        assert len(drawn) == 2 and drawn.given == (name,), value
        torch.testing.assert_close(drawn.data[name], X[name].expand(2, *X[name].shape), atol=1e-6, rtol=0)


def test_a_picture_is_turned_as_its_exif_data_says(run):
    turned, exif = Image.fromarray(np.rot90(PHOTO)), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to stand upright
    turned.getexif().update(exif)
    torch.testing.assert_close(run.sample(1, photo=turned, steps=1).data["photo"][0], X["photo"])
    assert np.array_equal(np.asarray(turned), np.rot90(PHOTO))  # the caller's is as it was


def test_hidden_parts_are_transparent(run):
    seen = np.array([[1, 1, 0, 0]] * SIZE, np.uint8)
    picture = Image.fromarray(np.dstack((PHOTO, seen * 255)))
    drawn = run.sample(1, hidden=picture, steps=1)
    assert torch.equal(drawn.data["hidden"][0, 3], torch.tensor(seen).float())
    torch.testing.assert_close(drawn.data["hidden"][0, :3], X["photo"])
    shown = np.asarray(drawn["hidden"][0])
    assert np.array_equal(shown[..., 3], seen * 255) and np.array_equal(shown[:, :2, :3], PHOTO[:, :2])


def test_samples_are_what_generate_draws(run):
    drawn = run.sample(3, label="dogs", seed=5, steps=2, guidance_scale=1.5, sampler="ddim")
    label = {"label": torch.tensor([1])}
    truth = generate(run.model, run.config, 3, label, seed=5, steps=2, guidance_scale=1.5, sampler="ddim")
    assert same(drawn.data, truth)
    assert same(run.sample(3, given={"label": 1}, label=None, seed=5).data, run.sample(3, seed=5, label=1).data)
    assert same(run.sample(2).data, generate(run.model, run.config, 2, seed=0))


def test_how_many_there_are(run):
    few = {"steps": 1}
    assert len(run.sample(**few)) == 16 and len(run.sample(label=[0, 1, 2], **few)) == 3
    assert len(run.sample(label="cats,owls", **few)) == 8 and len(run.sample(label="all", n=2, **few)) == 6
    assert run.sample(label="all", n=2, **few).labels == ["cats", "cats", "dogs", "dogs", "owls", "owls"]


def test_a_row_for_each_value_is_what_the_value_alone_draws(run):
    rows = run.sample(3, label="cats,owls", seed=2, photo="data")
    alone = [run.sample(3, label=k, seed=2, photo="data").data for k in (0, 2)]
    for name, x in rows.data.items():  # in another batch: but for rounding
        torch.testing.assert_close(x, torch.cat([one[name] for one in alone]), atol=1e-5, rtol=0)
    assert rows.ids == [0, 1, 2, 0, 1, 2] and rows.columns == 3
    # As wide as three, and as high as two: the height of a row is what a third adds.
    heights = [run.sample(3, label=text, steps=1).grid().height for text in ("cats,owls", "all")]
    one = run.sample(3, label=0, steps=1).grid().height
    assert heights[1] - heights[0] == heights[0] - one > 60


def test_held_out_examples_are_given(run, place):
    drawn = run.sample(1, photo="data", steps=1)
    files = (place / "data/photo").rglob("*.png")
    truth = [torch.tensor(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 127.5 - 1 for file in files]
    assert any(torch.allclose(drawn.data["photo"][0], x, atol=1e-6) for x in truth)


def test_held_out_examples_are_of_all_classes(run):
    """Of 60 in the order of their classes the first nine are of all three, and are the same each time."""
    tensors = {name: torch.stack([x] * 60) for name, x in X.items()} | {"label": torch.arange(60) // 20}
    other = dataclasses.replace(run)
    other.data = Data(InMemory(tensors), InMemory(tensors))
    labels = [other.sample(9, label="data", steps=1).labels for _ in range(2)]
    assert {*labels[0]} == {*NAMES} and labels[0] == labels[1]


def test_held_out_examples_that_repeat_are_said_to(run, capsys):
    tensors = {name: torch.stack([x] * 3) for name, x in X.items()}
    other = dataclasses.replace(run)
    other.data = Data(InMemory(tensors), InMemory(tensors))
    other.sample(3, label="data", steps=1, progress=False)
    assert "held-out" not in capsys.readouterr().err
    other.sample(4, label="data", steps=1, progress=False)
    said = "mmfast: label=data: there are 3 held-out examples for 4 samples, so they repeat\n"
    assert said in capsys.readouterr().err


def test_a_class_called_data_is_that_class(run, monkeypatch):
    part = run.model.part("label")
    monkeypatch.setattr(part, "spec", dataclasses.replace(part.spec, names=["cats", "data", "owls"]))
    drawn = run.sample(2, label="data", steps=1)
    assert drawn.data["label"].tolist() == [1, 1] and not drawn.truth


def test_beside_what_is_drawn_stands_what_the_examples_have(run, place):
    """A mask and a photo of one name belong together; several values repeat them. Of a file nothing is known."""
    photos, masks = ([*(place / "data" / kind).rglob("*.png")] for kind in ("photo", "mask"))
    by_name = {path.stem: torch.tensor(np.asarray(Image.open(path)).astype(np.int64)) for path in masks}
    pixels = {path.stem: np.asarray(Image.open(path)) for path in photos}
    drawn = run.sample(2, photo="data", label="cats,owls", steps=1)
    assert drawn.truth.keys() == {"mask", "embedding"}  # hidden parts follow from the photo
    for k, x in enumerate(drawn.data["photo"]):
        shown = ((x.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        name = next(name for name, found in pixels.items() if (found == shown).all())
        mask = by_name[name]
        assert torch.equal(drawn.truth["mask"][k], mask.masked_fill(mask == 255, -1))
    assert drawn.grid().width > run.sample(2, photo=place / "photo.png", label="cats,owls", steps=1).grid().width
    assert not run.sample(1, photo=place / "photo.png", steps=1).truth and not run.sample(1, steps=1).truth
    # What is given in part is drawn around what is known, and so has a truth.
    half = np.zeros((SIZE, SIZE), bool)
    half[0] = True
    partly, whole = (run.sample(1, photo=PHOTO, steps=1, **more) for more in ({"known": {"photo": half}}, {}))
    assert torch.allclose(partly.in_part["photo"], X["photo"][None], atol=1e-6) and not whole.in_part
    assert partly.grid().width > whole.grid().width
    assert "photo" in run.sample(1, photo="data", known={"photo": half}, steps=1).truth


def test_a_modality_named_again_has_several_values(run, place, tmp_path):
    """As where commas separate them: each value has its own row, of the same noise."""
    for given, same in ((["label=cats", "label=dogs"], "cats,dogs"), (["label=2", "label=1,0"], "2,1,0")):
        npz = tmp_path / f"{len(given)}{same}.npz"
        argv = [
            "sample",
            str(place / "run"),
            "--given",
            *given,
            "--n",
            "2",
            "--seed",
            "3",
            "--quiet",
            "--npz",
            str(npz),
        ]
        assert main(argv) == 0
        truth, arrays = run.sample(2, label=same, seed=3), np.load(npz)
        assert all(np.array_equal(arrays[name], x.numpy()) for name, x in truth.data.items())
    with pytest.raises(MmfastError, match="label=data is given with other values of label; give it alone"):
        run.sample(1, label=Several(("data", "cats")))
    drawn = run.sample(1, label=Several(("cats", "owls")))
    assert drawn.data["label"].tolist() == run.sample(1, label="cats,owls").data["label"].tolist()
    assert "label=cats, owls" in drawn.title


WRONG = [
    ({"lable": 3}, "argument is 'lable'.*did you mean 'label'"),
    ({"given": {"lable": 3}}, "given's modality is 'lable'.*did you mean 'label'"),
    ({"given": 3}, "given is a int"),
    ({"label": "cat"}, "'cat' is not a label; it should be in 0 .. 2 or one of cats, dogs, owls"),
    ({"label": "cats,,dogs"}, "'' is not a label"),
    ({"label": 3}, "label runs from 3 to 3"),
    ({"label": 1.5}, "label is float32; it should be whole"),
    ({"label": True}, "label is bool"),
    ({"label": []}, "label is a list of 0"),
    ({"label": [0, [0, 1]]}, "label is a list of 2"),
    ({"label": [0, 1, 2]}, "label has 3 values; it should have one, or 2"),
    ({"label": object()}, "label is of type object"),
    ({"label": Image.new("L", (4, 4))}, "label is a picture"),
    ({"label": "all", "mask": "a.png,b.png"}, "a.png"),
    ({"photo": "none.png"}, "none.png does not exist in the current folder, /"),
    ({"photo": PHOTO, "known": {"photo": np.zeros((4, 4), bool)}}, "known photo marks no part of it"),
    ({"known": {"photo": np.ones((4, 4), bool)}}, "known has photo, which is not given; give its value, too"),
    (dict.fromkeys(["photo", "mask", "label", "embedding", "hidden"], "data"), "are all given, so nothing is left"),
    ({"photo": "x" * 5000}, "name too long"),
    ({"photo": np.zeros((4, 4, 5), np.uint8)}, r"photo is uint8 \[4, 4, 5\]"),
    ({"photo": np.full((3, 4, 4), 200)}, "photo runs from 200 to 200"),
    ({"photo": [PHOTO, 3]}, r"photo\[1\] is"),
    ({"mask": Image.new("RGB", (4, 4), "red")}, "mask is a coloured picture"),
    ({"mask": np.full((4, 4), 7, np.uint8)}, "mask holds class 7"),
    ({"embedding": [0.5] * 5}, r"embedding\[0\] is"),
    ({"embedding": np.array(["a"])}, "embedding is of type ndarray"),
    ({"n": 0}, "n is 0"),
    ({"n": "8"}, "n is '8'"),
    ({"seed": -1}, "seed is -1"),
    ({"steps": "3"}, "steps is '3'; it should be a whole number"),
    ({"spacing": "2"}, "spacing is '2'; it should be a number"),
    ({"spacing": 0.5}, "spacing is 0.5; it should lie in 1 .. 10"),
    ({"guidance_scale": "x"}, "guidance_scale is 'x'"),
    ({"label": 1, "guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": {"mask": 2}}, "guidance_scale's modality is 'mask'"),
    ({"first": 3}, "first is 3"),
    ({"sampler": "x"}, "sampler is 'x'"),
]


@pytest.mark.parametrize("arguments, said", WRONG, ids=[said[:30] for _, said in WRONG])
def test_a_mistake_is_one_line(arguments, said, run):
    with pytest.raises(MmfastError, match=said) as error:
        run.sample(**{"n": 2, **arguments})
    assert "\n" not in str(error.value)


def test_several_values_of_two_modalities_go_together(run, place, monkeypatch):
    monkeypatch.chdir(place)
    drawn = run.sample(1, label="cats,owls", photo="photo.png,data/photo/cats/0.png", steps=1)
    assert drawn.labels == ["cats", "owls"] and len(drawn) == 2
    with pytest.raises(MmfastError, match="3 of label and 2 of photo are given; there should be one of each"):
        run.sample(1, label="all", photo="photo.png,photo.png", steps=1)


def test_what_is_given_in_part_takes_each_step_as_often_as_asked(run, monkeypatch):
    """The config's offset does not apply then, as a step that is repeated needs one time for all."""
    half = np.zeros((SIZE, SIZE), bool)
    half[:2] = True
    how = {"photo": PHOTO, "known": {"photo": half}, "steps": 2, "sampler": "ddim"}
    once, again = (run.sample(1, resample=n, **how).data["photo"] for n in (1, 3))
    assert not torch.equal(once, again) and torch.equal(again, run.sample(1, resample=3, **how).data["photo"])
    monkeypatch.setattr(run.config.sample, "offset", {"mask": 0.3})
    assert torch.equal(run.sample(1, resample=3, **how).data["photo"], again)
    assert not torch.equal(run.sample(1, resample=1, **how).data["photo"], once)
    with pytest.raises(MmfastError, match="with an offset, by which z_t has several times; leave the offset"):
        run.sample(1, offset={"mask": 0.3}, **how)
