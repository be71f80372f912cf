"""Which tensor of the output is judged, and by which measure: relative error, or KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.models import judged_tensor

METRICS = ("output_mse", "kl")


@dataclass(frozen=True)
class Judge:
    """Takes the judged tensor [B, ...] out of a model's output and measures errors of it, per sample.

    Attributes:
        output: from the model's output to the judged tensor; None: ``logits``, else the first floating one.
        mask_position: which flat input is the attention mask; padded positions of a tensor that begins
            with the mask's (B, S) are then set to zero.
        metric: "output_mse": squared error over the squared norm of the output. "kl": KL(p || p̂) of
            p = softmax over the last dimension, summed over positions, over KL(p || uniform), so that 1 means
            "as wrong as knowing nothing".
    """

    output: Callable[[Any], Tensor] | None = None
    mask_position: int | None = None
    metric: str = "output_mse"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ArgumentError("unknown metric", got=repr(self.metric), expected=" | ".join(METRICS))

    def tensor(self, structure: Any, inputs: Sequence[Tensor]) -> Tensor:
        """The judged tensor [B, ...].

        Raises:
            CalibrationError: the output holds no floating tensor, or it does not lead with the batch.
        """
        judged = self.output(structure) if self.output is not None else judged_tensor(structure)
        if not isinstance(judged, Tensor) or not judged.is_floating_point():
            raise CalibrationError(
                "the judged output is not a floating tensor",
                got=type(judged).__name__,
                remedy="pass Search(output=...), a callable from the model's output to one tensor",
            )
        batch = batch_size(inputs)
        if judged.dim() == 0 or judged.shape[0] != batch:
            raise CalibrationError(
                "the judged output does not lead with the batch",
                got=tuple(judged.shape),
                expected=f"({batch}, ...)",
                remedy="pass Search(output=...) that gives one row a sample",
            )
        if self.mask_position is not None:
            mask = inputs[self.mask_position]
            if mask.dim() == 2 and judged.dim() >= 2 and judged.shape[:2] == mask.shape:
                padded = (mask == 0).reshape(*mask.shape, *(1,) * (judged.dim() - 2))
                judged = judged.masked_fill(padded, 0.0)
        return judged

    def signal(self, judged: Tensor) -> Tensor:
        """What an error is compared with, float64 [B]: squared norm, or KL from the uniform distribution."""
        if self.metric == "output_mse":
            return judged.double().square().flatten(1).sum(1)
        return self.error(judged, torch.zeros_like(judged))

    def error(self, judged: Tensor, changed: Tensor) -> Tensor:
        """Error of ``changed`` against ``judged``, both [B, ...]; [B] in float64, not yet relative."""
        if self.metric == "output_mse":
            return (changed.double() - judged.double()).square().flatten(1).sum(1)
        log_p = judged.double().log_softmax(-1)
        log_q = changed.double().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).flatten(1).sum(1).clamp_min(0.0)

    def probe(self, judged: Tensor, noise: Tensor) -> Tensor:
        """A random direction u with E[uuᵀ] = the metric's second derivative at ``judged``, up to a factor.

        ``noise`` has independent entries of mean 0 and variance 1. "output_mse": u = noise, E[uuᵀ] = 1, and
        E(uᵀv)² = ‖v‖². "kl": u = √p ε − p (√p·ε), E[uuᵀ] = diag(p) − ppᵀ, the Fisher matrix of the logits,
        and ½ E(uᵀv)² is the KL divergence to second order.
        """
        if self.metric == "output_mse":
            return noise
        p = judged.detach().softmax(-1)
        root = p.sqrt() * noise
        return root - p * root.sum(-1, keepdim=True)

    def root(self, judged: Tensor, change: Tensor) -> Tensor:
        """v with ‖v‖² = the metric's second-order form of a change of ``judged``, up to ``factor``; [B, n].

        "output_mse": the change itself. "kl": √p (Δ − p·Δ), whose squared norm is Δᵀ(diag(p) − ppᵀ)Δ.
        """
        if self.metric == "output_mse":
            return change.flatten(1)
        p = judged.detach().softmax(-1)
        return (p.sqrt() * (change - (p * change).sum(-1, keepdim=True))).flatten(1)

    @property
    def factor(self) -> float:
        """What (uᵀv)² is multiplied with: 1, or ½ for the KL divergence."""
        return 1.0 if self.metric == "output_mse" else 0.5


def batch_size(inputs: Sequence[Tensor]) -> int:
    """Samples of one batch: the leading size of the first input that has one."""
    return next((value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()), 1)
