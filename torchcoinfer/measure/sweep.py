"""Vector-Jacobian products segment by segment: exact, and with the tape of one segment at a time.

A plain forward pass keeps the values alive at the boundaries. Then, last segment first, a segment is run
again with gradients from its detached boundary values, and the products of all probes go through it: g at its
sites, and at the values that enter it. Those wait for the segment that made them, however many boundaries
lie between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.measure.segments import Costs, Meter
from torchcoinfer.measure.tape import Site, Tape, empty_responses

Responses = tuple[dict[fx.Node, Site], dict[fx.Node, Tensor]]
"""The sites of a segment, and g = Jᵀu at each, [B, P, M] ([1, P, M] where the batch does not lead)."""


def measure_costs(tape: Tape, inputs: Sequence[Tensor], nodes: Collection[fx.Node], probes: int) -> Costs:
    """Bytes that every node costs a sweep over ``inputs``, from one forward pass that keeps nothing."""
    meter, site_bytes = Meter(tape.interpreter), {}
    batch = batch_size(inputs)

    def see(node: fx.Node, args: Sequence[Any], value: Any) -> Any:
        sites: dict[fx.Node, Site] = {}
        value = tape.observer(nodes, batch, sites)(node, args, value)
        if node in sites:
            site_bytes[node] = _site_bytes(sites[node], probes)
        meter.see(node, value)
        return value

    everything = (0, len(tape.interpreter.nodes))
    with torch.enable_grad(), meter.hooks():
        judged = tape.judged(tape.run(everything, {}, inputs, see), inputs)
    site_bytes[tape.interpreter.nodes[-1]] = 4 * judged.numel() * judged.element_size()
    return meter.costs(site_bytes, probes)


def _site_bytes(site: Site, probes: int) -> int:
    """g of every probe, the value, its gradient, and the input."""
    read = max(
        (arg.numel() for arg, given in zip(site.args, site.node.args) if _is_read(arg, given)), default=0
    )
    return max(site.value.element_size(), 4) * ((probes + 2) * site.value.numel() + read)


def _is_read(arg: Any, given: Any) -> bool:
    return isinstance(arg, Tensor) and isinstance(given, fx.Node) and given.op != "get_attr"


def sweep(
    tape: Tape,
    inputs: Sequence[Tensor],
    nodes: Collection[fx.Node],
    bounds: Sequence[int],
    differentiable: Collection[fx.Node],
    probes: int,
    noise: Callable[[Tensor, int], Tensor],
) -> Iterator[Responses]:
    """Sites and g of every segment that has sites, the last one first.

    What is yielded is not held here: drop it before the next segment is asked for.

    Args:
        nodes: where sites are.
        bounds: positions before which the graph is divided, ascending; none: one segment.
        differentiable: nodes whose values depend on a site.
    """
    run = _Sweep(tape, inputs, nodes, differentiable, probes, noise)
    states = list(run.boundary_values(bounds))
    edges = (0, *bounds, len(tape.interpreter.nodes))
    for start, stop in reversed(list(zip(edges, edges[1:]))):
        yield run.segment((start, stop), states.pop())
        if run.places and start <= run.places[0]:
            return


class _Sweep:
    """One chunk of samples on its way back through the graph."""

    def __init__(
        self,
        tape: Tape,
        inputs: Sequence[Tensor],
        nodes: Collection[fx.Node],
        differentiable: Collection[fx.Node],
        probes: int,
        noise: Callable[[Tensor, int], Tensor],
    ):
        self.tape, self.inputs, self.nodes, self.probes, self.noise = tape, inputs, nodes, probes, noise
        self.batch, self.differentiable = batch_size(inputs), differentiable
        self.place = {node: place for place, node in enumerate(tape.interpreter.nodes)}
        self.places = sorted(self.place[node] for node in nodes)
        # per value that later segments read, a gradient per probe
        self.waiting: dict[fx.Node, list[Tensor | None]] = {}

    def boundary_values(self, bounds: Sequence[int]) -> Iterator[dict[fx.Node, Any]]:
        """What is alive where each segment begins."""
        values: dict[fx.Node, Any] = {}
        yield {}
        for span in zip((0, *bounds), bounds):
            with torch.no_grad():
                self.tape.run(span, values, self.inputs, self.tape.repeater(self.nodes, self.batch))
            yield dict(values)

    def segment(self, span: tuple[int, int], state: dict[fx.Node, Any]) -> Responses:
        """Runs a segment forward from ``state`` and backward from what waits for it."""
        entering = {
            node: value.detach().requires_grad_(True)
            for node, value in state.items()
            if node in self.differentiable and isinstance(value, Tensor) and value.is_floating_point()
        }
        sites: dict[fx.Node, Site] = {}
        values = {**state, **entering}
        with torch.enable_grad():
            observer = self.tape.observer(self.nodes, self.batch, sites)
            outputs = self.tape.run(span, values, self.inputs, observer)
            judged = None if outputs is None else self.tape.judged(outputs, self.inputs)
        if judged is not None:
            g = self._backward([judged], lambda probe: [self._direction(judged, probe)], sites, entering)
        else:
            own = [node for node in self.waiting if self.place[node] >= span[0]]
            due = [self.waiting.pop(node) for node in own]
            g = self._backward(
                [values[node] for node in own], lambda probe: [_taken(found, probe) for found in due],
                sites, entering,
            )  # fmt: skip
        return {
            node: Site(node, site.args, site.value.detach(), site.leads) for node, site in sites.items()
        }, g

    def _direction(self, judged: Tensor, probe: int) -> Tensor:
        return self.tape.judge.probe(judged, self.noise(judged.detach(), probe))

    def _backward(
        self,
        ends: Sequence[Tensor],
        directions: Callable[[int], list[Tensor | None]],
        sites: dict[fx.Node, Site],
        entering: dict[fx.Node, Tensor],
    ) -> dict[fx.Node, Tensor]:
        """g at the sites; the gradients of what enters are added to what waits."""
        found = empty_responses(sites, self.probes)
        targets = [site.value for site in sites.values()] + list(entering.values())
        for probe in range(self.probes):
            due = [
                (end, direction)
                for end, direction in zip(ends, directions(probe))
                if direction is not None and end.requires_grad
            ]
            if not due or not targets:
                continue
            gradients = torch.autograd.grad(
                [end for end, _ in due], targets, [direction for _, direction in due],
                retain_graph=probe + 1 < self.probes, allow_unused=True,
            )  # fmt: skip
            for node, gradient in zip(sites, gradients):
                if gradient is not None:
                    found[node][:, probe] = gradient.reshape(found[node].shape[0], -1)
            for node, gradient in zip(entering, gradients[len(sites) :]):
                if gradient is not None:
                    waiting = self.waiting.setdefault(node, [None] * self.probes)
                    waiting[probe] = gradient if waiting[probe] is None else waiting[probe] + gradient
        return found


def _taken(gradients: list[Tensor | None], probe: int) -> Tensor | None:
    """A probe's gradient, which is not held any longer."""
    gradient, gradients[probe] = gradients[probe], None
    return gradient
