"""diffusers' DDPMScheduler and DDIMScheduler on the fused kernels: `from mmfast.diffusers import DDPMScheduler`.

They are diffusers' own classes, with `step`, `add_noise` and `get_velocity` in one pass each. Calls that the kernels do
not cover (thresholding, learned variances, tensors of other types or devices, ...) fall back to diffusers.
Deterministic results equal diffusers' up to rounding. Noise comes from mmfast's generator, seeded from the given torch
generator: it is reproducible, but differs from diffusers' noise.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast import ops
from mmfast.errors import BackendError, optional_package
from mmfast.ops import around, backends
from mmfast.ops.around import fresh_seed
from mmfast.ops.call import arithmetic
from mmfast.ops.checks import FLOATS

with optional_package("diffusers", "diffusers", "mmfast.diffusers"):
    from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

__all__ = ["DDIMScheduler", "DDPMScheduler"]

# The variance types whose deviation depends on the timestep alone.
_FIXED = ("fixed_small", "fixed_small_log", "fixed_large")
_MOST_TABLES = 32


class _Steps(NamedTuple):
    """The tables of ops.step_by_table, for the terms sample and model_output."""

    tables: ops.Tables
    bound: float | None  # clipping range of the predicted original sample
    rows: dict[int | None, tuple[int, bool]]  # for each covered timestep, its row and whether it adds noise


_ZERO = torch.zeros((), device="cpu")
_NONE = _Steps(ops.Tables(torch.empty(0, 0, device="cpu")), None, {})

# The coefficients of sample and model_output in the predicted x_0, from sqrt(abar_t) and sqrt(1 - abar_t).
_TO_X0: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda signal, spread: (1 / signal, -spread / signal),
    "sample": lambda signal, _: (torch.zeros_like(signal), torch.ones_like(signal)),
    "v_prediction": lambda signal, spread: (signal, -spread),
}


def _fits(x: object, y: object) -> bool:
    """Whether both are tensors of one shape, dtype and device, and there is a kernel for them.

    Without a kernel, diffusers is faster than the reference. Within torch.compile it is False, because diffusers' own
    ops can be fused with their neighbours there.
    """
    if type(x) is not Tensor or type(y) is not Tensor or torch.compiler.is_compiling():
        return False
    dtype, device = x.dtype, x.device
    same = y.dtype is dtype and y.shape == x.shape and y.device == device and x.layout is y.layout is torch.strided
    return same and dtype in FLOATS and x.dim() > 1 and backends.has_kernel(device)


def _at(alphas: Tensor, timesteps: Tensor, before_all: Tensor) -> Tensor:
    """alphas at the timesteps, and `before_all` at negative ones."""
    return torch.where(timesteps < 0, before_all.cpu(), alphas[timesteps.clamp(0, len(alphas) - 1)])


def _integer(timestep: object) -> int | None:
    """The timestep as an int; None if it is not a single integer."""
    if isinstance(timestep, Tensor):
        value = timestep.item() if timestep.numel() == 1 else None
        return value if type(value) is int else None
    return int(timestep) if isinstance(timestep, numbers.Integral) else None


def _identity(generator: Any, batch: int, device: torch.device) -> tuple[int, Tensor | None] | None:
    """The noise's seed and sample ids from a torch generator, or a list with one per sample; None if unsupported.

    A single generator gives the seed. A list gives each sample its own id of 48 random bits, so that its noise depends
    on its own generator alone.
    """
    if isinstance(generator, list) and len(generator) != 1:
        if len(generator) < batch or not all(map(_ours, generator)):
            return None
        ids = [fresh_seed(one) % (1 << 48) for one in generator[:batch]]
        return 0, torch.tensor(ids, device="cpu").to(device, non_blocking=True)
    one = generator[0] if isinstance(generator, list) else generator
    return (fresh_seed(one), None) if _ours(one) else None


def _ours(generator: object) -> bool:
    """Whether a seed can be drawn from it; None means torch's default generator."""
    return generator is None or (isinstance(generator, torch.Generator) and generator.device.type == "cpu")


def _output(kind: Any, found: tuple[Tensor, Tensor]) -> Any:
    """kind(*found), without its checks of the fields, in a third of the time."""
    output = kind.__new__(kind)
    output["prev_sample"], output["pred_original_sample"] = found
    return output


