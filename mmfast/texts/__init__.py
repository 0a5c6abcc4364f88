"""Text encoders, which turn texts into vectors, similar texts into similar vectors.

An encoder is a function of a list of texts that returns float32 [n, dim]. ENCODERS has the package's own by name. A
config may also name another as "module:function", where the function is the encoder itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmfast.errors import MmfastError, unknown
from mmfast.texts.minilm import load as _minilm
from mmfast.trust import imported

Encoder = Callable[[list[str]], Tensor]
DIM = 384


def ngrams(texts: Sequence[str]) -> Tensor:
    """Hash words and their letter trigrams: float32 [n, 384], of unit length. Captures spelling, not meaning.

    Each feature adds or subtracts 1 at one place; its sha256 determines the place and the sign.
    """
    found = torch.zeros(len(texts), DIM)
    for row, text in zip(found, texts, strict=True):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        for feature in [*words, *(f" {w} "[i : i + 3] for w in words for i in range(len(w)))]:
            digest = hashlib.sha256(feature.encode()).digest()
            row[int.from_bytes(digest[:4], "big") % DIM] += 1.0 if digest[4] & 1 else -1.0
    return torch.nn.functional.normalize(found, dim=1)


# By name: functions that make the encoder. They raise MmfastError if a package is not installed.
ENCODERS: dict[str, Callable[[], Encoder]] = {"minilm": _minilm, "ngrams": lambda: ngrams}


@functools.cache
def encoder(name: str, key: str = "text_encoder") -> Encoder:
    """An encoder by name, or "module:function". Raises MmfastError, naming it `key`, if it is not available."""
    if ":" not in name:
        if name not in ENCODERS:
            raise unknown(key, name, [*ENCODERS, "module:function"])
        return ENCODERS[name]()
    found: Encoder = imported(key, name)
    if not callable(found):
        raise MmfastError(f"{key} {name!r} is a {type(found).__name__}; it should be a function of a list of texts")
    return found


@torch.no_grad()
def encode(name: str, texts: Sequence[str], dim: int, key: str = "text_encoder") -> Tensor:
    """Encode texts as float32 [n, dim]. Raises MmfastError if the encoder returns anything else."""
    found = encoder(name, key)(list(texts))
    if not isinstance(found, Tensor):
        found = torch.as_tensor(found)
    if found.shape != (len(texts), dim) or not bool(torch.isfinite(found).all()):
        raise MmfastError(
            f"{key} {name} gives {list(found.shape)} for {len(texts)} texts; it should be [{len(texts)}, {dim}] of "
            "finite numbers, as dim says"
        )
    return found.detach().float().cpu()
