"""The text of the demo: what is taken from source files, and that no module is in both halves."""

import pytest

from torchcoinfer.bench.docstrings import Pair, halves, standard_library_pairs, words_of
from torchcoinfer.errors import CalibrationError

SOURCE = '''
import os
os.remove("this must never run")
class HTTPServer:
    """Serve files over   a network
    connection.

    Not part of the document."""
    def __init__(self):
        """Constructors carry no name worth asking for."""
    def send_error(self):
        """Too short"""
async def readLines(path):
    """Read the lines of a file."""
def read_lines(path):
    """Another document under the same query."""
'''


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("read_csv_file", "read csv file"),
        ("readCSV_file", "read csv file"),
        ("_private", "private"),
        ("__", ""),
    ],
)
def test_words_of(name, words):
    assert words_of(name) == words


def test_pairs_of_a_source_tree(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "server.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text('"""x"""\ndef f(:')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text(SOURCE)
    assert standard_library_pairs(tmp_path) == [
        Pair("web", "httpserver", "Serve files over a network connection."),
        Pair("web", "read lines", "Read the lines of a file."),
    ]


def test_no_sources(tmp_path):
    with pytest.raises(CalibrationError, match="standard library"):
        standard_library_pairs(tmp_path)


def test_halves_share_no_module_and_are_even():
    pairs = [Pair(f"m{i % 9}", f"query {i}", f"document {i}") for i in range(200)]
    calibration, judging = halves(pairs)
    assert {p.module for p in calibration}.isdisjoint(p.module for p in judging)
    assert sorted([*calibration, *judging], key=str) == sorted(pairs, key=str)
    assert abs(len(calibration) - len(judging)) <= 25
    assert halves(pairs[::-1]) == (calibration, judging)
