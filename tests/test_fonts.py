"""The texts in pictures: a font that has their characters, or their codes."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageFont

from mmfast import fonts
from mmfast.fonts import lettering
from mmfast.pictures import text_tile

try:
    DEJAVU = ImageFont.truetype("DejaVuSans.ttf", 20).path
except OSError:
    DEJAVU = None
needs_font = pytest.mark.skipif(DEJAVU is None, reason="DejaVuSans.ttf is not installed")


@pytest.fixture(autouse=True)
def afresh():
    fonts._font.cache_clear(), fonts._say.cache_clear()
    yield
    fonts._font.cache_clear(), fonts._say.cache_clear()


def without_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_paths", lambda character: iter(["no-such-font.ttf"]))


def test_plain_texts_are_in_pillows_own_font():
    for text in ("shirt 3", "", "a\nb", "100 %", "~"):
        assert lettering(text) == (text, ImageFont.load_default)


@needs_font
def test_a_systems_font_writes_what_pillows_lacks(monkeypatch):
    monkeypatch.setattr(fonts, "_paths", lambda character: iter([DEJAVU]))
    text, font = lettering("Käse жук")
    assert text == "Käse жук" and font(12).path == DEJAVU and font(12).size == 12
    shown = [np.asarray(text_tile(name, 64)).tolist() for name in ("Käse", "Kase", "жук", "гриб")]
    assert all(a != b for i, a in enumerate(shown) for b in shown[:i])


def test_without_a_font_characters_are_codes_and_that_is_said_once(monkeypatch, capsys):
    without_fonts(monkeypatch)
    assert lettering("猫 and ж")[0] == "U+732B and U+0436"
    lettering("ж 猫")
    assert capsys.readouterr().err == (
        "mmfast: no font here has ж猫, so pictures show the codes of these characters; a package of fonts adds them "
        "(apt-get install fonts-noto-cjk)\n"
    )
    assert np.asarray(text_tile("猫", 64)).tolist() != np.asarray(text_tile("犬", 64)).tolist()


def test_fontconfig_is_asked_for_the_character_and_may_be_missing(monkeypatch):
    asked = []

    def run(command, **how):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "/a/font.ttf", "")

    monkeypatch.setattr(fonts.subprocess, "run", run)
    assert next(fonts._paths("猫")) == "/a/font.ttf" and asked == [["fc-match", "-f", "%{file}", ":charset=732b"]]

    def missing(command, **how):
        raise FileNotFoundError

    monkeypatch.setattr(fonts.subprocess, "run", missing)
    assert next(fonts._paths("猫")) == fonts.NAMES[0]


class Drawn:
    """A font with some characters: the shape of any other is its mark for a missing one."""

    def __init__(self, characters):
        self.characters = characters

    def getmask(self, character):
        return character.encode() if character in self.characters else b"missing"


def test_the_first_font_that_has_most_is_taken_and_none_is_tried_after_one_with_all(monkeypatch):
    held = {"one": "ж", "two": "猫", "three": "ж猫", "four": "ж猫"}
    given, tried, asked = [], [], []

    def truetype(path, size):
        tried.append(path)
        if path not in held:
            raise OSError
        return Drawn(held[path])

    def paths(character):
        asked.append(character)
        return iter(given)

    monkeypatch.setattr(fonts.ImageFont, "truetype", truetype)
    monkeypatch.setattr(fonts.ImageFont, "load_default", lambda size: Drawn(""))
    monkeypatch.setattr(fonts, "_paths", paths)
    said = []
    monkeypatch.setattr(fonts, "_say", said.append)
    for order, text, last in (
        (["none", "one", "two"], "ж U+732B", "two"),
        (["one", "two", "three", "four"], "ж 猫", "three"),
    ):
        fonts._font.cache_clear()
        given[:] = order
        tried.clear()
        found, font = lettering("ж 猫")
        assert found == text and tried[-1] == last and asked[-1] == "ж"  # the first in Unicode's order
        assert font(9).characters == ("ж" if last == "two" else "ж猫")
    assert said == ["猫"]
    # Characters of a text that the default font has need no other.
    monkeypatch.setattr(fonts.ImageFont, "load_default", lambda size: Drawn("°"))
    tried.clear()
    assert lettering("3°")[1] is fonts.ImageFont.load_default and not tried


def test_matplotlibs_font_is_the_last_that_is_tried(monkeypatch):
    def missing(command, **how):
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(fonts.subprocess, "run", missing)
    for origin, last in (("/m/matplotlib/__init__.py", "/m/matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"),
                         (None, fonts.NAMES[-1])):  # fmt: skip
        spec = None if origin is None else SimpleNamespace(origin=origin)
        monkeypatch.setattr(fonts.importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert [*fonts._paths("ж")][-1] == last and [*fonts._paths("")] == []


def test_a_notice_names_twenty_characters_at_most(monkeypatch, capsys):
    without_fonts(monkeypatch)
    for count in (20, 21):
        fonts._font.cache_clear()
        many = "".join(chr(0x4E00 + k) for k in range(count))
        lettering(many)
        assert f"no font here has {many[:20]}{'...' if count > 20 else ''}, so" in capsys.readouterr().err
