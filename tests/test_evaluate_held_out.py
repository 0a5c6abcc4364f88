"""The held-out examples of the evaluation: those that have every modality, read no further than needed."""

import pytest
import torch
from test_evaluate import HIDDEN, VECTOR, examples
from tiny import tiny

from mmfast.build import build_model
from mmfast.data import Batch
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.held_out import Shuffled, by_modality, held_out


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


def test_of_few_whole_examples_each_modality_has_its_own():
    """Those that have it and the anchor, with nothing else; where they are as many as the whole ones, those."""
    model, tensors = build_model(tiny(modalities__vector=VECTOR, modalities__hidden=HIDDEN)), examples(100, 3)
    numbers = torch.arange(100)
    present = {"mask": numbers % 5 == 0, "label": numbers % 10 == 0, "vector": numbers < 0}
    some = Some(tensors, present)
    found = by_modality(some, 15, model)
    assert some.read == list(range(100)) and {*found} == {"image", "label", "mask", "hidden"}
    for name, step in (("image", 1), ("label", 10), ("mask", 5)):
        batch, rows = found[name].batch, [k * step for k in range(100 // step)]
        assert {*batch.data} == {"image", name, "hidden"} and found[name].different == min(15, len(rows))
        for k in ("image", name):
            assert torch.equal(batch.data[k], tensors[k][[rows[i % len(rows)] for i in range(15)]])
    assert found["hidden"] is found["image"]
    # Those that have everything serve for all, as far as they go.
    for there, count, one in (([2, 3, 50], 3, True), ([2, 3, 50], 4, False)):
        present = {name: torch.isin(numbers, torch.tensor(there)) for name in ("label", "mask", "vector")}
        found = by_modality(Some(tensors, present), count, model)
        assert {*found} == {*model.parts} and found["label"] is found["mask"] and found["label"].different == 3
        assert (found["image"] is found["label"]) is one and found["image"].different == count
        assert found["label"].batch.data["label"].tolist() == tensors["label"][(there * 2)[:count]].tolist()
        assert {*found["label"].batch.data} == {*model.parts}


def test_what_is_given_of_the_data_needs_nothing_else():
    model, tensors = build_model(tiny()), examples(20, 3)
    numbers = torch.arange(20)
    some = Some(tensors, {"mask": numbers % 10 == 3, "label": numbers % 4 == 3})  # 3 has both
    assert held_out(some, 1, model, ["label"]).data["label"].tolist() == [int(tensors["label"][3])]
    found = held_out(some, 3, model, ["label"]).data
    assert {*found} == {"label"} and torch.equal(found["label"], tensors["label"][[3, 7, 11]])
    with pytest.raises(MmfastError, match=r"no held-out example has all of mask; raise data.test_fraction"):
        held_out(Some(tensors, {"mask": numbers < 0}), 3, model, ["mask"])
