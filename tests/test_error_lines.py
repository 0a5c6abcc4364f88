"""Errors, notices and stats as lines: what becomes of texts that are none."""

import io
import sys

import pytest

from mmfast.errors import LONGEST, BackendError, MmfastError, missing_extra, notice, say, unknown
from mmfast.stats_lines import healed, stats_lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  one\n  two \n\nthree  ", "one two  three"),
        ("a\x1b[31mb\u2028c\udce9", "a\\x1b[31mb c\\udce9"),
        ("café 日本", "café 日本"),
        (
            "x\nTraceback (most recent call last):\n  File\nmmfast.errors.MmfastError: a.png is damaged",
            "a.png is damaged",
        ),
        ("Traceback (most recent call last): alone", "Traceback (most recent call last): alone"),
        ("a" * 1500, "a" * 1500),
        ("a" * 800 + "b" * 800, "a" * 750 + " ... " + "b" * 750),
    ],
)
def test_any_text_is_one_line_that_can_be_printed(text, line):
    assert str(MmfastError(text)) == line and LONGEST == 1500
    assert isinstance(MmfastError(text), ValueError) and str(MmfastError()) == "" and str(BackendError(3)) == "3"


def test_a_name_that_is_none_is_told_with_the_nearest():
    assert str(unknown("data.kind", "foldr", ["table", "folder"])) == (
        "data.kind is 'foldr'; it should be one of table, folder; did you mean 'folder'?"
    )
    assert str(unknown("x", 3, iter([1, 2]))) == "x is 3; it should be one of 1, 2"
    assert str(unknown("x", "a", [])) == "x is 'a'; it should be one of (none)"
    assert str(missing_extra("scikit-learn", "digits", "the digits")) == (
        "the digits needs scikit-learn, which is not installed: pip install 'mmfast[digits]'"
    )


def test_notices_are_lines_on_stderr_where_somebody_reads_them(capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(5, "closed")

    for there in (True, False):
        if not there:
            monkeypatch.delitem(sys.modules, "tqdm", raising=False)
        say("a line")
        notice("to be known")
        found = capsys.readouterr()
        assert (found.out, found.err) == ("", "a line\nmmfast: to be known\n")
    monkeypatch.setattr(sys, "stderr", Closed())
    notice("lost")


def line(step, **more):
    return f'{{"step": {step}, "loss": {more.get("loss", 1)}}}\n'


def test_lines_of_stats_that_are_whole():
    text = line(3) + "\n[1]\nnull\n" + '{"step": true}\n{"step": 2.0}\n{"loss": 1}\n' + line(1) + '{"step": 4, "lo'
    assert [*stats_lines(text.encode() + b"\n\xff\n" + b"[" * 10_000)] == [(3, line(3)), (1, line(1))]


def test_stats_are_healed_step_by_step():
    before = (line(2) + line(1) + line(2, loss=9) + line(4) + line(4) + line(9) + line(6, loss=5)).encode()
    assert healed(before, 8, line(7) + line(6, loss=8)) == (
        line(1) + line(2) + line(4) + line(6, loss=8) + line(7),
        ["no line for steps 3, 5, 8", "two for steps 2, of which the first is kept"],
    )
    assert healed((line(1) + line(1, loss=2)).encode(), 1, line(1, loss=3)) == (line(1, loss=3), [])
    assert healed(b"", 0, "") == ("", [])
    odd = "".join(line(k) for k in (4, 6, 8, 10, 11))
    assert healed(odd.encode(), 14, "")[1] == ["no line for steps 1 .. 3, 5, 7, 9, ..."]
    assert healed(odd.encode(), 11, "")[1] == ["no line for steps 1 .. 3, 5, 7, 9"]