class _Fused:
    """What both schedulers share: the tables and the calls to the ops."""

    alphas_cumprod: Tensor
    timesteps: Tensor
    config: Any
    _tables: dict[Hashable, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Set __module__, under which a pipeline saves its parts, so that it loads wherever diffusers is installed."""
        self = super().__new__(cls)
        self.__dict__["__module__"] = "diffusers"
        return self

    def __setattr__(self, name: str, value: object) -> None:
        """Clear the tables, because they may depend on any attribute."""
        super().__setattr__(name, value)
        self.__dict__["_tables"] = {}

    def _table(self, make: Callable[..., Any], like: Tensor, *options: float) -> Any:
        """make(like, *options), cached for tensors like this one until something changes."""
        alphas = self.alphas_cumprod
        # The user may write into the tensors. Those made in inference mode do not count their changes.
        versions = around.version(alphas), around.version(self.timesteps)
        key = (make.__name__, like.dtype, like.device, *versions, *options)
        found = self._tables.get(key)
        if found is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            # The cache outlives the mode of this call, so it must not hold inference tensors, wrappers or fakes.
            with around.outside():
                found = self._tables[key] = make(like, *options)
        return found

    def _forward(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The tables of add_noise and get_velocity for the terms sample and noise: [T, 2] each."""
        alphas = self.alphas_cumprod.to(like.device, arithmetic(like.dtype))
        signal, spread = alphas**0.5, (1 - alphas) ** 0.5
        return torch.stack((signal, spread), 1), torch.stack((-spread, signal), 1)

    def _mix(self, which: int, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor | None:
        """add_noise (0) or get_velocity (1); None if diffusers has to do it."""
        if not _fits(x, noise) or not isinstance(timesteps, Tensor) or timesteps.device != x.device:
            return None
        batch, rows = len(x), timesteps
        if rows.dtype != torch.int64 or rows.shape != (batch,) or not rows.is_contiguous():
            if rows.is_floating_point() or rows.dtype == torch.bool or rows.numel() not in (1, batch):
                return None
            rows = rows.reshape(-1).long().expand(batch).contiguous()
        coefs = self._table(self._forward, x)[which]
        try:
            return ops.combine([x, noise], coefs, rows=rows)
        except BackendError:
            raise
        except (ValueError, IndexError):  # a timestep outside the table: diffusers counts negative ones from the end
            return None

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(abar_t) original_samples + sqrt(1 - abar_t) noise, as diffusers' add_noise, in one pass."""
        found = self._mix(0, original_samples, noise, timesteps)
        return super().add_noise(original_samples, noise, timesteps) if found is None else found  # type: ignore[misc]

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(abar_t) noise - sqrt(1 - abar_t) sample, as diffusers' get_velocity, in one pass."""
        found = self._mix(1, sample, noise, timesteps)
        return super().get_velocity(sample, noise, timesteps) if found is None else found  # type: ignore[misc]

    def _step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any, *options: float
    ) -> tuple[Tensor, Tensor] | None:
        """prev_sample and pred_original_sample; None if diffusers has to do it."""
        if not _fits(sample, model_output):
            return None
        steps: _Steps = self._table(self._steps, sample, *options)
        found = steps.rows.get(timestep if type(timestep) is int else _integer(timestep))
        if found is None:
            return None
        row, noisy = found
        identity = _identity(generator, len(sample), sample.device) if noisy else (0, None)
        if identity is None:
            return None
        seed, ids = identity
        tables = steps.tables if noisy else steps.tables._replace(sigma=None)
        terms = [sample, model_output]
        return ops.step_by_table(terms, tables, row, clamp=steps.bound, seed=seed, sample_ids=ids)

    def _steps(self, like: Tensor, *options: float) -> _Steps:
        """The tables of every timestep, or _NONE if the config is not covered.

        The coefficients are computed in float32, as in diffusers, to get equal results: there 1 - abar_t / abar_s has
        only three digits.
        """
        raise NotImplementedError

    def _covered(self) -> bool:
        """Whether the kernels support how x_0 is predicted and clipped."""
        c = self.config
        return c.prediction_type in _TO_X0 and not c.thresholding and (not c.clip_sample or c.clip_sample_range > 0)

    def _finish(
        self, like: Tensor, timesteps: Tensor, alphas: Tensor, coefs: Sequence[Tensor], sigma: Tensor
    ) -> _Steps:
        """The tables from the coefficients of sample, model_output and x_0 and the deviation, for tensors like `like`.

        A row with a value that is not finite (x_0 from epsilon where abar_t is 0) is not covered.
        """
        signal, spread = (alphas**0.5).double(), ((1 - alphas) ** 0.5).double()
        to_x0 = _TO_X0[self.config.prediction_type](signal, spread)
        tables = torch.stack([x.double().expand(len(timesteps)) for x in (*to_x0, *coefs, sigma)], 1)
        covered = tables.isfinite().all(1) & (timesteps >= 0) & (timesteps < len(self.alphas_cumprod))
        rows: dict[int | None, tuple[int, bool]] = {}
        for i, (t, fine, noisy) in enumerate(zip(*(x.tolist() for x in (timesteps, covered, sigma > 0)), strict=True)):
            if fine:
                rows.setdefault(t, (i, noisy))  # the first of equal timesteps, as in diffusers
        tables = tables.to(like.device, arithmetic(like.dtype))
        bound = float(self.config.clip_sample_range) if self.config.clip_sample else None
        return _Steps(ops.Tables(tables[:, 2:5], tables[:, 5], tables[:, :2]), bound, rows)


class DDPMScheduler(_Fused, scheduling_ddpm.DDPMScheduler):
    """diffusers.DDPMScheduler, fused."""

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> scheduling_ddpm.DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample of the timestep before, as diffusers' step, in one pass."""
        found = self._step(model_output, timestep, sample, generator)
        if found is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        return _output(scheduling_ddpm.DDPMSchedulerOutput, found) if return_dict else found

    def _steps(self, like: Tensor, *options: float) -> _Steps:
        kind = self.variance_type
        if not self._covered() or kind not in _FIXED or kind != self.config.variance_type:
            return _NONE
        alphas = self.alphas_cumprod.cpu()
        if self.custom_timesteps or self.num_inference_steps:
            timesteps = self.timesteps.cpu()
            before = torch.cat((timesteps[1:], torch.tensor([-1], device="cpu")))
        else:
            timesteps = torch.arange(len(alphas), device="cpu")
            before = timesteps - 1
        x, y = _at(alphas, timesteps, self.one), _at(alphas, before, self.one)
        beta = 1 - x / y
        variance = beta if kind == "fixed_large" else ((1 - y) / (1 - x) * beta).clamp(min=1e-20)
        sigma = (0.5 * variance.log()).exp() if kind == "fixed_small_log" else variance**0.5
        sigma = torch.where(timesteps > 0, sigma, 0)
        coefs = ((x / y) ** 0.5 * (1 - y) / (1 - x), _ZERO, y**0.5 * beta / (1 - x))
        return self._finish(like, timesteps, x, coefs, sigma)


class DDIMScheduler(_Fused, scheduling_ddim.DDIMScheduler):
    """diffusers.DDIMScheduler, fused."""

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> scheduling_ddim.DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample of the timestep before, as diffusers' step, in one pass."""
        found = None
        if variance_noise is None and isinstance(eta, (int, float)):
            found = self._step(model_output, timestep, sample, generator, eta, bool(use_clipped_model_output))
        if found is None:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        return _output(scheduling_ddim.DDIMSchedulerOutput, found) if return_dict else found

    def _steps(self, like: Tensor, *options: float) -> _Steps:
        eta, use_clipped = options
        if not self._covered() or self.num_inference_steps is None or eta < 0:
            return _NONE
        x = self.alphas_cumprod.cpu()
        timesteps = torch.arange(len(x), device="cpu")
        before = timesteps - self.config.num_train_timesteps // self.num_inference_steps
        y = _at(x, before, self.final_alpha_cumprod)
        sigma = eta * ((1 - y) / (1 - x) * (1 - x / y)) ** 0.5
        direction = ((1 - y - sigma**2) ** 0.5).double()  # the coefficient of the predicted noise
        signal, spread = (x**0.5).double(), ((1 - x) ** 0.5).double()
        # The predicted noise from sample, model_output and the clipped x_0.
        of_noise = {
            "epsilon": (_ZERO, torch.ones((), device="cpu"), _ZERO),
            "sample": (1 / spread, -signal / spread, _ZERO),
            "v_prediction": (spread, signal, _ZERO),
        }[self.config.prediction_type]
        if use_clipped:
            of_noise = (1 / spread, _ZERO, -signal / spread)
        of_sample, of_output, of_x0 = (direction * c for c in of_noise)
        return self._finish(like, timesteps, x, (of_sample, of_output, y**0.5 + of_x0), sigma)
