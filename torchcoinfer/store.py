"""A compressed and divided model as a folder: read back without the model's code, the tracer or the solver.

The folder::

    manifest.json        version, and bytes and SHA-256 of every other file
    plan.json            the Plan
    details.json         what the report needs beside it
    halves.json          calling convention, what crosses, both fx graphs (nn/graphcode.py)
    weights.safetensors  every stored tensor once, also those that both halves or several layers read

Nothing is unpickled and no code is read: graphs are JSON that can name only registered ops of known
namespaces, weights are safetensors. The manifest finds truncated, mixed-up and changed files; it is no
signature. ``.pt2`` files are not part of the folder: they would hold the weights again, and
``torch.export.load`` (torch 2.14) falls back to unrestricted unpickling (``weights_only=False``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from torchcoinfer import ops  # noqa: F401  registers torch.ops.torchcoinfer
from torchcoinfer.errors import ArgumentError, FormatError
from torchcoinfer.nn.callspec import CallSpec, Constant, InputSpec
from torchcoinfer.nn.graphcode import decode_graph, encode_graph
from torchcoinfer.nn.halves import Crossing, DeviceHalf, Half, ServerHalf, stored_tensors
from torchcoinfer.nn.structure import decode_structure, encode_structure
from torchcoinfer.theory.plan import Plan

VERSION = 1
_FILES = ("plan.json", "details.json", "halves.json", "weights.safetensors")


@dataclass(frozen=True)
class Saved:
    """What :func:`load` reads."""

    plan: Plan
    device: DeviceHalf
    server: ServerHalf
    details: dict[str, Any]


def save(
    path: str | Path,
    *,
    plan: Plan,
    device: DeviceHalf,
    server: ServerHalf,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder ``path``; it appears when it is complete, in place of an earlier one.

    Raises:
        FormatError: ``path`` holds something else, or a half holds what the format has no name for.
    """
    path = _place(path)
    if path.is_symlink():  # the folder that it names is replaced, not the link
        path = path.resolve()
    if path.exists() and not (path / "manifest.json").exists() and (path.is_file() or any(path.iterdir())):
        raise FormatError(
            "the place to save to holds something else", got=str(path),
            expected="a new or empty folder, or one that was saved before", remedy="choose another path",
        )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        pool = _TensorPool()
        halves = {
            "call": _encode_call(device.call),
            "crossing": [vars(tensor) for tensor in device.crossing],
            "sample_sizes": device.sample_sizes,
            "trace_sizes": device.trace_sizes,
            "device": _encode_half(device, pool),
            "server": _encode_half(server, pool),
        }
        (scratch / "plan.json").write_text(plan.to_json())
        (scratch / "details.json").write_text(_json(dict(details or {}), "details"))
        (scratch / "halves.json").write_text(_json(halves, "halves"))
        save_file(pool.tensors, scratch / "weights.safetensors")
        files = {name: _fingerprint(scratch / name) for name in _FILES}
        (scratch / "manifest.json").write_text(_json({"version": VERSION, "files": files}, "manifest"))
        _replace_folder(scratch, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def load(path: str | Path) -> Saved:
    """Read what :func:`save` wrote. Every file is checked against the manifest before any of it is used.

    Model outputs of transformers come back as such where transformers is installed, else as dicts.

    Raises:
        FormatError: no such folder, another version, or a file missing, truncated or changed.
    """
    path = _place(path)
    _check_manifest(path)
    halves = _read_json(path / "halves.json")
    plan = Plan.from_json((path / "plan.json").read_bytes())
    try:
        tensors = load_file(path / "weights.safetensors")
        call = _decode_call(halves["call"])
        crossing = tuple(Crossing(**{**row, "shape": tuple(row["shape"])}) for row in halves["crossing"])
        common = (call, crossing, halves["sample_sizes"], halves["trace_sizes"])
        device = DeviceHalf(_decode_half(halves["device"], tensors, "Device"), *common)
        server = ServerHalf(_decode_half(halves["server"], tensors, "Server"), *common)
    except (KeyError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        if isinstance(error, FormatError):
            raise
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    return Saved(plan, device, server, _read_json(path / "details.json"))


class _TensorPool:
    """Tensors by name, each memory once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._name_of: dict[tuple, str] = {}

    def add(self, name: str, tensor: Tensor) -> str:
        """The name under which the tensor is stored."""
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in self._name_of:
            return self._name_of[place]
        if name in self.tensors:
            if _same(self.tensors[name], tensor):
                return name
            name = f"server:{name}"  # one half was changed after the split
        # safetensors refuses views of larger memory
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        self.tensors[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        self._name_of[place] = name
        return name


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())


def _encode_half(half: Half, pool: _TensorPool) -> dict[str, Any]:
    stored = {name: pool.add(name, tensor) for name, tensor in stored_tensors(half.graph_module).items()}
    return {"graph": encode_graph(half.graph_module.graph), "tensors": stored}


def _decode_half(data: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> torch.fx.GraphModule:
    return decode_graph(data["graph"], {path: tensors[key] for path, key in data["tensors"].items()}, name)


def _encode_call(call: CallSpec) -> dict[str, Any]:
    return {
        "positional": list(call.positional),
        "in_structure": encode_structure(call.in_spec),
        "in_leaves": [vars(leaf) for leaf in call.in_leaves],
        "out_structure": encode_structure(call.out_spec),
        "out_leaves": [leaf if isinstance(leaf, int) else vars(leaf) for leaf in call.out_leaves],
    }


def _decode_call(data: Mapping[str, Any]) -> CallSpec:
    def leaf(row: Mapping[str, Any]) -> InputSpec | Constant:
        return (
            Constant(row["value"])
            if "value" in row
            else InputSpec(row["name"], tuple(row["shape"]), row["dtype"])
        )

    return CallSpec(
        positional=tuple(data["positional"]),
        in_spec=decode_structure(data["in_structure"]),
        in_leaves=tuple(leaf(row) for row in data["in_leaves"]),
        out_spec=decode_structure(data["out_structure"]),
        out_leaves=tuple(
            row if isinstance(row, int) else Constant(row["value"]) for row in data["out_leaves"]
        ),
    )


def _json(data: Any, what: str) -> str:
    try:
        return json.dumps(data, indent=1, allow_nan=what == "details") + "\n"
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"{what} cannot be saved as JSON", got=str(error), expected="numbers, strings, lists and mappings"
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_manifest(path: Path) -> None:
    manifest = _read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        version = manifest.get("version") if isinstance(manifest, dict) else None
        raise FormatError("a saved model has another version", got=version, expected=str(VERSION))
    listed = manifest.get("files")
    for name in _FILES:
        expected = listed.get(name) if isinstance(listed, dict) else None
        if not (path / name).is_file():
            raise _unreadable(path / name, "no such file")
        found = _fingerprint(path / name)
        if found != expected:
            raise FormatError(
                f"the file {name!r} of a saved model is not the one that was saved", got=found,
                expected=str(expected),
                remedy="copy the whole folder again, or save again",
            )  # fmt: skip


def _place(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError("a saved model's place is no path", got=repr(path), expected="a str or a Path")
    return Path(path)


def _unwritable(path: Path, error: OSError) -> FormatError:
    return FormatError(
        f"a model cannot be saved: {path}", got=f"{type(error).__name__}: {error}",
        expected="a folder that can be made or replaced", remedy="choose another path, or allow writing",
    )  # fmt: skip


def _unreadable(path: Path, problem: str) -> FormatError:
    return FormatError(
        f"a saved model cannot be read: {path}", got=problem, expected="a folder that Result.save wrote",
        remedy="check the path; copy the whole folder again, or save again",
    )  # fmt: skip


def _replace_folder(scratch: Path, path: Path) -> None:
    """``os.replace`` takes no full folder as target: the earlier one steps aside first."""
    scratch.chmod(0o755)
    if not path.exists():
        os.replace(scratch, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        os.replace(path, aside / "earlier")
        os.replace(scratch, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
