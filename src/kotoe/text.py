"""CLIP's text transformer, with transformers' parameter names, and the Conditioner that joins it to a tokenizer.

Source: Radford et al. 2021 (arXiv 2103.00020). Stable Diffusion 1.x feeds the last layer of ViT-L/14's text tower
(quick_gelu), 2.x the last-but-one of OpenCLIP ViT-H/14 (exact gelu), shipped as an encoder of 23 layers; both apply
the final norm.

Legend: B texts, L tokens, D text width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.bert import BertText
from kotoe.errors import UserError, unknown
from kotoe.language import ASCII_MARKS
from kotoe.prompts import Prompt
from kotoe.spec import TextSpec
from kotoe.tokens import Tokenizer, Tokens


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


PADDING = ("max_length", "longest")
LARGEST_FACTOR = 10.0  # that gives weighted states their mean back
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Embeddings(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embedding = nn.Embedding(spec.max_tokens, spec.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # (B, L, D)


class SelfAttention(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        d = spec.hidden_size
        self.heads = spec.num_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, D/heads)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, L, D)


class MLP(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.self_attn = SelfAttention(spec)
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = MLP(spec)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(spec) for _ in range(spec.num_layers)])


class Transformer(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.encoder = Encoder(spec)
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)


def first_eos(ids: Tensor, eos: int) -> Tensor:
    """Position (B,) of each text's first EOS in ids (B, L); padding may be EOS too."""
    return (ids == eos).int().argmax(dim=1)


class CLIPText(nn.Module):
    """Token ids (B, L) to states (B, L, D) for the UNet's cross-attention. Padding is attended, as SD was trained."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.text_model = Transformer(spec)

    def residuals(self, ids: Tensor) -> Iterator[Tensor]:
        """The embeddings (B, L, D) and what each layer up to the spec's makes of them."""
        spec, model = self.spec, self.text_model
        if ids.shape[1] > spec.max_tokens:
            raise UserError(f"{ids.shape[1]} tokens for an encoder of {spec.max_tokens} positions")
        x = model.embeddings(ids)  # (B, L, D)
        yield x
        for layer in model.encoder.layers[: spec.num_layers + 1 + spec.layer]:
            x = layer(x)
            yield x

    def before_last(self, ids: Tensor) -> Tensor:
        """The residual (B, L, D) before the last layer, which is not run."""
        return next(islice(self.residuals(ids), self.spec.num_layers + self.spec.layer, None))

    def finished(self, x: Tensor) -> Tensor:
        """The last residual as a UNet gets it: after the final norm where the spec says so."""
        return self.text_model.final_layer_norm(x) if self.spec.final_norm else x

    def forward(self, ids: Tensor) -> Tensor:
        """States (B, L, D) of the spec's layer, after the final norm where the spec says so."""
        for x in self.residuals(ids):
            last = x
        return self.finished(last)

    def pooled(self, ids: Tensor) -> Tensor:
        """The state (B, D) at each text's first EOS: what CLIP compares with a picture."""
        return self(ids)[torch.arange(len(ids)), first_eos(ids, self.spec.eos)]


def emphasised(states: Tensor, weights: Tensor, *, restore_mean: bool) -> Tensor:
    """States (B, L, D) times their tokens' weights (B, L), as AUTOMATIC1111's web interface weighs them.

    restore_mean: then each window's states times one factor, so that their mean is what it was ("original" there; a
                  window without weights stays the same to the bit). Else not ("no norm").
    Raises UserError where no such factor makes sense: the mean has changed its sign, or is near to nothing.
    """
    heavy = states.float() * weights[:, :, None]  # (B, L, D)
    if restore_mean:
        before, after = states.float().mean((1, 2)), heavy.mean((1, 2))  # (B,)
        factor = torch.where((weights == 1).all(1), 1.0, before / after)
        if not bool(((factor > 0) & (factor < LARGEST_FACTOR)).all()):
            raise UserError(
                f"these weights move the mean of a text's states from {before.tolist()} to {after.tolist()}",
                allowed=f"weights that change it by a factor below {LARGEST_FACTOR:g}",
                hint="Weigh less, or take --emphasis no-norm",
            )
        heavy = heavy * factor[:, None, None]
    return heavy.to(states)


