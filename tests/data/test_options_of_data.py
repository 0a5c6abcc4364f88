"""Options that data sets share, and what is said of a folder that is none."""

import dataclasses

import pytest

from mmfast import config as configs
from mmfast import data
from mmfast.data import folder
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.options import check

IMAGE = {"image": {"kind": "image", "channels": 1, "size": 8}}
SPLIT = [kind for kind in data.KINDS if "test_fraction" in {x.name for x in dataclasses.fields(data.kind(kind).Spec)}]


def config(kind, **options):
    return configs.from_plain({**DRAFT, "data": {"kind": kind, **options}, "modalities": IMAGE}, "x")


@pytest.mark.parametrize("kind", SPLIT)
def test_the_share_held_out_is_above_0_and_at_most_nine_tenths(kind):
    Spec = data.kind(kind).Spec
    check(Spec(test_fraction=1e-6), "data.")
    check(Spec(test_fraction=0.9), "data.")
    for share in (0.0, -0.1, 0.91, 1.0):
        with pytest.raises(MmfastError, match=f"data.test_fraction is {share}"):
            check(Spec(test_fraction=share), "data.")


def test_a_folder_that_is_none_is_looked_for_from_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, here in (("there", f" in {tmp_path}, the current one"), (str(tmp_path / "there"), ""), ("", "")):
        with pytest.raises(MmfastError) as error:
            folder.open(folder.Spec(root=root), config("folder").modalities, "image")
        assert str(error.value).startswith(f"data.root is {root!r}, no folder{here}; it should be one that holds")
