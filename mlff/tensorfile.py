"""Tensors with a JSON header in one safetensors file whose every byte is verified.

The only place that writes or reads weights. No class, function or file name is ever
resolved from a file, and nothing is unpickled. The SHA-256 stored in the file is that
of the whole file with the digest itself replaced by zeros, so that a single flipped bit
anywhere is an error.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from mlff.errors import ModelFileError
from mlff.files import write_atomic

_BLANK = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_LENGTH_BYTES = 8
_MAX_HEADER = 64 * 2**20


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]
) -> str:
    """Write tensors and a header; the old file stays whole until the new one is.

    Args:
        path: file to write or replace.
        tensors: by name; any device, any dtype that safetensors knows.
        header: anything that JSON can hold.

    Returns:
        The SHA-256 of the content, as stored.
    """
    metadata = {"header": json.dumps(header, sort_keys=True), "sha256": _BLANK}
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = _ordered(safetensors.torch.save(plain, metadata))
    digest = hashlib.sha256(content).hexdigest()
    content = content.replace(
        f'"sha256":"{_BLANK}"'.encode(), f'"sha256":"{digest}"'.encode(), 1
    )
    write_atomic(Path(path), content)
    return digest


def _ordered(content: bytes) -> bytes:
    """Sort the header of a file, so that equal content has equal bytes.

    safetensors writes the metadata in the order of a hash map, which is random.
    """
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES:end])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[end:]


def load_tensors(
    path: str | Path, expected_sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote, or raise.

    Args:
        path: the file.
        expected_sha256: refuse any other content than this.

    Returns:
        The tensors by name, on the CPU, and the header.

    Raises:
        ModelFileError: missing, empty, truncated, foreign or altered file, or a
            tensor that holds a number that is not finite.
    """
    path = Path(path)
    content = _read(path)
    header = _verified_header(path, content, expected_sha256)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file: {error}"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: tensor {name!r} holds non-finite numbers")
    return tensors, header


def check_tensors(
    path: str | Path, found: dict[str, Tensor], needed: dict[str, Tensor]
) -> None:
    """Raise unless a file holds tensors of these names, shapes and types.

    Args:
        path: of the file, to be named.
        found: its tensors.
        needed: what they are to replace.

    Raises:
        ModelFileError: naming what is missing, not expected or of another kind.
    """
    if found.keys() != needed.keys():
        missing = sorted(needed.keys() - found.keys())[:3]
        surplus = sorted(found.keys() - needed.keys())[:3]
        raise ModelFileError(
            f"{path}: tensors missing {missing}, tensors not expected {surplus}"
        )
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise ModelFileError(
                f"{path}: tensor {name!r} is {found[name].dtype} "
                f"{tuple(found[name].shape)}, needed is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def read_digest(path: str | Path) -> str:
    """Return the SHA-256 that :func:`load_tensors` compares with, verified.

    Raises:
        ModelFileError: as :func:`load_tensors`.
    """
    path = Path(path)
    content = _read(path)
    _verified_header(path, content, None)
    match = _DIGEST.search(content)
    assert match is not None  # verified
    return match.group(1).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def _verified_header(
    path: Path, content: bytes, expected: str | None
) -> dict[str, Any]:
    if len(content) < _LENGTH_BYTES:
        raise ModelFileError(f"{path} is empty or truncated ({len(content)} bytes)")
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if length > _MAX_HEADER or end > len(content):
        raise ModelFileError(f"{path} is truncated or not a safetensors file")
    match = _DIGEST.search(content, _LENGTH_BYTES, end)
    if match is None:
        raise ModelFileError(f"{path} carries no SHA-256: not written by mlff")
    stored = match.group(1).decode()
    first, last = match.span(1)
    blanked = hashlib.sha256(content[:first])
    blanked.update(_BLANK.encode())
    blanked.update(content[last:])
    if blanked.hexdigest() != stored:
        raise ModelFileError(
            f"{path} is damaged: its SHA-256 is {blanked.hexdigest()[:16]}…, the file "
            f"says {stored[:16]}…; copy it again from where it came"
        )
    if expected is not None and expected.lower() != stored:
        raise ModelFileError(
            f"{path} is not the file asked for: SHA-256 {stored}, expected {expected}"
        )
    outer = _strict_json(path, content[_LENGTH_BYTES:end])
    metadata = outer.get("__metadata__")
    inner = metadata.get("header") if isinstance(metadata, dict) else None
    if not isinstance(inner, str):
        raise ModelFileError(f"{path} has no header: not written by mlff")
    return _strict_json(path, inner.encode())


def _strict_json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ModelFileError(f"{path}: the header holds a key twice")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: the header is not a JSON object")
    return content


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors that a file holds."""
    return {
        f"optimizer/{index}/{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` returned; other tensors are left."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part(tensors, "optimizer").items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``name/``, without that."""
    start = name + "/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
