"""The distances of the evaluation: samples against one half of the real images, and the two halves against each other.

A feature is one number here, so that both Gaussians are (mean, deviation) and a ball is an interval.
"""

import importlib

import pytest
import torch
from on_a_line import frechet, share_inside

from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.data.labelled import Only
from mmfast.distances import against, real_features, row_distances
from mmfast.metrics.features import Extractor

module = importlib.import_module("mmfast.distances")


def distances(drawn, of, anchor, network, most=10_000):
    return against(real_features(of, anchor, network, most), drawn, network, network.name)


def images(count, seed, shift=0.0):
    """Images of one pixel, no two alike."""
    return torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) + shift


def features(name="number", sizes=None):
    def network(x):
        if sizes is not None:
            sizes.append(len(x))
        return 3 * x.flatten(1)

    return Extractor(name, network, torch.device("cpu"), batch_size=10_000)


@pytest.fixture
def compared(monkeypatch):
    """What the Frechet distance is asked about, in turn."""
    pairs = []
    real = module.frechet_distance
    monkeypatch.setattr(
        module,
        "frechet_distance",
        lambda a, b: pairs.append((a.flatten().tolist(), b.flatten().tolist())) or real(a, b),
    )
    return pairs


def data(train, test):
    return Data(InMemory({"picture": images(train, 1)}), InMemory({"picture": images(test, 2)}))


@pytest.mark.parametrize(("train", "test", "count"), [(60, 21, 30), (60, 20, 50), (300, 280, 290), (5, 4, 9)])
def test_two_halves_of_the_real_images_and_the_samples(compared, train, test, count):
    drawn, of = images(count, 3, 0.4), data(train, test)
    found = distances(drawn, of, "picture", features())
    everything = [3 * x for part in (of.train, of.test) for x in part.tensors["picture"].flatten().tolist()]
    half = (train + test) // 2
    number = min(half, count)
    (fake, one), (other, again) = compared
    assert fake == pytest.approx([3 * x for x in drawn.flatten().tolist()[:number]]) and one == again
    # As many of each; none of them twice; all of them real; of a shuffled order.
    assert (len(one), len(other)) == (half, number) and len({*one, *other}) == half + number
    assert {round(x, 4) for x in one + other} <= {round(x, 4) for x in everything}
    assert one != pytest.approx(everything[:half]) and one != pytest.approx(everything[-half:])
    if number == half and not (train + test) % 2:
        assert sorted(one + other) == pytest.approx(sorted(everything))  # and every one is in one of them
    expected = {}
    for who, these in (("samples", fake), ("real_halves", other)):
        expected[f"frechet_number.{who}"] = frechet(these, one)
        if number > 3:
            expected[f"precision_number.{who}"] = share_inside(one[:number], these)
            expected[f"recall_number.{who}"] = share_inside(these, one[:number])
    assert found == {name: pytest.approx(x, rel=1e-6) for name, x in expected.items()}
    assert distances(drawn, of, "picture", features()) == found


def test_names_of_pixels_are_plain():
    found = distances(images(9, 3), data(10, 8), "picture", features("pixels"))
    assert {name.split(".")[0] for name in found} == {"frechet", "precision", "recall"}


@pytest.mark.parametrize(("count", "names"), [(0, None), (1, []), (2, ["frechet"]), (3, ["frechet"]),
                                              (4, ["frechet", "precision", "recall"])])  # fmt: skip
def test_what_few_samples_allow(count, names):
    """Two for a deviation, and four for the third nearest other of each."""
    of = data(20, 20) if count else data(2, 1)
    found = distances(images(count or 5, 3), of, "picture", features("pixels"))
    assert sorted({name.split(".")[0] for name in found}) == (names or [])


def test_no_more_real_images_than_asked_for_and_in_batches(compared):
    """Drawn from all of the training set and of the test set, which may be sorted by class."""
    sizes, of = [], data(700, 600)
    distances(images(600, 3), of, "picture", features(sizes=sizes), most=300)
    drawn = [3 * x for part in (of.train, of.test) for x in part.tensors["picture"].flatten()[some(len(part), 300)]]
    one, other = compared[0][1], compared[1][0]
    assert sorted(one + other) == pytest.approx(sorted(map(float, drawn))) and sizes == [256, 44, 256, 44, 256, 256, 88]
    assert int(some(700, 300).max()) > 650 and len(some(700, 300).unique()) == 300


def some(count, most):
    """The rows that are drawn, by torch's permutation of seed 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[:most].sort().values


def test_what_is_repeated_for_its_label_counts_once():
    """labelled_share has some of the training examples several times; the real images are each of them once."""
    plain = data(40, 20)
    rows = torch.cat((torch.arange(40), torch.arange(5).repeat(30))).sort().values
    repeated = Data(Only(plain.train, rows), plain.test)
    found, wanted = (distances(images(30, 3), x, "picture", features("pixels")) for x in (repeated, plain))
    assert found == wanted
    table = Data(InMemory({"row": torch.arange(6.0)}), InMemory({"row": torch.arange(6.0, 9.0)}))
    again = Data(Only(table.train, torch.tensor([0, 0, 0, 1, 2, 3, 4, 5])), table.test)
    assert row_distances(Rows(), "row", torch.zeros(4), again) == row_distances(Rows(), "row", torch.zeros(4), table)


class Rows:
    """A modality whose distances are what they were asked about."""

    def distances(self, x, real):
        return {"asked": (x.tolist(), real.tolist())}


def test_distances_of_rows_are_of_shuffled_halves():
    """Half of the real rows, against the samples and against as many of the other half; none of them twice."""
    train, test = torch.arange(30.0), torch.arange(30.0, 41.0)
    of = Data(InMemory({"row": train}), InMemory({"row": test}))
    drawn = torch.arange(100.0, 115.0)
    found = row_distances(Rows(), "row", drawn, of)
    samples, real = found["row.asked.samples"]
    others, again = found["row.asked.real_halves"]
    assert samples == drawn.tolist() and real == again and (len(real), len(others)) == (20, 15)
    everything = [*real, *others]
    assert len({*everything}) == 35 and {*everything} <= {*torch.cat((train, test)).tolist()}
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0)).tolist()
    assert everything == order[:35] and everything != sorted(everything)
    assert row_distances(Rows(), "row", drawn[:0], of) == {}


def test_the_real_ones_are_shuffled_alike_each_time():
    """Both sets, of each as many as asked for, in the order of torch's permutation of seed 0."""
    both = 3 * torch.cat((images(30, 1)[some(30, 25)], images(20, 2))).flatten(1)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module.real_features(data(30, 20), "picture", features(), 25), both[order])
