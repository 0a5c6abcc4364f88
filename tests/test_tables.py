"""Tables: what is read and standardised, the distances' values, and a model without images, from a file to samples."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import TINY, flags

import mmfast
from mmfast import MmfastError, modalities
from mmfast import config as configs
from mmfast.build import build_data, build_model, with_found
from mmfast.cli import main
from mmfast.data import table
from mmfast.data.base import Data, InMemory
from mmfast.generate import generate
from mmfast.metrics.rows import energy_distance, ks_distances
from mmfast.modalities.base import SpaceShape
from mmfast.training import train

MLP = "{kind: mlp, width: 16, blocks: 2, features: 8}"


def write(folder, rows=60, more=()):
    """Two columns of numbers, a label that the first says, and a column that is left out."""
    random = np.random.default_rng(0)
    file = folder / "flowers.csv"
    lines = [["length", "year", "species", "note"]]
    for i in range(rows):
        tall = i % 3 == 0
        lines.append(
            [f"{random.normal(50 + 30 * tall, 2):.3f}", str(2000 + i % 7), "tall" if tall else "short", f"n{i}"]
        )
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([*lines, *more])
    return file, lines[1:]


def chosen(file, **more):
    text = {"data": f"{{kind: table, source: {file}, columns: {{label: species}}}}", "backbone": MLP, **more}
    raw = {
        "anchor": "row",
        "data": {"kind": "table"},
        "modalities": {"row": {"kind": "table", "columns": ["length", "year"]}, "label": {"kind": "label"}},
        "backbone": {"kind": "mlp"},
    }
    pairs = [(key.replace("__", "."), str(value)) for key, value in text.items()]
    return configs.from_plain(raw, "test", [*TINY, *pairs])


def test_a_table_is_read_by_column_and_standardised_by_its_training_rows(tmp_path):
    file, lines = write(tmp_path)
    config = with_found(chosen(file))
    data = build_data(config)
    seen = {name: torch.cat([part.__getitems__(range(len(part))).data[name] for part in (data.train, data.test)])
            for name in ("row", "label")}  # fmt: skip
    found = sorted((round(r[0], 3), r[1], k) for r, k in zip(seen["row"].tolist(), seen["label"].tolist(), strict=True))
    want = sorted((float(a), float(b), ["short", "tall"].index(c)) for a, b, c, _ in lines)
    assert np.allclose(np.array(found), np.array(want), atol=1e-3)
    label, row = config.modalities["label"], config.modalities["row"]
    assert (label.names, label.classes) == (["short", "tall"], 2)
    train_rows = data.train.__getitems__(range(len(data.train))).data["row"].double()
    assert np.allclose(row.means, train_rows.mean(0), rtol=1e-6)
    assert np.allclose(row.scales, train_rows.std(0, correction=0), rtol=1e-5)
    model = build_model(config)
    z0 = model.anchor.to_z0(train_rows.float())
    assert z0.shape == (len(train_rows), 2, 1, 1) and model.shape == (2, 1, 1)
    assert torch.allclose(z0.mean(0), torch.zeros(2, 1, 1), atol=1e-5)
    assert torch.allclose(z0.square().mean(0), torch.ones(2, 1, 1), atol=1e-5)
    assert torch.allclose(model.anchor.from_z0(z0), train_rows.float(), rtol=1e-6)


def test_which_rows_are_held_out_hangs_on_each_alone(tmp_path):
    file, _ = write(tmp_path)
    (tmp_path / "more").mkdir()
    longer, _ = write(tmp_path / "more", more=[["70.5", "1990", "tall", "x"], ["71.5", "1991", "tall", "x"]])
    rows = {}
    for name, config in (("a", chosen(file)), ("b", chosen(longer)), ("v", chosen(file))):
        config.data.validation = name == "v"
        data = build_data(with_found(config))
        rows[name] = [
            {tuple(x) for x in p.__getitems__(range(len(p))).data["row"].tolist()} for p in (data.train, data.test)
        ]
    assert rows["a"][1] <= rows["b"][1] | set() and rows["a"][0] <= rows["b"][0]
    assert rows["v"][1] < rows["a"][0] and rows["v"][0] == rows["a"][0] - rows["v"][1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"more": [["x", "1", "tall", ""]]}, r"row 61, column 'length' is 'x'; it should be a number: fill it in"),
        ({"more": [["1", "inf", "tall", ""]]}, r"row 61, column 'year' is 'inf'; it should be a number"),
        ({"more": [["1", "2"]]}, r"row 61 has 2 cells; it should have 4"),
        ({"columns": "[length, hight]"}, "modalities.row.columns is 'hight'; it should be one of length, year"),
        ({"columns": "[]"}, r"row 1, column 'note' is 'n0'; it should be a number"),
        ({"source": "none.csv"}, "none.csv cannot be read as a table"),
        ({"source": "tulips"}, "data.source is 'tulips'; it should be one of iris, wine"),
        (
            {"label": "sort"},
            "data.source has no column 'sort' for modalities.label; it has length, year, species, note: name the right "
            "one with --data.columns.label COLUMN",
        ),
        # A table that stands first would take the label's column, which nothing names.
        ({"label": "sort", "columns": "[]"}, "data.source has no column 'sort' for modalities.label"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, change, message):
    file, _ = write(tmp_path, more=change.get("more", ()))
    config = chosen(file)
    config.data.source = change.get("source", str(file))
    config.data.columns = {"label": change.get("label", "species")}
    if "columns" in change:
        config.modalities["row"].columns = [x for x in change["columns"].strip("[]").split(", ") if x]
    with pytest.raises(MmfastError, match=message):
        build_data(with_found(config))


def test_a_label_that_is_empty_is_missing(tmp_path):
    file, _ = write(tmp_path, more=[["1", "2001", "", "x"]] * 2)
    data = build_data(with_found(chosen(file)))
    batches = [part.__getitems__(range(len(part))) for part in (data.train, data.test)]
    assert sum(int((~b.present["label"]).sum()) for b in batches) == 2


def test_distances_are_scipys():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 3)), random.normal(0.5, 2, size=(55, 3))
    y[:5] = x[:5]  # ties
    want = [stats.ks_2samp(x[:, k], y[:, k]).statistic for k in range(3)]
    assert np.allclose(ks_distances(torch.tensor(x), torch.tensor(y)), want)
    # scipy's is the root of it, of one column.
    one = energy_distance(torch.tensor(x[:, :1]), torch.tensor(y[:, :1]))
    assert one == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2)
    norm = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2).mean()  # noqa: E731
    assert energy_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(2 * norm(x, y) - norm(x, x) - norm(y, y))


def test_the_head_is_a_gaussian_of_standardised_numbers():
    spec = modalities.kind("table").Spec(columns=["a", "b"], means=[10.0, 0.0], scales=[2.0, 5.0], sigma=0.5)
    part = modalities.kind("table")("row", spec, SpaceShape(4, 4))
    x, head = torch.tensor([[12.0, -5.0], [9.0, 1.0]]), torch.tensor([[0.5, -1.0], [0.0, 0.0]])
    standard = (x.numpy() - [10, 0]) / [2, 5]
    want = -stats.norm(head.numpy(), 0.5).logpdf(standard).sum(1)
    assert np.allclose(part.nll(head, x), want, rtol=1e-5)
    assert np.allclose(part.loss(head, x), np.square(standard - head.numpy()).mean(1))
    assert torch.equal(part.decode(head), torch.tensor([[11.0, -5.0], [10.0, 0.0]]))
    assert part.encode(x).shape == (2, 2, 1, 1) and part.uniform
    assert part.score(x, torch.tensor([[12.0, 0.0], [9.0, 1.0]])) == pytest.approx(0.5)


@pytest.mark.slow
def test_from_a_file_to_samples_and_back(tmp_path, capsys):
    """The command trains, and what it samples is a table that is data again, in the columns' units."""
    pytest.importorskip("sklearn")
    file, _ = write(tmp_path)
    (tmp_path / "c.yaml").write_text(
        f"anchor: row\ndata: {{kind: table, source: {file}, columns: {{label: species}}}}\n"
        "modalities:\n  row: {kind: table, columns: [length, year]}\n  label: {kind: label}\n"
    )
    run, out = tmp_path / "run", tmp_path / "drawn"
    more = flags([*TINY, ("backbone", MLP), ("train.steps", "60"), ("train.learning_rate", "0.01"),
                  ("sample.steps", "20"),
                  ("loss.target", "v"),
                  ("evaluate.samples", "30"), ("train.ema_decay", "0.9")])  # fmt: skip
    assert main(["train", str(tmp_path / "c.yaml"), "--out", str(run), "--quiet", *more]) == 0
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["label.logistic_regression_accuracy"] > 0.8 and 0 <= figures["row.ks.samples"] <= 1
    assert "bound.density.row" in figures and "bound.pixels" not in figures
    assert sorted(p.name for p in (run / "samples").iterdir())[-1] == "step-0000060-joint.png"
    assert (run / "samples" / "scatter-0000060-joint-row.png").exists()
    words = ["--given", "label=tall", "row=year=2003", "--n", "3", "--save", str(out), "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    with (out / "samples.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["label"] for row in rows] == ["tall"] * 3 and [float(row["year"]) for row in rows] == [2003.0] * 3
    assert all(20 < float(row["length"]) < 120 for row in rows)
    capsys.readouterr()
    assert main(["sample", str(run), "--given", "row=year=2003", "row=length=40"]) == 2
    assert "row is given in part, and more than once; name all that is known of it at once" in capsys.readouterr().err
    # All columns by their names are the row, which the network is then told, as it is by numbers alone.
    loaded = mmfast.load(run, device="cpu")
    texts = ("60,2003", "length=60,year=2003", {"year": 2003, "length": 60.0})
    drawn = [loaded.sample(4, row=row, guidance_scale=2) for row in texts]
    assert all(torch.equal(drawn[0].data["label"], x.data["label"]) for x in drawn[1:])
    assert all("in part" not in x.title and x.given == ("row",) for x in drawn)
    # Each row's own file is read as the same row.
    config = mmfast.load(run, device="cpu").config
    one = modalities.kind("table").read(out / "row" / "001.csv", config.modalities["row"])
    assert one.tolist() == pytest.approx([float(rows[1]["length"]), 2003.0])


