"""What ``compress_and_split`` returns and ``load`` reads back: two halves, and the plan that they obey."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from torchcoinfer import export as _export
from torchcoinfer import store
from torchcoinfer.errors import PlanError
from torchcoinfer.report import Report
from torchcoinfer.runtime.session import Session
from torchcoinfer.theory.plan import Plan


class Result:
    """A model compressed and divided: ``device, server = result``.

    Attributes:
        device: the device half; takes the model's own arguments, returns the tensors that cross the cut.
        server: the server half; takes those tensors, returns the model's own output structure.
        plan: the ``Plan`` that both obey.
        details: plain data for the report: curves, what each stage said.
        compressed: the undivided compressed model, sharing its tensors with the halves; None after ``load``,
            which needs no model code.
        attribute: makes the ``telescope``; None after ``load``.
    """

    def __init__(
        self,
        device: nn.Module,
        server: nn.Module,
        plan: Plan,
        details: Mapping[str, Any],
        compressed: nn.Module | None = None,
        attribute: Callable[[], Any] | None = None,
    ):
        self.device, self.server, self.plan, self.details = device, server, plan, details
        self.compressed, self._attribute = compressed, attribute
        self.session = Session(device, server)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.device, self.server))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run both halves here, through the wire codec; the model's arguments in, its own output out."""
        return self.session(*args, **kwargs)

    def report(self, telescope: bool = False) -> Report:
        """Per-layer table, bounds beside measurements, alternatives; ``print`` it or ``.save_html(path)``.

        ``telescope``: also where the error comes from, layer by layer; see :meth:`telescope`.
        """
        if not telescope:
            return Report(self.plan, self.details)
        found = self.telescope()
        told = {
            "value": float(found.bound.square().mean()), "n": len(found.bound), "steps": dict(found.steps),
        }  # fmt: skip
        output = {**self.plan.bounds.get("output", {}), "telescope": told}
        return Report(replace(self.plan, bounds={**self.plan.bounds, "output": output}), self.details)

    def telescope(self) -> Any:
        """What each layer adds to the output error when one more is compressed, on the validation data.

        Exact on these samples, and about no others; one forward pass a layer.

        Returns:
            a ``measure.Telescope``: ``steps`` (layer -> relative error added), per sample ``bound`` (their
            sum) and ``actual`` (never above it).

        Raises:
            CalibrationError: there were no validation data. ArgumentError: the metric is not "output_mse".
            PlanError: the result was loaded from a folder, which holds neither the model nor data.
        """
        if self._attribute is None:
            raise PlanError(
                "a loaded result cannot attribute its error to layers", got="a folder without model and data",
                expected="the result of compress_and_split or apply_plan",
                remedy="apply_plan(model, result.plan, validation=...).telescope()",
            )  # fmt: skip
        return self._attribute()

    def save(self, path: str | Path) -> Path:
        """Write a folder that :func:`load` reads without the model's code; nothing is left if it fails."""
        return store.save(path, plan=self.plan, device=self.device, server=self.server, details=self.details)

    def export(self, path: str | Path, format: str = "torchscript") -> tuple[Path, Path]:
        """Write both halves as files that run without this package's Python ("torchscript" | "pt2" | "aoti").

        Returns:
            the device file and the server file.
        """
        return _export.export_halves(self.device, self.server, path, format=format)


def load(path: str | Path) -> Result:
    """Read what :meth:`Result.save` wrote.

    Raises:
        FormatError: a file is missing, truncated or changed.
    """
    saved = store.load(path)
    return Result(saved.device, saved.server, saved.plan, saved.details)
