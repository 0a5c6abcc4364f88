"""Sweeps over sampling options: the configs of every combination, the figures of each by value, the files."""

import dataclasses
import json

import pytest
import torch
from tiny import tiny

from mmfast import MmfastError, sweep
from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.distances import against, real_features
from mmfast.generate import generate
from mmfast.held_out import Shuffled, held_out
from mmfast.metrics.features import extractor


@pytest.fixture(scope="module")
def settings():
    return tiny(evaluate__samples=20, sample__batch_size=8)


@pytest.fixture(scope="module")
def trained(settings):
    return build_model(settings), build_data(settings)


def test_every_combination_the_last_key_fastest(settings):
    found = sweep.configs(settings, {"sampler": ["ddim", "heun"], "steps": ["3", "5"], "guidance_scale.label": ["2"]})
    assert [options for options, _ in found] == [
        {"sampler": sampler, "steps": steps, "guidance_scale.label": "2"}
        for sampler in ("ddim", "heun")
        for steps in ("3", "5")
    ]
    assert [(c.sample.sampler, c.sample.steps, c.sample.guidance_scale) for _, c in found] == [
        ("ddim", 3, {"label": 2}), ("ddim", 5, {"label": 2}), ("heun", 3, {"label": 2}), ("heun", 5, {"label": 2})
    ]  # fmt: skip
    assert found[0][1].train == settings.train and settings.sample.guidance_scale == 1


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"lr": ["1"]}, "over's option is 'lr'"),
        ({"count": ["1"]}, "over's option is 'count'"),
        ({"steps": []}, "has no value"),
        ({"steps": ["0"]}, r"sample\.steps is 0; it should be at least 1"),
        ({"sampler": ["dim"]}, r"sample\.sampler is 'dim'"),
        ({"guidance_scale": ["x"]}, r"guidance_scale is 'x'; it should be a number"),
        ({"guidance_scale.labl": ["1"]}, r"sample\.guidance_scale is 'labl'"),
        ({"eta": ["0", "0.5"]}, r"over\['eta'\] has 0\.5, and ddpm takes none; sweep it with a sampler that does"),
    ],
)
def test_wrong_options_are_said_before_anything_is_drawn(settings, over, says):
    with pytest.raises(MmfastError, match=says):
        sweep.configs(settings, over)


def test_figures_are_those_of_the_samples(settings, trained):
    """The second point of two, drawn and measured again by hand; the samples are those of `generate`."""
    model, data = trained
    seen = []
    over = {"guidance_scale": ["1", "3"]}
    points = sweep.sweep(model, settings, data, over, ["label"], False, lambda points: seen.append(len(points)))
    assert seen == [1, 2] and [p.options for p in points] == [{"guidance_scale": "1"}, {"guidance_scale": "3"}]
    label = held_out(Shuffled(data.test), 20, model).data["label"]
    drawn = generate(model, settings, 20, {"label": label}, guidance_scale=3.0)
    features = extractor("pixels", None)
    expected = against(real_features(data, "image", features), drawn["image"], features, "pixels")
    for name, judge in data.judges().items():
        expected[f"{name}.agreement"] = model.part(name).score(judge(drawn["image"]), drawn[name])
    expected["evaluations"] = 2 * settings.sample.steps
    assert points[1].figures == pytest.approx(expected)
    assert points[0].figures["evaluations"] == settings.sample.steps
    read = data.judges()["label"](drawn["image"])
    assert points[1].figures["label.agreement"] == pytest.approx(float((read == label).float().mean()))


def test_judges_are_asked_of_what_the_model_has(settings, trained):
    """The digits have a judge of masks too."""
    plain = dataclasses.asdict(settings)
    del plain["modalities"]["mask"]
    config = configs.from_plain(plain, "without masks")
    (point,) = sweep.sweep(build_model(config), config, build_data(config), {"steps": ["2"]}, ["label"], False)
    assert "mask" in trained[1].judges() and [n for n in point.figures if "agreement" in n] == ["label.agreement"]


