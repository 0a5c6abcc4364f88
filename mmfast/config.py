"""Typed configs: defaults, overridden by a YAML file (a preset or your own), overridden by the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmfast import backbones, data, modalities
from mmfast.config_sections import PLAIN, SECTIONS, Config
from mmfast.config_source import Overrides, folder_of, origin_of, overridden, read, texts_of
from mmfast.data.cache import is_cache
from mmfast.errors import MmfastError, unknown
from mmfast.options import Origin, check, leads_to, paths, typed
from mmfast.plain_yaml import dump_yaml, load_yaml
from mmfast.samplers import check_share
from mmfast.trust import permitted


def load(source: str | Path, overrides: Overrides = ()) -> Config:
    """Load a preset by name or a YAML file, with overrides such as {"train.steps": 100}, or pairs of a key and a text.

    Relative paths in a file are relative to its folder; those in overrides and presets, to the current folder. The
    config returned has absolute paths.

    Raises MmfastError, naming the key, for anything unknown, of the wrong type or out of bounds; and for a cache
    that only the config chose (`has_own_cache`).
    """
    if not isinstance(source, (str, Path)):
        raise MmfastError(
            f"source is a {type(source).__name__}; it should be a preset's name or the path of a YAML file (from_plain "
            "takes a dict)"
        )
    source = str(source)
    config = from_plain(load_yaml(read(source), source), source, overrides, folder_of(source))
    if has_own_cache(config):
        folder = config.data.cache
        raise MmfastError(
            f"data.cache is {folder!r}, which {source} names and which is not yet a cache of mmfast's; to use it, add "
            f"--data.cache {folder} once, else leave it out: then the user's cache folder is used"
        )
    return config


def load_again(file: str) -> Config:
    """Load the resolved config of a run; a cache that only the config chose is left out.

    Its paths are absolute. Paths of a run of an earlier version may be relative to the folder in which it was started.
    """
    config = from_plain(load_yaml(read(file), file), file, folder=None)
    if has_own_cache(config):
        config.data.cache = ""
    return config


def has_own_cache(config: Config) -> bool:
    """Whether the cache is a folder that the user did not give and that mmfast has not made a cache before."""
    folder = getattr(config.data, "cache", "")
    return bool(folder) and not permitted("data.cache", folder) and not is_cache(Path(folder))


def from_plain(found: Any, source: str, overrides: Overrides = (), folder: str | None = "") -> Config:
    """A config from parsed YAML, as `load` makes it. source: its name in errors; folder: as in `Origin`."""
    pairs = texts_of(overrides)
    return resolve(overridden(found, source, pairs), source, origin_of(folder, pairs))


def check_name(name: str) -> None:
    """Raise MmfastError for a modality's name that cannot name both a file and a part of the network."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict, name) or name == "training":
        raise MmfastError(
            f"modalities.{name}: {name!r} cannot be a modality's name; it should begin with a letter, contain only "
            "letters, digits, _ and -, and not be a name that torch's modules have, such as type, values or half"
        )


