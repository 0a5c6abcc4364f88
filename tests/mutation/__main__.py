"""python -m tests.mutation: the share of mutants that the tests catch, by module, and those that they do not.

Every mutant is written into a copy of the checkout, where the tests that come by its line are run until one fails
(seconds of tests at most: --most). Which mutants, and in which order, follows from --seed; --sample takes that many of
each module. What has been found is kept in build/mutation, so the same command continues: what is caught stays so while
its module is the same, and a survivor is tried again when a test has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutation.children import OPTIONS, ROOT, Child, compiled, copy_checkout, preload
from tests.mutation.coverage_map import Map, digest
from tests.mutation.mutants import Mutant, mutants

EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
CAUGHT, SURVIVED, NO_TEST = "caught", "survived", "no test"


def read(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("modules", nargs="*", help="files or folders of mmfast, as loss.py or training; none: all but the kernels")
    add("--sample", type=int, metavar="N", default=25, help="mutants of each module; 0 for all (default: 25)")
    add("--seed", type=int, metavar="S", default=0, help="which they are (default: 0)")
    add("--minutes", type=float, metavar="M", default=60.0, help="none is begun after that (default: 60)")
    add("--most", type=float, metavar="SECONDS", default=60.0, help="of tests for one mutant (default: 60)")
    add("--workers", type=int, metavar="N", default=os.cpu_count() or 1, help="at a time (default: the cores)")
    add("--tests", nargs="*", metavar="PATH", default=["tests"], help="test files or folders (default: all)")
    add("--folder", type=Path, metavar="PATH", default=ROOT / "build" / "mutation", help="what is found is kept there")
    add("--fresh", action="store_true", help="forget what was found and measured before")
    add("--out", type=Path, metavar="FILE", help="write the figures there, as JSON")
    return parser.parse_args(arguments)


def sources(names: Iterable[str]) -> list[str]:
    """The package's modules under these names, as paths from the root."""
    found: list[str] = []
    for name in names or ["."]:
        path = ROOT / (name if name.startswith("mmfast") else f"mmfast/{name}")
        if not path.exists():
            raise SystemExit(f"module is {name!r}; there is no {path.relative_to(ROOT)}")
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        # The kernels of GPUs run on none of our machines.
        found += [str(f.relative_to(ROOT)) for f in files if path.is_file() or "triton" not in f.parts]
    return list(dict.fromkeys(found))


def equivalents() -> dict[tuple[str, str, str], str]:
    """The reason by (module, before, after) of mutants that no test on a CPU can tell from the package."""
    rows: list[dict[str, str]] = yaml.safe_load(EQUIVALENT.read_text()) or []
    return {(row["module"], row["before"], row["after"]): row["reason"] for row in rows}


def chosen(module: str, sample: int, seed: int) -> list[Mutant]:
    """The sample of a module's mutants: a smaller one is the beginning of a larger one."""
    known, found = equivalents(), mutants(module, (ROOT / module).read_text())
    random.Random(f"{seed}/{module}").shuffle(found)
    found = [m for m in found if (m.module, m.before, m.after) not in known]
    return found[: sample or len(found)]


class Found:
    """What is known of each mutant: {key: {"outcome", "tests"}}, a line of a file each; the last one holds."""

    def __init__(self, file: Path, tests: str) -> None:
        self.file, self.tests = file, tests
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows: dict[str, dict[str, str]] = {row["key"]: row for row in map(json.loads, lines)}

    def outcome(self, mutant: Mutant) -> str | None:
        row = self.rows.get(mutant.key)
        return row["outcome"] if row and (row["outcome"] == CAUGHT or row["tests"] == self.tests) else None

    def keep(self, mutant: Mutant, outcome: str) -> None:
        row = {"key": mutant.key, "outcome": outcome, "tests": self.tests}
        self.rows[mutant.key] = row
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


@dataclass
class Slot:
    """A copy of the checkout, and the mutant that is tried there."""

    tree: Path
    mutant: Mutant | None = None
    child: Child | None = None

    def begin(self, mutant: Mutant, tests: list[str], seconds: float) -> None:
        path = self.tree / mutant.module
        compile(mutant.source, mutant.module, "exec")  # else it would count as caught
        path.write_text(mutant.source)
        self.mutant = mutant
        self.child = Child(self.tree, lambda: _run(self.tree, tests), seconds)

    def end(self) -> tuple[Mutant, str] | None:
        """The mutant and what came of it, once its tests have ended."""
        assert self.child is not None and self.mutant is not None
        ended, mutant = self.child.ended(), self.mutant
        if ended is None:
            return None
        shutil.copy2(ROOT / mutant.module, self.tree / mutant.module)
        shutil.rmtree(self.tree / ".tmp", ignore_errors=True)
        self.mutant = self.child = None
        return mutant, SURVIVED if ended == (0,) else CAUGHT


