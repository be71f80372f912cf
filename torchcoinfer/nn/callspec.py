"""How a model is called and what it returns, without the model: flat tensors on one side, its own
structure on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError


@dataclass(frozen=True)
class InputSpec:
    """A flat tensor input. ``shape`` holds an int where the size is fixed, a symbol's name where it is
    not.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str  # "float32", "int64", ...


@dataclass(frozen=True)
class CallSpec:
    """The calling convention of a traced model.

    Attributes:
        positional: names of the parameters of ``forward`` that may be passed by position, in order.
        in_spec: pytree of ``(args, kwargs)`` as traced.
        in_leaves: per leaf of ``in_spec``, an ``InputSpec``, or the constant (None, bool, int, str) it was
            traced with.
        out_spec: pytree of the model's output.
        out_leaves: per leaf of ``out_spec``, the position among the flat output tensors, or ``Constant``.
    """

    positional: tuple[str, ...]
    in_spec: pytree.TreeSpec
    in_leaves: tuple[InputSpec | Constant, ...]
    out_spec: pytree.TreeSpec
    out_leaves: tuple[int | Constant, ...]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(leaf for leaf in self.in_leaves if isinstance(leaf, InputSpec))

    def flatten_inputs(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The model's own arguments as flat tensors, in the order of ``inputs``.

        Raises:
            ArgumentError: arguments of another structure, constant, dtype or fixed size than traced.
        """
        args, kwargs = self._as_traced(args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            raise ArgumentError(
                "the model is called with other arguments than it was traced with",
                got=_describe(args, kwargs),
                expected=", ".join(spec.name for spec in self.inputs),
                remedy="pass the same arguments as in example_inputs, or trace with these as example_inputs",
            )
        sizes: dict[str, tuple[int, str]] = {}
        flat = []
        for leaf, expected in zip(leaves, self.in_leaves):
            if isinstance(expected, InputSpec):
                _check_tensor(leaf, expected, sizes)
                flat.append(leaf)
            elif type(leaf) is not type(expected.value) or leaf != expected.value:
                raise ArgumentError(
                    "an argument that is not a tensor was fixed when the model was traced",
                    got=repr(leaf), expected=repr(expected.value),
                    remedy="pass the traced value, or trace with this one in example_inputs",
                )  # fmt: skip
        return flat

    def unflatten_outputs(self, flat: Sequence[Any]) -> Any:
        """The model's own output structure from its flat output tensors."""
        leaves = [leaf.value if isinstance(leaf, Constant) else flat[leaf] for leaf in self.out_leaves]
        return pytree.tree_unflatten(leaves, self.out_spec)

    def _as_traced(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Moves arguments between positions and keywords, so that either way of passing them is
        understood.
        """
        args_spec, kwargs_spec = self.in_spec.children()
        count, keys = args_spec.num_children, list(kwargs_spec.context)
        given = dict(kwargs)
        head, rest = list(args[:count]), args[count:]
        for name in self.positional[len(head) : count]:
            if name in given:
                head.append(given.pop(name))
        for name, value in zip(self.positional[count:], rest):
            if name not in given:
                given[name] = value
        if len(rest) > len(self.positional[count:]):
            head += rest
        ordered = {key: given.pop(key) for key in keys if key in given}
        ordered.update((key, value) for key, value in given.items() if value is not None)
        return tuple(head), ordered


@dataclass(frozen=True)
class Constant:
    """A leaf that is no tensor: fixed when the model was traced."""

    value: Any


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensor(leaf: Any, expected: InputSpec, sizes: dict[str, tuple[int, str]]) -> None:
    """Raises unless ``leaf`` fits; ``sizes`` remembers what each symbol was, and where it was seen first."""
    if not isinstance(leaf, Tensor):
        raise ArgumentError(f"input {expected.name!r} is not a tensor", got=repr(type(leaf).__name__))
    shown = f"{dtype_name(leaf.dtype)} {tuple(leaf.shape)}"
    wanted = f"{expected.dtype} ({', '.join(str(size) for size in expected.shape)})"
    if dtype_name(leaf.dtype) != expected.dtype:
        raise ArgumentError(
            f"input {expected.name!r} has another dtype than traced", got=shown, expected=wanted,
            remedy=f"convert it: {expected.name}.to(torch.{expected.dtype})",
        )  # fmt: skip
    fits = leaf.dim() == len(expected.shape)
    for size, fixed in zip(leaf.shape, expected.shape):
        if isinstance(fixed, str):
            fits = fits and sizes.setdefault(fixed, (size, expected.name))[0] == size
        else:
            fits = fits and size == fixed
    if not fits:
        seen = {symbol: f"{size} in {name!r}" for symbol, (size, name) in sizes.items()}
        raise ArgumentError(
            f"input {expected.name!r} has another shape than traced", got=shown,
            expected=wanted + (f" with {seen}" if seen else ""),
            remedy="pass that shape, or trace with dynamic_shapes that leave this dim free",
        )  # fmt: skip


def _describe(args: tuple, kwargs: Mapping[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{dtype_name(value.dtype)} {tuple(value.shape)}"
        return type(value).__name__

    return ", ".join([*map(one, args), *(f"{key}={one(value)}" for key, value in kwargs.items())])
