"""The last layer of kotoe-emoji's text encoder in closed form: from a patch's route to what is seen there.

What is drawn on a patch (kotoe.data.latents.Told) is a product: for every *kind* of patch, one row and one column of
an object of one size, another linear map of the object's look code. Gradient descent finds 116 such maps slowly, but
a hidden layer can be written down that holds them. A unit is a direction of the code plus, far below zero unless the
patch is of the unit's own kind, a gate; where the gate is open, the activation is nearly linear. Each kind gets as many
units as the leading directions of its map are worth in pixels, and the second matrix is the least-squares answer on
what the layers before really say.

Legend: N glyphs, K kinds of patches, R numbers of a route, H hidden units, S numbers told of a patch, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.data.latents import ROUTE_SCALE, Told
from kotoe.localize.losses import TextScenes, asked_behind
from kotoe.text import CLIPText

OPEN = 4.0  # a unit's mean where its gate is open: quick_gelu is linear there
CLOSED = -20.0  # what a unit's mean is where neither row nor column are its own; half as far with one of them
SPREAD = 0.7  # standard deviation of a unit where its gate is open
LINEAR = 6.0  # mean of the units that are never closed
LOUD = 10.0  # how much louder than told the last layer speaks: the residual beneath is not told, and not heard
FILLED = 4.0  # squared length of all numbers over that of the longest told
RIDGE = 1e-6


def units(told: Told, count: int) -> tuple[Tensor, Tensor]:
    """The first matrix (H, R) and its bias (H,), reading routes: count = H units."""
    n, kinds = told.code.shape[1], told.none
    code, drawn = told.code[:-1], told.drawn[:, :kinds]  # (N, n), (N, K, .)
    middle = code.mean(dim=0)
    seen = (drawn - drawn.mean(dim=0)) * told.weights[: drawn.shape[2]].sqrt()
    maps = torch.linalg.lstsq(code - middle, seen.flatten(1)).solution  # (n, K .)
    fitted = ((code - middle) @ maps).view_as(seen).transpose(0, 1)  # (K, N, .)
    scores, worth, _ = torch.linalg.svd(fitted, full_matrices=False)  # (K, N, r), (K, r)
    sizes = told.sizes  # (K,)
    total = torch.zeros(int(sizes.max()) + 1).index_add(0, sizes, seen.square().sum(dim=(0, 2)))
    worth = worth.square() / total[sizes][:, None]  # share of a size's looks

    plain = told.route_numbers - n - 2 * (told.rows + 1)  # background and place: the same for all kinds
    spare = count - (kinds + 1) - plain
    if spare < 1:
        raise ValueError(f"{count} hidden units for {kinds} kinds of patches")
    first, bias = torch.zeros(count, told.route_numbers), torch.zeros(count)
    best = worth.flatten().topk(min(spare, worth.numel())).indices
    kind, rank = best // worth.shape[1], best % worth.shape[1]
    directions = torch.linalg.lstsq((code - middle).expand(kinds, -1, -1), scores).solution  # (K, n, r)
    used = len(best)
    first[:used, :n] = SPREAD * math.sqrt(len(code)) * directions[kind, :, rank]
    bias[:used] = -first[:used, :n] @ middle
    gated = torch.cat([kind, torch.arange(kinds + 1)])  # and for each kind, none too, one that says just that
    first[: len(gated), n:-plain] = (OPEN - CLOSED) / 2 / ROUTE_SCALE**2 * told.which[gated]
    bias[: len(gated)] += CLOSED
    last = torch.arange(plain)
    first[len(gated) + last, last - plain] = 1.0
    bias[len(gated) + last] = LINEAR
    return first, bias


@torch.no_grad()
def set_last_layer(encoder: CLIPText, head: nn.Linear, told: Told, batches: Iterable[TextScenes]) -> None:
    """Write an encoder's last layer and final norm, given a `head` that reads routes (R) before it (D).

    Its attention is silenced. batches: captions and what they must tell.
    """
    layer, norm = encoder.text_model.encoder.layers[-1], encoder.text_model.final_layer_norm
    width = encoder.spec.hidden_size
    nn.init.zeros_(layer.self_attn.out_proj.weight)
    nn.init.zeros_(layer.self_attn.out_proj.bias)
    nn.init.ones_(layer.layer_norm2.weight)
    nn.init.zeros_(layer.layer_norm2.bias)
    first, bias = (x.to(head.weight) for x in units(told, encoder.spec.intermediate_size))
    layer.mlp.fc1.weight.copy_(first @ head.weight)
    layer.mlp.fc1.bias.copy_(first @ head.bias + bias)

    parts = []  # the residual before the last layer behind the words (M, D), and what should be drawn there (M, S)
    for batch in batches:
        behind, drawn = asked_behind(batch.ids, encoder.spec.eos, batch.drawn)
        parts.append((encoder.before_last(batch.ids)[behind], drawn))
    size = parts[0][1].shape[1]  # S
    # The final norm gives everything one length, so everything gets two numbers more, which cancel in the mean and
    # make up for the rest. They are much longer than what is told: what they are off by then hardly changes its scale.
    length = FILLED * max(float(drawn.square().sum(dim=1).max()) for _, drawn in parts)
    gram = torch.zeros(len(bias) + 1, len(bias) + 1, dtype=torch.float64)
    moment = torch.zeros(len(bias) + 1, width, dtype=torch.float64)
    for before, drawn in parts:
        hidden = layer.mlp.activation(layer.mlp.fc1(F.layer_norm(before, (width,))))  # (M, H)
        hidden = F.pad(hidden, (0, 1), value=1.0)  # (M, H + 1): with the second bias
        rest = ((length - drawn.square().sum(dim=1)) / 2).sqrt()
        wanted = torch.zeros_like(before)
        wanted[:, :size] = drawn
        wanted[:, size], wanted[:, size + 1] = rest, -rest
        gram += (hidden.T @ hidden).double().cpu()
        moment += (hidden.T @ (LOUD * wanted - before)).double().cpu()
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    second = torch.linalg.solve(gram, moment).to(head.weight)  # (H + 1, D)
    layer.mlp.fc2.weight.copy_(second[:-1].T)
    layer.mlp.fc2.bias.copy_(second[-1])
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    norm.weight[:size] = math.sqrt(length / width)
