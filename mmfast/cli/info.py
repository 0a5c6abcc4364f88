"""mmfast info."""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Sequence
from typing import Any

import torch

import mmfast
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="show backends, devices and versions",
        description="Show which backends can run here, why the others cannot, and the devices and versions.",
        allow_abbrev=False,
    )
    info.add_argument("--json", action="store_true", help="print JSON")


def machine() -> dict[str, Any]:
    """The versions and devices of this machine by name, as strings, numbers and lists of strings."""
    return {
        "mmfast": mmfast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
    }


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.ops import backends

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same
        serves = {device: _serves(device) for device in ("cpu", "cuda")}
    found = machine() | {"backends": backends.report(), "serves": serves}
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if name not in ("backends", "serves"):
            print(f"{name:<9} {', '.join(value) if isinstance(value, list) else value}")
    print("backends")
    for name, backend in found["backends"].items():
        print(f"  {name:<10} {'yes' if backend['available'] else 'no ':<4} {backend['detail']}")
    print("in use    " + ", ".join(f"{device} tensors: {name}" for device, name in found["serves"].items()))
    return 0


def _serves(device: str) -> str:
    from mmfast.ops import backends

    try:
        return backends.choose(device).name
    except MmfastError as error:
        return f"none ({error})"
