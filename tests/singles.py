"""Single files in CompVis names for tests: real networks of diffusers and transformers at random weights.

OpenCLIP isn't a test dependency: `Tower` is its text tower as SD 2.x ships it, made of torch's own modules, so that its
names, its stacked attention and its states come from somewhere else than the code under test.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kotoe.checkpoints.compvis import unet_to_compvis, vae_to_compvis
from kotoe.spec import UNetSpec, VAESpec
from tiny import POSITIONS, seeded, tiny_tokenizer

UNET, EMA, VAE, CLIP = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."
WIDTH, VOCABULARY = 64, 560  # of the text states; of tiny_tokenizer("en")
VAE_SPEC = VAESpec(block_out_channels=(32, 64), layers_per_block=2, sample_size=128)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 2 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(2 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """OpenCLIP's text tower: 24 blocks, of which SD 2.x reads 23 and then the final norm."""

    def __init__(self, blocks: int = 24) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(POSITIONS, WIDTH))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(WIDTH) for _ in range(blocks)])
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def penultimate(self, ids: Tensor) -> Tensor:
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks[:-1]:
            x = block(x, mask)
        return self.ln_final(x)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Networks of one family, and the tensors of the single file that says the same."""

    family: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    tower: Tower | None
    unet_spec: UNetSpec
    file: dict[str, Tensor]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in tensors.items()}


def ema_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Running averages beside the UNet of a file, as ldm names them: nine tenths of the values."""
    raw = {name.removeprefix(UNET): t for name, t in tensors.items() if name.startswith(UNET)}
    flat = {f"{EMA}diffusion_model{name}".replace(".", ""): 0.9 * t for name, t in raw.items()}
    return {name.replace("model_ema", EMA, 1): t for name, t in flat.items()}


def made(family: str, seed: int = 1) -> Made:
    """sd1: CLIP in transformers' names. sd2: linear projections, heads 64 wide, OpenCLIP of 24 blocks."""
    two = family == "sd2"
    widths, heads = ((64, 64, 128), (1, 1, 2)) if two else ((32, 64, 64), (8, 8, 8))
    spec = UNetSpec(
        block_out_channels=widths,
        cross_attention=(True, True, False),
        num_heads=heads,
        cross_attention_dim=WIDTH,
        use_linear_projection=two,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=heads if two else 8,
        use_linear_projection=two,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=23 if two else 3,
            num_attention_heads=WIDTH // 64,
            max_position_embeddings=POSITIONS,
            hidden_act="gelu" if two else "quick_gelu",
        )
    )
    for i, network in enumerate((unet, vae, text)):
        seeded(network, seed + i)
    tower = seeded(Tower(), seed + 3) if two else None
    bare = not next(iter(text.state_dict())).startswith("text_model.")
    if tower is None:
        states = under(CLIP + "text_model." * bare, text.state_dict())
    else:
        states = under(OPENCLIP, tower.state_dict())
        theirs = convert_open_clip_checkpoint(text, states)
        text.load_state_dict({k.removeprefix("text_model." * bare): v for k, v in theirs.items()}, strict=True)
    return Made(
        family=family,
        unet=unet,
        vae=vae,
        text=text,
        tower=tower,
        unet_spec=spec,
        file={
            **under(UNET, unet_to_compvis(unet.state_dict(), spec)),
            **under(VAE, vae_to_compvis(vae.state_dict(), VAE_SPEC)),
            **states,
        },
    )


def written(tensors: Mapping[str, Tensor], path: Path, **texts: str) -> Path:
    """A safetensors file. texts: ModelSpec's, as resolution="16x16"."""
    head = {"format": "pt", **{f"modelspec.{key}": text for key, text in texts.items()}}
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata=head)
    return path


def words(folder: Path, family: str = "sd1") -> Path:
    """A folder with the tokenizer of the text encoders above."""
    folder.mkdir(parents=True)
    tiny_tokenizer("en", "!" if family == "sd2" else "<|endoftext|>").save(folder)
    return folder
