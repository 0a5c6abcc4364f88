"""The measures that the paper's tasks share, by value: features of one number, so that all is worked out on a line."""

from types import SimpleNamespace

import pytest
import torch
from on_a_line import frechet, share_inside

from benchmarks.paper import measures
from mmfast.data.base import InMemory
from mmfast.metrics.features import Extractor


def numbers(count, seed, scale=1.0):
    return scale * torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))


def rows(found):
    return {m.metric: (m.condition, m.value, m.higher_is_better) for m in found}


def expected(condition, name, fake, true):
    fake, true = fake.flatten().tolist(), true.flatten().tolist()
    return {
        f"FD-{name}": (condition, pytest.approx(frechet(fake, true), rel=1e-6), False),
        "precision": (condition, pytest.approx(share_inside(true, fake)), True),
        "recall": (condition, pytest.approx(share_inside(fake, true)), True),
    }


def test_quality():
    """Samples of too little spread: precise, and without recall."""
    fake, true = numbers(30, 1, 0.2), numbers(40, 2)
    found = rows(measures.quality("drawn", "line", fake, true))
    assert found == expected("drawn", "line", fake, true)
    assert found["precision"][1] > 0.9 and 0 < found["recall"][1] < 0.5


@pytest.fixture
def trained(monkeypatch):
    """A run of 20 samples a direction with 90 held-out images, each of a number of its own."""

    def network(name):
        assert name == "the features"
        return Extractor("line", lambda x: 2 * x.flatten(1)[:, :1], torch.device("cpu"))

    monkeypatch.setattr(measures, "extractor", network)
    images = torch.arange(90.0)[:, None, None, None].expand(-1, 1, 2, 2)
    data = SimpleNamespace(test=InMemory({"image": images, "label": torch.arange(90)}))
    return SimpleNamespace(data=data, samples=20, features="the features", smoke=True)


def test_real_images_are_drawn_without_putting_back(trained):
    found = measures.real(trained, 30)[:, 0, 0, 0].tolist()
    assert len({*found}) == 30 and {*found} <= {*range(90)} and found != sorted(found)
    assert measures.real(trained, 30)[:, 0, 0, 0].tolist() == found  # the same every time
    assert measures.real(trained, 30, seed=1)[:, 0, 0, 0].tolist() != found
    assert sorted(measures.real(trained, 500)[:, 0, 0, 0].tolist()) == [*range(90)]


def test_the_halves_share_no_image(trained):
    one, other = (half[:, 0, 0, 0].tolist() for half in measures.two_halves(trained))
    assert len(one) == len(other) == 20 and len({*one, *other}) == 40
    found = rows(measures.reference_quality(trained, "drawn"))
    assert found == expected("drawn", "line", 2 * torch.tensor(one), 2 * torch.tensor(other))


def test_images_are_compared_with_as_many_real_ones(trained):
    images = 45 + 20 * torch.randn(25, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    true = measures.real(trained, 25)[:, 0, 0, 0]
    found = rows(measures.image_quality(trained, "given", images))
    assert found == expected("given", "line", 2 * images[:, 0, 0, 0], 2 * true)


def test_agreement_is_the_share_of_equal_labels():
    assert measures.agreement(torch.tensor([3, 1, 4, 1, 5]), torch.tensor([3, 1, 4, 2, 6])) == pytest.approx(3 / 5)


def test_the_other_sampler_is_named():
    assert measures.DDPM == {"sampler": "ddpm", "steps": 100, "spacing": 1.0}
    assert measures.by_ddpm("drawn together") == "drawn together, by DDPM in 100 steps"
