"""The way through the house: the arrows from a model and a budget to two halves that obey a plan."""

from torchcoinfer.pipeline.api import apply_plan, compress_and_split
from torchcoinfer.pipeline.explore import pareto

__all__ = ["apply_plan", "compress_and_split", "pareto"]
