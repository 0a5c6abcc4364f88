"""A file of tensors that knows it is whole: any byte that changes is noticed, or changes nothing."""

import json
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from mmfast.errors import MmfastError
from mmfast.files import LONGEST_HEADER, load_into, load_tensors, save_tensors

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0]).bfloat16(),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
}
METADATA = {"step": 3, "name": "größer"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


def same(found):
    tensors, metadata = found
    return (
        metadata == METADATA
        and set(tensors) == set(TENSORS)
        and all(x.dtype == TENSORS[n].dtype and torch.equal(x, TENSORS[n]) for n, x in tensors.items())
    )


def split(path):
    """The header and the bytes of the tensors, by the format's definition."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damaged(path):
    """The error is one line that names the file."""
    with pytest.raises(MmfastError) as error:
        load_tensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_what_was_saved_is_loaded(file):
    assert same(load_tensors(file))


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_bit_of_a_file_counts(file, bits):
    """Or its change is none: a blank of the header that is another blank. One bit of each byte, or all."""
    whole, unnoticed = file.read_bytes(), []
    for at in range(len(whole)):
        for bit in [(at + k) % 8 for k in range(bits)]:
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            file.write_bytes(changed)
            try:
                found = load_tensors(file)
            except MmfastError as error:
                assert "\n" not in str(error)
                continue
            assert same(found), (at, bit)
            unnoticed.append(at)
    assert len(unnoticed) < 16, unnoticed


def test_a_file_cut_anywhere_is_refused(file):
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 5), len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "truncated" in damaged(file)
    file.write_bytes(whole + b"\0")
    damaged(file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"weight": {"dtype": "F32"', '"weight": {"dtype": "I32"'),  # the same bytes, another type
        ('"shape": [3, 4]', '"shape": [4, 3]'),
        ('"weight"', '"weighs"'),
        (r"\"step\": 3", r"\"step\": 4"),
        ('"digest"', '"eigest"'),
    ],
)
def test_what_the_header_says_of_the_bytes_is_in_the_digest(file, old, new):
    header, data = split(file)
    join(file, header, data)
    assert same(load_tensors(file))  # the digest is of the content, not of how the header is written
    text = json.dumps(header)
    assert text.count(old) == 1
    join(file, json.loads(text.replace(old, new)), data)
    assert re.search(r"x\.safetensors is truncated or damaged \(the digest of its content is \w{12}; it should be ",
                     damaged(file))  # fmt: skip


def test_tensors_that_change_places_are_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3), "b": torch.ones(3)}, {})
    header, data = split(path)
    header["a"], header["b"] = header["b"], header["a"]
    join(path, header, data)
    damaged(path)


def test_a_file_without_a_digest_loads(file):
    """As every version before wrote it."""
    save_file(TENSORS, file, {"mmfast": json.dumps(METADATA)})
    assert same(load_tensors(file))


def test_a_header_is_not_read_before_its_size_is_known_to_be_possible(file, monkeypatch):
    from mmfast import files

    monkeypatch.setattr(files, "safe_open", lambda *args, **options: pytest.fail("the header was read"))
    large, small = LONGEST_HEADER + 100, 1000
    for size, length in ((large, LONGEST_HEADER + 1), (large, 2**40), (large, 2**64 - 1), (small, small - 7), (7, 0)):
        with open(file, "wb") as sparse:
            sparse.write(struct.pack("<Q", length))
            sparse.truncate(size)
        assert f"its header claims {length}" in damaged(file)


def test_a_file_with_more_bytes_than_the_memory_is_one_line(file):
    """A hole of a terabyte behind the tensors, in a process that may have a quarter of that."""
    resource = pytest.importorskip("resource")
    with file.open("r+b") as hollow:
        try:
            hollow.truncate(2**40)
        except OSError:
            pytest.skip("no file may be so large here")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**38, before[1]))
    try:
        with pytest.raises(MmfastError) as found:
            load_tensors(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert str(found.value) == f"{file} cannot be read: the memory has no room for its {2**40:,} bytes"


@pytest.mark.parametrize("metadata", ["[" * 100_000, "7", "[]", '"step"', "{", "null", "1" * 5000])
def test_metadata_that_are_none_are_refused(file, metadata):
    save_file(TENSORS, file, {"mmfast": metadata})
    damaged(file)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    assert "cannot be read: Is a directory" in damaged(tmp_path)
    assert "does not exist" in damaged(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "bias is missing"),
        ({"bies": torch.zeros(2)}, "bies does not belong there"),
        ({"weight": torch.zeros(3, 2)}, r"weight is float32 \[3, 2\]; it should be float32 \[2, 3\]"),
        ({"weight": torch.zeros(2, 3).int()}, r"weight is int32 \[2, 3\]; it should be float32 \[2, 3\]"),
        ({"bias": torch.tensor([0, float("nan")])}, "bias holds NaN or infinity"),
        ({"bias": torch.tensor([0, -float("inf")])}, "bias holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(tmp_path, change, message):
    module = torch.nn.Linear(3, 2)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2), **change}
    with pytest.raises(MmfastError, match=f"x.safetensors does not fit the model of config.yaml: {message}"):
        load_into(module, {n: x for n, x in tensors.items() if x is not None}, tmp_path / "x.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
