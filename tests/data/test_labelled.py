"""Few labels: the share that keeps them, the same ones in every run, and what is left where only they count."""

import collections

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from truth import words

from mmfast import MmfastError, config
from mmfast.build import build_data
from mmfast.data import Batch, Data
from mmfast.data.base import InMemory
from mmfast.data.labelled import Labelled, Only, repeated, with_few_labels
from mmfast.data.precompute import Embedded
from mmfast.data.sprites import Sprites
from mmfast.modalities.label import LabelSpec

N = 2000


class Some(InMemory):
    """Every third lacks its mask."""

    def __getitems__(self, rows):
        return Batch(super().__getitems__(rows).data, {"mask": torch.as_tensor(rows) % 3 > 0})


def examples():
    return Some({"image": torch.arange(N).float(), "label": torch.arange(N), "mask": torch.arange(N)})


def present(part, name, rows=range(N)):
    return part.__getitems__(list(rows)).present[name]


def test_the_share_keeps_it_and_a_larger_share_the_same():
    kept = {share: present(Labelled(examples(), {"label": share}), "label") for share in (0.05, 0.2, 1.0)}
    for share, flags in kept.items():
        # Within five standard errors of a binomial's mean.
        assert abs(float(flags.float().mean()) - share) <= 5 * (share * (1 - share) / N) ** 0.5
    assert bool((kept[0.05] <= kept[0.2]).all()) and bool(kept[1.0].all())
    part = Labelled(examples(), {"label": 0.2})
    rows = [7, 3, 1999, 0]
    assert present(part, "label", rows).tolist() == kept[0.2][rows].tolist()
    assert part.__getitems__(rows).data["image"].tolist() == rows and len(part) == N


def test_which_keep_it_is_the_word_of_each_one_s_number():
    """Of stream 12, which is no other purpose's: a run that is continued elsewhere trains on the same."""
    kept = present(Labelled(examples(), {"label": 0.3}), "label", range(40)).tolist()
    assert kept == [words(0, 12, k, 0, 1)[0] < 0.3 * 2**32 for k in range(40)] and any(kept)


def test_what_was_missing_stays_missing():
    flags = present(Labelled(examples(), {"mask": 0.5}), "mask")
    assert not bool(flags[::3].any()) and 0.4 < float(flags[1::3].float().mean()) < 0.6
    batch = Labelled(examples(), {"label": 0.5}).__getitems__([0, 1, 2, 3])
    assert batch.present["mask"].tolist() == [False, True, True, False]


def test_only_what_has_all_that_is_needed_is_left():
    specs = {"label": LabelSpec(labelled_fraction=0.2, labelled_only=True), "mask": LabelSpec(labelled_only=True)}
    whole = Data(examples(), examples(), dict)
    found = with_few_labels(whole, specs)
    assert isinstance(found.train, Only) and found.test is whole.test
    flags = present(Labelled(examples(), {"label": 0.2}), "label")
    expected = [row for row in range(N) if bool(flags[row]) and row % 3]
    assert found.train.rows.tolist() == expected and len(found.train) == len(expected)
    batch = found.train.__getitems__([2, 0])
    assert batch.data["label"].tolist() == [expected[2], expected[0]]
    assert bool(batch.present["label"].all()) and bool(batch.present["mask"].all())


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.floats(0.01, 0.99))
def test_repeated_rows_are_the_share(flags, share):
    """Worked by counting: nothing is lost, what lacks it stands once, what has it equally often or once more."""
    there, rows = torch.tensor(flags), 10 + torch.arange(len(flags))
    found = repeated(rows, there, share)
    times = collections.Counter(found.tolist())
    having, lacking = rows[there].tolist(), rows[~there].tolist()
    assert found.tolist() == sorted(found.tolist()) and set(times) == set(rows.tolist())
    assert all(times[row] == 1 for row in lacking)
    often = [times[row] for row in having]
    assert max(often) - min(often) <= 1
    if len(having) >= share * len(rows):
        assert max(often) == 1  # they are enough as they are
    else:  # the number of them whose share is the nearest
        assert abs(sum(often) - share / (1 - share) * len(lacking)) <= 0.5 + 1e-9


