"""What `mmfast train` hands on and says, with the training itself stood in for."""

import contextlib
from pathlib import Path
from types import SimpleNamespace as Some

import pytest

from mmfast import presets
from mmfast.cli import main, parser
from mmfast.cli import train as command


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What `train` was called with; its run has the figures of `trained.metrics`, as text."""
    monkeypatch.chdir(tmp_path)
    found = Some(calls=[], metrics=None)

    def train(config, folder, **options):
        found.calls.append((config.train.steps, folder, options))
        run = Path(folder)
        run.mkdir()
        if found.metrics is not None:
            (run / "metrics.json").write_text(found.metrics)
        return Some(folder=run, samples=run / "samples")

    monkeypatch.setattr("mmfast.training.train", train)
    monkeypatch.setattr("mmfast.build.with_found", lambda config: config)
    monkeypatch.setattr("mmfast.survey.brief", lambda config: [f"{config.train.steps} steps", "in short"])
    return found


def test_where_nothing_is_asked(trained, capsys):
    assert main(["train", "digits", "--out", "R"]) == 0
    [(steps, folder, options)] = trained.calls
    assert folder == "R" and options == {"quiet": False, "allow_changed_data": False, "start": None}
    assert (
        capsys.readouterr().out == f"{steps} steps\nin short\npictures: R/samples/*.png   weights: R/ema.safetensors\n"
    )


def test_every_option(trained, capsys):
    trained.metrics = '{"x": 0.5}'
    words = "train digits --out R --from S --allow-changed-data --quiet --train.steps 7 --train.steps=9"
    assert main(words.split()) == 0
    assert trained.calls == [(9, "R", {"quiet": True, "allow_changed_data": True, "start": "S"})]
    figures, last = capsys.readouterr().out.splitlines()
    assert figures.split() == ["x", "0.5"] and last.startswith("pictures: R/samples")


def test_only_the_first_rank_talks(trained, capsys):
    trained.metrics = '{"x": 0.5}'
    args = parser().parse_args(["train", "digits", "--out", "R"])
    args.ranks = Some(first=False, in_turn=lambda machines: contextlib.nullcontext())
    assert command.run(args, []) == 0 and len(trained.calls) == 1 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "Expecting property name"), ("[1]", ""), ("[" * 10_000, ""), ('{"x": "y"}', "")]
)
def test_figures_that_cannot_be_read_are_one_line(trained, capsys, text, reason):
    trained.metrics = text
    assert main(["train", "digits", "--out", "R", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mmfast: error: R/metrics.json cannot be read: {reason}") and err.count("\n") == 1
    assert err.endswith("; remove it, and this command makes it again\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--out R", "no config given; name a YAML file or a preset: "),
        ("digits", "no --out RUN given; it should be the run's folder, a new one or one to resume"),
        ("5 --train.steps digits --out R", "the config comes first: mmfast train PRESET|CONFIG.yaml --out RUN"),
        ("5 --train.steps my.yml --out R", "the config comes first: mmfast train PRESET|CONFIG.yaml --out RUN"),
        ("digits --out R x.yaml", "'x.yaml' is out of place; set config options by --key value"),
        ("no.yaml --out R", "no.yaml"),
    ],
)
def test_what_is_refused(trained, capsys, words, said):
    assert main(["train", *words.split()]) == 2 and not trained.calls
    assert said in capsys.readouterr().err


def test_help_tells_of_every_option_with_its_value(trained, capsys):
    assert main(["train", "--help"]) == 0
    usual = capsys.readouterr().out
    assert usual.startswith("usage: mmfast train PRESET|CONFIG.yaml --out RUN [--key value ...] [--quiet]\n\n")
    for words in (
        "--from RUN",
        "--allow-code module:function",
        "--allow-changed-data",
        "with their defaults:\n\nthe run\n",
    ):
        assert words in usual
    assert f"presets: {', '.join(presets.names())} (`mmfast presets` describes them)" in usual
    assert main(["train", "digits", "--train.steps", "4321", "-h"]) == 0
    own = capsys.readouterr().out
    assert "with their values in digits:" in own and "4321" in own and "4321" not in usual and not trained.calls
