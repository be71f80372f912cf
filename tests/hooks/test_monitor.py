"""ResourceMonitor: what it counts, that it changes nothing, and that nothing of it stays."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchcoinfer import nn as packed_nn
from torchcoinfer.errors import ArgumentError, BudgetExceeded
from torchcoinfer.hooks import BudgetExceededWarning, ResourceMonitor
from torchcoinfer.nn.halves import Crossing, DeviceHalf
from torchcoinfer.theory.budget import Budget


class Attention(nn.Module):
    """One linear used twice, SDPA outside any leaf, keyword call, dropout that must not be touched."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x, scale=1.0):
        q = self.proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(query=q, key=q, value=q)
        return {"out": self.norm(self.proj(x) + y.transpose(1, 2).flatten(2)) * scale}


class FlatHalf(DeviceHalf):
    """A device half with its graph written by hand: no submodules, aten ops, returns what crosses the cut."""

    def __init__(self):
        nn.Module.__init__(self)
        self.crossing = (Crossing("h", ("b", 8), "float32"), Crossing("s", ("b",), "float32"))
        self.weight = nn.Parameter(torch.randn(8, 16))

    def forward(self, x):
        return (torch.ops.aten.linear.default(x, self.weight), x.sum(-1))


MODELS = {
    "attention": (Attention, (2, 5, 16)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2)),
        (2, 4, 9, 9),
    ),
    "matmul": (lambda: Matmul(), (2, 3, 4)),
    "half": (FlatHalf, (3, 16)),
    "linear": (lambda: nn.Linear(16, 4), (7, 16)),
}


class Matmul(nn.Module):
    def forward(self, x):
        y = x @ x.mT
        return torch.bmm(y, x) + torch.addmm(x[0], y[0], x[0])


def made(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(shape)


def flat(output):
    return (
        list(output.values())
        if isinstance(output, dict)
        else list(output)
        if isinstance(output, tuple)
        else [output]
    )


def hook_count(model):
    tables = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    tables += ("_forward_pre_hooks_with_kwargs",)
    return sum(len(getattr(module, table)) for module in model.modules() for table in tables)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad])
def test_changes_nothing_and_counts_what_torch_counts(name, context):
    model, x = made(name)
    # the counter knows the CPU's fused attention only when it is taken apart
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x)
    with context():
        expected = flat(model(x))
        with ResourceMonitor(model) as monitor:
            for _ in range(3):
                got = flat(model(x))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert sum(row.flops for row in monitor.rows) == 3 * counter.get_total_flops() > 0
    assert hook_count(model) == 0
    assert len(monitor.run_seconds) == 3 and all(row.seconds >= 0 for row in monitor.rows)
    # self times add up to the whole: nothing is counted twice and nothing is lost
    assert sum(row.seconds for row in monitor.rows) == pytest.approx(sum(monitor.run_seconds))
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    assert monitor.memory_bytes >= parameters + sum(t.numel() * t.element_size() for t in (x, *got))


def test_rows_say_where():
    model, x = made("attention")
    with ResourceMonitor(model) as monitor:
        model(x, scale=2.0)
    rows = {row.name: row for row in monitor.rows}
    assert list(rows) == ["", "proj", "norm"]
    assert rows["proj"].calls == 2 and rows["proj"].flops == 2 * 2 * 2 * 5 * 16 * 16
    assert rows[""].flops == 2 * (2 * 2 * 5 * 5 * 8) * 2  # q k^T and p v, 2 sentences, 2 heads
    assert (
        rows["proj"].parameter_bytes == 4 * (16 * 16 + 16) and rows["norm"].activation_bytes == 4 * 2 * 5 * 16
    )
    text = monitor.report()
    assert all(word in text for word in ("proj", "Linear", "LayerNorm", "MFLOP", "1 runs", "peak RSS"))


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: packed_nn.QuantLinear.from_float(nn.Linear(64, 16), bits=4, group_size=32), (3, 64)),
        (lambda: packed_nn.SparseLinear.from_float(nn.Linear(64, 16), "2:4"), (3, 64)),
        (lambda: packed_nn.SparseQuantLinear.from_float(nn.Linear(64, 16), 0.5, 4, 32), (3, 64)),
    ],
    ids=["quant", "2:4", "bitmap"],
)
def test_packed_layers_count_as_their_dense_ones(make, shape):
    module = make()
    x = torch.randn(shape)
    expected = module(x)
    with ResourceMonitor(module) as monitor:
        assert torch.equal(module(x), expected)
    (row,) = monitor.rows
    assert row.flops == 2 * 3 * 64 * 16
    assert row.parameter_bytes == sum(b.numel() * b.element_size() for b in module.buffers())


def test_packed_convolution_counts_as_its_dense_one():
    conv = nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1)
    x = torch.randn(2, 4, 9, 9)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conv(x)
    module = packed_nn.QuantConv2d.from_float(conv, bits=4, group_size=32)
    with ResourceMonitor(module) as monitor:
        module(x)
    assert monitor.rows[0].flops == counter.get_total_flops()


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    with ResourceMonitor(model) as monitor:
        model(torch.randn(1, 8))
    assert sum(row.parameter_bytes for row in monitor.rows) == 8 * 8 * 4


