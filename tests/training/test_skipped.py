"""Steps that are left out, since their gradient is not finite or too large; and states that are kept, to go back to."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from test_trainer import OPTIONS, RATES, Known, data, flat
from tiny import tiny

from mmfast.build import build_model
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training.loop import fit
from mmfast.training.trainer import Trainer

SIZE = 16


class Breaks(Known):
    """The loss of some steps (from 1) is infinite, or NaN, or its gradient is."""

    def __init__(self, steps, how):
        super().__init__()
        self.steps, self.how = steps, how

    def __call__(self, model, batch, numbers, config):
        found = super().__call__(model, batch, numbers, config)
        if int(numbers[0]) // SIZE + 1 in self.steps:
            found["one"] = self.how(found["one"])
        return found


HOWS = {
    "inf": lambda x: x * math.inf,
    "NaN": lambda x: x * math.nan,
    "the gradient alone": lambda x: x + (x - x.detach()).abs().sqrt(),  # whose slope at 0 is infinite
}


def lines_of(run):
    return [json.loads(line) for line in run.stats_file.read_text().splitlines()]


def adamw(w, seen, steps, left_out):
    """Weights and average in float64: a step that is left out leaves weights, moments and their count."""
    average, m, v, taken = w.copy(), np.zeros_like(w), np.zeros_like(w), 0
    for step in range(1, steps + 1):
        n, x = (np.array(column) for column in zip(*seen[(step - 1) * SIZE : step * SIZE], strict=True))
        if step not in left_out:
            taken += 1
            g = w * n.mean() / 500 + (x / 100).mean()
            g = g * min(1, 0.6 / math.sqrt((g**2).sum()))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w - RATES[step - 1] * 0.1 * w
            w = w - RATES[step - 1] * (m / (1 - 0.9**taken)) / (np.sqrt(v / (1 - 0.999**taken)) + 1e-8)
        decay = min(0.45, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * w
    return w, average


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_a_step_left_out_leaves_everything_as_it_was(how, tmp_path, capsys):
    config, known = tiny(**OPTIONS, train__log_every=2), Breaks({3, 6}, how)
    begin = flat(build_model(config))
    found = fit(config, str(tmp_path / "run"), data(), known, quiet=True)
    w, average = adamw(begin, known.seen, 7, {3, 6})
    np.testing.assert_allclose(flat(found.model), w, rtol=0, atol=2e-6)
    np.testing.assert_allclose(flat(found.ema.model), average, rtol=0, atol=2e-6)
    lines = lines_of(found.run)
    assert [line.get("skipped", False) for line in lines] == [n in (3, 6) for n in range(1, 8)]
    assert all(line["grad_norm"] is None for line in (lines[2], lines[5]))
    assert all(math.isfinite(line["loss"] + line["grad_norm"]) for line in lines if "skipped" not in line)
    assert capsys.readouterr().err.splitlines() == [
        "mmfast: step 3 was left out, with a gradient that is not finite; 1 of 4 so far",
        "mmfast: step 6 was left out, with a gradient that is not finite; 2 of 6 so far",
    ]
    _, about = load_tensors(found.run.folder / "trainer.safetensors")
    assert about["skipped"] == 2 and about["step"] == 7
    assert main(["report", str(found.run.folder)]) == 0
    page = (found.run.folder / "report.html").read_text()
    assert "not finite: 2, the last of them step 6." in page and "not finite numbers" not in page


@pytest.mark.slow
def test_resumed_it_counts_on(tmp_path, capsys):
    options = {**OPTIONS, "train__checkpoint_every": 4, "train__log_every": 1, "train__max_skipped": 2}
    straight = fit(tiny(**options), str(tmp_path / "straight"), data(), Breaks({2, 3}, HOWS["inf"]), quiet=True)

    class Stops(Breaks):
        def __call__(self, model, batch, numbers, config):
            if int(numbers[0]) == 5 * SIZE:
                raise KeyError("killed")
            return super().__call__(model, batch, numbers, config)

    with pytest.raises(KeyError):
        fit(tiny(**options), str(tmp_path / "run"), data(), Stops({2, 3}, HOWS["inf"]), quiet=True)
    capsys.readouterr()
    found = fit(tiny(**options), str(tmp_path / "run"), data(), Known(), quiet=True)
    assert np.array_equal(flat(found.model), flat(straight.model)) and not capsys.readouterr().err
    assert found.run.stats_file.read_bytes() == straight.run.stats_file.read_bytes()
    assert load_tensors(found.run.folder / "trainer.safetensors")[1]["skipped"] == 2
    # One more is one too many, of those before the stop and after it.
    shutil.copy(tmp_path / "run" / "trainer.previous.safetensors", tmp_path / "run" / "trainer.safetensors")
    with pytest.raises(MmfastError, match=r"3 of the last 100 steps, up to step 6, were left out"):
        fit(tiny(**options), str(tmp_path / "run"), data(), Breaks({6}, HOWS["NaN"]), quiet=True)


def test_past_the_limit_it_stops_with_advice_and_the_run_up_is_kept(tmp_path, capsys):
    """From step 8 on nothing is finite. No checkpoint is written there: the one of step 6 is the last."""
    options = {"train__steps": 40, "train__checkpoint_every": 3, "train__log_every": 5, "train__max_skipped": 4}
    with pytest.raises(MmfastError) as error:
        fit(tiny(**options), str(tmp_path / "run"), data(), Breaks(range(8, 99), HOWS["NaN"]), quiet=True)
    assert str(error.value) == (
        "5 of the last 100 steps, up to step 12, were left out, with a gradient that is not finite; train.max_skipped "
        "is 4. The last checkpoint is kept, and stats.jsonl has the run-up. Lower train.learning_rate or "
        "train.grad_clip, or use train.precision=fp32, in a new --out"
    )
    run = Run.open(tmp_path / "run")
    assert run.load_state()[1]["step"] == 6
    assert [line["step"] for line in lines_of(run)] == list(range(1, 13))
    assert all(line["loss"] is not None for line in lines_of(run)[:7])
    assert "5 steps of 8 .. 12" not in capsys.readouterr().err  # they are told of as they are seen: 8 .. 9, 10, ...


def test_past_the_limit_at_a_picture_no_checkpoint_is_written_either(tmp_path):
    """The line that is too much is written before the pictures of step 10 are drawn."""
    options = {"train__steps": 40, "train__checkpoint_every": 50, "train__log_every": 50, "train__sample_every": 10}
    with pytest.raises(MmfastError, match="6 of the last 100 steps, up to step 10, were left out"):
        fit(tiny(**options, train__max_skipped=4), str(tmp_path / "run"), data(), Breaks(range(5, 99), HOWS["NaN"]),
            quiet=True)  # fmt: skip
    assert len(lines_of(Run.open(tmp_path / "run"))) == 10 and not list((tmp_path / "run").glob("*.safetensors"))


def test_a_checkpoint_waits_for_a_step_that_was_not_left_out(tmp_path):
    options = {"train__steps": 9, "train__checkpoint_every": 3, "train__log_every": 50}
    saved, save = [], Run.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", lambda *x: saved.append(x[2]["step"]) or save(*x))
        fit(tiny(**options), str(tmp_path / "run"), data(), Breaks({3, 4}, HOWS["inf"]), quiet=True)
        assert saved == [5, 6, 9]
        saved.clear()
        fit(tiny(**options), str(tmp_path / "end"), data(), Breaks({8, 9}, HOWS["inf"]), quiet=True)
        assert saved == [3, 6, 9]  # the last step is kept as it is


def test_steps_of_a_norm_above_a_bound_are_left_out(tmp_path):
    lines = lines_of(fit(tiny(**OPTIONS), str(tmp_path / "a"), data(), Known(), quiet=True).run)
    norms = [line["grad_norm"] for line in lines]
    most = max(norms)  # at the bound itself it is left out
    found = fit(tiny(**OPTIONS, train__skip_above=most), str(tmp_path / "b"), data(), Known(), quiet=True)
    assert [line.get("skipped", False) for line in lines_of(found.run)][: norms.index(most) + 1] == (
        [False] * norms.index(most) + [True]
    )
    assert lines_of(found.run)[norms.index(most)]["grad_norm"] == most


def test_a_state_that_counts_otherwise_is_damaged(tmp_path):
    found = fit(tiny(**OPTIONS), str(tmp_path / "run"), data(), Breaks({3}, HOWS["inf"]), quiet=True)
    state = found.state()
    for skipped in (0, 2, -1, 8, "1", True, None):
        with pytest.raises(MmfastError, match=r"left out|its optimiser has taken 6"):
            found.run.save_state(state, {"step": 7, "skipped": skipped})
            (found.run.folder / "trainer.previous.safetensors").unlink()
            Trainer(found.config, found.run, data()).restore()


# --- states that are kept -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_nth_state_is_kept_and_is_one_to_go_back_to(tmp_path):
    options = {**OPTIONS, "train__decay": "constant", "train__checkpoint_every": 5, "train__keep_every": 2}
    run = fit(tiny(**options), str(tmp_path / "run"), data(), Known(), quiet=True).run
    names = sorted(file.name for file in (run.folder / "states").iterdir())
    assert names == [f"step-{n:07d}.safetensors" for n in (2, 4, 6)]
    ends = load_tensors(run.folder / "trainer.safetensors")
    ends = ({name: x.clone() for name, x in ends[0].items()}, ends[1])  # the file is written over below
    for step, name in zip((2, 4, 6), names, strict=True):
        tensors, about = load_tensors(run.folder / "states" / name)
        assert about["step"] == step and tensors.keys() == ends[0].keys()
        short = fit(tiny(**{**options, "train__steps": step}), str(tmp_path / name), data(), Known(), quiet=True)
        assert all(torch.equal(p, tensors[f"model.{key}"]) for key, p in short.model.named_parameters())
    assert not (run.folder / "states" / names[2]).samefile(run.folder / "trainer.previous.safetensors")
    shutil.copy(run.folder / "states" / names[1], run.folder / "trainer.safetensors")
    known = Known()
    fit(tiny(**options), str(tmp_path / "run"), data(), known, quiet=True)
    again = load_tensors(run.folder / "trainer.safetensors")
    assert known.seen[0][0] == 4 * SIZE and again[1] == ends[1]
    assert all(torch.equal(x, again[0][name]) for name, x in ends[0].items())
