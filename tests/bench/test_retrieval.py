"""Retrieval@1, its paired difference and cosines, on embeddings whose answers are known."""

import numpy as np
import pytest
import torch

from torchcoinfer.bench import retrieval


class LetterTokenizer:
    """One token a letter; pads with 0."""

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        rows = [[ord(letter) for letter in text][:max_length] for text in texts]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def bag_of_letters(input_ids, attention_mask):
    return (torch.nn.functional.one_hot(input_ids, 128) * attention_mask.unsqueeze(-1)).sum(1).float()


def test_embeddings_come_back_in_the_order_of_the_texts():
    texts = ["a longer text", "b", "middle", "cc"]
    rows = retrieval.embed(bag_of_letters, LetterTokenizer(), texts, batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)
    assert [rows[1].argmax(), rows[3].argmax()] == [ord("b"), ord("c")]


def test_truncation_and_batching():
    batches = list(retrieval.token_batches(LetterTokenizer(), ["abcdef", "a", "ab"], 2, max_tokens=4))
    assert [chosen for chosen, _ in batches] == [[1, 2], [0]]
    assert batches[1][1]["input_ids"].shape == (1, 4)


def test_judge():
    judged = retrieval.judge(
        bag_of_letters, LetterTokenizer(), ["aab", "cc", "zz"], ["ab", "ccc", "ab c"], None
    )
    assert judged.hit.tolist() == [True, True, False]
    assert judged.retrieval_at_1 == pytest.approx(2 / 3)
    assert judged.cosine_to(judged) == pytest.approx(1.0)


def test_paired_difference_cancels_common_queries():
    a = np.array([True, True, False, False] * 50)
    b = a.copy()
    b[0] = False
    found = retrieval.paired(a, b)
    assert found.difference == pytest.approx(-1 / 200)
    assert found.standard_error == pytest.approx(np.std([-1] + [0] * 199, ddof=1) / np.sqrt(200))
    assert found.within_two
    assert not retrieval.paired(a, ~a | a).within_two
