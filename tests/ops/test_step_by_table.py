"""A step by a table's row, words by identity, and the rows of a combination, as a user calls them."""

import sys
import threading

import pytest
import torch
import truth

from mmfast import MmfastError, Schedule, bridge, ops
from mmfast.ops import Block, Tables
from mmfast.ops.call import Noise
from mmfast.process import TARGETS, jump, reverse_step

T = 20


def tables(sched, eta, target="eps"):
    """Those of every step t -> t - 1, written out from the formulas of the process; the row of t is t - 1."""
    j = jump(sched, torch.arange(1, T + 1))
    of_z0, of_y, sigma = reverse_step(j, eta)
    of_z, of_prediction = TARGETS[target].x0(j.alpha_bar_t)
    to_x0 = torch.stack((of_z, of_prediction, -of_z * j.W_t[:, 0]), 1)
    coefs = torch.stack((of_y, torch.zeros(T).double(), j.W_s[:, 0] - of_y * j.W_t[:, 0], of_z0), 1)
    return Tables(coefs.float(), sigma.float() if eta else None, to_x0.float())


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("clamp", [None, 0.8, (-0.5, 0.9)])
def test_it_is_the_step_of_a_schedule(each_backend, eta, clamp):
    sched = Schedule.cosine(T, {"a": bridge(1.5)})
    z, prediction, a = (ops.randn((3, 4, 5), seed=k) for k in range(3))
    a = a[:, :, :1]
    noise = {"seed": 7, "draw": 3, "sample_ids": torch.tensor([5, 2**40, 0]), "stream": 2}
    with ops.backend(each_backend):
        for t in (T, 7, 1):
            want = ops.step(z, prediction, {"a": a}, t, sched, eta=eta, clamp=clamp, **noise)
            of_t = torch.full((3,), t - 1)
            for row in (t - 1, of_t):
                found = ops.step_by_table([z, prediction, a], tables(sched, eta), row, clamp=clamp, **noise)
                for x, y in zip(found, want, strict=True):
                    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_x0_may_have_the_last_channels_of_two_dimensions(each_backend):
    """Held within a clamp there, and zero elsewhere."""
    terms = [torch.ones(2, 4), 3 * torch.ones(2, 4)]
    with ops.backend(each_backend):
        out, x0 = ops.step_by_table(
            terms, Tables(torch.ones(2, 3), None, torch.ones(2, 2)), 0, channels=(2, 2), clamp=2
        )
    assert x0.tolist() == [[2.0, 2.0]] * 2 and out.tolist() == [[4.0, 4.0, 6.0, 6.0]] * 2


