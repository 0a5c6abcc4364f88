"""`mmfast check`: what it counts, by value; and for each odd file the same verdict as training."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mmfast import config as configs
from mmfast import survey as survey_module
from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.survey import brief, survey
from mmfast.training import loop, train

SIZE, COUNT = 8, 12
MODALITIES = {
    "image": {"kind": "image", "channels": 3, "size": SIZE},
    "mask": {"kind": "mask", "classes": 3, "size": SIZE},
    "label": {"kind": "label", "classes": 3, "names": ["ape", "bee", "cow"]},
    "vector": {"kind": "embedding", "dim": 4},
}
FEW = {
    "train": {"steps": 1, "batch_size": COUNT, "sample_every": 0, "tensorboard": False, "device": "cpu", "warmup": 0},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}


def picture(seed, shape=(SIZE, SIZE, 3), high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype)


def save(root, name, content, **options):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (str, bytes)):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    elif file.suffix == ".npy":
        np.save(file, content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(file, **options)
    return file


@pytest.fixture
def root(tmp_path):
    """Twelve examples; a third has no mask, and the label of k is k % 2: nobody is a cow."""
    root = tmp_path / "data"
    for k in range(COUNT):
        stem = f"x/{k:02}"
        save(root, f"image/{stem}.png", picture(k))
        if k not in (0, 6, 9, 10):  # 03 is held out
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[:, :2], mask[:, 2] = 1, 2
            save(root, f"mask/{stem}.png", mask)
        save(root, f"label/{stem}.txt", ["ape", "1"][k % 2])
        save(root, f"vector/{stem}.npy", np.arange(4.0) + k)
    return root


def config(root, **more):
    data = {"kind": "folder", "root": str(root)}
    return configs.from_plain({**DRAFT, **FEW, "data": data, "modalities": MODALITIES, **more}, "x")


def test_a_modality_that_few_have_is_noted_and_what_is_repeated_counts_once(root):
    """Two of the twelve keep their mask, one of them held out; the page counts each example once."""
    for k in (1, *range(4, COUNT)):
        (root / f"mask/x/{k:02}.png").unlink(missing_ok=True)
    (line,) = (line for line in survey(config(root)).notes if line.startswith("mask"))
    assert (
        line.startswith("mask: 17 per cent of the examples have one") and "modalities.mask.labelled_share: 0.5" in line
    )
    parts = {**MODALITIES, "mask": {**MODALITIES["mask"], "labelled_share": 0.5}}
    found = survey(config(root, modalities=parts))
    assert not found.wrong and not any(line.startswith("mask") for line in found.notes)
    assert (found.train, found.test, found.seen["mask"].there, found.seen["mask"].missing) == (11, 1, 2, 10)
    assert len(build_data(config(root, modalities=parts)).train) == 20  # ten without, and the one ten times


def test_the_counts(root):
    found = survey(config(root))
    assert not found.wrong and not found.odd and not found.left_out and (found.train, found.test) == (11, 1)
    there = {name: (seen.there, seen.missing) for name, seen in found.seen.items()}
    assert there == {"image": (12, 0), "mask": (8, 4), "label": (12, 0), "vector": (12, 0)}
    assert found.seen["mask"].classes == {"0": 8 * 40, "1": 8 * 16, "2": 8 * 8}
    assert found.seen["label"].classes == {"ape": 6, "bee": 6, "cow": 0}
    assert found.notes == ["label: no example has cow, of 3 classes"]
    save(root, "label/x/03.txt", "cow")  # which is held out
    found = survey(config(root))
    assert found.notes == ["label: only held-out examples have cow, of 3 classes; training never sees them"]
    assert found.seen["label"].classes == {"ape": 6, "bee": 5, "cow": 1}
    assert found.seen["image"].formats == {"PNG RGB": 12} and found.seen["mask"].formats == {"PNG L": 8}
    assert found.seen["image"].sizes == {(SIZE, SIZE): 12} and not found.seen["vector"].formats


@pytest.mark.parametrize("more", [{}, {"on_error": "skip"}])
def test_labels_that_training_leaves_out_are_not_counted(root, more):
    few = {**MODALITIES, "label": {**MODALITIES["label"], "labelled_fraction": 0.3}}
    found = survey(config(root, modalities=few, data={"kind": "folder", "root": str(root), **more}))
    there = build_data(config(root, modalities=few)).train.__getitems__(range(11)).present["label"].sum()
    assert found.seen["label"].there == int(there) + 1 < 8  # the one that is held out keeps it


def test_what_belongs_to_nothing(root):
    stray = save(root, "mask/x/99.png", np.zeros((SIZE, SIZE), np.uint8))
    tif = save(root, "image/x/notes.tif", b"II*")
    readme, hidden = save(root, "README", "read me"), save(root, ".DS_Store", "x")
    (root / "depth").mkdir()
    found = survey(config(root))
    assert found.left_out == {
        "of mask, without a file of image of that path and name": [stray],
        "no image file (.png, .jpg, .jpeg, .webp, .bmp)": [tif],
        "not a folder of a modality": [readme, root / "depth"],
    }
    assert all(hidden not in paths for paths in found.left_out.values()) and not found.wrong


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


CMYK = Image.fromarray(picture(0)).convert("CMYK")
# A change of the folder; what is odd in it and which files it names, None where nothing is.
ODD = {
    "nothing": (lambda root: None, None),
    "wide": (lambda root: save(root, "image/x/00.png", picture(0, (SIZE, 2 * SIZE, 3))), ("image", "not square")),
    "turned": (
        lambda root: save(root, "image/x/00.png", Image.fromarray(picture(0)), exif=exif(6)),
        ("image", "turned upright"),
    ),
    "small": (lambda root: save(root, "image/x/00.png", picture(0, (4, 4, 3))), ("image", "smaller")),
    "sixteen": (
        lambda root: save(root, "image/x/00.png", picture(0, (SIZE, SIZE), 65536, np.uint16)),
        ("image", "of 16 bits"),
    ),
    "alpha": (lambda root: save(root, "image/x/00.png", picture(0, (SIZE, SIZE, 4))), ("image", "transparent")),
    "grey": (lambda root: save(root, "image/x/00.png", picture(0, (SIZE, SIZE))), ("image", "grey")),
    "misnamed": (
        lambda root: save(root, "image/x/00.png", Image.fromarray(picture(0)), format="JPEG"),
        ("image", "of another format"),
    ),
    "cmyk": (
        lambda root: save((root / "image/x/00.png").unlink() or root, "image/x/00.jpg", CMYK),
        ("image", "CMYK"),
    ),
    "palette mask": (
        lambda root: save(root, "mask/x/01.png", Image.fromarray(picture(0, (SIZE, SIZE), 3), "P")),
        None,
    ),
    "linked": (lambda root: (root / "image/y").symlink_to(root / "image/x"), None),
    "larger mask": (lambda root: save(root, "mask/x/01.png", picture(0, (2 * SIZE, 2 * SIZE), 3)), None),
}
# A change after which training stops, and a word of why.
WRONG = {
    "cut": (lambda root: save(root, "image/x/03.png", (root / "image/x/03.png").read_bytes()[:90]), "03.png"),
    "empty": (lambda root: save(root, "image/x/03.png", b""), "03.png"),
    "text": (lambda root: save(root, "mask/x/04.png", b"hello"), "04.png"),
    "too many classes": (lambda root: save(root, "mask/x/04.png", np.full((SIZE, SIZE), 9, np.uint8)), "holds class 9"),
    "coloured mask": (lambda root: save(root, "mask/x/04.png", picture(1)), "coloured picture"),
    "transparent mask": (
        lambda root: save(root, "mask/x/04.png", np.zeros((SIZE, SIZE, 4), np.uint8)),
        "transparent pixels",
    ),
    "mask of another shape": (lambda root: save(root, "mask/x/04.png", picture(0, (4, 8), 3)), "differ in shape"),
    "no label": (lambda root: save(root, "label/x/05.txt", "dog"), "'dog' is not a label"),
    "label's bytes": (lambda root: save(root, "label/x/05.txt", b"\xff\xfe"), "05.txt"),
    "long vector": (lambda root: save(root, "vector/x/06.npy", np.zeros(5)), "holds 5 numbers"),
    "vector with NaN": (lambda root: save(root, "vector/x/06.npy", np.full(4, np.nan)), "NaN"),
    "vector of text": (lambda root: save(root, "vector/x/06.npy", np.array(["a"] * 4)), "06.npy"),
    "two of one stem": (lambda root: save(root, "image/x/07.bmp", picture(3)), "two files of one example"),
    "no images": (lambda root: shutil.rmtree(root / "image"), "holds no image files"),
    "one image": (
        lambda root: [file.unlink() for file in (root / "image/x").iterdir() if file.name != "01.png"],
        "one example",
    ),
    "masks elsewhere": (lambda root: (root / "mask/x").rename(root / "mask/y"), "of the same path and name"),
    "no masks": (lambda root: shutil.rmtree(root / "mask"), "holds no mask file"),
    "no root": (lambda root: shutil.rmtree(root), "no folder"),
}


def verdict_of_training(chosen, folder):
    """What stops training, or nothing: all but the samples at its end, which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sample_run", lambda *_, **__: None)
        try:
            train(chosen, str(folder), quiet=True)
        except MmfastError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_named_and_trains(root, tmp_path, name):
    change, odd = ODD[name]
    change(root)
    found = survey(config(root))
    assert not found.wrong and not verdict_of_training(config(root), tmp_path / "run")
    assert [part for part, what in found.odd if odd and odd[1] in what] == ([odd[0]] if odd else [])
    file = root / ("image/x/00.jpg" if name == "cmyk" else "image/x/00.png")  # which has no mask to agree with
    assert len(found.odd) <= 2 and all(paths == [file] for paths in found.odd.values())
    assert brief(config(root))[1:-1] == [f"{part}: 1 {what}" for part, what in found.odd]


