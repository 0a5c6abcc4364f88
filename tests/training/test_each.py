"""Arithmetic on lists: torch's own functions, and the loops that stand in for them."""

import pytest
import torch

from mmfast.training import each

# The lists are [[1, 2], [[4], [8]]] and, as "others", [[3, 4], [[6], [0]]].
CASES = [
    ("add_", (1,), [[2, 3], [5, 9]]),
    ("add_", (torch.tensor(0.5),), [[1.5, 2.5], [4.5, 8.5]]),
    ("lerp", ("others", 0.25), [[1.5, 2.5], [4.5, 6]]),
    ("lerp_", ("others", 0.25), [[1.5, 2.5], [4.5, 6]]),
    ("mul_", (2.0,), [[2, 4], [8, 16]]),
    ("mul_", ([2.0, 0.5],), [[2, 4], [2, 4]]),
    ("mul_", (torch.tensor(0.5),), [[0.5, 1], [2, 4]]),
    ("sub_", ("others",), [[-2, -2], [-2, 8]]),
]


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize(("name", "arguments", "expected"), CASES)
def test_each_element(name, arguments, expected, loops, monkeypatch):
    if loops:
        monkeypatch.delattr(torch, f"_foreach_{name}")
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0], [8.0]])]
    others = [torch.tensor([3.0, 4.0]), torch.tensor([[6.0], [0.0]])]
    found = each._each(name)(tensors, *(others if x == "others" else x for x in arguments))
    in_place = name.endswith("_")
    assert [x.reshape(-1).tolist() for x in (tensors if in_place else found)] == expected
    assert [x.reshape(-1).tolist() for x in others] == [[3, 4], [6, 0]]
    assert in_place or [x.reshape(-1).tolist() for x in tensors] == [[1, 2], [4, 8]]


def test_each_function_is_torchs():
    assert all(getattr(each, name) is getattr(torch, f"_foreach_{name}") for name, _, _ in CASES)
