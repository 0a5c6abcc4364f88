"""The mean of the gradients over two ranks, of which the other is played here: what is sent, when, and what comes."""

import pytest
import torch

from mmfast.ranks import ALONE
from mmfast.training import average as module
from mmfast.training.average import Average


class Work:
    """The sum is there when it has been waited for, and not before."""

    def __init__(self, flat, other):
        self.flat, self.other = flat, other

    def wait(self):
        self.flat += self.other


class Two:
    """Rank 0 of two. The other has these gradients; None: no such gradient."""

    count = 2

    def __init__(self, monkeypatch, others):
        self.others, self.sent = others, []
        monkeypatch.setattr(module.dist, "all_reduce", self.all_reduce)

    def all_reduce(self, flat, async_op):
        assert async_op
        self.sent.append(flat.tolist())
        other = torch.tensor(self.others.pop(0), dtype=flat.dtype)
        return Work(flat, other)

    def any(self, *flags):
        return [mine or theirs for mine, theirs in zip(flags, self.has, strict=True)]


def numbers(*values):
    return torch.nn.Parameter(torch.tensor(values))


def give(p, *values):
    """A backward pass by which these arrive at p."""
    (p * torch.tensor(values)).sum().backward()


def test_the_mean_of_both(monkeypatch):
    """Of all backward passes of a step; the last parameters first, each bucket when it is whole; twice in a row."""
    a, b, c = numbers(0.0, 0.0), numbers(0.0), numbers(0.0)
    ranks = Two(monkeypatch, [[10.0, 20.0], [30.0, 40.0], [1.0, 1.0], [1.0, 1.0]])
    ranks.has = [True] * 3
    found = Average([a, b, c], ranks, most=8)
    assert [[tuple(p.shape) for p in bucket] for bucket in found.buckets] == [[(1,), (1,)], [(2,)]]
    assert found.buckets[0][0] is c and found.buckets[0][1] is b
    give(a, 1.0, 2.0)
    give(b, 3.0)
    assert not ranks.sent  # not the last pass
    found.begin()
    give(a, 1.0, 1.0)
    assert not ranks.sent  # in one order on all ranks, whatever arrives first
    give(b, 1.0)
    assert not ranks.sent  # its bucket is not whole
    give(c, 5.0)
    assert ranks.sent == [[5.0, 4.0], [2.0, 3.0]]
    found.end()
    assert [p.grad.tolist() for p in (a, b, c)] == [[16.0, 21.5], [12.0], [7.5]]
    for p in (a, b, c):
        p.grad = None
    give(a, 1.0, 1.0)  # before the next step's last pass
    assert len(ranks.sent) == 2
    found.begin()
    give(c, 3.0)
    give(b, 5.0)
    assert ranks.sent[2:] == [[3.0, 5.0]]
    found.end()  # what has not arrived is sent by then
    assert ranks.sent[3] == [1.0, 1.0]
    assert [p.grad.tolist() for p in (a, b, c)] == [[1.0, 1.0], [3.0], [2.0]]


def test_what_one_lacks_counts_as_zero_and_what_both_lack_stays_so(monkeypatch):
    a, b, c = numbers(0.0), numbers(0.0), numbers(0.0)
    ranks = Two(monkeypatch, [[0.0, 6.0, 0.0]])
    ranks.has = [False, True, False]  # of c, b and a
    found = Average([a, b, c], ranks)
    found.begin()
    give(c, 8.0)
    found.end()
    assert ranks.sent == [[8.0, 0.0, 0.0]]
    assert a.grad is None and b.grad.tolist() == [3.0] and c.grad.tolist() == [4.0] and not b.grad.requires_grad


def test_buckets_are_of_one_type_and_as_large_as_allowed(monkeypatch):
    half = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    frozen = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    p = [torch.nn.Parameter(torch.zeros(4)) for _ in range(5)]
    ranks = Two(monkeypatch, [])

    def names(most):
        every = {id(x): str(k) for k, x in enumerate([*p, half])}
        buckets = Average([*p[:4], half, frozen, p[4]], ranks, most).buckets
        return ["".join(every[id(x)] for x in bucket) for bucket in buckets]

    assert names(10_000) == ["4", "5", "3210"]
    assert names(32) == ["4", "5", "32", "10"] and names(31) == ["4", "5", "3", "2", "1", "0"]
    assert names(48) == ["4", "5", "321", "0"]
    assert names(1) == ["4", "5", "3", "2", "1", "0"]  # one that is larger goes alone


def test_of_one_process_gradients_are_as_they_are(monkeypatch):
    monkeypatch.setattr(module.dist, "all_reduce", lambda *args, **options: pytest.fail("there is nobody else"))
    a = numbers(1.0)
    found = Average([a], ALONE)
    found.begin()
    give(a, 7.0)
    found.end()
    assert a.grad.tolist() == [7.0] and not found.sent
