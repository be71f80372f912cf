"""The oldest torch that pyproject.toml names lacks a macro of later ones; csrc/torch_call.h has it."""

from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def test_who_checks_calls_includes_what_torch_2_11_lacks():
    users = [
        path
        for pattern in ("*.h", "*.cpp")
        for path in CSRC.rglob(pattern)
        if "STABLE_TORCH_ERROR_CODE_CHECK" in path.read_text() and path.name != "torch_call.h"
    ]
    assert users
    assert [path.name for path in users if '#include "torch_call.h"' not in path.read_text()] == []
