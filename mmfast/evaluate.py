"""The figures of a trained model, as in metrics.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmfast.config import Config
from mmfast.data import Batch, Data
from mmfast.distances import against, chosen_features, comparable, real_features, row_distances
from mmfast.errors import MmfastError, notice
from mmfast.files import write_text
from mmfast.generate import generate
from mmfast.held_out import Found, NoExamples, Shuffled, by_modality, different
from mmfast.likelihood import bound
from mmfast.metrics.features import Extractor
from mmfast.metrics.lpips import LPIPS
from mmfast.model import Model
from mmfast.progress import silenced
from mmfast.ranks import ALONE, Ranks
from mmfast.reverse import fit, times_by_snr, x0_error
from mmfast.run import Run
from mmfast.sample import check_count
from mmfast.trust import imported
from mmfast.words import plural

# The numbers of training examples that the reverse variances are fitted to, and of timesteps in the error of z_0.
FITTED_TO, CURVE = 256, 12


def evaluate(model: Model, config: Config, data: Data, quiet: bool = False, ranks: Ranks = ALONE) -> dict[str, float]:
    """Measure a model on samples drawn from z_T.

    For each modality except the anchor: joint_* (does it agree with the image generated with it, by the data set's
    judge; drawn in the order of config.sample.first), conditional_* (does the image generated from it show it, by the
    judge) and recovered_* (is it predicted correctly from a held-out real image). Then the Frechet distance, precision
    and recall of the samples against real data, and those of one half of the real data against the other; the bound on
    held-out data (`mmfast.likelihood.bound`), with the posterior's variance and with variances fitted to training data;
    and x0_error.T, the mean squared error of the predicted z_0 at timestep T. The ranks share the draws, the features
    and the bound, and each returns all figures.
    """
    anchor, count, spec = model.anchor_name, config.evaluate.samples, config.evaluate
    features, lpips = measures(model, config)  # first, so that nothing is drawn in vain
    with ranks.in_turn(), silenced(quiet):
        judges = data.judges()
    compared = comparable(model, features)
    real = real_features(data, anchor, compared, ranks=ranks)
    found = by_modality(Shuffled(data.test), count, model)
    if ranks.first and not quiet:
        for line in repetitions(found, model, count, len(data.test)):
            notice(line)
    metrics: dict[str, float] = {"samples": float(count)}

    def draw(given: str, seed: int, of: str = "") -> dict[str, Tensor]:
        what = {given: found[of or given].batch.data[given]} if given else {}
        text = f"evaluating, given {given}" if given else "evaluating, joint"
        how: dict[str, Any] = {"progress": False if quiet else text, "seed": config.seed + seed, "ranks": ranks}
        drawn = generate(model, config, count, what, **how)
        return {name: x.cpu() for name, x in drawn.items()}

    joint = draw("", 1)
    recovered: dict[int, dict[str, Tensor]] = {}  # by the examples: usually one object for all modalities
    for k, name in enumerate(model.names):
        if name not in found:
            continue
        part, truth = model.part(name), found[name].batch
        if part.derived:
            # It is derived from an image, so the only question is how well that image is restored from it.
            restored = draw(name, 3 + k)[part.source]
            metrics[f"{name}.conditional_{part.metric}"] = part.score(restored, truth.data[name])
            if lpips is not None:
                image, seen = truth.data[name][:, :-1], truth.data[name][:, -1:]
                whole = torch.where(seen > 0, image, restored.clamp(-1, 1))
                batches = zip(whole.split(64), image.split(64), seen.split(64), strict=True)
                distance = torch.cat(ranks.map(lambda batch: lpips.hidden(*batch).cpu(), batches))
                metrics[f"{name}.conditional_lpips_{spec.lpips}"] = float(distance.mean())
            continue
        if name in judges:
            metrics[f"{name}.joint_{part.joint_metric}"] = part.score(joint[name], judges[name](joint[anchor]))
            drawn = draw(name, 3 + k)
            metrics[f"{name}.conditional_{part.metric}"] = part.score(judges[name](drawn[anchor]), truth.data[name])
        if id(truth) not in recovered:
            recovered[id(truth)] = draw(anchor, 2, name)
        metrics[f"{name}.recovered_{part.metric}"] = part.score(recovered[id(truth)][name], truth.data[name])
    metrics |= against(real, joint[anchor], compared, features.name, ranks)
    for name in model.parts:
        metrics |= row_distances(model.part(name), name, joint[name], data)
    metrics |= data.baselines()
    try:
        batch = different(Shuffled(data.test), count, model)
    except NoExamples as error:
        if ranks.first and not quiet:
            notice(f"{error}, or there is no bound")
        return metrics
    return metrics | likelihood(model, config, data, batch, ranks)


def repetitions(found: Mapping[str, Found], model: Model, count: int, examples: int) -> Iterator[str]:
    """Yield a line for each modality that few of the held-out examples have, whose figures are of those few."""
    for name in model.names:
        own = found.get(name, Found(Batch({}), 0)).different
        if own < min(count, examples):
            among = f"of the {plural(examples, 'held-out example')}"
            if not own:
                yield (
                    f"none {among} has {model.anchor_name} and {name}, so {name} is not measured; raise "
                    "data.test_fraction"
                )
            else:
                yield (
                    f"only {own:,} {among} {'has' if own == 1 else 'have'} {model.anchor_name} and {name}"
                    f", so the figures of {name} repeat these; raise data.test_fraction for more"
                )


def measures(model: Model, config: Config) -> tuple[Extractor, LPIPS | None]:
    """The features by which images are compared and, if the config names a network for it, LPIPS.

    Raises MmfastError for what is not installed, and for what does not suit these images or this model.
    """
    _check_measures(model, config)
    spec = config.evaluate
    return chosen_features(spec), LPIPS(spec.lpips, spec.lpips_weights or None) if spec.lpips else None


def check_measures(model: Model, config: Config) -> None:
    """Raise MmfastError where `measures` would, to find out before training what would be missing after it.

    The user's code is imported but not called, because its network may be large.
    """
    if ":" in config.evaluate.features:
        _check_measures(model, config)
        imported("evaluate.features", config.evaluate.features)
    else:
        measures(model, config)


def _check_measures(model: Model, config: Config) -> None:
    spec = config.evaluate
    check_count(model, spec.samples, "evaluate.samples")
    if spec.features != "pixels" and not (model.anchor.bounded or model.latent):
        raise MmfastError(
            f"evaluate.features is {spec.features!r}, a network for images; the anchor is a {model.anchor.kind}, "
            "so it should be pixels"
        )
    if spec.lpips and not any(part.derived for part in model.parts.values()):
        raise MmfastError(f"evaluate.lpips is {spec.lpips!r}, but no modality hides parts of an image; leave it out")


def likelihood(model: Model, config: Config, data: Data, batch: Batch, ranks: Ranks = ALONE) -> dict[str, float]:
    """The bound on a held-out batch, also with reverse variances fitted to training data, and x0_error by t.

    There are no fitted variances if no training example has all of the model's modalities. Some models have no bound.
    """
    size, seed = config.sample.batch_size, config.seed
    times = times_by_snr(model.schedule, CURVE)
    of_times = x0_error(model, batch, times, seed, size, ranks).tolist()
    errors = {f"x0_error.{t}": x for t, x in zip(times, of_times, strict=True)}
    if model.without_bound:
        return errors
    try:
        seen = different(Shuffled(data.train), FITTED_TO, model)
    except NoExamples:
        reverses = {}
    else:
        reverses = fit(model, seen, seed=seed, batch_size=size, ranks=ranks)
    return bound(model, batch, config.evaluate.bound_steps, seed, size, reverses, ranks) | errors


def evaluate_run(
    run: Run, model: Model, config: Config, data: Data, quiet: bool = False, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Evaluate a run's averaged weights and write RUN/metrics.json."""
    metrics = evaluate(model, config, data, quiet, ranks)
    if ranks.first:
        try:
            run.guard(lambda: write_text(run.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n"))
        except MmfastError:
            notice(f"the figures, which could not be written:\n{table(metrics)}")
            raise
    return metrics


def table(metrics: dict[str, float], rest: str | None = None) -> str:
    """The figures as lines of text.

    rest: where to find those of the bound and of the errors by timestep; None shows them too.
    """
    hidden = () if rest is None else ("bound.", "x0_error.")
    shown = {name: value for name, value in metrics.items() if not name.startswith(hidden)}
    width = max(map(len, shown), default=0)
    lines = [f"{name:<{width}}  {value:.4g}" for name, value in shown.items()]
    if len(shown) < len(metrics):
        lines.append(f"{len(metrics) - len(shown)} more, of the bound and of the errors by timestep: {rest}")
    return "\n".join(lines)