def resolve(raw: DictConfig, source: str = "config", origin: Origin | None = None) -> Config:
    """Give every section of a plain config the types and defaults of its kind, make paths absolute, check bounds."""
    origin = origin or Origin()
    known = [f.name for f in dataclasses.fields(Config)]
    for key in raw:
        if key not in known:
            inside = [f"{name}.{key!s}" for name in SECTIONS if hasattr(getattr(Config(), name), str(key))]
            raise unknown(f"{source}: key", key, [*known, *inside])
    config: Config = typed(Config, OmegaConf.create({name: raw[name] for name in PLAIN if name in raw}), "", origin)
    for name, section in SECTIONS.items():
        setattr(config, name, typed(section, _section(raw, name), f"{name}.", origin))  # type: ignore[arg-type]
    for key, parts, default in (("data", data, "digits"), ("backbone", backbones, "unet")):
        part = _section(raw, key)
        setattr(config, key, typed(parts.kind(str(part.get("kind", default))).Spec, part, f"{key}.", origin))
    sections = _modalities(raw)
    for name, part in sections.items():
        key = f"modalities.{name}"
        kind = modalities.kind(_kind(part, key, [*modalities.KINDS, *modalities.FAILED]))
        defaults = {} if origin.resolved else _defaults(config, sections, name, kind)
        if kind.derived and "of" in {f.name for f in dataclasses.fields(kind.Spec)}:
            defaults = {"of": config.anchor, **defaults}
        part = OmegaConf.create(_merged(defaults, part))
        config.modalities[name] = typed(kind.Spec, part, f"{key}.", origin)
    if not config.modalities:
        raise MmfastError(f"{source} has no modalities; it should name at least the anchor, {config.anchor!r}")
    if config.anchor not in config.modalities:
        if "anchor" not in raw:
            raise MmfastError(
                f"{source} has no anchor, and no modality {config.anchor!r}; it should say which modality it is, as in "
                f"`anchor: {next(iter(config.modalities))}`"
            )
        raise unknown("anchor", config.anchor, config.modalities)
    for name in config.sample.first:
        if name not in config.modalities:
            raise unknown("sample.first", name, config.modalities)
    _check_offset(config)
    _check_guidance(config)
    check(config, "")
    for name, spec in config.modalities.items():
        check(spec, f"modalities.{name}.")
        _check_times(config, name, spec)
    if config.train.low_noise.share > 0 and config.space == "shared":
        raise MmfastError("train.low_noise.share needs space=own: in shared channels nothing is seen alone")
    if config.train.clean_pass > 0 and not config.told:
        raise MmfastError(
            f"train.clean_pass is {config.train.clean_pass:g}; it should be 0 with told=false, where the network "
            "never sees an anchor without noise"
        )
    if config.evaluate.samples == 1:
        raise MmfastError("evaluate.samples is 1; it should be 0 for no evaluation, or at least 2")
    if config.train.batch_size % config.train.accumulation:
        raise MmfastError(
            f"train.accumulation is {config.train.accumulation}; it should divide train.batch_size, "
            f"{config.train.batch_size}"
        )
    if config.train.cuda_graphs and (config.train.accumulation > 1 or config.train.compile):
        # Each replay overwrites a graph's gradients, so they cannot accumulate.
        raise MmfastError("train.cuda_graphs is true; it needs train.accumulation=1 and train.compile=false")
    if config.train.shard and (config.train.cuda_graphs or config.train.compile):
        raise MmfastError("train.shard is true; it needs train.cuda_graphs=false and train.compile=false")
    if config.train.shard and config.loss.balance == "gradient_norm":
        raise MmfastError("loss.balance is gradient_norm; it needs train.shard=false, or use uncertainty")
    return config


def _modalities(raw: DictConfig) -> dict[str, DictConfig]:
    """Each modality's section of a config. Registers the kinds of installed packages if a kind is not known yet."""
    names = [*map(str, _section(raw, "modalities"))]
    for name in names:
        check_name(name)
    found = {name: _section(raw, f"modalities.{name}") for name in names}
    if any(part.get("kind") not in [*modalities.KINDS] for part in found.values()):  # looking takes milliseconds
        modalities.add_installed()
    return found


def _defaults(
    config: Config, sections: Mapping[str, DictConfig], name: str, kind: type[modalities.Modality]
) -> Mapping[str, Any]:
    """The measured options for a modality, or {} unless they apply; in shared channels a weight that these accept.

    They were measured with an image as the anchor, space=own and told=true.
    """
    if config.space == "shared" and name != config.anchor:
        return {"weight": {"kind": "bridge"}}
    of_an_image = config.anchor in sections and sections[config.anchor].get("kind") == "image"
    if config.space != "own" or not config.told or not of_an_image:
        return {}
    if name != config.anchor:
        return {} if sections[name].get("diffused") else kind.beside
    others = [part.get("kind") for n, part in sections.items() if n != name and not part.get("diffused")]
    found = modalities.anchor_defaults(known for k, known in modalities.KINDS.items() if k in others)
    shares = [key for key in found if key != "given_steps"]
    return {} if any(key in sections[name] for key in shares) else found  # the shares were tuned together


def _merged(defaults: Mapping[str, Any], part: DictConfig) -> dict[str, Any]:
    """A modality's section with the measured options that it leaves open.

    A scale of W is measured for one kind of W. Whoever names a scale means a W that leaves a trace.
    """
    merged, weight = dict(defaults) | {str(key): x for key, x in part.items()}, part.get("weight")
    if isinstance(weight, DictConfig) and "weight" in defaults:
        usual = defaults["weight"]
        if weight.get("kind", usual["kind"]) == usual["kind"] != "none":
            merged["weight"] = {**usual, **weight}
    return merged


