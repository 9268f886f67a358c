"""kotoe-emoji, part 1 of 4: the autoencoder, 128 x 128 pixels to 8 x 8 x 32 latents and back.

    kotoe train recipes/emoji_vae.py --run runs/vae --size cpu

What the latents are is decided in closed form (`kotoe.data.latents`): the encoder learns to compute them, the decoder
to draw from them, noised since a UNet's answers are not exact. Two stages through the one loop: crops of 64 x 64 round
the objects, four times cheaper a picture, then whole scenes, because GroupNorm and the middle attention see the whole
picture. Decoder loss: L1 and L1 of neighbouring differences (edges); encoder loss: squared error of the latents. A
third stage, `drawn/`, follows when there is a UNet: `emoji_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kotoe.data.emoji import PIXELS, Atlas, atlas, layout, scene
from kotoe.data.latents import PATCH, Basis, basis
from kotoe.errors import UserError
from kotoe.localize.fit import Loss, Plan, fit, load_average
from kotoe.rng import initialising, keyed_generator
from kotoe.runs import Run
from kotoe.spec import VAESpec
from kotoe.vae import VAE, Attention, Downsample, ResnetBlock, Upsample

SPEC = VAESpec(
    latent_channels=32,
    block_out_channels=(16, 16, 48, 96, 128),
    layers_per_block=1,
    norm_num_groups=1,  # more groups wash out the flat background's colour: each forgets its own mean
    scaling_factor=1.0,
    sample_size=PIXELS,
)
CROP = 64
EDGE_WEIGHT = 1.0
LATENT_WEIGHT = 0.1
LATENT_NOISE = 0.35  # largest standard deviation of a picture's noise, drawn evenly from 0 on; latents have 1
LOGVAR = -6.0  # the posterior's, constant: a standard deviation of exp(-3) = 0.05
STAGES = ("crops", "scenes", "drawn")

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tier": "everyday", "crops": (6000, 32), "scenes": (800, 16), "lr": 1.5e-3},
    "gpu": {"tier": "all", "crops": (40_000, 256), "scenes": (20_000, 128), "lr": 1.5e-3},
}


def pictures(world: Atlas, seed: int, step: int, batch: int, *, crop: bool) -> Tensor:
    """A batch (B, 3, H, W) in [-1, 1]: whole scenes, or crops round an object's middle that keep the patch grid."""
    scenes = [scene(seed, step * batch + k, world.glyphs, pairs=0.3) for k in range(batch)]
    x = world.render(scenes).float() / 127.5 - 1  # (B, 3, PIXELS, PIXELS)
    if not crop:
        return x
    draw = keyed_generator(seed, step, "crop")
    parts = []
    for k, one in enumerate(scenes):
        edge, *centre = layout(one)[0]
        offsets = torch.randint(-edge // 2, edge // 2 + 1, (2,), generator=draw).tolist()
        left, top = (
            min(max(round((c + d - CROP / 2) / PATCH) * PATCH, 0), PIXELS - CROP)
            for c, d in zip(centre, offsets, strict=True)
        )
        parts.append(x[k, :, top : top + CROP, left : left + CROP])
    return torch.stack(parts)  # (B, 3, CROP, CROP)


def noised(z: Tensor, draw: torch.Generator) -> Tensor:
    """Latents (B, C, h, w) with noise of another strength for each picture, from none to LATENT_NOISE."""
    strength = LATENT_NOISE * torch.rand((len(z), 1, 1, 1), generator=draw)
    return z + (strength * torch.randn(z.shape, generator=draw)).to(z)


def unlike(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """L1 of drawn pictures y and true ones x, (B, 3, H, W), and of the differences of neighbouring pixels (edges)."""
    edges = F.l1_loss(y.diff(dim=3), x.diff(dim=3)) + F.l1_loss(y.diff(dim=2), x.diff(dim=2))
    return F.l1_loss(y, x), edges


def loss_on(base: Basis) -> Loss:
    """Encoder to the basis's latents, decoder from them, on pictures (B, 3, H, W) in [-1, 1]."""

    def loss(modules: Mapping[str, nn.Module], x: Tensor, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        vae = modules["vae"]
        x = x.contiguous(memory_format=torch.channels_last)
        z = base.encode(x)  # (B, C, h, w)
        l1, edges = unlike(vae.decode(noised(z, draw)).float(), x)
        latents = F.mse_loss(vae.moments(x)[0].float(), z)
        total = l1 + EDGE_WEIGHT * edges + LATENT_WEIGHT * latents
        return total, {"l1": float(l1.detach()), "edges": float(edges.detach()), "latents": float(latents.detach())}

    return loss


def straighten(vae: VAE) -> None:
    """Start as a straight path: residual branches silent, resamplers averaging and repeating, channels kept.

    From torch's own initialisation an autoencoder did not get past the mean colour in 250 steps.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if hasattr(module, "conv_shortcut"):
                nn.init.orthogonal_(module.conv_shortcut.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif isinstance(module, Downsample):
            module.conv.weight.data.mul_(0.1)
            module.conv.weight.data[:, :, :2, :2] += torch.eye(module.conv.out_channels)[:, :, None, None] / 4
        elif isinstance(module, Upsample):
            module.conv.weight.data.mul_(0.1)
            module.conv.weight.data[:, :, 1, 1] += torch.eye(module.conv.out_channels)
    keep = SPEC.latent_channels
    nn.init.zeros_(vae.quant_conv.weight[keep:].data)
    nn.init.constant_(vae.quant_conv.bias[keep:].data, LOGVAR)


def sample(world: Atlas, base: Basis) -> Any:
    """Scenes, what the decoder draws from their latents, and what the whole autoencoder makes of them."""

    def draw(modules: Mapping[str, nn.Module]) -> Image.Image:
        vae = modules["vae"]
        x = pictures(world, 1234, 0, 8, crop=False).to(next(vae.parameters()).device)
        rows = [x, vae.decode(base.encode(x)).clamp(-1, 1), vae.decode(vae.encode(x)).clamp(-1, 1)]
        grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (3, 3 H, 8 W)
        return Image.fromarray(((grid + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())

    return draw


def trained(run_dir: str | Path) -> VAE:
    """The autoencoder of a run of this recipe, as averaged at the latest checkpoint of each stage that it has."""
    vae = VAE(SPEC)
    folders = [Path(run_dir) / stage for stage in STAGES]
    found = [folder for folder in folders if (folder / "state.pt").exists()]
    if not found:
        raise UserError(f"no autoencoder in {run_dir}", allowed=f"a run of {Path(__file__).name}: one of {STAGES}")
    for folder in found:
        load_average({"vae": vae}, folder)
    return vae


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, start_from: str | Path | None = None
) -> VAE:
    """Train the autoencoder; run_dir gets `crops/` and `scenes/`. start_from: a folder whose VAE to go on from."""
    settings = SIZES[size]
    world, base = atlas(settings["tier"], device), basis(settings["tier"], SPEC.latent_channels)
    with initialising(seed):
        vae = VAE(SPEC)
        straighten(vae)
    if start_from is not None:
        from kotoe import load

        vae.load_state_dict(load(start_from).vae.float().state_dict())
    vae.to(device, memory_format=torch.channels_last)
    modules: Mapping[str, nn.Module] = {"vae": vae}
    for stage, rate in (("crops", 1.0), ("scenes", 0.5)):
        steps, batch = settings[stage]
        plan = Plan(
            name=f"vae/{stage}", trainable=("vae.",), loss=loss_on(base), steps=steps, lr=settings["lr"] * rate,
            weight_decay=0.0, ema=0.995, seed=seed, bf16=device != "cpu", sample=sample(world, base), sample_every=300,
        )  # fmt: skip
        config = {"recipe": "emoji_vae", "stage": stage, "size": size, "seed": seed, **settings}
        with Run(Path(run_dir) / stage, config) as run:
            batches = partial(pictures, world, seed, batch=batch, crop=stage == "crops")
            fit(modules, plan, batches, run, device=device)
    return vae
