"""Whether the layers' errors add up is measured; where they do not, the plan is solved again with what they
do to the output together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcoinfer.calibrate.interpret import Replacement, Shifted
from torchcoinfer.compress import option_of
from torchcoinfer.measure import (
    Additivity,
    Interactions,
    Reference,
    Trials,
    additivity,
    curves,
    fit_gains,
    halfway,
    measure_interactions,
    measure_replacements,
    random_trials,
)
from torchcoinfer.measure.compensated import compensated
from torchcoinfer.measure.score import Measured, unchanged
from torchcoinfer.ops.quant_linear import quantize_rows
from torchcoinfer.pipeline.run import Run
from torchcoinfer.theory.budget import Budget
from torchcoinfer.theory.graph import Layer
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.plan import Plan

ROUNDS = 5  # of solving around the last plan; most runs end after two, when nothing gets better
Chosen = dict[str, Option]


def refined(run: Run, budget: Budget, plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """The plan, or a better one where the additive table fails its test; and what was measured.

    The test: the plan's weights, put into the model, on the samples that the table was scored on. Where the
    measurement leaves ``additivity``'s tolerance, the chosen options and their neighbors are measured one by
    one (``measure_interactions``), and the problem is solved around the last plan as long as the quadratic
    model gets smaller. The new plan stays only if it measures less. ``run.table`` is then the one around it.

    Only where distortion is minimized and no ceiling is put on it: a ceiling on the predicted distortion is
    one on the additive table.
    """
    scored = curves.scoring_reference(run.traced, run.statistics)
    _remake(run, {name: (option,) for name, option in _chosen(plan).items()})
    chosen, before = _chosen(plan), _measured(run, scored, plan)
    report = {"before": _told(before), "rounds": 0}
    if before.holds or run.search.minimize != "distortion" or budget.distortion is not None:
        return plan, {"additivity": report, "notes": [_sentence(report)]}
    options = {
        name: [o for o in curves.near(run.traced, run.table, name, option) if not unchanged(o)]
        for name, option in chosen.items()
    }
    _remake(run, options)
    around = {
        name: halfway(curves.weight_of(run.traced, name), _weights(run, name, option))
        for name, option in chosen.items()
        if not unchanged(option)
    }
    found = measure_interactions(
        scored, options, lambda layer, option: replacement_of(run, layer, option), around=around,
        seed=run.search.seed, progress=run.progress,
    )  # fmt: skip
    found = _fitted(run, scored, options, found)
    better, rounds = _solved_around(run, budget, plan, found)
    report["rounds"] = rounds
    if _chosen(better) != chosen:
        after = _measured(run, scored, better)
        if after.measured >= before.measured:
            better = plan
    report["after"] = _told(_measured(run, scored, better, found))
    return _settled(run, better, found), {"additivity": report, "notes": [_sentence(report)]}


def _fitted(
    run: Run, scored: Reference, options: Mapping[str, Sequence[Option]], found: Interactions
) -> Interactions:
    """Fitted to random neighbors of the plan, where the search asks for trials."""
    generator, drawn, measured = random.Random(run.search.seed), [], []
    for _ in range(run.search.trials):
        chosen = {name: generator.choice(choices) for name, choices in options.items() if choices}
        replacements = {name: replacement_of(run, name, option) for name, option in chosen.items()}
        drawn.append(chosen)
        measured.append(float(measure_replacements(scored, replacements).mean()))
    return fit_gains(found, drawn, measured) if drawn else found


def tried(run: Run) -> Trials:
    """Random roundings of all layers, predicted by the additive table and measured on the validation data."""
    choices = any(not unchanged(point.option) for points in run.table.values() for point in points)
    if run.judged is None or not choices:
        return Trials((), ())
    return random_trials(
        run.judged, run.table, partial(replacement_of, run), configurations=run.search.trials,
        seed=run.search.seed, allowed=lambda point: point.option.algorithm == "nearest",
    )  # fmt: skip


def _solved_around(run: Run, budget: Budget, plan: Plan, found: Interactions) -> tuple[Plan, int]:
    """Fixed-point iteration; the plan of the smallest quadratic distortion, cut included."""
    best, least = plan, _total(plan, found)
    for done in range(ROUNDS):
        candidate = replace(run, table=found.around(run.table, _chosen(best))).solved(budget)
        value = _total(candidate, found)
        if _chosen(candidate) == _chosen(best) or value >= least:
            return best, done + 1
        best, least = candidate, value
    return best, ROUNDS


def _total(plan: Plan, found: Interactions) -> float:
    """Q of the layers and what coding at the cut adds."""
    layers = sum(row.predicted for row in plan.layers.values())
    return plan.predicted["distortion"] - layers + found.distortion(_chosen(plan))


def _settled(run: Run, plan: Plan, found: Interactions) -> Plan:
    """The plan with every layer's share of Q; the table, for what is reported of it, is the one around it."""
    total, chosen = _total(plan, found), _chosen(plan)
    shares, around = found.shares(chosen), found.around(run.table, chosen)
    run.table = {
        layer.name: _around_share(
            layer, run.table[layer.name], around[layer.name], chosen[layer.name], max(0.0, shares[layer.name])
        )
        for layer in run.traced.graph.layers
    }
    moved = total - plan.predicted["distortion"]
    return replace(
        plan,
        layers={name: replace(row, predicted=shares[name]) for name, row in plan.layers.items()},
        predicted={**plan.predicted, "distortion": total},
        optimality={
            **_moved(plan.optimality, moved), "value": total, "table": "interactions around the plan",
        },
    )  # fmt: skip


