"""Error-compensated rounding and pruning: what rounding one column breaks, the later columns mend.

Optimal brain surgery column by column, in the blocked form of GPTQ (Frantar et al., arXiv 2210.17323) and
SparseGPT (Frantar and Alistarh, arXiv 2301.00774), then coordinate descent on the same objective
(``descent.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchcoinfer.compress.descent import Columns, descend
from torchcoinfer.compress.grid import ScaleRange, fit_grid
from torchcoinfer.compress.hessian import Factor, Hessian, Unit
from torchcoinfer.compress.nearest import checked_weight, float_survivors
from torchcoinfer.compress.prune import choose_mask, keep_quota, keep_two_of_four
from torchcoinfer.compress.quantized import Quantized
from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.options import BLOCK_ROWS, Option, ceil_div

CHUNK_ELEMENTS = 1 << 21
MIN_CHUNK_ROWS = 256
SWEEPS = 2


def obs(
    weight: Tensor, option: Option, hessian: Tensor | Hessian | Sequence[Hessian], *, sweeps: int = SWEEPS
) -> Quantized:
    """Rounds (and prunes) column by column, each error spread over the columns still to come.

    Args:
        weight: [N, K], floating point, finite.
        option: bits, group size, symmetric or not, sparsity and format. ``algorithm`` is not read.
        hessian: second moments E[x xᵀ] of the layer's inputs, [K, K]; or a ``Hessian``, to share its factor
            among the options of a layer or among layers with the same input; or one ``Hessian`` per group of
            a grouped convolution, whose rows are N / groups each.
        sweeps: rounds of coordinate descent afterwards.

    Raises:
        ArgumentError: weights that are not finite or too large, or shapes that disagree.
        CalibrationError: a Hessian with NaN or Inf.
    """
    weight = checked_weight(weight)
    hessians = _as_list(hessian)
    rows, width = weight.shape
    if any(h.columns != width for h in hessians) or rows % len(hessians):
        raise ArgumentError(
            "hessian",
            got=[h.columns for h in hessians],
            expected=f"K = {width}, groups that divide N = {rows}",
        )
    if len(hessians) > 1 and option.format != "int":
        raise ArgumentError("format of a grouped layer", got=option.format, expected="'int'")
    storable = ScaleRange.of(weight, min(option.bits, 8))
    chunk = max(CHUNK_ELEMENTS // width, MIN_CHUNK_ROWS) // BLOCK_ROWS * BLOCK_ROWS
    parts = [
        _compress_rows(part / storable.unit, option, h, storable, sweeps)
        for h, group in zip(hessians, weight.chunk(len(hessians)))
        for part in group.split(chunk)
    ]
    values, scales, zeros, masks = (torch.cat(p) if p[0] is not None else None for p in zip(*parts))
    if option.bits >= 16:
        return float_survivors(values * storable.unit, masks, option)
    return Quantized(values, storable.store(scales), None if option.symmetric else zeros, masks, option)


def _as_list(hessian: Tensor | Hessian | Sequence[Hessian]) -> list[Hessian]:
    if isinstance(hessian, Tensor):
        return [Hessian(hessian)]
    return [hessian] if isinstance(hessian, Hessian) else list(hessian)


def _compress_rows(
    weight: Tensor, option: Option, hessian: Hessian, storable: ScaleRange, sweeps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Codes (or float survivors) [n, K], scales and zero points [n, G], mask [n, K] of some rows."""
    factor = hessian.factor(option.group_size, sort_across=option.format != "2:4")
    weight = hessian.retarget(weight, factor)
    rows, width = weight.shape
    groups = ceil_div(width, option.group_size) if option.group_size else 1
    float_values = option.bits >= 16
    ordered = weight.T[factor.order].contiguous()
    columns = Columns(
        weight=ordered,
        steps=torch.zeros_like(ordered),
        scales=torch.full((groups, rows), 1.0 if float_values else 0.0, device=weight.device),
        zeros=torch.zeros(groups, rows, device=weight.device),
        mask=None if option.format == "int" else torch.zeros_like(ordered),
        top=None if float_values else float((1 << option.bits) - 1),
    )
    _sweep_once(columns, factor, option, storable)
    descend(columns, factor, storable, sweeps)
    back = torch.argsort(factor.order)
    mask = None if columns.mask is None else columns.mask[back].T.contiguous().bool()
    codes = columns.steps[back].T.contiguous()
    zeros = columns.zeros.T.contiguous()
    if not float_values:
        group_of = torch.arange(width, device=weight.device) // (option.group_size or width)
        codes = codes.add_(zeros[:, group_of]).to(torch.uint8)
    return codes, columns.scales.T.contiguous(), zeros.to(torch.uint8), mask


