"""Small safety checkers as published: diffusers' own class, random weights, in the layout of a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tiny import seeded

EDGE_PX = 30  # no multiple of the patch: what is left over at the edge is nobody's
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": EDGE_PX,
    "patch_size": 8,
}
# Of transformers 4.21, in which Stable Diffusion's was written: tables said twice, and everything of writing texts.
OLD_VISION = {"bad_words_ids": None, "dropout": 0.0, "is_decoder": False, "pruned_heads": {}, "top_k": 50}
OLD_PIXELS = {
    "crop_size": EDGE_PX,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": EDGE_PX,
}


def photos(count: int = 12) -> list[Image.Image]:
    """Pictures of odd sizes, upright and lying, larger and smaller than the checker's, each of something else."""
    made = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        width, height = (int(n) for n in torch.randint(17, 90, (2,), generator=generator))
        rough = torch.randint(0, 256, (3, 4, 5), generator=generator, dtype=torch.uint8)
        small = Image.frombytes("RGB", (5, 4), rough.permute(1, 2, 0).contiguous().numpy().tobytes())
        made.append(small.resize((width, height), Image.Resampling.BICUBIC))
    return made


def extractor() -> CLIPImageProcessorPil:
    """transformers' preprocessing of a checker of EDGE_PX."""
    edges = {"height": EDGE_PX, "width": EDGE_PX}
    return CLIPImageProcessorPil(size={"shortest_edge": EDGE_PX}, crop_size=edges)


def stock_checker(activation: str = "quick_gelu") -> StableDiffusionSafetyChecker:
    """Diffusers' checker, whose thresholds are such that of `photos` some are flagged and some aren't.

    The thresholds lie in the middle of the cosines that the photos have, so that every concept divides them.
    """
    config = CLIPConfig(vision_config={**VISION, "hidden_act": activation}, projection_dim=24)
    net = seeded(StableDiffusionSafetyChecker(config), 3)
    pixels = extractor()(photos(), return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = torch.nn.functional.normalize(net.visual_projection(net.vision_model(pixels).pooler_output))
        for name, rank in (("concept", -1), ("special_care", -3)):
            embeds = getattr(net, f"{name}_embeds")
            cosines = (seen @ torch.nn.functional.normalize(embeds).T).sort(dim=0).values  # (photos, concepts)
            thresholds = (cosines[rank] + cosines[rank - 1]) / 2
            if name == "concept":
                thresholds[4:] = 0.9  # else every photo is flagged by one of seventeen
            getattr(net, f"{name}_embeds_weights").copy_(thresholds)
    return net


def save_checker(net: StableDiffusionSafetyChecker, folder: Path, *, old: bool = False, pickled: bool = False) -> Path:
    """safety_checker/ and feature_extractor/ in a checkpoint's folder. old: as transformers 4.21 wrote them."""
    part, pixels = folder / "safety_checker", folder / "feature_extractor"
    net.save_pretrained(part)
    extractor().save_pretrained(pixels)
    weights = part / "model.safetensors"
    if old:
        config = json.loads((part / "config.json").read_text())
        config["vision_config_dict"] = VISION
        config["text_config_dict"] = {"hidden_size": 768}
        config["vision_config"] |= OLD_VISION
        config["_name_or_path"] = "CompVis/stable-diffusion-safety-checker"
        (part / "config.json").write_text(json.dumps(config))
        (pixels / "preprocessor_config.json").write_text(json.dumps(OLD_PIXELS))
        tensors = {
            f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
            for name, tensor in load_file(weights).items()
        }
        save_file(tensors, weights, metadata={"format": "pt"})
    if pickled:
        positions = {"vision_model.vision_model.embeddings.position_ids": torch.arange(10)[None]}
        torch.save({**load_file(weights), **positions}, part / "pytorch_model.bin")
        weights.unlink()
    return folder