def test_at_the_start_of_training_many_pictures_are_looked_at_in_part(root, monkeypatch):
    monkeypatch.setattr(survey_module, "HEADERS_AT_MOST", 5)  # of 12 examples every third: 00, 03, 06, 09
    for k in (0, 1, 6, 7):
        save(root, f"image/x/{k:02}.png", picture(k, (SIZE, SIZE)))
    assert brief(config(root))[1:-1] == ["image: 2 grey: the same in all channels (of 4 looked at)"]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_listed_and_stops_training(root, tmp_path, name):
    change, words = WRONG[name]
    change(root)
    found, verdict = survey(config(root)), verdict_of_training(config(root), tmp_path / "run")
    assert found.wrong == [verdict] and words in verdict and "\n" not in verdict
    assert not (tmp_path / "run").exists()


def test_all_that_is_wrong_is_listed(root):
    for name in ("cut", "coloured mask", "no label", "long vector", "two of one stem"):
        WRONG[name][0](root)
    wrong = survey(config(root)).wrong
    assert len(wrong) == 5
    for name in ("cut", "coloured mask", "no label", "long vector", "two of one stem"):
        assert sum(WRONG[name][1] in line for line in wrong) == 1, (name, wrong)


def test_what_training_refuses_beside_the_files(root, capsys):
    """A backbone that does not fit; a device that is not there. That no held-out example has a mask is only said."""
    shutil.rmtree(root / "mask")
    chosen = config(root, evaluate={"samples": 2})
    first = survey(config(root, modalities={n: x for n, x in MODALITIES.items() if n != "mask"}))
    [held_out] = first_held_out(root)
    assert not first.wrong
    for file in (root / "image/x").iterdir():
        if file.stem != held_out:
            save(root, f"mask/x/{file.stem}.png", np.zeros((SIZE, SIZE), np.uint8))
    said = "data: no held-out example has mask, so there are no figures of it"
    assert not survey(chosen).wrong and said in capsys.readouterr().err
    save(root, f"mask/x/{held_out}.png", np.zeros((SIZE, SIZE), np.uint8))
    assert not survey(chosen).wrong and said not in capsys.readouterr().err
    unet = {"kind": "unet", "channels": 8, "multipliers": [1, 1, 1, 1, 1], "attention": []}
    assert "8 pixels do not halve 4 times in cells of 2" in survey(config(root, backbone=unet)).wrong[0]
    assert "train.device" in survey(config(root, train={**FEW["train"], "device": "tpu"})).wrong[0]


