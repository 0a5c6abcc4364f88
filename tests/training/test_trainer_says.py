"""What a trainer says and keeps beside its weights: where it goes on, and the end of the stats."""

import json
import math
import signal
import threading

import pytest
import torch
from test_trainer import Known, data
from tiny import tiny

from mmfast.build import build_data
from mmfast.data import Batch, Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.training import loop, stats, stop
from mmfast.training import trainer as module
from mmfast.training.examples import _leave_signals
from mmfast.training.loop import fit, train
from mmfast.training.try_out import rehearse, try_out


@pytest.mark.slow
def test_a_run_that_goes_on_says_from_where(tmp_path, capsys):
    out = str(tmp_path / "run")
    fit(tiny(train__steps=2), out, data(), Known())
    first = capsys.readouterr()
    assert first.out == "" and "training: step 2 of 2" in first.err
    fit(tiny(train__steps=4), out, data(), Known())
    again = capsys.readouterr()
    assert again.out == f"{out}: resuming after step 2 of 4\n"
    assert "training: step 4 of 4" in again.err and "step 1 of 4" not in again.err
    fit(tiny(train__steps=6), out, data(), Known(), quiet=True)
    quiet = capsys.readouterr()
    assert quiet.out == "" and "training" not in quiet.err


def test_a_checkpoint_keeps_the_end_of_the_stats(tmp_path, monkeypatch):
    """As many characters as are said, across flushes and across a restart."""
    monkeypatch.setattr(stats, "RECENT", 500)
    options = {"train__log_every": 1, "train__checkpoint_every": 2}
    for steps in (3, 4):  # the end of what was there, and of one line more
        run = fit(tiny(train__steps=steps, **options), str(tmp_path / "run"), data(), Known(), quiet=True).run
        text = run.stats_file.read_text()
        metadata = run.load_state()[1]
        assert (metadata["step"], metadata["stats"]) == (steps, text[-500:]) and len(text) > 500
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2, 3, 4]


def test_the_rehearsal_looks_at_a_batch_of_both_parts():
    """Of no more than there are, and no further; and at one held-out example that has everything."""
    part = data().train

    class Read(InMemory):
        def __init__(self, count):
            super().__init__({name: x[:count] for name, x in part.tensors.items()})
            self.read = []

        def __getitems__(self, rows):
            self.read.append(list(rows))
            return super().__getitems__(rows)

    train, test = Read(40), Read(10)
    model = rehearse(tiny(), Data(train, test), Known())
    assert train.read == [list(range(16))] and test.read[0] == list(range(10))
    assert all(p.grad is None for p in model.parameters())


def test_the_rehearsal_refuses_what_evaluation_would():
    config = tiny(evaluate__samples=2)
    config.evaluate.features = "theirs:network"
    with pytest.raises(MmfastError, match=r"evaluate\.features is 'theirs:network', code that a config names"):
        rehearse(config, data(), Known())
    config.evaluate.samples = 0  # nobody will ask for it
    rehearse(config, data(), Known())
    with pytest.raises(MmfastError, match=r"train\.device"):
        rehearse(tiny(train__device="cuda:99"), data(), Known())


def test_a_network_that_does_not_run_is_the_backbones_matter():
    def fails(model, batch, numbers, config):
        assert len(batch) == 2 and numbers.tolist() == [0, 1] and not torch.is_grad_enabled()
        raise RuntimeError("sizes of tensors\nmust match")

    batch = data().train.__getitems__(range(5))
    said = r"backbone: a network with these options does not run \(sizes of tensors\); change them"
    with pytest.raises(MmfastError, match=said):
        rehearse(tiny(), data(), fails)
    model = rehearse(tiny(), data(), Known())
    assert len(batch) == 5 and try_out(model, batch, tiny(), Known()) is None


@pytest.mark.parametrize(("rms", "warned"), [(0.59, True), (0.61, False), (1.59, False), (1.61, True)])
def test_the_size_of_encodings_that_is_near_one(rms, warned, recwarn):
    model = rehearse(tiny(), data(), Known())
    batch = data().train.__getitems__(range(4))
    model.encode = lambda found: {"label": torch.full((4, 3, 1, 1), rms)}
    try_out(model, batch, tiny(), Known())
    assert [f"an RMS of {rms:.2f}; it should be near 1" in str(w.message) for w in recwarn] == [True] * warned


