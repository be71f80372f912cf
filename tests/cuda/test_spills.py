"""What ptxas says of the kernels: none of those listed as hot may spill registers, nor a fast one use local
memory (registers that are indexed at run time go there, and are not called spills).
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
# and every file whose name begins with "fast_"
HOT = ("activation", "dequantize", "grid", "quant_linear", "sparse_linear")


def spilling(source: Path, target: Path) -> list[str]:
    """Kernels of a source that spill, and of a fast one those with a stack frame, by ptxas' report."""
    command = [NVCC, "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
    command += [f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr, done.stderr[-4000:]
    # wgmma one by one: C7510 and its neighbors
    assert "Performance Loss" not in done.stderr, done.stderr[-4000:]
    line = r"properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes"
    reports = re.findall(line, done.stderr)
    assert reports, "ptxas reports no kernel"
    fast = source.stem.startswith("fast_")
    return [
        f"{name}: {stores} stored, {loads} loaded, {frame} of stack"
        for name, frame, stores, loads in reports
        if int(stores) + int(loads) or fast and int(frame)
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path(NVCC).exists(), reason="skipped: no nvcc")
def test_hot_kernels_do_not_spill(tmp_path):
    names = [*HOT, *(path.stem for path in (ROOT / "csrc/cuda").glob("fast_*.cu"))]
    with ThreadPoolExecutor(2) as pool:
        jobs = {n: pool.submit(spilling, ROOT / f"csrc/cuda/{n}.cu", tmp_path / f"{n}.o") for n in names}
        assert {name: job.result() for name, job in jobs.items() if job.result()} == {}
