"""Training. The order of the data, the timesteps, what is given and the noise are functions of (seed, number of
the example in the run), so resuming is one integer and needs no random state; nor do more ranks or accumulation.

With several ranks each has the whole state, computes its parts of every batch, and takes the same step with the mean of
all gradients. The first alone reads and writes the run's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmfast.build import build_data, build_model, pick_device, with_found
from mmfast.config import Config, to_yaml
from mmfast.data import Batch, Data
from mmfast.errors import MmfastError
from mmfast.evaluate import evaluate_run, held_out, sample_run
from mmfast.files import save_tensors
from mmfast.from_run import take_weights
from mmfast.generate import check_sample
from mmfast.model import Model
from mmfast.ranks import ALONE, Elsewhere, Ranks, joined
from mmfast.run import TENSORBOARD, Run
from mmfast.training import graphs, shards
from mmfast.training import state as states
from mmfast.training.average import Average
from mmfast.training.ema import EMA
from mmfast.training.examples import loader, parts
from mmfast.training.log import Board
from mmfast.training.objective import Losses, losses
from mmfast.training.stop import Stop
from mmfast.training.try_out import try_out
from mmfast.trust import check_code

# How many characters of stats.jsonl a checkpoint keeps: a thousand lines or so.
RECENT = 2**18


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of optimiser step `step` (from 1)."""
    train = config.train
    rise = min(1.0, step / train.warmup) if train.warmup else 1.0
    progress = max(0.0, (step - train.warmup) / max(1, train.steps - train.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if train.decay == "cosine" else 1.0
    return train.learning_rate * rise * fall


def check_batch(model: Model, batch: Batch) -> None:
    """Raise MmfastError for the first modality whose data (on the host) is not what its config says."""
    for name, x in batch.filled().items():
        if name in model.parts:
            model.part(name).check(x, f"data: {name}")


class Trainer:
    """One run: its model, optimiser and averages, and the steps done so far; the same on all ranks."""

    def __init__(
        self,
        config: Config,
        run: Run,
        data: Data,
        losses: Losses = losses,
        ranks: Ranks = ALONE,
        model: Model | None = None,
    ) -> None:
        self.config, self.run, self.data, self.losses, self.ranks = config, run, data, losses, ranks
        self.device = pick_device(config.train.device, "train.device")
        self.sharded = config.train.shard and ranks.count > 1
        self.model = build_model(config) if model is None else model
        if not self.sharded:
            self.model.to(self.device)
        self.ema = EMA(self.model, config.train.ema_decay)
        for model in (self.model, self.ema.model) if self.sharded else ():
            shards.shard(model, ranks, self.device)
        self.optimizer = torch.optim.AdamW(
            shards.groups(self.model.parameters()),
            config.train.learning_rate,
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.average = Average(self.model.parameters(), ranks)
        self.modules: dict[str, Model] = {"model": self.model, "ema": self.ema.model}
        self.done = 0
        self.recent = ""  # the end of stats.jsonl
        self.pending: list[dict[str, Any]] = []
        self.board: Board | None = None

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but the step's number."""
        return shards.whole(states.pack(self.modules, self.optimizer), self.ranks.first)

    @property
    def drawing(self) -> Ranks:
        """The ranks as they draw from the model: each its share, or, of a model in shards, all together all of it."""
        return dataclasses.replace(self.ranks, divides=not self.sharded)

    def restore(self) -> None:
        """Take up the newest checkpoint that is whole, if there is one, and heal the stats up to its step."""

        def check(tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> None:
            states.check(tensors, metadata.get("step"), self.config.train.steps, self.modules, path)

        tensors, metadata = (self.run.load_state(check) if self.ranks.first else None) or ({}, {"step": 0})
        self.done = self.ranks.told(metadata["step"])
        if self.ranks.count > 1:  # all begin with the same bits, on whatever machines
            tensors = self.ranks.tensors(tensors if self.ranks.told(bool(tensors)) else self.state())
        if tensors:
            states.unpack(tensors, self.modules, self.optimizer)
        if self.ranks.first:
            self.recent = self.run.heal_stats(self.done, str(metadata.get("stats", "")))[-RECENT:]

    def checkpoint(self) -> None:
        """Write the state and, beside it, the weights and their average for others to load."""
        self.flush()
        state = self.state()
        if self.ranks.first:
            self.run.save_state(state, {"step": self.done, "stats": self.recent})
        self.export()
        self.ranks.any(True)  # no rank leaves before it is written

    def export(self) -> None:
        for name, model in self.modules.items():
            file, tensors = self.run.folder / f"{name}.safetensors", shards.whole(model.state_dict(), self.ranks.first)
            if self.ranks.first:
                self.run.guard(lambda f=file, x=tensors: save_tensors(f, x, {"step": self.done}))  # type: ignore[misc]

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The examples of this rank's next part. Raises MmfastError on all ranks where one cannot have its own."""
        error = None
        try:
            batch = next(batches)
            check_batch(self.model, batch)
        except MmfastError as found:
            error = found
        failed = self.ranks.any(error is not None)[0]
        if failed:
            raise error or Elsewhere("another rank has no examples")
        return batch

    def step(self, batches: Iterator[Batch], network: Model) -> None:
        """One optimiser step, over this rank's parts of the batch."""
        train = self.config.train
        shares = parts(self.config, self.ranks, self.done)
        totals: dict[str, Tensor] = {}
        for part in shares:
            batch = self._next(batches)
            # Dropout is the one thing that draws from torch's generator: a function of the place in the run too.
            torch.manual_seed(self.config.seed ^ part.start << 20)
            numbers = torch.arange(part.start, part.stop, device=self.device)
            found = self.losses(network, batch.to(self.device), numbers, self.config)
            total = torch.stack(list(found.values())).sum()
            if part is shares[-1]:
                self.average.begin()
            (total / len(shares)).backward()
            for name, value in {"loss": total, **{f"loss.{n}": x for n, x in found.items()}}.items():
                totals[name] = totals.get(name, 0) + value.detach() / len(shares)
        self.average.end()
        totals = dict(zip(totals, self.ranks.mean(torch.stack(list(totals.values()))).unbind(), strict=True))
        if self.sharded:
            norm = shards.clip(self.model.parameters(), train.grad_clip, self.ranks)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip)
        self.done += 1
        rate = learning_rate(self.config, self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, self.done)
        images = self.done * train.batch_size
        self.pending.append(
            {"step": self.done, "images": images, **totals, "grad_norm": norm.detach(), "learning_rate": rate}
        )

    def capture(self) -> None:
        """Replace the network's passes by CUDA graphs of them, for batches of the config's size."""
        size = len(parts(self.config, self.ranks, 0)[0])
        examples = self.data.train.__getitems__([i % len(self.data.train) for i in range(size)])
        batch, numbers = examples.to(self.device), torch.arange(size, device=self.device)
        bf16 = self.config.train.precision == "bf16"
        graphs.capture(self.model, lambda: self.losses(self.model, batch, numbers, self.config), bf16)

    def flush(self) -> dict[str, Any]:
        """Write the stats of the steps since the last flush; returns the last of them.

        This is where the host reads the losses: once in many steps, so that it seldom waits for a GPU. They are the
        same on all ranks. Raises MmfastError if a loss is not finite; the last checkpoint stays as it is.
        """
        if not self.pending:
            return {}
        names = [name for name, value in self.pending[0].items() if isinstance(value, Tensor)]
        values = torch.stack([torch.stack([line[name] for name in names]) for line in self.pending]).tolist()
        lines = [{**line, **dict(zip(names, row, strict=True))} for line, row in zip(self.pending, values, strict=True)]
        for line in lines:
            if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
                raise MmfastError(
                    f"the loss is {line['loss']} and its gradient {line['grad_norm']} at step {line['step']}; the last "
                    "checkpoint is kept. Lower "
                    "train.learning_rate or train.grad_clip, or use train.precision=fp32, in a new --out"
                )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if self.ranks.first:
            self.run.append_stats(text)
        self.recent = (self.recent + text)[-RECENT:]
        if self.board is not None:
            for line in lines:
                self.board.add(line)
        self.pending = []
        return lines[-1]


def rehearse(config: Config, data: Data, losses: Losses = losses, ranks: Ranks = ALONE) -> Model:
    """All that training does before its first step, but for the run's folder: raises MmfastError for bad input.

    Returns the model at its initial weights.
    """
    pick_device(config.train.device, "train.device")
    parts(config, ranks, 0)
    if config.evaluate.samples:
        check_code("evaluate.features", config.evaluate.features)
    model = build_model(config)
    for part in (data.train, data.test):
        batch = part.__getitems__(range(min(len(part), config.train.batch_size)))
        check_batch(model, batch)
    try_out(model, batch, config, losses)
    held_out(data.test, 1, model)
    check_sample(model, config)
    return model


def fit(
    config: Config, out: str, data: Data, losses: Losses = losses, quiet: bool = False, start: str | None = None
) -> Trainer:
    """Train a config by any loss of its model into the folder `out`, or go on with the run that is there.

    start: the folder of a run to take weights from (`mmfast.from_run.take_weights`), where this one begins.
    Returns the trainer: its run, its model and the average of that. Raises MmfastError for bad input, before
    anything is changed. Under torchrun all ranks call this together.
    """
    with joined() as here:
        model = rehearse(config, data, losses, here)  # what does not work should not leave a folder behind
        if start is not None and Path(start).resolve() == Path(out).resolve():
            raise MmfastError(f"--from {start} is the run itself, which goes on by the command that made it")
        kept = take_weights(model, config, start) if start is not None else None
        here.check_same(the_config=to_yaml(config), the_number_of_examples=(len(data.train), len(data.test)))
        run = Run.start(out, config) if here.first else Run(Path(out))
        trainer = Trainer(config, run, data, losses, here, model if kept is not None else None)
        trainer.restore()
        quiet = quiet or not here.first
        if trainer.done and not quiet:
            print(f"{out}: going on after step {trainer.done} of {config.train.steps}")
        elif kept is not None and not trainer.done and here.first:
            print(kept, flush=True)
        _steps(trainer, quiet)
        trainer.export()  # a kill may have come between the last checkpoint and its export
        return trainer


def train(config: Config, out: str, quiet: bool = False, start: str | None = None) -> Run:
    """`fit` by the diffusion loss, of a config as its data says (`with_found`); ends with samples and metrics.

    Returns the run. Raises MmfastError for bad input, before anything is changed.
    """
    with joined() as here:
        with here.in_turn():
            config = with_found(config)
            data = build_data(config)
        trainer = fit(config, out, data, quiet=quiet, start=start)
        run, average = trainer.run, trainer.ema.model
        sample_run(run, average, config, data, trainer.done, quiet=quiet, ranks=trainer.drawing)
        if config.evaluate.samples and not here.told((run.folder / "metrics.json").exists()):
            evaluate_run(run, average, config, data, quiet=quiet, ranks=trainer.drawing)
        return run


def _steps(trainer: Trainer, quiet: bool) -> None:
    config, run, steps, begun = trainer.config, trainer.run, trainer.config.train.steps, trainer.done
    network, ranks = trainer.model, trainer.ranks
    if config.train.compile:
        network.backbone.compile()
    if config.train.cuda_graphs and trainer.device.type == "cuda" and trainer.done < steps:
        trainer.capture()
    batches = loader(config, trainer.data.train, trainer.done, pinned=trainer.device.type == "cuda", ranks=ranks)
    trainer.board = board = Board(run.folder / TENSORBOARD, config, trainer.done, silent=not ranks.first)
    bar = tqdm(total=steps, initial=trainer.done, desc="training", unit="step", disable=quiet, smoothing=0.05)
    with bar, contextlib.closing(board), Stop(at_once=ranks.count == 1) as stop:
        while trainer.done < steps:
            if trainer.done and config.train.sample_every and trainer.done % config.train.sample_every == 0:
                # Before the first step: those that a kill left undrawn.
                how: dict[str, Any] = {
                    "board": board,
                    "quiet": True,
                    "again": trainer.done > begun,
                    "ranks": trainer.drawing,
                }
                sample_run(run, trainer.ema.model, config, trainer.data, trainer.done, **how)
            try:
                trainer.step(batches, network)
            except MmfastError:  # an example that cannot be read: what was learnt before it is kept
                trainer.checkpoint()
                raise
            bar.update()
            due = _due(trainer.done, steps)
            if due(config.train.log_every):
                stats = trainer.flush()
                bar.set_postfix(_postfix(stats))
            stopping = ranks.any(stop.asked)[0]
            if due(config.train.checkpoint_every) or stopping:
                trainer.checkpoint()
            if stopping:
                raise KeyboardInterrupt


def _due(done: int, steps: int) -> Any:
    return lambda every: done % every == 0 or done == steps


def _postfix(stats: Mapping[str, Any]) -> dict[str, str]:
    return {name.removeprefix("loss."): f"{x:.3f}" for name, x in stats.items() if name.startswith("loss")}