def test_x0_may_have_some_channels():
    sched = Schedule.cosine(T, {"a": bridge(1.5)})
    z, prediction, a = ops.randn((2, 5, 3), seed=1), ops.randn((2, 2, 3), seed=2), ops.randn((2, 3, 3), seed=3)
    terms = [z, Block(prediction, 0, 5), Block(a, 2, 5)]
    want = ops.step(z, terms[1], {"a": terms[2]}, 9, sched, eta=0.0)
    found = ops.step_by_table(terms, tables(sched, 0.0), 8, channels=(0, 2))
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_a_number_a_sample_is_stepped_and_differentiated(each_backend):
    """Terms [B], of no channels: the slope is that of the two combinations, by hand."""
    sched = Schedule.cosine(T, {"a": bridge(1.5)})  # the column of a is left out
    z, prediction = (ops.randn((3,), seed=k).requires_grad_() for k in range(2))
    whole = tables(sched, 0.0)
    of_step = Tables(whole.coefs[:, [0, 1, 3]], None, whole.to_x0[:, :2])
    with ops.backend(each_backend):
        z_s, x0 = ops.step_by_table([z, prediction], of_step, 4, clamp=None)
        slopes = torch.autograd.grad(z_s.sum(), (z, prediction))
    (a, b), (c, _, d) = of_step.to_x0[4].tolist(), of_step.coefs[4].tolist()
    torch.testing.assert_close(x0, a * z + b * prediction)
    torch.testing.assert_close(z_s, c * z + d * x0)
    torch.testing.assert_close(slopes, (torch.full((3,), c + d * a), torch.full((3,), d * b)))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"tables": Tables(torch.ones(2, 3))}, "tables"),
        ({"tables": Tables(torch.ones(2, 4), None, torch.ones(2, 3))}, "to_x0"),
        ({"tables": Tables(torch.ones(2, 4), None, torch.ones(2, 2))}, "coefs"),
        ({"row": 2}, "rows"),
        ({"row": -1}, "rows"),
        ({"row": torch.tensor([0])}, "rows"),
        ({"row": torch.tensor([0.0, 1.0])}, "rows"),
        ({"row": torch.tensor([0, 2])}, "rows"),
        ({"row": torch.tensor([-1, 0])}, "rows"),
        ({"row": torch.tensor([0, 1], device="meta")}, "rows"),
        ({"tables": Tables([[1.0]], None, torch.ones(2, 2))}, "coefs is list"),
        ({"tables": Tables(torch.ones(2, 3), None, [[1.0]])}, "to_x0 is list"),
        ({"tables": Tables(torch.ones(2, 3), [1.0], torch.ones(2, 2))}, "sigma is list"),
        ({"tables": Tables(None, None, torch.ones(2, 2))}, "coefs is NoneType"),
        ({"tables": Tables(torch.ones(1, 3), None, torch.ones(2, 2))}, "coefs has 1 rows"),
        ({"tables": Tables(torch.ones(2, 3), torch.ones(1), torch.ones(2, 2))}, "sigma has 1 rows"),
        ({"tables": Tables([[1.0]], None, torch.ones(2, 2)), "row": 7}, "coefs"),
        ({"clamp": -1.0}, "clamp"),
        ({"tables": None}, "tables has no to_x0"),
        ({"tables": (torch.ones(2, 3), None, torch.ones(2, 2), None)}, "tables has no to_x0"),
        ({"channels": (3, 2)}, "channels"),
        ({"channels": (0, 5)}, r"channels is \(0, 5\)"),
        ({"channels": (0, 2), "terms": [torch.ones(2), torch.ones(2)]}, r"channels is \(0, 2\)"),
        ({"channels": (-1, 2)}, "channels"),
        ({"channels": (0, -2)}, "channels"),
        ({"channels": (1, 2**63 - 1)}, "channels"),
        ({"channels": (2**63, 1)}, "channels"),
        ({"channels": 2}, "channels"),
        ({"channels": (0, 1, 2)}, "channels"),
        ({"channels": (0.0, 2.0)}, "channels"),
        ({"channels": "01"}, "channels"),
        ({"seed": "x", "tables": Tables(torch.ones(2, 3), torch.ones(2), torch.ones(2, 2))}, "seed"),
        ({"terms": []}, "terms"),
        ({"terms": [torch.ones(2, 4), torch.ones(3, 4)]}, "terms"),
        ({"terms": [torch.ones(2, 4), "x"]}, "terms"),
        ({"terms": [torch.ones(2, 1), torch.ones(2, 4)]}, "terms"),
    ],
)
def test_bad_input_is_named(each_backend, change, named):
    given = {"terms": [torch.ones(2, 4), torch.ones(2, 4)], "row": 0}
    given["tables"] = Tables(torch.ones(2, 3), None, torch.ones(2, 2))
    with ops.backend(each_backend):
        ops.step_by_table(**given)
        with pytest.raises(MmfastError, match=named):
            ops.step_by_table(**{**given, **change})
    with pytest.raises(MmfastError, match=named):
        ops.step_by_table(**{**given, **change})


