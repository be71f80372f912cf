"""What ``compress_and_split`` returns and ``load`` reads back: two halves, and the plan that they obey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchcoinfer import export as _export
from torchcoinfer import store
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
    """

    def __init__(
        self,
        device: nn.Module,
        server: nn.Module,
        plan: Plan,
        details: Mapping[str, Any],
        compressed: nn.Module | None = None,
    ):
        self.device, self.server, self.plan, self.details = device, server, plan, details
        self.compressed = compressed
        self.session = Session(device, server)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.device, self.server))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run both halves here, through the wire codec; the model's arguments in, its own output out."""
        return self.session(*args, **kwargs)

    def report(self) -> Report:
        """Per-layer table, bounds beside measurements, alternatives; ``print`` it or ``.save_html(path)``."""
        return Report(self.plan, self.details)

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
