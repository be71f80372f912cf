"""Builds the two op libraries beside the Python package: torchcoinfer/_C.so and torchcoinfer/_cuda.so.

Neither uses a Python symbol (libtorch stable ABI only), so one wheel serves every Python.

Environment: TORCHCOINFER_CUDA = auto | 0 | 1 (auto: built when nvcc is found and csrc/cuda has kernels),
TORCHCOINFER_CUDA_ARCHS = "80;89;90a", NVCC, CXX, CXXFLAGS, MAX_JOBS (default 2).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1 has it in the wheel package
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020B000000000000"  # stable ABI of torch 2.11: loads in every torch from there on
HOST_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
# gcc 12 warns so inside its own headers (string, avx512fintrin.h: GCC bugs 105329 and 105593)
HOST_FLAGS += [
    "-Wno-unknown-warning-option",
    "-Wno-restrict",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]
SYSTEM_LIBRARIES = ["-ldl", "-lrt", "-lpthread"]
NEWEST_PTX = "89"  # kept as PTX, for GPUs newer than every cubin


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


HEADERS = sources("csrc/*.h", "csrc/cpu/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh")


def torch_paths() -> tuple[list[Path], Path, bool]:
    """Include folders, library folder, and whether the torch being built against has CUDA."""
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "torchcoinfer: building the kernels needs torch >= 2.11 in the build environment; "
            "`pip install .` installs it there, with --no-build-isolation install torch first"
        ) from error
    root = Path(torch.__file__).parent
    include = root / "include"
    return [include, include / "torch/csrc/api/include"], root / "lib", torch.version.cuda is not None


def find_nvcc() -> str | None:
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and Path(c).exists()), None)


def cuda_root(nvcc: str) -> Path:
    """The toolkit nvcc belongs to, asked from nvcc itself: the one on PATH may be a wrapper script."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    match = re.search(r"^#\$ TOP=(.+)$", dry.stderr + dry.stdout, re.MULTILINE)
    if not match:
        raise SystemExit(
            f"torchcoinfer: {nvcc} --dryrun names no toolkit root; set NVCC to the toolkit's own"
        )
    return Path(match.group(1).strip()).resolve()


