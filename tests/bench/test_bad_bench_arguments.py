"""The benches refuse what they cannot run or write at once, with exit code 2 and the argument's name."""

import argparse
import json
from importlib import import_module

import pytest

from torchcoinfer.bench.rows import json_lines

REFUSED = [
    ("predictor", "--fitted", "0"),
    ("predictor", "--configurations", "1"),
    ("predictor", "--samples", "0"),
    ("predictor", "--seed", "-1"),
    ("allocation", "--samples", "-3"),
    ("allocation", "--seed", "-1"),
    ("scoring", "--samples", "0"),
    ("scoring", "--repeats", "0"),
    ("scoring", "--threads", "0"),
    ("scoring", "--threads", "1.5"),
    ("planner", "--seeds", "-1"),
    ("quality", "--queries", "0"),
    ("memory", "--threads", "0"),
    ("memory", "--layers", "0"),
    ("models", "--threads", "0"),
    ("kernels", "--tokens", "0"),
    *((suite, "--output", "absent/rows.jsonl") for suite in
      ("predictor", "allocation", "scoring", "planner", "quality", "memory", "models", "kernels")),
    ("planner", "--output", "folder"),
    ("planner", "--output", "file/rows.jsonl"),
    ("kernels", "--picture", "absent/roofline.png"),
    ("paper", "--output", "file"),
    ("paper", "--output", "file/figures"),
    ("paper", "--seed", "-1"),
]  # fmt: skip
READ = [
    ("predictor", "--configurations", "2"),
    ("planner", "--seeds", "0"),
    ("memory", "--output", "rows.jsonl"),
    ("planner", "--output", "file"),
    ("paper", "--output", "new/figures"),
    ("paper", "--output", "folder"),
]


@pytest.fixture
def read(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)

    def parse(suite, *given):
        parser = argparse.ArgumentParser()
        import_module(f"torchcoinfer.bench.{suite}").add_arguments(parser)
        return parser.parse_args(given)

    return parse


@pytest.mark.parametrize("suite, name, value", REFUSED)
def test_refused_before_any_work(read, capsys, suite, name, value):
    with pytest.raises(SystemExit) as refused:
        read(suite, name, value)
    told = capsys.readouterr().err
    assert refused.value.code == 2 and f"argument {name}: " in told and value.split("/")[0] in told


@pytest.mark.parametrize("suite, name, value", READ)
def test_taken(read, suite, name, value):
    assert str(vars(read(suite, name, value))[name.strip("-")]).strip("[]") == value


def test_rows_are_strict_json():
    text = json_lines([{"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None}}, {"a": 2}])
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [{"a": None, "b": [None, 1.5], "c": {"d": None}}, {"a": 2}]
