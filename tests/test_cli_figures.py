"""What `mmfast eval` and `sweep` hand on: every option by value, with what they call stood in for."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace as Some

import pytest

from mmfast.cli import evaluate, main, parser
from mmfast.errors import MmfastError
from mmfast.sweep import Point


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A run as `eval` and `sweep` open it; what was called, by name."""
    settings = Some(samples=0, features="pixels", features_weights="", lpips="", lpips_weights="")
    calls, config = {}, Some(evaluate=settings)

    def load_run(*args, **options):
        calls["load_run"] = args, options
        return Some(folder=tmp_path / "R"), config, "model"

    monkeypatch.setattr("mmfast.build.load_run", load_run)
    monkeypatch.setattr("mmfast.build.build_data", lambda asked: ("data of", asked is config))
    monkeypatch.setattr("mmfast.evaluate.evaluate", lambda *a, **o: calls.update(evaluate=(a, o)) or {"x": 0.5, "y": 2})
    (tmp_path / "R").mkdir()
    calls["config"] = config
    return calls


def test_eval_where_nothing_is_asked(opened, capsys):
    assert main(["eval", "R"]) == 0
    assert opened["load_run"] == (("R", "auto"), {"weights": "last"})
    (args, options), config = opened["evaluate"], opened["config"]
    assert args == ("model", config, ("data of", True)) and options["quiet"] is False and options["ranks"].count == 1
    assert vars(config.evaluate) == {"samples": 1000, "features": "pixels", "features_weights": "", "lpips": "",
                                     "lpips_weights": ""}  # fmt: skip
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["x", "0.5"], ["y", "2"]]
    opened["config"].evaluate.samples = 30
    main(["eval", "R"])
    assert config.evaluate.samples == 30


def test_every_option_of_eval(opened, monkeypatch):
    permitted = []
    monkeypatch.setattr("mmfast.cli.shared.permit", lambda *args: permitted.append(args))
    words = (
        "eval R --samples 2 --device cuda:1 --features vgg16 --features-weights f.bin --lpips alex --lpips-weights "
        "l.bin --json figures.json --weights best --quiet"
    )
    assert main(words.split()) == 0
    assert opened["load_run"] == (("R", "cuda:1"), {"weights": "best"})
    assert vars(opened["config"].evaluate) == {"samples": 2, "features": "vgg16", "features_weights": "f.bin",
                                               "lpips": "alex", "lpips_weights": "l.bin"}  # fmt: skip
    assert opened["evaluate"][1]["quiet"] is True and permitted == [("evaluate.features", "vgg16")]
    assert json.loads(Path("figures.json").read_text()) == {"x": 0.5, "y": 2}


def test_only_the_first_rank_of_eval_talks(opened, capsys):
    args = parser().parse_args(["eval", "R", "--json", "figures.json"])
    args.ranks = Some(first=False, in_turn=contextlib.nullcontext)
    assert evaluate.run(args, []) == 0
    assert opened["evaluate"][1] == {"quiet": True, "ranks": args.ranks}
    assert capsys.readouterr().out == "" and not Path("figures.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--samples 1", "--samples is 1; it should be at least 2"),
        ("--lpips-weights l.bin", "--lpips-weights is given without --lpips; add --lpips, the network"),
        ("--json there", "--json is there, which already exists"),
    ],
)
def test_what_eval_refuses(opened, capsys, words, said):
    Path("there").write_text("mine")
    assert main(["eval", "R", *words.split()]) == 2
    assert said in capsys.readouterr().err and "evaluate" not in opened


POINTS = [
    Point({"steps": str(n)}, {"evaluations": n, "frechet.samples": 9.0 - n, "precision.samples": 0.5,
                              "recall.samples": n / 10}) for n in (1, 2, 3)
]  # fmt: skip


