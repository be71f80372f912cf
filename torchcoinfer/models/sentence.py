"""Sentence embeddings: a transformer encoder, then the mean over the tokens that are not padding."""

from __future__ import annotations

import torch
from torch import nn


class SentenceEmbedder(nn.Module):
    """Mean-pooled sentence embedding, as sentence-transformers' ``Pooling(pooling_mode="mean")``.

    Args:
        encoder: a module whose output has ``last_hidden_state`` [B, T, D] floating (BertModel and the like).
        normalize: divide by the Euclidean norm. Off by default, so that the judged output keeps the scale on
            which relative errors are defined.
    """

    def __init__(self, encoder: nn.Module, normalize: bool = False):
        super().__init__()
        self.encoder = encoder
        self.normalize = normalize

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeds sentences.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for a token, 0 for padding; a row of padding alone gives zeros.
            token_type_ids: int64 [B, T]; None: zeros.

        Returns:
            [B, D], dtype of the encoder.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        embedding = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return nn.functional.normalize(embedding, dim=-1) if self.normalize else embedding
