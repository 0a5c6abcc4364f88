"""Aligned folders by value: every pixel, class and number is that of the file of the same path and name."""

import dataclasses
import hashlib
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast import modalities
from mmfast.build import build_data, with_found
from mmfast.data import folder
from mmfast.errors import MmfastError

SIZE, COUNT = 4, 10


def specs(**more):
    kinds = {
        "image": ("image", {"channels": 3, "size": SIZE}),
        "mask": ("mask", {"classes": 5, "size": SIZE}),
        "label": ("label", {"classes": 3, "names": ["ape", "bee", "cow"]}),
        "vector": ("embedding", {"dim": 6}),
    }
    return {name: modalities.kind(kind).Spec(**options) for name, (kind, options) in kinds.items()} | more


def write(root, kind, stem, ending, content):
    file = root / kind / f"{stem}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    elif ending == ".npy":
        np.save(file, content)
    else:
        Image.fromarray(content).save(file)


@pytest.fixture
def made(tmp_path):
    """Ten examples in two folders; masks, labels and vectors are each missing from some. What is in them, by stem."""
    rng, truth = np.random.default_rng(0), {}
    for k in range(COUNT):
        stem = f"{'bee' if k % 3 else 'ape'}/{k:02}"
        image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        mask = rng.integers(0, 5, (SIZE, SIZE), dtype=np.uint8)
        vector = rng.normal(size=6)
        write(tmp_path, "image", stem, ".png", image)
        truth[stem] = {"image": image}
        if k % 2:
            write(tmp_path, "mask", stem, ".PNG" if k == 3 else ".png", mask)
            truth[stem]["mask"] = mask
        if k != 4:
            write(tmp_path, "label", stem, ".txt", ["0", " bee\n", "2"][k % 3])
            truth[stem]["label"] = k % 3
        if k > 6:
            write(tmp_path, "vector", stem, ".npy", vector)
            truth[stem]["vector"] = vector
    write(tmp_path, "mask", "ape/99", ".png", np.zeros((SIZE, SIZE), np.uint8))  # of no image
    write(tmp_path, "image", "ape/notes", ".txt", "no picture")
    return tmp_path, truth


def opened(root, fraction=0.3, **more):
    return folder.open(folder.Spec(root=str(root), test_fraction=fraction), specs(**more), "image")


def test_what_is_in_the_files(made):
    root, truth = made
    data = opened(root)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert sorted(data.train.stems + data.test.stems) == sorted(truth)  # each in one part
    assert data.train.stems == sorted(data.train.stems) and data.test.stems == sorted(data.test.stems)
    for part in (data.train, data.test):
        rows = list(reversed(range(len(part))))
        batch = part.__getitems__(rows)
        for place, row in enumerate(rows):
            found, own = {name: x[place] for name, x in batch.data.items()}, truth[part.stems[row]]
            there = {name: bool(batch.present[name][place]) if name in batch.present else True for name in found}
            assert {name for name, yes in there.items() if yes} == set(own)
            expected = torch.from_numpy(own["image"]).permute(2, 0, 1).float() / 127.5 - 1
            torch.testing.assert_close(found["image"], expected, atol=1e-6, rtol=0)
            if "mask" in own:
                assert np.array_equal(found["mask"], own["mask"]) and found["mask"].dtype == torch.int64
            if "label" in own:
                assert int(found["label"]) == own["label"] and found["label"].dtype == torch.int64
            if "vector" in own:
                assert np.array_equal(found["vector"], own["vector"].astype(np.float32))
    assert "image" not in batch.present  # all have one