def first_held_out(root):
    from mmfast.data import folder

    data = folder.open(folder.Spec(root=str(root)), {"image": config(root).modalities["image"]}, "image")
    return [stem.split("/")[1] for stem in data.test.stems]


def test_data_that_is_no_folder():
    pytest.importorskip("sklearn")
    found = survey(configs.load("digits"))
    assert not found.wrong and found.train + found.test == 1797 and found.parameters > 100_000
    from sklearn.datasets import load_digits

    truth = np.bincount(load_digits().target)
    assert found.seen["label"].classes == {str(k): n for k, n in enumerate(truth)}


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    file = root.parent / "my.yaml"
    raw = {**DRAFT, **FEW, "data": {"kind": "folder", "root": "data"}, "modalities": MODALITIES}
    file.write_text(json.dumps(raw))
    return root


@pytest.mark.parametrize("what", ["my.yaml", "data"])
def test_the_page_and_the_sheet(here, capsys, what):
    assert main(["check", what, "--quiet"]) == 0
    shown = capsys.readouterr().out
    page = ["12 examples, 1 (8 per cent) of them held out", "8 of 12 examples", "PNG L 8", "nothing is wrong"]
    for words in (*page, "0 62.5, 1 25.0, 2 12.5", "image, colour, 8 x 8", "vector", "embedding, 4 numbers"):
        assert words in shown, shown
    with Image.open(here.parent / f"check-{what.split('.')[0]}.png") as sheet:
        assert sheet.width > 400 and f"check-{what.split('.')[0]}.png" in shown
    assert main(["check", what, "--quiet"]) == 0
    assert (here.parent / f"check-{what.split('.')[0]}-1.png").exists()  # nothing is overwritten


