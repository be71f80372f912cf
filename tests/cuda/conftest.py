"""Builds the CUDA sources with the host's C++ compiler against ``host_model/``, once a session.

TORCHCOINFER_HOST_MODEL_BUILD names a folder that keeps the objects: only what changed is then compiled again.
"""

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from torchcoinfer.ops.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/cuda/host_model"
NAMESPACE = "torchcoinfer_host_model"
TORCH = Path(torch.__file__).parent
INCLUDES = [f"-I{MODEL}", f"-I{ROOT / 'csrc'}"]
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DTORCHCOINFER_HOST_MODEL"]
TORCH_FLAGS = ["-O0", "-DTORCH_TARGET_VERSION=0x020B000000000000", f"-isystem{TORCH / 'include'}"]
PROBES = ["probe_multiply_16", "probe_multiply_8", "probe_multiply_sparse", "probe_reverse"]
PROBES += ["probe_warpgroup"]
PROBES += [f"layout_check_{what}" for what in ("dense", "survivors", "index", "bytes")]
# (poison of unwritten memory, order of threads): 0 ascending, 1 descending, else a seed
CONFIGURATIONS = ((0xFF, 0), (0xA5, 1), (0x3C, 7))


@dataclass(frozen=True)
class HostModel:
    """The model as a library of probes and as ``torch.ops.torchcoinfer_host_model``."""

    library: ctypes.CDLL
    keeps_schemas_alive: torch.library.Library

    @property
    def ops(self):
        return torch.ops.torchcoinfer_host_model

    def configure(self, poison: int, order: int) -> None:
        self.library.host_model_configure(poison, order)


def compile_one(source: Path, target: Path) -> Path:
    """Compiles what is older than a file it was made from, by the compiler's own list of them."""
    listed = target.with_suffix(".d")
    made_from = listed.read_text().replace("\\\n", " ").split()[1:] if listed.exists() else []
    paths = [Path(name) for name in made_from]
    fresh = target.exists() and bool(paths) and all(path.exists() for path in paths)
    if not fresh or max(path.stat().st_mtime for path in paths) > target.stat().st_mtime:
        of_torch = TORCH_FLAGS if source.parent.name == "cuda" and source.suffix == ".cpp" else []
        flags = [*FLAGS, *of_torch, *INCLUDES, "-MMD", "-MF", str(listed)]
        command = ["c++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:]
    return target


def build(folder: Path) -> Path:
    """The library, built in ``folder``; the files with torch headers first, they take longest."""
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cpp")), *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    sources += [*sorted(MODEL.glob("*.cpp")), *sorted(MODEL.glob("*.cu"))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(compile_one, s, folder / f"{s.name}.o") for s in sources]
        objects = [str(job.result()) for job in jobs]
    library = folder / "libhost_model.so"
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
    subprocess.run(["c++", "-shared", *objects, *libraries, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="session")
def host_model(tmp_path_factory) -> HostModel:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    kept = os.environ.get("TORCHCOINFER_HOST_MODEL_BUILD")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("host_model")
    folder.mkdir(parents=True, exist_ok=True)
    path = build(folder)
    schemas = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        schemas.define(schema)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    for name in PROBES:
        getattr(library, name).restype = ctypes.c_char_p
    return HostModel(library, schemas)


@pytest.fixture(
    params=[
        pytest.param(one, id=f"poison{one[0]:x}-order{one[1]}", marks=[pytest.mark.slow] * bool(i))
        for i, one in enumerate(CONFIGURATIONS)
    ]
)
def model(host_model, request) -> HostModel:
    """The host model, in each of its configurations: a result that depends on them is a bug of the kernel.

    The first, shared memory full of NaN, is the quick one; the others run with ``-m slow``.
    """
    host_model.configure(*request.param)
    return host_model
