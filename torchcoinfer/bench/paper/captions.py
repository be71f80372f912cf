"""[Q]'s testbed: captions of BLIP-2 or GIT with the device's part at one bit-width, judged by CIDEr.

Weights and pictures are the user's: nothing is drawn without them, and published figures stand beside the
measured ones, never in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from torchcoinfer.bench.paper.cider import cider_d
from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.compress import nearest
from torchcoinfer.errors import ArgumentError, MissingExtra
from torchcoinfer.theory.options import WEIGHT_BITS, Option

# [Q] Table I; how its latencies and energies became bit-widths is not stated there
PUBLISHED = {
    "BLIP-2, high clock, T (s) -> CIDEr": {"2.50": 100.8, "2.55": 118.9, "2.60": 132.4},
    "BLIP-2, low clock, E (J) -> CIDEr": {"164.8": 133.4, "165.0": 134.6, "165.2": 138.8},
    "GIT, high clock, T (s) -> CIDEr": {"1.38": 54.3, "1.40": 55.9, "1.42": 57.1},
}
DEVICE_PARTS = ("vision_model", "qformer", "image_encoder", "language_projection", "visual_projection")
_NEW_TOKENS = 20


@dataclass(frozen=True)
class Pictures:
    """Pictures with reference captions: name -> file, name -> captions."""

    files: Mapping[str, Path]
    captions: Mapping[str, Sequence[str]]


def read_pictures(folder: Path, count: int | None = None) -> Pictures:
    """``captions.json`` in the COCO layout (images: id, file_name; annotations: image_id, caption) and the
    pictures beside it.

    Raises:
        ArgumentError: the file or a picture is missing, or the layout is another.
    """
    try:
        content = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"][:count]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        for note in content["annotations"]:
            if note["image_id"] in names:
                captions[names[note["image_id"]]].append(str(note["caption"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"cannot read the captions in {folder}",
            got=f"{type(error).__name__}: {error}",
            expected="captions.json in the COCO layout, pictures beside it",
            remedy="--captions takes a folder with, for instance, COCO's validation pictures",
        ) from error
    files = {name: folder / name for name in captions}
    missing = [name for name, path in files.items() if not path.is_file() or not captions[name]]
    if missing or not files:
        raise ArgumentError(
            f"pictures or captions are missing in {folder}", got=missing[:5], expected="both for every image"
        )
    return Pictures(files, captions)


def load_captioner(spec: str) -> tuple[nn.Module, Any]:
    """Model and processor, from a folder or the hub.

    Raises:
        ArgumentError: neither has the weights.
        MissingExtra: transformers is not installed.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    try:
        processor = AutoProcessor.from_pretrained(spec)
        model = AutoModelForImageTextToText.from_pretrained(spec, dtype=torch.float32)
    except ImportError as error:  # of the image processor
        raise MissingExtra("torchvision", "vision") from error
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"cannot load the captioning model {spec!r}: {str(error).strip().splitlines()[0]}",
            expected="a folder, or a Hugging Face id whose weights can be fetched from here",
            remedy="run where the hub can be reached, or pass a downloaded folder; no figure is made up",
        ) from error
    return model.eval(), processor


def draw_captions(spec: str, folder: Path, *, fast: bool, progress: bool) -> tuple[Figure, ...]:
    """CIDEr over the bit-width of the device's part, the server's at full precision."""
    pictures = read_pictures(folder, 4 if fast else None)
    model, processor = load_captioner(spec)
    layers = _device_layers(model)
    bits = (2, 4) if fast else WEIGHT_BITS
    plain = {name: module.weight.detach().clone() for name, module in layers.items()}
    scores = []
    for width in (*bits, 32):
        for name, module in layers.items():
            module.weight.data = plain[name] if width == 32 else _rounded(plain[name], width)
        found = _captions(model, processor, pictures, f"captions at {width} bits" if progress else None)
        each = cider_d(found, pictures.captions)
        scores.append(100.0 * sum(each.values()) / len(each))
    numel = sum(weight.numel() for weight in plain.values())
    panel = Panel(
        f"{len(pictures.files)} pictures",
        "bits per weight on the device",
        "CIDEr-D x 100",
        (Series("measured", [*bits, 32], scores),),
    )
    settings = {
        "model": spec,
        "pictures": len(pictures.files),
        "device_parts": DEVICE_PARTS,
        "device_weights": numel,
        "new_tokens": _NEW_TOKENS,
        "published": PUBLISHED,
    }
    notes = (
        "published: [Q] Table I, on its own testbed; its splits and bit-widths are not stated",
        "words are split at punctuation, not by the Penn Treebank tokenizer: scores may differ slightly",
    )
    return (Figure("captions", f"{spec}: captions over the bit-width", "[Q] Table I", (panel,), settings,
                   {"full_precision": scores[-1]}, notes),)  # fmt: skip


def _device_layers(model: nn.Module) -> dict[str, nn.Module]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(part in name for part in DEVICE_PARTS)
    }
    if not found:
        raise ArgumentError(
            "the model has no part for the device",
            got=type(model).__name__,
            expected=f"modules named with one of {DEVICE_PARTS}",
        )
    return found


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    option = Option(bits=bits, format="int", group_size=64, algorithm="nearest")
    return nearest(weight.flatten(1), option).dequantize().reshape(weight.shape)


@torch.no_grad()
def _captions(model: nn.Module, processor: Any, pictures: Pictures, label: str | None) -> dict[str, str]:
    from PIL import Image

    found = {}
    for name, path in tqdm(pictures.files.items(), desc=label, unit="picture", disable=label is None):
        inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        found[name] = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    return found
