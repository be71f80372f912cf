"""Finds the op library beside the package, and gives every op its reference and its fake.

With the library, ``torch.ops.torchcoinfer.*`` run its kernels, and the references serve the devices it has no
kernel for. Without it (never built, or built for another platform) the same schemas are defined here and the
references run everywhere: correct, slow, and announced by one loud warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.schemas import SCHEMAS

_FOLDER = Path(__file__).resolve().parent.parent
NAMESPACE = "torchcoinfer"


def _load(file_name: str) -> str | None:
    """Loads one library. None if it is loaded, else the reason why not."""
    path = _FOLDER / file_name
    if not path.exists():
        return f"{path.name} is not in {_FOLDER}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # built for another platform or against a newer libtorch
        return str(error)
    return None


_MISSING_CPU = _load("_C.so")
_MISSING_CUDA = _load("_cuda.so") if _MISSING_CPU is None and torch.version.cuda else "this torch has no CUDA"

# lives as long as the process: torch drops the registrations with the object
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

if _MISSING_CPU is not None:
    for _schema in SCHEMAS:
        _LIBRARY.define(_schema)
    warnings.warn(
        f"torchcoinfer runs WITHOUT its compiled kernels ({_MISSING_CPU}): every op takes the slow PyTorch "
        "reference. In a checkout that stands before an installed torchcoinfer, change the folder, or run "
        "`python setup.py build_ext --inplace`; else reinstall where a C++ compiler is available.",
        RuntimeWarning,
        stacklevel=2,
    )


def has_kernels(device: str = "cpu") -> bool:
    """Whether the compiled kernels for ``device`` ("cpu" or "cuda") are loaded; if not, references run."""
    return (_MISSING_CUDA if device == "cuda" else _MISSING_CPU) is None


def implement(name: str, reference: Callable, fake: Callable | None) -> None:
    """Registers the plain-PyTorch reference of op ``name`` for every device without a kernel, and its fake.

    The fake gives the output's shape and dtype from symbolic inputs; None where the op has no tensor input.
    """
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"{NAMESPACE}::{name}", _of_one_kind(name, fake), lib=_LIBRARY)


def _of_one_kind(name: str, fake: Callable) -> Callable:
    """The fake, which refuses values beside none: its output would be memory that nobody wrote."""

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        kinds = [value.is_meta for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if any(kinds) and not kinds[0]:
            raise ArgumentError(
                name,
                got="a tensor with values and one on the meta device",
                expected="tensors on one device",
                remedy="load a state_dict into a module made on the meta device first, with assign=True",
            )
        return fake(*args, **kwargs)

    return checked
