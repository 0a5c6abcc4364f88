"""Runs each command that the pages name with few steps, or checks as much of it as takes a moment.

`run(words, folder, inline)` raises for a command that nobody knows, so that none goes unchecked.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import runpy
import sys
from pathlib import Path

import fresh
import torch
from docs_pages import ROOT

from mmfast import cli, config
from mmfast.ops import backends

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Words that stand for something of the reader's.
MEANT = {"RUN": "runs/digits", "TASK": "image-mask", "NAME": "threads", "CORES": "2", "DIR": "."}

FEW = {
    "train.steps": 2,
    "train.batch_size": 4,
    "train.sample_every": 0,
    "train.precision": "fp32",
    "train.tensorboard": "false",
    "sample.count": 2,
    "sample.steps": 1,
    "evaluate.samples": 0,
    "evaluate.bound_steps": 1,
}
TRAIN = [*(f"--{key}={value}" for key, value in FEW.items()), "--quiet"]
SMALL = ["--backbone", "{kind: mlp, width: 16, blocks: 1, features: 4}"]
SAMPLE = ["--n", "2", "--steps", "1", "--quiet"]
EVALUATE = ["--samples", "8", "--quiet"]


class Parsed(Exception):
    """The program has understood its arguments, which is all that was asked."""


def run(words: list[str], folder: Path, inline: bool = False) -> None:
    """Run or check one command in a page's folder; inline ones (within a sentence) are checked only."""
    words = [MEANT.get(word, word) for word in words]
    given = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        given[name] = value
    known = {
        "OMP_NUM_THREADS": str.isdecimal,
        "MMFAST_BACKEND": lambda value: value in backends.MODULES,
        "SKBUILD_CMAKE_DEFINE": _cmake_option,
    }
    for name, value in given.items():
        assert name in known and known[name](value), f"{name}={value} is no variable that is known"
    program, *rest = words
    assert program in PROGRAMS, f"{program!r} is no command that this test knows: {' '.join(words)}"
    PROGRAMS[program](rest, folder, inline, given)


def _cmake_option(value: str) -> bool:
    files = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("CMakeLists.txt")]
    return any(f"set({value.partition('=')[0]} " in file.read_text() for file in files)


def _mmfast(rest, folder, inline, given):
    args, more = cli.parser().parse_known_args(rest)
    if args.command == "train" and not args.help:
        chosen = config.load(args.config, cli.overrides(more))
        root = getattr(chosen.data, "root", "")
        if inline or (root and not Path(root).is_dir()):
            return  # of data that is not here the config is what can be checked
        rest = [*rest, *TRAIN, *(SMALL if chosen.backbone.kind != "mlp" else [])]
    elif args.command in ("check", "init"):
        written = Path(getattr(args, "out", "")).is_file()  # which init leaves alone
        rest, inline = [*rest, "--quiet"], inline or written or not Path(args.data).exists()
    else:
        assert args.command == "train" or not more, more
        rest = [*rest, *{"sample": SAMPLE, "eval": EVALUATE, "sweep": EVALUATE}.get(args.command, [])]
    if inline:
        return
    if given:
        done = fresh.run("import sys; from mmfast.cli import main; sys.exit(main())", *rest, **given)
        assert done.returncode == 0, done.stderr
        return
    assert cli.main(rest) == 0


def _torchrun(rest, folder, inline, given):
    """torchrun understands its options, and mmfast its own; tests/training/test_ranks_end.py runs such commands."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(rest)
    assert args.module and args.training_script == "mmfast" and not inline, rest
    assert args.standalone or (args.rdzv_backend == "c10d" and args.rdzv_endpoint and int(args.nnodes) > 1), rest
    assert int(args.nproc_per_node) > 1
    _mmfast(args.training_script_args, folder, True, {})


def _srun(rest, folder, inline, given):
    assert rest[0] == "torchrun", rest
    _torchrun(rest[1:], folder, inline, given)


def environment() -> dict[str, str]:
    """Of a process that is to find this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _python(rest, folder, inline, given):
    if rest[:2] == ["-m", "venv"]:
        assert len(rest) == 3
    elif rest[0] == "-m":
        assert rest[1].startswith(("benchmarks.", "tests.mutation")), f"python -m {rest[1]} is not known to this test"
        _benchmark(rest[1], rest[2:])
    else:
        script = ROOT / rest[0]
        assert script.parent == ROOT / "examples" and script.exists(), f"there is no {rest[0]}"
        understood(lambda: runpy.run_path(str(script), run_name="__main__"), [str(script), *rest[1:]])


