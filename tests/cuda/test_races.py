"""ThreadSanitizer over the CUDA kernels on the host model (races.cpp)."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/cuda/host_model"
FLAGS = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-w", f"-I{MODEL}", f"-I{ROOT / 'csrc'}"]
RACE = 66  # the sanitizer's exit status


def build(folder: Path) -> Path:
    """The scheduler itself without the sanitizer: its state is nobody's race."""
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), MODEL / "probes.cu", ROOT / "tests/cuda/races.cpp"]
    scheduler = [MODEL / "host_model.cpp", MODEL / "hopper_model.cpp"]

    def compile_one(source: Path, *flags: str) -> str:
        target = folder / f"{source.name}.o"
        command = ["c++", *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(compile_one, source, "-fsanitize=thread") for source in sources]
        jobs += [pool.submit(compile_one, source, "-DHOST_MODEL_RACES") for source in scheduler]
        objects = [job.result() for job in jobs]
    program = folder / "races"
    subprocess.run(["c++", "-fsanitize=thread", *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_no_kernel_races(tmp_path):
    program = build(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        # without randomized addresses: old sanitizers know only some of the places a kernel may map
        command = ["setarch", "-R", str(program), *arguments] if shutil.which("setarch") else [str(program)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    planted = run("planted")
    assert planted.returncode == RACE and "data race" in planted.stderr, planted.stderr[-2000:]
    done = run()
    assert done.returncode == 0 and "0 failures" in done.stdout, done.stdout[-1000:] + done.stderr[-6000:]
