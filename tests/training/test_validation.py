"""The loss of held-out examples: always of the same ones; the best average; and no kill loses a bit of it."""

import json
import signal

import pytest
import torch
from processes import Job
from rank_runs import assert_one_curve, command
from test_trainer import OPTIONS, Known, data, flat
from tiny import tiny

from mmfast.build import build_data, build_model, load_run
from mmfast.cli import main
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import stats
from mmfast.training.loop import fit, train
from mmfast.training.objective import losses
from mmfast.training.trainer import Trainer
from mmfast.training.validation import chosen

HELD_OUT = 20


def split():
    """Test data of 20 examples, whose picture number k is k / 100 all over."""
    tensors = data().train.tensors
    return Data(data().train, InMemory({name: x[:HELD_OUT] for name, x in tensors.items()}))


class Seen(Known):
    """Known losses, with the pictures' numbers and the run's of what no gradient is wanted of."""

    def __init__(self):
        super().__init__()
        self.held_out = []

    def __call__(self, model, batch, numbers, config):
        if not torch.is_grad_enabled():
            rows = (batch.data["image"][:, 0, 0, 0] * 100).round().long().tolist()
            self.held_out.append((numbers.tolist(), rows, model.training, flat(model)))
        w = torch.cat([p.flatten() for p in model.parameters()])
        x = batch.data["image"][:, 0, 0, 0]
        if model.training and torch.is_grad_enabled():
            return super().__call__(model, batch, numbers, config)
        return {"one": (w**2).sum(), "two": w.sum() * x.mean()}


def lines_of(run):
    return [json.loads(line) for line in run.stats_file.read_text().splitlines()]


