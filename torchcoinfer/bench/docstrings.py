"""Real English text that every Python carries: the standard library's docstrings, as a retrieval task.

The query is a function's name in words ("read_csv_file" -> "read csv file"), its document the first paragraph
of its docstring. Source files are parsed, never imported.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from torchcoinfer.errors import CalibrationError

# tests and vendored packages: boilerplate docstrings, or not part of every distribution's standard library
_SKIPPED_FOLDERS = frozenset(
    (
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "turtledemo",
    )
)
_LEAST_WORDS = 3
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+")


@dataclass(frozen=True)
class Pair:
    """A query and the document that answers it, from top-level module ``module``."""

    module: str
    query: str
    document: str


def standard_library_pairs(folder: Path | None = None, progress: bool = False) -> list[Pair]:
    """Every function and class of the standard library with its docstring; no query and no document twice.

    Args:
        folder: source tree to read; default the running Python's standard library.
        progress: show a bar.

    Returns:
        pairs in the order of sorted paths: the same list on every run of the same Python.

    Raises:
        CalibrationError: the folder holds no usable docstring (a Python without its sources).
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]
    by_query: dict[str, Pair] = {}
    documents: set[str] = set()
    for path in tqdm(files, desc="reading docstrings", unit="file", disable=not progress):
        module = path.relative_to(root).parts[0].removesuffix(".py")
        for query, document in _named_docstrings(path):
            if query not in by_query and document not in documents:
                by_query[query] = Pair(module, query, document)
                documents.add(document)
    if not by_query:
        raise CalibrationError(
            "no docstrings to calibrate and judge on",
            got=f"{len(files)} Python files under {root}",
            expected="the sources of the standard library",
            remedy="run with a Python whose standard library is installed as .py files",
        )
    return list(by_query.values())


def _named_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and files of another Python version
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        text = ast.get_docstring(node)
        if text is None or node.name.startswith("__"):
            continue
        document = " ".join(text.split("\n\n")[0].split())
        query = words_of(node.name)
        if query and len(document.split()) >= _LEAST_WORDS:
            yield query, document


def words_of(name: str) -> str:
    """An identifier as lower-case words: "readCSV_file" -> "read csv file"."""
    return " ".join(_WORD_BREAK.sub(" ", name).lower().split())


def halves(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Calibration and judging pairs: whole modules on either side, in an order fixed by the names' checksums.

    Each module goes to the half that has fewer pairs so far; inside a half the order is by checksum, so that
    a prefix of it is a mixed sample.
    """
    modules: dict[str, list[Pair]] = {}
    for pair in pairs:
        modules.setdefault(pair.module, []).append(pair)
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for module in sorted(modules, key=lambda name: (-len(modules[name]), _checksum(name))):
        sides[len(sides[0]) > len(sides[1])].extend(modules[module])
    calibration, judging = (
        sorted(side, key=lambda pair: (_checksum(pair.document), pair.query)) for side in sides
    )
    return calibration, judging


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