class Only:
    """A plugin of pytest that runs these tests, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: k for k, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def _run(tree: Path, tests: list[str]) -> int:
    """The status of the first file with a test that fails: what it notices costs no import of the files after it."""
    import pytest

    for file in dict.fromkeys(test.split("::")[0] for test in tests):
        status = int(pytest.main([file, *OPTIONS, f"--basetemp={tree}/.tmp"], plugins=[Only(tests)]))
        if status:
            return status
    return 0


def tried(todo: list[Mutant], trees: list[Path], where: Map, most: float, until: float) -> Iterable[tuple[Mutant, str]]:
    """The mutants and what comes of them, one at a time in each tree."""
    waiting, slots = todo[::-1], [Slot(tree) for tree in trees]
    try:
        while (waiting and time.monotonic() < until) or any(slot.child for slot in slots):
            for slot in slots:
                while slot.child is None and waiting and time.monotonic() < until:
                    mutant = waiting.pop()
                    tests, seconds = where.tests(mutant, most)
                    if tests:
                        slot.begin(mutant, tests, seconds)
                    else:
                        yield mutant, NO_TEST
                if slot.child is not None and (ended := slot.end()) is not None:
                    yield ended
            time.sleep(0.02)
    finally:
        for slot in slots:
            if slot.child is not None:
                slot.child.kill()


def report(of: dict[str, list[Mutant]], found: Found) -> dict[str, Any]:
    """The share caught by module, and the survivors: printed, and as a record."""
    modules: dict[str, Any] = {}
    survivors: list[str] = []
    for module, these in of.items():
        known = [(m, outcome) for m in these if (outcome := found.outcome(m))]
        left = sorted((m.lines, f"{outcome}: {m}") for m, outcome in known if outcome != CAUGHT)
        survivors += [line for _, line in left]
        modules[module] = {"tried": len(known), "caught": len(known) - len(left), "left_out": len(these) - len(known)}
    width = max(map(len, modules), default=0)
    tried, caught = (sum(row[name] for row in modules.values()) for name in ("tried", "caught"))
    for module, row in [*modules.items(), ("all", {"tried": tried, "caught": caught, "left_out": 0})]:
        share = f"{row['caught'] / row['tried']:4.0%}" if row["tried"] else "   -"
        more = f"   {row['left_out']} not tried in the time" if row["left_out"] else ""
        print(f"{module:<{width}} {share}  {row['caught']} of {row['tried']}{more}")
    print("\n".join(["", *survivors]))
    return {"tried": tried, "caught": caught, "modules": modules, "survivors": survivors}


def main() -> None:
    options = read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child is left behind
    until = time.monotonic() + 60 * options.minutes
    of = {module: chosen(module, options.sample, options.seed) for module in sources(options.modules)}
    tests = sorted(
        str(file.relative_to(ROOT))
        for path in options.tests
        for file in ([ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("test_*.py"))
    )
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    found = Found(options.folder / "found.jsonl", digest(ROOT, [ROOT / test for test in tests])[:16])
    preload()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trees = [Path(folder) / f"tree{k}" for k in range(options.workers)]
        copy_checkout(trees[0])
        compiled(trees[0], tests)
        for tree in trees[1:]:
            shutil.copytree(trees[0], tree)
        where = Map(options.folder / "map")
        where.measure(trees[0], tests)
        todo = [m for these in of.values() for m in these if found.outcome(m) is None]
        for k, (mutant, outcome) in enumerate(tried(todo, trees, where, options.most, until), 1):
            found.keep(mutant, outcome)
            print(f"{k}/{len(todo)} {outcome}: {mutant}", flush=True)
    record = report(of, found)
    if options.out:
        on = f"{platform.machine()}, {os.cpu_count()} cores, torch {sys.modules['torch'].__version__}"
        what = {"sample": options.sample, "seed": options.seed, "most": options.most, "on": on, **record}
        options.out.write_text(json.dumps(what, indent=1) + "\n")


if __name__ == "__main__":
    main()