def test_it_is_the_mean_over_the_same_examples_by_the_average(tmp_path):
    """Of 50 (example, time, noise) of 20 examples, 16 at a time: each comes twice at least, with other numbers."""
    options = {**OPTIONS, "train__validate_every": 3, "train__validate_examples": 50}
    seen = Seen()
    run = fit(tiny(**options), str(tmp_path / "run"), split(), seen, quiet=True).run
    calls = seen.held_out[1:]  # the first is of the look before there is a run
    assert [len(rows) for _, rows, _, _ in calls] == [16, 16, 16, 2] * 2
    both = [[[x for call in calls[i : i + 4] for x in call[k]] for k in (0, 1)] for i in (0, 4)]
    assert both[0] == both[1] and both[0][0] == [2**47 + k for k in range(50)]
    rows = both[0][1]
    assert sorted(rows[:20]) == list(range(20)) and rows[:20] == rows[20:40] and rows[:20] != list(range(20))
    assert not any(training for _, _, training, _ in calls)
    for line in lines_of(run):
        shown = {name: x for name, x in line.items() if name.startswith("validation")}
        if line["step"] % 3:
            assert not shown
            continue
        w = calls[4 * (line["step"] // 3 - 1)][3]
        one, two = (w**2).sum(), w.sum() * sum(rows) / 100 / 50
        assert shown == {
            "validation.loss": pytest.approx(one + two, rel=1e-5),
            "validation.loss.one": pytest.approx(one, rel=1e-5),
            "validation.loss.two": pytest.approx(two, rel=1e-5),
        }
    # It is the average that is measured, and the best that is kept.
    best, about = load_tensors(run.folder / "ema.best.safetensors")
    kept = build_model(run.config())
    kept.load_state_dict(best)
    assert about["step"] in (3, 6) and (flat(kept) == calls[4 * (about["step"] // 3 - 1)][3]).all()
    last = fit(tiny(**{**options, "train__steps": 6, "train__decay": "constant"}), str(tmp_path / "b"), split(), Seen())
    again = fit(tiny(**{**options, "train__steps": 6, "train__decay": "constant", "train__validate_every": 6}),
                str(tmp_path / "c"), split(), other := Seen(), quiet=True)  # fmt: skip
    assert (other.held_out[-1][3] == flat(again.ema.model)).all() and (flat(last.model) == flat(again.model)).all()


def test_the_objective_is_that_of_training_at_numbers_of_its_own(tmp_path):
    config = tiny(train__steps=2, train__validate_every=2, train__validate_examples=40)
    found = build_data(config)
    trainer = fit(config, str(tmp_path / "run"), found, quiet=True)
    rows = chosen(config.seed, len(found.test), 40)
    batch = found.test.__getitems__(rows.tolist())
    model = build_model(config)
    model.load_state_dict(load_tensors(trainer.run.folder / "ema.safetensors")[0])
    with torch.no_grad():
        parts = losses(model.eval(), batch, 2**47 + torch.arange(40), config)
    line = lines_of(trainer.run)[-1]
    for name, x in parts.items():
        assert line[f"validation.loss.{name}"] == pytest.approx(float(x), rel=1e-5)
    assert line["validation.loss"] == pytest.approx(sum(float(x) for x in parts.values()), rel=1e-5)


def test_which_examples_hangs_on_the_seed_and_all_come_before_one_comes_again():
    assert torch.equal(chosen(0, 1000, 300), chosen(0, 1000, 500)[:300])
    assert len({*chosen(0, 1000, 1000).tolist()}) == 1000
    assert not torch.equal(chosen(0, 1000, 300), chosen(1, 1000, 300))


def test_training_is_the_same_without_it(tmp_path):
    ends = [
        fit(tiny(train__steps=4, train__validate_every=n, backbone__dropout=0.2), str(tmp_path / str(n)),
            build_data(tiny()), quiet=True) for n in (0, 2)
    ]  # fmt: skip
    assert (flat(ends[0].model) == flat(ends[1].model)).all()
    assert not (ends[0].run.folder / "ema.best.safetensors").exists()


class Falls(Known):
    """Held-out losses of 3, 1, 2, one after another."""

    def __init__(self, *values):
        super().__init__()
        self.values = iter(values)

    def __call__(self, model, batch, numbers, config):
        if numbers[0] >= 2**47:
            return {"one": torch.tensor(next(self.values))}
        return super().__call__(model, batch, numbers, config)


def test_the_best_average_is_kept_beside_the_last(tmp_path):
    options = {**OPTIONS, "train__decay": "constant", "train__validate_every": 2, "train__validate_examples": 4}
    known = Falls(3.0, 1.0, 2.0, float("nan"))
    trainer = fit(tiny(**{**options, "train__steps": 8}), str(tmp_path / "run"), data(), known, quiet=True)
    assert [line.get("validation.loss") for line in lines_of(trainer.run)] == [
        None, 3.0, None, 1.0, None, 2.0, None, None]  # fmt: skip
    best, about = load_tensors(trainer.run.folder / "ema.best.safetensors")
    assert about == {"step": 4, "validation": {"loss": 1.0, "loss.one": 1.0}}
    assert load_tensors(trainer.run.folder / "trainer.safetensors")[1]["best"] == {"step": 4, "loss": 1.0}
    short = fit(tiny(**{**options, "train__steps": 4}), str(tmp_path / "short"), data(), Falls(3.0, 1.0), quiet=True)
    last = load_tensors(short.run.folder / "ema.safetensors")[0]
    assert best.keys() == last.keys() and all(torch.equal(x, last[name]) for name, x in best.items())


REAL = {"train__steps": 9, "train__validate_every": 2, "train__validate_examples": 24, "train__checkpoint_every": 3,
        "train__log_every": 1, "train__ema_decay": 0.5, "train__learning_rate": 0.02}  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return fit(tiny(**REAL), str(tmp_path_factory.mktemp("straight") / "run"), build_data(tiny()), quiet=True).run


@pytest.mark.slow
@pytest.mark.parametrize("killed_before", [3, pytest.param(5, marks=pytest.mark.slow), 9])
def test_resumed_it_has_the_same_lines_and_the_same_best(tmp_path, straight, monkeypatch, killed_before):
    """Before step 5 the validation of step 4 is behind the checkpoint of step 3, and made again."""
    found = build_data(tiny())
    step = Trainer.step

    def killed(self, *args):
        if self.done == killed_before - 1:
            raise KeyError("killed")
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyError):
            fit(tiny(**REAL), str(tmp_path / "run"), found, quiet=True)
    run = fit(tiny(**REAL), str(tmp_path / "run"), found, quiet=True).run
    assert sum("validation.loss" in line for line in lines_of(run)) == 4
    assert run.stats_file.read_bytes() == straight.stats_file.read_bytes()
    for name in ("ema.best.safetensors", "trainer.safetensors"):
        (a, about), (b, wanted) = (load_tensors(folder / name) for folder in (run.folder, straight.folder))
        assert about == wanted and a.keys() == b.keys() and all(torch.equal(x, b[key]) for key, x in a.items()), name


def test_a_best_that_is_gone_or_damaged_is_said_and_made_anew(tmp_path, capsys):
    found, folder = build_data(tiny()), tmp_path / "run"
    fit(tiny(**{**REAL, "train__steps": 6}), str(folder), found, quiet=True)
    (folder / "ema.best.safetensors").write_bytes(b"half")
    capsys.readouterr()
    fit(tiny(**REAL), str(folder), found, quiet=True)
    said = capsys.readouterr().err
    assert "ema.best.safetensors is truncated or damaged" in said and "the best average from here on" in said
    assert load_tensors(folder / "ema.best.safetensors")[1]["step"] == 8


def test_an_example_that_cannot_be_read_keeps_what_was_learnt(tmp_path):
    class Breaks(InMemory):
        def __getitems__(self, rows):
            if known.seen[32:]:
                raise MmfastError("b.png is damaged")
            return super().__getitems__(rows)

    part, known = data().train, Known()
    with pytest.raises(MmfastError, match=r"b\.png is damaged"):
        fit(tiny(train__steps=9, train__validate_every=3), str(tmp_path / "run"), Data(part, Breaks(part.tensors)),
            known, quiet=True)  # fmt: skip
    assert Run.open(tmp_path / "run").load_state()[1]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 9])  # between checkpoints, and the last step of all
def test_a_validation_that_failed_is_made_up_for(tmp_path, monkeypatch, at):
    """As if the example could always be read: lines, best average and state; also of those to whom logs are written."""
    real = {**REAL, "train__validate_every": 2 if at == 4 else 3, "train__keep_every": at}
    whole = fit(tiny(**real), str(tmp_path / "whole"), build_data(tiny()), quiet=True).run
    found = build_data(tiny())
    with monkeypatch.context() as patch:
        real_validate = Trainer.validate

        def validate(self):
            if self.done == at:
                raise MmfastError("b.png is damaged")
            return real_validate(self)

        patch.setattr(Trainer, "validate", validate)
        for _ in range(2):  # and once more while it still is
            with pytest.raises(MmfastError, match=r"b\.png is damaged"):
                fit(tiny(**real), str(tmp_path / "run"), found, quiet=True)
    assert "validation.loss" not in lines_of(Run(tmp_path / "run"))[-1]
    run = fit(tiny(**real), str(tmp_path / "run"), found, quiet=True).run
    assert run.stats_file.read_bytes() == whole.stats_file.read_bytes()
    for name in ("ema.best.safetensors", "trainer.safetensors", f"states/step-{at:07d}.safetensors"):
        (a, about), (b, wanted) = (load_tensors(folder / name) for folder in (run.folder, whole.folder))
        assert about == wanted and a.keys() == b.keys() and all(torch.equal(x, b[key]) for key, x in a.items()), name


def test_to_stop_while_a_validation_is_made_up_for_is_to_stop(tmp_path, monkeypatch):
    found, real = build_data(tiny()), Trainer.validate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: (_ for _ in ()).throw(MmfastError("b.png is damaged")))
        with pytest.raises(MmfastError, match="damaged"):
            fit(tiny(**REAL), str(tmp_path / "run"), found, quiet=True)

    def asked(self):
        signal.raise_signal(signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(Trainer, "validate", asked)
    monkeypatch.setattr(Trainer, "step", None)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(**REAL), str(tmp_path / "run"), found, quiet=True)
    assert "validation.loss" in lines_of(Run(tmp_path / "run"))[-1]


def test_what_a_state_keeps_of_the_lines_has_an_end(tmp_path, monkeypatch):
    """Also where figures are added to the last of them."""
    monkeypatch.setattr(stats, "RECENT", 300)
    run = fit(tiny(**REAL), str(tmp_path / "run"), build_data(tiny()), quiet=True)
    assert len(run.stats.recent) == 300
    run.stats.add_to_last({"validation.loss": 1.0, "validation.other": 2.0})
    assert len(run.stats.recent) == 300 and run.stats.last()["validation.other"] == 2


def test_a_best_of_a_later_step_than_the_state_is_none_of_it(tmp_path):
    """Somebody has gone back to an earlier state: what was best after it is not known to be so in what comes now."""
    found, folder = build_data(tiny()), tmp_path / "run"
    fit(tiny(**{**REAL, "train__steps": 3}), str(folder), found, quiet=True)
    state = (folder / "trainer.safetensors").read_bytes()
    run = fit(tiny(**REAL), str(folder), found, quiet=True).run
    best = load_tensors(folder / "ema.best.safetensors")[1]["step"]
    assert best > 3 and run.best({"best": {"step": best, "loss": 1.0}}) == {"step": best, "loss": 1.0}
    (folder / "trainer.safetensors").write_bytes(state)
    metadata = run.load_state()[1]
    assert metadata["step"] == 3 and metadata["best"]["step"] == 2 and run.best(metadata) is None


@pytest.mark.slow
def test_sampling_and_evaluation_take_the_best_or_the_last(tmp_path, capsys):
    folder = tmp_path / "run"
    options = {**REAL, "train__steps": 2, "train__ema_decay": 0.999}
    train(tiny(**options), str(folder), quiet=True)
    train(tiny(**{**options, "train__steps": 3}), str(folder), quiet=True)  # of which nothing was validated
    for which, name in (("last", "ema"), ("best", "ema.best")):
        model, kept = load_run(folder, "cpu", weights=which)[2], load_tensors(folder / f"{name}.safetensors")[0]
        assert all(torch.equal(x, kept[key]) for key, x in model.state_dict().items())
    assert not (flat(load_run(folder, "cpu")[2]) == flat(load_run(folder, "cpu", weights="best")[2])).all()
    arrays = []
    for which in ("last", "best"):
        words = ["--n", "1", "--steps", "1", "--device", "cpu", "--quiet", "--out", str(tmp_path / f"{which}.png")]
        assert main(["sample", str(folder), "--weights", which, *words]) == 0
        assert main(["eval", str(folder), "--weights", which, "--samples", "4", "--quiet", "--json",
                     str(tmp_path / f"{which}.json")]) == 0  # fmt: skip
        arrays.append(json.loads((tmp_path / f"{which}.json").read_text()))
    assert (
        arrays[0]["x0_error.500"] != arrays[1]["x0_error.500"]
        if "x0_error.500" in arrays[0]
        else arrays[0] != arrays[1]
    )
    capsys.readouterr()
    assert main(["sample", str(folder), "--weights", "worst"]) == 2
    assert "weights is 'worst'; it should be one of last, best" in capsys.readouterr().err
    (folder / "ema.best.safetensors").unlink()
    assert main(["eval", str(folder), "--weights", "best"]) == 2
    assert "has no best weights, ema.best.safetensors: no step of train.validate_every" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_share_it_out_and_agree(tmp_path):
    options = {"train__validate_every": 5, "train__validate_examples": 40}
    assert main(command(tmp_path / "alone", 10, **options)) == 0
    Job(2, tmp_path / "logs", main, command(tmp_path / "run", 10, **options)).done()
    assert_one_curve(tmp_path / "run", tmp_path / "alone")
    assert sum("validation.loss" in line for line in lines_of(Run(tmp_path / "run"))) == 2
    a, b = (load_tensors(tmp_path / name / "ema.best.safetensors") for name in ("run", "alone"))
    assert a[1]["step"] == b[1]["step"] and a[1]["validation"] == pytest.approx(b[1]["validation"], abs=1e-5)


def test_it_is_in_the_page_of_the_run(tmp_path):
    train(tiny(**REAL), str(tmp_path / "run"), quiet=True)
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Loss of held-out examples, by the averaged weights" in page
    assert "Loss of held-out examples, part of mask" in page
    assert (
        page.index(">Loss, of all modalities") < page.index(">Loss of held-out") < page.index(">Norm of the gradient")
    )


def test_a_held_out_example_that_is_not_what_its_config_says_is_named(tmp_path):
    """The look before there is a run sees 16 of them; this is a later one."""
    label = data().train.tensors["label"].clone()
    label[40] = 11
    both = Data(data().train, InMemory({**data().train.tensors, "label": label}))
    with pytest.raises(MmfastError, match=r"data: label runs from . to 11"):
        fit(tiny(train__steps=3, train__validate_every=2, train__validate_examples=50), str(tmp_path / "run"), both,
            Known(), quiet=True)  # fmt: skip
    assert Run.open(tmp_path / "run").load_state()[1]["step"] == 2