def cuda_wanted(nvcc: str | None, torch_has_cuda: bool) -> bool:
    """Decides on the CUDA library and says which situation the build is in."""
    choice = os.environ.get("TORCHCOINFER_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"torchcoinfer: TORCHCOINFER_CUDA is {choice!r}, expected auto, 0 or 1")
    have_kernels = bool(sources("csrc/cuda/*.cu"))
    if choice == "1" and not nvcc:
        raise SystemExit(
            "torchcoinfer: TORCHCOINFER_CUDA=1 but no nvcc found; install the toolkit or set NVCC"
        )
    wanted = choice != "0" and nvcc is not None and have_kernels
    torch_kind = "CUDA torch" if torch_has_cuda else "CPU torch"
    nvcc_kind = f"nvcc at {nvcc}" if nvcc else "no nvcc"
    libraries = "_C.so and _cuda.so" if wanted else "_C.so only"
    situation = f"{torch_kind}, {nvcc_kind}, TORCHCOINFER_CUDA={choice}"
    print(f"torchcoinfer: {situation}: building {libraries}", flush=True)
    return wanted


class BuildLibraries(build_ext):
    """Calls the compilers directly: incremental by dependency file, MAX_JOBS at a time, and nvcc without
    CUDAExtension, which refuses to work against a CPU torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        includes, lib_dir, torch_has_cuda = torch_paths()
        self.cxx = shlex.split(os.environ.get("CXX", "c++"))
        self.includes = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in includes)]
        self.lib_dir = lib_dir
        nvcc = find_nvcc()
        wanted = cuda_wanted(nvcc, torch_has_cuda)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            if extension.name.endswith("._C"):
                self.build_cpu(extension.sources, target)
            elif wanted:
                self.build_cuda(extension.sources, target, nvcc, torch_has_cuda)
        self.extensions = [e for e in self.extensions if wanted or e.name.endswith("._C")]

    def host_command(self, extra: list[str]) -> list[str]:
        defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        user = shlex.split(os.environ.get("CXXFLAGS", ""))
        return [*self.cxx, *HOST_FLAGS, *defines, *self.includes, *extra, *user]

    def build_cpu(self, cpp: list[str], target: Path) -> None:
        objects = self.compile([(source, self.host_command([])) for source in cpp])
        self.link([*self.cxx, "-shared", *objects, f"-L{self.lib_dir}", "-ltorch_cpu"], objects, target)

    def build_cuda(self, files: list[str], target: Path, nvcc: str, torch_has_cuda: bool) -> None:
        root = cuda_root(nvcc)
        archs = os.environ.get("TORCHCOINFER_CUDA_ARCHS", "80;89;90a").split(";")
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes.append(f"-gencode=arch=compute_{NEWEST_PTX},code=compute_{NEWEST_PTX}")
        device = [nvcc, "-std=c++17", "-O3", *codes, "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        device.append(f"-I{ROOT / 'csrc'}")
        host = self.host_command(["-DUSE_CUDA", f"-isystem{root / 'include'}"])
        objects = self.compile([(f, device if f.endswith(".cu") else host) for f in files])
        if not torch_has_cuda:
            self.lib_dir = self.stub_torch_cuda()
        libraries = ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed", "-lcudart_static"]
        toolkit = next(d for d in (root / "lib64", root / "lib") if d.exists())
        folders = [f"-L{self.lib_dir}", f"-L{toolkit}"]
        self.link([*self.cxx, "-shared", *objects, *folders, *libraries, *SYSTEM_LIBRARIES], objects, target)

    def stub_torch_cuda(self) -> Path:
        """A CPU torch has no libtorch_cuda to link to, but the loader must be told to look for one."""
        folder = Path(self.build_temp) / "stub"
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "libtorch_cuda.so"
        command = [*self.cxx, "-shared", "-x", "c++", "/dev/null", "-o", str(library)]
        self.run_logged([*command, "-Wl,-soname,libtorch_cuda.so"])
        return folder

    def compile(self, jobs: list[tuple[str, list[str]]]) -> list[str]:
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
            return list(pool.map(lambda job: self.compile_one(*job), jobs))

    def compile_one(self, source: str, command: list[str]) -> str:
        output = Path(self.build_temp) / (source + ".o")
        output.parent.mkdir(parents=True, exist_ok=True)
        record, dependencies = output.with_suffix(".cmd"), output.with_suffix(".d")
        command = [*command, "-MMD", "-MF", str(dependencies), "-c", str(ROOT / source), "-o", str(output)]
        text = shlex.join(command)
        if not self.force and up_to_date(output, record, dependencies, text):
            return str(output)
        record.unlink(missing_ok=True)
        self.run_logged(command)
        record.write_text(text)
        return str(output)

    def link(self, command: list[str], objects: list[str], target: Path) -> None:
        if target.exists() and all(Path(o).stat().st_mtime <= target.stat().st_mtime for o in objects):
            return
        # linked aside and renamed: a process that has the old library mapped keeps it whole
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        self.run_logged([*command, "-o", str(aside)])
        os.replace(aside, target)

    def run_logged(self, command: list[str]) -> None:
        if self.verbose:
            print(shlex.join(command), flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode:
            raise SystemExit(f"torchcoinfer: failed with status {done.returncode}: {shlex.join(command)}")


def up_to_date(output: Path, record: Path, dependencies: Path, command: str) -> bool:
    if not (output.exists() and record.exists() and dependencies.exists()) or record.read_text() != command:
        return False
    named = dependencies.read_text().replace("\\\n", " ").split(":", 1)[-1].split()
    built = output.stat().st_mtime
    return all(Path(name).exists() and Path(name).stat().st_mtime <= built for name in named)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: compiled, but for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension("torchcoinfer._C", sources("csrc/library.cpp", "csrc/cpu/*.cpp"), depends=HEADERS),
        Extension("torchcoinfer._cuda", sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu"), depends=HEADERS),
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
