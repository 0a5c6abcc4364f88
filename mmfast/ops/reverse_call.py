"""The arguments of an op of the reverse process: the formula for a jump t -> s, and its inputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmfast import process
from mmfast.ops.call import Call, GivenNoise, Term, arithmetic
from mmfast.ops.checks import Encodings, check_batch, check_present, gather, select
from mmfast.ops.noise_checks import check_noise
from mmfast.ops.tables import Formula, find
from mmfast.process import Time
from mmfast.schedule import Schedule


class ReverseCall(NamedTuple):
    """A formula of the reverse process for a jump t -> s, and its inputs."""

    formula: Formula
    what: str  # the terms' names, for errors
    encodings: Encodings
    times: tuple[Time, Time | None]
    sched: Schedule
    present: Tensor | None

    def checked(self, first: list[Term], given: GivenNoise | None) -> tuple[Call, bool]:
        """The checked call, and whether its terms are zero-dimensional."""
        (t, s), sched, present = self.times, self.sched, self.present
        names, encoded = select(self.encodings, sched)
        terms, shape, dtype = gather([*first, *encoded], like_first=True, what=self.what)
        batch = shape or [1]
        if not shape:
            terms = [x.reshape(1) for x in terms]  # type: ignore[union-attr]
        check_batch("t", t, batch[0])
        check_batch("s", s, batch[0])
        tables, rows = find(self.formula, sched, names, (t, s), arithmetic(dtype), batch[0])
        if present is not None:
            check_present(present, batch[0], len(names), tables.coefs.device)
            process.check_time("t", t, 1, sched.T)
            tables, rows = tables.own(rows, batch[0]).only_present(present, len(first)), None
        noisy = tables.sigma is not None and given is not None
        noise = check_noise(given, batch[0], tables.coefs.device) if noisy else None  # type: ignore[arg-type]
        return Call(terms, tables, rows, noise, batch, dtype), not shape
