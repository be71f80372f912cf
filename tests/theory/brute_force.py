"""Random small planning problems, and their optimum by trying everything: the solver's slow truth.

The rows are written out here once more, straight from the cost model's definition, and share
no code with the solver.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile, Load
from torchcoinfer.theory.couplings import Coupling
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.solve import Choice, CutOption, Problem

ROWS = (
    "latency", "energy", "server_energy", "total_energy", "device_memory", "server_memory", "uplink",
    "device_bits_per_weight", "distortion",
)  # fmt: skip


def random_graph(rng: np.random.Generator, units: int, tied: float = 0.15) -> Graph:
    tensors = {name: Tensor(name, (int(size),), "float32", 4 * int(size)) for name, size in
               zip(("x", "mask"), rng.integers(50, 3000, 2), strict=True)}  # fmt: skip
    made, listed, layers, parameters = [], [], [], {}
    for i in range(units):
        sources = (
            list(rng.choice(made, size=min(len(made), int(rng.integers(1, 3))), replace=False))
            if made
            else ["x"]
        )
        if rng.random() < 0.15:
            sources.append("mask")
        if made and rng.random() < 0.15:
            sources = ["x"]
        name, layer, weights = f"u{i}", None, ()
        if rng.random() < 0.75:
            if layers and rng.random() < tied:
                layer = layers[int(rng.integers(len(layers)))].name
            else:
                rows, columns = (int(v) for v in rng.integers(4, 200, 2))
                group = "fused" if rng.random() < 0.2 else None
                layer = name
                layers.append(Layer(layer, "linear", rows, columns, 4 * rows * columns, (layer,), group))
        elif rng.random() < 0.5:
            weights = (f"{name}.bias",)
            parameters[weights[0]] = int(rng.integers(1, 500)) * 4
        outputs = tuple(f"{name}:{k}" for k in range(1 + (rng.random() < 0.15)))
        for output in outputs:
            size = int(rng.integers(20, 4000))
            tensors[output] = Tensor(output, (size,), "float32", 4 * size)
        listed.append(
            Unit(name, "linear", tuple(dict.fromkeys(str(s) for s in sources)), outputs, 1e6, layer, weights)
        )
        made += outputs
    read = {name for unit in listed for name in unit.inputs}
    outputs = tuple(name for name in made if name not in read) or (made[-1],)
    numel = {name: size // 4 for name, size in parameters.items()}
    return Graph(("x", "mask"), outputs, tensors, tuple(listed), tuple(layers), parameters, numel)


def random_problem(
    rng: np.random.Generator, units: int, options: int, total: float, minimize: str
) -> Problem:
    """A problem whose distortions sum to about ``total``; its budget fits, is tight, or is impossible."""
    graph = random_graph(rng, units)
    load = lambda: Load(*(rng.lognormal(0, 1, 2) * (1e7, 3e-3)))  # noqa: E731
    choices = {}
    for layer in graph.layers:
        count = sum(unit.layer == layer.name for unit in graph.units)
        own = [
            Choice(
                Option(), 0.0, layer.weight_bytes, *(tuple(load() for _ in range(count)) for _ in range(2))
            )
        ]
        for k in range(1, options):
            distortion = float(total / len(graph.layers) * rng.lognormal(0, 1.5))
            size = int(layer.weight_bytes * rng.uniform(0.05, 0.6))
            loads = (tuple(load() for _ in range(count)) for _ in range(2))
            own.append(Choice(Option(8 - k, 0.0, "int", 64), distortion, size, *loads))
        choices[layer.name] = tuple(own)
    cut_options = {}
    for name, tensor in graph.tensors.items():
        coded = [
            CutOption(b, float(total * rng.lognormal(-2, 1)), tensor.nbytes * b // 32 + 96) for b in (8, 4)
        ]
        cut_options[name] = (CutOption(None, 0.0, tensor.nbytes + 32), *coded[: int(rng.integers(0, 3))])
    fixed = [{u.name: load() for u in graph.units if u.layer is None} for _ in range(2)]
    clocks = tuple(sorted(rng.uniform(0.3e9, 2.4e9, 3)))
    device = DeviceProfile("d", clocks, 8, 0.5, 1e9, 1e12, float(rng.uniform(0.5, 2)) * 1e-27, 0.8, "random")
    fast = tuple(sorted(rng.uniform(2e9, 5e9, int(rng.integers(1, 4)))))
    server = DeviceProfile("s", fast, 64, 0.5, 1e11, 1e12, 2e-28, 5.0, "random")
    link = LinkProfile("l", 2e7, 5e7, 4e-3, (0.05, 0.2, 0.8), 0.3, "random", 5e6, 40.0)
    workload = Workload(answer=str(rng.choice(["device", "server"])))
    answer = sum(graph.tensors[name].nbytes + 32 for name in graph.outputs)
    search = Search(gap=0.0, minimize=minimize)
    problem = Problem(
        graph,
        choices,
        cut_options,
        *fixed,
        device,
        server,
        link,
        Budget(latency=1.0),
        search,
        workload,
        answer,
    )
    return with_random_budget(rng, problem)


def with_couplings(rng: np.random.Generator, problem: Problem, shares=(1.0, 0.5)) -> Problem:
    """The problem with structured pruning: every option at every kept share of rows and columns of the layers
    that random couplings name (members of one fused group alike), and of some tensors."""
    names = [f"channels{k}" for k in range(int(rng.integers(1, 3)))]
    members: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    fused = {a: rng.choice([*names, ""]) for a in ("kept_rows", "kept_columns")}
    choices, cut_options = {}, {}
    for layer in problem.graph.layers:
        own = fused if layer.group else {a: rng.choice([*names, ""]) for a in ("kept_rows", "kept_columns")}
        for attribute, name in own.items():
            if name:
                members[name].append((layer.name, attribute))
        grid = itertools.product(*(shares if own[a] else (1.0,) for a in ("kept_rows", "kept_columns")))
        made = []
        for rows, columns in grid:
            for choice in problem.choices[layer.name][:2]:
                option = replace(choice.option, kept_rows=rows, kept_columns=columns)
                more = 0.0 if rows == columns == 1.0 else float(rng.lognormal(0, 1)) / len(choices or "x")
                loads = [
                    tuple(Load(u.cycles * rows * columns, u.seconds * rows * columns) for u in side)
                    for side in (choice.device, choice.server)
                ]
                size = round(choice.packed_bytes * rows * columns)
                made.append(Choice(option, choice.distortion + more, size, *loads))
        choices[layer.name] = tuple(made)
    for name, options in problem.cut_options.items():
        cut_options[name] = options
        if rng.random() < 0.4:
            members[str(rng.choice(names))].append((name, "kept"))
            pruned = ((s, replace(o, kept=s)) for s in shares for o in options[:2])
            pruned = tuple(replace(o, wire_bytes=round(o.wire_bytes * s)) for s, o in pruned)
            cut_options[name] = pruned
    couplings = tuple(Coupling(name, tuple(own)) for name, own in members.items() if own)
    changed = replace(problem, choices=choices, cut_options=cut_options, couplings=couplings)
    return with_random_budget(rng, changed)


def agreeing(problem: Problem, members: list[list[str]], crossing: list[str], sizes: list[int]) -> np.ndarray:
    """Which plans, in ``itertools.product`` order, keep all couplings. members: layers of each decision."""
    picks = np.indices(sizes).reshape(len(sizes), int(np.prod(sizes)))
    place = {name: d for d, names in enumerate(members) for name in names}
    place |= {name: len(members) + t for t, name in enumerate(crossing)}
    good = np.ones(picks.shape[1], dtype=bool)
    for coupling in problem.couplings:
        seen = None
        for name, attribute in coupling.members:
            if name in place:
                layer = name in problem.choices
                own = [c.option for c in problem.choices[name]] if layer else problem.cut_options[name]
                value = np.array([getattr(option, attribute) for option in own])[picks[place[name]]]
                good &= True if seen is None else value == seen
                seen = value
    return good


def with_random_budget(rng: np.random.Generator, problem: Problem) -> Problem:
    plans = sample_rows(rng, problem, 12)
    names = list(rng.choice(ROWS[:-1], size=int(rng.integers(1, 5)), replace=False))
    if problem.search.minimize != "distortion" or rng.random() < 0.1:
        names.append("distortion")
    slack = float(rng.choice([0.6, 0.9, 1.0, 1.3]))
    middle = plans[int(rng.integers(len(plans)))]
    limits = {str(n): middle[n] * slack * float(rng.uniform(1.0, 1.2)) for n in names}
    positive = {name: value for name, value in limits.items() if value > 0}
    return Problem(**{**problem.__dict__, "budget": Budget(**(positive or {"latency": middle["latency"]}))})


def frontiers(graph: Graph):
    """All device sets closed under predecessors, by trying all subsets."""
    producer = {name: unit.name for unit in graph.units for name in unit.outputs}
    for bits in itertools.product((False, True), repeat=len(graph.units)):
        device = {unit.name for unit, here in zip(graph.units, bits, strict=True) if here}
        if all(
            producer.get(n, u.name) in device or producer.get(n) is None
            for u in graph.units
            if u.name in device
            for n in u.inputs
        ):
            yield device


def peak_bytes(graph: Graph, units: list[Unit], held: set[str]) -> int:
    """Liveness step by step."""
    made_by = {name: unit.name for unit in graph.units for name in unit.outputs}
    names = {unit.name for unit in units}
    outside = {n for u in graph.units if u.name not in names for n in u.inputs} | set(graph.outputs)
    held = held | {n for u in units for n in u.inputs if made_by.get(n) not in names}
    peak = sum(graph.tensors[n].nbytes for n in held)
    alive: set[str] = set()
    for i, unit in enumerate(units):
        alive |= set(unit.outputs)
        peak = max(peak, sum(graph.tensors[n].nbytes for n in alive | held))
        later = {n for u in units[i + 1 :] for n in u.inputs}
        alive = {n for n in alive if n in later or n in outside}
    return peak


def enumerate_rows(
    problem: Problem, device: set[str], device_hz: float, server_hz: float, watts: float
) -> np.ndarray:
    """[plans, ROWS] of one placement and state, all items of all decisions in ``itertools.product`` order."""
    graph, link, profile = problem.graph, problem.link, problem.device
    here = [u for u in graph.units if u.name in device]
    there = [u for u in graph.units if u.name not in device]
    server_reads = {n for u in there for n in u.inputs} | set(graph.outputs)
    server_makes = {n for u in there for n in u.outputs}
    known = [*graph.inputs, *(n for u in here for n in u.outputs)]
    crossing = (
        [n for n in dict.fromkeys(known) if n in server_reads and n not in server_makes] if there else []
    )
    # per item: (device cycles, device s, server cycles, server s, device bytes, server bytes, wire,
    # distortion)
    groups: dict[str, list[np.ndarray]] = {}
    members: dict[str, list[str]] = {}
    for layer in graph.layers:
        units = [u for u in graph.units if u.layer == layer.name]
        rows = []
        for choice in problem.choices[layer.name]:
            item = np.zeros(8)
            for unit, on_device, on_server in zip(units, choice.device, choice.server, strict=True):
                if unit.name in device:
                    item[:2] += on_device.cycles, on_device.seconds
                    item[4] = choice.packed_bytes
                else:
                    item[2:4] += on_server.cycles, on_server.seconds
                    item[5] = choice.packed_bytes
            item[7] = choice.distortion
            rows.append(item)
        groups.setdefault(layer.group or layer.name, []).append(np.array(rows))
        members.setdefault(layer.group or layer.name, []).append(layer.name)
    decisions = [np.sum(members, axis=0) for members in groups.values()]
    for name in crossing:
        decisions.append(
            np.array(
                [[0, 0, 0, 0, 0, 0, o.wire_bytes, o.distortion] for o in problem.cut_options[name]], float
            )
        )
    sums = np.zeros((1, 8))
    for items in decisions:
        sums = (sums[:, None, :] + items[None, :, :]).reshape(-1, 8)
    if problem.couplings:
        sums = sums[agreeing(problem, list(members.values()), crossing, [len(items) for items in decisions])]
    for units, loads, at in ((here, problem.fixed_device, 0), (there, problem.fixed_server, 2)):
        for unit in units:
            if unit.name in loads:
                sums[:, at : at + 2] += loads[unit.name].cycles, loads[unit.name].seconds
    a1, m1, a2, m2, device_bytes, server_bytes, wire, distortion = sums.T
    answer_there = problem.workload.answer == "server"
    if not there and answer_there:
        wire = wire + problem.answer_bytes
    back = 8 * problem.answer_bytes / link.downlink_bps if there and not answer_there else 0.0
    wait = (
        (link.rtt_s / 2 if answer_there else link.rtt_s)
        if there
        else (link.rtt_s / 2 if answer_there else 0.0)
    )
    send = 8 * wire / (link.bandwidth_hz * np.log2(1 + watts * link.snr_per_w))
    latency = a1 / device_hz + m1 + send + a2 / server_hz + m2 + back + wait
    energy = (
        profile.energy_coefficient * a1 * device_hz**2
        + watts * send
        + profile.static_w * latency
        + link.receive_w * back
    )
    server_energy = problem.server.energy_coefficient * a2 * server_hz**2
    parameters = [{n for u in units for n in u.parameters} for units in (here, there)]
    fixed = [sum(graph.parameters[n] for n in names) for names in parameters]
    numel = sum(graph.parameter_numel[n] for n in parameters[0])
    numel += sum(layer.numel for layer in graph.layers if any(u.layer == layer.name for u in here))
    bits = 8 * (device_bytes + fixed[0]) / numel if numel else 0 * device_bytes
    device_memory = device_bytes + fixed[0] + peak_bytes(graph, here, set(graph.inputs)) + wire
    server_memory = (
        server_bytes
        + fixed[1]
        + (peak_bytes(graph, there, set(crossing)) if there else 0)
        + (wire if there else 0)
    )
    return np.stack(
        [
            latency,
            energy,
            server_energy,
            energy + server_energy,
            device_memory,
            server_memory,
            wire,
            bits,
            distortion,
        ],
        axis=1,
    )


def all_rows(problem: Problem):
    for device in frontiers(problem.graph):
        for state in itertools.product(
            problem.device.clocks_hz, problem.server.clocks_hz, problem.link.transmit_w
        ):
            yield enumerate_rows(problem, device, *state)


def sample_rows(rng: np.random.Generator, problem: Problem, count: int) -> list[dict[str, float]]:
    placements = list(frontiers(problem.graph))
    samples = []
    for _ in range(count):
        clocks = (
            rng.choice(problem.device.clocks_hz),
            rng.choice(problem.server.clocks_hz),
            rng.choice(problem.link.transmit_w),
        )
        table = enumerate_rows(problem, placements[int(rng.integers(len(placements)))], *clocks)
        samples.append(dict(zip(ROWS, table[int(rng.integers(len(table)))].tolist(), strict=True)))
    return samples


def best_value(problem: Problem) -> float:
    """Least objective over everything; inf if nothing fits."""
    limits, best = problem.budget.rows(), np.inf
    for table in all_rows(problem):
        fits = np.all([table[:, ROWS.index(n)] <= v for n, v in limits.items()], axis=0)
        if fits.any():
            best = min(best, table[fits, ROWS.index(problem.search.minimize)].min())
    return float(best)


def least_relaxation(problem: Problem) -> float:
    """Least common v with every row <= limit (1 + v)."""
    limits, best = problem.budget.rows(), np.inf
    for table in all_rows(problem):
        best = min(best, np.max([table[:, ROWS.index(n)] / v - 1 for n, v in limits.items()], axis=0).min())
    return float(best)