@pytest.mark.parametrize("anchor", ["embedding", "label", "mask"])
def test_any_vector_or_map_can_be_the_anchor(tmp_path, anchor):
    """No image anywhere: an embedding or a label (or, over a grid, a mask) is diffused and its neighbours with it."""
    g = torch.Generator().manual_seed(0)
    data = {"embedding": torch.randn(40, 12, generator=g), "label": torch.arange(40) % 5}
    specs = {"embedding": "{kind: embedding, dim: 12, layout: channels}", "label": "{kind: label, classes: 5}"}
    if anchor == "mask":
        data["mask"] = torch.randint(0, 3, (40, 4, 4), generator=g)
        specs["mask"] = "{kind: mask, classes: 3, size: 4}"
    raw = {"anchor": anchor, "modalities": {}, "backbone": {"kind": "mlp"}}
    chosen = ", ".join(f"{name}: {spec}" for name, spec in specs.items())
    config = configs.from_plain(raw, "test", [*TINY, ("modalities", f"{{{chosen}}}"), ("backbone", MLP)])
    model = build_model(config)
    x = data[anchor]
    z0 = model.anchor.to_z0(x)
    assert z0.shape == (40, *model.shape)
    back, unit = model.anchor.from_z0(z0 + 0.05 * torch.randn(z0.shape, generator=g)), x
    if anchor == "embedding":
        unit = x / x.square().mean(1, keepdim=True).sqrt()
        assert torch.allclose(back, unit, atol=0.3)
    else:
        assert torch.equal(back, x)
    from mmfast.training import fit

    config.train.steps = 2
    trainer = fit(config, str(tmp_path / "run"), Data(InMemory(data), InMemory(data)), quiet=True)
    drawn = generate(trainer.ema.model, config, 3, {"label": torch.tensor([2])} if anchor != "label" else {}, steps=3)
    assert drawn[anchor].shape == (3, *x.shape[1:]) and drawn[anchor].dtype == x.dtype


