"""A cell is one method with one seed, trained and evaluated once and kept in its own folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import supervised
from benchmarks.paper.core import OURS, Method, Task, Trained, described, refuse_another
from benchmarks.paper.report import Cell, state
from mmfast.build import build_data, load_run, with_found
from mmfast.config import Config
from mmfast.files import write_atomically, write_text
from mmfast.model import Model
from mmfast.training import fit, train

# CLAIMS: of an evaluation that measured only what the claims need.
RESULT, CLAIMS, MINUTES = "result.json", "claims.json", "minutes.json"
# The name of the real data among the methods.
REAL = "real against real"
# Not a seed of the comparison.
JUDGE_SEED = 1000


@dataclass(frozen=True)
class Plan:
    """What all cells of a benchmark run share."""

    task: Task
    images: int
    samples: int
    work: Path
    changes: Mapping[str, Any]
    smoke: bool
    claims: bool = False  # measure only what the claims need

    @property
    def result(self) -> str:
        return CLAIMS if self.claims else RESULT

    @property
    def methods(self) -> list[Method]:
        return self.task.claiming if self.claims else self.task.methods

    def folder(self, method: Method, seed: int) -> Path:
        return self.work / self.task.name / f"{method.name.replace(' ', '-')}-{seed}"

    def config(self, method: Method, seed: int) -> Config:
        """A cell's config, completed from its data."""
        return with_found(self.task.config(method, seed, self.images, self.changes))

    def cells(self, method: Method, seed: int) -> list[Cell] | None:
        """The results of a finished cell, one for each method; None if unfinished or made with another `samples`.

        Raises MmfastError if the cell has another config.
        """
        file = self.folder(method, seed) / self.result
        if not file.exists():
            return None
        found = [Cell.from_json(x) for x in json.loads(file.read_text())]
        for cell in found:
            refuse_another(described(self.config(method, seed)), cell.config, file)
        return found if all(cell.samples == self.samples for cell in found) else None


def trained(plan: Plan, method: Method, seed: int) -> tuple[Trained, list[dict[str, Any]], float]:
    """The cell's model, trained or loaded, the curve of its loss and the minutes of training."""
    folder, config = plan.folder(method, seed), plan.config(method, seed)
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        start = None
        if method.first is not None:
            start = str(folder / "first")
            train(plan.config(method.first, seed), start)
        if method.supervised:
            fit(config, str(folder / "run"), build_data(config), supervised.loss(*method.supervised), start=start)
        else:
            train(config, str(folder / "run"), start=start)

    minutes = _timed(folder / MINUTES, work)
    _, kept, model = load_run(folder / "run", config.train.device)
    refuse_another(described(config), described(kept), folder / "run")
    lines = (folder / "run" / "stats.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines[:: max(1, len(lines) // 200)]]
    curve = [{key: line[key] for key in ("step", "images", "loss")} for line in curve]

    def judge() -> Model:
        assert plan.task.judge is not None
        return trained(plan, plan.task.judge, JUDGE_SEED)[0].model

    found = Trained(
        model=model,
        config=config,
        seed=seed,
        samples=plan.samples,
        smoke=plan.smoke,
        features="pixels" if plan.smoke else plan.task.features,
        judge=judge,
        examples=plan.config(plan.task.method(OURS), seed) if plan.task.complete else None,
    )
    # The same number for every set, real halves too, because distances, precision and recall depend on it.
    count = min(plan.samples, len(found.data.test) // 2)
    return dataclasses.replace(found, samples=count), curve, minutes


def _timed(file: Path, work: Any) -> float:
    """Run `work` unless it is done; its minutes, over all starts that were not killed. `file` also keeps the state."""
    before = json.loads(file.read_text()) if file.exists() else {"minutes": 0.0, "done": False}
    if before["done"]:
        return float(before["minutes"])
    begun, done, commit = time.perf_counter(), False, state()
    try:
        work()
        done = True
    finally:
        minutes = before["minutes"] + (time.perf_counter() - begun) / 60
        write_text(file, json.dumps({"minutes": minutes, "done": done, "commit": commit}))
    return float(minutes)


def _images(config: Config) -> int:
    """The number of images that a model sees in training."""
    return config.train.steps * config.train.batch_size


def device_name(model: Model) -> str:
    """A model's device: "cpu", or the GPU's name."""
    device = model.schedule.alpha_bar.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run(plan: Plan, method: Method, seed: int) -> None:
    """Train and evaluate one cell unless it is finished. Its result is written atomically."""
    if plan.cells(method, seed) is not None:
        return
    found, curve, minutes = trained(plan, method, seed)
    begun = time.perf_counter()
    measure = plan.task.needed.get(method.name) if plan.claims else None
    metrics = method.evaluate(found) if measure is None else {method.name: measure(found)}
    evaluation = (time.perf_counter() - begun) / 60
    folder = plan.folder(method, seed)
    images = _images(found.config) + (_images(plan.config(method.first, seed)) if method.first else 0)
    if seed == 0 and method.name == OURS:
        for name, (caption, picture) in plan.task.pictures(found).items():
            write_text(folder / f"{name}.txt", caption)
            write_atomically(folder / f"{name}.png", lambda file, p=picture: p.save(file))  # type: ignore[misc]
        metrics[REAL] = plan.task.reference(found)
    cells = [
        Cell(
            method=name,
            seed=seed,
            images=images,
            minutes={"train": minutes, "evaluate": evaluation},
            metrics=rows,
            config=described(found.config),
            samples=plan.samples,
            curve=curve,
            threads=torch.get_num_threads(),
            device=device_name(found.model),
            commit=state(),
            drawn=found.samples,
            torch=torch.__version__,
            trained_at=json.loads((folder / MINUTES).read_text()).get("commit"),
        )
        for name, rows in metrics.items()
    ]
    write_text(folder / plan.result, json.dumps([cell.to_json() for cell in cells]))