def _benchmark(name, arguments):
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if inspect.signature(module.main).parameters and "argparse" not in Path(module.__file__).read_text():
        understood(lambda: module.main(arguments), [name, *arguments])  # that of another benchmark
        return
    if "argparse" not in Path(module.__file__).read_text():
        assert not arguments, f"{name} takes no arguments"
        return
    understood(module.main, [name, *arguments])


def understood(program, argv):
    """Let a program come as far as its arguments, which it has to understand."""
    original, before = argparse.ArgumentParser.parse_args, sys.argv

    def parse_args(self, *args, **more):
        original(self, *args, **more)
        raise Parsed

    argparse.ArgumentParser.parse_args, sys.argv = parse_args, argv
    threads = torch.get_num_threads()
    try:
        program()
    except Parsed:
        return
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = original, before
        torch.set_num_threads(threads)
    raise AssertionError(f"{argv} ran without looking at its arguments")


def _pip(rest, folder, inline, given):
    assert rest[0] == "install", rest
    named = [word for word in rest[1:] if not word.startswith("-")]
    assert named, rest
    for word in named:
        own = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        if own:
            for extra in filter(None, (own[1] or "").split(",")):
                assert extra in EXTRAS, f"pyproject.toml has no extra {extra!r}"
        else:
            assert _named_in(word, "mmfast", "benchmarks", "examples"), f"nothing in the package asks for {word}"


def _apt_get(rest, folder, inline, given):
    assert rest[0] == "install" and len(rest) == 2
    assert _named_in(rest[1], "mmfast", "examples"), f"nothing in the package asks for {rest[1]}"


def _named_in(word, *folders):
    files = (file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".yaml"))
    return any(word in file.read_text() for file in files)


def _pytest(rest, folder, inline, given):
    paths = [word for word in rest if (ROOT / word).exists()]
    if "-m" in rest:
        marker = rest[rest.index("-m") + 1]
        assert any(line.startswith(f"{marker}:") for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"])
        assert any(f"mark.{marker}" in file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
        rest = [word for word in rest if word not in ("-m", marker)]
    assert paths == rest, f"pytest {' '.join(rest)}: there is no such path"
    for path in map(ROOT.joinpath, paths):
        files = [path] if path.is_file() else path.rglob("test_*.py")
        assert any(re.search(r"^def test_", file.read_text(), re.M) for file in files), f"{path} holds no tests"


def _tool(extra, package, *forms):
    def check(rest, folder, inline, given):
        assert any(re.match(rf"{package}\b", needed) for needed in EXTRAS[extra]), f"{package} is in no extra"
        assert " ".join(rest) in forms, f"{package} {' '.join(rest)} is no form that this test knows"

    return check


def _source(rest, folder, inline, given):
    assert rest == [".venv/bin/activate"], rest


def _ci_run(rest, folder, inline, given):
    assert not rest and os.access(ROOT / ".ci" / "run", os.X_OK)


PROGRAMS = {
    "mmfast": _mmfast,
    "python": _python,
    "python3": _python,
    "pip": _pip,
    "apt-get": _apt_get,
    "pytest": _pytest,
    "ruff": _tool("lint", "ruff", "check .", "format --check ."),
    "mypy": _tool("lint", "mypy", ""),
    "lint-imports": _tool("lint", "import-linter", ""),
    "mkdocs": _tool("docs", "mkdocs-material", "build", "build --strict", "serve"),
    "torchrun": _torchrun,
    "srun": _srun,
    "source": _source,
    ".ci/run": _ci_run,
}
