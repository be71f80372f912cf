"""What a plan says, for people: text tables, pictures, one self-contained HTML page. Plain data in, no model.

``details`` (all optional, all plain JSON) is what the pipeline knows beside the plan:

* ``title``: str, what was compressed.
* ``curves``: layer -> list of {"bits_per_weight", "distortion", "scaled_l1", "chosen"}: the options that were
  scored; ``distortion`` is the relative output error, ``scaled_l1`` is lam E|w - w'| (unit-free) or None.
* ``latency_parts``: list of [name, seconds] whose sum is the predicted latency; default from the plan.
* ``weight_numel``: layer -> number of weights.
* ``quality``: list of {"name", "value", ...} rows to print after the bounds, columns as they come.
* ``notes``: list of str, losses and estimates in words.
"""

from torchcoinfer.report.document import Report, write_text
from torchcoinfer.report.text import format_table

__all__ = ["Report", "format_table", "write_text"]
