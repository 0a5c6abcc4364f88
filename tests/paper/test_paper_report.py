"""The paper runner's report: figures worked by hand, and a page that says what failed, what is missing and what won."""

import dataclasses
import json
import math
import re
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from benchmarks.paper import curves, page, report
from benchmarks.paper.report import Budget, Cell, Metric, Row, Verdict, summarise
from mmfast import MmfastError


def cell(method, seed, values, images=1000, **more):
    """A cell with one metric a name: those that start with "fd" are better lower."""
    metrics = [Metric("joint", name, value, not name.startswith("fd")) for name, value in values.items()]
    fields = {
        "minutes": {"train": 2.0 + seed, "evaluate": 0.5},
        "config": {"steps": 10, "seed": seed},
        "curve": [{"step": i, "images": 100 * i, "loss": 2.0 / i, "lr": 0.1} for i in range(1, 11)],
    }
    return Cell(method, seed, images, **{**fields, "metrics": metrics, **more})


def rows(**values):
    """Rows of one metric by method, from its values over the seeds."""
    cells = [cell(method, i, {"score": x}) for method, xs in values.items() for i, x in enumerate(xs)]
    return summarise(cells)


# --- the numbers -----------------------------------------------------------------------------------------------


def test_mean_and_standard_error():
    """1, 2, 6: mean 3, variance (4 + 1 + 9)/2 = 7, standard error sqrt(7/3); in the order of the seeds; ours first."""
    cells = [cell("plain", 0, {"score": 5.0})]
    cells += [cell("mmfast", seed, {"score": x, "fd": 1.0}) for seed, x in ((2, 6.0), (0, 1.0), (1, 2.0))]
    first, second, third = summarise(cells)
    assert (first.method, first.condition, first.metric) == ("mmfast", "joint", "score")
    assert first.mean == pytest.approx(3) and first.stderr == pytest.approx(math.sqrt(7 / 3))
    assert first.values == [1, 2, 6] and first.n_seeds == 3 and first.failed == [] and first.higher_is_better
    assert second.metric == "fd" and second.stderr == 0 and not second.higher_is_better
    assert (third.method, third.mean, third.stderr, third.n_seeds) == ("plain", 5, None, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_seed_is_named_and_there_is_no_mean(bad):
    (row,) = rows(mmfast=[1.0, bad, 3.0])
    assert math.isnan(row.mean) and row.stderr is None
    assert row.failed == [1] and row.n_seeds == 3


def test_cells_that_do_not_belong_together():
    one = cell("mmfast", 0, {"score": 1.0})
    other = cell("plain", 0, {"score": 1.0})
    other.metrics[0].higher_is_better = False
    twice = cell("mmfast", 0, {"score": 1.0})
    twice.metrics *= 2
    for cells, word in [
        ([one, one], "seed"),
        ([one, cell("mmfast", 1, {"score": 1.0}, images=5)], "images"),
        ([one, other], "score"),
        ([twice], "twice"),
    ]:
        with pytest.raises(MmfastError, match=word) as caught:
            summarise(cells)
        assert "\n" not in str(caught.value)


def test_cells_go_through_json():
    """Every field comes back; what is not finite becomes null and NaN; NumPy's and torch's numbers become Python's."""
    before = cell("mmfast", 1, {"score": torch.tensor(0.5), "fd": math.inf}, threads=2)
    before.config = {"width": np.int64(8), "rate": np.float32(0.5), "sizes": (1, 2), "on": True, "none": None}
    before.curve[3]["loss"] = math.nan
    after = Cell.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after.metrics[0] == Metric("joint", "score", 0.5, True)
    assert math.isnan(after.metrics[1].value) and math.isnan(after.curve[3]["loss"])
    assert after.config == {"width": 8, "rate": 0.5, "sizes": [1, 2], "on": True, "none": None}
    assert (after.method, after.seed, after.images, after.threads) == ("mmfast", 1, 1000, 2)
    assert after.minutes == before.minutes and after.curve[:3] == before.curve[:3]
    for broken in ({}, {**before.to_json(), "colour": 1}, {**before.to_json(), "minutes": None}):
        with pytest.raises(MmfastError, match="cell"):
            Cell.from_json(broken)


# --- the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.5, "0.500"),
        (12, "12.0"),
        (-0.012345, "-0.0123"),
        (999.6, "1000"),
        (0.99961, "1.00"),
        (1234, "1230"),
        (0, "0"),
        (1.23456e-7, "1.23e-07"),
        (4.5e9, "4.50e+09"),
        (math.nan, "failed"),
    ],
)
def test_three_significant_digits(number, shown):
    assert page.three(number) == shown


