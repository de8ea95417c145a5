"""A weight file is read whole and unaltered, or not at all."""

import hashlib
import json

import numpy as np
import pytest
import torch

from mlff.errors import ModelFileError
from mlff.files import write_atomic
from mlff.tensorfile import load_tensors, save_tensors

HEADER = {"kind": "test", "list": [1, 2.5, None], "text": "Å"}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(7, 5, generator=generator),
        "b": torch.randn(11, generator=generator, dtype=torch.float64),
        "n": torch.arange(4),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, tensors, HEADER)
    return path


def resealed(content: bytes) -> bytes:
    """Give altered content a digest that fits, as an attacker would."""
    start = content.index(b'"sha256":"') + len(b'"sha256":"')
    blank = content[:start] + b"0" * 64 + content[start + 64 :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return content[:start] + digest + content[start + 64 :]


def raw(header: dict, data: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_what_is_written_is_read_back_bit_for_bit(path, tensors):
    found, header = load_tensors(path)
    assert header == HEADER
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_expected_digest_is_compared(path, tensors):
    digest = save_tensors(path, tensors, HEADER)
    load_tensors(path, digest)
    with pytest.raises(ModelFileError, match="not the file asked for"):
        load_tensors(path, "0" * 64)


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(ModelFileError, match=r"cannot read .*absent"):
        load_tensors(tmp_path / "absent")


def test_every_damage_is_a_typed_error(path):
    """Goal R5: 300 truncations, 300 bit flips, 300 zeroed blocks."""
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[: rng.integers(len(whole))] for _ in range(300)]
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        damaged.append(bytes(content))
    while len(damaged) < 900:
        start = rng.integers(len(whole))
        content = bytearray(whole)
        content[start : start + 64] = bytes(len(content[start : start + 64]))
        if bytes(content) != whole:
            damaged.append(bytes(content))
    damaged.append(whole + b"more")
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            load_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 7,
        (10**12).to_bytes(8, "little") + b"{}",
        b"\x80\x04\x95" + b"pickle" * 20,
        raw({"__metadata__": {"header": "{}"}}, b""),
        resealed(raw({"__metadata__": {"header": "[1]", "sha256": "0" * 64}}, b"")),
        resealed(raw({"__metadata__": {"header": "x", "sha256": "0" * 64}}, b"")),
        resealed(
            raw({"__metadata__": {"header": '{"a":1,"a":2}', "sha256": "0" * 64}}, b"")
        ),
        resealed(
            raw(
                {
                    "__metadata__": {
                        "header": "[" * 100_000,
                        "sha256": "0" * 64,
                    }
                },
                b"",
            )
        ),
        resealed(
            raw(
                {
                    "__metadata__": {"header": "{}", "sha256": "0" * 64},
                    "w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]},
                },
                b"\0\0\0\0",
            )
        ),
        resealed(raw({"__metadata__": [{"sha256": "0" * 64}]}, b"")),
        resealed(raw({"__metadata__": {"header": 3, "sha256": "0" * 64}}, b"")),
    ],
    ids=[
        "empty",
        "shorter than its length field",
        "header of a terabyte",
        "pickle",
        "no digest",
        "header is a list",
        "header is no JSON",
        "key twice",
        "nested too deep",
        "tensor larger than the file",
        "metadata is a list",
        "header is a number",
    ],
)
def test_hostile_files_are_refused(tmp_path, content):
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        load_tensors(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path, bad):
    path = tmp_path / "bad"
    save_tensors(path, {"w": torch.tensor([1.0, bad])}, {})
    with pytest.raises(ModelFileError, match=r"'w'.*non-finite"):
        load_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    for step in ("fsync", "replace"):

        def fail(*_, step=step):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"mlff.files.os.{step}", fail)
            with pytest.raises(OSError, match="No space left") as caught:
                write_atomic(path, b"new")
        assert str(path) in str(caught.value)
        assert path.read_bytes() == b"old"
        assert [f.name for f in tmp_path.iterdir()] == ["file"]