def test_signals_ask_once_and_a_second_ctrl_c_is_at_once():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop.Stop() as found:
        assert not found.asked
        signal.raise_signal(signal.SIGTERM)
        assert found.asked
        signal.raise_signal(signal.SIGTERM)  # the same wish
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with stop.Stop(at_once=False) as found:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert found.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_processes_that_load_data_leave_signals_to_the_trainer(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, number)}
    try:
        _leave_signals(0)
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.raise_signal(number)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_the_learning_rate_of_a_run_that_is_all_warm_up():
    config = tiny(train__steps=3, train__warmup=3, train__learning_rate=1.0, train__decay="cosine")
    assert [module.learning_rate(config, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert module.learning_rate(config, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi)))


def test_a_network_is_compiled_and_captured_where_the_config_says_so(tmp_path, monkeypatch):
    """CUDA graphs on a GPU alone."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(module.Trainer, "capture", lambda self: pytest.fail("there is no GPU"))
    for name, count in (("nothing", 0), ("compile", 1), ("cuda_graphs", 1)):
        options = {} if name == "nothing" else {f"train__{name}": "true"}
        found = fit(tiny(train__steps=1, **options), str(tmp_path / name), data(), Known(), quiet=True)
        assert len(compiled) == count
        if name == "compile":
            assert compiled[0] is found.model.backbone


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no hang-ups on Windows")
@pytest.mark.parametrize(("before", "asked"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["shell", "nohup"])
def test_a_terminal_that_closes_asks_too_but_not_under_nohup(before, asked):
    signal.signal(signal.SIGHUP, before)  # the fixture of this folder puts it back
    with stop.Stop() as found:
        if asked:  # else it may end this process
            assert signal.getsignal(signal.SIGHUP) == found._ask
        signal.raise_signal(signal.SIGHUP)
        assert found.asked is asked
    assert signal.getsignal(signal.SIGHUP) is before


def test_in_another_thread_signals_are_left_alone():
    """Python lets the main thread alone set handlers."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def trains():
        with stop.Stop() as found:
            seen.append((signal.getsignal(signal.SIGTERM), found.asked))
        seen.append("left")

    thread = threading.Thread(target=trains)
    thread.start()
    thread.join()
    assert seen == [(before, False), "left"] and signal.getsignal(signal.SIGTERM) is before


def test_data_without_a_modality_is_named():
    without = InMemory({name: x for name, x in data().train.tensors.items() if name != "mask"})
    with pytest.raises(MmfastError, match=r"^data: the examples have no mask; they should have every modality of"):
        rehearse(tiny(), Data(without, without), Known())


class Unlabelled(InMemory):
    read = 0

    def __getitems__(self, rows):
        self.read += len(rows)
        return Batch(super().__getitems__(rows).data, {"label": torch.zeros(len(rows), dtype=torch.bool)})


def test_held_out_examples_without_a_modality_are_found_before_there_is_a_run(capsys):
    both = Data(data().train, Unlabelled(data().test.tensors))
    rehearse(tiny(evaluate__samples=2), both, Known())
    assert capsys.readouterr().err == (
        "mmfast: data: no held-out example has label, so there are no figures of it and no pictures given it; raise "
        "data.test_fraction\n"
    )
    rehearse(tiny(evaluate__samples=2), data(), Known())
    assert not capsys.readouterr().err


def test_without_evaluation_held_out_examples_may_lack_a_modality(tmp_path, capsys, monkeypatch):
    """All of them are looked through once by the rehearsal, and once for the pictures of all steps."""
    found = build_data(tiny())
    both = Data(found.train, Unlabelled(found.test.tensors))
    monkeypatch.setattr(loop, "build_data", lambda config: both)
    chosen = tiny(train__steps=4, train__sample_every=1, train__validate_every=0, evaluate__samples=0)
    run = train(chosen, str(tmp_path / "run"))
    shown = ("given-image", "given-mask", "joint")  # and no picture for a label, which no example has
    names = [f"step-000000{step}-{name}.png" for step in (1, 2, 3, 4) for name in shown]
    assert sorted(file.name for file in run.samples.iterdir()) == names
    assert 2 * len(both.test) <= both.test.read < 3 * len(both.test)  # and some for the record of the data
    said = capsys.readouterr().err
    assert "no held-out example has label, so there are no figures of it and no pictures given it" in said
    assert f"drawing 2 samples in each of 3 directions, for {run.samples}\n" in said


def test_a_warning_of_the_rehearsal_is_its_callers():
    config = tiny(modalities__other="{kind: image, channels: 1, size: 8, rms: 0.25}")
    part = InMemory({**data().train.tensors, "other": torch.ones(50, 1, 8, 8)})
    with pytest.warns(UserWarning, match=r"the encodings of 'other' have an RMS of 4\.00") as caught:
        rehearse(config, Data(part, part), Known())
    assert [warning.filename for warning in caught] == [__file__]
