"""Command lines: each ends with status 0, or with 2 and one line; nothing that was there is changed."""

import contextlib
import io
import random
import shutil
from pathlib import Path

from . import odd
from .pool import Fault

FLAGS = {
    "presets": ["--help"],
    "check": ["--sheet", "--overwrite", "--allow-code", "--quiet", "--help"],
    "init": ["--out", "--minutes", "--size", "--overwrite", "--quiet"],
    "train": ["--out", "--allow-code", "--quiet", "--help"],
    "sample": [
        "--given",
        "--n",
        "--steps",
        "--sampler",
        "--guidance_scale",
        "--first",
        "--offset",
        "--seed",
        "--device",
        "--out",
        "--save",
        "--npz",
        "--overwrite",
        "--allow-code",
        "--quiet",
    ],
    "eval": [
        "--samples",
        "--device",
        "--features",
        "--features-weights",
        "--lpips",
        "--lpips-weights",
        "--json",
        "--overwrite",
        "--quiet",
    ],
    "report": ["--out", "--overwrite"],
    "info": ["--json"],
}
GOOD = {
    "--n": ["1", "2"],
    "--steps": ["1", "2"],
    "--sampler": ["ddpm", "ddim", "dpmpp_2m"],
    "--seed": ["0", "5"],
    "--device": ["cpu"],
    "--given": ["label=3", "mask=picture.png", "image=picture.png", "label=data", "label=all", "image=data"],
    "--samples": ["2", "4"],
    "--features": ["pixels"],
    "--minutes": ["0.01"],
    "--size": ["8"],
    "--first": ["label", "mask"],
    "--offset": ["mask=0.2", "label=-0.1"],
    "--out": ["new.png", "new.yaml", "new.html", "new", "run"],
    "--save": ["saved"],
    "--npz": ["x.npz"],
    "--json": ["x.json"],
    "--sheet": ["sheet.png"],
    "--guidance_scale": ["1", "2.5"],
}


def run_main(argv: list[str]) -> str | None:
    """None where the command succeeds, else its line. Raises Fault for what is no clear end."""
    from mmfast.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code
    errors = [line for line in err.getvalue().splitlines() if line.startswith("mmfast: error: ")]
    if status in (0, None) and not errors:
        return None
    if status == 2 and (len(errors) == 1 or (argv[0] == "check" and "wrong: " in out.getvalue())):
        return errors[0] if errors else "wrong data"
    raise Fault(f"{argv}: status {status}; {err.getvalue()[-2000:]}")


class Commands:
    def prepare(self, base: Path) -> None:
        from PIL import Image
        from small_run import PAIRS, make
        from tiny import flags

        from mmfast import propose
        from mmfast.data.digits import _classifier

        self.base = base
        _classifier()
        propose.step_time = lambda config: 0.01
        make(base / "run")
        Image.new("L", (8, 8), 1).save(base / "picture.png")
        (base / "text.txt").write_text("3")
        (base / "config.yaml").write_text((base / "run" / "config.yaml").read_text())
        for k in range(4):
            for name, size in (("photo", 12), ("mask", 12)):
                (base / "data" / name).mkdir(parents=True, exist_ok=True)
                Image.new("L", (size, size), k % 2).save(base / "data" / name / f"{k}.png")
        # Said last, so that whatever is trained is small.
        self.small = [
            *flags([pair for pair in PAIRS if not pair[0].startswith("backbone")]),
            "--train.steps",
            "6",
            "--sample.count",
            "1",
            "--train.sample_every",
            "0",
        ]

    def attempt(self, rng: random.Random, folder: Path) -> str | None:
        home = folder / "home"
        shutil.copytree(self.base, home)
        argv = self._argv(rng)
        before = {
            p: p.read_bytes() for p in home.rglob("*") if p.is_file() and "run" not in p.relative_to(home).parts[:1]
        }
        with contextlib.chdir(home):
            said = run_main(argv)
        changed = [str(p.name) for p, data in before.items() if not p.is_file() or p.read_bytes() != data]
        if changed:
            raise Fault(f"{argv}: changed {changed}")
        return said

    def _argv(self, rng: random.Random) -> list[str]:
        command = rng.choice(list(FLAGS)) if rng.random() < 0.97 else rng.choice([*odd.TEXTS, "--version", "-h"])
        usual = {"check": ["data", "config.yaml", "digits"], "init": ["data"], "train": ["config.yaml", "digits"]}
        places = usual.get(command, ["run"])
        argv = [command]
        if rng.random() < 0.93 and command != "info":
            usually = rng.random() < 0.8
            argv.append(
                rng.choice(places)
                if usually
                else rng.choice([*odd.TEXTS, "run/ema.safetensors", "text.txt", "picture.png"])
            )
        for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
            flag = (
                rng.choice(FLAGS.get(command, ["--x"]))
                if rng.random() < 0.85
                else rng.choice(["--x", "-", "--", "-n", "---", "--help"])
            )
            argv.append(flag)
            if flag in GOOD and rng.random() < 0.6:
                argv.append(rng.choice(GOOD[flag]))
            elif rng.random() < 0.7:
                argv.append(_word(rng))
        if command in ("train", "check") and rng.random() < 0.5:
            keys = [
                "seed",
                "anchor",
                "train.batch_size",
                "sample.steps",
                "data.kind",
                "modalities.mask",
                "schedule.T",
                "backbone.kind",
            ]
            argv += [f"--{rng.choice(keys)}", _word(rng)]
        if command == "train" or (command == "check" and argv[1:2] in (["config.yaml"], ["digits"])):
            argv += self.small
        return argv


def _word(rng: random.Random) -> str:
    """As a shell passes them: without NUL."""
    return (rng.choice(odd.TEXTS) if rng.random() < 0.5 else str(odd.value(rng)).replace("\n", " ")).replace("\0", "")
