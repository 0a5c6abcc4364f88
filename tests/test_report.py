"""`mmfast report`: what the page says, read back by an HTML parser, against the files of the run; hostile and damaged
runs."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from mmfast import config as configs
from mmfast import modalities
from mmfast.cli import main
from mmfast.report import content, figures

STEPS = 120
METRICS = {
    "samples": 40.0,
    "label.joint_agreement": 0.9123456789012345,
    "label.recovered_accuracy": 0.75,
    "mask.conditional_iou": 0.625,
    "frechet.samples": 78.2235327395531,
    "frechet.real_halves": 32.8207014088116,
    "precision.samples": 0.25,
    "precision.real_halves": 0.5,
    "bound.L1": -3.5,
    "x0_error.1": 0.0001,
    "x0_error.40": 0.01,
    "x0_error.1000": 1.0,
}


def stats(steps=STEPS):
    return [
        {"step": k, "images": 8 * k, "loss": 1 / k, "loss.image": 2.0 + k % 7, "learning_rate": k / 8} for k in steps
    ]


def lines(found):
    return "".join(json.dumps(line) + "\n" for line in found)


def picture(file, colour, size=(40, 30)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file.read_bytes()


def make(folder, names=(), **files):
    """A run's folder: its config and stats, and figures; files: texts that take their place, None for none."""
    folder.mkdir()
    config = configs.load("digits", [("train.steps", str(STEPS)), ("train.batch_size", "8")])
    config.modalities["label"].names = list(names)
    config.modalities["label"].classes = len(names) or 10
    texts = {
        "config.yaml": configs.to_yaml(config),
        "stats.jsonl": lines(stats(range(1, STEPS + 1))),
        "metrics.json": json.dumps(METRICS),
    }
    for name, text in (texts | files).items():
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def report(folder, *more):
    assert main(["report", str(folder), *more]) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run")


def notes(page):
    return " ".join(page.said("li"))


def test_the_figures_are_those_of_the_file_with_the_real_one_beside(run):
    page = report(run)
    beside = {"frechet.samples": "frechet.real_halves", "precision.samples": "precision.real_halves"}
    for name, value in METRICS.items():
        if name in beside.values():
            assert name not in page.rows
            continue
        row = page.rows[name]
        assert row["Value"] == value and len(row["Meaning"]) > 20
        assert row.get("Real against real") == (METRICS[beside[name]] if name in beside else None)
    direction = {name: page.rows[name].get("Direction") for name in METRICS if name in page.rows}
    higher = {"label.joint_agreement", "label.recovered_accuracy", "mask.conditional_iou", "precision.samples"}
    assert {name for name, text in direction.items() if text == "higher is better"} == higher
    assert {name for name in direction if name not in higher} - {"samples"} == {
        name for name, text in direction.items() if text == "lower is better"
    }
    assert "not finished" not in notes(page)


def test_a_missing_reference_is_none_and_a_lone_one_has_a_row_of_its_own(tmp_path):
    given = {"frechet.samples": 2.0, "precision.samples": 0.5, "precision.real_halves": 0.25, "recall.real_halves": 1.0}
    page = report(make(tmp_path / "run", **{"metrics.json": json.dumps(given)}))
    assert page.rows["frechet.samples"]["Real against real"] == "none"
    assert page.rows["precision.samples"]["Real against real"] == 0.25
    assert page.rows["recall.real_halves"]["Value"] == 1.0


def test_the_page_of_a_run_without_an_image_speaks_of_none(tmp_path):
    page = report(make(tmp_path / "run", **{"config.yaml": configs.to_yaml(configs.load("table"))}))
    assert page.rows["frechet.samples"]["Meaning"] == (
        "Frechet distance of the samples to real examples, over the numbers of row: 0 for the same distribution."
    )
    assert page.rows["x0_error.40"]["Meaning"].startswith("Mean squared error of the row predicted from z_t at t = 40")


def test_the_curves_have_the_numbers_of_the_stats(run):
    page = report(run)
    window = STEPS // 50
    for name, of in (("loss", lambda k: 1 / k), ("loss.image", lambda k: 2.0 + k % 7)):
        row = page.rows[name]
        assert (row["First"], row["Last"]) == (of(1), of(STEPS))
        mean = sum(of(k) for k in range(STEPS - window + 1, STEPS + 1)) / window
        assert row["Mean at the end"] == pytest.approx(mean, rel=1e-12) and row["Steps in that mean"] == str(window)
    assert page.rows["learning_rate"]["Mean at the end"] == STEPS / 8
    told = [svg["aria-label"] for svg in page.of("svg")]
    assert len(told) == 4 and all(svg["role"] == "img" for svg in page.of("svg"))
    assert any("from step 1 to 120: 1 at first" in text for text in told)
    assert any("3 timesteps from 1 to 1000: 0.0001 at the first, 1 at the last" in text for text in told)


