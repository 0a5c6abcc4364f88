"""Average the gradients over the ranks, while the backward pass is still computing the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmfast.ranks import Ranks
from mmfast.training.shards import is_shard

# The size of a bucket: large enough to use the bandwidth, small enough to be sent early.
BYTES = 25 * 2**20


class Average:
    """Replace gradients by their mean over the ranks, bucket by bucket.

    The objective calls encoders, `tell` and heads outside the backbone's forward, so hooks on the parameters collect
    the gradients, not a wrapper around one module. A gradient that is None on some ranks counts as zero there; one that
    is None on all ranks stays None. All ranks get bit-identical results. FSDP reduces sharded parameters itself.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, most: int = BYTES) -> None:
        self.ranks = ranks
        # Reversed, because the last layers get their gradients first.
        self.buckets = _buckets([p for p in parameters if p.requires_grad and not is_shard(p)][::-1], most)
        self.place = {p: k for k, bucket in enumerate(self.buckets) for p in bucket}
        self.missing: list[int] | None = None
        self.sent: list[tuple[Tensor, Any]] = []
        for p in self.place if ranks.count > 1 else ():
            p.register_post_accumulate_grad_hook(self._arrived)

    def begin(self) -> None:
        """Call before the step's last backward pass: from here on, each gradient that arrives is complete."""
        self.missing = [len(bucket) for bucket in self.buckets]

    def _arrived(self, p: nn.Parameter) -> None:
        if self.missing is not None:
            self.missing[self.place[p]] -= 1
            # In the same order on all ranks, whatever arrives first.
            while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
                self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    @torch.no_grad()
    def end(self) -> None:
        """Wait for the means and store them in the gradients."""
        if self.ranks.count == 1:
            return
        while len(self.sent) < len(self.buckets):
            self._send()
        anywhere = dict(zip(self.place, self.ranks.any(*(p.grad is not None for p in self.place)), strict=True))
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            flat /= self.ranks.count
            for p, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                if anywhere[p]:
                    p.grad = torch.empty_like(p) if p.grad is None else p.grad
                    p.grad.copy_(mean.view_as(p))
        self.missing, self.sent = None, []


def _buckets(parameters: list[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    """Group consecutive parameters of the same dtype and device into buckets of at most `most` bytes."""
    found: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        last = found[-1][0] if found else None
        if last is None or (last.dtype, last.device) != (p.dtype, p.device) or size + p.nbytes > most:
            found.append([])
            size = 0
        found[-1].append(p)
        size += p.nbytes
    return found