def test_pictures_and_vectors_want_a_picture_as_their_anchor():
    raw = {"anchor": "label", "modalities": {"label": {"kind": "label"}, "image": {"kind": "image", "size": 8}}}
    with pytest.raises(MmfastError, match=r"modalities.image.size is 8; .* the anchor should be a picture"):
        build_model(configs.from_plain(raw, "test"))


def test_the_preset_is_complete_by_its_data(tmp_path):
    pytest.importorskip("sklearn")
    config = configs.load("table", [*TINY, ("train.steps", "2")])
    run = train(config, str(tmp_path / "run"), quiet=True)
    row = run.config().modalities["row"]
    assert len(row.columns) == len(row.means) == 30 and row.columns[0] == "mean radius"


def test_the_page_of_a_run_explains_a_tables_figures():
    from mmfast.report.figures import explain

    figure = explain("row.ks.samples")
    assert figure.reference == "row.ks.real_halves" and "row" in figure.meaning and figure.better == "lower is better"
    names = ("row.energy.samples", "row.energy.real_halves", "label.logistic_regression_accuracy")
    assert all(explain(name).group != "Other figures" for name in names)


def test_a_row_without_the_label_that_is_the_anchor_is_refused(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("x,kind\n" + "".join(f"{k},{'' if k == 7 else 'ab'[k % 2]}\n" for k in range(20)))
    specs = {"kind": modalities.kind("label").Spec(classes=2, names=["a", "b"])}
    with pytest.raises(MmfastError, match="row 8, column 'kind' is empty; every row needs kind, the anchor"):
        table.open(table.Spec(source=str(file)), specs, "kind")


def test_classes_that_the_column_does_not_have(tmp_path):
    (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{k},{'abc'[k % 3]}\n" for k in range(60)))
    plain = {"anchor": "row", "data": {"kind": "table", "source": str(tmp_path / "t.csv")}, "backbone": {"kind": "mlp"}}

    def found(label):
        modalities = {"row": {"kind": "table"}, "label": {"kind": "label", **label}}
        return with_found(configs.from_plain({**plain, "modalities": modalities}, "t")).modalities["label"]

    assert found({}).names == found({"classes": 3}).names == ["a", "b", "c"] and found({}).classes == 3
    with pytest.raises(MmfastError, match=r"modalities.label.classes is 5; the column has 3: a, b, c; leave it out"):
        found({"classes": 5})
