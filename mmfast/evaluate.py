"""What a trained model does in every direction: sample grids, and the figures of metrics.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast.config import Config
from mmfast.data import Batch, Data, Examples
from mmfast.errors import MmfastError
from mmfast.files import write_atomically, write_text
from mmfast.generate import generate, title
from mmfast.likelihood import bound
from mmfast.metrics.features import Extractor, extractor
from mmfast.metrics.frechet import frechet_distance
from mmfast.metrics.lpips import LPIPS
from mmfast.metrics.precision_recall import precision_recall
from mmfast.modalities import Modality
from mmfast.model import Model
from mmfast.pictures import sample_grid
from mmfast.ranks import ALONE, Ranks
from mmfast.reverse import fit, times_by_snr, x0_error
from mmfast.run import Run
from mmfast.trust import check_code

# Of precision and recall, as their authors chose it.
NEIGHBOURS = 3
# How many training examples the reverse variances are fitted to, and timesteps the error of z_0 is measured at.
FITTED_TO, CURVE = 256, 12


class Board(Protocol):
    """Where pictures are shown beside their files, as TensorBoard is."""

    def picture(self, name: str, picture: PILImage.Image, step: int) -> None: ...


def held_out(examples: Examples, count: int, model: Model) -> Batch:
    """`count` examples that lack no modality of the data's, again from the first when they run out.

    What is made from other modalities is made from each example once: the same hidden parts in every evaluation.
    """
    names = [name for name, part in model.parts.items() if not part.derived]
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(examples), 64):
        batch = examples.__getitems__(range(start, min(start + 64, len(examples))))
        whole = torch.ones(len(batch), dtype=torch.bool)
        for there in batch.present.values():
            whole &= there
        found.append({name: batch.data[name][whole] for name in names})
        if sum(len(part[names[0]]) for part in found) >= count:
            break
    data = {name: torch.cat([part[name] for part in found]) for name in names}
    available = len(data[names[0]])
    if not available:
        raise MmfastError(f"data: no held-out example has all of {', '.join(names)}; raise data.test_fraction")
    data = model.complete(Batch(data), 0, torch.arange(available)).data
    index = torch.arange(count) % available
    return Batch({name: x[index] for name, x in data.items()})


def save_picture(run: Run, file: Path, picture: PILImage.Image) -> None:
    run.guard(lambda: write_atomically(file, lambda temporary: picture.save(temporary)))


def sample_run(
    run: Run,
    model: Model,
    config: Config,
    data: Data,
    step: int,
    board: Board | None = None,
    quiet: bool = False,
    again: bool = True,
    ranks: Ranks = ALONE,
) -> None:
    """Sample grids in every direction, as RUN/samples/step-*.png: joint, and given each modality in turn.

    again: also those whose files are there. ranks: all draw, the first writes.
    """
    names, count = tuple(model.parts), config.sample.count
    examples = held_out(data.test, count, model)
    parts = {name: model.part(name) for name in names}
    for given in ["", *(name for name in names if len(names) > 1)]:
        name = f"given-{given}" if given else "joint"
        file = run.samples / f"step-{step:07d}-{name}.png"
        if ranks.told(file.exists()) and not again:
            continue
        what = {given: examples.data[given]} if given else {}
        text = f"samples given {given}, step {step:,}" if given else f"samples, step {step:,}"
        drawn = generate(model, config, count, what, progress=False if quiet else text, ranks=ranks)
        if not ranks.first:
            continue
        picture = sample_grid(parts, drawn, f"{title(what, config.sample.first)} (step {step})", [given])
        shown = {file.stem: picture}
        for part, x in drawn.items():
            overview = parts[part].overview(x.cpu(), examples.data[part])
            if overview is not None:
                shown[f"scatter-{step:07d}-{name}-{part}"] = overview
        for stem, picture in shown.items():
            save_picture(run, run.samples / f"{stem}.png", picture)
            if board is not None:
                board.picture(stem.replace(f"-{step:07d}-", "-").removeprefix("step-"), picture, step)


def evaluate(model: Model, config: Config, data: Data, quiet: bool = False, ranks: Ranks = ALONE) -> dict[str, float]:
    """The figures of a model, on samples drawn from z_T.

    For each modality beside the anchor: joint_* (does it agree with the image generated with it, by the data
    set's judge; drawn as config.sample.first says), conditional_* (does the image generated from it show it, by the
    judge) and recovered_* (is it what goes with a held-out real image). The Frechet distance of the samples to the
    real data, and their precision and recall, beside those of one half of the real data to the other. The bound on
    held-out data (`mmfast.likelihood.bound`), with the posterior's variance and with those fitted to training data; and
    x0_error.T, the mean squared error of the predicted z_0 at timesteps T. ranks share out the draws, the features and
    the bound; all have the figures.
    """
    anchor, count, spec = model.anchor_name, config.evaluate.samples, config.evaluate
    # First what may be missing: nothing is drawn in vain.
    check_code("evaluate.features", spec.features)
    features = extractor(spec.features, spec.features_weights or None)
    if features.name != "pixels" and not model.anchor.bounded:
        raise MmfastError(
            f"evaluate.features is {spec.features!r}, a network that sees images; the anchor is a {model.anchor.kind}, "
            "so it should be pixels"
        )
    lpips = LPIPS(spec.lpips, spec.lpips_weights or None) if spec.lpips else None
    if lpips is not None and not any(part.derived for part in model.parts.values()):
        raise MmfastError(f"evaluate.lpips is {spec.lpips!r}, but no modality hides parts of an image; leave it out")
    with ranks.in_turn():
        judges = data.judges()
    truth = held_out(data.test, count, model)
    metrics: dict[str, float] = {"samples": float(count)}

    def draw(given: str, seed: int) -> dict[str, Tensor]:
        what = {given: truth.data[given]} if given else {}
        text = f"evaluating, given {given}" if given else "evaluating, joint"
        how: dict[str, Any] = {"progress": False if quiet else text, "seed": config.seed + seed, "ranks": ranks}
        drawn = generate(model, config, count, what, **how)
        return {name: x.cpu() for name, x in drawn.items()}

    joint = draw("", 1)
    recovered = draw(anchor, 2) if model.names else {}
    for k, name in enumerate(model.names):
        part = model.part(name)
        if part.derived:
            # It follows from the image, so there is one question: what is made of the image when it is given.
            restored = draw(name, 3 + k)[anchor]
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
        metrics[f"{name}.recovered_{part.metric}"] = part.score(recovered[name], truth.data[name])
    metrics |= distances(joint[anchor], data, anchor, features, ranks=ranks, z0=to_z0(model))
    for name in model.parts:
        metrics |= row_distances(model.part(name), name, joint[name], data)
    metrics |= data.baselines()
    batch = held_out(data.test, min(count, len(data.test)), model)
    return metrics | likelihood(model, config, data, batch, ranks)


def likelihood(model: Model, config: Config, data: Data, batch: Batch, ranks: Ranks = ALONE) -> dict[str, float]:
    """The bound on a held-out batch, its reverse variances fitted to training data; and x0_error against t.

    Without the fitted ones where no training example has all of the model's modalities. Some models have no bound.
    """
    size, seed = config.sample.batch_size, config.seed
    times = times_by_snr(model.schedule, CURVE)
    of_times = x0_error(model, batch, times, seed, size, ranks).tolist()
    errors = {f"x0_error.{t}": x for t, x in zip(times, of_times, strict=True)}
    if model.without_bound:
        return errors
    try:
        seen = held_out(Shuffled(data.train), min(FITTED_TO, len(data.train)), model)
    except MmfastError:
        reverses = {}
    else:
        reverses = fit(model, seen, seed=seed, batch_size=size, ranks=ranks)
    return bound(model, batch, config.evaluate.bound_steps, seed, size, reverses, ranks) | errors


class Shuffled:
    """Examples in an order of chance, always the same: neighbours in a data set are often kin."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.examples.__getitems__(self.order[list(indices)].tolist())


