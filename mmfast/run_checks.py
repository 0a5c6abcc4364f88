"""Whether a folder can be that of a run with a given config. Nothing in it is changed."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from mmfast import config as configs
from mmfast.config import Config
from mmfast.config_source import LONGEST
from mmfast.errors import MmfastError
from mmfast.files import is_temporary


def check_size(text: str) -> None:
    """Raise MmfastError for the text of a config that could not be read again."""
    if (size := len(text.encode(errors="surrogateescape"))) > LONGEST:
        raise MmfastError(
            f"the config, with its names and captions, has {size:,} bytes; a run's may have {LONGEST:,}: name fewer "
            "classes or captions"
        )


def make_folder(folder: Path) -> None:
    """Make the folder of a run if it does not exist. Raises MmfastError if that, or writing to it, is impossible."""
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        raise MmfastError(
            f"--out {os.fspath(folder)!r} is not UTF-8, so no weights could be read from there; choose another folder"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.stat()
    except OSError as error:
        raise MmfastError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MmfastError(f"--out {folder} cannot be written to; choose another folder")


def check_empty(folder: Path, own: Container[str]) -> None:
    """Raise MmfastError if the folder has files other than those named in `own` and those that a killed run left."""
    others = sorted(file.name for file in folder.iterdir() if file.name not in own and not is_temporary(file))
    if others:
        raise MmfastError(
            f"--out {folder} holds files that are not a run's ({', '.join(others[:3])}); choose a new folder"
        )


def changes(folder: Path, before: Config, config: Config, recorded: bool) -> dict[str, str]:
    """The options that differ from those of the run in the folder, as "old -> new".

    recorded: whether the run's data is on record, so that the places of data may differ. Raises MmfastError if the run
    cannot be resumed with these options.
    """
    changed = configs.changes(before, config)
    places = configs.places(config) if recorded else ()
    fixed = [f"{key} {changed[key]}" for key in configs.fixed(changed, places)]
    if fixed:
        raise MmfastError(
            f"--out {folder} holds a run with another config ({'; '.join(fixed[:4])}"
            f"{'; ...' if len(fixed) > 4 else ''}); nothing was changed: choose another --out, or repeat the command "
            "that made the run to resume it"
        )
    if config.train.steps < before.train.steps:
        raise MmfastError(
            f"train.steps is {config.train.steps}; the run in --out {folder} has {before.train.steps}, and cannot get "
            "shorter: stop it with Ctrl-C, or choose another --out"
        )
    return changed
