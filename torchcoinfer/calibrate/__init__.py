"""Calibration: from batches of inputs to what scoring and compression need."""

from torchcoinfer.calibrate.batches import read_batches, split_validation
from torchcoinfer.calibrate.judge import Judge
from torchcoinfer.calibrate.sensitivity import embedding_sensitivity
from torchcoinfer.calibrate.statistics import Statistics, calibrate
from torchcoinfer.calibrate.stream import Segment, Stream

__all__ = [
    "Judge",
    "Segment",
    "Statistics",
    "Stream",
    "calibrate",
    "embedding_sensitivity",
    "read_batches",
    "split_validation",
]
