"""Seconds of the real modules at the shapes of one model: what ``Search(costs="measured")`` plans with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from torchcoinfer import nn as packed_nn
from torchcoinfer.errors import ArgumentError
from torchcoinfer.profile.timing import interleaved_medians
from torchcoinfer.theory.costs import DeviceProfile, measured_key, unit_tokens
from torchcoinfer.theory.graph import Graph, Layer, Unit
from torchcoinfer.theory.options import Option

# kinds of layers whose module exists in a format; what is missing is not measured and not offered
_FORMATS = {"linear": ("int", "2:4", "bitmap"), "conv2d": ("int",), "embedding": ("int",)}


class TracedModel(Protocol):
    """What is needed of ``trace.Traced``."""

    model: nn.Module
    graph: Graph


@dataclass(frozen=True)
class _Case:
    unit: Unit
    layer: Layer
    option: Option
    tokens: int


def measure_costs(
    traced: TracedModel,
    options: Iterable[Option] | Mapping[str, Iterable[Option]],
    profile: DeviceProfile,
    *,
    budget_s: float = 20.0,
) -> DeviceProfile:
    """Time every layer of the model in every option, at the sizes of the graph, on this machine.

    Layers of equal shape are timed once. Weights are random: times do not depend on them.

    Args:
        traced: model and graph.
        options: for all layers, or by layer name.
        profile: the machine's own, "local" or loaded from a file that was measured here.
        budget_s: seconds for all measurements; fewer rounds when they do not fit.

    Returns:
        the profile with ``measured`` filled; entries already there are kept and not measured again.

    Raises:
        ArgumentError: the profile is an estimate of another machine.
    """
    if profile.basis != "measured":
        raise ArgumentError(
            "costs are measured on this machine, the profile describes another",
            got=f"profile {profile.name!r} with basis {profile.basis!r}",
            expected="'local', or a profile that was measured here and saved",
            remedy="pass device='local' (or server='local'), or Search(costs='preset')",
        )
    calls: dict[str, Callable[[], Any]] = {}
    for case in _cases(traced.graph, options):
        key = measured_key(case.unit.kind, case.option, case.layer, case.tokens)
        if key not in calls and key not in profile.measured:
            calls[key] = _call(case, traced)
    seconds = interleaved_medians(calls, rounds=5, budget_s=budget_s)
    return replace(profile, measured={**profile.measured, **seconds})


def _cases(graph: Graph, options: Iterable[Option] | Mapping[str, Iterable[Option]]) -> Iterator[_Case]:
    layers = {layer.name: layer for layer in graph.layers}
    shared = None if isinstance(options, Mapping) else tuple(options)
    for unit in graph.units:
        if unit.layer is None:
            continue
        layer = layers[unit.layer]
        own = tuple(options.get(layer.name, ())) if isinstance(options, Mapping) else shared
        for option in (Option(), *own):
            if option.format == "float" or option.format in _FORMATS.get(unit.kind, ()):
                yield _Case(unit, layer, option, unit_tokens(unit, layer, graph))


def _call(case: _Case, traced: TracedModel) -> Callable[[], Any]:
    like = traced.model.get_submodule(_owner(case.unit))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if case.unit.kind == "embedding":
            module: nn.Module = nn.Embedding(case.layer.rows, case.layer.columns)
            x = torch.randint(0, case.layer.rows, (case.tokens,))
        elif case.unit.kind == "conv2d":
            pictures = traced.graph.tensors[case.unit.inputs[0]].shape
            module, x = _conv_like(like), torch.randn(pictures)
        else:
            module = nn.Linear(case.layer.columns, case.layer.rows)
            x = torch.randn(case.tokens, case.layer.columns)
    return functools.partial(_in_option(module, case.option).eval(), x)


def _owner(unit: Unit) -> str:
    """The module's FQN from the unit's name ``"<fqn>#<call>"``."""
    return unit.name.rpartition("#")[0]


def _conv_like(conv: nn.Module) -> nn.Conv2d:
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def _in_option(module: nn.Module, option: Option) -> nn.Module:
    """The module in the option's format, rounded to nearest: the algorithm does not change the time."""
    if option.format == "float":
        return module
    grid = {"bits": option.bits, "group_size": option.group_size}
    if isinstance(module, nn.Embedding):
        return packed_nn.QuantEmbedding.from_float(module, **grid, symmetric=option.symmetric)
    grid["activation_bits"] = option.activation_bits
    if option.format == "int":
        packed = packed_nn.QuantConv2d if isinstance(module, nn.Conv2d) else packed_nn.QuantLinear
        return packed.from_float(module, **grid, symmetric=option.symmetric)
    sparsity = "2:4" if option.format == "2:4" else option.sparsity
    if option.bits >= 16:
        return packed_nn.SparseLinear.from_float(module, sparsity, values_dtype=torch.float16)
    return packed_nn.SparseQuantLinear.from_float(module, sparsity, **grid)
