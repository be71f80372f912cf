"""The networks that the figures are drawn for, each with held-out data and a judge of its output."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchcoinfer.bench import docstrings, retrieval
from torchcoinfer.bench.autoencoder import Digits, digits, train_autoencoder
from torchcoinfer.errors import ArgumentError
from torchcoinfer.models import default_output, load_model

Batch = dict[str, Tensor] | tuple[Tensor, ...]
_COMPRESSIBLE = (nn.Linear, nn.Embedding, nn.Conv2d)
_FAST_EPOCHS = 12
_TOKENS = 32


@dataclass(frozen=True)
class Subject:
    """A network and its data.

    Attributes:
        example: one run of the workload.
        chosen_on, judged_on: batches to choose a design on, and others to judge it on.
        output: what is judged of (output, batch): one row a sample or a token.
    """

    name: str
    model: nn.Module
    example: Batch
    chosen_on: Sequence[Batch]
    judged_on: Sequence[Batch]
    output: Callable[[Any, Batch], Tensor]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Layer -> weight, tied weights once."""
        found: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, _COMPRESSIBLE) and all(module.weight is not w for w in found.values()):
                found[name] = module.weight
        return found

    @torch.no_grad()
    def outputs(self, batches: Sequence[Batch], weights: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Judged outputs, float32 [rows, D] a batch, with some layers' weights replaced."""
        changed = {f"{name}.weight": weight for name, weight in (weights or {}).items()}
        rows = []
        for batch in batches:
            named = isinstance(batch, Mapping)
            made = torch.func.functional_call(
                self.model, changed, () if named else batch, dict(batch) if named else None
            )
            rows.append(self.output(made, batch).float())
        return rows

    def relative_error(self, weights: Mapping[str, Tensor], *, judging: bool = True) -> float:
        """E||f - f'||^2 / E||f||^2 on the judging (or the choosing) data."""
        batches, plain = (
            (self.judged_on, self._judged_plain) if judging else (self.chosen_on, self._chosen_plain)
        )
        error = signal = 0.0
        for own, before in zip(self.outputs(batches, weights), plain):
            error += float((own - before).double().square().sum())
            signal += float(before.double().square().sum())
        return error / signal

    @cached_property
    def _judged_plain(self) -> list[Tensor]:
        return self.outputs(self.judged_on)

    @cached_property
    def _chosen_plain(self) -> list[Tensor]:
        return self.outputs(self.chosen_on)


class Subjects:
    """Networks by name, each made when first asked for.

    Args:
        fast: little data and short training.
        language_model: folder of a causal language model in the Hugging Face layout; its tokenizer beside
            the weights or one folder above.
    """

    def __init__(
        self, *, fast: bool = False, seed: int = 0, language_model: Path | None = None, progress: bool = True
    ):
        self.fast, self.seed, self.progress = fast, seed, progress
        self.language_model = language_model
        self._made: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call with this key: figures share measurements."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def digits(self) -> Digits:
        return digits(self.seed)

    @cached_property
    def autoencoder(self) -> Subject:
        """FCDNN-16."""
        epochs = {"epochs": _FAST_EPOCHS} if self.fast else {}
        model = train_autoencoder(self.seed, data=self.digits, progress=self.progress, **epochs)
        data = self.digits
        return Subject(
            "FCDNN-16", model, (data.test[:1],), [(data.calibration,)], [(data.test,)], lambda made, _: made
        )

    @cached_property
    def minilm(self) -> Subject:
        """all-MiniLM-L6-v2 on docstrings of the standard library."""
        loaded = load_model("minilm")
        chosen, judged = (self._text_batches(loaded.tokenizer, half) for half in (0, 1))
        _, example = next(retrieval.token_batches(loaded.tokenizer, [" ".join(self._texts(0))], 1, _TOKENS))
        return Subject(loaded.name, loaded.model, example, chosen, judged, lambda made, _: made)

    @cached_property
    def language(self) -> Subject | None:
        """The causal language model, None when no folder was given."""
        if self.language_model is None:
            return None
        loaded = load_model(str(self.language_model))
        tokenizer = loaded.tokenizer or _tokenizer_near(self.language_model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        chosen, judged = (self._text_batches(tokenizer, half) for half in (0, 1))
        name = self.language_model.resolve().name
        return Subject(name, loaded.model.float(), judged[0], chosen, judged, _token_rows)

    def _text_batches(self, tokenizer: Any, half: int) -> list[dict[str, Tensor]]:
        return [batch for _, batch in retrieval.token_batches(tokenizer, self._texts(half), 16, _TOKENS)]

    def _texts(self, half: int) -> list[str]:
        return [pair.document for pair in self._halves[half][: 16 if self.fast else 128]]

    @cached_property
    def _halves(self) -> tuple[list[docstrings.Pair], list[docstrings.Pair]]:
        library = Path(sysconfig.get_path("stdlib"))
        folder = library / "asyncio" if self.fast else library
        return docstrings.halves(docstrings.standard_library_pairs(folder, progress=self.progress))


def _token_rows(output: Any, batch: Batch) -> Tensor:
    """Logits of the tokens that are not padding, one row a token."""
    logits, mask = default_output(output, None), batch["attention_mask"].bool()
    return logits[mask]


def _tokenizer_near(folder: Path) -> Any:
    for own in (folder, folder.resolve().parent):
        if (own / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast(tokenizer_file=str(own / "tokenizer.json"))
    raise ArgumentError(
        "the language model has no tokenizer",
        got=str(folder),
        expected="tokenizer.json in the folder or the one above",
    )
