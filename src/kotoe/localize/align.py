"""Token embeddings of a new language out of those of an old one, by counting which tokens stand in each other's texts.

IBM's Model 1 (Brown et al. 1993, "The mathematics of statistical machine translation", section 4.2): every token of a
text was said for one token of its translation, or for none. A few rounds of expectation and maximisation over parallel
texts, no gradients: seconds on one core, and an encoder that starts from it is several times sooner where it has to go
(docs/log.md). Related: WECHSEL (arXiv 2112.06598) and FOCUS (arXiv 2305.14481) want word vectors or shared pieces.

Legend: N pairs of a token and a token of its text's translation, V own vocabulary, W the other, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kotoe.errors import UserError

ROUNDS = 8
MOST_PAIRS = 30_000_000  # of tokens, counted over: about 1 GB while it lasts


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Which other tokens (N,) an own token (N,) stands for, and how likely each (N,): they add to 1."""

    own: Tensor
    other: Tensor
    share: Tensor


def align(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]], *, rounds: int = ROUNDS) -> Alignment:
    """Model 1 over parallel texts: ids without special tokens, text by text in the same order.

    Texts after the first that would make more than MOST_PAIRS are left out. Raises UserError when no pair has tokens.
    """
    if len(own) != len(other):
        raise UserError(f"{len(own)} texts and {len(other)} translations", allowed="as many of each")
    left, right, place, used = [], [], [], 0
    for mine, theirs in zip(own, other, strict=True):
        size = (len(mine) + 1) * len(theirs)
        if not mine or not theirs:
            continue
        if used + size > MOST_PAIRS:
            break
        # Each word of the translation was said for one of mine, or for none (-1): those choose between them.
        a = torch.tensor([*mine, -1])
        b = torch.tensor(theirs)
        left.append(a.repeat(len(b)))
        right.append(b.repeat_interleave(len(a)))
        place.append(torch.full((len(b),), len(a)))
        used += size
    if not used:
        raise UserError("no pair of texts has tokens on both sides", allowed="parallel text")
    own_id, other_id = torch.cat(left) + 1, torch.cat(right)
    choice = torch.repeat_interleave(torch.arange(sum(map(len, place))), torch.cat(place))  # (N,) which of all words
    width = int(other_id.max()) + 1
    kinds, kind = torch.unique(own_id * width + other_id, return_inverse=True)
    speaker = torch.div(kinds, width, rounding_mode="floor")
    share = torch.ones(len(kinds), dtype=torch.float64)
    words, speakers = int(choice[-1]) + 1, int(speaker.max()) + 1
    for _ in range(rounds):
        said = share[kind]  # (N,)
        said /= torch.zeros(words, dtype=torch.float64).index_add_(0, choice, said)[choice]
        count = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, kind, said)
        share = count / torch.zeros(speakers, dtype=torch.float64).index_add_(0, speaker, count)[speaker]
    named = speaker > 0
    return Alignment(own=speaker[named] - 1, other=(kinds % width)[named], share=share[named].float())


def carried_over(embedding: Tensor, found: Alignment, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Embeddings (V, D) as means of the other language's (W, D) by their shares, and which tokens (V,) have got one."""
    rows = torch.zeros(vocab_size, embedding.shape[1])
    rows.index_add_(0, found.own, found.share[:, None] * embedding[found.other].float())
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[found.own] = True
    return rows, seen
