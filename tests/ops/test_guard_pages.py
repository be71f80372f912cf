"""Random shapes of every op of the built library, its arguments next to pages that nobody may touch."""

import ctypes
import faulthandler
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guarded_calls import Guarded

from torchcoinfer import has_kernels

SCRIPT = Path(__file__).with_name("guarded_calls.py")

pytestmark = pytest.mark.skipif(
    not has_kernels() or not sys.platform.startswith("linux"), reason="needs the kernels, and mprotect"
)


def walk(folder, cases, seed, **environment):
    command = [sys.executable, str(SCRIPT), str(cases), str(seed)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    case = folder / "case"
    told = f"exit code {done.returncode} at {case.read_text() if case.exists() else 'the start'}"
    return done, f"{told}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def test_a_few_thousand_shapes(tmp_path):
    done, told = walk(tmp_path, 2000, 0)
    assert done.returncode == 0, told
    assert "2000 cases, 0 wrong" in done.stdout


@pytest.mark.slow
def test_many_shapes(tmp_path):
    done, told = walk(tmp_path, 40_000, 1_000_000)
    assert done.returncode == 0, told


def test_the_guard_is_real():
    """One element beyond a guarded tensor, or before it, ends a process; its own elements do not."""
    for at_end, offset, fine in ((1, 24, True), (1, 28, False), (0, 0, True), (0, -4, False)):
        memory = Guarded(1, random.Random(0), at_end=lambda chosen=at_end: chosen)
        x = memory.move(torch.ones(7))
        assert float(x.sum()) == 7
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # pytest's would print where the child dies
            ctypes.string_at(x.data_ptr() + offset, 4)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFEXITED(status) == fine, (at_end, offset, status)