def test_the_newest_whole_grid_of_every_direction_is_in_the_page(run):
    newest = picture(run / "samples" / "step-0000120-joint.png", "red")
    older = picture(run / "samples" / "step-0000060-joint.png", "blue")
    given = picture(run / "samples" / "step-0000060-given-mask.png", "green")
    (run / "samples" / "step-0000120-given-mask.png").write_bytes(given[:-30])
    by_hand = picture(run / "samples" / "sample-label-3-seed0.png", "white")
    (run / "samples" / ".tmp-step-0000120-joint.png").write_bytes(b"half")
    page = report(run)
    shown = [base64.b64decode(a["src"].removeprefix("data:image/png;base64,")) for a in page.of("img")]
    assert shown == [newest, given, by_hand] and older not in shown
    assert all((a["width"], a["height"]) == ("40", "30") and len(a["alt"]) > 20 for a in page.of("img"))
    captions = page.said("figcaption")
    assert captions[:2] == [
        "Generated together, nothing given; step 120",
        "Given mask: the rest generated; step 60",
    ]
    assert "step-0000120-given-mask.png cannot be read as a picture" in notes(page) and ".tmp-" not in notes(page)


def test_the_newest_pictures_drawn_by_hand_are_in_the_page_but_no_huge_one(run, monkeypatch):
    monkeypatch.setattr(content, "OTHERS", 2)
    monkeypatch.setattr(content, "LARGEST", 2000)
    made = {name: picture(run / "samples" / f"{name}.png", "red", (40, k)) for k, name in enumerate("abcd", 1)}
    (run / "samples" / "d.png").write_bytes(made["d"] + bytes(2000))
    for name, age in {"a": 30, "b": 10, "c": 20, "d": 0}.items():
        os.utime(run / "samples" / f"{name}.png", (1e9 - age, 1e9 - age))
    page = report(run)
    shown = [base64.b64decode(a["src"].removeprefix("data:image/png;base64,")) for a in page.of("img")]
    assert shown == [made["b"], made["c"]] and "samples/d.png has" in notes(page)


def test_scatter_plots_are_training_s_and_the_newest_of_each_direction(run):
    """They are no pictures that `mmfast sample` drew."""
    made = {}
    for step, of in ((60, "joint-row"), (120, "joint-row"), (120, "given-label-row")):
        made[step, of] = picture(run / "samples" / f"scatter-{step:07d}-{of}.png", "red", (40, step))
    page = report(run)
    shown = [base64.b64decode(a["src"].removeprefix("data:image/png;base64,")) for a in page.of("img")]
    assert shown == [made[120, "given-label-row"], made[120, "joint-row"]]
    how = "the drawn rows in red, real ones in grey; step 120"
    assert page.said("figcaption")[:2] == [f"Given label row: {how}", f"Joint row: {how}"]
    assert "Drawn with mmfast sample" not in page.said("h3")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</code></pre><h1>",
    "&lt;b&gt;",
    "a' onclick='x",
]


def test_no_text_of_a_file_becomes_markup(tmp_path, capsys):
    folder = tmp_path / "<b>a run & more"
    metrics = {"<i>mask.recovered_iou": 0.5, "</td><script>x</script>": 1.0, "<u>": "<s>"}
    bad = [line | {"loss.<svg onload=x>": 1.0} for line in stats(range(1, STEPS + 1))]
    make(folder, HOSTILE, **{"metrics.json": json.dumps(metrics), "stats.jsonl": lines(bad)})
    picture(folder / "samples" / "step-0000120-given-<em>.png", "red")
    picture(folder / "samples" / 'sample-" onload="x.png', "red")
    page = report(folder)
    text = (folder / "report.html").read_text()
    assert [name for name in page.said("li") if name in HOSTILE] == HOSTILE and page.of("ol")[0]["start"] == "0"
    assert set(METRICS).isdisjoint(page.rows) and {"<i>mask.recovered_iou", "</td><script>x</script>"} <= set(page.rows)
    assert page.said("h1") == ["Run <b>a run & more"]
    assert (folder / "config.yaml").read_text() in page.said("code")
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "b>a", "i", "u", "s", "em", "iframe", "link", "object", "base", "form"})
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert len(page.of("h1")) == 1 and "<script" not in text


