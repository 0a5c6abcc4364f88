"""The options of a config as lines of text, for --help."""

from __future__ import annotations

from mmfast import backbones, data, modalities
from mmfast.config_sections import SECTIONS, Config
from mmfast.options import listed


def describe(config: Config | None = None) -> str:
    """Every option with its help and its value in the config; None: of every kind there is, with its default."""
    chosen = config or Config()
    parts = [("the run", chosen, ""), *((name, getattr(chosen, name), f"{name}.") for name in SECTIONS)]
    if config is None:
        parts += [(f"data, kind {kind}", data.kind(kind).Spec(), "data.") for kind in data.KINDS]
        parts += [(f"backbone, kind {kind}", backbones.kind(kind).Spec(), "backbone.") for kind in backbones.KINDS]
        parts += [(f"modalities, kind {k}", part.Spec(), "modalities.NAME.") for k, part in modalities.KINDS.items()]
    else:
        named = {"data": config.data, "backbone": config.backbone}
        named |= {f"modalities.{name}": spec for name, spec in config.modalities.items()}
        parts += [(f"{name}, kind {spec.kind}", spec, f"{name}.") for name, spec in named.items()]
    beside = ("data", "backbone", *SECTIONS)
    return "\n".join(line for title, spec, prefix in parts for line in (title, *listed(spec, prefix, beside), ""))
