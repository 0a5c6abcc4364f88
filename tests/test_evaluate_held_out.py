"""The held-out examples of the evaluation: those that have every modality, read no further than needed."""

import pytest
import torch
from test_evaluate import HIDDEN, VECTOR, examples
from tiny import tiny

from mmfast.build import build_model
from mmfast.data import Batch
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.held_out import Shuffled, held_out


class Some:
    """Examples of which not all have everything, and which of them were read."""

    def __init__(self, tensors, present):
        self.tensors, self.present, self.read = tensors, present, []

    def __len__(self):
        return len(self.tensors["image"])

    def __getitems__(self, rows):
        self.read += rows
        index = torch.as_tensor(rows)
        return Batch(
            {name: x[index] for name, x in self.tensors.items()}, {n: x[index] for n, x in self.present.items()}
        )


def test_they_are_those_that_have_everything():
    """Of 200 in batches of 64; read no further than needed, and again from the first when they run out."""
    model, tensors = build_model(tiny(modalities__vector=VECTOR, modalities__hidden=HIDDEN)), examples(200, 3)
    numbers = torch.arange(200)
    present = {"mask": numbers % 3 == 0, "label": numbers % 2 == 0, "vector": numbers != 6}
    some = Some(tensors, present)
    whole = [k for k in range(0, 200, 6) if k != 6]
    for count, read in ((5, 64), (11, 128), (len(whole), 200), (len(whole) + 3, 200)):
        some.read.clear()
        found = held_out(some, count, model)
        rows = [whole[k % len(whole)] for k in range(count)]
        assert some.read == list(range(read)) and set(found.data) == {*tensors, "hidden"} and not found.present
        assert all(torch.equal(found.data[name], x[rows]) for name, x in tensors.items())
    # The same parts are hidden of an example each time: by its place among those that have everything.
    part, hidden = model.part("hidden"), found.data["hidden"]
    for k in range(len(hidden)):
        number = torch.tensor([k % len(whole)])
        assert torch.equal(hidden[k], part.derive(tensors["image"][[rows[k]]], 0, number)[0])
    assert torch.equal(hidden[-1], hidden[2]) and not torch.equal(hidden[0][1], hidden[1][1])
    with pytest.raises(MmfastError, match="no held-out example has all of image, label, mask, vector; raise"):
        held_out(Some(tensors, {"mask": numbers < 0}), 3, model)


def test_shuffled_examples_are_all_of_them():
    """Each once, in another order than the data set's, that is always the same."""
    examples = InMemory({"x": torch.arange(100)})
    one, other = (Shuffled(examples).__getitems__(range(100)).data["x"].tolist() for _ in range(2))
    assert one == other and sorted(one) == list(range(100)) and one != sorted(one)
