"""What `mmfast sample` and `init` hand on: every option by value, with what it calls stood in for."""

from pathlib import Path
from types import SimpleNamespace as Some

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.cli import main
from mmfast.cli import sample as sample_command
from mmfast.cli.shared import check_file
from mmfast.errors import MmfastError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What `load` and `sample` were called with; the samples are three greys, and two numbers of each."""
    calls = []
    data = {"image": torch.arange(12.0).reshape(3, 1, 2, 2), "label": torch.tensor([4, 5, 6])}

    def save(folder):
        Path(folder).mkdir()
        return f"saved in {folder}"

    def sample(*args, **options):
        calls.append((args, options))
        return Some(grid=lambda: Image.new("L", (3, 2), 77), save=save, data=data)

    def load(*args):
        calls.append(args)
        (tmp_path / "samples").mkdir(exist_ok=True)
        return Some(sample=sample, run=Some(samples=tmp_path / "samples"))

    monkeypatch.setattr("mmfast.loaded.load", load)
    return calls


def test_what_sample_says_where_nothing_is_asked(drawn, tmp_path, capsys):
    assert main(["sample", "my run"]) == 0
    loaded, (args, options) = drawn
    assert loaded == ("my run", "auto", "last") and args == (None,) and options.pop("ranks").count == 1
    usual = dict.fromkeys(("steps", "spacing", "sampler", "eta", "first", "resample"))
    assert options == {"given": {}, "known": {}, "progress": True, "seed": 0, **usual}
    assert capsys.readouterr().out == f"{tmp_path}/samples/sample-joint-seed0.png\n"
    with Image.open(tmp_path / "samples" / "sample-joint-seed0.png") as picture:
        assert picture.size == (3, 2) and picture.getpixel((0, 0)) == 77
    main(["sample", "my run", "--given", "label=a b", "image=data", "--seed", "3"])
    assert capsys.readouterr().out == f"{tmp_path}/samples/sample-label=a-b-image=data-seed3.png\n"


def test_every_option_of_sample(drawn, tmp_path, capsys):
    words = (
        "sample R --given label=3 mask=m.png --given row=a=1,b=2 --known image=white.png --known row=a,b --n 5 "
        "--steps 7 --spacing 2.5 --sampler ddim --eta 0.5 --guidance_scale label=2 mask=1.5 "
        "--first a b --offset mask=0.2 image=-0.1 --resample 3 --seed 9 --device cpu --out x.JPG --save d "
        "--npz x.npz --weights best --quiet"
    )
    assert main(words.split()) == 0
    loaded, (args, options) = drawn
    assert loaded == ("R", "cpu", "best") and args == (5,)
    options.pop("ranks")
    assert options == {
        "given": {"label": "3", "mask": "m.png", "row": "a=1,b=2"},
        "known": {"image": "white.png", "row": "a,b"},
        "progress": False,
        "steps": 7,
        "spacing": 2.5,
        "sampler": "ddim",
        "eta": 0.5,
        "first": ["a", "b"],
        "resample": 3,
        "seed": 9,
        "guidance_scale": {"label": 2.0, "mask": 1.5},
        "offset": {"mask": 0.2, "image": -0.1},
    }
    assert capsys.readouterr().out.splitlines() == ["saved in d", "x.npz", "x.JPG"]
    with np.load("x.npz") as arrays, Image.open("x.JPG") as picture:
        assert arrays["image"].ravel().tolist() == [*range(12)] and arrays["label"].tolist() == [4, 5, 6]
        assert {*arrays} == {"image", "label"} and picture.format == "JPEG"


def test_one_number_is_for_all_and_no_name_is_none(drawn):
    main(["sample", "R", "--guidance_scale", "2.5", "--first", "--offset"])
    assert (drawn[1][1]["guidance_scale"], drawn[1][1]["first"], drawn[1][1]["offset"]) == (2.5, [], {})
    main(["sample", "R", "--guidance_scale", "label=3"])
    assert drawn[3][1]["guidance_scale"] == {"label": 3.0} and "offset" not in drawn[3][1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--n 0", "--n is 0; it should be at least 1"),
        ("--given label", "--given label has no value; it should be label=VALUE"),
        ("--given label=", "--given label= has no value; it should be label=VALUE"),
        ("--known image=a.png image=b.png", "--known has image twice; name all that is known at once, as in image=A,B"),
        ("--known image", "--known image has no value; it should be image=VALUE"),
        ("--guidance_scale much", "--guidance_scale much has no number; it should be a number, or NAME=NUMBER"),
        ("--guidance_scale 1 2", "--guidance_scale 1 has no number; it should be a number, or NAME=NUMBER"),
        ("--offset mask=a", "--offset mask=a has no number; it should be NAME=SHARE, such as mask=0.2"),
        ("--out x.gif", "--out is x.gif; it should end in .png or .jpg or .jpeg"),
        ("--npz x.png", "--npz is x.png; it should end in .npz"),
        ("--out no/x.png", "--out is no/x.png, and no is not a folder; create it, or choose another place"),
        ("--out there.png", "--out is there.png, which already exists; choose another name, or add --overwrite"),
        ("--save there.png", "--save is there.png, which "),
    ],
)
def test_what_sample_refuses_is_said_before_anything_is_loaded(drawn, capsys, words, said):
    Path("there.png").write_text("mine")
    assert main(["sample", "R", *words.split()]) == 2
    assert f"mmfast: error: {said}" in capsys.readouterr().err
    assert not [call for call in drawn if isinstance(call[0], tuple)] and Path("there.png").read_text() == "mine"


def test_a_file_is_replaced_where_that_is_asked(drawn):
    Path("there.png").write_text("mine")
    assert main(["sample", "R", "--out", "there.png", "--overwrite"]) == 0
    with Image.open("there.png") as picture:
        assert picture.size == (3, 2)


def test_only_the_first_rank_writes(drawn, capsys):
    args = sample_args("sample R --out x.png --npz x.npz --save d")
    args.ranks = Some(first=False)
    assert sample_command.run(args, []) == 0 and capsys.readouterr().out == ""
    assert drawn[1][1]["ranks"] is args.ranks and not [*Path().glob("x.*")] and not Path("d").exists()


def sample_args(words):
    from mmfast.cli import parser

    return parser().parse_args(words.split())


def test_a_file_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "folder.npz").mkdir()
    Path("broken").symlink_to("nowhere")
    check_file("--x", None, False, ".png")
    check_file("--x", "new.PNG", False, ".png")
    check_file("--x", "new", False)
    for name, overwrite, said in (
        ("folder.npz", True, "which exists and is not a file; choose another name"),
        ("broken", False, "which already exists; choose another name, or add --overwrite"),
    ):
        with pytest.raises(MmfastError, match=f"--x is {name}, {said}"):
            check_file("--x", name, overwrite)
    asked = []
    monkeypatch.setattr("os.access", lambda path, how: asked.append((str(path), how)))
    with pytest.raises(MmfastError, match=r"--x is new, and \. cannot be written to; choose another place"):
        check_file("--x", "new", False)
    assert asked == [(".", 2 | 1)]  # to write there, and to enter


@pytest.fixture
def proposed(tmp_path, monkeypatch):
    """What `guess` and `propose` were called with, and what the timer that is handed on gives."""
    calls = {}
    guessed = Some(
        notes=["a.txt is nothing"], remarks=["of splits"], modalities={"image": {}, "mask": {}}, examples=1234
    )
    config = Some(
        backbone=Some(channels=24), train=Some(precision="fp32", steps=56_000, batch_size=4), data=Some(kind="digits")
    )

    def propose(*args):
        calls["propose"] = args
        calls["timed"] = args[2](config)
        return Some(config=config, text="text: é\n", training=1.2, total=2.6)

    def guess(*args):
        calls["guess"] = args
        return guessed

    monkeypatch.setattr("mmfast.guess.guess", guess)
    monkeypatch.setattr("mmfast.guess.most_pixels", lambda: 999)
    monkeypatch.setattr("mmfast.propose.propose", propose)
    monkeypatch.setattr("mmfast.propose.step_time", lambda asked: 0.25 if asked is config else 0)
    monkeypatch.setattr("mmfast.propose.usual_batch", lambda: 77)
    calls |= {"guessed": guessed, "config": config}
    return calls


def test_init_where_nothing_is_asked(proposed, tmp_path, capsys):
    Path("data").mkdir()
    Path("link").symlink_to("data")
    assert main(["init", "link"]) == 0
    assert proposed["guess"] == (tmp_path / "data", 999, None, False)
    guessed, minutes, _, batch, command, folder = proposed["propose"]
    assert (guessed, minutes, batch, folder) == (proposed["guessed"], 30, 77, Path())
    assert command == " link --minutes 30" and proposed["timed"] == 0.25
    assert Path("my.yaml").read_text(encoding="utf-8") == "text: é\n"
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "left out: a.txt is nothing",
        "note: of splits",
        "my.yaml: image, mask of 1,234 examples, 56,000 steps",
        "about 1 minute of training, 3 with the figures at the end",
        "next: mmfast check my.yaml && mmfast train my.yaml --out runs/my",
    ]
    assert err == "timed: 24 channels, fp32: 0.25 s per step\n"


def test_every_option_of_init(proposed, tmp_path, capsys):
    Path("to").mkdir()
    words = "init data --out to/b.yml --minutes 0.5 --size 24x40 --outside --quiet"
    assert main(words.split()) == 0
    assert proposed["guess"] == (tmp_path / "data", 999, [24, 40], True)
    assert proposed["propose"][1] == 0.5 and proposed["propose"][4:] == (
        " data --minutes 0.5 --size 24x40 --outside", Path("to")
    )  # fmt: skip
    assert Path("to/b.yml").exists() and capsys.readouterr().err == ""
    assert main(["init", "data", "--out", "c.yaml", "--size", "32"]) == 0 and proposed["guess"][2] == 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--minutes 0", "--minutes is 0; it should be more than 0"),
        ("--minutes -1.5", "--minutes is -1.5; it should be more than 0"),
        ("--size 0", "--size is 0; it should be at least 1"),
        ("--size 8x0", "--size is 8x0; it should be at least 1"),
        ("--size big", "--size is 'big'"),
        ("--out my.txt", "--out is my.txt; it should end in .yaml or .yml"),
    ],
)
def test_what_init_refuses(proposed, capsys, words, said):
    assert main(["init", "data", *words.split()]) == 2
    assert said in capsys.readouterr().err and "guess" not in proposed


def test_init_says_if_a_few_images_are_trained_on(proposed, capsys):
    proposed["config"].train.steps = 1000
    assert main(["init", "data", "--minutes", "2"]) == 0
    assert (
        "few: 4,000 images are trained on, and recognisable pictures take about 16,000; --minutes 8 would do\n"
    ) in capsys.readouterr().out


def test_init_says_where_all_that_is_wrong_is_listed(proposed, monkeypatch, capsys):
    def step_time(config):
        raise MmfastError("image a.png cannot be read")

    monkeypatch.setattr("mmfast.propose.step_time", step_time)
    assert main(["init", "data"]) == 2 and not Path("my.yaml").exists()
    assert "image a.png cannot be read (`mmfast check data` lists all that is wrong)" in capsys.readouterr().err
