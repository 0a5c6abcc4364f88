"""The judge's training and its figures by value: what it is shown, with which labels, and what the share counts."""

import platform
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mmfast.data import judge


def test_accuracy_is_the_share_of_all_images():
    """More than two batches of 500, the last of them short; bytes are turned into floats first."""
    count, seen = 1100, []
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = torch.arange(count) % 7

    def reads(part):
        start = sum(map(len, seen))
        seen.append(part)
        return answers[start : start + len(part)]

    labels = torch.where(torch.arange(count) < 900, answers, answers + 1)
    assert judge.accuracy(reads, images, labels) == pytest.approx(9 / 11)
    torch.testing.assert_close(torch.cat(seen), images / 127.5 - 1)
    seen.clear()
    assert judge.accuracy(reads, images / 255, labels) == pytest.approx(9 / 11)
    assert torch.equal(torch.cat(seen), images / 255)


def test_what_a_judge_is_kept_by_where_nothing_is_said(monkeypatch):
    def kept(cache, name, key, make):
        asked.update(cache=cache, name=name, key=key)
        return judge.Classifier(1, 8, 3).state_dict()

    asked = {}
    monkeypatch.setattr(judge, "kept", kept)
    images = torch.zeros(5, 1, 8, 8)
    found = judge.classifier(judge.Classified(images, torch.arange(5) % 3, 3), key={"data": "x"})
    given = {"shape": [5, 1, 8, 8], "classes": 3, "seed": 0, "epochs": 8, "width": 128, "version": 2}
    precision = "fp32" if judge.slow_in_bf16(next(found.parameters()).device) else "bf16"
    assert asked == {"cache": "", "name": "judge", "key": {"data": "x", **given, "precision": precision}}
    assert found.features(images).shape == (5, 256) and found.probabilities(images).shape == (5, 3)


def test_it_is_shown_every_image_and_its_mirror_with_its_label(monkeypatch, tmp_path):
    """Each once an epoch, in a new order, about half of them mirrored left to right, at a rate that rises and falls."""
    count, epochs = 600, 3
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[:, 0, 0, 0], images[:, 0, 0, 7] = 0, 255  # no image is its own mirror
    labels, shown, rates = torch.arange(count) % 10, [], []

    def cross_entropy(logits, target, label_smoothing):
        assert label_smoothing == 0.05 and logits.dtype == torch.float32
        shown[-1] = (*shown[-1], target)
        return F.cross_entropy(logits, target)

    logits, step = judge.Classifier.logits, torch.optim.AdamW.step
    monkeypatch.setattr(judge.Classifier, "logits", lambda self, x: shown.append((self.training, x)) or logits(self, x))
    monkeypatch.setattr(judge, "F", SimpleNamespace(cross_entropy=cross_entropy))
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    with torch.no_grad():  # as an evaluation may have it
        real = judge.Classified(images, labels, 10)
        found = judge.classifier(real, key={}, cache=tmp_path, epochs=epochs, width=8, quiet=True)
    assert not found.training and all(training for training, _, _ in shown)
    assert [len(x) for _, x, _ in shown] == [256, 256, 88] * epochs
    floats = images / 127.5 - 1
    place = {
        x.numpy().tobytes(): (k, side) for side, part in enumerate((floats, floats.flip(3))) for k, x in enumerate(part)
    }
    x, targets = (torch.cat([batch[k] for batch in shown]) for k in (1, 2))
    rows, mirrored = torch.tensor([place[image.contiguous().numpy().tobytes()] for image in x]).T
    assert torch.equal(targets, labels[rows])
    orders = [rows[k * count : (k + 1) * count].tolist() for k in range(epochs)]
    assert all(sorted(order) == [*range(count)] for order in orders)
    assert len({tuple(order) for order in orders}) == epochs and orders[0] != sorted(orders[0])
    n = epochs * count
    assert abs(float(mirrored.double().mean()) - 0.5) < 5 * 0.5 / n**0.5
    # One cycle: up to the greatest rate at a fifth of the steps, and down to nearly nothing.
    greatest = max(rates)
    assert len(rates) == 9 and greatest <= 4e-3 and rates.index(greatest) in (1, 2)
    assert rates[-1] < 1e-3 * greatest and rates[0] < greatest


@pytest.mark.parametrize(("capability", "dtype"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_it_is_trained_in_bf16_where_the_processor_has_instructions_for_it(monkeypatch, tmp_path, capability, dtype):
    """Without them a step takes many times as long: seen by what its first layer makes."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    logits, seen = judge.Classifier.logits, set()
    monkeypatch.setattr(judge.Classifier, "logits", lambda self, x: seen.add((y := logits(self, x)).dtype) or y)
    real = judge.Classified(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, 2)
    judge.classifier(real, key={}, cache=tmp_path, epochs=1, width=8, quiet=True)
    assert seen == {dtype}


def test_what_it_says_of_an_image_is_its_layers():
    """In evaluation, in float64: batch normalisation by the running means, no dropout."""
    torch.manual_seed(0)
    found = judge.Classifier(channels=3, size=16, classes=5, width=16)
    for layer in found.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.bias, std=0.3)
    found.eval()
    images = torch.rand(9, 3, 16, 16) * 2 - 1
    x = F.pixel_unshuffle(images.double(), 2)
    state = {name: value.double() for name, value in found.state_dict().items()}

    def normal(x, k):
        mean, var, weight, bias = (
            state[f"body.{k}.{name}"].reshape(-1, *[1] * (x.dim() - 2))
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()

    for k, pooled in ((1, False), (4, True), (8, True)):
        x = normal(F.conv2d(x, state[f"body.{k}.weight"], padding=1), k + 1)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)) if pooled else x
    x = normal(x.flatten(1) @ state["body.13.weight"].T, 14)
    logits = x @ state["out.1.weight"].T + state["out.1.bias"]
    torch.testing.assert_close(found.features(images, batch=4).double(), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits(images).detach().double(), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities(images).double(), logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert torch.equal(found(images), logits.argmax(1))
