"""The files of a run, damaged: what goes on or is drawn is what the whole run gives, or one line says why not."""

import json
import random
import shutil
import struct
from pathlib import Path

import torch

from . import odd
from .command import run_main
from .pool import Fault

TENSORS = ("trainer.safetensors", "trainer.previous.safetensors", "model.safetensors", "ema.safetensors")
TEXTS = ("config.yaml", "stats.jsonl", "metrics.json")


class Checkpoints:
    def prepare(self, base: Path) -> None:
        from small_run import COMMAND, make
        from tiny import flags

        self.base = base / "run"
        make(self.base)
        (self.base / "metrics.json").write_text(json.dumps({"samples": 4.0, "bound": 1.5}))
        self.sample = ["sample", "--n", "1", "--steps", "1", "--device", "cpu", "--quiet"]
        # No pictures but the last, and one of each: what is drawn is compared elsewhere.
        self.train = [*COMMAND, *flags([("sample.count", "1"), ("train.sample_every", "0")])]
        copy = base / "copy"
        shutil.copytree(self.base, copy)
        assert run_main([*self.sample[:1], str(copy), *self.sample[1:], "--out", str(base / "x.png")]) is None
        self.picture = (base / "x.png").read_bytes()

    def attempt(self, rng: random.Random, folder: Path) -> str | None:
        run = folder / "run"
        shutil.copytree(self.base, run)
        whole = True  # whether a result has to be the whole run's
        for _ in range(rng.choice([1, 1, 2])):
            file = run / rng.choice([*TENSORS, *TENSORS, *TEXTS])
            if not file.is_file() or file.is_symlink() or file.stat().st_size > 2**24:
                continue
            if file.name in TEXTS:
                whole = False
            how = rng.random()
            if how < 0.55:
                file.write_bytes(odd.spoilt(rng, file.read_bytes()))
            elif how < 0.75 and file.name in TENSORS:
                header(rng, file)
            elif how < 0.9 and file.name in TENSORS:
                whole = whole and not rewritten(rng, file)
            else:
                done = odd.replace(rng, file, [self.base / name for name in TENSORS])
                whole = whole and done != "another's"
        action = rng.random()
        if action < 0.5:
            picture = folder / "x.png"
            said = run_main([*self.sample[:1], str(run), *self.sample[1:], "--out", str(picture)])
            if said is None and whole and picture.read_bytes() != self.picture:
                raise Fault("another picture is drawn, without a word")
        elif action < 0.85:
            said = run_main([*self.train, "--out", str(run)])
            if said is None and whole:
                self._same(run)
        else:
            said = run_main(["report", str(run), "--out", str(folder / "x.html")])
        return said

    def _same(self, run: Path) -> None:
        from mmfast.files import load_tensors

        for name in ("trainer.safetensors", "ema.safetensors", "model.safetensors"):
            (a, about), (b, wanted) = (load_tensors(x / name) for x in (run, self.base))
            if a.keys() != b.keys() or not all(torch.equal(a[k], b[k]) for k in a) or about != wanted:
                raise Fault(f"{name} is another than the whole run's, without a word")


def header(rng: random.Random, file: Path) -> None:
    """A value of a safetensors header, changed."""
    data = file.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        found = json.loads(data[8 : 8 + length])
    except (struct.error, ValueError):  # it is spoilt already
        return
    key = rng.choice(list(found))
    part = found[key]
    inner = rng.choice(list(part))
    how = rng.randrange(4)
    if how == 0:
        del part[inner]
    elif how == 1:
        found[rng.choice([*odd.TEXTS[:20], "model.x"])] = found.pop(key)
    elif how == 2 and isinstance(part[inner], list) and part[inner]:
        part[inner][rng.randrange(len(part[inner]))] = rng.choice(odd.NUMBERS)
    else:
        part[inner] = odd.value(rng)
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rewritten(rng: random.Random, file: Path) -> bool:
    """The tensors changed and saved again, whole or as an earlier version did; whether that may well be another run."""
    from safetensors.torch import save_file

    from mmfast.files import load_tensors, save_tensors

    try:
        tensors, about = load_tensors(file)
    except ValueError:
        return False
    key = rng.choice(list(tensors))
    x = tensors[key]
    changes = {
        "gone": lambda: tensors.pop(key),
        "renamed": lambda: tensors.update({f"{key}.x": tensors.pop(key)}),
        "NaN": lambda: tensors.update({key: x * float("nan")}),
        "double": lambda: tensors.update({key: x.double()}),
        "longer": lambda: tensors.update({key: torch.zeros(3, *x.shape)}),
        "empty": lambda: tensors.update({key: x.new_zeros(0)}),
        "zero": lambda: tensors.update({key: torch.zeros_like(x)}),
        "large": lambda: tensors.update({key: torch.full_like(x, 1e30)}),
        "step": lambda: about.update(step=odd.value(rng)),
        "stats": lambda: about.update(stats=odd.value(rng)),
        "about": lambda: (about.clear(), about.update({str(odd.value(rng))[:50]: odd.value(rng)})),
    }
    changes[rng.choice(list(changes))]()
    if rng.random() < 0.5:
        save_tensors(file, tensors, about)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"mmfast": json.dumps(about)})
    return True