@dataclass(frozen=True)
class Context:
    """What a UNet reads: states (B, L, D) and the tokenizer's report."""

    states: Tensor
    tokens: Tokens


@dataclass(frozen=True)
class Conditioner:
    """Tokenizer and text encoder of one language.

    hashes:  sha256 of their files, for the Record.
    licence: what a model card says of theirs (see checkpoints/terms.py), where they came from another model.
    """

    language: str
    tokenizer: Tokenizer
    encoder: CLIPText | BertText
    hashes: Mapping[str, str] = field(default_factory=dict)
    licence: Mapping[str, str] | None = None

    def warns_of(self, text: str) -> bool:
        """Whether the text has marks that models of this kind (Chinese BERT) draw watermarks from."""
        return self.tokenizer.kind == "wordpiece" and text != text.translate(ASCII_MARKS)

    def encode(
        self,
        texts: Sequence[str | Prompt],
        *,
        long_prompt: str = "error",
        padding: str = "max_length",
        restore_mean: bool = True,
        run: Callable[[Tensor], Tensor] | None = None,
    ) -> Context:
        """Texts to context (B, L, D). Over the token limit: an error, or with "chunk" several windows along L.

        padding:      "max_length" makes L the tokenizer's; "longest" reads only as far as the longest text's EOS.
        restore_mean: of a window with weights; see `emphasised`.
        run:          computes what the encoder would, ids (B, L) to states (B, L, D); None: the encoder itself.
        """
        if padding not in PADDING:
            raise unknown("padding", padding, PADDING)
        tokens = self.tokenizer.encode(texts, long_prompt=long_prompt)
        if padding == "longest" and tokens.windows > 1:
            raise UserError("padding longest for a text of several windows", allowed="max_length")
        device = next(self.encoder.parameters()).device
        ids = torch.tensor(tokens.ids, device=device)  # (B, windows * max_tokens)
        windows = ids.unflatten(1, (-1, self.tokenizer.max_tokens))  # (B, windows, max_tokens)
        if padding == "longest":
            special = self.tokenizer.max_tokens - self.tokenizer.room
            windows = windows[..., : max(tokens.counts) + special]
        states = (run or self.encoder)(windows.flatten(0, 1))  # (B * windows, max_tokens, D)
        if tokens.weights is not None:
            weights = torch.tensor(tokens.weights, device=device).view(len(states), -1)  # (B * windows, max_tokens)
            states = emphasised(states, weights[:, : states.shape[1]], restore_mean=restore_mean)
        return Context(states.unflatten(0, windows.shape[:2]).flatten(1, 2), tokens)  # (B, L, D)


class Conditioners(Mapping[str, Conditioner]):
    """Language to Conditioner, each read when first asked for: a cold start pays only for the language it uses.

    tokenizers: reads a language's tokenizer without its encoder, for the languages that have one.
    """

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Conditioner]],
        tokenizers: Mapping[str, Callable[[], Tokenizer]] | None = None,
    ) -> None:
        self._readers, self._loaded, self._lock = dict(readers), {}, threading.Lock()  # type: ignore[var-annotated]
        self._tokenizers = dict(tokenizers or {})

    def __getitem__(self, language: str) -> Conditioner:
        with self._lock:
            if language not in self._loaded:
                with torch.inference_mode(False):  # what is read first while drawing can be trained and reused too
                    self._loaded[language] = self._readers[language]()
            return self._loaded[language]

    def __contains__(self, language: object) -> bool:
        return language in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def tokenizer(self, language: str) -> Tokenizer:
        """A language's tokenizer. Its encoder is not read where that can be helped."""
        with self._lock:
            if language not in self._loaded and language in self._tokenizers:
                return self._tokenizers[language]()
        return self[language].tokenizer

    @property
    def loaded(self) -> tuple[str, ...]:
        """Languages read so far."""
        return tuple(self._loaded)
