"""`mmfast init` and `check` for a .csv file: numbers become a row and texts labels, and what is left out is said."""

import csv

import numpy as np
import pytest
import yaml
from tiny import TINY, flags

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_data, with_found
from mmfast.cli import main
from mmfast.tabular import options

ROWS = 40


def write(folder, name="birds.csv", **more):
    g = np.random.default_rng(0)
    columns = {
        "id": [str(7 + k) for k in range(ROWS)],
        "mass": [f"{x:.2f}" for x in g.normal(4000, 300, ROWS)],
        "species": [["Adelie", "Gentoo", "Chinstrap"][k % 3] for k in range(ROWS)],
        "the sex": [["male", "female", ""][k % 3] for k in range(ROWS)],
        "wild": [str(k % 2) for k in range(ROWS)],
        "rings": [str(k % 5) for k in range(ROWS)],
        "gaps": ["" if k in (3, 8) else str(k / 3) for k in range(ROWS)],
        "note": [f"bird {k}" for k in range(ROWS)],
        "none": [""] * ROWS,
        **more,
    }
    file = folder / name
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return file


def test_every_column_has_its_kind(tmp_path):
    plain, notes = options(write(tmp_path), "birds.csv")
    assert plain["anchor"] == "row" and plain["data"] == {
        "kind": "table", "source": "birds.csv", "columns": {"the_sex": "the sex"},
    }  # fmt: skip
    parts = plain["modalities"]
    assert {name: (x["kind"], x.get("columns"), x.get("classes")) for name, x in parts.items()} == {
        "row": ("table", ["mass", "rings"], None),
        "species": ("label", None, 3),
        "the_sex": ("label", None, 2),
        "wild": ("label", None, 2),
    }
    assert notes == [
        "the column id, which numbers the rows",
        "the column gaps, in which 2 of 40 numbers are missing; fill them in, or remove these rows",
        "the column note, with 40 different texts, which are not classes",
        "the column none, which is empty",
    ]


def test_a_label_has_two_classes_or_more_and_two_rows_of_each(tmp_path):
    more = {"pairs": [f"p{k // 2}" for k in range(ROWS)], "same": ["x"] * ROWS}
    plain, notes = options(write(tmp_path, **more), "x.csv")
    assert plain["modalities"]["pairs"]["classes"] == 20 and "same" not in plain["modalities"]
    assert notes[-1] == "the column same, with 1 different text, which are not classes"
    more = {"many": [f"p{k % 21}" for k in range(ROWS)]}
    assert "many" not in options(write(tmp_path, **more), "x.csv")[0]["modalities"]


@pytest.mark.parametrize(
    ("two", "classes"),
    [(("0", "1"), 2), (("1", "2"), 3), (("0", "99"), 100), (("0", "100"), None), (("-1", "1"), None)],
)
def test_two_whole_numbers_are_the_numbers_of_classes(tmp_path, two, classes):
    """Every one that a label can have; others, as -1 and 1, are numbers of the row."""
    plain, _ = options(write(tmp_path, two=[two[k % 2] for k in range(ROWS)]), str(tmp_path / "birds.csv"))
    parts = plain["modalities"]
    assert ("two" in parts["row"]["columns"]) is (classes is None)
    assert classes is None or parts["two"]["classes"] == classes
    build_data(with_found(configs.from_plain(plain, "x")))


def test_without_numbers_there_is_no_row(tmp_path):
    (tmp_path / "texts.csv").write_text("a,b\n" + "x,y\nz,w\n" * 5)
    with pytest.raises(MmfastError, match=r"texts\.csv has no numeric column without missing values"):
        options(tmp_path / "texts.csv", "texts.csv")


def test_a_column_whose_name_is_the_rows_is_a_label_of_another_name(tmp_path):
    more = {name: ["ab"[k % 2] for k in range(ROWS)] for name in ("row", "the-sex", "Größe", "7", "värde")}
    plain, _ = options(write(tmp_path, **more), "x.csv")
    assert plain["data"]["columns"] == {
        "the_sex": "the sex", "row_2": "row", "the_sex_2": "the-sex", "Gr_e": "Größe", "label": "7", "v_rde": "värde",
    }  # fmt: skip


def test_the_config_trains_and_the_file_itself_can_be_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    assert main(["init", "birds.csv", "--out", "birds.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "left out: the column id, which numbers the rows"
    assert said[-1] == "next: mmfast check birds.yaml && mmfast train birds.yaml --out runs/birds"
    raw = yaml.safe_load((tmp_path / "birds.yaml").read_text())
    assert raw["data"]["source"] == "birds.csv"  # beside the config
    found = with_found(configs.load("birds.yaml"))
    assert found.modalities["the_sex"].names == ["female", "male"] and found.modalities["row"].means[1] > 0
    assert main(["init", "birds.csv", "--out", "b.yaml", "--size", "8"]) == 2
    assert "--size is for folders of pictures, and birds.csv is a table; leave it out" in capsys.readouterr().err
    few = flags([*TINY, ("train.steps", "2"), ("evaluate.samples", "4")])
    assert main(["train", "birds.yaml", "--out", "run", "--quiet", *few]) == 0
    words = ["--given", "species=Gentoo", "the_sex=male", "row=mass=5000", "--n", "2", "--steps", "1", "--quiet"]
    assert main(["sample", "run", *words]) == 0
    capsys.readouterr()
    assert main(["check", "birds.csv", "--sheet", "sheet.png"]) == 0
    said = capsys.readouterr().out
    assert "row    " in said and "the column note, with 40 different texts, which are not classes; left out" in said
