"""Which weights of the model can be compressed: one ``Layer`` a weight, with every module that shares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from torchcoinfer.nn.packed import STORAGE, PackedModule
from torchcoinfer.theory.graph import Layer

_STOCK = {nn.Linear: "linear", nn.Conv2d: "conv2d", nn.Embedding: "embedding"}


@dataclass(frozen=True)
class Weight:
    """A compressible weight: its ``Layer``, and the FQNs of the stored tensors that make it up."""

    layer: Layer
    stored: frozenset[str]


def layer_kind(module: nn.Module) -> str | None:
    """ "linear" | "conv2d" | "embedding" for a module whose weight can be compressed or is packed, else None.

    Compressible: a Linear, Conv2d or Embedding (subclasses too) that has the stock ``forward``, holds its
    weight as a plain parameter, pads with zeros and does not renormalize its rows.
    """
    if isinstance(module, PackedModule):
        name = type(module).__name__
        return "embedding" if "Embedding" in name else "conv2d" if "Conv2d" in name else "linear"
    for stock, kind in _STOCK.items():
        if isinstance(module, stock) and type(module).forward is stock.forward:
            plain = isinstance(module._parameters.get("weight"), nn.Parameter)
            special = getattr(module, "padding_mode", "zeros") != "zeros" or getattr(module, "max_norm", None)
            return kind if plain and not special and not list(module.children()) else None
    return None


def find_weights(model: nn.Module, read_raw: Callable[[str], bool], called: set[str]) -> list[Weight]:
    """The compressible weights in the order of ``model.named_modules()``.

    Args:
        read_raw: whether the stored tensor of this FQN is read by anything but a call of its layer; such a
            weight is left alone, since compressing it would change the other reader.
        called: FQNs of the modules that the graph calls.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if layer_kind(module) is not None:
            owners.setdefault(id(_main_tensor(module)), []).append((name, module))
    weights = []
    for modules in owners.values():
        stored = frozenset(f"{name}.{tensor}" for name, module in modules for tensor in _stored_names(module))
        in_use = [name for name, _ in modules if name in called]
        if in_use and not any(read_raw(name) for name in stored):
            weights.append(Weight(_layer(modules), stored))
    return weights


def _stored_names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, PackedModule):
        return tuple(name for name in STORAGE if module._buffers.get(name) is not None)
    return ("weight",)


def _main_tensor(module: nn.Module) -> Tensor:
    """The tensor whose identity is the weight's: modules that share it are tied."""
    if isinstance(module, PackedModule):
        return getattr(module, _stored_names(module)[0])
    return module.weight


def _layer(modules: list[tuple[str, nn.Module]]) -> Layer:
    name, module = modules[0]
    kind = layer_kind(module)
    rows, columns = _matrix_shape(module, kind)
    if isinstance(module, PackedModule):
        weight_bytes = module.packed_bytes
    else:
        weight_bytes = module.weight.numel() * module.weight.element_size()
    return Layer(name, kind, rows, columns, weight_bytes, tuple(name for name, _ in modules))


def _matrix_shape(module: nn.Module, kind: str) -> tuple[int, int]:
    """N and K of the weight seen as a matrix."""
    if kind == "embedding":
        return module.num_embeddings, module.embedding_dim
    if kind == "linear":
        return module.out_features, module.in_features
    kernel = module.kernel_size[0] * module.kernel_size[1]
    return module.out_channels, module.in_channels // module.groups * kernel


def canonical_names(model: nn.Module) -> Mapping[str, str]:
    """Every FQN of every module -> the first FQN of the same module object."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(module), name)
        for name, module in model.named_modules(remove_duplicate=False)
    }
