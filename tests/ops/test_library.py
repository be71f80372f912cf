"""The library: schemas known twice agree, nothing Python in the binary, and life without it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import torchcoinfer
from torchcoinfer import ops
from torchcoinfer.ops.schemas import SCHEMAS

PACKAGE = Path(torchcoinfer.__file__).parent


def test_schemas_agree_with_the_library():
    assert ops.has_kernels()
    for schema in SCHEMAS:
        name = schema.split("(")[0]
        op = getattr(torch.ops.torchcoinfer, name).default
        assert str(op._schema) == str(torch._C.parse_schema(f"torchcoinfer::{schema}"))


def test_every_op_has_a_cpu_kernel():
    for schema in SCHEMAS:
        name = f"torchcoinfer::{schema.split('(')[0]}"
        keys = ("CPU", "CompositeExplicitAutograd")
        assert any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys), name


def test_isas():
    assert ops.cpu_isas()[-1] == "scalar"
    assert ops.cpu_isa() in ops.cpu_isas()


def test_no_python_symbol_in_the_binary():
    names = re.findall(rb"\bPy[A-Z_][A-Za-z_]+", (PACKAGE / "_C.so").read_bytes())
    assert not [n for n in names if n.startswith((b"PyObject", b"PyErr", b"PyInit", b"Py_", b"PyArg"))]


def test_without_the_library(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "torchcoinfer", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = Path(__file__).with_name("without_library.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
