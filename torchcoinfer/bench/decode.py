"""``torchcoinfer bench decode``: tokens a second of a random Llama at batch 1, packed to 4 bits, beside bf16.

Both models run in turn in one process, under ``torch.compile`` and, on a GPU, as one CUDA graph a token.
Weights are random in the shape of Llama 8B or 1B, made and packed on the device, layer by layer: what is
timed does not depend on them. Goal: the 8B-shaped one decodes at least twice as fast as in bfloat16; the
1B-shaped one is reported.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchcoinfer.bench.arguments import output_file, positive_integer
from torchcoinfer.bench.cases import GROUP_SIZE
from torchcoinfer.errors import KernelError, MissingExtra
from torchcoinfer.nn import QuantLinear
from torchcoinfer.ops import has_kernels
from torchcoinfer.report import format_table, write_text

BITS = 4
# hidden, intermediate, layers, heads, key-value heads, vocabulary, head tied to the embedding
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
    "1b": (2048, 8192, 16, 32, 8, 128256, True),
    "tiny": (64, 160, 2, 4, 2, 512, True),
}
LEAST_TIMES_FASTER = {"8b": 2.0}
PROMPT, WARM_UPS = 32, 3
BASELINE, PACKED = "bf16", f"W{BITS} g{GROUP_SIZE}"
MOST_P90_OVER_MEDIAN = 1.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench decode``."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="default tiny; on a GPU 8b 1b")
    parser.add_argument("--tokens", type=positive_integer, default=32, help="decoded a round")
    parser.add_argument("--rounds", type=positive_integer, default=9)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print a table, write JSON rows where asked.

    Raises:
        KernelError: a GPU is asked for where there is none, or its library is not loaded.
        MissingExtra: transformers is not installed.
    """
    if arguments.device == "cuda" and not (torch.cuda.is_available() and has_kernels("cuda")):
        raise KernelError(
            "decoding on a GPU",
            got=f"CUDA device: {torch.cuda.is_available()}, CUDA library: {has_kernels('cuda')}",
            expected="both",
            remedy="run it with an NVIDIA GPU, a torch with CUDA, and torchcoinfer built where nvcc is",
        )
    rows = []
    for name in arguments.models or (("8b", "1b") if arguments.device == "cuda" else ("tiny",)):
        rows += measure(name, arguments.device, arguments.tokens, arguments.rounds, not arguments.eager)
        print(format_table([_shown(row) for row in rows]), flush=True)
        if arguments.output:  # model by model: a time limit may end the next
            write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def measure(name: str, device: str, tokens: int, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """One row for the bfloat16 model of the shape, one for the packed one."""
    torch.manual_seed(0)
    with torch.inference_mode():
        decoders = {
            PACKED: Decoder(pack_linears(random_llama(name, device)), device, tokens, compiled),
            BASELINE: Decoder(random_llama(name, device), device, tokens, compiled),
        }
        seconds: dict[str, list[float]] = {variant: [] for variant in decoders}
        for turn in range(rounds + 1):
            for variant, decoder in decoders.items():
                elapsed = decoder.round_s()
                if turn:  # the first warms up
                    seconds[variant].append(elapsed / tokens)
    how = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "compiled": compiled,
        "cuda_graph": device == "cuda",
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    }
    base_s = float(np.median(seconds[BASELINE]))
    rows = [_row(name, one, d.weight_bytes, seconds[one], base_s) | how for one, d in decoders.items()]
    decoders.clear()
    gc.collect()  # before the next shape asks for its memory
    return rows


def _row(name: str, variant: str, weight_bytes: int, seconds: list[float], base_s: float) -> dict[str, Any]:
    median, p90 = float(np.median(seconds)), float(np.quantile(seconds, 0.9))
    steady = p90 <= MOST_P90_OVER_MEDIAN * median
    return {
        "what": "decode",
        "model": name,
        "kernel": variant,
        "median_s": median,
        "p90_s": p90,
        "tokens_per_s": 1 / median,
        "times_faster": base_s / median,
        "goal_times_faster": LEAST_TIMES_FASTER.get(name) if variant == PACKED else None,
        "weight_bytes": weight_bytes,
        "judged": True if steady else f"not judged: p90/median {p90 / median:.2f}",
    }


def random_llama(name: str, device: str) -> nn.Module:
    """A causal Llama of the shape, bfloat16, random weights, made on the device.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    hidden, intermediate, layers, heads, shared_heads, vocabulary, tied = SHAPES[name]
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def pack_linears(model: nn.Module) -> nn.Module:
    """Every linear layer, the head too, in 4 bits where it is; one float copy of one layer at a time."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linears:
        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        setattr(parent, leaf, QuantLinear.from_float(getattr(parent, leaf), BITS, GROUP_SIZE))
    return model


def _read_bytes(model: nn.Module) -> int:
    """Bytes of weights that a token reads: all but an embedding that is no head besides."""
    table = id(model.get_input_embeddings().weight)
    tied = any(id(parameter) == table for parameter in model.lm_head.parameters())
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.nbytes for tensor in tensors if tied or id(tensor) != table)


class Decoder:
    """Greedy decoding at batch 1 from a prompt of ``PROMPT`` random tokens, a static cache.

    Args:
        model: a causal model of transformers, on ``device``.
        tokens: of a round; every round begins after the prompt.
        compiled: by ``torch.compile``, which on a GPU is captured in a CUDA graph besides.
    """

    def __init__(self, model: nn.Module, device: str, tokens: int, compiled: bool):
        cache = importlib.import_module("transformers").StaticCache
        self._device, self._tokens = device, tokens
        self._cache = cache(config=model.config, max_cache_len=PROMPT + max(tokens, WARM_UPS + 1))
        self._forward: Callable[..., Any] = torch.compile(model, dynamic=False) if compiled else model
        prompt = torch.randint(0, model.config.vocab_size, (1, PROMPT), device=device)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._logits = model(input_ids=prompt, past_key_values=self._cache, use_cache=True).logits[:, -1]
        self.weight_bytes = _read_bytes(model)
        for _ in range(WARM_UPS):
            self._step()
        self._replay = self._captured() if device == "cuda" else self._step

    def round_s(self) -> float:
        """Seconds of one round.

        Raises:
            KernelError: the logits are not finite.
        """
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(PROMPT)
        self._wait()
        begin = time.perf_counter()
        for _ in range(self._tokens):
            self._replay()
        self._wait()
        elapsed = time.perf_counter() - begin
        if not self._logits.isfinite().all():
            raise KernelError("decoded logits are not finite", remedy="run bench kernels --check")
        return elapsed

    def _step(self) -> None:
        output = self._forward(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        self._logits = output.logits[:, -1]
        self._token.copy_(self._logits.argmax(-1, keepdim=True))

    def _captured(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(PROMPT)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    goal = row["goal_times_faster"]
    met = None if goal is None else "met" if row["times_faster"] >= goal else "MISSED"
    return {
        "model": row["model"],
        "weights": row["kernel"],
        "tokens/s": f"{row['tokens_per_s']:.1f}",
        "ms a token": f"{1e3 * row['median_s']:.2f}",
        "p90": f"{1e3 * row['p90_s']:.2f}",
        f"times faster than {BASELINE}": f"{row['times_faster']:.2f}",
        "goal": None if goal is None else f">= {goal:.1f}",
        "verdict": met if row["judged"] is True else row["judged"],
        "weights read": f"{row['weight_bytes'] / 1e9:.2f} GB",
    }
