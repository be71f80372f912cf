"""The real model: 200 random budgets on one table, five of them packed for real."""

import random

import pytest
import torch

import torchcoinfer as tci
from torchcoinfer.bench.docstrings import standard_library_pairs
from torchcoinfer.bench.retrieval import token_batches
from torchcoinfer.calibrate import calibrate
from torchcoinfer.compress import apply_to_model
from torchcoinfer.measure import curves, verdict
from torchcoinfer.models import load_model
from torchcoinfer.profile import device_profile, link_profile, server_profile
from torchcoinfer.split import split
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.plan import PREDICTED_OF_ROW
from torchcoinfer.theory.solve import build_problem, solve
from torchcoinfer.trace import trace

COUNT, PACKED = 200, 5
SEARCH = tci.Search(bits=(2, 4, 8), algorithms=("nearest",), gap=1e-2)
# least and most of what is drawn, log-uniformly: from hopeless to generous
RANGES = {
    "latency": (2e-3, 0.3),
    "energy": (1e-2, 2.0),
    "device_memory": (1e6, 1e8),
    "server_memory": (1e6, 1e8),
    "uplink": (500.0, 1e5),
    "device_bits_per_weight": (2.0, 32.0),
}


@pytest.fixture(scope="module")
def planner():
    loaded = load_model("minilm")
    texts = [pair.document for pair in standard_library_pairs()[:16]]
    batches = [batch for _, batch in token_batches(loaded.tokenizer, texts, 4, 16)]
    traced = trace(loaded.model, batches[0])
    statistics = calibrate(traced, batches, probes=2)
    table = curves.plain_points(curves.nearest_curves(traced, statistics, SEARCH))
    cut_table = curves.cut_curves(traced, statistics, candidate_cuts(traced.graph), SEARCH)
    sides = device_profile("raspberry-pi-5"), server_profile("xeon-16core"), link_profile("wifi-5ghz")

    def plan(budget):
        return solve(build_problem(traced.graph, table, cut_table, *sides, budget, SEARCH))

    return traced, statistics, plan


def random_budget(rng):
    rows = rng.sample(sorted(RANGES), rng.randint(1, 3))
    return tci.Budget(
        **{row: RANGES[row][0] * (RANGES[row][1] / RANGES[row][0]) ** rng.random() for row in rows}
    )


def test_no_budget_is_exceeded_and_what_is_called_attainable_is(planner):
    traced, statistics, plan = planner
    rng, plans = random.Random(0), []
    for _ in range(COUNT):
        budget = random_budget(rng)
        try:
            plans.append((budget, plan(budget)))
        except tci.InfeasibleBudget as error:
            plans.append((error.attainable, plan(error.attainable)))
    for budget, made in plans:
        for row, limit in budget.rows().items():
            assert made.predicted[PREDICTED_OF_ROW[row]] <= limit, (budget, row)
    compressed = [(b, p) for b, p in plans if any(row.format != "float" for row in p.layers.values())]
    assert len(compressed) >= PACKED
    for budget, made in rng.sample(compressed, PACKED):
        check_real_bytes(traced, statistics, budget, made)


def check_real_bytes(traced, statistics, budget, made):
    model = apply_to_model(traced, made.layers, statistics)
    for name, real in verdict.packed_bytes_of(model, traced, made.layers).items():
        assert real == made.layers[name].packed_bytes
    sample = dict(zip(traced.graph.inputs, traced.sample))
    device, server = split(trace(model, sample), made.cut)
    stored = {side: sum(t.numel() * t.element_size() for t in half.state_dict().values())
              for side, half in (("device", device), ("server", server))}  # fmt: skip
    for side, real in stored.items():
        assert real <= made.predicted[f"{side}_bytes"]
        if f"{side}_memory" in budget.rows():
            assert real <= budget.rows()[f"{side}_memory"]
    with torch.no_grad():
        sent = tci.Result(device, server, made, {}).session.run(**sample).uplink_bytes
    assert sent <= made.predicted["uplink_bytes"]
    assert made.cut.name == "device" or sent == made.predicted["uplink_bytes"]