def test_the_split_hangs_on_each_name_alone_and_is_never_empty(made, tmp_path):
    root, truth = made
    by_hash = sorted(truth, key=lambda stem: hashlib.sha256(stem.encode()).hexdigest())
    for fraction in (0.3, 0.5, 0.01, 0.0001):
        below = [s for s in by_hash if int(hashlib.sha256(s.encode()).hexdigest(), 16) < fraction * 2**256]
        assert opened(root, fraction).test.stems == sorted(below or by_hash[:1])
    for k in range(200):
        write(tmp_path, "image", f"x/{k}", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    only = {"image": specs()["image"]}
    before = folder.open(folder.Spec(root=str(tmp_path)), only, "image")
    assert 8 <= len(before.test) <= 32
    (tmp_path / "image" / f"{before.train.stems[0]}.png").unlink()
    write(tmp_path, "image", "y/new", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    after = folder.open(folder.Spec(root=str(tmp_path)), only, "image")
    assert {*before.test.stems} == {*after.test.stems} - {"y/new"}
    one = folder.open(folder.Spec(root=str(tmp_path), test_fraction=0.9), only, "image")
    assert len(one.train) >= 1


def test_folders_name_the_classes(made):
    """Without label files the first folder of the image's path is the class: by the names given, or in their order."""
    root, _ = made
    for file in root.glob("label/*/*"):
        file.unlink()
    for spec, classes in (
        (modalities.kind("label").Spec(classes=3, names=["cow", "bee", "ape"]), {"ape": 2, "bee": 1}),
        (modalities.kind("label").Spec(classes=2), {"ape": 0, "bee": 1}),
    ):
        part = opened(root, label=spec).train
        batch = part.__getitems__(range(len(part)))
        assert batch.data["label"].tolist() == [classes[stem.split("/")[0]] for stem in part.stems]
        assert "label" not in batch.present
    for wrong in (modalities.kind("label").Spec(classes=3), modalities.kind("label").Spec(classes=2, names=["a", "b"])):
        with pytest.raises(MmfastError, match=r"classes is .; the folders name 2 \(ape, bee\)"):
            opened(root, label=wrong)


def test_what_is_hidden_or_no_file_is_left_out(made):
    root, truth = made
    for hidden in (".ipynb_checkpoints/00-checkpoint", "ape/._00"):
        write(root, "image", hidden, ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    (root / "image" / "bee" / "folder.png").mkdir()
    os.mkfifo(root / "image" / "bee" / "pipe.png")  # which nobody writes to: reading it would wait for ever
    data = opened(root)
    assert {*data.train.stems, *data.test.stems} == {*truth}


def test_two_files_of_one_example_are_an_error(made):
    root, _ = made
    write(root, "image", "ape/00", ".bmp", np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(MmfastError, match=r"holds .*00\.bmp and .*00\.png, two files of one example; remove one"):
        opened(root)


def test_the_anchor_may_come_last_in_the_config(made):
    root, _ = made
    for file in root.glob("label/*/*"):
        file.unlink()
    reverse = dict(reversed([*specs(label=modalities.kind("label").Spec(classes=2)).items()]))
    found = folder.open(folder.Spec(root=str(root)), reverse, "image").train
    assert found.specs["label"].names == ["ape", "bee"] and [*found.__getitems__([0]).data] == [*reverse]


def test_folders_that_are_numbers_keep_them(tmp_path):
    """As text, 10 comes before 2."""
    for number in (0, 1, 2, 10, 11):
        for k in range(2):
            write(tmp_path, "image", f"{number}/{k}", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    label = modalities.kind("label").Spec

    def numbers(classes):
        kinds = {"image": specs()["image"], "label": label(classes=classes)}
        data = folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")
        for part in (data.train, data.test):
            found = part.__getitems__(range(len(part))).data["label"].tolist()
            assert found == [int(stem.split("/")[0]) for stem in part.stems]

    numbers(12)
    numbers(20)
    parts = {"image": {"kind": "image", "size": SIZE}, "label": {"kind": "label", "classes": 12}}
    config = configs.from_plain({"data": {"kind": "folder", "root": str(tmp_path)}, "modalities": parts}, "x")
    found = with_found(config).modalities["label"]
    counts = Counter(int(stem.split("/")[0]) for stem in build_data(config).train.stems)
    assert found.class_counts == [counts[k] for k in range(12)] and sum(counts.values()) in range(5, 10)
    assert dataclasses.replace(found, class_counts=[]) == config.modalities["label"]
    for classes in (5, 11):
        with pytest.raises(MmfastError, match=f"classes is {classes}; the folders are the numbers 0, 1, 10, 11, 2"):
            numbers(classes)
    write(tmp_path, "image", "02/0", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(MmfastError, match="should differ"):
        numbers(12)


@pytest.mark.parametrize(("digits", "numbers"), [(9, True), (10, False)])
def test_folders_of_more_digits_than_a_class_has_are_names(tmp_path, digits, numbers):
    found = ["1" * digits, "2" * digits]
    for name in found:
        write(tmp_path, "image", f"{name}/0", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    kinds = {"image": specs()["image"], "label": modalities.kind("label").Spec(classes=2)}
    look = folder.look(folder.Spec(root=str(tmp_path)), kinds, "image")
    assert look.classes == ({} if numbers else {"label": found})
    assert ["the folders are the numbers" in problem for problem in look.problems] == [True] * numbers


@pytest.mark.parametrize("stems", [("a", "b"), ("a", "x/b"), ("x/a", "x/y/b", "c")])
def test_where_not_all_images_lie_in_folders_these_name_no_classes(tmp_path, stems):
    for stem in stems:
        write(tmp_path, "image", stem, ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    kinds = {"image": specs()["image"], "label": modalities.kind("label").Spec(classes=1)}
    with pytest.raises(MmfastError, match=r"holds no label files \(\.txt\), nor do folders name the classes"):
        folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    """As macOS writes an accent, and as others do."""
    for kind, name in (("image", "caf\u00e9"), ("mask", "cafe\u0301"), ("image", "b"), ("mask", "b")):
        shape = (SIZE, SIZE, 3) if kind == "image" else (SIZE, SIZE)
        write(tmp_path, kind, name, ".png", np.ones(shape, np.uint8))
    kinds = {name: specs()[name] for name in ("image", "mask")}
    data = folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")
    for part in (data.train, data.test):
        assert "mask" not in part.__getitems__(range(len(part))).present


def test_folders_of_other_names(made):
    root, truth = made
    (root / "image").rename(root / "photos of 2024")
    (root / "mask").rename(root / "deep")
    (root / "more").mkdir()
    (root / "deep").rename(root / "more" / "deep")
    spec = folder.Spec(root=str(root), folders={"image": "photos of 2024", "mask": "more/deep"})
    data = folder.open(spec, specs(), "image")
    assert sorted(data.train.stems + data.test.stems) == sorted(truth)
    row = next(row for row, stem in enumerate(data.train.stems) if "mask" in truth[stem])
    assert np.array_equal(data.train.__getitems__([row]).data["mask"][0], truth[data.train.stems[row]]["mask"])
    with pytest.raises(MmfastError, match=r"data\.folders' modality is 'imag'; .* did you mean 'image'"):
        folder.open(folder.Spec(root=str(root), folders={"imag": "x"}), specs(), "image")


def test_a_root_that_is_the_folder_of_the_images(tmp_path):
    for k in range(4):
        write(tmp_path, "ape" if k % 2 else "bee", str(k), ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    kinds = {"image": specs()["image"], "label": modalities.kind("label").Spec(classes=2)}
    spec = folder.Spec(root=str(tmp_path), folders={"image": "."})
    assert not folder.look(spec, kinds, "image").left_out
    data = folder.open(spec, kinds, "image")
    assert sorted(data.train.stems + data.test.stems) == ["ape/1", "ape/3", "bee/0", "bee/2"]
    assert [data.train.specs["label"].names[k] for k in data.train.__getitems__(range(3)).data["label"]] == [
        stem.split("/")[0] for stem in data.train.stems
    ]


@pytest.mark.parametrize(
    ("photo", "mask", "agree"),
    [
        ((8, 8), (8, 8), True),
        ((8, 6), (4, 3), True),
        ((500, 333), (250, 167), True),  # rounded
        ((8, 6), (6, 8), False),
        ((8, 4), (8, 8), False),
        ((500, 333), (500, 300), False),
    ],
)
def test_an_image_and_its_mask_have_one_shape(tmp_path, photo, mask, agree):
    """Sizes as (height, width)."""
    for k in range(2):
        write(tmp_path, "image", str(k), ".png", np.zeros((*photo, 3), np.uint8))
        write(tmp_path, "mask", str(k), ".png", np.zeros(mask if k else photo, np.uint8))
    kinds = {name: specs()[name] for name in ("image", "mask")}
    data = folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")
    parts = {part.stems[0]: part for part in (data.train, data.test)}
    assert parts["0"].__getitems__([0]).data["mask"].shape == (1, SIZE, SIZE)
    if agree:
        assert parts["1"].__getitems__([0]).data["mask"].shape == (1, SIZE, SIZE)
        return
    with pytest.raises(
        MmfastError, match=f"1.png is {mask[1]} x {mask[0]} and .*1.png is {photo[1]} x {photo[0]}: they"
    ):
        parts["1"].__getitems__([0])


def test_shapes_are_those_of_pictures_that_stand_upright(tmp_path):
    """A photo stored lying, which its EXIF data turns, and its mask stored upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for k, ending in enumerate((".png", ".jpg", ".webp")):
        (tmp_path / "image").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(tmp_path / "image" / f"{k}{ending}", exif=exif)
        write(tmp_path, "mask", str(k), ".png", np.zeros((4, 8), np.uint8))
    kinds = {name: specs()[name] for name in ("image", "mask")}
    data = folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")
    assert len(data.train.__getitems__([0, 1])) == 2 and len(data.test.__getitems__([0])) == 1
    for k in range(3):  # stored as the photo is, so that it lies when that stands
        write(tmp_path, "mask", str(k), ".png", np.zeros((8, 4), np.uint8))
    data = folder.open(folder.Spec(root=str(tmp_path)), kinds, "image")
    with pytest.raises(MmfastError, match=r"is 4 x 8 and .* is 8 x 4"):
        data.test.__getitems__([0])


def test_a_link_to_nothing_is_an_error_when_it_is_read(made):
    root, _ = made
    (root / "image" / "ape" / "lost.png").symlink_to(root / "nowhere")
    data = opened(root)
    with pytest.raises(MmfastError, match=r"lost\.png is a link to a file that does not exist; repair"):
        for part in (data.train, data.test):
            part.__getitems__(range(len(part)))


def test_one_example_is_too_few(tmp_path):
    write(tmp_path, "image", "a", ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(MmfastError, match="holds one example; it should hold some to train on and some to test"):
        folder.open(folder.Spec(root=str(tmp_path)), {"image": specs()["image"]}, "image")


def test_what_belongs_to_nothing_is_listed_with_the_reason(made):
    """Of a folder in a folder the outer one is known, too."""
    root, _ = made
    (root / "more").mkdir()
    (root / "mask").rename(root / "more" / "deep")
    (root / "notes").mkdir()
    found = folder.look(folder.Spec(root=str(root), folders={"mask": "more/deep"}), specs(), "image").left_out
    endings = ", ".join(modalities.kind("image").extensions)
    assert found == {
        f"no image file ({endings})": [root / "image" / "ape" / "notes.txt"],
        "of mask, without a file of image of that path and name": [root / "more" / "deep" / "ape" / "99.png"],
        "not a folder of a modality": [root / "notes"],
    }


def test_folders_lead_out_of_root_where_that_is_said(made, tmp_path_factory):
    root, _ = made
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "mask").rename(elsewhere / "mask")
    for where in (str(elsewhere / "mask"), os.path.relpath(elsewhere / "mask", root)):
        with pytest.raises(MmfastError, match=r"data\.folders\.mask is .*, which leads out of data\.root"):
            folder.open(folder.Spec(root=str(root), folders={"mask": where}), specs(), "image")
        spec = folder.Spec(root=str(root), folders={"mask": where}, outside=True)
        assert len(folder.look(spec, specs(), "image").paths["mask"]) == 6


def test_where_all_would_be_held_out_one_is_left_to_train_on(tmp_path):
    """Of two names whose numbers are both below the fraction the larger is kept."""
    numbers = {f"x{k}": int(hashlib.sha256(f"x{k}".encode()).hexdigest(), 16) / 2**256 for k in range(20)}
    names = [name for name, number in numbers.items() if number < 0.8][:2]
    for name in names:
        write(tmp_path, "image", name, ".png", np.zeros((SIZE, SIZE, 3), np.uint8))
    data = folder.open(folder.Spec(root=str(tmp_path), test_fraction=0.9), {"image": specs()["image"]}, "image")
    held_out, kept = sorted(names, key=numbers.__getitem__)
    assert (data.train.stems, data.test.stems) == ([kept], [held_out])
