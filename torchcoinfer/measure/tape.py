"""One differentiable forward pass, and the vector-Jacobian products of random output probes.

Gradients are taken with respect to activations: parameters are read detached, so that frozen ones work, none
is changed, and no ``grad`` is accumulated.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchcoinfer.calibrate.interpret import Interpreter, Replacement, Tap, aten
from torchcoinfer.calibrate.judge import Judge, batch_size
from torchcoinfer.measure.samples import BatchDims
from torchcoinfer.trace import Traced

Noise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(judged tensor [B, ...], the probe's number, each sample's number) -> noise [B, ...], E[εεᵀ] = 1."""


@dataclass(frozen=True)
class Site:
    """A value of the graph at which something is changed: a layer's output, or a tensor that may be coded.

    Attributes:
        args: the arguments of its node, detached.
        value: the value, part of the differentiable graph.
        leads: its first dim is the batch, and samples are independent. If not (position embeddings, windows),
            the samples of a chunk share it: the squared response is then that of their sum, which is unbiased
            too, since the probes of different samples are independent.
    """

    node: fx.Node
    args: tuple[Any, ...]
    value: Tensor
    leads: bool


class Tape:
    """Runs the model on a few samples and keeps the sites asked for.

    Args:
        traced: the traced model.
        judge: takes the judged tensor out of the output.
        batch: flat inputs on which it is tried whether samples are independent. Where they are not (a batch
            statistic, a contrast over the batch) batches are run whole and answer as one.
        replacements: weights replaced in every run: Jacobians are then those of the compressed model.
    """

    def __init__(
        self,
        traced: Traced,
        judge: Judge,
        batch: Sequence[Tensor],
        replacements: Mapping[str, Replacement] | None = None,
    ):
        self.traced, self.judge = traced, judge
        self.interpreter = Interpreter(traced)
        self._replacements = replacements or {}
        self.dims = BatchDims.of(traced, batch)
        self.independent = self.dims.independent(batch, self._judged)

    @property
    def divisible(self) -> bool:
        """True when a batch can be run a few samples at a time."""
        return self.independent and bool(self.dims.symbols)

    def few(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The fewest samples that can be run at once."""
        return self.dims.take(inputs, slice(0, 1)) if self.divisible else tuple(inputs)

    def _judged(self, inputs: Sequence[Tensor], tap: Tap | None = None) -> Tensor:
        with torch.no_grad():
            outputs = self.interpreter.run(inputs, replacements=self._replacements, tap=tap)
            return self.judged(outputs, inputs)

    def run(
        self, span: tuple[int, int], values: dict[fx.Node, Any], inputs: Sequence[Tensor], tap: Tap
    ) -> list[Any] | None:
        """Evaluates the nodes at the positions ``span`` (start, stop).

        Args:
            values: those alive before ``start``; afterwards those alive before ``stop``.
            inputs: flat inputs of the model.

        Returns:
            the flat outputs where the span reaches the end, else None.
        """
        interpreter = self.interpreter
        given = dict(zip((node for node in interpreter.nodes if node.op == "placeholder"), inputs))
        for node in interpreter.nodes[slice(*span)]:
            if node.op == "output":
                return interpreter.outputs(node, values)
            if node.op == "placeholder":
                values[node] = tap(node, (), given[node])
            else:
                values[node] = interpreter.evaluate(node, values, self._replacements, tap)
            for done in interpreter.last_use.get(node, ()):
                values.pop(done, None)
        return None

    def judged(self, outputs: Sequence[Any], inputs: Sequence[Tensor]) -> Tensor:
        """The judged tensor among flat outputs."""
        return self.judge.tensor(self.traced.unflatten_outputs(outputs), inputs)

    def record(
        self, inputs: Sequence[Tensor], nodes: Collection[fx.Node]
    ) -> tuple[Tensor, dict[fx.Node, Site]]:
        """The judged tensor and the sites of ``nodes`` for one chunk of samples."""
        sites: dict[fx.Node, Site] = {}
        with torch.enable_grad():
            everything = (0, len(self.interpreter.nodes))
            outputs = self.run(everything, {}, inputs, self.observer(nodes, batch_size(inputs), sites))
            return self.judged(outputs, inputs), sites

    def observer(self, nodes: Collection[fx.Node], batch: int, sites: dict[fx.Node, Site]) -> Tap:
        """Puts the sites of ``nodes`` into ``sites`` as their values come by."""

        def observe(node: fx.Node, args: Sequence[Any], value: Any) -> Any:
            if node not in nodes or not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            value, leads = self._repeated(node, value, batch)
            if not value.requires_grad:
                value = value.detach().requires_grad_(True)
            detached = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
            sites[node] = Site(node, detached, value, leads)
            return value

        return observe

    def repeater(self, nodes: Collection[fx.Node], batch: int) -> Tap:
        """Gives every value the shape that ``observer`` gives it, and notes nothing."""

        def repeat(node: fx.Node, args: Sequence[Any], value: Any) -> Any:
            if node not in nodes or not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return self._repeated(node, value, batch)[0]

        return repeat

    def _repeated(self, node: fx.Node, value: Tensor, batch: int) -> tuple[Tensor, bool]:
        leads = self._leads(node, value, batch)
        if not leads and self.independent and _only_added(node, value):
            return value.expand(batch, *value.shape[1:]), True
        return value, leads

    def _leads(self, node: fx.Node, value: Tensor, batch: int) -> bool:
        if not self.independent or value.dim() == 0 or value.shape[0] != batch:
            return False
        traced_value = node.meta.get("val")
        if not self.dims.symbols or not isinstance(traced_value, Tensor):
            return True
        return str(traced_value.shape[0]) in self.dims.symbols

    def responses(
        self, judged: Tensor, sites: dict[fx.Node, Site], probes: int, noise: Callable[[Tensor, int], Tensor]
    ) -> dict[fx.Node, Tensor]:
        """g = Jᵀu at each site, [B, P, M] ([1, P, M] where the batch does not lead), M elements a sample.

        One backward pass a probe gives all sites. float32, or float64 for a float64 model.
        """
        found = empty_responses(sites, probes)
        if not judged.requires_grad:
            return found
        values = [site.value for site in sites.values()]
        for probe in range(probes):
            direction = self.judge.probe(judged, noise(judged.detach(), probe))
            gradients = torch.autograd.grad(
                judged, values, direction, retain_graph=probe + 1 < probes, allow_unused=True
            )
            for node, gradient in zip(sites, gradients):
                if gradient is not None:
                    found[node][:, probe] = gradient.reshape(found[node].shape[0], -1)
        return found


def empty_responses(sites: Mapping[fx.Node, Site], probes: int) -> dict[fx.Node, Tensor]:
    """Zeros [B, P, M] per site, [1, P, M] where the batch does not lead."""
    found: dict[fx.Node, Tensor] = {}
    for node, site in sites.items():
        rows = site.value.shape[0] if site.leads else 1
        dtype = torch.promote_types(site.value.dtype, torch.float32)
        found[node] = torch.zeros(
            rows, probes, site.value.numel() // rows, dtype=dtype, device=site.value.device
        )
    return found


def _only_added(node: fx.Node, value: Tensor) -> bool:
    """A value of one row that is only added to something: may be repeated for each sample at once."""
    if value.dim() < 2 or value.shape[0] != 1:
        return False
    traced_value = node.meta.get("val")
    if isinstance(traced_value, Tensor) and isinstance(traced_value.shape[0], torch.SymInt):
        return False
    return all(user.target is aten.add.Tensor and _ranks_agree(user, value.dim()) for user in node.users)


def _ranks_agree(node: fx.Node, rank: int) -> bool:
    shapes = [read.meta.get("val") for read in node.all_input_nodes]
    return len(shapes) == 2 and all(isinstance(val, Tensor) and val.dim() == rank for val in shapes)


class Rademacher:
    """Random signs, drawn sample by sample: the same for a sample however the data are cut into chunks.

    E(uᵀv)² = ‖v‖² exactly in expectation, and among independent entries signs have the least variance.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, judged: Tensor, probe: int, samples: Sequence[int]) -> Tensor:
        drawn = []
        for sample in samples:
            # torch's CPU generator reads 32 bits of its seed: a number shifted above them would be lost
            own_seed = zlib.crc32(f"{self.seed}:{sample}:{probe}".encode())
            generator = torch.Generator().manual_seed(own_seed)
            drawn.append(torch.randint(0, 2, judged.shape[1:], generator=generator, dtype=torch.int8))
        return torch.stack(drawn).to(device=judged.device, dtype=judged.dtype).mul_(2).sub_(1)
