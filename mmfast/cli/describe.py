"""The options of a config as lines of text, for --help."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmfast import backbones, data, modalities
from mmfast.config import SECTIONS, Config


def describe(config: Config | None = None) -> str:
    """Every option with its help and its value in the config; None: of every kind there is, with its default."""
    lines: list[str] = []

    def section(title: str, spec: Any, prefix: str) -> None:
        lines.extend([title] if title else [])
        for f in dataclasses.fields(spec):
            value = getattr(spec, f.name)
            if f.metadata.get("help"):
                lines.append(_line(prefix + f.name, value, f))
            elif dataclasses.is_dataclass(value) and f.name not in ("data", "backbone", *SECTIONS):
                section("", value, f"{prefix}{f.name}.")
        lines.extend([""] if title else [])

    chosen = config or Config()
    section("the run", chosen, "")
    for name in SECTIONS:
        section(name, getattr(chosen, name), f"{name}.")
    if config is not None:
        parts = {"data": config.data, "backbone": config.backbone}
        parts |= {f"modalities.{name}": spec for name, spec in config.modalities.items()}
        for name, spec in parts.items():
            section(f"{name}, kind {spec.kind}", spec, f"{name}.")
        return "\n".join(lines)
    for kind in data.KINDS:
        section(f"data, kind {kind}", data.kind(kind).Spec(), "data.")
    for kind in backbones.KINDS:
        section(f"backbone, kind {kind}", backbones.kind(kind).Spec(), "backbone.")
    for kind, part in modalities.KINDS.items():
        section(f"modalities, kind {kind}", part.Spec(), "modalities.NAME.")
    return "\n".join(lines)


def _line(key: str, value: Any, f: Any) -> str:
    choices = f.metadata.get("choices")
    text = f.metadata.get("help", "") + (f" ({', '.join(map(str, choices))})" if choices else "")
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"  --{key:<36} {text} [{shown}]"
