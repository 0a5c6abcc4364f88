"""The kinds of inputs by name."""

import importlib
from pathlib import Path

from .pool import Kind

MODULES = {"ops": "Ops", "config": "Configs", "checkpoint": "Checkpoints", "command": "Commands", "data": "DataFolders"}


def prepared(name: str, folder: Path) -> Kind:
    """A kind, with what its inputs are made of in a new folder below `folder`."""
    import torch

    torch.set_num_threads(1)  # forked children could use no more
    kind = getattr(importlib.import_module(f".{name}", __package__), MODULES[name])()
    (folder / "base").mkdir()
    kind.prepare(folder / "base")
    return kind