def to_z0(model: Model) -> Callable[[Tensor], Tensor]:
    """The anchor's z_0, of x on the host."""
    device = model.schedule.alpha_bar.device
    return lambda x: model.anchor.to_z0(x.to(device)).cpu()


def row_distances(part: Modality, name: str, x: Tensor, data: Data, most: int = 10_000) -> dict[str, float]:
    """`Modality.distances` of samples to one half of the real data, beside those of the other half to it."""
    if not part.distances(x, x):
        return {}
    real = torch.cat([_present(examples, name, most) for examples in (data.train, data.test)])
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    half = len(real) // 2
    count = min(half, len(x))
    if not count:
        return {}
    these = {"samples": x[:count], "real_halves": real[half : half + count]}
    found = {who: part.distances(rows, real[:half]) for who, rows in these.items()}
    return {f"{name}.{key}.{who}": value for who, figures in found.items() for key, value in figures.items()}


def _present(examples: Examples, name: str, most: int) -> Tensor:
    """x of the examples that have it, at most so many."""
    batch = examples.__getitems__(range(min(len(examples), most)))
    return batch.data[name][batch.present[name]] if name in batch.present else batch.data[name]


def distances(
    images: Tensor,
    data: Data,
    anchor: str,
    features: Extractor,
    most: int = 10_000,
    ranks: Ranks = ALONE,
    z0: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, float]:
    """Frechet distance, precision and recall over `features`: samples against real images, and two halves of these.

    The real images are those of the training and the test set, at most `most` of each, in two halves: the first is
    compared with the samples, and with as many images of the second, since all three depend on the numbers. Precision
    and recall take as many images of the first half too. Distances over anything but pixels carry the features' name.
    z0: what an anchor that is no image is compared as, [B, C, H, W].
    """
    whole = lambda x: features(z0(x))  # noqa: E731
    return against(real_features(data, anchor, whole, most, ranks), images, whole, features.name, ranks)


