"""Two-class masks of one data set have one coding: by value, whoever reads them and in whatever order."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, flags

import mmfast
from mmfast import config as configs
from mmfast.build import build_data, with_found
from mmfast.cli import main
from mmfast.data import codings, huggingface, items, listing, torchvision
from mmfast.data.codings import decided
from mmfast.data.listing import place
from mmfast.errors import MmfastError
from mmfast.guess import guess
from mmfast.modalities.mask import Mask, MaskSpec, coding
from mmfast.survey import survey
from mmfast.training.examples import loader

SIZE, COUNT = 8, 30
MASK = {"kind": "mask", "classes": 2, "size": SIZE}
MODALITIES = {"image": {"kind": "image", "channels": 1, "size": SIZE}, "mask": MASK}
DRAFT = {"backbone": {"kind": "mlp", "width": 8, "blocks": 1}, "schedule": {"T": 4}}
FEW = [*TINY, ("train.batch_size", "4"), ("train.steps", "2"), ("sample.steps", "1")]


def truth(k):
    """Which pixels are of class 1, bool: none in every third mask, all of them in one of eleven."""
    seen = np.random.default_rng(k).random((SIZE, SIZE)) < 0.4
    return np.full_like(seen, True) if k % 11 == 10 else seen & (k % 3 > 0)


def save(root, k, white, mode="L"):
    for name, pixels in (("image", np.full((SIZE, SIZE), k, np.uint8)), ("mask", (truth(k) * white).astype(np.uint8))):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode if name == "mask" else "L").save(root / name / f"{k:02d}.png")


@pytest.fixture(params=[1, 255], ids=["0/1", "0/255"])
def white(request):
    return request.param


@pytest.fixture
def root(tmp_path, white):
    for k in range(COUNT):
        save(tmp_path / "data", k, white)
    return tmp_path / "data"


def config(root, **more):
    data = {"kind": "folder", "root": str(root), "test_fraction": 0.2, "cache": str(root.parent / "cache"), **more}
    return configs.from_plain({**DRAFT, "data": data, "modalities": MODALITIES}, "x")


def masks(data):
    """Every mask by the number in its image."""
    found = {}
    for part in (data.train, data.test):
        batch = part.__getitems__(range(len(part)))
        numbers = ((batch.data["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        found |= dict(zip(numbers, batch.data["mask"], strict=True))
    return found


def test_each_mask_is_as_it_was_made(root, white):
    found = masks(build_data(config(root)))
    assert all((found[k].numpy() == truth(k)).all() for k in range(COUNT))
    assert with_found(config(root)).modalities["mask"].values == f"0/{white}"


@pytest.mark.slow
def test_a_file_of_the_other_coding_is_named(root, white):
    """All of it class 1, or a single pixel, or a mask like any other."""
    name, wanted = f"0/{white}".replace("/", " and "), 256 - white
    single = np.zeros((SIZE, SIZE), np.uint8)
    single[3, 3] = wanted
    for pixels in (np.full((SIZE, SIZE), wanted, np.uint8), single, (truth(4) * wanted).astype(np.uint8)):
        Image.fromarray(pixels).save(root / "mask/04.png")
        shown = ", ".join(map(str, np.unique(pixels)))
        wrong = survey(config(root)).wrong
        assert wrong == [
            f"{root}/mask/04.png holds the values {shown}; most masks of this data hold {name}: save it with {name} "
            f"instead, or remove it; if most should be like this one, set modalities.NAME.values: 0/{wanted}"
        ]
        with pytest.raises(MmfastError, match=r"mask/04\.png holds the values"):
            masks(build_data(config(root)))
        # It is left out, and counted, as any other that cannot be read.
        seen = survey(config(root, on_error="skip"))
        assert not seen.wrong and seen.unreadable == wrong


@pytest.mark.parametrize("workers", [0, 2])
def test_the_answer_hangs_on_no_order(root, white, workers, tmp_path):
    save(root, 4, 256 - white)
    chosen = with_found(config(root, on_error="skip", cache_gb=0))
    chosen.train.workers, chosen.train.batch_size = workers, 4
    data = build_data(chosen)
    for batch in itertools.islice(loader(chosen, data.train, 0), 3):
        numbers = ((batch.data["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert 4 not in numbers
        assert all((x.numpy() == truth(k)).all() for k, x in zip(numbers, batch.data["mask"], strict=True))


def test_one_bit_a_pixel_is_right_in_both(root):
    assert coding(Image.fromarray(truth(4)), MaskSpec(), "m") == ""
    save(root, 4, 255, mode="1")
    found = masks(build_data(config(root)))
    assert all((found[k].numpy() == truth(k)).all() for k in range(COUNT))


def test_edges_are_no_other_coding(tmp_path):
    for k in range(COUNT):
        save(tmp_path / "data", k, 255)
    soft = (truth(4) * 255).astype(np.uint8)
    soft[0, :4] = 3, 100, 200, 251
    Image.fromarray(soft).save(tmp_path / "data/mask/04.png")
    assert masks(build_data(config(tmp_path / "data")))[4].numpy().tolist() == (soft > 127).astype(int).tolist()


def test_the_ignored_value_tells_nothing():
    spec = MaskSpec(ignore=255)
    for values, said in (([0, 255], ""), ([1, 255], "0/1"), ([255, 255], ""), ([0, 0], "")):
        assert coding(Image.fromarray(np.array([values], np.uint8)), spec, "m") == said
    assert coding(Image.fromarray(np.array([[0, 128, 255]], np.uint8)), MaskSpec(ignore=128), "m") == "0/255"


def votes(*said):
    """What is decided of masks that hold 0, 1 or 255, and how many were looked at; None: one that cannot be read."""
    seen = []

    def picture(k):
        seen.append(k)
        if said[k] is None:
            raise MmfastError("it cannot be read")
        return Image.fromarray(np.full((2, 2), said[k], np.uint8))

    return decided(range(len(said)), picture, MaskSpec()), len(seen)


def test_the_most_of_the_first_that_tell(monkeypatch):
    assert votes(0, 0, None) == ("", 3)
    assert votes(0, 1, 0) == ("0/1", 3) and votes(None, 255) == ("0/255", 2)
    assert votes(1, 255, 255) == ("0/255", 3) and votes(255, 1) == ("0/255", 2) and votes(1, 255) == ("0/1", 2)
    assert votes(100, 7, 1) == ("0/1", 3)  # those of neither coding tell nothing
    assert votes(*[1] * 5, *[0] * 9, *[255] * 20) == ("0/1", 18)  # nine tell: the fifth of one kind is the most
    assert votes(*[1] * 4, *[255] * 20) == ("0/255", 9)
    monkeypatch.setattr(codings, "LOOKED_AT", 5)
    assert votes(*[0] * 5, 1) == ("", 5)


def test_files_are_looked_at_by_their_names_alone(root, monkeypatch):
    seen = []
    real = listing.load_picture
    monkeypatch.setattr(listing, "load_picture", lambda path, what: seen.append(path.stem) or real(path, what))
    with_found(config(root))
    order = sorted((f"{k:02d}" for k in range(COUNT)), key=place)
    assert seen == order[: len(seen)]
    assert sum(truth(int(stem)).any() for stem in seen) == codings.ENOUGH == 9


def train(root, run, steps, *more):
    source = root.parent / "my.yaml"
    source.write_text(json.dumps({"data": {"kind": "folder", "root": "data"}, "modalities": MODALITIES}))
    return main(["train", str(source), "--out", str(run), "--quiet", *flags(FEW), "--train.steps", str(steps), *more])


@pytest.mark.slow
def test_a_run_keeps_it_and_what_it_is_given_is_judged_alone(root, white, tmp_path, capsys):
    run, said = tmp_path / "run", f"0/{white}"
    assert train(root, run, 2) == 0
    loaded = mmfast.load(run)
    assert loaded.config.modalities["mask"].values == said
    own = tmp_path / "own.png"
    for other in (1, 255):
        Image.fromarray((truth(1) * other).astype(np.uint8)).save(own)
        for given in (str(own), own, np.asarray(Image.open(own)), Image.open(own)):
            samples = loaded.sample(1, mask=given, steps=1)
            assert (samples.data["mask"][0].numpy() == truth(1)).all()
        assert main(["sample", str(run), "--given", f"mask={own}", "--n", "1", "--device", "cpu", "--quiet"]) == 0
    # A run of an earlier version does not say it; it goes on.
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(f"values: {said}\n", "values: ''\n"))
    capsys.readouterr()
    assert train(root, run, 3) == 0 and f"modalities.mask.values '' -> '{said}'" in capsys.readouterr().err
    assert mmfast.load(run).config.modalities["mask"].values == said
    # What the config says is not looked for.
    assert train(root, tmp_path / "another", 2, "--modalities.mask.values", f"0/{256 - white}") == 2
    assert "most masks of this data hold" in capsys.readouterr().err


def test_a_folder_of_both_is_no_ignore(root, white):
    save(root, 4, 256 - white)
    assert guess(root, SIZE).modalities["mask"] == MASK
    mixed = np.zeros((SIZE, SIZE), np.uint8)
    mixed[0, :2] = 1, 255
    Image.fromarray(mixed).save(root / "mask/05.png")
    assert guess(root, SIZE).modalities["mask"]["ignore"] == 255


SPECS = configs.from_plain({**DRAFT, "modalities": MODALITIES}, "x").modalities


def adapted(count, white, wrong=()):
    """Items as an adapter makes them: a picture, and an array or a picture as its mask."""

    def get(k):
        mask = (truth(k) * (256 - white if k in wrong else white)).astype(np.uint8)
        return {"image": np.full((SIZE, SIZE), k, np.uint8), "mask": Image.fromarray(mask) if k % 2 else mask}

    return items.Items(count, get, SPECS, "a set", "image")


def test_other_packages_data_sets_alike(white):
    options = huggingface.Spec(test_fraction=0.2)
    found = masks(items.split(adapted(COUNT, white), None, options))
    assert all((found[k].numpy() == truth(k)).all() for k in range(COUNT))
    for wrong in (1, 2):
        data = items.split(adapted(COUNT, white), adapted(COUNT, white, [wrong]), options)
        with pytest.raises(MmfastError, match=rf"example {wrong} of a set, mask holds the values"):
            data.test.__getitems__([wrong])
        assert torch.equal(data.train.__getitems__([wrong]).data["mask"][0], torch.from_numpy(truth(wrong)).long())
    assert items.mask_values(adapted(COUNT, white), None) == {"mask": {"values": f"0/{white}"}}


class Table(list):
    """A stand-in for a data set of `datasets`, and, of tuples, for one of torchvision."""

    features = {"image": None, "mask": None}  # noqa: RUF012

    def select_columns(self, columns):
        return Table({name: row[name] for name in columns} for row in self)


@pytest.mark.parametrize("kind", ["huggingface", "torchvision"])
def test_they_are_kept_with_the_config(kind, white, monkeypatch):
    arrays = [(np.full((SIZE, SIZE), k, np.uint8), (truth(k) * white).astype(np.uint8)) for k in range(COUNT)]
    rows = Table({"image": Image.fromarray(image), "mask": Image.fromarray(mask)} for image, mask in arrays)
    monkeypatch.setattr(huggingface, "_load", lambda path, name, part: rows)
    monkeypatch.setattr(torchvision, "_dataset", lambda spec, part: [(row["image"], row["mask"]) for row in rows])
    data = {"kind": kind, "cache_gb": 0}
    chosen = with_found(configs.from_plain({**DRAFT, "data": data, "modalities": MODALITIES}, "x"))
    assert chosen.modalities["mask"].values == f"0/{white}"
    found = masks(build_data(chosen))
    assert all((found[k].numpy() == truth(k)).all() for k in range(COUNT))


def test_a_file_alone(tmp_path):
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "m.png")
    assert Mask.read(tmp_path / "m.png", MaskSpec(size=[1, 2])).tolist() == [[0, 1]]
    assert Mask.read(tmp_path / "m.png", MaskSpec(size=[1, 2], values="0/1")).tolist() == [[0, 1]]
    with pytest.raises(MmfastError, match=r"holds the values 0, 1; most masks of this data hold 0 and 255"):
        Mask.read(tmp_path / "m.png", MaskSpec(size=[1, 2], values="0/255"))