def test_the_exit_status_is_2_where_training_would_stop(here, capsys):
    WRONG["cut"][0](here)
    assert main(["check", "my.yaml", "--sheet", "s.png", "--quiet"]) == 2
    shown = capsys.readouterr().out
    assert f"wrong: training would stop\n  {here}/image/x/03.png cannot be read" in shown
    assert (here.parent / "s.png").exists() and "nothing is wrong" not in shown
    assert main(["check", "my.yaml", "--sheet", "s.gif"]) == 2
    assert main(["check", "nothing"]) == 2
    assert (
        "'nothing' is not a folder; it should be a folder, a .yaml or .csv file, or one of any"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "words",
    [["check", "/"], ["init", "//", "--out", "new.yaml"], ["train", "my.yaml", "--data.root", "/.", "--out", "r"]],
)
def test_the_whole_file_system_is_no_data(here, capsys, words):
    assert main([*words]) == 2
    assert "the root of the file system; it should be a folder of data" in capsys.readouterr().err
    shutil.rmtree(here / "mask")
    assert main(["check", "my.yaml", "--quiet", "--data.test_fraction", "0.5"]) == 2
    assert "holds no mask file" in capsys.readouterr().out
    for file in [*(here / "image/x").iterdir()][1:]:
        file.unlink()
    assert main(["check", "my.yaml", "--quiet"]) == 2
    assert "image, colour, 8 x 8: not read" in capsys.readouterr().out


def test_names_that_are_no_text_are_shown(here, capsys):
    """A name with a byte that is no UTF-8, as other systems leave them."""
    broken = str(here / "image/x/caf") + "\udce9.txt"
    open(broken, "w").close()
    assert main(["check", "my.yaml", "--quiet"]) == 0
    assert "caf\\udce9.txt" in capsys.readouterr().out


def test_options_go_with_the_config(here, capsys):
    assert main(["check", "my.yaml", "--quiet", "--modalities.mask.classes", "2"]) == 2
    assert "holds the values 0, 1, 2" in capsys.readouterr().out


def test_training_begins_with_the_same_in_short(here, capsys):
    save(here, "mask/x/99.png", np.zeros((SIZE, SIZE), np.uint8))
    assert main(["train", "my.yaml", "--out", "run"]) == 0
    parameters = sum(p.numel() for p in build_model(configs.load("my.yaml")).parameters())
    assert capsys.readouterr().out.splitlines()[:3] == [
        "12 examples, 1 of them held out; mask 8, label 12, vector 12",
        "1 file is not used; `mmfast check` tells more",
        f"{parameters:,} parameters, on cpu",
    ]