# Anchors x [B, ...] -> features [B, d].
Features = Callable[[Tensor], Tensor]


def real_features(data: Data, anchor: str, features: Features, most: int = 10_000, ranks: Ranks = ALONE) -> Tensor:
    """The features of the real images of both sets, at most `most` of each, [n, d] in a shuffled order."""
    chunks = [
        (part, rows) for part in (data.train, data.test) for rows in torch.arange(min(len(part), most)).split(256)
    ]

    def of_real(chunk: tuple[Examples, Tensor]) -> Tensor:
        part, rows = chunk
        return features(part.__getitems__(rows.tolist()).data[anchor])

    real = torch.cat(ranks.map(of_real, chunks))
    # The halves are shuffled: neighbours in a data set are often kin.
    return real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]


def against(real: Tensor, images: Tensor, features: Features, named: str, ranks: Ranks = ALONE) -> dict[str, float]:
    """The figures of `distances`; real: of `real_features`; named: the features' name."""
    share = ranks.at_most(len(images), len(images))
    half, fake = len(real) // 2, torch.cat(ranks.map(features, images.split(share)))
    name = "" if named == "pixels" else f"_{named}"
    count, found = min(half, len(fake)), {}
    if count < 2:
        return {}
    one, other = real[:half], real[half : half + count]
    for who, these in (("samples", fake[:count]), ("real_halves", other)):
        found[f"frechet{name}.{who}"] = frechet_distance(these, one)
        if count > NEIGHBOURS:
            measured = precision_recall(one[:count], these, NEIGHBOURS)
            found |= {f"precision{name}.{who}": measured.precision, f"recall{name}.{who}": measured.recall}
    return found


def evaluate_run(
    run: Run, model: Model, config: Config, data: Data, quiet: bool = False, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Evaluate a run's averaged weights and write RUN/metrics.json."""
    metrics = evaluate(model, config, data, quiet, ranks)
    if ranks.first:
        run.guard(lambda: write_text(run.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n"))
    return metrics


def table(metrics: dict[str, float]) -> str:
    """The figures as lines of text."""
    width = max(len(name) for name in metrics)
    return "\n".join(f"{name:<{width}}  {value:.4g}" for name, value in metrics.items())
