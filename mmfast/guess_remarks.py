"""Remarks on a folder whose modalities are guessed: what was not left out, but may not be as the user meant it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from mmfast.candidates import named_as_masks
from mmfast.data.class_folders import SPLITS, splits_of
from mmfast.data.metadata import find_table
from mmfast.plain_yaml import dump_yaml
from mmfast.words import plural


def remarks(stems: Collection[str], folder: Path, alone: bool) -> Iterator[str]:
    """Remarks on the anchor's files, by their paths in its folder. alone: no other modality has files of its own."""
    splits = splits_of(stems)
    if len(splits) > 1:
        remark = (
            f"the folders {', '.join(splits)} are splits of a data set: their examples are pooled, and tables in them "
            "are not read"
        )
        yield f"{remark}; to keep them apart, use `data: {_huggingface(splits, folder)}`" if alone else remark
    elif splits and alone and find_table(folder / splits[0]) is not None:
        yield f"the table in {folder / splits[0]} is not read; `mmfast check {folder / splits[0]}` reads it"
    masks = [stem for stem in stems if _of_mask(stem) and stem.rpartition("_")[0] in stems]
    if masks:
        ending = "_" + masks[0].rpartition("_")[2]
        yield (
            f"{plural(len(masks), 'picture')} in {folder} that end in {ending} are read as images; if they are the "
            f"masks of those without it, move them to a folder `mask`, and leave {ending} out of their names"
        )


def _of_mask(stem: str) -> bool:
    ending = stem.rpartition("_")[2]
    return "/" not in ending and named_as_masks(ending)


def _huggingface(splits: list[str], folder: Path) -> str:
    """The section of a config that reads the splits as Hugging Face's datasets do."""
    train = next((x for x in splits if SPLITS[x] == "train"), splits[0])
    test = next((x for x in splits if SPLITS[x] != SPLITS[train]), splits[-1])
    data = {"kind": "huggingface", "path": str(folder), "train": SPLITS[train], "test": SPLITS[test]}
    return dump_yaml(data, default_flow_style=True, width=10**9).strip()
