"""Example inputs of Hugging Face models, from their configuration alone.

``PreTrainedModel.dummy_inputs`` offers token ids to vision and audio models too (transformers 5.23), and
optimum's generators want a task and a registered model type; ``main_input_name`` and the configuration do.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torchcoinfer.errors import ArgumentError

SEQUENCE_LENGTH = 32
AUDIO_SAMPLES = 16000
# dims beside the batch that a user will want to vary; pixels and mel frames are fixed by position embeddings
SEQUENCE_DIM_OF = {
    "input_ids": 1,
    "attention_mask": 1,
    "token_type_ids": 1,
    "position_ids": 1,
    "inputs_embeds": 1,
    "decoder_input_ids": 1,
    "decoder_attention_mask": 1,
    "input_values": 1,
}


def is_pretrained_model(model: nn.Module) -> bool:
    """Whether the model is transformers'; answers without importing transformers."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def example_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Keyword inputs of batch 1, by the model's ``main_input_name``; token ids from a fixed seed.

    Raises:
        ArgumentError: the main input is of a kind that is not known here.
    """
    config, name = model.config, model.main_input_name
    makers = {
        "input_ids": _text,
        "pixel_values": _pixels,
        "input_features": _mel_frames,
        "input_values": _waveform,
    }
    if name not in makers:
        raise ArgumentError(
            f"no default example inputs for {type(model).__name__}",
            got=f"main input {name!r}",
            expected=f"one of {sorted(makers)}",
            remedy="pass example_inputs={...} with the arguments of one forward call",
        )
    inputs = makers[name](config)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _token_ids(config, 8)
    return inputs


def disable_cache(model: nn.Module) -> nn.Module:
    """Makes a decoder return no KV cache: ``DynamicCache`` is no type that torch.export can return.

    In place, on a structural copy that the caller owns; each configuration is replaced, never changed.
    """
    replaced: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            if id(config) not in replaced:
                replaced[id(config)] = copy.deepcopy(config)
                replaced[id(config)].use_cache = False
            module.config = replaced[id(config)]
    return model


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _token_ids(config: Any, length: int) -> torch.Tensor:
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or length
    # RoBERTa's positions start behind the padding index: two places fewer than its table has
    return torch.randint(0, text.vocab_size, (1, max(2, min(length, longest - 2))), generator=_generator())


def _text(config: Any) -> dict[str, torch.Tensor]:
    ids = _token_ids(config, SEQUENCE_LENGTH)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if hasattr(config, "vision_config"):  # CLIP and its kin take both
        inputs.update(_pixels(config))
    return inputs


def _pixels(config: Any) -> dict[str, torch.Tensor]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    channels = getattr(vision, "num_channels", None) or 3
    return {"pixel_values": torch.randn(1, channels, height, width, generator=_generator())}


def _mel_frames(config: Any) -> dict[str, torch.Tensor]:
    bins = getattr(config, "num_mel_bins", None) or 80
    frames = 2 * (getattr(config, "max_source_positions", None) or 1500)
    return {"input_features": torch.randn(1, bins, frames, generator=_generator())}


def _waveform(config: Any) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(1, AUDIO_SAMPLES, generator=_generator())}


def dynamic_dims(inputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Per input name, the dims that should stay dynamic: the batch and, for sequences, the length."""
    return {name: (0, *((SEQUENCE_DIM_OF[name],) if name in SEQUENCE_DIM_OF else ())) for name in inputs}
