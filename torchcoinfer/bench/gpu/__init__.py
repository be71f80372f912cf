"""``torchcoinfer bench kernels --device cuda``: correctness over the grid, then times in CUDA graphs."""
