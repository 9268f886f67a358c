"""kotoe-emoji, part 2 of 4: the English base. A text encoder learnt as CLIP was, then frozen, then the UNet.

    kotoe train recipes/emoji_base.py --run runs/base --size cpu

Reads the latents that `emoji_vae.py` defines (principal components of 16 x 16 patches), so that it does not wait for
the autoencoder. Stages: `text/` (contrastive against 32 x 32 thumbnails), `routes/` and `drawing/` (against a picture
tower in closed form: behind its words a text tells what lies on every patch, and its last layer draws it) and `unet/`
(v-prediction with zero terminal SNR, cached latents and text states, 10 % empty captions). `start_from` goes on from
weights of a run or of a model's folder instead of from scratch.

The shipped weights have had fewer steps than SIZES asks for; the model's card says how many.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kotoe import builtin
from kotoe.data.captions import caption, vocabulary_texts
from kotoe.data.emoji import Atlas, atlas, scene
from kotoe.data.latents import Basis, Told, basis
from kotoe.denoise import denoiser, guided, start
from kotoe.localize.fit import Plan, fit, load_average, step_seed
from kotoe.localize.losses import (
    ImageTower,
    TextImages,
    TextLatents,
    TextScenes,
    contrastive,
    diffusion,
    drawing,
    routing,
)
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.rng import ImageNoise, initialising
from kotoe.runs import Run
from kotoe.samplers import SAMPLERS
from kotoe.schedule import GRIDS
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec
from kotoe.text import CLIPText, first_eos
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from recipes.emoji_drawing import set_last_layer

CHANNELS = 32
UNET = UNetSpec(
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    block_out_channels=(64, 128),
    layers_per_block=1,
    cross_attention=(True, True),
    num_heads=(2, 4),
    cross_attention_dim=192,
    norm_num_groups=32,
    sample_size=8,
)
SCHEDULE = ScheduleSpec(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    steps_offset=0,
    set_alpha_to_one=True,
    sampler="ddim",
)
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 1536,
    "num_layers": 4,
    "num_heads": 6,
    "max_tokens": 96,  # 64 of them behind the words, one for each latent, and 32 for the words
    "hidden_act": "quick_gelu",
}
VOCABULARY = 1536
LOOK = 136  # numbers that a text must tell of how an object looks
LAYERS = [f"text.text_model.encoder.layers.{i}." for i in range(TEXT["num_layers"])]
ROUTES = ("text.text_model.embeddings.", *LAYERS[:-1])  # what learns to tell what lies where
DRAWING = (LAYERS[-1], "text.text_model.final_layer_norm.")  # the last layer, which draws it, and what follows
# What a text learns to tell (see Captioned): fewer pairs than the world holds, whose patches are few and easy, and more
# large things, whose patches are many and hard.
PAIRS, LARGE = 0.25, 3.0
CUT = 48  # positions that most steps of `routes` look at: the words, and patches from there to the sixth of eight rows
CLOSED_FORM = 47  # batches of 128 that the last layer is set from
NOISY = (4.0, 1.0)  # timesteps are drawn noisier than evenly at first, where the text decides what is seen, then evenly
NOISY_FROM_TO = (0.4, 0.8)  # shares of the steps where the one begins to turn into the other, and has
DROPOUT = 0.1  # share of captions that are empty, for guidance
STEPS, GUIDANCE = 10, 2.0  # how the model draws if nobody says otherwise

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "tier": "everyday",
        "text": (900, 192),
        "routes": (6000, 64),
        "drawing": (600, 48),
        "unet": (15_000, 32),
        "scenes": 40_000,
        "lr": 2e-3,
    },
    "gpu": {
        "tier": "all",
        "text": (10_000, 512),
        "routes": (20_000, 512),
        "drawing": (2000, 512),
        "unet": (60_000, 512),
        "scenes": 1_000_000,
        "lr": 1e-3,
    },
}


def text_spec(tokenizer: Tokenizer) -> TextSpec:
    """The text encoder of kotoe-emoji for a tokenizer."""
    return TextSpec(vocab_size=tokenizer.vocab_size, bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad, **TEXT)


def new_text(tokenizer: Tokenizer, seed: int) -> CLIPText:
    """A text encoder with CLIP's initial spread of embeddings."""
    with initialising(seed):
        encoder = CLIPText(text_spec(tokenizer))
        nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.01)
    return encoder


