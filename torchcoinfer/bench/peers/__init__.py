"""Other people's kernels for the same product, each with the same number of threads and weights of its own.

A peer is a function ``(case, threads) -> Contender``. One that is not installed raises MissingExtra; one that
does not serve the shape, or that this torch does not have, raises KernelError. Both are listed as missing.
"""

from torchcoinfer.bench.peers.registry import FOUR_BIT, PEERS, Missing, make_peers

__all__ = ["FOUR_BIT", "PEERS", "Missing", "make_peers"]
