"""Arguments of the public ops: the fast backend agrees with the reference, or both raise an MmfastError."""

import random
from pathlib import Path
from typing import Any

import torch

import mmfast
from mmfast import MmfastError, Schedule, ops
from mmfast.ops import Block

from .pool import Fault

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Relative to the largest number: a rounding of the type for each of a few terms. Noise is made in float32.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 3e-2, torch.float16: 4e-3}
NOISY = 3e-6


class Odd:
    """Prints as nothing that helps."""

    def __repr__(self) -> str:
        return "<odd>"


def odd(rng: random.Random) -> Any:
    """A value that few arguments can take."""
    shape = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.randrange(6))]
    return rng.choice(
        [
            lambda: rng.choice([None, True, False, Odd(), "", "eps", b"eps", (), [], {}, set(), torch, torch.float32]),
            lambda: rng.choice([0, -1, 1, 2, 3, 20, 21, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1]),
            lambda: 10 ** rng.randrange(30),
            lambda: rng.choice(
                [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]
            ),
            lambda: rng.choice([1j, range(3), slice(None), torch.device("cpu"), torch.Size([2, 3])]),
            lambda: torch.randn(shape, dtype=rng.choice(FLOATS)),
            lambda: torch.full(shape, rng.choice([float("nan"), float("inf"), 0.0, 1e30])),
            lambda: torch.randint(-3, 25, shape).to(rng.choice([torch.int64, torch.int32, torch.uint8, torch.int16])),
            lambda: torch.zeros(shape, dtype=rng.choice([torch.bool, torch.complex64])),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.eye(2).to_sparse(),
            lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            lambda: torch.randn(shape, requires_grad=True),
            lambda: torch.nn.Parameter(torch.randn(2, 3, 4, 4)),
            lambda: Block(torch.randn(2, 2, 4, 4), rng.randrange(-1, 3), rng.randrange(5)),
            lambda: Block(odd(rng), rng.choice([0, 1, None, 1.0, True]), rng.choice([3, None, "3", 2**40])),
            lambda: [odd(rng) for _ in range(rng.randrange(3))],
            lambda: {rng.choice(["label", "mask", "x", 3, None]): odd(rng) for _ in range(rng.randrange(3))},
            lambda: (odd(rng), odd(rng)),
        ]
    )()


