"""Timesteps, and the rows of tables at them: which are refused, in which words, and what the others read."""

import pytest
import torch

from mmfast import MmfastError, Schedule, process

T = 5
SCHED = Schedule([1.0, 0.8, 0.6, 0.4, 0.2, 0.001])


def of(*times):
    return torch.tensor(times)


@pytest.mark.parametrize(
    "t", [1, T, of(1, T), of(3), torch.tensor(2), of(1, 2).int(), torch.zeros(0, dtype=torch.int64)]
)
def test_times_from_the_first_to_the_last_are_taken(t):
    process.check_time("t", t, 1, T)


@pytest.mark.parametrize(
    ("t", "says"),
    [
        (0, "t is 0; it should lie in 1 .. 5"),
        (6, "t is 6; it should lie in 1 .. 5"),
        (of(0, 3), "t runs from 0 to 3; it should lie in 1 .. 5"),
        (of(3, 6), "t runs from 3 to 6; it should lie in 1 .. 5"),
        (of(-1, 9), "t runs from -1 to 9; it should lie in 1 .. 5"),
        (True, "t is True; it should be an int or an int64 tensor [B]"),
        (2.0, "t is 2.0; it should be an int or an int64 tensor [B]"),
        (torch.ones(2), "t is a torch.float32 tensor of shape [2]; it should be an int or an int64 [B]"),
        (torch.ones(2, 1).long(), "t is a torch.int64 tensor of shape [2, 1]; it should be an int or an int64 [B]"),
    ],
)
def test_others_are_named(t, says):
    with pytest.raises(MmfastError) as caught:
        process.check_time("t", t, 1, T)
    assert str(caught.value) == says


def test_rows_of_a_table():
    table = torch.tensor([[k, 10.0 * k] for k in range(T + 1)])
    assert process.rows(table, 3).tolist() == [[3, 30]]
    assert process.rows(table, of(5, 0)).tolist() == [[5, 50], [0, 0]]
    for wrong in (of(2, 6), of(-1)):
        with pytest.raises(MmfastError, match=r"t runs from .* to .*; it should lie in 0 \.\. 5"):
            process.rows(table, wrong)


def test_a_jump_goes_to_an_earlier_time():
    """From t to t - 1 where no other time is named."""
    one, some, far = process.jump(SCHED, 3), process.jump(SCHED, of(1, 5)), process.jump(SCHED, of(5, 4), of(0, 2))
    assert (one.alpha_bar_t.tolist(), one.alpha_bar_s.tolist()) == ([0.4], [0.6])
    assert (some.alpha_bar_t.tolist(), some.alpha_bar_s.tolist()) == ([0.8, 0.001], [1.0, 0.2])
    assert (far.alpha_bar_t.tolist(), far.alpha_bar_s.tolist()) == ([0.001, 0.2], [1.0, 0.6])
    assert far.a.tolist() == pytest.approx([0.001, 1 / 3])
    for t, s, says in (
        (0, None, "t is 0; it should lie in 1 .. 5"), (of(0, 2), None, "t runs from 0 to 2"),
        (of(1, 6), None, "t runs from 1 to 6"), (of(3), of(-1), "s runs from -1 to -1; it should lie in 0 .. 4"),
        (of(3), of(5), "s runs from 5 to 5"), (of(3, 3), of(2, 3), "s is not before t somewhere"),
        (2, 4, "s is not before t"), (of(3, 3), of(2), r"s has shape \[1\]; it should be that of t, \[2\]"),
    ):  # fmt: skip
        with pytest.raises(MmfastError, match=says):
            process.jump(SCHED, t, s)


def test_the_jump_of_each_block():
    """Block 0 has no weight; the others take the columns that are named, in their order, each at its own times."""
    sched = Schedule(SCHED.alpha_bar, {"a": [0.0, 1, 2, 3, 4, 0], "b": [0.0, 10, 20, 30, 40, 0]})
    t, s = torch.tensor([[4, 2, 5], [1, 3, 2]]), torch.tensor([[3, 1, 4], [0, 0, 1]])
    j = process.block_jumps(sched, [1, 0], t, s)
    assert j.alpha_bar_t.tolist() == [0.2, 0.6, 0.001, 0.8, 0.4, 0.6]
    assert j.alpha_bar_s.tolist() == [0.4, 0.8, 0.2, 1.0, 1.0, 0.8]
    assert j.W_t.tolist() == [[0], [20], [0], [0], [30], [2]]
    assert j.W_s.tolist() == [[0], [10], [4], [0], [0], [1]]


def test_the_marginal_at_each_time():
    """Coefficients of z_0, of the encodings and of the noise, with alpha_bar = 1 and no noise at 0."""
    sched = Schedule(SCHED.alpha_bar, {"a": [0.0, 1, 2, 3, 4, 0]})
    of_z0, W, sigma = process.marginal(sched, of(0, 2, 4))
    assert of_z0.tolist() == pytest.approx([1, 0.6**0.5, 0.2**0.5])
    assert W.tolist() == [[0], [2], [4]] and sigma.tolist() == pytest.approx([0, 0.4**0.5, 0.8**0.5])
    for wrong in (-1, 6, of(6, 0), of(2, -1)):
        with pytest.raises(MmfastError, match=r"it should lie in 0 \.\. 5"):
            process.marginal(sched, wrong)
