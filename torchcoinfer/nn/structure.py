"""Nested inputs and outputs as JSON: what a model takes and returns, without the code that defines it.

A leaf is ``"*"``; otherwise, with every child a structure again, one of ::

    {"tuple": [child, ...]}    {"list": [child, ...]}    {"dict": [[key, child], ...]}
    {"namedtuple": name, "items": [[field, child], ...]}
    {"output": "transformers.<module>.<class>", "items": [[key, child], ...]}

An output class is looked for when it is read: without transformers a dict takes its place.
"""

from __future__ import annotations

import collections
import importlib
from collections.abc import Mapping
from typing import Any

from torch.utils import _pytree as pytree

from torchcoinfer.errors import FormatError

_LEAF = "*"


def encode_structure(spec: pytree.TreeSpec) -> Any:
    """A pytree's structure as JSON-able data.

    Raises:
        FormatError: a container that is none of the above.
    """
    if spec.is_leaf():
        return _LEAF
    children = [encode_structure(child) for child in spec.children()]
    if spec.type is tuple:
        return {"tuple": children}
    if spec.type is list:
        return {"list": children}
    if pytree.is_namedtuple_class(spec.type) or spec.type is collections.namedtuple:
        kind = spec.context if isinstance(spec.context, type) else spec.type
        return {"namedtuple": kind.__name__, "items": [list(p) for p in zip(kind._fields, children)]}
    keys = spec.context[1] if spec.type is collections.defaultdict else spec.context
    if isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys):
        items = [list(pair) for pair in zip(keys, children)]
        if spec.type in (dict, collections.OrderedDict, collections.defaultdict):
            return {"dict": items}
        if issubclass(spec.type, Mapping):
            return {"output": f"{spec.type.__module__}.{spec.type.__qualname__}", "items": items}
    raise FormatError(
        "the model's inputs or outputs are of a type that cannot be saved", got=spec.type.__qualname__,
        expected="tensors in tuples, lists, dicts, namedtuples or ModelOutputs",
    )  # fmt: skip


def decode_structure(data: Any) -> pytree.TreeSpec:
    """Inverse of ``encode_structure``.

    Raises:
        FormatError: not what ``encode_structure`` writes.
    """
    try:
        return pytree.tree_flatten(_skeleton(data))[1]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            "a saved structure cannot be read", got=f"{type(error).__name__}: {error}",
            expected="what encode_structure writes", remedy="save the model again",
        ) from error  # fmt: skip


def _skeleton(data: Any) -> Any:
    """An object of the structure, 0 at every leaf."""
    if data == _LEAF:
        return 0
    if "tuple" in data:
        return tuple(_skeleton(child) for child in data["tuple"])
    if "list" in data:
        return [_skeleton(child) for child in data["list"]]
    if "dict" in data:
        return {key: _skeleton(child) for key, child in data["dict"]}
    items = {key: _skeleton(child) for key, child in data["items"]}
    if "namedtuple" in data:
        return collections.namedtuple(data["namedtuple"], list(items))(**items)
    return _output(data["output"], items)


def _output(name: str, items: dict[str, Any]) -> Any:
    """A transformers ModelOutput, or a dict where this installation has no such class."""
    module, _, leaf = name.rpartition(".")
    if module.split(".")[0] != "transformers":
        return items
    try:
        base = importlib.import_module("transformers.utils").ModelOutput
        found = getattr(importlib.import_module(module), leaf, None)
    except ImportError:
        return items
    fields = getattr(found, "__dataclass_fields__", {})
    known = isinstance(found, type) and issubclass(found, base) and set(items) <= set(fields)
    return found(**items) if known else items
