"""Training. The order of the data, the timesteps, which modalities are given and the noise are functions of (seed,
number of the example in the run). So resuming takes one integer and no random state, and the number of ranks and
accumulation change nothing about them.

With several ranks, each has the whole state, computes its parts of every batch, and takes the same step with the mean
of all gradients. Only the first rank reads and writes the run's folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast.build import build_model, pick_device
from mmfast.config import Config
from mmfast.data import Batch, Data
from mmfast.errors import MmfastError
from mmfast.grids import Examples, examples_for
from mmfast.model import Model
from mmfast.ranks import ALONE, Ranks
from mmfast.run import BEST, Run
from mmfast.training import graphs, shards
from mmfast.training import optimizer as optimizers
from mmfast.training import state as states
from mmfast.training.augment import mirrored
from mmfast.training.average import Average
from mmfast.training.balance import RULES
from mmfast.training.ema import EMA
from mmfast.training.examples import parts
from mmfast.training.log import Board
from mmfast.training.objective import Losses, losses
from mmfast.training.stats import Stats
from mmfast.training.try_out import check_batch, fitted
from mmfast.training.validation import Validation


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of optimiser step `step` (from 1)."""
    train = config.train
    rise = min(1.0, step / train.warmup) if train.warmup else 1.0
    progress = max(0.0, (step - train.warmup) / max(1, train.steps - train.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if train.decay == "cosine" else 1.0
    return train.learning_rate * rise * fall


def seed_of(seed: int, start: int) -> int:
    """A 64-bit seed of torch's generator at a place in the run, hashed since the CPU's generator uses only 32 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {start}".encode(), digest_size=8).digest(), "little")


class Trainer:
    """One run: its model, optimiser and averages, and the number of steps done; the same on all ranks."""

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
        self.model = fitted(build_model(config), data) if model is None else model
        if not self.sharded:
            self.model.to(self.device)
        self.ema = EMA(self.model, config.train.ema_decay)
        for model in (self.model, self.ema.model) if self.sharded else ():
            shards.shard(model, ranks, self.device)
        weighed = [n for n, spec in config.modalities.items() if spec.loss_weight > 0]
        self.balance = RULES[config.loss.balance](weighed or [config.anchor]).to(self.device)
        own, train = list(self.balance.parameters()), config.train
        self.optimizer = optimizers.build(train.optimizer, self.model, own, train.learning_rate, train.weight_decay)
        self.average = Average([*self.model.parameters(), *own], ranks)
        self.modules: dict[str, Model] = {"model": self.model, "ema": self.ema.model}
        self.kept: dict[str, torch.nn.Module] = {**self.modules, "balance": self.balance}
        self.stats = Stats(config, run, writes=ranks.first)
        self.best: dict[str, Any] | None = None  # the step of the average with the least held-out loss, and that loss
        self.done = self.saved = 0  # steps done, and the step of the last saved state
        self.board = Board(run.folder, config, 0, silent=True)

    @functools.cached_property
    def validation(self) -> Validation:
        return Validation(self.config, self.data.test, self.losses, self.drawing, self.device)

    @functools.cached_property
    def shown(self) -> Examples:
        """The held-out examples of the sample grids. Found once: if few are complete, all of the data is read."""
        return examples_for(self.model, self.config, self.data)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, except the number of the step."""
        return shards.whole(states.pack(self.kept, self.optimizer), self.ranks.first)

    @property
    def drawing(self) -> Ranks:
        """The ranks for sampling: each draws its share, but with a sharded model all ranks draw everything together."""
        return dataclasses.replace(self.ranks, divides=not self.sharded)

    def restore(self) -> None:
        """Load the newest intact checkpoint, if there is one, and repair the stats up to its step."""

        def check(tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> None:
            single = optimizers.with_one_moment(self.optimizer)
            states.check(tensors, metadata, self.config.train.steps, self.kept, path, single)

        tensors, metadata = (self.run.load_state(check) if self.ranks.first else None) or ({}, {"step": 0})
        if self.ranks.first:
            self.stats.restore(metadata["step"], metadata)
            metadata |= {"stats": self.stats.recent, "best": self.run.best(metadata)}
        metadata = self.ranks.told(metadata)
        self.done = self.saved = metadata["step"]
        self.best = metadata["best"]
        self.stats.taken_up(self.done, metadata.get("skipped", 0), metadata["stats"])
        if self.ranks.count > 1:  # all start bit-identical, whatever their machines
            tensors = self.ranks.tensors(tensors if self.ranks.told(bool(tensors)) else self.state())
        if tensors:
            states.unpack(tensors, self.kept, self.optimizer)

    def checkpoint(self, anyway: bool = True) -> bool:
        """Save the state, and export the weights and their average; returns whether it did.

        Unless `anyway`, do nothing if the last step was skipped, because the weights themselves may be bad.
        """
        self.flush()
        if not anyway and self.done in self.stats.lately:
            return False
        state, every = self.state(), self.config.train.keep_every
        if self.ranks.first:
            self.stats.insist()
            metadata, skipped = {"step": self.done, "stats": self.stats.recent}, self.stats.skipped
            more = {"skipped": skipped, "best": self.best, **states.counted(state, self.done - skipped)}
            metadata |= {name: x for name, x in more.items() if x}
            due = every > 0 and self.done // every > self.saved // every
            # A state already kept for this step lacks the validation that was made up for on resuming.
            keep = due or self.run.kept(self.done).exists()
            self.run.save_state(state, metadata, self.done if keep else None)
        self.saved = self.done
        self.export()
        self.ranks.any(True)  # a barrier: no rank returns before the state is written
        return True

    def export(self) -> None:
        for name in self.modules:
            self._export(f"{name}.safetensors", name, {"step": self.done})

    def _export(self, file: str, module: str, metadata: dict[str, Any]) -> None:
        tensors = shards.whole(self.modules[module].state_dict(), self.ranks.first)
        self.ranks.on_first(lambda: self.run.save(file, tensors, metadata))

    def validate(self) -> float:
        """The averaged model's held-out loss. Add it to the last step's line; save the model if it is the best."""
        found = self.validation(self.ema.model)
        if found["loss"] < (self.best or {"loss": math.inf})["loss"]:
            # The file first: if it cannot be written, the validation is repeated on resuming.
            self._export(BEST, "ema", {"step": self.done, "validation": found})
            self.best = {"step": self.done, "loss": found["loss"]}
        figures = {f"validation.{name}": value for name, value in found.items()}
        self.ranks.together(lambda: self.stats.add_to_last(figures))
        return found["loss"]

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The examples of this rank's next part. Raises MmfastError if they cannot be read or do not fit."""
        try:
            batch = next(batches)
        except MmfastError as found:
            may_skip = getattr(self.config.data, "on_error", "") == "stop"
            hint = "; to leave such examples out, repeat the command with --data.on_error skip" if may_skip else ""
            raise MmfastError(f"{found}{hint}") from None
        check_batch(self.model, batch)
        return batch

    def step(self, batches: Iterator[Batch], network: Model) -> None:
        """Take one optimiser step, computing this rank's parts of the batch."""
        train = self.config.train
        shares = parts(self.config, self.ranks, self.done)
        totals: dict[str, Tensor] = {}
        weights = {f"balance.{name}": w for name, w in self.balance.weights().items()}
        for part in shares:
            batch = self.ranks.together(lambda: self._next(batches))
            # Only dropout draws from torch's generator; seeding makes it a function of the place in the run too.
            torch.manual_seed(seed_of(self.config.seed, part.start))
            numbers = torch.arange(part.start, part.stop, device=self.device)
            batch = batch.to(self.device)
            if self.data.flip:
                batch = mirrored(self.model, batch, self.config.seed, numbers)
            with self.balance.looking(network) as seen:
                found = self.losses(network, batch, numbers, self.config)
            wanted = self.balance.total(found, seen, 1 / (len(shares) * self.ranks.count))
            if not wanted.requires_grad:
                raise MmfastError("losses returned no part that depends on the model's weights; nothing can be trained")
            if part is shares[-1]:
                self.average.begin()
            (wanted / len(shares)).backward()
            total = torch.stack(list(found.values())).sum()
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
        most = math.inf if train.skip_above is None else train.skip_above
        # Decided on the device, so that the host need not wait. The optimiser skips a step with found_inf set.
        skipped = (~((norm < most) & totals["loss"].isfinite())).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.balance.update(self.ranks, skipped)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, self.done)
        line = {
            "step": self.done,
            "images": self.done * train.batch_size,
            **totals,
            **weights,
            "grad_norm": norm.detach(),
        }
        self.stats.pending.append({**line, "learning_rate": rate, "skipped": skipped})

    def capture(self) -> None:
        """Replace the backbone's passes by CUDA graphs, for batches of the config's size."""
        size = len(parts(self.config, self.ranks, 0)[0])
        examples = self.data.train.__getitems__([i % len(self.data.train) for i in range(size)])
        batch, numbers = examples.to(self.device), torch.arange(size, device=self.device)
        bf16 = self.config.train.precision == "bf16"
        graphs.capture(self.model, lambda: self.losses(self.model, batch, numbers, self.config), bf16)

    def flush(self) -> dict[str, Any]:
        """Write the stats of the steps since the last flush to the run and its logs; returns the last line.

        Raises MmfastError if too many steps were skipped; the last checkpoint is left as it is.
        """
        lines = self.stats.flush()
        if lines:
            self.board.add(lines)
        self.stats.check()  # without new lines, too: a checkpoint after this error should not be written either
        return lines[-1] if lines else {}