def test_those_that_stand_once_more_are_from_all_over():
    rows, there = torch.arange(20), torch.arange(20) % 2 == 0  # ten have it: 0, 2, .. 18
    assert repeated(rows, there, 15 / 25).bincount()[::2].tolist() == [2, 1] * 5
    assert repeated(rows, there, 32 / 42).bincount()[::2].tolist() == [4, 3, 3, 3, 3, 4, 3, 3, 3, 3]


def test_what_has_it_is_seen_more_often():
    """Of 2,000 examples 5 per cent have a label, made half of what is trained on; and two thirds have a mask."""
    specs = {"label": LabelSpec(labelled_fraction=0.05, labelled_share=0.5), "mask": LabelSpec(labelled_share=0.5)}
    found = with_few_labels(Data(examples(), examples(), dict), specs).train
    has = present(Labelled(examples(), {"label": 0.05}), "label")
    flags = found.__getitems__(range(len(found))).present
    assert set(found.rows.tolist()) == set(range(N)) and len(found) == 2 * int((~has).sum())
    assert abs(float(flags["label"].float().mean()) - 0.5) < 1e-9
    assert flags["mask"].tolist() == (found.rows % 3 > 0).tolist()  # enough as they are
    both = {"label": specs["label"], "mask": LabelSpec(labelled_share=0.9)}
    found = with_few_labels(Data(examples(), examples(), dict), both).train
    flags = present(found, "mask", range(len(found)))
    assert abs(float(flags.float().mean()) - 0.9) < 1e-3


def test_a_config_says_how_many_and_nothing_left_is_an_error():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")
    found = build_data(config.load("digits", [("modalities.label.labelled_fraction", "0.1")]))
    flags = found.train.__getitems__(range(len(found.train))).present["label"]
    assert 0.05 < float(flags.float().mean()) < 0.15
    assert "label" not in found.test.__getitems__([0]).present  # what is held out keeps all
    with pytest.raises(MmfastError, match=r"modalities.label.labelled_only is true, but no training example has label"):
        build_data(config.load("digits", [("modalities.label.labelled_fraction", "1e-9"),
                                          ("modalities.label.labelled_only", "true")]))  # fmt: skip
    hidden = ("modalities.masked", "{kind: masked, of: image, channels: 1, size: 8, block: 4}")
    for name, why in (("image", "the anchor, which every"), ("masked", "made from another modality, in every")):
        for key, value in (("labelled_fraction", "0.5"), ("labelled_share", "0.5"), ("labelled_only", "true")):
            chosen = config.load("digits", [hidden, (f"modalities.{name}.{key}", value)])
            with pytest.raises(MmfastError, match=f"modalities.{name}.{key} is set, but {name} is {why} example"):
                build_data(chosen)
    with pytest.raises(MmfastError, match=r"modalities.label.labelled_share is 0.5, but no training example has label"):
        build_data(config.load("digits", [("modalities.label.labelled_fraction", "1e-9"),
                                          ("modalities.label.labelled_share", "0.5")]))  # fmt: skip


def test_what_is_made_of_one_example_has_it_or_lacks_it_together():
    """A sprite and its mirrored copy, through a layer too: else half of the copies would say what is left out."""
    pixels = torch.zeros(40, 4, 4, 4, dtype=torch.uint8)
    grounds = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    sprites = Sprites(pixels, pixels[:, 0].long(), torch.arange(40), grounds, mirrored=True)
    for examples in (sprites, Embedded(sprites, "embedding", torch.zeros(80, 2))):
        kept = present(Labelled(examples, {"label": 0.5}), "label", range(80))
        assert kept[:40].tolist() == kept[40:].tolist() and 5 < int(kept[:40].sum()) < 35
        assert kept[:40].tolist() == [words(0, 12, k, 0, 1)[0] < 2**31 for k in range(40)]