def _sweep_once(columns: Columns, factor: Factor, option: Option, storable: ScaleRange) -> None:
    """The pass of GPTQ and SparseGPT: fills masks, grids and steps, unit by unit."""
    working = columns.weight.clone()
    inverse_diagonal = factor.upper.square().sum(0)
    quotas = None
    if columns.mask is not None:
        quotas = _choose_first_mask(columns, factor, option, inverse_diagonal)
    fitted = set()
    for index, unit in enumerate(factor.units):
        inside = slice(unit.start, unit.stop)
        upper = factor.upper[inside, inside]
        # the error of a column after the best repair by the later ones is (w - ŵ)² / U_jj²
        importance = upper.diagonal().square().reciprocal()
        if quotas is not None:
            score = (working[inside].square() * importance[:, None]).T
            columns.mask[inside] = _choose_unit_mask(score, factor.order[inside], option, quotas[index]).T
        if columns.top is not None and unit.group not in fitted:
            fitted.add(unit.group)
            if option.group_size == 0:  # fitted once, to columns that earlier errors have not reached yet
                inside, importance = slice(None), factor.hessian.diagonal()
            kept = working[inside] if columns.mask is None else working[inside] * columns.mask[inside]
            columns.scales[unit.group], columns.zeros[unit.group] = fit_grid(
                kept.T.contiguous(), importance, option.bits, option.symmetric, storable
            )
        errors = _round_unit(columns, working[unit.start : unit.stop], upper, unit)
        working[unit.stop :].addmm_(factor.upper[unit.start : unit.stop, unit.stop :].T, errors, alpha=-1.0)


def _choose_first_mask(
    columns: Columns, factor: Factor, option: Option, inverse_diagonal: Tensor
) -> list[Tensor]:
    """Sets the mask of optimal brain surgery; returns how many it keeps in each unit of each 16-row block.

    The sweep chooses again inside each unit, when the weights are known as the earlier columns left them.
    """
    back = torch.argsort(factor.order)
    score = (columns.weight.square() / inverse_diagonal[:, None])[back].T
    mask = choose_mask(score, option)[:, factor.order]
    columns.mask.copy_(mask.T)
    padded = torch.nn.functional.pad(mask, (0, 0, 0, -len(mask) % BLOCK_ROWS)).view(
        -1, BLOCK_ROWS, mask.shape[1]
    )
    per_column = padded.sum(1)
    return [per_column[:, unit.start : unit.stop].sum(1) for unit in factor.units]


def _choose_unit_mask(score: Tensor, order: Tensor, option: Option, quota: Tensor) -> Tensor:
    """The mask of one unit: [n, k]."""
    if option.format == "bitmap":
        return keep_quota(score, quota)
    places = torch.argsort(order)  # fours are neighbors in the weight, not in the order of work
    return keep_two_of_four(score[:, places])[:, torch.argsort(places)]


def _round_unit(columns: Columns, working: Tensor, upper: Tensor, unit: Unit) -> Tensor:
    """Rounds the columns of one unit in turn; returns their errors over U_jj, [k, n]."""
    scale, snap = columns.scales[unit.group], columns.snapper(unit.group)
    diagonal = upper.diagonal().tolist()
    errors = torch.empty_like(working)
    for j in range(len(working)):
        step = snap(working[j], unit.start + j)
        columns.steps[unit.start + j] = step
        torch.div(torch.addcmul(working[j], step, scale, value=-1.0), diagonal[j], out=errors[j])
        working[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1.0)
    return errors