def test_steps_are_swept_where_what_is_given_has_its_own(settings, trained):
    """The digits' mask is given in a few steps of its own: a sweep over steps asks about others."""
    model, data = trained
    settings.modalities["mask"].given_steps = 1
    points = sweep.sweep(model, settings, data, {"steps": ["2", "4"], "sampler": ["heun"]}, ["mask"], False)
    settings.modalities["mask"].given_steps = None
    assert [p.figures["evaluations"] for p in points] == [3, 7]  # heun's last step is one evaluation


def test_anchor_and_unknown_names_cannot_be_given(settings, trained):
    with pytest.raises(MmfastError, match="given has image, the anchor"):
        sweep.sweep(*trained[:1], settings, trained[1], {"steps": ["2"]}, ["image"])
    with pytest.raises(MmfastError, match="given is 'labl'"):
        sweep.sweep(*trained[:1], settings, trained[1], {"steps": ["2"]}, ["labl"])


def test_axes():
    costly = [
        sweep.Point({"steps": s}, {"evaluations": float(s), "frechet.samples": 1.0, "recall.samples": 0.5})
        for s in "23"
    ]
    assert sweep.axes(costly) == ("evaluations", "frechet.samples")
    even = [sweep.Point({}, {"evaluations": 2.0, "frechet.x": 1, "precision.samples": 1, "recall.samples": 0.5})] * 2
    assert sweep.axes(even) == ("recall.samples", "precision.samples")
    judged = [sweep.Point({}, {**even[0].figures, "label.agreement": 1.0})] * 2
    assert sweep.axes(judged) == ("recall.samples", "label.agreement")
    assert sweep.axes(judged, "frechet.x", "evaluations") == ("frechet.x", "evaluations")
    with pytest.raises(MmfastError, match="y is 'recal'"):
        sweep.axes(judged, None, "recal")


def test_the_picture_has_a_line_for_each_other_option(tmp_path, monkeypatch):
    """matplotlib is asked what it drew: a line a sampler, its points' places, in the order of the steps."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, file, **_: drawn.append(self))
    points = [
        sweep.Point({"sampler": name, "steps": str(s)}, {"evaluations": float(s), "frechet.samples": k + 1.0 / s})
        for k, name in enumerate(("ddim", "heun"))
        for s in (5, 10, 20)
    ]
    sweep.picture(points, tmp_path / "x.png", "evaluations", "frechet.samples")
    axes = drawn[0].axes[0]
    assert [line.get_label() for line in axes.lines] == ["sampler ddim", "sampler heun"]
    assert axes.lines[1].get_xydata().tolist() == [[5, 1.2], [10, 1.1], [20, 1.05]]


def drawn(tmp_path, monkeypatch, points, *axes):
    """What matplotlib is asked for: the axes, and the format."""
    figure = pytest.importorskip("matplotlib.figure")
    asked = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, file, format: asked.append((self.axes[0], format)))
    sweep.picture(points, tmp_path / "x", *axes)
    return asked[0]


def test_the_values_stand_beside_the_points(tmp_path, monkeypatch):
    """Of the option with the most values, a mark's size up and right; one line has no legend, and the axes are even."""
    points = [
        sweep.Point({"sampler": "ddim", "guidance_scale": g}, {"recall.x": 1 / (1 + k), "frechet.x": 3.0 + k})
        for k, g in enumerate(("1", "2", "4"))
    ]
    axes, kind = drawn(tmp_path, monkeypatch, points, "recall.x", "frechet.x", "a title")
    assert kind == "png" and axes.get_legend() is None and axes.get_xscale() == "linear"
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("1", (1, 3)), ("2", (1 / 2, 4)), ("4", (1 / 3, 5))
    ]  # fmt: skip
    assert {text.xyann for text in axes.texts} == {(axes.lines[0].get_markersize(),) * 2}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("recall.x", "frechet.x", "a title")
    assert axes.xaxis.get_gridlines()[0].get_visible()


