"""Decisions that must agree in one attribute and are free in all others.

Structured pruning removes a channel from every tensor that carries it: the rows of the layer that makes it,
the columns of the layers that read it, all layers of a residual stream. Their options then need the same
share of kept channels, but not the same bits. A ``Coupling`` says so; a ``group`` of layers (fused
projections, which are stored as one) takes one option in all attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcoinfer.errors import ArgumentError

JOINT_LIMIT = 100_000  # joint values of couplings that one elimination step may have


@dataclass(frozen=True)
class Coupling:
    """Members whose chosen options have equal values of an attribute.

    Attributes:
        members: (name of a layer, field of its ``Option``) or (name of a tensor, field of its ``CutOption``):
            (("mlp.up", "kept_rows"), ("mlp.down", "kept_columns"), ("mlp.up#0:0", "kept")). A tensor counts
            only where it crosses the cut.
    """

    name: str
    members: tuple[tuple[str, str], ...]


def check_couplings(
    couplings: Sequence[Coupling], options: Mapping[str, Sequence[Any]], where: str = "the graph"
) -> None:
    """Raises ArgumentError for an unknown member or attribute, or members without a value in common."""
    for coupling in couplings:
        common: set[Any] | None = None
        for name, attribute in coupling.members:
            if name not in options or not all(hasattr(option, attribute) for option in options[name]):
                raise ArgumentError(
                    f"coupling {coupling.name!r} has a member that {where} does not have",
                    got=f"{attribute!r} of {name!r}", expected="a layer or tensor and a field of its options",
                    remedy="name the layers and tensors as the graph does",
                )  # fmt: skip
            values = {getattr(option, attribute) for option in options[name]}
            common = values if common is None else common & values
        if not common:
            raise ArgumentError(
                f"the members of coupling {coupling.name!r} have no value in common", got=coupling.members,
                expected="at least one value that some option of every member has",
                remedy="give every member an option that leaves it as it is",
            )  # fmt: skip


class Coupled:
    """The couplings of one cut as labels: what the solver needs of them.

    Args:
        labels: [K, G, I], the value of coupling k that item i of decision g has, as a number; -1 where g is
            no member of k, or where there is no such item.
    """

    def __init__(self, labels: np.ndarray):
        self.labels = labels
        self.member = (labels >= 0).any(axis=2)  # [K, G]
        self.sizes = labels.max(axis=(1, 2), initial=-1) + 1
        scopes: dict[tuple[int, ...], list[int]] = {}
        for g in np.flatnonzero(self.member.any(axis=0)).tolist():
            scopes.setdefault(tuple(np.flatnonzero(self.member[:, g]).tolist()), []).append(g)
        self.scopes = {scope: np.array(decisions) for scope, decisions in scopes.items()}

    def minimum(self, scores: np.ndarray) -> np.ndarray:
        """Items [G, P] of least total score that agree. scores: [G, I, P], +inf where there is no item.

        Exact: every decision's least score per joint value of its couplings, then the couplings are
        eliminated one after the other, each at the least joint size.
        """
        factors = {scope: self._least(scores, scope, own) for scope, own in self.scopes.items()}
        chosen = self._eliminate(factors, scores.shape[2])  # [K, P]
        fits = np.ones(scores.shape, dtype=bool)
        for k in range(len(self.labels)):
            own = self.member[k]
            fits[own] &= self.labels[k, own][:, :, None] == chosen[k]
        return np.where(fits, scores, np.inf).argmin(axis=1)

    def _least(self, scores: np.ndarray, scope: tuple[int, ...], decisions: np.ndarray) -> np.ndarray:
        """[*values of the scope, P]: the sum over ``decisions`` of their least score at these values."""
        shape = tuple(self.sizes[list(scope)])
        code = np.zeros((len(decisions), scores.shape[1]), dtype=np.int64)
        for k in scope:
            label = self.labels[k, decisions]
            code = np.where((label < 0) | (code < 0), -1, code * self.sizes[k] + label)
        least = np.full((*shape, scores.shape[2]), 0.0)
        for value, place in enumerate(np.ndindex(*shape)):
            masked = np.where((code == value)[:, :, None], scores[decisions], np.inf)
            least[place] = masked.min(axis=1).sum(axis=0)
        return least

    def _eliminate(self, factors: dict[tuple[int, ...], np.ndarray], pairs: int) -> np.ndarray:
        left, steps = set(range(len(self.labels))), []

        def joint(k: int) -> list[int]:
            return sorted({other for scope in factors if k in scope for other in scope} - {k})

        while left:
            k = min(left, key=lambda v: (np.prod(self.sizes[joint(v)], initial=1), v))
            rest = joint(k)
            if np.prod(self.sizes[[*rest, k]]) > JOINT_LIMIT:
                raise ArgumentError(
                    "the couplings are too entangled", got=f"{len(rest) + 1} couplings decided at once",
                    expected=f"at most {JOINT_LIMIT} joint values", remedy="merge couplings, or fewer values",
                )  # fmt: skip
            total = np.zeros((*self.sizes[rest], self.sizes[k], pairs))
            for scope in [scope for scope in factors if k in scope]:
                total = total + _spread(factors.pop(scope), scope, [*rest, k])
            steps.append((k, rest, total.argmin(axis=-2)))
            if rest:
                key = tuple(rest)
                factors[key] = factors.get(key, 0.0) + total.min(axis=-2)
            left.remove(k)
        chosen = np.zeros((len(self.labels), pairs), dtype=np.int64)
        for k, rest, best in reversed(steps):
            chosen[k] = best[(*(chosen[other] for other in rest), np.arange(pairs))]
        return chosen

    def like(self, items: np.ndarray) -> np.ndarray:
        """[G, I] of bool: items with the same values as those of the plan ``items`` [G]."""
        own = self.labels[:, np.arange(len(items)), items]  # [K, G]
        return ((self.labels == own[:, :, None]) | ~self.member[:, :, None]).all(axis=0)

    def links(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Linear rows = 0 over the items: two masks [G, I], whose chosen items are equally many."""
        rows = []
        for k in range(len(self.labels)):
            first, *others = np.flatnonzero(self.member[k]).tolist()
            for g in others:
                for value in range(self.sizes[k]):
                    both = np.zeros((2, *self.labels.shape[1:]), dtype=bool)
                    both[0, first], both[1, g] = self.labels[k, [first, g]] == value
                    rows.append((both[0], both[1]))
        return rows