def test_the_best_is_better_by_more_than_both_errors():
    """Standard errors of 1 each (values 1 apart from the mean, n = 2): 2.5 ahead wins, 1.5 ahead does not."""
    assert page.best(rows(a=[9, 11], b=[6.5, 8.5])) == "a"
    assert page.best(rows(a=[9, 11], b=[7.5, 9.5])) is None
    # Ahead of the last alone is not enough; a method that failed is no rival; nor is one method a contest.
    assert page.best(rows(a=[9, 11], b=[0, 2], c=[8, 10])) is None
    assert page.best(rows(a=[9, 11], b=[0, 2], c=[99, math.nan])) == "a"
    assert page.best(rows(a=[9, 11])) is None and page.best([]) is None
    assert page.best(rows(a=[9, 11], b=[6.5, 8.5]), 3) is None  # two seeds of three
    # A single seed has no error to be better by.
    assert page.best(rows(a=[100], b=[0, 2])) is None
    lower = rows(a=[9, 11], b=[0, 2])
    for row in lower:
        row.higher_is_better = False
    assert page.best(lower) == "b"


def cells_of_two():
    """Two methods, three seeds; the second lacks a metric and a seed of another, and failed once."""
    cells = [cell("mmfast", i, {"score": 0.9 + 0.01 * i, "fd": 1.0 + i}) for i in range(3)]
    cells += [cell("plain | old", i, {"score": 0.5 + 0.01 * i, "loss|2": 7.0}) for i in range(2)]
    cells[-1].metrics.append(Metric("label given", "match", math.nan, True))
    return cells


def write(tmp_path, cells, **more):
    fields = {
        "reference_rows": [Row("real halves", "joint", "score", 0.95, None, 1, [0.95], True)],
        "claims": [
            Budget(1000, [Verdict("both | one", True, "0.9 against 0.5"), Verdict("it is fast", False, "it is not")]),
            Budget(500, [Verdict("both | one", False, "0.4 against 0.5")]),
        ],
        "notes": ["more steps would help"],
        "pictures": [("Samples of mmfast.", "pairs-mmfast.png")],
    }
    out = report.write("pairs", "Pairs", "Do both come out?", cells, **{**fields, **more}, out=tmp_path / "results")
    return out.read_text(encoding="utf-8"), json.loads((tmp_path / "results/pairs.json").read_text())


