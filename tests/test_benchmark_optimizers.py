"""The benchmark of the optimisers: a step of each in turn, by a clock of its own."""

import itertools
import time

import pytest

from benchmarks import optimizers
from mmfast.config_sections import OPTIMIZERS
from mmfast.training import optimizer
from mmfast.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("base", ["digits", "table"])  # the columns of a table are found in its data
def test_steps_of_each_in_turn(base, monkeypatch, capsys):
    """By a clock that goes one second a step, and three more a step of Muon."""
    pytest.importorskip("sklearn")
    now, taken, step = itertools.count(), [], Trainer.step

    def counted(self, batches, network):
        taken.append(type(self.optimizer))
        step(self, batches, network)
        if isinstance(self.optimizer, optimizer.Muon):
            for _ in range(3):
                next(now)

    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(Trainer, "step", counted)
    adamw, muon = optimizers.measure(base, {"train.batch_size": "8", "train.precision": "fp32"}, 20.0)
    assert [adamw["optimizer"], muon["optimizer"]] == list(OPTIMIZERS)
    assert (adamw["step_ms"], muon["step_ms"], adamw["of_adamw"], muon["of_adamw"]) == (1000, 4000, 1, 4)
    assert adamw["batch_size"] == 8 and adamw["steps"] == muon["steps"] == len(taken) // 2 - 3 >= 3
    assert taken[::2] == [taken[0]] * (len(taken) // 2) and {*taken[1::2]} == {optimizer.Muon} != {taken[0]}
    assert 3 <= adamw["operations"] < muon["operations"]
    printed = capsys.readouterr().out
    assert f"{muon['operations']} operations" in printed
