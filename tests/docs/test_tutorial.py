"""The tutorial's commands, one after another, on a few emoji: those of the font where it is installed, else shapes."""

import importlib.util
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from docs_pages import BLOCKS, ROOT, commands
from docs_shell import TRAIN
from PIL import Image

from mmfast import cli

EMOJI = runpy.run_path(str(ROOT / "examples" / "emoji.py"))
FEW = {
    "train": TRAIN,
    "check": ["--quiet"],
    "init": ["--quiet"],
    "sample": ["--quiet"],
    "sweep": ["--samples", "8", "--quiet"],
}


def test_groups_are_unicodes_blocks():
    group = EMOJI["group"]
    assert [group(x) for x in (0x31, 0x1F1E6, 0x1F34E, 0x1F407, 0x1F468, 0x1F600, 0x1F680, 0x1FA70, 0x1FAFF)] == [
        "symbols", "flags", "food", "animals", "people", "faces", "transport", "objects", "objects"
    ]  # fmt: skip


def test_captions_are_the_names_of_the_characters():
    """Without joiners (200d) and selectors (fe0f); none if the name of a character is not known."""
    names = {
        "1f34e": "red apple", "1f468-1f3fe-200d-1f33e": "man medium-dark skin tone ear of rice",
        "2764-fe0f": "heavy black heart", "1f1eb-1f1f7": "flag f flag r", "1f468-10ffff": "",
    }  # fmt: skip
    assert {name: EMOJI["caption"](name) for name in names} == names


def test_characters_of_glyphs_follow_ligatures():
    """A sequence of two characters, and one that is made of that and a third."""

    class Part:
        def __init__(self, **own):
            self.__dict__.update(own)

    made = {
        "a": [Part(Component=["b"], LigGlyph="ab"), Part(Component=["x"], LigGlyph="never")],
        "ab": [Part(Component=["c"], LigGlyph="abc")],
    }
    plain, extended = Part(other=1), Part(ExtSubTable=Part(ligatures=made))
    lookups = Part(Lookup=[Part(SubTable=[plain]), Part(SubTable=[extended])])

    class Font(dict):
        def getBestCmap(self):
            return {1: "a", 2: "b", 3: "c"}

    found = EMOJI["characters"](Font(GSUB=Part(table=Part(LookupList=lookups))))
    assert found == {"a": (1,), "b": (2,), "c": (3,), "ab": (1, 2), "abc": (1, 2, 3)}


def shapes(count):
    """Discs in the place of emoji, `count` a group, in the groups and with the names that the tutorial asks for."""
    random, found = np.random.default_rng(0), {}
    for group, names in {"food": ["1f34e"], "animals": ["1f407"], "faces": []}.items():
        for name in [*names, *(f"{group}-{k:03}" for k in range(count - len(names)))]:
            y, x = np.mgrid[:32, :32] - 15.5
            seen = np.hypot(x, y) < random.uniform(6, 14)
            colour = np.broadcast_to(random.integers(0, 255, 3), (32, 32, 3))
            found[name] = group, Image.fromarray(np.dstack((colour, 255 * seen)).astype(np.uint8))
    return found


def installed():
    return Path(EMOJI["FONT"]).exists() and importlib.util.find_spec("fontTools") is not None


def write(monkeypatch, folder, *options, font=None):
    """The script with these options; with `shapes` where the font is not installed, or `font` says so."""
    if not installed() or font == "shapes":
        monkeypatch.setitem(EMOJI["main"].__globals__, "pictures", lambda file: shapes(13))
        options = [*options, "--font", __file__]  # some file that is there
    monkeypatch.setattr(sys, "argv", ["emoji.py", str(folder), *options])
    assert EMOJI["main"]() == 0


def test_emoji_and_digits_in_one_folder(tmp_path, monkeypatch):
    """As many as asked for, the same at each call, and a mask where the alpha or the ink is at least half."""
    digits = pytest.importorskip("sklearn.datasets").load_digits().images
    monkeypatch.setitem(
        EMOJI["main"].__globals__, "caption", lambda name: "" if name.endswith("3") else f"it is {name}"
    )
    for folder, more in (("a", ["--captions"]), ("b", [])):
        write(monkeypatch, tmp_path / folder, "--emoji", "20", "--digits", "5", *more, font="shapes")
    texts = {x.relative_to(tmp_path / "a" / "caption"): x.read_text() for x in (tmp_path / "a").rglob("*.txt")}
    emoji = [x.relative_to(tmp_path / "a" / "image") for x in (tmp_path / "a" / "image").rglob("*.png")]
    assert texts == {
        x.with_suffix(".txt"): f"it is {x.stem}" for x in emoji if x.parts[0] != "digits" and x.stem[-1] != "3"
    } and not list((tmp_path / "b").rglob("*.txt"))
    files = [sorted(x.relative_to(tmp_path / f) for x in (tmp_path / f).rglob("*.png")) for f in ("a", "b")]
    assert files[0] == files[1] and len(files[0]) == 2 * 25
    for i in range(5):
        shown, mask = (
            np.asarray(Image.open(tmp_path / "a" / kind / "digits" / f"digit-{i:04}.png")) for kind in ("image", "mask")
        )
        np.testing.assert_allclose(shown, digits[i] / 16 * 255, atol=0.5)
        np.testing.assert_array_equal(mask, np.where(digits[i] >= 8, 255, 0))
    file = next((tmp_path / "a" / "mask" / "food").glob("*.png"))
    alpha = np.asarray(Image.open(tmp_path / "a" / "image" / "food" / file.name))[..., 3]
    np.testing.assert_array_equal(np.asarray(Image.open(file)), alpha)


@pytest.mark.slow
def test_three_commands_on_a_folder_of_pictures_that_are_not_alike(tmp_path, monkeypatch):
    """Of 500 pictures, check, train (init before it) and report; every part of the report is there."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    write(monkeypatch, tmp_path / "pictures", *(["--emoji", "400"] if installed() else []), "--digits", "100")
    assert cli.main(["check", "pictures", "--quiet"]) == 0
    assert cli.main(["init", "pictures", "--out", "my.yaml", "--minutes", "1", "--quiet"]) == 0
    assert cli.main(["train", "my.yaml", "--out", "run", *TRAIN]) == 0
    assert cli.main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "digits" in page and "mask" in page and page.count("data:image/png;base64") >= 3


@pytest.mark.slow
def test_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    if installed():
        write(monkeypatch, tmp_path / "all")
        assert len(list((tmp_path / "all" / "image").rglob("*.png"))) > 3600
    write(monkeypatch, tmp_path / "emoji", font="shapes")
    run = []
    for block in BLOCKS["docs/tutorial.md"]:
        for words in commands(block.text) if block.language == "bash" else []:
            if words[0] != "mmfast":
                continue
            run.append(words[1])
            assert cli.main([*words[1:], *FEW.get(words[1], [])]) == 0, shlex.join(words)
    assert run == ["check", "init", "train", "report", "sample", "sample", "sample", "sweep"]
    assert (tmp_path / "runs" / "emoji" / "report.html").exists() and any((tmp_path / "drawn").rglob("*.png"))