class Captioned:
    """Scenes with their captions by step number, and something computed once for each scene.

    count: how many scenes there are; a step draws its batch from them by (seed, step).
    pairs: share of scenes with two objects.
    large: how many times as often as another a scene of a large object is drawn.
    """

    def __init__(
        self, world: Atlas, tier: str, seed: int, count: int, *, pairs: float = 0.4, large: float = 1.0
    ) -> None:
        self.world, self.tier, self.seed = world, tier, seed
        self.scenes = [scene(seed, i, world.glyphs, pairs=pairs) for i in range(count)]
        self.upto = list(accumulate(large if one.size == "large" else 1.0 for one in self.scenes))

    def compute(self, of_pictures: Callable[[Tensor], Tensor], batch: int = 256) -> Tensor:
        """of_pictures: (b, 3, 128, 128) in [-1, 1] to (b, ...); the results of all scenes, (count, ...)."""
        parts = [self.scenes[i : i + batch] for i in range(0, len(self.scenes), batch)]
        return torch.cat([of_pictures(self.world.render(part).float() / 127.5 - 1) for part in parts])

    def draw(self, step: int, batch: int) -> tuple[list[int], random.Random]:
        """Indices of a step's scenes and the generator for its captions."""
        rng = random.Random(step_seed(self.seed, step, "batch"))
        return rng.choices(range(len(self.scenes)), cum_weights=self.upto, k=batch), rng

    def captions(self, chosen: Sequence[int], rng: random.Random, language: str) -> list[str]:
        return [caption(self.scenes[i], language, rng, tier=self.tier) for i in chosen]


def ids(tokenizer: Tokenizer, texts: Sequence[str], *, cut: bool = False) -> Tensor:
    """Token ids (B, max_tokens). cut: only as far as the longest text's EOS."""
    rows = torch.tensor(tokenizer.encode(texts).ids)  # (B, max_tokens)
    return rows[:, : int(first_eos(rows, tokenizer.eos).max()) + 1] if cut else rows


def said(text: CLIPText, tokenizer: Tokenizer, texts: Sequence[str], batch: int = 128) -> Tensor:
    """A frozen encoder's states (B, L, D) of texts, made once and kept in float16 where there is room: 37 kB a text."""
    device = next(text.parameters()).device
    with torch.inference_mode():
        parts = [
            text(ids(tokenizer, texts[i : i + batch]).to(device)).half().cpu() for i in range(0, len(texts), batch)
        ]
    return torch.cat(parts).clone()  # inference tensors can't take part in a loss


def noisiness(done: float) -> float:
    """The exponent of the timesteps' draw (TextLatents.noisy) after a share of the UNet's steps, 0 to 1."""
    begin, end = NOISY_FROM_TO
    turned = min(1.0, max(0.0, (done - begin) / (end - begin)))
    return NOISY[0] + turned * (NOISY[1] - NOISY[0])


def thumbnails(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 4)  # (B, 3, 32, 32)


def warm(modules: Mapping[str, nn.Module], stages: Sequence[str], start_from: str | Path) -> None:
    """Fill modules from stages of a run of this recipe, or from a model's folder: "unet", "text" (the English encoder);
    the "head" that reads its routes is in runs only."""
    folders = [Path(start_from) / stage for stage in stages]
    if all((folder / "state.pt").exists() for folder in folders):
        for folder in folders:
            load_average(modules, folder)
        return
    from kotoe import load
    from kotoe.checkpoints.files import check_shapes, shapes_of

    bundle = load(start_from, dtype="float32")
    for part, module in (("unet", bundle.unet), ("text", bundle.conditioner("en").encoder)):
        if part in modules:
            check_shapes(
                shapes_of(modules[part]),
                shapes_of(module),
                f"{start_from}: {part}",
                says="this recipe",
                hint="Start from a model that this recipe made",
            )
            modules[part].load_state_dict(module.state_dict())


def tell_apart(
    run_dir: Path,
    world: Atlas,
    tokenizer: Tokenizer,
    language: str,
    encoder: CLIPText,
    config: Mapping[str, Any],
    device: str,
) -> None:
    """An encoder learns to tell thumbnails apart (text/)."""
    (steps, batch), seed = config["text"], config["seed"]
    data = Captioned(world, config["tier"], seed + 1, config["scenes"])
    small = data.compute(thumbnails)  # (count, 3, 32, 32)
    with initialising(seed + 1):
        tower = ImageTower(TEXT["hidden_size"]).to(device)

    def batches(step: int) -> TextImages:
        chosen, rng = data.draw(step, batch)
        texts = data.captions(chosen, rng, language)
        return TextImages(ids=ids(tokenizer, texts, cut=True).to(device), images=small[chosen])

    plan = Plan(
        name=f"text/{language}", trainable=("text.", "image."), loss=contrastive(),
        steps=steps, lr=1e-3, ema=0.99,
        weight_decay=0.05, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu",
    )  # fmt: skip
    with Run(run_dir / "text", {**config, "stage": "text"}) as run:
        fit({"text": encoder, "image": tower}, plan, batches, run, device=device)