def test_a_pending_negation_is_applied(each_backend):
    """In the tables and in a term, as the imaginary part of a conjugate has it."""
    x, made = torch.randn(2, 4), Tables(torch.randn(2, 2), torch.rand(2), torch.randn(2, 1))
    pending = made.map(lambda table: torch.complex(table, -table).conj().imag)
    assert all(table.is_neg() for table in pending[:3])
    with ops.backend(each_backend):
        want = ops.step_by_table([x], made, seed=1)
    for found in (ops.step_by_table([x], pending, seed=1), ops.step_by_table([torch._neg_view(-x)], pending, seed=1)):
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_words_are_the_generators(each_backend):
    ids = [5, 2**47 + 3, 0]
    with ops.backend(each_backend):
        found = ops.random_words([3, 7], seed=-3, draw=9, sample_ids=torch.tensor(ids), stream=4)
    assert found.tolist() == [truth.words(-3, 4, id, 9, 7) for id in ids]
    assert ops.random_words((0, 7)).shape == (0, 7) and ops.random_words((2, 0)).shape == (2, 0)
    for shape in ([3], [3, -1], 3, [3, 7, 1], [3.0, 7]):
        with pytest.raises(MmfastError, match="shape"):
            ops.random_words(shape)


@pytest.mark.skipif(ops.backends.load("cpu")[1] is not None, reason="the extension is not built")
def test_other_threads_run_while_words_are_made():
    kernel, words = ops.backends.load("cpu")[0]._cpu.random_words, torch.empty(1000, 10_000, dtype=torch.int64)
    before, seen = sys.getswitchinterval(), []
    sys.setswitchinterval(1000)  # so that a thread gives the interpreter away only of itself
    try:
        for _ in range(20):  # the machine may be busy
            begun, done = threading.Event(), threading.Event()

            def make(begun=begun, done=done):
                begun.set()
                kernel(Noise((1, 0)), words)
                done.set()

            thread = threading.Thread(target=make)
            thread.start()
            begun.wait()
            seen.append(not done.is_set())
            thread.join()
            if seen[-1]:
                break
    finally:
        sys.setswitchinterval(before)
    assert any(seen)


def test_rows_of_a_combination(each_backend):
    x, table, sigma = torch.randn(4, 3), torch.randn(5, 1), torch.rand(5)
    rows = torch.tensor([4, 0, 0, 2])
    with ops.backend(each_backend):
        found = ops.combine([x], table, sigma, rows=rows, seed=1)
        want = ops.combine([x], table[rows], sigma[rows], seed=1)
        one = ops.combine([x], table, sigma, rows=3, seed=1)
        alike = ops.combine([x], table[3:4].expand(4, 1), sigma[3:4].expand(4), seed=1)
        for wrong in (5, -1, True, rows[:3], rows.int(), 1.0, rows.to("meta"), rows + 1, rows - 1):
            for of_table in (table, table.clone().requires_grad_()):
                with pytest.raises(MmfastError, match="rows"):
                    ops.combine([x], of_table, rows=wrong)
        for wrong in ([[1.0]] * 5, None, table[:, 0], torch.randn(5, 2)):
            with pytest.raises(MmfastError, match="coefs"):
                ops.combine([x], wrong, rows=7)
        with pytest.raises(MmfastError, match="sigma has 1 rows; it should have 5"):
            ops.combine([x], table, sigma[:1], rows=0)
    assert torch.equal(found, want) and torch.equal(one, alike)
    for wrong in (5, rows + 1, rows - 1):  # at once
        with pytest.raises(MmfastError, match="rows"):
            ops.combine([x], table, rows=wrong)


@pytest.mark.skipif(ops.backends.load("cpu")[1] is not None, reason="the extension is not built")
def test_a_row_of_nan_is_named():
    x, table = torch.randn(2, 3), torch.tensor([[1.0], [torch.nan]])
    for rows in (1, torch.tensor([0, 1])):
        with pytest.raises(MmfastError, match="rows names a row"):
            ops.combine([x], table, rows=rows)


def test_an_empty_batch_has_rows():
    x, table, none = torch.randn(0, 3), torch.randn(5, 1), torch.empty(0, dtype=torch.int64)
    for rows in (3, none):
        assert ops.combine([x], table, rows=rows).shape == (0, 3)
        assert ops.step_by_table([x], Tables(table.expand(5, 2), None, table), rows)[1].shape == (0, 3)
    with pytest.raises(MmfastError, match="rows"):
        ops.combine([x], table, rows=5)
