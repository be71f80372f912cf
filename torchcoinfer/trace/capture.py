"""nn.Module -> ExportedProgram: the only call of ``torch.export.export`` on a user's model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError, TraceError
from torchcoinfer.models import default_dynamic_shapes

CURES = (
    ("GuardOnDataDependent", "the control flow depends on values of a tensor: use torch.where or torch.cond"),
    ("data-dependent", "the control flow depends on values of a tensor: use torch.where or torch.cond"),
    ("DynamicCache", "pass use_cache=False, or set model.config.use_cache = False"),
    ("past_key_values", "pass use_cache=False, or set model.config.use_cache = False"),
    ("Unsupported", "an op or Python feature that torch.export does not know: rewrite it with torch ops"),
    ("unexpected keyword", "example_inputs do not fit forward(): pass a dict of its own argument names"),
    ("missing", "example_inputs do not fit forward(): pass every argument that it requires"),
    ("reduction dim", "example_inputs have shapes that the model cannot take: check sizes and dtypes"),
    ("shape", "example_inputs have shapes that the model cannot take: check sizes and dtypes"),
    ("size", "example_inputs have shapes that the model cannot take: check sizes and dtypes"),
    ("expected scalar type", "example_inputs have another dtype than the model computes with"),
    ("assigned during export", "register the tensors that forward() assigns to self as buffers"),
)
USUAL_CURES = (
    "the usual cures: data-dependent control flow -> torch.where; caches -> use_cache=False; "
    "tensors assigned to self in forward -> buffers; check the shapes and dtypes of example_inputs; "
    "torch.export.export(model, ...) shows the whole error"
)


def split_arguments(example_inputs: tuple | Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """``(args, kwargs)`` of one call.

    Raises:
        ArgumentError: neither a tuple nor a mapping, or no tensor in it.
    """
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args, kwargs = tuple(example_inputs), {}
    elif isinstance(example_inputs, Tensor):
        args, kwargs = (example_inputs,), {}
    else:
        raise ArgumentError(
            "example_inputs cannot be read", got=type(example_inputs).__name__,
            expected="a tuple (tensor, ...) or a dict {argument name: tensor}",
            remedy="pass the arguments of one call of the model",
        )  # fmt: skip
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ArgumentError(
            "example_inputs hold no tensor", got=repr(example_inputs), expected="at least one tensor",
            remedy="pass the arguments of one call of the model",
        )  # fmt: skip
    return args, kwargs


def structure_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares every parameter, buffer and tensor attribute with ``model``.

    Tracing runs ``forward``, which may set attributes and needs eval mode; the user's model must see neither.
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        shared.update((id(value), value) for value in vars(module).values() if isinstance(value, Tensor))
    try:
        return copy.deepcopy(model, shared).eval()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TraceError(
            "the model's structure cannot be copied", got=f"{type(error).__name__}: {error}",
            remedy="remove what copy.deepcopy refuses (locks, open files, tensors with a history)",
        ) from error  # fmt: skip


def positional_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of ``forward`` that may be passed by position, in order."""
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)


def dynamic_dims(
    model: nn.Module, args: tuple, kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> list[tuple[int, ...]]:
    """Per leaf of ``(args, kwargs)``, the dims that ``dynamic_shapes`` leaves free."""
    if isinstance(dynamic_shapes, Mapping):
        names = (*positional_names(model)[: len(args)], *kwargs)
        specs: list[Any] = [dynamic_shapes.get(name) for name in names]
    elif not isinstance(dynamic_shapes, (tuple, list, type(None))) or (
        len(dynamic_shapes or ()) > len(args) + len(kwargs)
    ):
        raise ArgumentError(
            "dynamic_shapes does not match the inputs", got=repr(dynamic_shapes),
            expected=f"one entry for each of the {len(args) + len(kwargs)} inputs, or a dict by name",
            remedy="write it as for torch.export, or leave it out",
        )  # fmt: skip
    else:
        listed = list(dynamic_shapes or ())
        specs = listed + [None] * (len(args) + len(kwargs) - len(listed))
    found: list[tuple[int, ...]] = []
    for value, spec in zip((*args, *kwargs.values()), specs):
        _collect(value, spec, found)
    return found


def _collect(value: Any, spec: Any, found: list[tuple[int, ...]]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, spec[key] if spec else None, found)
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            _collect(item, spec[i] if spec else None, found)
    elif isinstance(value, Tensor) and spec:
        pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
        found.append(tuple(dim for dim, size in pairs if size is not None and size is not Dim.STATIC))
    else:
        found.append(())


def widen(args: tuple, kwargs: dict, free: list[tuple[int, ...]]) -> tuple[tuple, dict]:
    """Repeats free dims of size 1 to 2: torch.export treats the sizes 0 and 1 as constants."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for i, (leaf, dims) in enumerate(zip(leaves, free)):
        for dim in dims:
            if leaf.dim() > dim and leaf.shape[dim] == 1:
                leaves[i] = leaf = leaf.repeat_interleave(2, dim)
    return pytree.tree_unflatten(leaves, spec)


def export(model: nn.Module, args: tuple, kwargs: dict, dynamic_shapes: Any) -> ExportedProgram:
    """Exports an eval-mode model (non-strict, training IR: aten ops as the model calls them).

    Dims that cannot be free become static: first as given, then with ``Dim.AUTO`` at the same places, then
    all static.

    Raises:
        TraceError: torch.export refuses the model even with static sizes; names the place and the usual cure.
    """
    free = dynamic_dims(model, args, kwargs, dynamic_shapes)
    args, kwargs = widen(args, kwargs, free)
    first_error: Exception | None = None
    for shapes in _attempts(args, kwargs, dynamic_shapes, free):
        try:
            # no_grad: a torch.no_grad() inside the model then leaves no trace in the graph
            with torch.no_grad(), _no_fast_attention(), warnings.catch_warnings():
                # of nn.LSTM's list of its own parameters
                warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        # whatever the model's own forward raises comes through here
        except Exception as error:  # noqa: BLE001
            first_error = first_error or error
    raise trace_error(first_error) from first_error


def _attempts(args: tuple, kwargs: dict, given: Any, free: list[tuple[int, ...]]) -> Iterator[Any]:
    yield given
    leaves, spec = pytree.tree_flatten((args, kwargs))
    auto = [{dim: Dim.AUTO for dim in dims} or None for dims in free]
    if any(auto):
        arguments, keywords = pytree.tree_unflatten(auto, spec)
        yield keywords if not args else arguments if not kwargs else None
        yield None


def default_shapes(args: tuple, kwargs: dict) -> Any:
    """Batch and sequence dims by name and place (models/); None where arguments are mixed: all static."""
    if args and kwargs:
        return None
    return default_dynamic_shapes(kwargs if kwargs else args)


@contextlib.contextmanager
def _no_fast_attention() -> Iterator[None]:
    """nn.MultiheadAttention's fused inference path is one opaque op; the plain path can be cut."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace_error(error: Exception) -> TraceError:
    """The package's error for one of torch.export's: the place in the model, the first line, the cure."""
    text = f"{type(error).__name__}: {error}".strip()
    cure = next((cure for key, cure in CURES if key.lower() in text.lower()), USUAL_CURES)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return TraceError(
        f"torch.export cannot trace the model{_place(error)}", got=" ".join(lines[:2])[:400], remedy=cure
    )


def _place(error: Exception) -> str:
    """``at file:line in function (source)``: the error's innermost frame outside torch and this package."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and "/torchcoinfer/trace/" not in frame.filename
    ]
    if not frames:
        return ""
    frame = frames[-1]
    return f" at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} in {frame.name} ({frame.line})"