def train_text(
    run_dir: Path,
    world: Atlas,
    tokenizer: Tokenizer,
    language: str,
    settings: Mapping[str, Any],
    device: str,
    seed: int,
    start_from: str | Path | None,
) -> CLIPText:
    """Tell what lies on each patch (routes/), then what is seen there (drawing/). From scratch text/ comes first."""
    encoder = new_text(tokenizer, seed).to(device)
    told = Told(settings["tier"], CHANNELS, LOOK)
    with initialising(seed + 2):
        head = nn.Linear(TEXT["hidden_size"], told.route_numbers).to(device)
    together = {"text": encoder, "head": head}
    config = {"recipe": "emoji_base", "language": language, "seed": seed, **settings}
    if start_from is None:
        tell_apart(run_dir, world, tokenizer, language, encoder, config, device)
    else:
        warm(together, ("routes", "drawing"), start_from)

    data = Captioned(world, settings["tier"], seed + 1, settings["scenes"], pairs=PAIRS, large=LARGE)

    def scenes(step: int, batch: int, *, cut: bool = False) -> TextScenes:
        chosen, rng = data.draw(step, batch)
        texts = data.captions(chosen, rng, language)
        route, drawn = told([data.scenes[i] for i in chosen])
        rows = ids(tokenizer, texts)[:, : CUT if cut else None]
        return TextScenes(ids=rows.to(device), route=route.to(device), drawn=drawn.to(device))

    steps, batch = settings["routes"]
    plan = Plan(
        name=f"routes/{language}", trainable=(*ROUTES, "head."), loss=routing(),
        steps=steps, lr=1e-3, ema=0.99,
        weight_decay=0.01, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu",
    )  # fmt: skip
    with Run(run_dir / "routes", {**config, "stage": "routes"}) as run:
        fit(together, plan, lambda step: scenes(step, batch, cut=step % 4 > 0), run, device=device)

    steps, batch = settings["drawing"]
    plan = Plan(
        name=f"drawing/{language}", trainable=DRAWING, loss=drawing(told.weights),
        steps=steps, lr=1e-3, ema=0.99, warmup_steps=30,
        weight_decay=0.0, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu",
    )  # fmt: skip
    with Run(run_dir / "drawing", {**config, "stage": "drawing"}) as run:
        if start_from is None and not run.has("state.pt"):
            set_last_layer(encoder, head, told, (scenes(-1 - i, 128) for i in range(CLOSED_FORM)))
        fit({"text": encoder}, plan, lambda step: scenes(step, batch), run, device=device)
    return encoder


def trained(run_dir: str | Path, device: str = "cpu") -> tuple[UNet, CLIPText, Tokenizer]:
    """UNet, English encoder and tokenizer of a run of this recipe, as averaged at its latest checkpoint."""
    run_dir = Path(run_dir)
    tokenizer = load_tokenizer(run_dir / "tokenizer")
    text, unet = new_text(tokenizer, 0), UNet(UNET)
    for stage in ("routes", "drawing"):
        load_average({"text": text}, run_dir / stage)
    load_average({"unet": unet}, run_dir / "unet")
    return unet.to(device, memory_format=torch.channels_last), text.to(device), tokenizer


