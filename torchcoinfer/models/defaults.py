"""What ``compress_and_split`` assumes unless told: inputs, dynamic sizes, judged output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from torchcoinfer.errors import ArgumentError
from torchcoinfer.models import hugging_face
from torchcoinfer.models.sentence import SentenceEmbedder

_TORCHVISION_SIZE = {"Inception3": 299}


def default_inputs(model: nn.Module) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Example inputs of batch 1 for a model whose inputs are known.

    Returns:
        keyword inputs for Hugging Face models and :class:`SentenceEmbedder`; for torchvision's
        ``(float32 [1, 3, 224, 224],)``.

    Raises:
        ArgumentError: any other model.
    """
    if isinstance(model, SentenceEmbedder) and hugging_face.is_pretrained_model(model.encoder):
        return hugging_face.example_inputs(model.encoder)
    if hugging_face.is_pretrained_model(model):
        return hugging_face.example_inputs(model)
    if type(model).__module__.startswith("torchvision.models"):
        size = _TORCHVISION_SIZE.get(type(model).__name__, 224)
        return (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)),)
    raise ArgumentError(
        "example_inputs is needed: the inputs of this model are not known",
        got=f"{type(model).__module__}.{type(model).__qualname__}",
        expected="a Hugging Face or torchvision model, or example_inputs",
        remedy="pass example_inputs=(tensor, ...) or {name: tensor, ...}, the arguments of one call",
    )


def default_dynamic_shapes(example_inputs: tuple | dict) -> Any:
    """``dynamic_shapes`` for torch.export: dim 0 of every tensor, the sequence dim of known keywords.

    ``Dim.AUTO``: a dim that the model itself fixes becomes static instead of failing the export.
    """
    if isinstance(example_inputs, Mapping):
        dims = hugging_face.dynamic_dims(example_inputs)
        return {name: _dynamic(value, dims[name]) for name, value in example_inputs.items()}
    return tuple(_dynamic(value, (0,)) for value in example_inputs)


def _dynamic(value: Any, dims: tuple[int, ...]) -> Any:
    if isinstance(value, torch.Tensor):
        return {dim: Dim.AUTO for dim in dims if dim < value.dim()} or None
    if isinstance(value, Mapping):
        return {name: _dynamic(item, dims) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_dynamic(item, dims) for item in value)
    return None


def default_output(output: Any, inputs: Mapping[str, Any] | None = None) -> torch.Tensor:
    """The tensor that distortion is judged on: ``logits``, else the first floating tensor; padding set to 0.

    Args:
        output: what the model returned.
        inputs: the keyword inputs; an ``attention_mask`` [B, T] among them blanks the padded places of an
            output [B, T, ...], which the model's user never reads.

    Raises:
        ArgumentError: no floating tensor in the output.
    """
    tensor = judged_tensor(output)
    if tensor is None:
        raise ArgumentError(
            "the model's output holds no floating tensor to judge",
            got=type(output).__name__,
            expected="a tensor, or a tuple, mapping or ModelOutput with one",
            remedy="pass Search(output=...), a function from the model's output to the judged tensor",
        )
    mask = (inputs or {}).get("attention_mask")
    if mask is None or mask.dim() != 2 or tensor.dim() < 3 or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor * mask.to(tensor.dtype).reshape(*mask.shape, *[1] * (tensor.dim() - 2))


def judged_tensor(output: Any) -> torch.Tensor | None:
    """``logits`` where the output has it, else the first floating tensor, depth first; None where none is."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    return next((leaf for leaf in _tensors(output) if leaf.is_floating_point()), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
