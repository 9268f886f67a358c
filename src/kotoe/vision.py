"""CLIP's vision transformer, with transformers' parameter names, and the safety checker that is made of it.

Sources: Radford et al. 2021 (arXiv 2103.00020); the checker is CompVis', as diffusers ships it beside Stable Diffusion:
ViT-L/14, its projection, and the embeddings of 17 concepts and 3 that need special care, each with a threshold.

Legend: B pictures, P patches and the class token before them, D width, E projected width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.errors import UserError
from kotoe.spec import VisionSpec
from kotoe.text import ACTIVATIONS

CONCEPTS, SPECIAL = 17, 3


class Embeddings(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(spec.hidden_size))
        self.patch_embedding = nn.Conv2d(3, spec.hidden_size, spec.patch_size, spec.patch_size, bias=False)
        self.position_embedding = nn.Embedding(spec.patches + 1, spec.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, P - 1, D), row by row
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # (B, P, D)


class SelfAttention(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        d = spec.hidden_size
        self.heads = spec.num_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, P, D/heads)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v)  # every patch reads every other
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, P, D)


class MLP(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.self_attn = SelfAttention(spec)
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = MLP(spec)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(spec) for _ in range(spec.num_layers)])


class Transformer(nn.Module):
    """Pixels (B, 3, H, W) to the state (B, D) of the class token after the last layer and its norm."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.pre_layrnorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)  # spelt so in every file
        self.encoder = Encoder(spec)
        self.post_layernorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))  # (B, P, D)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])  # (B, D)


class SafetyNet(nn.Module):
    """Pixels (B, 3, H, W), normalised as CLIP's, to how near they are to each concept. Thresholds are the checkpoint's:
    they stand in `concept_embeds_weights` and `special_care_embeds_weights`."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_model = Transformer(spec)
        self.visual_projection = nn.Linear(spec.hidden_size, spec.projection_dim, bias=False)
        self.concept_embeds = nn.Parameter(torch.empty(CONCEPTS, spec.projection_dim))
        self.concept_embeds_weights = nn.Parameter(torch.empty(CONCEPTS))
        self.special_care_embeds = nn.Parameter(torch.empty(SPECIAL, spec.projection_dim))
        self.special_care_embeds_weights = nn.Parameter(torch.empty(SPECIAL))

    def embeds(self, pixels: Tensor) -> Tensor:
        """What CLIP compares with texts, (B, E)."""
        edge = self.spec.image_size
        if pixels.shape[1:] != (3, edge, edge):
            raise UserError(f"pixels {tuple(pixels.shape)}", allowed=f"(B, 3, {edge}, {edge}): what the network reads")
        return self.visual_projection(self.vision_model(pixels.to(self.visual_projection.weight)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of each picture with the concepts that need special care (B, 3), and with the others (B, 17)."""
        seen = F.normalize(self.embeds(pixels))  # (B, E)
        special, concepts = (F.normalize(t) for t in (self.special_care_embeds, self.concept_embeds))
        return seen @ special.T, seen @ concepts.T
