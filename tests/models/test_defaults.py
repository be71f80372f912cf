"""Default inputs, dynamic sizes and judged outputs of models that are known; clear errors for the others."""

import pytest
import torch
from torch import nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.models import default_dynamic_shapes, default_inputs, default_output, disable_cache
from torchcoinfer.models.sentence import SentenceEmbedder

transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
AUDIO = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SMALL, vocab_size=99),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, vocab_size=99, max_position_embeddings=18),
    "llama": lambda: transformers.LlamaConfig(**SMALL, vocab_size=99),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, bos_token_id=1),
    "t5": lambda: transformers.T5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=99
    ),
    "vit": lambda: transformers.ViTConfig(**SMALL, image_size=32, patch_size=8),
    "whisper": lambda: transformers.WhisperConfig(
        **AUDIO, **HEADS, max_source_positions=20, vocab_size=99, pad_token_id=0, decoder_start_token_id=1
    ),
    "clip": lambda: transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": 99}, vision_config={**SMALL, "image_size": 32, "patch_size": 8}
    ),
    "wav2vec2": lambda: transformers.Wav2Vec2Config(**SMALL, num_conv_pos_embedding_groups=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_default_inputs_run_a_hugging_face_model(name):
    model = transformers.AutoModel.from_config(CONFIGS[name]()).eval()
    inputs = default_inputs(model)
    assert model.main_input_name in inputs
    with torch.no_grad():
        output = model(**inputs)
    assert default_output(output).is_floating_point()
    again = default_inputs(model)
    assert all(torch.equal(again[k], v) for k, v in inputs.items())
    shapes = default_dynamic_shapes(inputs)
    assert shapes.keys() == inputs.keys() and all(0 in dims for dims in shapes.values())
    assert (1 in shapes[model.main_input_name]) == (model.main_input_name in ("input_ids", "input_values"))


@pytest.mark.parametrize("name, size", [("resnet18", 224), ("inception_v3", 299)])
def test_default_inputs_of_torchvision(name, size):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    (image,) = default_inputs(model)
    assert image.shape == (1, 3, size, size) and image.dtype == torch.float32
    assert default_dynamic_shapes((image,))[0].keys() == {0}


def test_unknown_models_need_example_inputs():
    with pytest.raises(ArgumentError, match="example_inputs is needed.*Linear.*remedy"):
        default_inputs(nn.Linear(2, 2))

    config = transformers.BertConfig(**SMALL)
    model = transformers.BertModel(config)
    model.main_input_name = "smell"
    with pytest.raises(ArgumentError, match="smell"):
        default_inputs(model)


def test_dynamic_shapes_of_nested_inputs():
    x = torch.zeros(2, 3)
    shapes = default_dynamic_shapes((x, [x, 3], {"a": torch.tensor(1.0)}, None))
    assert shapes[0].keys() == {0} and shapes[1][0].keys() == {0} and shapes[1][1] is None
    assert shapes[2] == {"a": None} and shapes[3] is None


def test_disable_cache_replaces_configs_and_leaves_the_original():
    config = transformers.LlamaConfig(**SMALL, vocab_size=99)
    model = transformers.LlamaForCausalLM(config)
    copied = transformers.LlamaForCausalLM(config)
    disable_cache(copied)
    assert config.use_cache and model.config.use_cache
    assert not copied.config.use_cache and not copied.model.config.use_cache
    assert copied.config is copied.model.config
    assert copied(torch.ones(1, 3, dtype=torch.long)).past_key_values is None


def test_default_output_selects_logits_and_blanks_padding():
    hidden, logits = torch.ones(2, 3, 4), torch.full((2, 3, 5), 2.0)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    cases = [
        (hidden, hidden),
        ((torch.ones(2, dtype=torch.long), {"deep": hidden}), hidden),
        ({"hidden": hidden, "logits": logits}, logits),
        (transformers.modeling_outputs.MaskedLMOutput(logits=logits, hidden_states=(hidden,)), logits),
    ]
    for output, expected in cases:
        assert default_output(output) is expected
        judged = default_output(output, {"attention_mask": mask})
        assert judged[0, 2].abs().sum() == 0 and torch.equal(judged[1], expected[1])
    pooled = torch.ones(2, 4)
    assert default_output(pooled, {"attention_mask": mask}) is pooled
    with pytest.raises(ArgumentError, match="Search\\(output"):
        default_output({"ids": torch.ones(2, dtype=torch.long)})


def test_sentence_embedder_is_the_mean_over_tokens():
    encoder = transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=99)).eval()
    model = SentenceEmbedder(encoder).eval()
    inputs = default_inputs(model)
    inputs["attention_mask"][:, 5:] = 0
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state.double()
        embedding = model(**inputs)
        unit = SentenceEmbedder(encoder, normalize=True)(
            **inputs, token_type_ids=torch.zeros_like(inputs["input_ids"])
        )
        nothing = model(inputs["input_ids"], torch.zeros_like(inputs["attention_mask"]))
    expected = hidden[:, :5].mean(1)
    torch.testing.assert_close(embedding.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        unit.double(), expected / expected.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(nothing, torch.zeros_like(nothing))
