"""What the options of each kind of modality may not be: said with the option's name, before anything is made."""

import pytest
from tiny import tiny

from mmfast import MmfastError

WRONG = {
    "caption": ["layout: rows", "dim: 0", "reads: both", "encoder: none"],
    "embedding": ["layout: rows", "dim: 0", "sigma: 0", "reads: both"],
    "feature_map": ["dim: 0", "cells: 0", "sigma: 0"],
    "image": ["channels: 0", "size: 0", "sigma: 0", "rms: 0"],
    "label": ["classes: 0", "reads: both", "labelled_fraction: 1.5"],
    "mask": ["classes: 1", "size: 0", "ignore: -1"],
    "masked": ["channels: 0", "size: 0", "block: 0"],
    "table": ["sigma: 0", "scales: [0.0]", "reads: both"],
}
OF_ALL = [
    "given_probability: -0.1", "given_probability: 1.1", "given_at_T: 1.1", "unknown_probability: -0.1",
    "own_time_probability: 1.1", "loss_weight: -1", "weight: {kind: ramp}", "given_steps: 0",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "option"), [(kind, x) for kind, found in WRONG.items() for x in found])
def test_of_one_kind(kind, option):
    with pytest.raises(MmfastError, match=rf"modalities\.x\.{option.partition(':')[0]}.* is .*; it should"):
        tiny(modalities__x=f"{{kind: {kind}, {option}}}")


@pytest.mark.parametrize("option", OF_ALL)
def test_of_every_kind(option):
    with pytest.raises(MmfastError, match=rf"modalities\.label\.{option.partition(':')[0]}.* is .*; it should"):
        tiny(modalities__label=f"{{kind: label, classes: 10, {option}}}")
