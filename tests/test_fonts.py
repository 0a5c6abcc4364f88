"""The texts in pictures: a font that has their characters, or their codes."""

import subprocess

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
    for text in ("shirt 3", "", "a\nb", "100 %"):
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