def test_the_cost_is_on_a_logarithmic_axis_that_names_what_was_asked(tmp_path, monkeypatch):
    """But for values within a fifth of the last that is named; two lines have a legend."""
    points = [
        sweep.Point({"sampler": name, "steps": str(s)}, {"evaluations": float(s), "frechet.x": 1.0 / s})
        for name in ("ddim", "heun")
        for s in (10, 11, 13, 14, 25)
    ]
    axes, _ = drawn(tmp_path, monkeypatch, points, "evaluations", "frechet.x")
    assert axes.get_xscale() == "log" and not axes.texts
    assert axes.get_xticks().tolist() == [10, 13, 25] and len(axes.get_xticks(minor=True)) == 0
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "13", "25"]
    assert axes.get_xlabel() == "network evaluations per sample"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sampler ddim", "sampler heun"]


def test_the_table_has_a_column_for_each_option_and_figure():
    points = [sweep.Point({"steps": "5"}, {"evaluations": 5.0, "frechet.x": 1.23456}),
              sweep.Point({"steps": "100"}, {"evaluations": 100.0, "frechet.x": 0.5})]  # fmt: skip
    assert sweep.table(points) == (
        "steps  evaluations  frechet.x\n"
        "5      5            1.235\n"
        "100    100          0.5"
    )  # fmt: skip
    assert json.loads(sweep.text(points)) == [
        {"options": {"steps": "5"}, "evaluations": 5.0, "frechet.x": 1.23456},
        {"options": {"steps": "100"}, "evaluations": 100.0, "frechet.x": 0.5},
    ]


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    from mmfast.config import to_yaml

    config.write_text(to_yaml(tiny(train__steps=2)))
    run = tmp_path / "run"
    assert main(["train", str(config), "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    words = ["sweep", str(run), "--over", "guidance_scale=1,2", "--given", "label", "--samples", "12", "--quiet"]
    assert main(words) == 0
    out = capsys.readouterr().out
    folder = run / "sweeps" / "given-label-guidance-scale"
    found = json.loads((folder / "sweep.json").read_text())
    assert [point["options"] for point in found] == [{"guidance_scale": "1"}, {"guidance_scale": "2"}]
    assert all(0 <= point["label.agreement"] <= 1 for point in found)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "guidance_scale" in out and str(folder / "sweep.png") in out
    assert main([*words, "--out", str(folder)]) == 2  # nothing is overwritten
    assert main([*words, "--y", "labl"]) == 2
    assert main([*words]) == 0 and (run / "sweeps" / "given-label-guidance-scale-1" / "sweep.json").exists()


@pytest.mark.parametrize("pair", ["steps", "steps=", "steps=1,,2"])
def test_pairs_without_values(pair):
    with pytest.raises(MmfastError, match="has no values"):
        sweep.options_of([pair])


def test_a_key_twice():
    with pytest.raises(MmfastError, match="steps twice"):
        sweep.options_of(["steps=1", "steps=2"])
    assert sweep.options_of(["steps=1,2", "a=b"]) == {"steps": ["1", "2"], "a": ["b"]}


def test_guidance_by_name_in_a_config(trained):
    """Of what is not given it says nothing; asked for in a call, that is an error."""
    model, _ = trained
    named = tiny(sample__guidance_scale="{label: 2.5, mask: 1}")
    label = torch.tensor([3, 4])
    found = generate(model, named, 2, {"label": label})
    same = generate(model, tiny(), 2, {"label": label}, guidance_scale=2.5)
    assert torch.equal(found["image"], same["image"])
    assert not torch.equal(found["image"], generate(model, tiny(), 2, {"label": label})["image"])
    assert torch.equal(generate(model, named, 2)["image"], generate(model, tiny(), 2)["image"])
    with pytest.raises(MmfastError, match="guidance_scale's modality"):
        generate(model, tiny(), 2, guidance_scale={"label": 2.5})
    for wrong in ("{labl: 2}", "{label: -1}", "x", "true", ".nan"):
        with pytest.raises(MmfastError, match=r"sample\.guidance_scale"):
            tiny(sample__guidance_scale=wrong)
