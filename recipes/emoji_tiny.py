"""A small decoder for kotoe-emoji, in diffusers' AutoencoderTiny form: it draws about what the model's own one draws.

    kotoe train recipes/emoji_tiny.py --run runs/tiny --size cpu

0.6 GFLOP a picture instead of 1.5, and the answer is approximate. The teacher is the model's own decoder: it draws
latents of scenes, noised as in `emoji_vae.py`, and latents that the model drew of captions. The pictures are kept,
since drawing one costs about as much as learning from it. Of scenes the true picture is mixed in: a teacher's slips
needn't be learnt. The encoder is as small as the format allows and all zeros: it is there for the file alone.

run_dir gets pool/ (what was drawn, in parts that a killed run keeps), fit/ (the training) and decoder/ (the folder).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kotoe import load
from kotoe.checkpoints import Bundle, tiny
from kotoe.data.emoji import Atlas, Scene, atlas, scene
from kotoe.data.latents import PATCH, Basis, basis
from kotoe.errors import UserError
from kotoe.localize.fit import Plan, fit
from kotoe.rng import initialising, keyed_generator
from kotoe.runs import Run
from kotoe.spec import TinyVAESpec
from kotoe.tiny_vae import Block, TinyVAE
from kotoe.vae import VAE
from recipes import emoji_fast
from recipes.emoji_vae import EDGE_WEIGHT, noised, unlike

SPEC = TinyVAESpec(
    latent_channels=32,
    encoder_block_out_channels=(4,) * 5,
    num_encoder_blocks=(0,) * 5,
    decoder_block_out_channels=(32,) * 5,
    num_decoder_blocks=(3, 3, 2, 0, 0),  # a block at 64 x 64 pixels would cost more than all of these
    scaling_factor=4.0,  # latents reach 10 here, and the decoder's tanh flattens what is above 3
)
PAIRS, FAINT = 8, 0.1
TRUE = 0.2  # of a target is the true picture, the rest what the full decoder draws
PART = 256  # pictures of one file of pool/
HELD_OUT = 64
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tier": "everyday", "scenes": 2304, "drawn": 256, "fit": (3500, 16), "lr": 2e-3},
    "gpu": {"tier": "everyday", "scenes": 24_576, "drawn": 8192, "fit": (30_000, 64), "lr": 1e-3},
}


def straighten(net: TinyVAE, base: Basis, z: Tensor) -> None:
    """Start as a straight path that draws each patch about in its mean colour, and the encoder as zeros.

    z: latents (B, C, h, w) as they will come. What a ReLU would cut of the first PAIRS latents, which hold most of the
    colour, has channels of its own; the next ones are lifted by their standard deviation, and the last, for which no
    channels are left, begin in the other filters only, which are faint. After 100 steps from torch's own initialisation
    the L1 was 0.24, with every latent lifted out of the ReLUs' reach 0.09, and so it is 0.08.
    """
    for p in net.encoder.parameters():
        nn.init.zeros_(p)
    path = [m for m in net.decoder.layers if isinstance(m, nn.Conv2d)]
    width = path[0].out_channels
    latent = [*(k for k in range(PAIRS) for _ in (1, -1)), *range(PAIRS, width - PAIRS)]  # of each channel
    sign = torch.tensor([*(1.0, -1.0) * PAIRS, *[1.0] * (width - 2 * PAIRS)])
    lift = z.std(dim=(0, 2, 3)).cpu()[latent]  # (width,)
    lift[: 2 * PAIRS] = 0
    mean = base.mean.reshape(3, PATCH**2).mean(dim=1)  # (3,)
    colour = (base.components.reshape(3, PATCH**2, -1).mean(dim=1) / base.scale)[:, latent] * sign  # (3, width)
    with torch.no_grad():
        for conv in path:
            conv.weight *= FAINT
        path[0].weight[range(width), latent, 1, 1] += sign
        path[0].weight *= net.spec.scaling_factor
        path[0].bias.copy_(lift)  # type: ignore[union-attr]
        for conv in path[1:-1]:
            conv.weight[:, :, 1, 1] += torch.eye(width)
        path[-1].weight[:, :, 1, 1] += colour / 2
        path[-1].bias.copy_((mean + 1) / 2 - colour @ lift / 2)  # type: ignore[union-attr]
        for block in net.decoder.layers:
            if isinstance(block, Block):
                nn.init.zeros_(block.conv[-1].weight)
                nn.init.zeros_(block.conv[-1].bias)


def as_bytes(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes, on the host."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def as_pictures(x: Tensor) -> Tensor:
    """Bytes as pictures in [-1, 1]."""
    return x.float() / 127.5 - 1


def decoded(vae: VAE, z: Tensor, batch: int = 32) -> Tensor:
    """What the full decoder draws of latents (B, C, h, w): pictures (B, 3, H, W) in [-1, 1]."""
    with torch.inference_mode():
        return torch.cat([vae.decode(part) for part in z.split(batch)]).clamp(-1, 1)


def of_scenes(vae: VAE, world: Atlas, base: Basis, scenes: Sequence[Scene], draw: torch.Generator) -> dict[str, Tensor]:
    """Noised latents (B, C, h, w) of scenes, and as targets (B, 3, H, W) mixtures of both pictures, in bytes."""
    x = as_pictures(world.render(scenes))  # (B, 3, H, W)
    z = noised(base.encode(x), draw)  # (B, C, h, w)
    target = torch.lerp(decoded(vae, z), x, TRUE)
    return {"latents": z.half().cpu(), "targets": as_bytes(target)}


def of_captions(bundle: Bundle, asked: Sequence[tuple[str, str, Scene]], first: int) -> dict[str, Tensor]:
    """Latents that the model draws of captions, and what the full decoder makes of them."""
    z = emoji_fast.draw_part(bundle, asked, first)["latents"]  # (B, C, h, w)
    return {"latents": z.half().cpu(), "targets": as_bytes(decoded(bundle.vae, z))}


def taught(run: Run, bundle: Bundle, base: Basis, world: Atlas, settings: Mapping[str, Any], seed: int) -> Any:
    """All latents and targets; parts that are there are read."""
    asked = list(emoji_fast.prompts(bundle, seed + 13, settings["drawn"], settings["tier"]))
    parts = []
    for kind, count in (("scenes", settings["scenes"]), ("drawn", settings["drawn"])):
        for first in range(0, count, PART):
            upto, name = min(first + PART, count), f"{kind}-{first // PART:05d}.safetensors"
            if not run.has(name):
                if kind == "scenes":
                    scenes = [scene(seed + 7, i, world.glyphs) for i in range(first, upto)]
                    draw = keyed_generator(seed, first, "noise")
                    made = of_scenes(bundle.vae, world, base, scenes, draw)
                else:
                    made = of_captions(bundle, asked[first:upto], first)
                run.save(name, lambda to, made=made: save_file(made, to))
                run.say(f"{kind}: {upto} of {count}")
            parts.append(load_file(run.path(name)))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def loss(modules: Mapping[str, nn.Module], batch: tuple[Tensor, Tensor], _: torch.Generator) -> Any:
    """The small decoder on latents z and targets x of a batch (z, x)."""
    z, x = (part.contiguous(memory_format=torch.channels_last) for part in batch)
    l1, edges = unlike(modules["net"].decode(z).float(), x)
    return l1 + EDGE_WEIGHT * edges, {"l1": float(l1.detach()), "edges": float(edges.detach())}


def held_out(world: Atlas, base: Basis, seed: int) -> Tensor:
    """Latents (HELD_OUT, C, h, w) of scenes whose combinations are never trained on."""
    scenes = [scene(seed + 7, i, world.glyphs, held_out=True) for i in range(HELD_OUT)]
    return base.encode(as_pictures(world.render(scenes)))


def closeness(net: nn.Module, vae: VAE, z: Tensor) -> dict[str, float]:
    """How the small decoder's pictures of latents differ from the full one's: mean L1 in [0, 255] and PSNR in dB.

    PSNR of each picture, then the mean, on the bytes that would be saved.
    """
    with torch.inference_mode():
        ours, full = (as_bytes(f(z)).float() for f in (net.decode, lambda z: decoded(vae, z)))  # type: ignore[operator]
        error = (ours - full).square().mean(dim=(1, 2, 3))  # (B,)
        psnr = 10 * torch.log10(255**2 / error.clamp_min(1e-6))
    return {"l1": float((ours - full).abs().mean()), "psnr": float(psnr.mean()), "worst_psnr": float(psnr.min())}


def sample(vae: VAE, z: Tensor) -> Any:
    """Two rows: what the full decoder draws of latents, what the small one does."""

    def draw(modules: Mapping[str, nn.Module]) -> Image.Image:
        rows = [decoded(vae, z), modules["net"].decode(z).clamp(-1, 1)]
        grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (3, 2 H, B W)
        return Image.fromarray(as_bytes(grid).permute(1, 2, 0).numpy())

    return draw


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, base: str = "kotoe-emoji"
) -> Path:
    """Train the small decoder; base: the model whose decoder it stands for, by name or folder. Gives the folder."""
    settings, run_dir = SIZES[size], Path(run_dir)
    bundle = load(base, dtype="float32", device=device)
    vae = bundle.vae.requires_grad_(False)
    if (vae.spec.latent_channels, vae.spec.downscale) != (SPEC.latent_channels, SPEC.downscale):
        raise UserError(
            f"{base}: latents of {vae.spec.latent_channels} channels at 1/{vae.spec.downscale} of the pixels",
            allowed=f"{SPEC.latent_channels} channels at 1/{SPEC.downscale}, as kotoe-emoji's",
        )
    patches, world = basis(settings["tier"], SPEC.latent_channels), atlas(settings["tier"], device)
    config = {"recipe": "emoji_tiny", "seed": seed, **settings, "base_sha256": bundle.sha256}
    drawn = {key: value for key, value in config.items() if key not in ("fit", "lr")}
    with Run(run_dir / "pool", {**drawn, "stage": "pool"}) as run:
        known = taught(run, bundle, patches, world, settings, seed)
    with initialising(seed):
        net = TinyVAE(SPEC)
        straighten(net, patches, known["latents"].float())
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps, count = settings["fit"]
    unseen = held_out(world, patches, seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rows = random.Random(f"{seed} {step}").sample(range(len(known["latents"])), count)
        return known["latents"][rows].float().to(device), as_pictures(known["targets"][rows].to(device))

    plan = Plan(
        name="tiny", trainable=("net.decoder.",), loss=loss, steps=steps, lr=settings["lr"], warmup_steps=50,
        weight_decay=0.0, ema=0.995, seed=seed, bf16=device != "cpu", sample=sample(vae, unseen[:8]), sample_every=400,
    )  # fmt: skip
    with Run(run_dir / "fit", {**config, "stage": "fit"}) as run:
        fit({"net": net}, plan, batches, run, device=device)
        run.say(f"beside the full decoder, on {HELD_OUT} scenes never trained on: {closeness(net, vae, unseen)}")
    return tiny.save(net, run_dir / "decoder", overwrite=True)
