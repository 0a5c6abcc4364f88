"""The benchmark of the pass without noise: steps with it and without it in turn, by a clock of its own."""

import itertools
import time

import pytest

from benchmarks import clean_pass
from mmfast.training import objective


@pytest.mark.slow
def test_steps_of_each_in_turn(monkeypatch, capsys):
    """By a clock that goes one second a step, and a half more for that pass."""
    now, taken, clean = itertools.count(), [], objective._clean
    late = [0.0]

    def counted(model, present):
        taken.append(model)
        late[0] += 0.5
        return clean(model, present)

    monkeypatch.setattr(time, "perf_counter", lambda: next(now) + late[0])
    monkeypatch.setattr(objective, "_clean", counted)
    row = clean_pass.measure("image-label", 20.0)
    assert (row["step_ms"], row["with_clean_pass_ms"], row["ratio"], row["batch"]) == (1000, 1500, 1.5, 16)
    assert row["steps"] == len(taken) - 2 >= 3 and len({*taken}) == 1
    assert "ratio 1.500" in capsys.readouterr().out
