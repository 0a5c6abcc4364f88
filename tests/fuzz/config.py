"""Configs as YAML: each loads, round-trips and has a schedule and a model, or is an error of one line."""

import copy
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from . import odd
from .pool import Fault, one_line

SPECIAL = (
    "a: &a [x]\nb: [{}]\n".format(", ".join(["*a"] * 50)),
    "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" if k else "a0: &a0 [1, 2]" for k in range(12)),
    "[" * 5000,
    "{a: " * 3000,
    "- " * 4000,
    "a: " + "9" * 5000,
    "? " * 300,
    "a: !!python/name:os.system x",
    "--- a\n--- b\n",
    "a: !!set {b}",
    "a: !!timestamp 2001-01-01",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "a: !!int x",
    "a: !!float x",
    "!!map [a]",
    "a: |\n" + " x\n" * 10,
    "%YAML 9.9\n---\na: b",
    "a: 0x10",
    "a: 1_0",
    "a: 2001-01-01",
    "a: <<",
    "<<: [a]",
    "a: '\\x41'",
    'a: "\\ud800"',
    'a: "\\U00110000"',
    "a: \x85b",
    "\ufeffanchor: image",
    "a:\tb",
    "modalities: {image: {<<: {kind: image}}}",
)


class Configs:
    def prepare(self, base: Path) -> None:
        from tiny import tiny

        from mmfast import config, presets
        from mmfast.build import build_model

        self.texts = [presets.text(name) for name in presets.names()]
        self.plain: list[Any] = [yaml.safe_load(text) for text in self.texts]
        self.plain += 6 * [yaml.safe_load(config.to_yaml(tiny()))]
        with torch.device("meta"):  # for what it imports
            build_model(tiny())
        self.keys = sorted({key for plain in self.plain for key in _keys(plain)})

    def attempt(self, rng: random.Random, folder: Path) -> str | None:
        file = folder / "config.yaml"
        file.write_bytes(self._text(rng))
        overrides = []
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            key = (
                rng.choice(self.keys)
                if rng.random() < 0.8
                else rng.choice([*odd.TEXTS, "a.b.c", ".", "..", "train.", ".train"])
            )
            text = str(odd.value(rng)) if rng.random() < 0.8 else self._text(rng).decode(errors="replace")[:2000]
            overrides.append((key, text))
        return one_line(lambda: self._load(rng, file, overrides))

    def _text(self, rng: random.Random) -> bytes:
        pick = rng.random()
        if pick < 0.12:
            return odd.spoilt(rng, rng.choice(self.texts).encode())
        if pick < 0.2:
            text = rng.choice(SPECIAL)
            return (rng.choice(["", *self.texts]) + "\n" + text).encode(errors="surrogatepass")
        plain = copy.deepcopy(rng.choice(self.plain))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            self._change(rng, plain)
        style = rng.choice([None, True, False])
        return yaml.safe_dump(plain, default_flow_style=style, allow_unicode=rng.random() < 0.5).encode(
            errors="surrogatepass"
        )

    def _change(self, rng: random.Random, plain: Any) -> None:
        """One key of one part removed, changed or added."""
        part = plain
        while True:
            inner = [key for key, x in part.items() if isinstance(x, dict) and x]
            if not inner or rng.random() < 0.4:
                break
            part = part[rng.choice(inner)]
        key = rng.choice(list(part)) if part else "x"
        how = rng.randrange(6)
        if how == 0:
            part.pop(key, None)
        elif how == 1:
            part[rng.choice([*odd.TEXTS, *odd.NUMBERS, None])] = odd.value(rng)
        elif how == 2 and part:
            part[rng.choice([*self.keys[:], "x"]).split(".")[-1]] = part.get(key)
        else:
            part[key] = odd.value(rng)

    def _load(self, rng: random.Random, file: Path, overrides: list[tuple[str, str]]) -> None:
        from mmfast import config as configs
        from mmfast.build import build_model, build_schedule

        found = configs.load(str(file), overrides)
        again = file.with_name("again.yaml")
        again.write_text(configs.to_yaml(found), encoding="utf-8")
        differs = configs.changes(found, configs.load(str(again)))
        if any(a != b for a, b in (text.split(" -> ", 1) for text in differs.values())):  # NaN differs from itself
            raise Fault(f"does not round-trip: {differs}")
        build_schedule(found)
        if rng.random() < 0.5:
            with torch.device("meta"):  # of any size, in no time
                build_model(found)


def _keys(plain: Any, prefix: str = "") -> list[str]:
    found = []
    for key, x in plain.items():
        found.append(f"{prefix}{key}")
        if isinstance(x, dict):
            found += _keys(x, f"{prefix}{key}.")
    return found
