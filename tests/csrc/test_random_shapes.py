"""Builds the CPU kernels with sanitizers and calls them in 10^5 random shapes (random_shapes.cpp)."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = 100_000
FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# wide zones around every allocation, so that an access far beyond one is caught too
ENVIRONMENT = {"ASAN_OPTIONS": "redzone=512:quarantine_size_mb=4"}


def build(folder: Path) -> Path:
    base = ["c++", "-std=c++20", "-fno-math-errno", "-w", f"-I{ROOT / 'csrc'}", *FLAGS]
    kernels = [p for p in sorted((ROOT / "csrc/cpu").glob("*.cpp")) if not p.stem.startswith("register")]
    sources = [*kernels, ROOT / "tests/csrc/random_shapes.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        subprocess.run([*base, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    program = folder / "random_shapes"
    subprocess.run([*base, *map(str, objects), "-o", str(program)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_random_shapes_stay_in_bounds(tmp_path):
    command = [str(build(tmp_path)), str(CASES), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"{CASES} cases, 0 wrong" in done.stdout