def latents_drawn(
    unet: nn.Module,
    context: Tensor,
    empty: Tensor | None,
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """What the UNet draws from texts (B, L, D), by default as the model does: latents (B, C, 8, 8).

    empty: what guidance leads away from, (1 or B, L, D); None without guidance.
    """
    device = context.device
    both = None
    if empty is not None:
        together = torch.cat([empty.expand_as(context), context])  # (2 B, L, D)
        both = denoiser(lambda x, t: unet(x, t.to(device), together), SCHEDULE)
    alone = denoiser(lambda x, t: unet(x, t.to(device), context), SCHEDULE)
    noise = ImageNoise(seeds, (CHANNELS, 8, 8))
    sigmas = GRIDS["trailing"](SCHEDULE, steps)
    x, sigmas = start(noise.initial().to(device), sigmas, sampler="ddim", grid="trailing")
    x = x.contiguous(memory_format=torch.channels_last)
    for step in SAMPLERS["ddim"](guided(alone, guidance, both=both), x, sigmas, noise):
        x = step.x
    return x


def previews(
    unet_text: tuple[str, str], tokenizer: Tokenizer, base: Basis, prompts: Sequence[str]
) -> Callable[..., Image.Image]:
    """A drawer of the state of things: prompts to one row of pictures, by the basis's own linear decoder."""
    unet_name, text_name = unet_text

    def draw(modules: Mapping[str, nn.Module]) -> Image.Image:
        unet, text = modules[unet_name], modules[text_name]
        device = next(unet.parameters()).device
        context = text(ids(tokenizer, [*prompts, ""]).to(device))
        x = latents_drawn(unet, context[:-1], context[-1:], [7] * len(prompts))
        pictures = base.decode(x.cpu()).clamp(-1, 1)
        return Image.fromarray(((torch.cat(list(pictures), dim=2) + 1) * 127.5).byte().permute(1, 2, 0).numpy())

    return draw


PREVIEW = (
    "a cat on a blue background",
    "a red apple on a white background",
    "a rocket on a black background",
    "a pizza on a green background",
    "a bicycle on a yellow background",
    "a tiger to the left of a banana on a light blue background",
    "a tree above a car on a pink background",
    "a guitar",
)


def train_unet(
    run_dir: Path,
    world: Atlas,
    tokenizer: Tokenizer,
    text: CLIPText,
    settings: Mapping[str, Any],
    device: str,
    seed: int,
    start_from: str | Path | None,
) -> UNet:
    """The UNet on what a frozen text encoder says (unet/)."""
    base = basis(settings["tier"], CHANNELS)
    data = Captioned(world, settings["tier"], seed + 2, settings["scenes"])
    latents = data.compute(base.encode)  # (count, C, 8, 8)
    steps, batch = settings["unet"]

    kept = said(text, tokenizer, ["", *data.captions(range(len(data.scenes)), random.Random(seed), "en")])

    def batches(step: int) -> TextLatents:
        chosen, rng = data.draw(step, batch)
        rows = [0 if rng.random() < DROPOUT else 1 + i for i in chosen]  # the first of `kept` is the empty caption's
        return TextLatents(
            text=kept[rows].float().to(device), latents=latents[chosen].float(), noisy=noisiness(step / steps)
        )

    with initialising(seed):
        unet = UNet(UNET)
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
    unet.to(device, memory_format=torch.channels_last)
    if start_from is not None:
        warm({"unet": unet}, ("unet",), start_from)
    in_pixels = base.scale**-2  # (C,): the components are orthonormal
    channels = (1 + in_pixels / in_pixels.mean()) / 2  # half for what pixels show, half for fine texture
    plan = Plan(
        name="unet", trainable=("unet.",), loss=diffusion(SCHEDULE, channels=channels), steps=steps, lr=settings["lr"],
        ema=0.998,
        warmup_steps=150, weight_decay=0.0, seed=seed, bf16=device != "cpu", sample_every=250,
        sample=previews(("unet", "text"), tokenizer, base, PREVIEW),
    )  # fmt: skip
    config = {"recipe": "emoji_base", "stage": "unet", "seed": seed, **settings}
    with Run(run_dir / "unet", config) as run:
        fit({"unet": unet, "text": text}, plan, batches, run, device=device)
    return unet


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, start_from: str | Path | None = None
) -> tuple[UNet, CLIPText]:
    """Train text encoder and UNet; run_dir gets tokenizer/, text/, routes/, drawing/ and unet/."""
    settings, run_dir = SIZES[size], Path(run_dir)
    world = atlas(settings["tier"], device)
    folder = run_dir / "tokenizer"
    if start_from is not None:
        start_from = start_from if Path(start_from).is_dir() else builtin.resolve(start_from)
        folder.mkdir(parents=True, exist_ok=True)
        load_tokenizer(Path(start_from) / "tokenizer").save(folder)
    if folder.exists():
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = train_clip_bpe(
            vocabulary_texts("en", settings["tier"]), folder, VOCABULARY, max_tokens=TEXT["max_tokens"]
        )
    text = train_text(run_dir, world, tokenizer, "en", settings, device, seed, start_from)
    text.requires_grad_(False)
    return train_unet(run_dir, world, tokenizer, text, settings, device, seed, start_from), text
