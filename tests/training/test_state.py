"""A trainer's state as tensors: back as it was, and refused where its counts cannot be right."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmfast.errors import MmfastError
from mmfast.training.state import check, pack, unpack


def made(steps, seed=0):
    """A model, its average, and an optimiser that has taken so many steps."""
    torch.manual_seed(seed)
    modules = {kind: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for kind in ("model", "ema")}
    optimizer = torch.optim.AdamW(modules["model"].parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        modules["model"](torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return modules, optimizer


def checked(tensors, modules, last=100, **metadata):
    check(tensors, metadata, last, modules, Path("x"))


def test_it_comes_back_as_it_was():
    modules, optimizer = made(3)
    tensors = {name: x.clone() for name, x in pack(modules, optimizer).items()}
    assert len(tensors) == 2 * 4 + 4 * 3 and float(tensors["optimizer.0.step"]) == 3
    others, other = made(0, seed=1)
    checked(tensors, others, step=3)
    unpack(tensors, others, other)
    again = pack(others, other)
    assert again.keys() == tensors.keys() and all(torch.equal(x, tensors[name]) for name, x in again.items())
    # And the next step is the same.
    for m, o in ((modules["model"], optimizer), (others["model"], other)):
        o.zero_grad()
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert all(
        torch.equal(a, b) for a, b in zip(modules["model"].parameters(), others["model"].parameters(), strict=True)
    )


def test_the_optimisers_count_is_the_steps_without_those_left_out():
    modules, optimizer = made(3)
    tensors = pack(modules, optimizer)
    checked(tensors, modules, step=3)
    checked(tensors, modules, step=5, skipped=2)
    for about, says in (
        ({"step": 4}, "x is of step 4, but its optimiser has taken 3; both should be the same"),
        ({"step": 2}, "x is of step 2, but its optimiser has taken 3"),
        ({"step": 3, "skipped": 1}, "x is of step 3, less the 1 that were left out, but its optimiser has taken 3"),
        ({"step": 101}, "x is of step 101; it should be a number from 0 to train.steps, 100"),
        ({"step": -1}, "x is of step -1; it should be"),
        ({"step": True}, "x is of step True; it should be"),
        ({}, "x is of step None; it should be"),
        ({"step": 3, "skipped": -1}, "x has -1 steps that were left out; it should be a number from 0 to 3"),
        ({"step": 3, "skipped": 4}, "x has 4 steps that were left out; it should be a number from 0 to 3"),
        ({"step": 3, "skipped": 1.0}, "x has 1.0 steps that were left out"),
    ):  # fmt: skip
        with pytest.raises(MmfastError) as caught:
            checked(tensors, modules, **about)
        assert str(caught.value).startswith(says)


def test_an_optimiser_that_has_taken_no_step_has_no_tensors():
    modules, optimizer = made(0)
    tensors = pack(modules, optimizer)
    assert len(tensors) == 8
    checked(tensors, modules, step=0)
    checked(tensors, modules, step=7, skipped=7)
    with pytest.raises(MmfastError, match="x is of step 1, but its optimiser has taken 0"):
        checked(tensors, modules, step=1)


def test_a_count_in_float32_stands_still_at_2_to_the_24():
    """Of which one more is the same number."""
    most = torch.tensor(2.0**24)
    assert most + 1 == most and torch.tensor(2.0**24 - 1) + 1 == most
    modules, optimizer = made(1)
    for counted, step in ((2**24 - 1, 2**24 - 1), (2**24, 2**24), (2**24, 10**8)):
        tensors = {name: torch.tensor(float(counted)) if name.endswith(".step") else x
                   for name, x in pack(modules, optimizer).items()}  # fmt: skip
        checked(tensors, modules, last=10**9, step=step)
    with pytest.raises(MmfastError, match="has taken 16777216"):
        checked(tensors, modules, last=10**9, step=2**24 - 1)
