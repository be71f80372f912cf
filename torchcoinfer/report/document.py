"""``Report``: the text that prints, and the page that is saved."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcoinfer.report import content, page
from torchcoinfer.report.text import format_bytes, format_table
from torchcoinfer.theory.plan import Plan

_RESOURCE_COLUMNS = ("resource", "predicted", "budget", "used", "basis")


class Report:
    """What a plan says.

    Args:
        plan: the plan.
        details: what the pipeline knows beside it; keys in the docstring of ``torchcoinfer.report``.
    """

    def __init__(self, plan: Plan, details: Mapping[str, Any] | None = None):
        self.plan, self.details = plan, dict(details or {})

    def __str__(self) -> str:
        return "\n\n".join(f"{title}\n{body}" for title, body in self.sections() if body)

    def sections(self) -> list[tuple[str, str]]:
        """(heading, text) of every part."""
        plan, details = self.plan, self.details
        notes = [f"* {note}" for note in details.get("notes") or ()]
        return [
            ("LAYERS", self._layers()),
            ("CUT", "\n".join(content.cut_sentences(plan))),
            ("BUDGET", format_table(content.resource_rows(plan), _RESOURCE_COLUMNS)),
            ("WEIGHTS (units of the weights)", "\n".join(content.weight_sentences(plan))),
            ("OUTPUT (relative output error)", format_table(content.output_rows(plan))),
            ("TELESCOPE", format_table(content.telescope_rows(plan))),
            ("QUALITY", format_table(details.get("quality") or ())),
            ("ALTERNATIVES", format_table(content.alternative_rows(plan))),
            ("FRONT", format_table(content.front_rows(plan))),
            ("BANDWIDTH", content.bandwidth_sentence(plan)),
            ("CLAIM", content.optimality_sentence(plan)),
            ("NOTES", "\n".join(notes)),
        ]

    def _layers(self) -> str:
        rows = content.layer_rows(self.plan, self.details.get("weight_numel") or {})
        total = {
            side: sum(
                layer.packed_bytes for layer in self.plan.layers.values() if layer.side in (side, "both")
            )
            for side in ("device", "server")
        }
        sums = ", ".join(f"{format_bytes(count)} on the {side}" for side, count in total.items() if count)
        return f"{format_table(rows)}\npacked weights: {sums or 'none'}"

    def save_html(self, path: str | Path) -> Path:
        """Write the page, pictures embedded, to ``path``; the file appears whole or not at all.

        Raises:
            MissingExtra: matplotlib is not installed (extra ``report``).
        """
        return write_text(Path(path), page.render(self.plan, self.details))


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` in UTF-8 to ``path``, which appears whole or not at all; returns ``path``."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
