"""Text encoders: what makes a vector of a text, and of texts alike vectors alike.

An encoder is a function of a list of texts that returns float32 [n, dim]. ENCODERS has those of the package by name; a
config may also name one's own, "module:function", where the function is the encoder itself.
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
    """Words and their runs of three letters, hashed: float32 [n, 384], of unit length. It knows spelling, not meaning.

    A feature adds or takes 1 at a place, both of which its sha256 says.
    """
    found = torch.zeros(len(texts), DIM)
    for row, text in zip(found, texts, strict=True):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        for feature in [*words, *(f" {w} "[i : i + 3] for w in words for i in range(len(w)))]:
            digest = hashlib.sha256(feature.encode()).digest()
            row[int.from_bytes(digest[:4], "big") % DIM] += 1.0 if digest[4] & 1 else -1.0
    return torch.nn.functional.normalize(found, dim=1)


# By name: what makes the encoder, which may raise MmfastError for what is not installed.
ENCODERS: dict[str, Callable[[], Encoder]] = {"minilm": _minilm, "ngrams": lambda: ngrams}


@functools.cache
def encoder(name: str, key: str = "text_encoder") -> Encoder:
    """An encoder by name, or "module:function". Raises MmfastError, which calls it `key`, where it cannot be had."""
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
    """float32 [n, dim] of texts. Raises MmfastError where the encoder gives anything else."""
    found = encoder(name, key)(list(texts))
    if not isinstance(found, Tensor):
        found = torch.as_tensor(found)
    if found.shape != (len(texts), dim) or not bool(torch.isfinite(found).all()):
        raise MmfastError(
            f"{key} {name} gives {list(found.shape)} for {len(texts)} texts; it should be [{len(texts)}, {dim}] of "
            "finite numbers, as dim says"
        )
    return found.detach().float().cpu()