def tensor(rng: random.Random, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """In one of the ways that a tensor may lie in memory."""
    x = torch.randn(shape).to(dtype)
    layout = rng.randrange(8)
    if layout == 0 and len(shape) > 1:
        x = torch.randn(shape[::-1]).to(dtype).permute(*range(len(shape) - 1, -1, -1))
    elif layout == 1 and shape:
        x = torch.randn([2 * shape[0], *shape[1:]]).to(dtype)[::2]
    elif layout == 2 and shape:
        x = x[:1].expand(shape) if shape[0] else x
    elif layout == 3:
        x = x.flip(-1) if x.dim() else x
    return x.requires_grad_() if rng.random() < 0.1 else x


class Ops:
    def prepare(self, base: Path) -> None:
        weights = {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.5)}
        self.schedules = [
            Schedule.cosine(20, weights),
            Schedule.linear(20, {}),
            Schedule.cosine(1, {"label": mmfast.shift()}),
            Schedule([1.0, 0.9, 0.5, 0.1], {"label": mmfast.none(), "mask": mmfast.bridge()}),
            Schedule([1.0, 0.5, 0.0], {"mask": mmfast.carried(2.0)}),
        ]
        self.calls = [getattr(self, name) for name in dir(self) if name.startswith("_args_")]

    def attempt(self, rng: random.Random, folder: Path) -> str | None:
        torch.manual_seed(rng.getrandbits(32))
        make = rng.choice(self.calls)
        call, named = make(rng)
        for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 3])):
            named[rng.choice(list(named))] = odd(rng)
        return compare(call, named)

    def _shape(self, rng: random.Random) -> list[int]:
        batch = rng.choice([0, 1, 1, 2, 2, 3, 5])
        channels = rng.choice([0, 1, 2, 3, 3, 4, 7])
        return [batch, channels, *[rng.choice([0, 1, 2, 4, 5]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3]))]]

    def _noise(self, rng: random.Random, batch: int) -> dict[str, Any]:
        ids = torch.tensor([rng.getrandbits(rng.choice([8, 48])) for _ in range(batch)], dtype=torch.int64)
        return {
            "seed": rng.choice([0, 1, 2**63, torch.tensor(3), None, -5]),
            "sample_ids": rng.choice([None, ids]),
            "stream": rng.choice([0, 1, 65535]),
            "draw": rng.choice([0, 3, 2**32 - 1, torch.tensor(2)]),
        }

    def _times(self, rng: random.Random, batch: int, T: int, blocks: int = 0, least: int = 0) -> Any:
        if blocks and rng.random() < 0.3:
            return torch.tensor([[rng.randint(least, T) for _ in range(blocks)] for _ in range(batch)]).reshape(
                batch, blocks
            )
        one = rng.randint(least, T)
        return rng.choice(
            [one, torch.tensor(one), torch.tensor([rng.randint(least, T) for _ in range(batch)], dtype=torch.int64)]
        )

    def _encodings(self, rng: random.Random, shape: list[int], sched: Schedule, dtype: torch.dtype) -> Any:
        found: dict[str, Any] = {}
        for name in sched.names:
            if rng.random() < 0.3:
                continue
            size = [n if rng.random() < 0.7 else 1 for n in shape]
            x = tensor(rng, size, dtype)
            if len(shape) > 1 and rng.random() < 0.3 and size[1] > 0:
                x = Block(x[:, :1].detach(), rng.randrange(max(1, shape[1])), shape[1])
            found[name] = x
        return list(found.values()) if len(found) == len(sched.names) and rng.random() < 0.3 else found

    def _present(self, rng: random.Random, batch: int, encodings: Any) -> Any:
        return rng.choice([None, None, torch.randint(0, 2, (batch, len(encodings))).float()])

    def _args_q_sample(self, rng):
        shape, sched, dtype = self._shape(rng), rng.choice(self.schedules), rng.choice(FLOATS)
        E = self._encodings(rng, shape, sched, dtype)
        named = {"z0": tensor(rng, shape, dtype), "encodings": E}
        named |= {
            "t": self._times(rng, shape[0], sched.T, 1 + len(E)),
            "sched": sched,
            "present": self._present(rng, shape[0], E),
        }
        named["noise"] = tensor(rng, shape, dtype) if rng.random() < 0.4 else None
        named["return_noise"] = rng.random() < 0.5
        return ops.q_sample, named | (self._noise(rng, shape[0]) if named["noise"] is None else {})

    def _reverse(self, rng, first: str):
        shape, sched, dtype = self._shape(rng), rng.choice(self.schedules), rng.choice(FLOATS)
        E = self._encodings(rng, shape, sched, dtype)
        blocks = 1 + len(E)
        named = {"z_t": tensor(rng, shape, dtype), first: tensor(rng, shape, dtype), "encodings": E}
        named |= {
            "t": self._times(rng, shape[0], sched.T, blocks, 1),
            "sched": sched,
            "present": self._present(rng, shape[0], E),
        }
        t = named["t"]
        named["s"] = rng.choice(
            [None, None, 0, t - 1, t // 2 if isinstance(t, int) else t.div(2, rounding_mode="floor")]
        )
        return named, shape, dtype

    def _args_posterior_mean(self, rng):
        return ops.posterior_mean, self._reverse(rng, "eps")[0]

    def _args_posterior_sample(self, rng):
        named, shape, _ = self._reverse(rng, "eps")
        named["clamp"] = rng.choice([None, 1.0, (-0.5, 2.0)])
        return ops.posterior_sample, named | self._noise(rng, shape[0])

    def _args_step(self, rng):
        named, shape, dtype = self._reverse(rng, "prediction")
        named |= {"target": rng.choice(["eps", "x0", "v"]), "eta": rng.choice([0.0, 0.5, 1.0])}
        named |= {"clamp": rng.choice([None, 1.0, (-0.5, 2.0)])}
        if rng.random() < 0.3:
            named |= {"unconditional": tensor(rng, shape, dtype), "guidance_scale": rng.choice([0.0, 1.0, 2.5])}
        return ops.step, named | self._noise(rng, shape[0])

    def _args_combine(self, rng):
        shape, dtype, count = self._shape(rng), rng.choice(FLOATS), rng.choice([1, 1, 2, 3, 5])
        rows = rng.choice([None, None, "some"])
        height = rng.randrange(1, 6) if rows else rng.choice([1, shape[0]])
        terms: list[Any] = [tensor(rng, shape, dtype) for _ in range(count)]
        named: dict[str, Any] = {"terms": terms, "coefs": torch.randn(height, count)}
        if rows:
            named["rows"] = rng.choice([0, height - 1, torch.randint(0, height, (shape[0],))])
        named["return_noise"] = rng.random() < 0.3
        if rng.random() < 0.6:
            levels = rng.choice([None, None, [0], sorted({0, rng.randrange(1, 5)})])
            named |= {"sigma": torch.rand(height, len(levels)) if levels else torch.rand(height), "levels": levels}
        return ops.combine, named | self._noise(rng, shape[0])

    def _args_step_by_table(self, rng):
        shape, dtype, count, height = self._shape(rng), rng.choice(FLOATS), rng.choice([1, 2, 3]), rng.randrange(1, 6)
        levels = rng.choice([None, None, [0], sorted({0, rng.randrange(1, 5)})])
        sigma = rng.choice([None, torch.rand(height, len(levels)) if levels else torch.rand(height)])
        parts = {"coefs": torch.randn(height, count + 1), "sigma": sigma, "to_x0": torch.randn(height, count)}
        if rng.random() < 0.2:
            parts[rng.choice(list(parts))] = odd(rng)
        named = {"terms": [tensor(rng, shape, dtype) for _ in range(count)], "tables": ops.Tables(**parts)}
        named |= {"row": rng.choice([0, height - 1, torch.randint(0, height, (shape[0],))])}
        named |= {"clamp": rng.choice([None, 1.0, (-0.5, 2.0)]), "levels": levels if sigma is not None else None}
        named["channels"] = rng.choice([None, None, (0, 1), (0, shape[1])])
        return ops.step_by_table, named | self._noise(rng, shape[0])

    def _args_diffusion_loss(self, rng):
        shape, sched, dtype = self._shape(rng), rng.choice(self.schedules), rng.choice(FLOATS)
        named = {"prediction": tensor(rng, shape, dtype), "z0": tensor(rng, shape, dtype), "sched": sched}
        named |= {"t": self._times(rng, shape[0], sched.T, 0, 1), "target": rng.choice(["eps", "x0", "v"])}
        named |= {"min_snr_gamma": rng.choice([None, 5.0]), "reduction": rng.choice(["mean", "none"])}
        named["sample_weight"] = rng.choice([None, torch.rand(shape[0])])
        named["fused"] = rng.random() < 0.7
        if rng.random() < 0.4:
            return ops.diffusion_loss, named | {"noise": tensor(rng, shape, dtype)}
        return ops.diffusion_loss, named | self._noise(rng, shape[0]) | {"seed": rng.choice([0, 5, torch.tensor(3)])}

    def _args_block_mask(self, rng):
        shape, dtype = self._shape(rng), rng.choice(FLOATS)
        while len(shape) != 4:
            shape = self._shape(rng)
        named = {"x": tensor(rng, shape, dtype), "ratio": rng.choice([0.0, 0.5, 1.0, torch.rand(shape[0])])}
        named |= {"block_size": rng.choice([1, 2, (2, 1), (4, 4), 100]), "exact": rng.random() < 0.5}
        return ops.block_mask, named | self._noise(rng, shape[0])

    def _args_randn(self, rng):
        shape = self._shape(rng)
        return ops.randn, {"shape": shape, "dtype": rng.choice(FLOATS), "device": "cpu"} | self._noise(rng, shape[0])

    def _args_random_words(self, rng):
        shape = self._shape(rng)
        return ops.random_words, {"shape": shape, "device": "cpu"} | self._noise(rng, shape[0])

    def _args_multimodal_mean(self, rng):
        shape, sched, dtype = self._shape(rng), rng.choice(self.schedules), rng.choice(FLOATS)
        E = self._encodings(rng, shape, sched, dtype)
        return ops.multimodal_mean, {"encodings": E, "weights": torch.randn(rng.choice([1, shape[0]]), len(E))}

    def _args_schedule(self, rng):
        names = rng.choice([["label"], ["label", "mask"], []])
        weight = lambda: mmfast.Weight(rng.choice(["none", "carried", "bridge", "shift"]), rng.choice([0.5, 1.0, 2.0]))  # noqa: E731
        weights = {name: weight() for name in names}
        if rng.random() < 0.5:
            make = rng.choice([Schedule.cosine, Schedule.linear])
            return make, {"T": rng.choice([1, 2, 20, 1000]), "weights": weights}
        return Schedule, {
            "alpha_bar": [1.0, *sorted((rng.random() for _ in range(4)), reverse=True)],
            "weights": weights,
        }


def _with_nan(tables: Any) -> bool:
    """Whether a row of a step's tables begins with NaN."""
    firsts = [x[..., :1] for x in (tables.coefs, tables.to_x0) if x is not None] if tables is not None else []
    return any(bool(x.isnan().any()) for x in firsts)


def compare(call: Any, named: dict[str, Any]) -> str | None:
    """The line of the error that both backends raise, None where both give the same; else a Fault."""
    found = []
    for name in ("fast", "reference"):
        torch.manual_seed(0)
        try:
            if name == "fast":
                found.append(call(**named))
            else:
                with ops.backend("reference"):
                    found.append(call(**named))
        except MmfastError as error:
            found.append(error)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # more than this machine has: torch says so
                raise
            return str(error).splitlines()[0]
    fast, right = found
    if isinstance(fast, MmfastError) and isinstance(right, MmfastError):
        return str(fast)
    if isinstance(fast, MmfastError) and "begins with NaN" in str(fast) and _with_nan(named.get("tables")):
        return str(fast)  # a kernel refuses what the reference makes NaN of, or of no elements nothing
    if isinstance(fast, MmfastError) or isinstance(right, MmfastError):
        raise Fault(f"{call.__qualname__} {shown(named)}: fast {shown(fast)}, reference {shown(right)}")
    if isinstance(fast, Schedule):
        return None
    for a, b in zip(*[x if isinstance(x, tuple) else (x,) for x in found], strict=True):
        if a is None and b is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Fault(f"{call.__qualname__} {shown(named)}: {a.dtype} {a.shape}, reference {b.dtype} {b.shape}")
        if a.device.type == "meta":
            continue
        finite = b.detach()[b.detach().isfinite()].double().abs() if a.is_floating_point() else b.detach().double()
        scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
        close = CLOSE.get(a.dtype, 0.0)
        if a.dtype == torch.float64 and ("seed" in named or named.get("noise", 0) is None):
            close = NOISY
        x, y = a.detach().double(), b.detach().double()
        x, y = x[y.isfinite()], y[y.isfinite()]  # inf - inf may come in either order
        if not torch.allclose(x, y, rtol=close, atol=close * scale):
            raise Fault(f"{call.__qualname__} {shown(named)}: differs by {(a.double() - b.double()).abs().max()}")
    return None


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        few = (
            f" {value.flatten().tolist()}"
            if value.device.type == "cpu" and not value.is_sparse and value.numel() < 4
            else ""
        )
        return f"{value.dtype} {list(value.shape)} strides {value.stride() if not value.is_sparse else '?'}{few}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(x)}" for k, x in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}[{', '.join(map(shown, value))}]"
    return repr(value)[:300]
