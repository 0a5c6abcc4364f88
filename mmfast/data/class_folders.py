"""Folders that name the classes of the examples in them, and folders that are splits of a data set."""

from __future__ import annotations

from collections.abc import Collection

# Folders of these names are splits of a data set: the name of each in Hugging Face's datasets.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def splits_of(stems: Collection[str]) -> list[str]:
    """The first folders of the examples' paths, sorted, if all of them are splits of a data set; else []."""
    names = sorted({stem.split("/")[0] for stem in stems})
    return names if all("/" in stem for stem in stems) and SPLITS.keys() >= {*names} else []


def class_folders(stems: Collection[str]) -> dict[str, str]:
    """The folder that names each example's class, by the example's path; {} unless each example is in one.

    It is the first folder of the path. Below splits, such as train and test, it is the next one, if there is one.
    """
    parts = {stem: stem.split("/") for stem in stems}
    below = 1 if splits_of(stems) and all(len(x) > 2 for x in parts.values()) else 0
    return {stem: x[below] for stem, x in parts.items()} if all(len(x) > 1 for x in parts.values()) else {}
