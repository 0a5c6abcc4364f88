"""The parts of a proposed config by value: its lines, its rounded numbers, the network's patch, the time of a step."""

from types import SimpleNamespace as Some

import pytest
import torch
import yaml

from mmfast import propose


@pytest.mark.parametrize(
    ("x", "found"), [(3.9, 3), (9.99, 9), (10, 10), (99.9, 99), (100, 100), (1234, 1200), (99_999, 99_000)]
)
def test_numbers_are_rounded_to_two_digits_downwards(x, found):
    assert propose._rounded(x) == found


@pytest.mark.parametrize(
    ("size", "side"), [(48, 48), ([16, 16], 16), ([16, 64], 32), ([24, 40], 32), ([64, 256], 128), ([30, 5], 16)]
)
def test_a_rectangle_has_the_network_of_the_square_with_about_as_many_pixels(size, side):
    assert propose._side(size) == side


@pytest.mark.parametrize(("size", "patch"), [(16, 1), (24, 1), (31, 1), (32, 2), (64, 2), (50, 2), (44, 2)])
def test_the_network_sees_cells_of_pixels_from_32_on(size, patch):
    found = propose._backbone(size, True)
    assert (found["patch"], found["mean"]) == (patch, True) and "mean" not in propose._backbone(size, False)
    # No more levels than the sides can be halved for.
    assert len(found["multipliers"]) == {16: 3, 24: 4, 31: 1, 32: 3, 64: 4, 50: 1, 44: 2}[size]
    assert propose._backbone(15, True)["kind"] == "mlp" and found["kind"] == "unet"


def test_a_section_is_one_line_as_long_as_that_can_be_read():
    section = {"kind": "label", "names": ["Käfer", "no", "1"], "empty": None}
    [line] = propose._entry("modality", section, "  ")
    assert line == "  modality: {kind: label, names: [Käfer, 'no', '1'], empty: null}"
    assert yaml.safe_load(line) == {"modality": section}
    assert propose._entry("x", {"a": "b" * 112}, "") == [f"x: {{a: {'b' * 112}}}"]  # 120 letters
    assert propose._entry("x", {"a": "b" * 113, "c": 1}, "  ") == ["  x:", f"    a: {'b' * 113}", "    c: 1"]
    assert [propose._flow(x) for x in ("a", 3, 1.5, True, [1, 2])] == ["a", "3", "1.5", "true", "[1, 2]"]
    text = "word " * 60
    assert propose._flow({"a": text}).count("\n") == 0


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_time_of_a_step_is_the_median_after_two_to_warm_up(monkeypatch, kind):
    now, took, waited = [0.0], iter([9.0, 8.0, 0.25, 0.5, 0.75, 100.0]), []
    seen = []

    def step(batches, model):
        seen.append((next(batches), model))
        now[0] += next(took)

    trainer = Some(step=step, model="model", device=torch.device(kind))
    monkeypatch.setattr(propose, "build_data", lambda config: Some(train="examples"))
    monkeypatch.setattr(propose, "Trainer", lambda config, run, data: trainer)
    monkeypatch.setattr(propose, "loader", lambda config, examples, start: [f"{examples} from {start}"])
    monkeypatch.setattr(propose.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert propose.step_time("config", seconds=1.0) == 0.5
    assert seen == [("examples from 0", "model")] * 5 and waited == [torch.device("cuda")] * 5 * (kind == "cuda")


def test_a_gpu_has_the_larger_batch(monkeypatch):
    for kind, batch in (("cpu", 16), ("cuda", 64)):
        monkeypatch.setattr(propose, "pick_device", lambda name, kind=kind: torch.device(kind))
        assert propose.usual_batch() == batch
