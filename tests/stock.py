"""One prompt drawn by Kotoe and by stock diffusers from the same noise: the latents that each ends at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from kotoe import drawing as g
from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.rng import ImageNoise

PROMPT, NEGATIVE, SEED, STEPS, SCALE = "a red cat on a dog!", "an owl", 7, 4, 3.0


def our_latents(bundle: Bundle, **changes: Any) -> Tensor:
    """The latents (1, C, h, w), scaled as the UNet sees them, that `generate` ends with."""
    steps: list[Tensor] = []
    request = Request(
        **{
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "language": "en",
            "seed": SEED,
            "steps": STEPS,
            "guidance_scale": SCALE,
            **changes,
        }
    )
    g.generate(bundle, request, on_step=lambda progress: steps.append(progress.step.x))
    return steps[-1]


def stock_latents(pipe: StableDiffusionPipeline, prompt: str = PROMPT, **changes: Any) -> Tensor:
    config = pipe.unet.config
    noise = ImageNoise([SEED], (config.in_channels, config.sample_size, config.sample_size)).initial()
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt,
        negative_prompt=NEGATIVE,
        latents=noise,
        **{"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent", **changes},
    )
    return out.images


def stock(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
