"""The options of a config as lines of text, for --help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from mmfast import backbones, data, modalities
from mmfast.config_sections import SECTIONS, Config
from mmfast.errors import MmfastError
from mmfast.kinds import ModuleKinds
from mmfast.modalities import Modality, Spec
from mmfast.options import Origin, listed, typed


def describe(config: Config | None = None) -> str:
    """Every option with its help and its value in the config; for None, every kind's options and their defaults."""
    chosen = config or Config()
    parts = [("the run", chosen, ""), *((name, getattr(chosen, name), f"{name}.") for name in SECTIONS)]
    if config is None:
        parts += [(f"data, kind {kind}", spec, "data.") for kind, spec in _defaults(data.KINDS)]
        parts += [(f"backbone, kind {kind}", spec, "backbone.") for kind, spec in _defaults(backbones.KINDS)]
        parts += [
            (f"modalities, kind {kind}, not the anchor", _beside(part), "modalities.NAME.")
            for kind, part in modalities.KINDS.items()
        ]
    else:
        named = {"data": config.data, "backbone": config.backbone}
        named |= {f"modalities.{name}": spec for name, spec in config.modalities.items()}
        parts += [(f"{name}, kind {spec.kind}", spec, f"{name}.") for name, spec in named.items()]
    beside = ("data", "backbone", *SECTIONS)
    return "\n".join(line for title, spec, prefix in parts for line in (title, *listed(spec, prefix, beside), ""))


def _defaults(kinds: ModuleKinds) -> Iterator[tuple[str, Any]]:
    """The default options of each kind, without those of installed packages that cannot be imported."""
    for kind in kinds:
        with contextlib.suppress(MmfastError):
            yield kind, kinds.module(kind).Spec()


def _beside(kind: type[Modality]) -> Spec:
    """The options of a modality that is not the anchor and of which a config gives only the kind."""
    return typed(kind.Spec, OmegaConf.create(dict(kind.beside)), "", Origin())
