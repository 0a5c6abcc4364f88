"""Captions: one text per example, encoded as a vector by a text encoder; generated ones are the nearest in a list."""

from __future__ import annotations

import functools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image as PILImage
from torch import Tensor

from mmfast import texts
from mmfast.errors import MmfastError
from mmfast.modalities import base
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.embedding import Embedding, EmbeddingSpec
from mmfast.modalities.label import read_text
from mmfast.options import option
from mmfast.pictures import text_tile
from mmfast.trust import check_code, source_digest


@dataclass
class CaptionSpec(EmbeddingSpec):
    """float [B, dim], the vectors of texts; only their direction counts."""

    kind: str = "caption"
    dim: int = option(384, "length of the vector that the encoder makes", min=1)
    layout: str = option(
        "channels",
        "a fixed encoding puts each number in a cell of the grid, or in a channel",
        choices=("grid", "channels"),
    )
    text_encoder: str = option("minilm", "what makes the vector: minilm, ngrams (spelling only) or module:function")
    captions: list[str] = option([], "texts from which the nearest to a generated caption is chosen; empty: the data's")


class Caption(Embedding):
    kind = "caption"
    Spec: ClassVar[type[base.Spec]] = CaptionSpec
    beside: ClassVar[dict[str, Any]] = {"weight": {"kind": "none"}, "loss_weight": 0.02}
    of_anchor: ClassVar[dict[str, Any]] = {}
    extensions = (".txt",)

    def __init__(self, name: str, spec: Any, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        check_code(f"modalities.{name}.text_encoder", spec.text_encoder)
        self._given: dict[bytes, str] = {}  # the texts that were given, by their vectors

    def nearest(self, x: Tensor) -> str | None:
        """The caption in the list whose vector is nearest in direction to x [dim]; None without a list.

        For the vector of a text that was given, that text.
        """
        if (text := self._given.get(_bytes(x))) is not None:
            return text
        if not self.spec.captions:
            return None
        vectors = base.unit_rms(listed(self.spec.text_encoder, tuple(self.spec.captions), self.spec.dim))
        return self.spec.captions[int((vectors @ x.float().cpu()).argmax())]

    def plain(self, x: Tensor) -> str | np.ndarray:
        """The nearest caption, or the vector if there is no list."""
        caption = self.nearest(x)
        return x.cpu().numpy() if caption is None else caption

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        caption = self.nearest(x)
        if caption is None:
            return super().show(x, size)
        longest = max(map(len, caption.split()), default=0)  # a word is broken only if it would be tiny
        width = max(6, int(len(caption) ** 0.5 * 1.6), min(longest, 16))
        lines = textwrap.wrap(caption, width, max_lines=6)
        return text_tile("\n".join(lines), size)

    @classmethod
    def read(cls, path: Path, spec: Any) -> Tensor:
        text = read_text(path, "caption")
        if not text:
            raise MmfastError(f"{path} is empty; it should hold a caption, or be removed if there is none")
        return vector(spec.text_encoder, text, spec.dim)

    @classmethod
    def read_by(cls, spec: Any) -> str:
        module, colon, _ = spec.text_encoder.partition(":")
        if not colon:
            return ""
        check_code("modalities.NAME.text_encoder", spec.text_encoder)
        return source_digest(module)

    @classmethod
    def from_text(cls, text: str, spec: Any, where: str) -> Tensor:
        cls.check_text(text, spec, where)
        return vector(spec.text_encoder, text, spec.dim)

    @classmethod
    def check_text(cls, text: str, spec: Any, where: str) -> None:
        """Accept any text that is not empty, without encoding it."""
        if not text:
            raise MmfastError(f"{where} is empty; it should hold a caption")

    def values(self, text: str) -> list[str]:
        """The text as one value, since a caption may have commas."""
        return [text]

    def parse(self, text: str) -> Tensor:
        """A text, or the path of a .txt file that holds one."""
        if text.endswith(self.extensions):
            x, text = self.read(Path(text), self.spec), read_text(Path(text), "caption")
        else:
            x = vector(self.spec.text_encoder, text, self.spec.dim)
        self._given[_bytes(x)] = text
        return x


def _bytes(x: Tensor) -> bytes:
    return x.detach().float().cpu().numpy().tobytes()


@functools.lru_cache(maxsize=100_000)
def vector(encoder: str, text: str, dim: int) -> Tensor:
    """The vector of a text, float32 [dim]; cached, since a data set has the same texts in every epoch."""
    return texts.encode(encoder, [text], dim)[0]


@functools.lru_cache(maxsize=64)
def listed(encoder: str, captions: tuple[str, ...], dim: int) -> Tensor:
    """The vectors of a list of captions, float32 [n, dim]; cached."""
    return texts.encode(encoder, captions, dim)
