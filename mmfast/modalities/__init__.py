"""The modalities: one file per kind; a new file in this folder is a new kind.

So is a class that an installed package lists under the entry points "mmfast.modalities". It is loaded without asking,
because the user has installed it (`--allow-code` is for code that a config names).
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from mmfast.errors import MmfastError, unknown
from mmfast.modalities.base import Modality, SpaceShape, Spec
from mmfast.modalities.diffused import diffused_itself

KINDS: dict[str, type[Modality]] = {}

for _module in pkgutil.iter_modules(__path__, __name__ + "."):
    for _value in vars(importlib.import_module(_module.name)).values():
        if isinstance(_value, type) and issubclass(_value, Modality) and "kind" in vars(_value):
            KINDS[_value.kind] = _value


# The entry point group of kinds from other packages; and those that could not be loaded, with the reason.
GROUP = "mmfast.modalities"
FAILED: dict[str, str] = {}


def add_installed() -> None:
    """Register the kinds of installed packages. One that cannot be loaded is reported only when it is used.

    A package that is itself being imported may not be ready yet, so loading a config calls this again.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            found = point.load()
        except Exception as error:  # other packages' code may raise anything
            FAILED[point.name] = (str(error) or type(error).__name__).splitlines()[0]
            continue
        if not (isinstance(found, type) and issubclass(found, Modality)):
            FAILED[point.name] = f"{point.value} is not a subclass of Modality"
        elif KINDS.get(found.kind, found) is not found:
            FAILED[point.name] = f"{point.value} calls itself {found.kind!r}, a kind that already exists"
        else:
            KINDS[found.kind] = found
            FAILED.pop(point.name, None)


add_installed()


def kind(name: str) -> type[Modality]:
    """The class of this kind of modality. Raises MmfastError if it is unknown or cannot be loaded."""
    if name not in KINDS and name in FAILED:
        raise MmfastError(f"modality kind {name!r} is installed, but cannot be loaded: {FAILED[name]}")
    if name not in KINDS:
        raise unknown("modality kind", name, KINDS)
    return KINDS[name]


def anchor_defaults(beside: Iterable[type[Modality]]) -> Mapping[str, Any]:
    """The defaults of an anchor image with these other kinds: those of the kind that wants it given most often."""
    return max((k.of_anchor for k in beside), key=lambda x: (x.get("given_probability", 0.25), len(x)), default={})


__all__ = ["FAILED", "KINDS", "Modality", "SpaceShape", "Spec", "anchor_defaults", "diffused_itself", "kind"]
