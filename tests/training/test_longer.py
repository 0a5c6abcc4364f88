"""Runs that go on longer, or with other options of what is shown: the same bits as one that had them from the start."""

import json

import pytest

from mmfast import MmfastError, config
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import train

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")


def options(**more):
    chosen = {
        "backbone": "{kind: mlp, width: 16, blocks: 1, features: 4}",
        "train.batch_size": "8",
        "train.sample_every": "0",
        "train.tensorboard": "false",
        "train.decay": "constant",
        "train.warmup": "2",
        "sample.steps": "2",
        "evaluate.samples": "0",
        **more,
    }
    return config.load("digits", chosen.items())


def weights(folder):
    return {file: load_tensors(folder / file)[0] for file in ("model.safetensors", "trainer.safetensors")}


def assert_same(a, b):
    for file, tensors in weights(a).items():
        other = weights(b)[file]
        assert tensors.keys() == other.keys() and all(bool((x == other[name]).all()) for name, x in tensors.items())


@pytest.mark.slow
def test_continued_it_is_the_longer_run_bit_for_bit(tmp_path, capsys):
    train(options(**{"train.steps": "5"}), str(tmp_path / "a"), quiet=True)
    capsys.readouterr()
    train(options(**{"train.steps": "9", "train.log_every": "2"}), str(tmp_path / "a"), quiet=True)
    said = capsys.readouterr().err
    assert "resuming with train.steps 5 -> 9, train.log_every 50 -> 2" in said
    train(options(**{"train.steps": "9"}), str(tmp_path / "b"), quiet=True)
    assert_same(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/stats.jsonl").read_bytes() == (tmp_path / "b/stats.jsonl").read_bytes()
    assert Run.open(tmp_path / "a").config().train.steps == 9
    # The same command again changes nothing and says nothing.
    train(options(**{"train.steps": "9", "train.log_every": "2"}), str(tmp_path / "a"), quiet=True)
    assert "resuming with" not in capsys.readouterr().err


@pytest.mark.slow
def test_figures_that_other_options_were_asked_for_are_told_of(tmp_path, capsys):
    """They stay as they are; a sample's number in a grid is not what they hang on."""
    run, asked = tmp_path / "run", {"train.steps": "1", "evaluate.samples": "4", "evaluate.bound_steps": "1"}
    train(options(**asked), str(run), quiet=True)
    before = (run / "metrics.json").read_bytes()
    for more, told in (({"sample.count": "2"}, False), ({"evaluate.samples": "6"}, True), ({}, True)):
        capsys.readouterr()
        train(options(**{**asked, "sample.count": "2", **more}), str(run), quiet=True)
        said = capsys.readouterr().err
        assert ("metrics.json has the figures of the previous options; for those of the new ones, use" in said) is told
        assert (run / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_a_cosine_is_that_of_the_longer_run_from_there_on(tmp_path):
    rates = {}
    for name, lengths in (("a", (4, 8)), ("b", (8,))):
        for steps in lengths:
            train(options(**{"train.steps": str(steps), "train.decay": "cosine"}), str(tmp_path / name), quiet=True)
        lines = (tmp_path / name / "stats.jsonl").read_text().splitlines()
        rates[name] = [json.loads(line)["learning_rate"] for line in lines]
    assert rates["a"][4:] == rates["b"][4:] and rates["a"][:4] != rates["b"][:4]
    assert rates["a"][3] < rates["a"][4]


@pytest.mark.slow
def test_figures_of_fewer_steps_are_kept(tmp_path):
    two = {"evaluate.samples": "8", "evaluate.bound_steps": "1"}
    train(options(**{"train.steps": "2"}, **two), str(tmp_path / "a"), quiet=True)
    first = (tmp_path / "a/metrics.json").read_bytes()
    train(options(**{"train.steps": "4"}, **two), str(tmp_path / "a"), quiet=True)
    assert (tmp_path / "a/metrics.step-0000002.json").read_bytes() == first
    assert (tmp_path / "a/metrics.json").read_bytes() != first


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_steps") / "run"
    train(options(**{"train.steps": "2"}), str(folder), quiet=True)
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.learning_rate", "0.5"), ("train.batch_size", "16"), ("seed", "1"), ("loss.target", "v"),
     ("modalities.label.loss_weight", "0.5"), ("schedule.T", "500"), ("train.ema_decay", "0.5")],
)  # fmt: skip
def test_what_is_learnt_from_may_not_change(key, value, two_steps):
    folder = two_steps
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(MmfastError, match=rf"another config \({key} .* -> .*\); nothing was changed"):
        train(options(**{"train.steps": "4", "sample.steps": "3", key: value}), str(folder), quiet=True)
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_run_does_not_get_shorter(tmp_path):
    train(options(**{"train.steps": "4"}), str(tmp_path / "a"), quiet=True)
    with pytest.raises(MmfastError, match=r"train.steps is 3; the run in --out .* has 4, and cannot get shorter"):
        train(options(**{"train.steps": "3"}), str(tmp_path / "a"), quiet=True)


def test_what_may_change_is_a_closed_list():
    free = ["train.steps", "train.device", "sample.guidance_scale", "evaluate.features", "modalities.mask.given_steps"]
    fixed = [
        "train.learning_rate",
        "train.stepsize",
        "modalities.mask.size",
        "loss.target",
        "data.root",
        "xsample.steps",
    ]
    assert config.fixed(dict.fromkeys([*free, *fixed], "")) == fixed