def _spread(table: np.ndarray, scope: tuple[int, ...], onto: Sequence[int]) -> np.ndarray:
    """A table over ``scope`` as one that broadcasts over ``onto`` (the last axis, of pairs, stays)."""
    order = sorted(range(len(scope)), key=lambda axis: list(onto).index(scope[axis]))
    moved = table.transpose(*order, len(scope))
    sizes = {scope[axis]: table.shape[axis] for axis in range(len(scope))}
    return moved.reshape(*(sizes.get(k, 1) for k in onto), table.shape[-1])


def make_coupled(
    couplings: Sequence[Coupling], decisions: Sequence[Mapping[str, Sequence[Any]]], valid: np.ndarray
) -> Coupled | None:
    """The couplings of one cut; None if there are none.

    Args:
        decisions: per decision, name of each layer or tensor in it -> its options in the order of the items.
        valid: [G, I]; items that disagree with themselves (rows and columns of one layer in one coupling) are
            struck out here.
    """
    if not couplings:
        return None
    place = {name: (g, options) for g, own in enumerate(decisions) for name, options in own.items()}
    labels = np.full((len(couplings), *valid.shape), -1, dtype=np.int64)
    for k, coupling in enumerate(couplings):
        values: dict[Any, int] = {}
        for name, attribute in coupling.members:
            if name not in place:
                continue  # a tensor that does not cross here
            g, options = place[name]
            found = np.array([values.setdefault(getattr(o, attribute), len(values)) for o in options])
            own = labels[k, g, : len(found)]
            if (own >= 0).any():
                valid[g, : len(found)] &= own == found
            labels[k, g, : len(found)] = found
    used = (labels >= 0).any(axis=2).sum(axis=1) > 1
    return Coupled(np.where(valid[None], labels, -1)[used]) if used.any() else None
