"""Deploy both halves without this package's Python: TorchScript files that need torch and the op library
only.

    python examples/torchscript_halves.py [--small] [--output FOLDER]

The second half of this file is what a device and a server run; it is started as a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import torchcoinfer as tci

RUN_HALF = """
import sys, warnings, torch
warnings.simplefilter("ignore", FutureWarning)  # torch announces that TorchScript will go
library, half, given, result = sys.argv[1:]
torch.ops.load_library(library)          # registers the ops; no Python of torchcoinfer is imported
tensors = torch.load(given)
output = torch.jit.load(half)(*tensors)
torch.save(output if isinstance(output, (tuple, list)) else (output,), result)
assert not any(name.startswith("torchcoinfer") for name in sys.modules)
"""


class Classifier(nn.Module):
    """Two branches that meet: the cut may have to send two tensors."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.tanh(self.left(x)) + torch.relu(self.right(x)))


def run_half(library: Path, half: Path, tensors: tuple, folder: Path) -> tuple:
    """One half in a fresh process."""
    given, result = folder / "given.pt", folder / "result.pt"
    torch.save(tensors, given)
    subprocess.run([sys.executable, "-c", RUN_HALF, library, half, given, result], check=True, cwd=folder)
    return torch.load(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a narrower model")
    parser.add_argument("--output", type=Path, help="keep the exported files here")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Classifier(96 if options.small else 512).eval()
    data = [(torch.randn(8, 64),) for _ in range(6)]
    # a sixth of the float32 weights on either side: neither holds the model, both together do
    memory = 4 * sum(parameter.numel() for parameter in model.parameters()) / 6
    result = tci.compress_and_split(
        model,
        tci.Budget(latency="100 ms", device_memory=memory, server_memory=memory),
        example_inputs=(data[0][0][:1],),
        calibration=data,
        device="raspberry-pi-5",
        server="laptop-4core",
        search=tci.Search(bits=(4, 8), sparsities=(0.0,), algorithms=("nearest",)),
        progress=False,
    )
    library = Path(tci.__file__).parent / "_C.so"
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.output or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        device, server = result.export(folder, format="torchscript")
        x = torch.randn(3, 64)  # another batch size than the one traced
        sent = run_half(library, Path(device).resolve(), (x,), Path(scratch))
        (answer,) = run_half(library, Path(server).resolve(), sent, Path(scratch))
    with torch.no_grad():
        expected = result.server(*result.device(x))
    error = float((answer - expected).abs().max() / expected.abs().max())
    print(f"cut {result.plan.cut.name}: {len(sent)} tensors cross; off by {error:.1e} of the largest output")
    assert error <= 1e-5


if __name__ == "__main__":
    main()
