"""Types of the benches' command-line arguments: what cannot be run or written is refused before any work."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: integers from ``least`` on."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise ArgumentTypeError(f"not an integer: {text!r}; pass one of at least {least}") from error
        if value < least:
            raise ArgumentTypeError(f"too small: {value}; pass at least {least}")
        return value

    return read


positive_integer = at_least(1)
natural = at_least(0)


def output_file(text: str) -> str:
    """An argparse type: a file that can be written, in a folder that is there."""
    path = Path(text)
    if not text or path.is_dir():
        raise ArgumentTypeError(f"not a file: {text!r}; name a file to write")
    _writable(path.parent, text)
    return text


def output_folder(text: str) -> Path:
    """An argparse type: a folder that is there, or that can be made."""
    path = Path(text)
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    _writable(nearest, text)
    return path


def _writable(folder: Path, text: str) -> None:
    if not folder.is_dir():
        raise ArgumentTypeError(f"{text!r}: {str(folder)!r} is no folder; make it first or name another")
    if not os.access(folder, os.W_OK):
        raise ArgumentTypeError(f"{text!r}: {str(folder)!r} cannot be written to; name another folder")
