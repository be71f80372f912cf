"""The decode bench on a tiny Llama, on the CPU."""

import json

import pytest
import torch
from torch import nn

from torchcoinfer.bench import decode
from torchcoinfer.cli import main
from torchcoinfer.nn import QuantLinear

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "more", [["--eager"], pytest.param([], marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_both_models_decode(tmp_path, capsys, more):
    output = tmp_path / "rows.jsonl"
    arguments = ["bench", "decode", "--tokens", "2", "--rounds", "2", "--output", str(output), *more]
    assert main(arguments) == 0
    rows = {row["kernel"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert set(rows) == {decode.BASELINE, decode.PACKED}
    packed, dense = rows[decode.PACKED], rows[decode.BASELINE]
    assert packed["times_faster"] == pytest.approx(packed["tokens_per_s"] / dense["tokens_per_s"])
    assert dense["times_faster"] == 1 and packed["weight_bytes"] < 0.4 * dense["weight_bytes"]
    assert all(row["compiled"] == (not more) and not row["cuda_graph"] for row in rows.values())
    assert decode.PACKED in capsys.readouterr().out


def test_packed_model_computes_with_its_own_weights():
    model = decode.pack_linears(decode.random_llama("tiny", "cpu"))
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert len(layers) == 2 * 7 + 1 and not any(type(module) is nn.Linear for module in model.modules())
    tokens = torch.randint(0, 512, (1, 5))
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits.float()
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantLinear):
                dense = nn.Linear(module.in_features, module.out_features, bias=False)
                dense.weight.copy_(module.dequantize_weight())
                model.set_submodule(name, dense.bfloat16())
        expected = model(input_ids=tokens).logits.float()
    assert (logits - expected).abs().max() <= 0.05 * expected.abs().max()


def test_rounds_begin_after_the_prompt():
    with torch.inference_mode():
        decoder = decode.Decoder(decode.random_llama("tiny", "cpu"), "cpu", tokens=3, compiled=False)
        for _ in range(3):
            assert decoder.round_s() > 0
        assert [int(layer.get_seq_length()) for layer in decoder._cache.layers] == [decode.PROMPT + 3] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert main(["bench", "decode", "--device", "cuda"]) == 2
    assert "CUDA device: False" in capsys.readouterr().err
