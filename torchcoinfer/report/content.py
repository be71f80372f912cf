"""What a report says, as rows of strings: the text and the HTML page print the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchcoinfer.report.text import format_bytes, format_error, format_si
from torchcoinfer.theory.plan import LayerPlan, Plan

Row = dict[str, str]

# budget field -> (what people call it, key of Plan.predicted, unit)
_RESOURCES = {
    "latency": ("latency", "latency_s", "s"),
    "energy": ("device energy", "energy_j", "J"),
    "server_energy": ("server energy", "server_energy_j", "J"),
    "total_energy": ("total energy", "total_energy_j", "J"),
    "device_memory": ("device memory", "device_bytes", "B"),
    "server_memory": ("server memory", "server_bytes", "B"),
    "uplink": ("uplink", "uplink_bytes", "B"),
    "device_bits_per_weight": ("device bits per weight", "device_bits_per_weight", ""),
    "distortion": ("distortion (predicted)", "distortion", ""),
}


def quantity(value: float, unit: str) -> str:
    """A number with its unit, as people write it."""
    if unit == "B":
        return format_bytes(value)
    return format_si(value, unit) if unit else format_error(value)


def number_of(entry: Any) -> float | None:
    """The number in a plan's entry: itself, or the "value" of a mapping that also carries its basis."""
    if isinstance(entry, Mapping):
        entry = entry.get("value")
    return float(entry) if isinstance(entry, (int, float)) and not isinstance(entry, bool) else None


def resource_rows(plan: Plan) -> list[dict[str, Any]]:
    """Every predicted resource against its budget: name, predicted, budget, share of the budget, basis."""
    basis = plan.predicted.get("basis")
    rows = []
    for field, (name, key, unit) in _RESOURCES.items():
        entry, ceiling = plan.predicted.get(key), plan.budget.get(field)
        value = number_of(entry)
        if value is None or (field == "total_energy" and ceiling is None):
            continue  # the sum says nothing new where nobody asked for it
        own = entry.get("basis") if isinstance(entry, Mapping) else None
        shared = basis.get(key) if isinstance(basis, Mapping) else basis
        share = value / ceiling if ceiling else None
        rows.append(
            {
                "resource": name,
                "predicted": quantity(value, unit),
                "budget": quantity(ceiling, unit) if ceiling is not None else None,
                "used": f"{100 * share:.1f} %" if share is not None else None,
                "basis": own or shared,
                "share": share,
            }
        )
    return rows