def _check_times(config: Config, name: str, spec: Any) -> None:
    """Raise MmfastError if a modality's probabilities contradict each other, its role or the space."""
    given = config.train.given_probability if spec.given_probability is None else spec.given_probability
    total = given + spec.unknown_probability + spec.own_time_probability
    if total > 1 + 1e-9:
        raise MmfastError(
            f"modalities.{name}: its given ({given:g}), unknown ({spec.unknown_probability:g}) and own_time "
            f"({spec.own_time_probability:g}) probability add up to {total:g}; they should add up to at most 1"
        )
    if name == config.anchor and spec.unknown_probability + spec.own_time_probability > 0:
        raise MmfastError(
            f"modalities.{name} is the anchor, whose time the others' are counted from; leave out unknown_probability "
            "and own_time_probability"
        )
    if name == config.anchor and spec.diffused:
        raise MmfastError(f"modalities.{name} is the anchor, which is diffused itself; leave out diffused")
    for key in ("unknown_probability", "own_time_probability"):
        if getattr(spec, key) > 0 and config.space == "shared":
            raise MmfastError(f"modalities.{name}.{key} needs space=own: shared channels have one time")


def _check_offset(config: Config) -> None:
    """Raise MmfastError for offsets that no model of this config can have; only the model knows which leave a trace."""
    for name, share in config.sample.offset.items():
        if name not in config.modalities:
            raise unknown("sample.offset", name, config.modalities)
        if name == config.anchor:
            raise MmfastError(f"sample.offset has {name}, the anchor, from whose time the others' are counted")
        check_share(f"sample.offset.{name}", share)
    if config.sample.offset and (config.space == "shared" or not config.told):
        raise MmfastError("sample.offset needs space=own and told=true: else z_t has one time")


def _check_guidance(config: Config) -> None:
    """Raise MmfastError unless the guidance scale is a number, or a mapping from modalities to numbers."""
    scales = config.sample.guidance_scale
    for name, scale in scales.items() if isinstance(scales, dict) else [("", scales)]:
        if name and name not in config.modalities:
            raise unknown("sample.guidance_scale", name, config.modalities)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            key = f"sample.guidance_scale.{name}".rstrip(".")
            raise MmfastError(f"{key} is {scale!r}; it should be a number, at least 0")


def _section(raw: DictConfig, key: str) -> DictConfig:
    part = OmegaConf.select(raw, key)
    if part is None:
        return OmegaConf.create({})
    if not isinstance(part, DictConfig):
        raise MmfastError(f"{key} is {part!r}; it should be a mapping from names to options")
    return part


def _kind(part: DictConfig, key: str, kinds: Collection[str]) -> str:
    kind = part.get("kind")
    if kind is None:
        raise MmfastError(f"{key}.kind is missing; it should be one of {', '.join(kinds)}")
    if kind not in kinds:
        raise unknown(f"{key}.kind", kind, kinds)
    return str(kind)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, with every option."""
    return dump_yaml(dataclasses.asdict(config), allow_unicode=True)


# A longer list is shown by its length where configs are compared.
LONGEST_SHOWN = 80
# What may change when a run is resumed: how long, where and how it computes, and what it shows. What a step learns
# stays the same except for the learning rate, whose decay is that of the longer run from there on.
FREE = re.compile(
    r"train\.(steps|accumulation|device|shard|compile|cuda_graphs|workers|max_skipped|tensorboard|log_to"
    r"|(log|sample|checkpoint|keep|validate)_every)"
    r"|(sample|evaluate)\..*|modalities\.[^.]*\.(given_steps|class_counts|captions|values)"
    r"|data\.(cache|cache_gb|on_error|outside)"
)


def fixed(changed: Mapping[str, Any], places: Collection[str] = ()) -> list[str]:
    """The changed keys that a resumed run may not change. places: those of its data's paths, if the run records it."""
    return [key for key in changed if not FREE.fullmatch(key) and key not in places]


def places(config: Config) -> set[str]:
    """The keys that specify where the data is."""
    return {key for key, *_ in paths(config.data, "data.")}


def by_key(config: Config) -> dict[str, Any]:
    """Every value of a config by its key, such as "train.steps"."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, part in value.items() for k, v in flat(part, f"{prefix}{key}.").items()}
        return {prefix[:-1]: value}

    return flat(dataclasses.asdict(config))


def changes(old: Config, new: Config) -> dict[str, str]:
    """The keys in which two configs differ, each with both values as "old -> new".

    Two paths to the same place do not differ.
    """

    def led(config: Config) -> dict[str, str]:
        parts = [paths(config, ""), *(paths(spec, f"modalities.{name}.") for name, spec in config.modalities.items())]
        return {key: leads_to(getattr(owner, name)) for part in parts for key, owner, name, _ in part}

    a, b = by_key(old), by_key(new)
    x, y = a | led(old), b | led(new)
    return {key: f"{_short(a.get(key))} -> {_short(b.get(key))}" for key in {**a, **b} if x.get(key) != y.get(key)}


def _short(value: Any) -> str:
    """The value as Python writes it; a list that would be longer than a line by its length alone."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN or not isinstance(value, (list, tuple)) else f"a list of {len(value):,}"