def table_of(text, heading):
    """The first table under a heading: by method, by metric."""
    block = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    lines = [[x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}


def test_the_page(tmp_path):
    text, _ = write(tmp_path, cells_of_two())
    joint = table_of(text, "joint")
    assert list(joint) == ["mmfast", "plain \\| old", "*real halves*"]
    # 0.90, 0.91, 0.92: standard error 0.01/sqrt(3); 0.50, 0.51: 0.005.
    assert joint["mmfast"] == {"score ↑": "**0.910 ± 0.00577**", "fd ↓": "2.00 ± 0.577", "loss\\|2 ↑": "-"}
    assert joint["plain \\| old"]["score ↑"] == "0.505 ± 0.00500 (n = 2)"
    assert joint["plain \\| old"]["fd ↓"] == "-"
    assert joint["*real halves*"]["score ↑"] == "0.950"
    assert table_of(text, "label given")["plain \\| old"] == {"match ↑": "failed"}
    assert "- plain | old, label given, match: seed 1\n" in text
    claims = table_of(text, "Claims")
    assert claims["both \\| one"]["holds"] == "yes" and claims["it is fast"]["holds"] == "**no**"
    assert table_of(text, "What more compute changes") == {
        "both \\| one": {"500 images seen": "no: 0.4 against 0.5", "1,000 images seen": "yes: 0.9 against 0.5"},
        "it is fast": {"500 images seen": "-", "1,000 images seen": "no: it is not"},
    }
    minutes = table_of(text, "Minutes")
    assert list(minutes["mmfast"].values()) == ["1,000", "2.00, 3.00, 4.00", "0.500, 0.500, 0.500"]
    assert "python -m benchmarks.paper pairs --seeds 3 --images 1000\n" in text
    assert "- more steps would help" in text and "(pairs-mmfast.png)\n\nSamples of mmfast.\n" in text
    assert text.startswith("# Pairs\n\nDo both come out?\n\n## joint")


def test_a_comparison_on_another_footing_has_tables_of_its_own(tmp_path):
    """What stands there alone is in no other table, and rows under conditions that it lacks are not repeated."""
    cells = [cell("mmfast", 0, {"score": 0.9, "fd": 1.0}), cell("plain", 0, {"score": 0.5, "fd": 2.0})]
    cells.append(cell("twice", 0, {"score": 0.95}, images=2000))
    section = report.Section("Twice", "On twice the images.", ["twice", "plain"], ["twice"], [Verdict("up", True, "x")])
    text, kept = write(tmp_path, cells, sections=[section])
    assert list(table_of(text, "joint")) == ["mmfast", "plain", "*real halves*"]
    assert table_of(text, "Twice: joint") == {"twice": {"score ↑": "0.950"}, "plain": {"score ↑": "0.500"}}
    assert "## Twice\n\nOn twice the images.\n\n### Twice: joint" in text and "| up | yes | x |" in text
    assert "--images 1000\n" in text and kept["images"]["twice"] == 2000
    assert kept["sections"] == {"Twice": [{"claim": "up", "holds": True, "evidence": "x"}]}


def test_many_conditions_of_one_method_share_a_table(tmp_path):
    """Seven have it and six have not; one that has a rival or a reference keeps its own."""
    names = [f"given {n}" for n in "abcdefg"]
    for count in (6, 7):
        metrics = [Metric(where, "score", 0.1 * i, True) for i, where in enumerate(names[:count])]
        own = dataclasses.replace(
            cell("mmfast", 0, {"score": 0.9}), metrics=[Metric("joint", "score", 0.9, True), *metrics]
        )
        text, _ = write(tmp_path / str(count), [own, cell("plain", 0, {"score": 0.5})])
        assert ("## Without a rival" in text) == (count == 7) and ("## given a" in text) == (count == 6)
    shared = table_of(text, "Without a rival")
    assert shared == {where: {"score ↑": f"{0.1 * i:.3f}" if i else "0"} for i, where in enumerate(names)}
    assert list(table_of(text, "joint")) == ["mmfast", "plain", "*real halves*"]


def test_the_json(tmp_path):
    _, found = write(tmp_path, cells_of_two())
    assert list(found) == [
        "task", "commit", "dirty", "samples", "drawn", "trained_at", "evaluated_at", "machine", "images", "seeds",
        "configs", "minutes",
        "rows", "verdicts", "notes", "options", "sections",
    ]  # fmt: skip
    assert found["task"] == "pairs" and found["seeds"] == [0, 1, 2]
    assert found["images"] == {"mmfast": 1000, "plain | old": 1000}
    assert found["minutes"]["mmfast"] == {"train": [2, 3, 4], "evaluate": [0.5, 0.5, 0.5]}
    assert found["configs"]["mmfast"] == {"steps": 10, "seed": 0}
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["threads"] == [1]
    by_name = {(row["method"], row["metric"]): row for row in found["rows"]}
    failed = by_name["plain | old", "match"]
    assert failed["mean"] is None and failed["values"] == [None] and failed["failed"] == [1]
    assert by_name["mmfast", "score"]["values"] == [0.9, 0.91, 0.92]
    assert by_name["real halves", "score"]["mean"] == 0.95
    assert found["verdicts"][1] == {"claim": "it is fast", "holds": False, "evidence": "it is not"}
    assert not [file for file in (tmp_path / "results").iterdir() if "tmp" in file.name]


def test_a_page_has_the_claims_of_the_pages_below_it(tmp_path):
    text, _ = write(tmp_path / "results" / "gpu", cells_of_two())
    (tmp_path / "results" / "gpu" / "results").rename(tmp_path / "results" / "gpu" / "moved")
    claims = [Budget(500, [Verdict("both | one", False, "0.4")]), *report.kept_below("pairs", tmp_path / "results/gpu")]
    text, _ = write(tmp_path, cells_of_two(), claims=claims)
    assert table_of(text, "What more compute changes") == {
        "both \\| one": {
            "500 images seen": "no: 0.4",
            "1,000 images seen ([page](moved/pairs.md))": "yes: 0.9 against 0.5",
        }
    }
    assert report.kept_below("another", tmp_path / "results/gpu") == []


def test_one_seed_and_nothing_else(tmp_path):
    """No standard errors, no winner, no reference, claims, notes or curves; and no cells is an error."""
    cells = [cell("mmfast", 4, {"score": 0.9}, curve=[]), cell("plain", 4, {"score": 0.1}, curve=[])]
    text, found = write(tmp_path, cells, reference_rows=[], claims=[Budget(1000, [])], notes=[], pictures=[])
    assert table_of(text, "joint") == {"mmfast": {"score ↑": "0.900"}, "plain": {"score ↑": "0.100"}}
    assert "One seed (4)" in text and "**" not in text and "png" not in text
    assert not any(heading in text for heading in ("## Claims", "## Notes", "Failed"))
    assert found["rows"][0]["stderr"] is None
    with pytest.raises(MmfastError, match="cells"):
        write(tmp_path, [])


def test_the_commit(tmp_path, monkeypatch):
    """HEAD; dirty for a change anywhere but in benchmarks/results; neither outside a checkout."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.current_commit() == (None, None)
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "one", "--no-gpg-sign")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/pairs.json").write_text("{}")
    assert report.current_commit() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "code.py").write_text("2")
    assert report.current_commit() == (git("rev-parse", "HEAD"), True)


# --- the curves ------------------------------------------------------------------------------------------------


def line(losses, every=100):
    return [{"step": i, "images": every * i, "loss": loss} for i, loss in enumerate(losses)]


def test_a_band_over_seeds():
    """Where all seeds have been; powers of e are lines on a log axis, so what lies between points is exact."""
    short, long = line([math.exp(-i) for i in range(5)]), line([math.exp(1 - 2 * i) for i in range(4)], every=200)
    images, low, mean, high = curves.band([short, long])
    assert images[0] == 0 and images[-1] == 400
    a, b = np.exp(-images / 100), np.exp(1 - images / 100)
    np.testing.assert_allclose(low, a, rtol=1e-12)
    np.testing.assert_allclose(high, b, rtol=1e-12)
    np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-12)


def test_what_a_curve_cannot_show_is_left_out():
    """NaN and losses that are not positive; a constant stays constant under the running mean, up to the ends."""
    losses = [2.0] * 100
    losses[3], losses[50], losses[99] = math.nan, -1.0, math.inf
    images, low, mean, high = curves.band([line(losses)])
    assert images[-1] == 9800
    for loss in (low, mean, high):
        np.testing.assert_allclose(loss, 2.0, rtol=1e-12)
    assert curves.band([]) is None and curves.band([[], line([math.nan])]) is None


def test_the_running_mean_smooths():
    """Noise of deviation 1 around 10: over windows of five points its deviation falls to about 1/sqrt(5)."""
    noise = np.random.default_rng(0).normal(size=125)
    _, _, mean, _ = curves.band([line(10 + noise)])
    assert 0.3 < mean.std() < 0.6


def test_the_picture(tmp_path):
    """A png that differs with the curves, and is on the page; none without curves."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install matplotlib")
    text, _ = write(tmp_path, cells_of_two())
    file = tmp_path / "results/pairs-curves.png"
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG") and "(pairs-curves.png)" in text
    cells = cells_of_two()
    cells[0].curve = line([math.exp(-i / 50) for i in range(200)])
    write(tmp_path, cells)
    assert file.read_bytes() != first
    assert not curves.draw({"mmfast": [[]]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_names_of_any_length_are_whole_in_the_picture(tmp_path, words):
    """Nothing is drawn at the picture's edges, where a legend that is too wide would be cut."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install matplotlib")
    named = {f"{i} " + " method" * words: [line([2.0, 1.0, 0.5])] for i in range(18)}
    assert curves.draw(named, tmp_path / "curves.png")
    pixels = np.asarray(PILImage.open(tmp_path / "curves.png").convert("L"))
    assert pixels.shape[1] == 800 and (pixels[:, [0, 1, -2, -1]] == 255).all() and (pixels[:2] == 255).all()


def test_the_error_against_t(tmp_path):
    """Of the rows of its condition: timesteps as numbers, the lowest, mean and highest seed; a picture on the page."""

    def found(method, seed, scale):
        one = cell(method, seed, {"score": 1.0})
        one.metrics += [Metric(curves.ERRORS, f"t = {t}", scale * t, False) for t in (100, 9, 1)]
        return one

    cells = [found("mmfast", 0, 1.0), found("mmfast", 1, 4.0), found("plain", 0, 2.0)]
    bands = curves.error_bands(summarise(cells))
    assert list(bands) == ["mmfast", "plain"]
    assert [x.tolist() for x in bands["mmfast"]] == [[1, 9, 100], [1, 9, 100], [2.5, 22.5, 250], [4, 36, 400]]
    assert curves.error_bands(summarise([cell("mmfast", 0, {"score": 1.0})])) == {}
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install matplotlib")
    text, _ = write(tmp_path, cells)
    assert "(pairs-errors.png)" in text
    assert (tmp_path / "results/pairs-errors.png").read_bytes().startswith(b"\x89PNG")


def test_no_matplotlib(tmp_path, monkeypatch, capsys):
    """The numbers are worth more than the picture: they are written, and a line says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    text, found = write(tmp_path, cells_of_two())
    assert found["rows"] and "curves.png" not in text
    assert "mmfast[bench]" in capsys.readouterr().out