def latency_parts(plan: Plan, details: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(name, seconds) of the predicted latency in the order of a run; empty where the plan has none."""
    given = details.get("latency_parts")
    if given is not None:
        return [(str(name), float(seconds)) for name, seconds in given]
    told = {key: number_of(plan.predicted.get(key)) for key in ("device_s", "uplink_s", "link_s", "server_s")}
    if any(value is None for value in told.values()):
        return []
    return [
        ("device compute", told["device_s"]),
        ("uplink", told["uplink_s"]),
        ("server compute", told["server_s"]),
        ("answer and round trip", max(0.0, told["link_s"] - told["uplink_s"])),
    ]


def layer_rows(plan: Plan, weight_numel: Mapping[str, int]) -> list[Row]:
    """One row a layer, in the plan's order: side, bits, sparsity, format, bytes, predicted output error."""
    rows = []
    for name, layer in plan.layers.items():
        numel = weight_numel.get(name)
        rows.append(
            {
                "layer": name,
                "side": layer.side,
                "bits": str(layer.bits),
                "sparsity": f"{100 * layer.sparsity:.0f} %" if layer.sparsity else "-",
                "format": format_name(layer),
                "bytes": f"{layer.packed_bytes:,}",
                "bits/weight": f"{8 * layer.packed_bytes / numel:.2f}" if numel else "-",
                "error": format_error(layer.predicted),
            }
        )
    return rows


def format_name(layer: LayerPlan) -> str:
    """ "int g64 obs", "2:4 g64 nearest", "float"."""
    if layer.format == "float":
        return "float"
    group = f"g{layer.group_size}" if layer.group_size else "row"
    acts = f" a{layer.activation_bits}" if layer.activation_bits else ""
    return f"{layer.format} {group}{acts} {layer.algorithm}"


def cut_sentences(plan: Plan) -> list[str]:
    """The cut in words, and what crosses it."""
    where = {
        "device": "everything runs on the device; nothing crosses but the answer",
        "server": "everything runs on the server; the input crosses",
    }.get(plan.cut.name, f"the device stops after {plan.cut.name}")
    lines = [where]
    for tensor, bits in plan.cut.tensors:
        lines.append(f"crosses: {tensor}, {f'coded in {bits} bits' if bits else 'as it is'}")
    uplink = number_of(plan.predicted.get("uplink_bytes"))
    if uplink is not None:
        lines.append(f"uplink: {format_bytes(uplink)} a run, headers counted")
    return lines


_OUTPUT_BOUNDS = {
    "predicted": "predicted: sum over layers of E||J dW h||^2 / E||f||^2",
    "scaled": "predicted x kappa: covers random roundings, not the optimized plan",
    "measured": "measured: of this plan, on validation data",
    "certified": "certified: conformal upper quantile for a fresh sample",
    "worst_case": "worst case: [Q Prop. III.1], induced norms, feed-forward nets only",
    "telescope": "telescope: (sum over layers of the change when one more is compressed)^2, exact",
}

ON_REQUEST = ("scaled", "telescope")


def bound_text(entry: Any) -> str:
    """A bound as a number with its conditions, or "unavailable" with the reason; never a made-up number."""
    if entry is None:
        return "unavailable (not computed)"
    if isinstance(entry, str):
        return entry if entry.startswith("unavailable") else f"unavailable ({entry})"
    if isinstance(entry, (list, tuple)):
        return f"{len(entry)} layers, see plan.json"
    value = number_of(entry)
    if not isinstance(entry, Mapping):
        return "unavailable (not a number)" if value is None else format_error(value)
    if value is None:
        needs = "".join(f", {key}={entry[key]}" for key in ("n", "needs") if entry.get(key) is not None)
        return f"unavailable ({entry.get('unavailable') or entry.get('reason') or 'no reason given'}{needs})"
    told = [f"{key}={entry[key]}" for key in ("alpha", "n") if entry.get(key) is not None]
    if entry.get("vacuous"):
        told.append("vacuous: above the signal itself, it says nothing")
    return format_error(value) + (f" ({', '.join(told)})" if told else "")


def output_rows(plan: Plan) -> list[Row]:
    """The output block: relative output error, predicted, measured, certified, worst case."""
    block = plan.bounds.get("output") or {}
    shown = {"predicted": plan.predicted.get("distortion"), **block}
    names = [*(name for name in _OUTPUT_BOUNDS if name in shown or name not in ON_REQUEST)]
    return [
        {"bound": _OUTPUT_BOUNDS[name], "relative output error": bound_text(shown.get(name))}
        for name in names
    ]


def telescope_rows(plan: Plan) -> list[Row]:
    """What each layer adds to the output error, the largest first."""
    entry = (plan.bounds.get("output") or {}).get("telescope") or {}
    steps = entry.get("steps") if isinstance(entry, Mapping) else None
    ranked = sorted((steps or {}).items(), key=lambda step: -step[1])
    return [{"layer": name, "root relative error added": format_error(step)} for name, step in ranked]


def weight_sentences(plan: Plan) -> list[str]:
    """The weights block: the converse at the bits spent beside the measured sum of |w - w'|."""
    block = plan.bounds.get("weights") or {}
    floor, measured = number_of(block.get("floor")), number_of(block.get("measured"))
    if floor is None:
        return [f"floor: {bound_text(block.get('floor'))}"]
    if not block.get("layers"):
        return ["no layer is compressed: nothing to bound"]
    lines = [
        f"floor: sum |w - w'| >= {floor:.4g} for any code of these bits, if the weights were iid Laplacian",
        f"measured: {measured:.4g}"
        if measured is not None
        else f"measured: {bound_text(block.get('measured'))}",
    ]
    if measured and floor:
        lines[1] += f", {measured / floor:.2f} x the floor"
    own = number_of(block.get("floor_own_law"))
    misfits, layers = block.get("misfits") or [], block.get("layers") or {}
    if misfits:
        lines.append(
            f"{len(misfits)} of {len(layers)} layers do not fit a Laplacian (KS distance above the limit); "
            + (f"with each layer's own law the floor is {own:.4g}" if own is not None else "see plan.json")
        )
    return lines


def optimality_sentence(plan: Plan) -> str:
    """What may be claimed: optimal for the additive table up to the proven gap, over which cuts."""
    gap, over = plan.optimality.get("gap"), plan.optimality.get("over", "candidate cuts")
    if gap is None:
        return "no optimality is claimed for this plan"
    table = "a table linear around it (interactions)" if "table" in plan.optimality else "the additive table"
    told = f"optimal for {table} up to a proven gap of {100 * float(gap):.2g} %, over {over}"
    return "\n".join([told, *_proof_lines(plan.optimality)])


def _proof_lines(optimality: Mapping[str, Any]) -> list[str]:
    """The bounds side by side: with branching, without, and what the theorem allows between."""
    here, lines = optimality.get("here") or {}, []
    names = {"dual_bound": "with branching", "lagrangian_bound": "Lagrangian, without branching"}
    for key, name in names.items():
        bound = number_of(optimality.get(key))
        if bound is not None:
            lines.append(f"lower bound, {name}: {format_error(bound)}")
    dual = number_of(here.get("lagrangian_dual"))
    if dual is not None:
        gap = here.get("shapley_folkman_gap")
        allowed = bound_text(gap) if number_of(gap) is None else f"at most {format_error(gap)}"
        told = f"Lagrangian dual {format_error(dual)}, Shapley-Folkman gap {allowed}"
        lines.append(f"at this cut and these clocks: {told}")
    return lines


def alternative_rows(plan: Plan) -> list[Row]:
    """The cuts considered beside the chosen one."""
    rows = []
    for entry in plan.alternatives.get("cuts") or ():
        rows.append(
            {
                "cut": str(entry.get("name")),
                "distortion": _optional(entry.get("distortion"), ""),
                "latency": _optional(entry.get("latency_s"), "s"),
                "device energy": _optional(entry.get("energy_j"), "J"),
                "device memory": _optional(entry.get("device_bytes"), "B"),
                "note": str(entry.get("note") or ""),
            }
        )
    return rows


def front_rows(plan: Plan) -> list[Row]:
    """The front over the tightest row of the budget, one row a plan."""
    front = plan.alternatives.get("front") or {}
    if not front:
        return []
    name, key, unit = _RESOURCES[front["axis"]]
    goal, goal_key, goal_unit = _RESOURCES[front["objective"]]
    return [
        {
            f"{name} up to": quantity(row["limit"], unit),
            name: quantity(row[key], unit),
            goal: quantity(row[goal_key], goal_unit),
            "cut": row["cut"],
            "proven gap": f"{100 * row['gap']:.2g} %",
        }
        for row in front["rows"]
    ]


def bandwidth_sentence(plan: Plan) -> str:
    """The interval of uplink rates in which the plan stays feasible and the best of the stored ones."""
    band = plan.alternatives.get("bandwidth")
    if not band:
        return ""
    least, most = band["least_bps"], band["most_bps"]
    if not least and most is None:
        return "this plan stays feasible and the best of those compared at every bandwidth of the link"
    ends = [f"from {format_rate(least)}" if least else "from 0"]
    ends += [f"to {format_rate(most)}" if most is not None else "upward"]
    told = (
        f"this plan stays feasible and the best of those compared at uplink rates {' '.join(ends)}, "
        "the downlink in proportion"
    )
    why = {"below": band["least_because"], "above": band["most_because"]}
    reasons = [f"{where}: {_reason(reason)}" for where, reason in why.items() if reason is not None]
    return f"{told} (now {format_rate(band['uplink_bps'])}; {'; '.join(reasons)})"


def _reason(reason: str) -> str:
    return f"over the {_RESOURCES[reason][0]} budget" if reason in _RESOURCES else reason


def format_rate(bits_per_second: float) -> str:
    """20e6 -> "20 Mbit/s"."""
    for step, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if bits_per_second >= step:
            return f"{bits_per_second / step:.3g} {prefix}bit/s"
    return f"{bits_per_second:.3g} bit/s"


def _optional(value: float | None, unit: str) -> str:
    return "-" if value is None else quantity(float(value), unit)
