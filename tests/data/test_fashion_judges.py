"""What the judges of Fashion-MNIST learn from."""

import torch

from mmfast.data import fashion


def test_they_learn_from_the_training_set_alone(monkeypatch):
    """In the cache by its content: other pictures in the same format are judged by another network."""
    asked = []
    monkeypatch.setattr(fashion, "classifier", lambda *args, **how: asked.append((args, how)) or "the network")
    images = torch.arange(2 * 16 * 16, dtype=torch.int64).reshape(2, 1, 16, 16).to(torch.uint8)
    for change in (0, 1):
        train = fashion.Pictures(images + change, torch.tensor([7, 1], dtype=torch.uint8))
        assert fashion._judges(train, "here") == {"label": "the network", "mask": fashion.outline}
    ((shown, labels, classes),), how = asked[0]
    assert torch.equal(shown, images) and labels.tolist() == [7, 1] and labels.dtype == torch.int64 and classes == 10
    assert how["cache"] == "here" and how["key"]["size"] == 16 and how["key"] != asked[1][1]["key"]
