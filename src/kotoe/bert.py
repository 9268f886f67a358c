"""BERT and XLM-RoBERTa as text encoders of Stable Diffusion, with transformers' parameter names.

Sources: Devlin et al. 2018 (arXiv 1810.04805) as Taiyi-Stable-Diffusion-1B-Chinese feeds it (last states of a 512-token
text, padding read like words); Conneau et al. 2019 (arXiv 1911.02116) as AltDiffusion feeds it (padding hidden inside
the encoder, a linear layer on top: of the last states in m2 and m9, of the normalised last-but-one in m18). Neither's
pooler is read by a UNet, so it is not here.

Legend: B texts, L tokens, D text width, E width of the context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.errors import UserError
from kotoe.spec import BertSpec


class Embeddings(nn.Module):
    """Words, positions and token types (all 0: there is one text), then the norm."""

    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.pad, self.counts = spec.pad, spec.counts_from_pad
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embeddings = nn.Embedding(spec.positions, spec.hidden_size)
        self.token_type_embeddings = nn.Embedding(spec.token_types, spec.hidden_size)
        self.LayerNorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        if self.counts:  # RoBERTa: padding has the pad's own row, words count on from there
            words = ids != self.pad
            places = words.cumsum(dim=1) * words + self.pad  # (B, L)
        else:
            places = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, L)
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + self.position_embeddings(places)
        return self.LayerNorm(x)  # (B, L, D)


class SelfAttention(nn.Module):
    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        d = spec.hidden_size
        self.heads = spec.num_heads
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))

    def forward(self, x: Tensor, read: Tensor | None) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, D/heads)
            for f in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=read)
        return y.transpose(1, 2).flatten(2)  # (B, L, D)


class Output(nn.Module):
    """A linear layer, what it is added to, and the norm after that (post-norm)."""

    def __init__(self, width: int, spec: BertSpec) -> None:
        super().__init__()
        self.dense = nn.Linear(width, spec.hidden_size)
        self.LayerNorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(y) + x)


class Attention(nn.Module):
    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.self = SelfAttention(spec)
        self.output = Output(spec.hidden_size, spec)

    def forward(self, x: Tensor, read: Tensor | None) -> Tensor:
        return self.output(self.self(x, read), x)


class Intermediate(nn.Module):
    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.dense = nn.Linear(spec.hidden_size, spec.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.intermediate = Intermediate(spec)
        self.output = Output(spec.intermediate_size, spec)

    def forward(self, x: Tensor, read: Tensor | None) -> Tensor:
        x = self.attention(x, read)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(spec) for _ in range(spec.num_layers)])


def is_text(ids: Tensor, pad: int) -> Tensor:
    """Where ids (B, L) are not padding (B, L) bool: the pads at the end, not one that a text contains."""
    return (ids != pad).flip(1).cumsum(dim=1).flip(1) > 0


class BertText(nn.Module):
    """Token ids (B, L) to states (B, L, E) for the UNet's cross-attention."""

    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = Embeddings(spec)
        self.encoder = Encoder(spec)
        if spec.projection_dim is not None:
            self.transformation = nn.Linear(spec.hidden_size, spec.projection_dim)
            if spec.projects_penultimate:  # then `transformation` is in the files, and not read
                self.transformation_pre = nn.Linear(spec.hidden_size, spec.projection_dim)
                self.pre_LN = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """States (B, L, E); where the spec says `masked`, no state reads the padding behind a text."""
        spec = self.spec
        if ids.shape[1] > spec.max_tokens:
            raise UserError(f"{ids.shape[1]} tokens for an encoder of {spec.max_tokens} positions")
        read = is_text(ids, spec.pad)[:, None, None] if spec.masked else None  # (B, 1, 1, L)
        x = self.embeddings(ids)  # (B, L, D)
        for layer in self.encoder.layer[: spec.num_layers - spec.projects_penultimate]:
            x = layer(x, read)
        if spec.projection_dim is None:
            return x
        return self.transformation_pre(self.pre_LN(x)) if spec.projects_penultimate else self.transformation(x)
