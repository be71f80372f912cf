"""Builds the dense kernels with sanitizers, and for aarch64, and walks them over odd shapes."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = (
    "conv2d_gemm",
    "conv2d_image",
    "conv2d_narrow",
    "conv2d_narrow_avx512",
    "conv2d_panels",
    "digit_gemm_avx512",
    "digit_gemv_avx512",
    "digit_rows_avx512",
    "digits_avx512",
    "linear_avx2",
    "linear_scalar",
    "pack",
    "quant_conv2d",
    "quant_embedding",
    "quant_linear",
    "rows",
)
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
AARCH64 = ["-O2", "-static"]


def build(compiler: str, flags: list[str], folder: Path) -> Path:
    base = [compiler, "-std=c++20", "-fno-math-errno", "-w", f"-I{ROOT / 'csrc'}", *flags]
    sources = [ROOT / "csrc/cpu" / f"{name}.cpp" for name in KERNELS] + [ROOT / "tests/csrc/sanitize.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        commands = [[*base, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects)]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    program = folder / "walk"
    subprocess.run([*base, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " 0 wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_no_address_or_undefined_behavior_error(tmp_path):
    run([str(build("c++", SANITIZE, tmp_path))])


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no aarch64 cross compiler and qemu-user",
)
def test_aarch64_under_qemu(tmp_path):
    run(["qemu-aarch64", str(build("aarch64-linux-gnu-g++", AARCH64, tmp_path))])