def test_cut_bytes_of_a_device_half():
    half, x = made("half")
    with (
        ResourceMonitor(half, Budget(uplink=159)) as monitor,
        pytest.warns(BudgetExceededWarning, match="uplink 160 B"),
    ):
        half(x)
    assert monitor.cut_bytes == 4 * (3 * 8 + 3)
    assert "crossing the cut: 108 B" in monitor.report() and "uplink" in monitor.report()
    whole, x = made("linear")
    with ResourceMonitor(whole, Budget(uplink=1)) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        whole(x)  # a whole model's output is not what crosses a cut
    assert monitor.cut_bytes is None


def test_budget_warns_once_raises_or_calls():
    model, x = made("linear")
    tight = Budget(latency="1 ns", device_memory="1 kB")
    with ResourceMonitor(model, tight) as monitor, pytest.warns(BudgetExceededWarning) as caught:
        model(x), model(x)
    assert [str(w.message).split()[2] for w in caught] == ["latency"]
    assert "latency" in monitor.report() and "kept" not in monitor.report()

    with (
        pytest.raises(BudgetExceeded, match="latency.*exceeds 1e-09 s.*remedy"),
        ResourceMonitor(model, tight, "raise"),
    ):
        model(x)
    assert hook_count(model) == 0

    seen = []
    with ResourceMonitor(model, Budget(device_memory=100), seen.append):
        model(x), model(x)
    assert len(seen) == 2 and seen[0][0].resource == "device_memory" and seen[0][0].measured > 100

    with ResourceMonitor(model, Budget(latency="1 min")) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    assert "kept" in monitor.report()


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.fail = True

    def forward(self, x):
        y = self.inner(x)
        if self.fail:
            raise KeyError("on purpose")
        return y


def test_exceptions_leave_no_hooks_and_no_stale_frames():
    model = nn.Sequential(Fails(), nn.Linear(4, 4))
    x = torch.randn(1, 4)
    with pytest.raises(KeyError), ResourceMonitor(model):
        model(x)
    assert hook_count(model) == 0
    with ResourceMonitor(model) as monitor:
        with pytest.raises(KeyError):
            model(x)
        assert monitor.run_seconds == ()
        model[0].fail = False
        model(x)
    assert len(monitor.run_seconds) == 1
    assert {row.name: row.calls for row in monitor.rows} == {"": 2, "0": 2, "0.inner": 2, "1": 1}


def test_nested_monitors_count_alike():
    model, x = made("attention")
    with ResourceMonitor(model) as outer, ResourceMonitor(model) as inner:
        model(x)
    assert [(r.name, r.calls, r.flops) for r in outer.rows] == [
        (r.name, r.calls, r.flops) for r in inner.rows
    ]
    with ResourceMonitor(model) as outer:
        with ResourceMonitor(model.proj) as inner:
            model(x)
        model(x)
    assert inner.rows[0].calls == 2 and outer.rows[1].calls == 4
    assert hook_count(model) == 0


def test_misuse():
    model, x = made("linear")
    monitor = ResourceMonitor(model)
    with monitor, pytest.raises(ArgumentError, match="already active.*nested"), monitor:
        pass
    assert hook_count(model) == 0
    with monitor:  # a second block starts afresh
        model(x)
    assert monitor.rows[0].calls == 1
    with pytest.raises(ArgumentError, match="on_exceed.*'shout'"):
        ResourceMonitor(model, on_exceed="shout")
    with pytest.raises(ArgumentError, match="int"):
        ResourceMonitor(3)
    with pytest.raises(ArgumentError, match="MultiheadAttention.*Sequential"):
        ResourceMonitor(nn.MultiheadAttention(4, 1))


def test_fused_transformer_layers_keep_their_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(
        nn.Linear(16, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ).eval()
    x = torch.randn(2, 5, 16)
    with torch.inference_mode():
        expected = model(x)
        with ResourceMonitor(model) as monitor:
            assert torch.equal(model(x), expected)
    assert [row.name for row in monitor.rows] == ["", "0", "1"] or "1.layers" in [
        row.name for row in monitor.rows
    ]
    assert "FLOPs not counted" in monitor.report()
    assert monitor.memory_bytes > sum(p.numel() * 4 for p in model.parameters())


def test_compiled_and_scripted_modules_are_not_looked_into():
    model, x = made("linear")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = compiled(x)
        with ResourceMonitor(compiled) as monitor:
            assert torch.equal(compiled(x), expected)
    (row,) = monitor.rows
    assert row.calls == 1 and row.parameter_bytes == 4 * (16 * 4 + 4)
    assert "FLOPs not counted" in monitor.report()
    outer = nn.Sequential(torch.jit.script(model), compiled)
    with ResourceMonitor(outer) as monitor:
        outer[0](x), compiled(x)
    assert monitor.rows == () and monitor.memory_bytes == 4 * (16 * 4 + 4)
    model.compile(backend="eager")
    with pytest.raises(ArgumentError, match="Linear.*Sequential"):
        ResourceMonitor(model)


def test_export_compile_and_deepcopy_after_exit():
    model, x = made("attention")
    with ResourceMonitor(model):
        model(x)
    exported = torch.export.export(model, (x,), strict=False)
    assert torch.equal(exported.module()(x)["out"], model(x)["out"])
    assert hook_count(copy.deepcopy(model)) == 0