@pytest.fixture
def swept(opened, monkeypatch):
    """What `sweep` was called with, and what lay in the folder after each of its points."""

    def sweep(model, config, data, over, given, progress, save):
        opened["sweep"] = model, config, data, dict(over), [*given], progress
        opened["written"] = []
        for n in range(1, len(POINTS) + 1):
            save(POINTS[:n])
            opened["written"] += [len(json.loads(file.read_text())) for file in Path().rglob("sweep.json")]
        return POINTS

    monkeypatch.setattr("mmfast.sweep.sweep", sweep)
    monkeypatch.setattr("mmfast.sweep.picture", lambda points, file, x, y, title: opened.update(
        picture=(points, x, y, title)) or file.write_text("drawn"))  # fmt: skip
    return opened


def test_sweep_where_nothing_is_asked(swept, tmp_path, capsys):
    assert main(["sweep", "R", "--over", "steps=1,2,3"]) == 0
    assert swept["load_run"] == (("R", "auto"), {}) and swept["config"].evaluate.samples == 1000
    assert swept["sweep"] == ("model", swept["config"], ("data of", True), {"steps": ["1", "2", "3"]}, [], True)
    assert swept["written"] == [1, 2, 3]  # each point is kept as soon as it is there
    assert swept["picture"] == (POINTS, "evaluations", "frechet.samples", "generated together, 1000 samples")
    folder = tmp_path / "R" / "sweeps" / "steps"
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{folder}/sweep.json", f"{folder}/sweep.png"]
    assert (folder / "sweep.png").read_text() == "drawn"
    main(["sweep", "R", "--over", "steps=1,2,3"])
    assert (tmp_path / "R" / "sweeps" / "steps-1" / "sweep.json").exists()


def test_every_option_of_sweep(swept, tmp_path, monkeypatch):
    permitted = []
    monkeypatch.setattr("mmfast.cli.shared.permit", lambda *args: permitted.append(args))
    words = (
        "sweep R --over steps=1,2 --over eta=0 --given label mask --samples 2 --features vgg16 --x recall.samples "
        "--y precision.samples --device cpu --out mine --quiet"
    )
    assert main(words.split()) == 0
    assert swept["load_run"] == (("R", "cpu"), {}) and permitted == [("evaluate.features", "vgg16")]
    over, given, progress = swept["sweep"][3:]
    assert over == {"steps": ["1", "2"], "eta": ["0"]} and given == ["label", "mask"] and progress is False
    assert vars(swept["config"].evaluate).items() >= {"samples": 2, "features": "vgg16"}.items()
    assert swept["picture"][1:] == ("recall.samples", "precision.samples", "given label, mask, 2 samples")
    assert {path.name for path in Path("mine").iterdir()} == {"sweep.json", "sweep.png"}


def test_what_sweep_refuses(swept, capsys):
    Path("there").mkdir()
    Path("there/mine").touch()
    for words, said in (
        ("--samples 1", "--samples is 1; it should be at least 2"),
        ("--out there", "--out is there, which "),
    ):
        assert main(["sweep", "R", "--over", "steps=1", *words.split()]) == 2
        assert said in capsys.readouterr().err and "sweep" not in swept
    assert main(["sweep", "R", "--over", "steps=1", "--x", "nothing", "--out", "new"]) == 2
    assert "nothing" in capsys.readouterr().err and not Path("new").exists()  # said at the first point
    Path("file").touch()
    assert main(["sweep", "R", "--over", "steps=1", "--out", "file/new"]) == 2
    said = f"mmfast: error: --out is file/new, and {Path('file').absolute()} is not a folder; choose another place"
    assert said in capsys.readouterr().err
    Path("R/sweeps").symlink_to("there")
    assert main(["sweep", "R", "--over", "steps=1"]) == 2
    assert "R/sweeps is a link, and nothing is written through links; choose another place" in capsys.readouterr().err


def test_a_sweep_without_a_picture_keeps_its_figures(swept, monkeypatch, capsys):
    def picture(*args):
        raise MmfastError("matplotlib is not here")

    monkeypatch.setattr("mmfast.sweep.picture", picture)
    assert main(["sweep", "R", "--over", "steps=1", "--out", "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["mine/sweep.json", "no picture: matplotlib is not here"]
