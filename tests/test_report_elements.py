"""The markup of a report as it is written, and the limits of what goes into the page."""

from dataclasses import dataclass, field
from importlib import import_module

import pytest
from html_page import Page

from mmfast.report import content, figures
from mmfast.report.elements import Markup, element, folded, join, table, terms
from mmfast.report.page import POLICY

page = import_module("mmfast.report.page")  # a function has the name too


def test_elements_escape_what_is_no_markup():
    found = element("p", "a <b> & ", Markup("<i>c</i>"), 3, class_="x", data_y='"q"', none=None)
    assert found == '<p class="x" data-y="&quot;q&quot;">a &lt;b&gt; &amp; <i>c</i>3</p>' and isinstance(found, Markup)
    assert element("img", src="a") == '<img src="a">' and element("meta", charset="u") == '<meta charset="u">'
    assert element("p") == "<p></p>" and join("<", Markup("<")) == "&lt;<" and isinstance(join(), Markup)
    assert folded("a<", "b") == "<details><summary>a&lt;</summary>b</details>"
    assert terms([("a", "<"), ("b", 2)]) == "<dl><dt>a</dt><dd>&lt;</dd><dt>b</dt><dd>2</dd></dl>"


def test_a_table_says_what_heads_a_row_and_a_column():
    assert table(["A", "B", "C"], [["x", 1, 2], ["y", "<", 4]]) == (
        '<table><thead><tr><th scope="col">A</th><th scope="col">B</th><th scope="col">C</th></tr></thead><tbody>'
        '<tr><th scope="row">x</th><td data-head="B">1</td><td data-head="C">2</td></tr>'
        '<tr><th scope="row">y</th><td data-head="B">&lt;</td><td data-head="C">4</td></tr></tbody></table>'
    )
    with pytest.raises(ValueError, match="argument"):
        table(["A", "B"], [["x"]])


def test_what_goes_into_a_page_has_limits():
    assert (content.OTHERS, content.LARGEST, content.MOST_STEPS, content.LARGEST_VALUE) == (4, 2**23, 10**9, 1e100)
    assert [content.finite(x) for x in (1, -2.5, 0, 9e99)] == [True] * 4
    for value in (True, "1", None, 1e100, -1e100, float("nan"), float("inf"), [1]):
        assert not content.finite(value)
    assert POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    ("steps", "missing"),
    [([], []), ([1, 2, 3], []), ([3], [(1, 2)]), ([1, 3, 4, 8], [(2, 2), (5, 7)]), ([2, 3], [(1, 1)])],
)
def test_steps_that_no_line_is_of(steps, missing):
    assert [*content._missing(steps)] == missing


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("step-0000120-joint.png", ("0000120", None)),
        ("step-5-given-label.png", ("5", "label")),
        ("step-1234567890-joint.png", None),
        ("step-1-given-.png", None),
        ("a-step-1-joint.png", None),
        ("step-1-joint.png.png", None),
    ],
)
def test_which_pictures_are_grids(name, found):
    match = content.GRID.fullmatch(name)
    assert (match and (match["step"], match["given"])) == found


@dataclass
class Options:
    kind: str = "mine"
    one: int = 1
    yes: bool = True
    no: bool = False
    text: str = ""
    none: float | None = None
    items: list = field(default_factory=list)
    more: dict = field(default_factory=lambda: {"a": 2})


def test_options_that_say_something_stand_in_one_line():
    assert page._options(Options()) == "mine, one 1, yes True, more {'a': 2}"
    assert page._options(Options(kind="", text="x"), but=("more", "one")) == "yes True, text x"


def test_notes_are_a_list_that_is_called_so():
    assert page._notes([]) == "" and page._notes(["a<", "b"]) == (
        '<aside aria-label="Notes"><ul><li>a&lt;</li><li>b</li></ul></aside>'
    )


@pytest.mark.parametrize(("count", "every"), [(1, 1), (10, 1), (11, 2), (21, 2), (22, 3)])
def test_the_times_of_the_error_are_marked_evenly_and_the_last_always(count, every):
    times = [3 * k + 1 for k in range(count)]
    metrics = {f"x0_error.{t}": (1 / t if t != 4 else 7.0) for t in reversed(times)}
    found = Page(page._error(metrics, [figures.explain(name) for name in metrics]))
    shown = [text for a, text in zip(found.of("text"), found.said("text"), strict=True) if a["text-anchor"] == "middle"]
    assert shown[:-1] == [str(t) for t in times[::-1][::every][::-1]]
    worst = "1 at 1" if count == 1 else "7 at 4"
    steps = "timestep" if count == 1 else "timesteps"
    assert f"{count} {steps} from 1 to {times[-1]}: 1 at the first, " in found.of("svg")[0]["aria-label"]
    assert f"the largest {worst}." in found.of("svg")[0]["aria-label"] and len(found.of("circle")) == count
    assert page._error({"x0_error.1": float("nan")}, [figures.explain("x0_error.1")]) == ""


def test_the_curves_of_few_and_of_many_steps():
    """The mean is of a fiftieth of the values, of one at least, and of what is seldom measured of one."""

    def rows(count, name):
        series = content.Series(name, [*range(1, count + 1)], [float(k) for k in range(1, count + 1)])
        return Page(page._curves([series])).rows[name]

    assert rows(3, "loss") == {"First": 1, "Last": 3, "Mean at the end": 3, "Steps in that mean": "1"}
    assert rows(199, "loss.image") == {"First": 1, "Last": 199, "Mean at the end": 198, "Steps in that mean": "3"}
    assert rows(199, "validation.loss")["Mean at the end"] == 199 == rows(199, "learning_rate")["Mean at the end"]
    names = ["learning_rate", "validation.x", "loss.b", "validation.loss", "balance.a", "loss.a", "loss"]
    series = [content.Series(name, [1], [1.0]) for name in names]
    order = ["loss", "loss.b", "loss.a", "balance.a", "validation.loss", "validation.x", "learning_rate"]
    assert [*Page(page._curves(series)).rows][1:] == order
