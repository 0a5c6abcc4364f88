"""Options that data sets share, and what is said of a folder that is none."""

import dataclasses
import hashlib

import pytest

from mmfast import config as configs
from mmfast import data, modalities
from mmfast.data import folder, table
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
        assert str(error.value).startswith(f"data.root is {root!r}, no folder{here}; it should be one that has")


def test_a_kind_that_is_none_is_named():
    with pytest.raises(MmfastError, match=r"^data\.kind is 'foldr'; it should be one of .*; did you mean 'folder'\?$"):
        data.kind("foldr")
    assert [data.kind(kind).Spec().kind for kind in data.KINDS] == list(data.KINDS)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_rows_of_a_table_are_held_out_by_their_hash_and_as_many_of_the_rest_to_choose_by(tmp_path, share):
    """The hash of a row's cells in 0 .. 1: below the share for the test, and below 1 - (1 - share)^2 for the choice."""
    rows = [[str(k), str(k * k % 97)] for k in range(300)]
    (tmp_path / "x.csv").write_text("\n".join(map(",".join, [["a", "b"], *rows])) + "\n")
    row = modalities.kind("table").Spec(columns=["a", "b"], means=[0.0, 0.0], scales=[1.0, 1.0])
    hashes = [int(hashlib.sha256("\n".join(cells).encode()).hexdigest()[:16], 16) / 2**64 for cells in rows]
    ends = share, 1 - (1 - share) ** 2
    for validation, held_out, trained in (
        (False, [k for k, x in enumerate(hashes) if x < ends[0]], [k for k, x in enumerate(hashes) if x >= ends[0]]),
        (True, [k for k, x in enumerate(hashes) if ends[0] <= x < ends[1]],
         [k for k, x in enumerate(hashes) if x >= ends[1]]),
    ):  # fmt: skip
        spec = table.Spec(source=str(tmp_path / "x.csv"), test_fraction=share, validation=validation)
        found = table.open(spec, {"row": row}, "row")
        parts = [part.__getitems__(range(len(part))).data["row"][:, 0].tolist() for part in (found.test, found.train)]
        assert parts == [held_out, trained] and min(map(len, parts)) > 30
