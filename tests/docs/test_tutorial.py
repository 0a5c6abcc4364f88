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


def shapes(folder):
    """Discs and squares in the place of emoji, in the groups and with the names that the tutorial asks for."""
    random = np.random.default_rng(0)
    for group, names in {"food": ["1f34e"], "animals": ["1f407"], "faces": []}.items():
        for name in [*names, *(f"{k:02}" for k in range(12))]:
            y, x = np.mgrid[:32, :32] - 15.5
            seen = np.hypot(x, y) < random.uniform(6, 14)
            colour = np.broadcast_to(random.integers(0, 255, 3), (32, 32, 3))
            picture = np.dstack((colour, 255 * seen)).astype(np.uint8)
            for kind, shown in (("image", picture), ("mask", (255 * seen).astype(np.uint8))):
                file = folder / kind / group / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(shown).save(file)


@pytest.mark.slow
def test_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    if Path(EMOJI["FONT"]).exists() and importlib.util.find_spec("fontTools") is not None:
        monkeypatch.setattr(sys, "argv", ["emoji.py", "all"])
        assert EMOJI["main"]() == 0
        assert len(list((tmp_path / "all" / "image").rglob("*.png"))) > 3600
    shapes(tmp_path / "emoji")
    run = []
    for block in BLOCKS["docs/tutorial.md"]:
        for words in commands(block.text) if block.language == "bash" else []:
            if words[0] != "mmfast":
                continue
            run.append(words[1])
            assert cli.main([*words[1:], *FEW.get(words[1], [])]) == 0, shlex.join(words)
    assert run == ["check", "init", "train", "report", "sample", "sample", "sample", "sweep"]
    assert (tmp_path / "runs" / "emoji" / "report.html").exists() and any((tmp_path / "drawn").rglob("*.png"))
