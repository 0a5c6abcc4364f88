"""Counts in words: the singular for 1 alone."""

import pytest

from mmfast.progress import Bar, duration
from mmfast.words import plural


@pytest.mark.parametrize(
    ("count", "thing", "said"),
    [
        (1, "example", "1 example"),
        (0, "example", "0 examples"),
        (1000, "step", "1,000 steps"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_and_what_is_counted(count, thing, said):
    assert plural(count, thing) == said


def test_what_is_shown_of_a_work(capsys):
    Bar(1, "reading", "batch")
    Bar(5, "reading", "batch", done=2)
    assert capsys.readouterr().err == "reading: 1 batch\nreading: 3 batches\n"
    assert [duration(x) for x in (86400, 2 * 86400 + 7200, 61)] == ["1 day", "2 days 2 h", "1 min 1 s"]