def test_the_page_fetches_nothing(run):
    picture(run / "samples" / "step-0000120-joint.png", "red")
    page = report(run)
    links = [a.get("href", a.get("src")) for _, a in page.elements if "href" in a or "src" in a]
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert links and all(link.startswith("data:image/png;base64,") or link[1:] in anchors for link in links)
    style = "".join(page.said("style"))
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and dict(page.elements)["html"] == {"lang": "en"}


SOME = lines(stats(range(1, 41)))
DAMAGED = {
    "none": ({"stats.jsonl": None}, "No step of training is recorded yet"),
    "empty": ({"stats.jsonl": ""}, "No step of training is recorded yet"),
    "unfinished": ({"stats.jsonl": SOME}, "not finished: step 40 of 120"),
    "half a line": ({"stats.jsonl": SOME + '{"step": 41, "lo'}, "has 1 line that cannot be read"),
    "binary": ({"stats.jsonl": SOME.encode() + b"\xff\xfe\x00\n" * 3}, "has 3 lines that cannot be read"),
    "gaps": ({"stats.jsonl": lines(stats([3, 4, 8, 10]))}, "no line for steps 1 to 2, 5 to 7, 9."),
    "a step of many digits": ({"stats.jsonl": SOME + '{"step": 1' + "0" * 40 + "}\n"}, "has 1 line that cannot"),
    "no numbers": ({"stats.jsonl": SOME + '{"step": 41, "loss": NaN, "b": [1], "c": null}\n'}, "left out: 3."),
    "a huge number": ({"stats.jsonl": SOME + '{"step": 41, "loss": 1e300}\n'}, "left out: 1."),
    "a step twice": ({"stats.jsonl": SOME + '{"step": 40, "loss": 9}\n'}, "not finished: step 40 of 120"),
    "no figures": ({"metrics.json": None}, "no figures yet (metrics.json): they are written when training ends"),
    "figures cut off": ({"metrics.json": '{"samples": 4'}, "metrics.json cannot be read"),
    "figures in a list": ({"metrics.json": "[1]"}, "metrics.json cannot be read: it holds a list"),
    "figures nested": ({"metrics.json": "[" * 100_000}, "metrics.json cannot be read"),
    "figures of bytes": ({"metrics.json": b"\xff\x00"}, "metrics.json cannot be read"),
    "a figure that is text": ({"metrics.json": '{"samples": "many", "x0_error.1": 1}'}, "samples in metrics.json is"),
    "figures that are not finite": ({"metrics.json": '{"x0_error.1": NaN, "bound.L1": Infinity}'}, "is inf."),
    "another version": ({"config.yaml": "anchor: image\nwings: 2\n"}, "cannot read the config"),
    "no pictures": ({}, "no sample grids yet"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_an_unfinished_or_damaged_run_has_a_page_that_says_so(case, tmp_path, capsys):
    files, said = DAMAGED[case]
    page = report(make(tmp_path / "run", **files))
    assert said in notes(page)
    if "stats.jsonl" in files and "loss" in page.rows and case != "gaps":
        assert page.rows["loss"]["Last"] == 1 / 40
    assert capsys.readouterr().err == ""


def test_stats_that_are_too_long_to_be_read_are_not_taken_for_none(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "LONGEST", 50)
    said = notes(report(make(tmp_path / "run")))
    assert "stats.jsonl cannot be read" in said and "No step of training" not in said


def test_an_earlier_report_is_replaced_and_nothing_else_is(run, tmp_path, capsys):
    report(run)
    (run / "metrics.json").write_text('{"samples": 7}')
    assert report(run).rows["samples"]["Value"] == 7
    other = tmp_path / "mine.html"
    other.write_text("my page")
    for out, said in (
        (other, "which already exists; choose another name, or add --overwrite"),
        (tmp_path / "a.pdf", "--out is .*a.pdf; it should end in .html or .htm"),
        (tmp_path / "none" / "a.html", "none is not a folder; create it, or choose another place"),
        (tmp_path, "should end in .html"),
    ):
        assert main(["report", str(run), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert re.search(said, error) and error.count("\n") == 1
    kept = (run / "report.html").read_bytes()
    (run / "report.html").write_text("my page")
    assert main(["report", str(run)]) == 2 and "already exists and is not a report" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "my page"
    (run / "report.html").write_bytes(kept)
    assert other.read_text() == "my page" and sorted(x.name for x in tmp_path.iterdir()) == ["mine.html", "run"]
    assert main(["report", str(run), "--out", str(tmp_path / "new.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new.html")
    assert main(["report", str(tmp_path / "no run")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_every_score_of_a_modality_has_its_meaning():
    kinds = modalities.KINDS.values()
    assert {x for kind in kinds for x in (kind.metric, kind.joint_metric)} <= set(figures.SCORES)
    for name in ("frechet_vgg16@64.samples", "recall_my.net:f.samples", "bound.nearer.discrete.label_bits",
                 "bound.fitted.L3_bits", "bound.density.my-vector", "masked.conditional_lpips_alex"):  # fmt: skip
        found = figures.explain(name)
        assert found.better and "{" not in found.meaning
    lower = ["frechet.samples", "image.recovered_rmse", "a.conditional_lpips_vgg", "bound.pixels", "x0_error.7"]
    assert {figures.explain(name).better for name in lower} == {figures.LOWER}
    higher = ["precision.samples", "recall.samples", "m.joint_iou", "v.recovered_cosine", "l.joint_agreement"]
    assert {figures.explain(name).better for name in higher} == {figures.HIGHER}
    assert figures.explain("frechet_vgg16@64.samples").reference == "frechet_vgg16@64.real_halves"
    assert "my-vector" in figures.explain("bound.density.my-vector").meaning
    assert "bits per example" in figures.explain("bound.discrete.label_bits").meaning
    assert "label in" in figures.explain("bound.discrete.label_bits").meaning
    # An image may stand beside an anchor that is none, so the unit does not follow from the anchor.
    for anchor in ("", "row"):
        for name in ("image", "row"):
            meaning = figures.explain(f"{name}.recovered_rmse", anchor).meaning
            assert "values in -1 to 1 (pictures) or standardised (tables)" in meaning
    assert "bits per dimension" in figures.explain("bound.pixels_bits").meaning
    assert figures.explain("cat.fluff").better == "" and "No description" in figures.explain("cat.fluff").meaning


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A run that training made, of two steps, with figures."""
    pytest.importorskip("sklearn")
    few = ["train.steps=2", "train.batch_size=4", "train.sample_every=0", "train.tensorboard=false", "schedule.T=8",
           "sample.count=2", "sample.steps=1", "evaluate.samples=8", "evaluate.bound_steps=1", "train.device=cpu",
           "backbone={kind: mlp, width: 16, blocks: 1, features: 4}"]  # fmt: skip
    monkeypatch.setattr("mmfast.cli.keep_freed_memory", lambda: True)
    folder = tmp_path / "a run"
    assert main(["train", "digits", "--out", str(folder), "--quiet", *(f"--{option}" for option in few)]) == 0
    return folder


def commands(page):
    return [shlex.split(text) for text in page.said("code") if text.startswith("mmfast ")]


def test_of_a_real_run_every_figure_is_known(real):
    page = report(real)
    metrics = json.loads((real / "metrics.json").read_text())
    assert {name: page.rows[name]["Value"] for name in metrics if not name.endswith("real_halves")} == {
        name: x for name, x in metrics.items() if not name.endswith("real_halves")
    }
    assert not any("No description" in row.get("Meaning", "") for row in page.rows.values())
    assert len(page.of("img")) == 4 and not page.of("aside")
    assert [words[1] for words in commands(page)] == ["train", *["sample"] * 4, "eval", "report"]
    assert all(str(real) in words for words in commands(page))


@pytest.mark.slow
def test_the_commands_of_the_page_work(real):
    for program, *words in commands(report(real)):
        more = {"sample": ["--steps", "1", "--n", "2", "--quiet"], "eval": ["--samples", "4", "--quiet"]}
        assert program == "mmfast" and main([*words, *more.get(words[0], [])]) == 0


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_on_a_narrow_dark_screen(run, tmp_path):
    picture(run / "samples" / "step-0000120-joint.png", (255, 0, 0), (1200, 30))
    report(run)
    shot, width, height = tmp_path / "page.png", 390, 6000
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}",
         "--blink-settings=preferredColorScheme=0", f"--window-size={width},{height}", f"--screenshot={shot}",
         (run / "report.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    paper = np.array([0x14, 0x17, 0x1D])
    assert pixels.shape == (height, width, 3)
    assert (pixels[:, -8:] == paper).all() and (pixels[:, :8] == paper).all()  # nothing runs over the margins
    red = (pixels == [255, 0, 0]).all(-1)
    assert 340 < red.any(0).sum() <= 390 - 32  # the wide picture, made to fit
    assert (np.abs(pixels - [0x8A, 0xB0, 0xFF]).sum(-1) < 20).sum() > 500  # the curves, in the dark page's blue
