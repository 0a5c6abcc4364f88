"""Draws docs/layers.svg from the layers of pyproject.toml: `python .ci/layers.py`. A test holds the two together."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
# The first layer of each group, its name and its colour, from the top.
GROUPS = {
    "__main__": ("what you run", "#e8eefc"),
    "build | reverse | guess | held_out": ("from a config to a model", "#e7f5ec"),
    "data | model_checks | head_inputs": ("the parts", "#fdf3e1"),
    "image_files | mask_values | plain_yaml | presets | loss | diffusers | ranks": ("formulas, ops, files", "#f6e9f7"),
    "streams | memory | progress": ("the ground", "#eeeeee"),
}
BESIDE = ("_mmfast_cpu", "_mmfast_cuda")
WIDTH, LEFT, RIGHT, ROW, GAP = 860, 240, 846, 26, 12
SANS = 'font-family="system-ui, sans-serif" font-size="13" fill="#1b2333"'
MONO = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11" text-anchor="middle" fill="#1b2333"'


def layers() -> list[str]:
    """The layers of the contract, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return list(next(contract for contract in contracts if contract["type"] == "layers")["layers"])


def boxes(names: list[str], y: float) -> list[str]:
    """A row of modules, as wide as there is room."""
    width = (RIGHT - LEFT - 6 * (len(names) - 1)) / len(names)
    found = []
    for k, name in enumerate(names):
        x = LEFT + k * (width + 6)
        found += [
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="20" rx="4" fill="#ffffff" stroke="#8a93a6"/>',
            f'<text x="{x + width / 2:.1f}" y="{y + 14:.1f}" {MONO}>{name}</text>',
        ]
    return found


def drawing() -> str:
    """The picture, as SVG."""
    rows = [[name.strip() for name in layer.split("|")] for layer in layers() if layer != "__main__"]
    starts = {layer.split("|")[0].strip(): group for layer, group in GROUPS.items()}
    starts[rows[0][0]] = starts.pop("__main__")
    groups: list[tuple[tuple[str, str], list[list[str]]]] = []
    for row in rows:
        if row[0] in starts:
            groups.append((starts[row[0]], []))
        groups[-1][1].append(row)
    groups.append((("beside the package", "#fbfbfa"), [[*BESIDE]]))
    parts, y = [], 14.0
    for (name, colour), inside in groups:
        height = ROW * len(inside) + 10
        parts.append(f'<rect x="56" y="{y:.1f}" width="798" height="{height}" rx="8" fill="{colour}"/>')
        parts.append(f'<text x="70" y="{y + height / 2 + 4:.1f}" {SANS}>{name}</text>')
        for k, row in enumerate(inside):
            parts += boxes(row, y + 8 + k * ROW)
        y += height + GAP
    bottom = y - GAP
    arrow = f'<path d="M30 24 V{bottom - 14:.1f} m-6 -9 l6 9 l6 -9" fill="none" stroke="#8a93a6" stroke-width="2"/>'
    label = f'<text transform="translate(22 {bottom / 2 + 60:.1f}) rotate(-90)" {SANS}>imports go down only</text>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
        'role="img" aria-label="The layers of mmfast">'
    )
    ground = f'<rect width="{WIDTH}" height="{y:.0f}" rx="10" fill="#fbfbfa"/>'
    return "\n".join([head, *(f"  {part}" for part in (ground, *parts, arrow, label)), "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "layers.svg").write_text(drawing())
    sys.exit(0)
