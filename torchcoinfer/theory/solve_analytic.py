"""The papers' choices: one option for the whole part on the device (``Search(mode="analytic")``).

[Q] takes one bit-width and [P*] one pruned share, with linear work models
(``costs.unit_load(analytic=True)``)
and energies without static and receive terms; clocks and power are the profile's states. Their continuous
closed forms are in ``resources.py``.
"""

from __future__ import annotations

from dataclasses import replace

from torchcoinfer.theory.options import Option
from torchcoinfer.theory.solve_table import Table


def uniform_tables(table: Table) -> list[Table]:
    """The papers' choices ([Q], [P*]; ``Search(mode="analytic")``): one table for each option that all
    layers have.

    Every layer with a unit on the device takes it, the others stay uncompressed.
    """
    problem = table.problem
    options = [
        {choice.option: i for i, choice in enumerate(problem.choices[names[0]])} for names in table.decisions
    ]
    common = [option for option in (options[0] if options else ()) if all(option in own for own in options)]
    units = {
        layer.name: {u.name for u in problem.graph.units if u.layer == layer.name}
        for layer in problem.graph.layers
    }
    here = [
        [any(units[n] & set(cut.device) for n in names) for names in table.decisions] for cut in table.cuts
    ]
    tables = []
    for option in common:
        valid = table.valid.copy()
        for d, own in enumerate(options):
            valid[:, d] = False
            for c in range(len(table.cuts)):
                valid[c, d, own[option] if here[c][d] else own[Option()]] = True
        tables.append(replace(table, valid=valid))
    return tables
