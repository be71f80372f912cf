"""Builds the kernels with sanitizers (AMX tiles in plain C++: tile_model.h) and for aarch64, and runs them.

linear_truth.cpp   linear calls against float64, int8 activations exactly
sanitize.cpp       dense ops of odd shapes, every path against the scalar one
random_shapes.cpp  10^5 random calls of every op, likewise
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = [p for p in sorted((ROOT / "csrc/cpu").glob("*.cpp")) if not p.stem.startswith("register")]
PROGRAMS = ("linear_truth", "sanitize", "random_shapes")
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
TILE_MODEL = [f"-I{ROOT / 'tests/csrc'}", '-DTORCHCOINFER_TILES="tile_model.h"']
# wide zones around every allocation, so that an access far beyond one is caught too
ENVIRONMENT = {"ASAN_OPTIONS": "redzone=512:quarantine_size_mb=4"}
RANDOM_CASES = 100_000
# aarch64 without dot products, with them, and with matrix products too
ARM_CPUS = {"cortex-a72": "base", "cortex-a76": "dotprod", "max": "i8mm"}


def build(compiler: str, flags: list[str], folder: Path) -> Path:
    """Compiles the kernels once and links them to each of the programs in `folder`."""
    base = [compiler, "-std=c++20", "-fno-math-errno", "-w", f"-I{ROOT / 'csrc'}", *flags]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        subprocess.run([*base, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, KERNELS))
        mains = list(pool.map(compile_one, [ROOT / f"tests/csrc/{name}.cpp" for name in PROGRAMS]))
    for name, main in zip(PROGRAMS, mains):
        subprocess.run([*base, main, *objects, "-o", str(folder / name)], check=True)
    return folder


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    return build("c++", [*SANITIZE, *TILE_MODEL], tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    if shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("no aarch64 cross compiler and qemu-user")
    return build("aarch64-linux-gnu-g++", ["-O2", "-static"], tmp_path_factory.mktemp("crossed"))


def run(*command: object) -> str:
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " 0 wrong" in done.stdout
    return done.stdout


@pytest.mark.slow
def test_linear_against_float64(sanitized):
    told = run(sanitized / "linear_truth")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert "amx" in told or "avx512_vnni" not in flags


@pytest.mark.slow
def test_no_address_or_undefined_behavior_error(sanitized):
    run(sanitized / "sanitize")


@pytest.mark.slow
def test_random_shapes_stay_in_bounds(sanitized):
    assert f"{RANDOM_CASES} cases" in run(sanitized / "random_shapes", RANDOM_CASES, 0)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ARM_CPUS)
@pytest.mark.parametrize("program", ["linear_truth", "sanitize"])
def test_aarch64_under_qemu(crossed, program, cpu):
    told = run("qemu-aarch64", "-cpu", cpu, crossed / program)
    assert program != "linear_truth" or f"({ARM_CPUS[cpu]})" in told


@pytest.mark.slow
def test_random_shapes_under_qemu(crossed):
    run("qemu-aarch64", "-cpu", "max", crossed / "random_shapes", 3000, 0)
