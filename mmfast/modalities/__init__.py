"""The modalities: one file a kind; a new file in this folder is a new kind."""

import importlib
import pkgutil

from mmfast.errors import unknown
from mmfast.modalities.base import Modality, SpaceShape, Spec

KINDS: dict[str, type[Modality]] = {}

for _module in pkgutil.iter_modules(__path__, __name__ + "."):
    for _value in vars(importlib.import_module(_module.name)).values():
        if isinstance(_value, type) and issubclass(_value, Modality) and _value is not Modality:
            KINDS[_value.kind] = _value


def kind(name: str) -> type[Modality]:
    """The class of this kind of modality. Raises MmfastError for an unknown one."""
    if name not in KINDS:
        raise unknown("modality kind", name, KINDS)
    return KINDS[name]


__all__ = ["KINDS", "Modality", "SpaceShape", "Spec", "kind"]
