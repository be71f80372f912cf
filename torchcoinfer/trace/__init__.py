"""nn.Module -> Graph, through ``torch.export``: what can be compressed, where it can be cut, its costs."""

from torchcoinfer.trace.build import coded_leading_dims
from torchcoinfer.trace.tracer import Traced, trace

__all__ = ["Traced", "coded_leading_dims", "trace"]