def _moved(optimality: Mapping[str, Any], constant: float) -> dict[str, Any]:
    """Every lower bound of a table, where all its values move by one constant."""
    keys = ("dual_bound", "lagrangian_bound", "lagrangian_dual")
    told = {k: v + constant if k in keys and v is not None else v for k, v in optimality.items()}
    if told.get("here") is not None:
        told["here"] = _moved(told["here"], constant)
    return told


def _around_share(
    layer: Layer, points: Sequence[Measured], around: Sequence[Measured], chosen: Option, share: float
) -> tuple[Measured, ...]:
    """The layer's points: the chosen one has its share of Q, measured neighbors differ from it as the linear
    model says, the others are scaled with it. Points that the linear model takes for smaller and no worse
    than the chosen one are left out: the quadratic model did not find them better."""
    (own,) = (point.distortion for point in points if point.option == chosen)
    measured = {point.option: point.distortion for point in around}
    offset, factor = share - measured[chosen], share / own if own > 0.0 else 1.0
    moved = [
        replace(
            point,
            distortion=max(0.0, measured[point.option] + offset)
            if point.option in measured
            else point.distortion * factor,
        )
        for point in points
    ]
    least = curves.option_bytes(layer, chosen)
    return tuple(
        point
        for point in moved
        if point.option == chosen
        or point.distortion > share
        or curves.option_bytes(layer, point.option) > least
    )


def _chosen(plan: Plan) -> Chosen:
    return {name: option_of(row) for name, row in plan.layers.items()}


def _measured(run: Run, scored: Reference, plan: Plan, found: Interactions | None = None) -> Additivity:
    """Predicted, additively or by the quadratic model, beside measured; nothing is coded at the cut."""
    chosen = {name: option for name, option in _chosen(plan).items() if not unchanged(option)}
    replacements = {name: replacement_of(run, name, option) for name, option in chosen.items()}
    measured = float(measure_replacements(scored, replacements).mean())
    if found is not None:
        return Additivity(found.distortion(chosen), measured)
    return additivity(run.table, chosen, measured)


def _remake(run: Run, options: Mapping[str, Sequence[Option]]) -> None:
    """Error-compensated weights that an earlier plan of the run has let go."""
    missing = {
        name: [o for o in choices if o.algorithm == "obs" and (name, o) not in run.compensated.weights]
        for name, choices in options.items()
    }
    missing = {name: choices for name, choices in missing.items() if choices}
    if missing:
        data = curves.Data.of(run.statistics)
        run.compensated.update(
            compensated(run.traced, run.statistics, missing, data.fit, run.search.seed, progress=run.progress)
        )


def replacement_of(run: Run, layer: str, option: Option) -> Replacement:
    """What was scored for the option: its weights, and its coding of the layer's inputs."""
    found = _weights(run, layer, option)
    if option.activation_bits is None:
        return found
    bias = curves.modules_of(run.traced, layer)[0].bias
    if isinstance(found, Shifted):
        bias, found = found.shift if bias is None else bias.detach() + found.shift, found.weight
    return partial(_coded_linear, weight=found, bias=bias)


def _coded_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer on inputs coded to int8, row by row, as the packed modules do."""
    codes, scale = quantize_rows(x)
    return torch.nn.functional.linear(codes * scale, weight, bias).to(x.dtype)


def _weights(run: Run, layer: str, option: Option) -> Tensor | Shifted:
    key = layer, option
    if option.algorithm != "obs":
        return curves.Nearest(run.traced, run.statistics)(layer, option)
    weight, shift = run.compensated.weights[key](), run.compensated.shifts[key]
    return weight if shift is None else Shifted(weight, shift)


def _told(found: Additivity) -> dict[str, Any]:
    return {
        "predicted": found.predicted, "measured": found.measured, "ratio": found.ratio,
        "tolerance": found.tolerance, "holds": found.holds,
    }  # fmt: skip


def _sentence(report: Mapping[str, Any]) -> str:
    before, after = report["before"], report.get("after")
    told = (
        f"the plan's weights, put into the model, measure {before['ratio']:.2f} x the sum of the layers' "
        f"predicted errors on the scoring samples"
    )
    if after is None:
        return told if before["holds"] else told + ": the additive table is rough here"
    return (
        f"{told}: solved again with what layers do together (interactions), {report['rounds']} rounds; now "
        f"{after['measured']:.4g} measured, {after['predicted']:.4g} predicted"
    )
