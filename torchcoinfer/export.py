"""Halves as files that run without this package's Python: TorchScript, ``.pt2`` and AOTInductor packages.

Every file takes and returns flat tensors: a device file the model's inputs in the order of ``input_names``,
a server file what the device file returned. All of them call ``torch.ops.torchcoinfer``, so the op library
comes first::

    import torch
    torch.ops.load_library("torchcoinfer/_C.so")
    device, server = torch.jit.load("device.pt"), torch.jit.load("server.pt")
    answer = server(*device(input_ids, attention_mask))

TorchScript is made by scripting the half's fx graph: ``torch.jit.trace`` would fix the sizes.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import sympy
import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from torchcoinfer.errors import ArgumentError, ExportError
from torchcoinfer.nn.callspec import InputSpec
from torchcoinfer.nn.halves import DeviceHalf, Half, ServerHalf
from torchcoinfer.trace.build import symbolic_shape


def export_halves(
    device: DeviceHalf, server: ServerHalf, path: str | Path, format: str = "torchscript"
) -> tuple[Path, Path]:
    """Write both halves into the folder ``path``: ``device.pt`` and ``server.pt``, or ``.pt2``.

    Returns:
        the device file and the server file.

    Raises:
        ArgumentError, ExportError: as :func:`export`; no file is left of a half that fails.
    """
    suffix = _format(format)[1]
    folder = _folder(path)
    return (
        export(device, folder / f"device{suffix}", format),
        export(server, folder / f"server{suffix}", format),
    )


def export(half: Half, path: str | Path, format: str = "torchscript") -> Path:
    """Write one half as a file; sizes that vary in the half vary in the file.

    Args:
        half: a device or server half.
        path: the file; it appears when it is complete.
        format: "torchscript" (``torch.jit.load``) | "pt2" (``torch.export.load(path).module()``) | "aoti"
            (``torch._inductor.aoti_load_package``; needs a C++ compiler here, none where it runs).

    Raises:
        ArgumentError: an unknown format, or something that is no half.
        ExportError: torch refuses the half; names what it says.
    """
    write, suffix = _format(format)
    if not isinstance(half, Half):
        raise ArgumentError(
            "only halves can be exported", got=type(half).__name__, expected="a DeviceHalf or a ServerHalf",
            remedy="export(result.device, ...), or result.export(folder)",
        )  # fmt: skip
    path = _folder(Path(path).parent) / Path(path).name
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        unfinished = Path(scratch) / f"half{suffix}"
        try:
            with torch.no_grad():
                write(half, unfinished)
        except ExportError:
            raise
        # scripting, exporting and compiling fail with whatever torch, or its compiler, raises
        except Exception as error:  # noqa: BLE001
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ExportError(
                f"a {type(half).__name__} cannot be exported as {format!r}",
                got=f"{type(error).__name__}: {first}",
                remedy="try another format, or another cut; store.save needs no export",
            ) from error
        os.replace(unfinished, path)
    return path


def _folder(path: str | Path) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError) as error:
        raise ExportError(
            "the folder to export to cannot be made", got=f"{path!r}: {error}",
            expected="a folder, or a path where one can be made", remedy="choose another path",
        ) from error  # fmt: skip
    return Path(path)


def _format(name: str) -> tuple[Callable[[Half, Path], None], str]:
    formats = {
        "torchscript": (_write_torchscript, ".pt"),
        "pt2": (_write_pt2, ".pt2"),
        "aoti": (_write_aoti, ".pt2"),
    }
    if not isinstance(name, str) or name not in formats:
        raise ArgumentError("unknown export format", got=repr(name), expected=" | ".join(formats))
    return formats[name]


def script(half: Half) -> torch.jit.ScriptModule:
    """The half as a TorchScript module that shares its tensors."""
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(half.graph_module.graph, copies))
    for node in graph.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size  # TorchScript knows sizes as plain ints
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # it resolves overloads itself
    module = fx.GraphModule(half.graph_module, graph, type(half).__name__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        warnings.filterwarnings(
            "ignore", "The TorchScript type system"
        )  # of fx.GraphModule's own annotations
        return torch.jit.script(module)


def program(half: Half) -> ExportedProgram:
    """The half as an ExportedProgram of flat tensors, with the half's own dynamic sizes.

    Raises:
        ExportError: a size that varies in the half would be fixed in the program.
    """
    specs = half.call.inputs if isinstance(half, DeviceHalf) else half.sent
    place = half._place.device
    examples = tuple(_example(spec, half.trace_sizes, place) for spec in specs)
    dynamic = tuple(
        {dim: Dim.AUTO for dim, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs
    )
    exported = torch.export.export(half.graph_module, examples, dynamic_shapes=dynamic, strict=False)
    inputs = [node for node in exported.graph.nodes if node.op == "placeholder"][-len(specs) :]
    fixed = {
        spec.name: [dim for dim in free if isinstance(symbolic_shape(node.meta["val"])[dim], int)]
        for spec, free, node in zip(specs, dynamic, inputs)
    }
    fixed = {name: dims for name, dims in fixed.items() if dims}
    if fixed:
        raise ExportError(
            "torch.export fixes sizes that vary in this half", got=f"input -> dims: {fixed}",
            remedy="export as 'torchscript', which has no such limit",
        )  # fmt: skip
    for size, allowed in list(exported.range_constraints.items()):
        # torch checks no lower bound of 2 (it means "not specialized"), but would check that of 4*s >= 8
        if not isinstance(size, sympy.Symbol):
            exported.range_constraints[size] = ValueRanges(0, allowed.upper)
    return exported


def _example(spec: InputSpec, sizes: dict[str, int], place: torch.device) -> Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=place)


def _write_torchscript(half: Half, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.save` is deprecated")
        torch.jit.save(script(half), str(path))


def _write_pt2(half: Half, path: Path) -> None:
    torch.export.save(program(half), path)


def _write_aoti(half: Half, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program(half), package_path=str(path))
