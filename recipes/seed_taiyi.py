"""IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1: a Chinese BERT in front of a frozen Stable Diffusion.

    kotoe train recipes/seed_taiyi.py --run runs/taiyi --size emoji
    kotoe train recipes/seed_taiyi.py --run runs/taiyi --size gpu24 --set base=SD14 --set student=TAIYI_CLIP \\
        --set images=PICTURES

One stage: the encoder alone, begun with Taiyi-CLIP's text tower (`student`: a BERT and its tokenizer), through the
diffusion loss of the frozen model.

As published: what trains and what it begins with; 512 pixels; crops by chance; and of its fine-tuning script rate 1e-4,
weight decay 0.1, warming up over a hundredth of the steps, AdamW 0.9/0.999, bfloat16, the unweighted loss. Different:
the rate falls by a half cosine to a fiftieth (theirs linearly to 1e-7); biases and norms decay too; a picture's crop is
chosen once for all; texts are padded to 512 as the published pipeline does when it draws (their training pads to the
longest caption in characters, 256 at most); a tenth of the captions is emptied (theirs: not published); batches fit one
card (theirs: 32 A100 for 100 hours, 20 million pairs once). At emoji size the BERT begins with random weights, since
there is no Chinese CLIP of that size.

Expected time and score: gpu24 and gpu80 were not run. emoji: see docs/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kotoe.bert import BertText
from kotoe.checkpoints import conditioners, load
from kotoe.data.captions import vocabulary_texts
from kotoe.localize.settings import Localizing
from kotoe.localize.vocabulary import train_wordpiece
from kotoe.rng import initialising
from kotoe.spec import BertSpec
from kotoe.text import Conditioner
from recipes.seed_stages import device_of, done, emoji_english, emoji_pictures, needed

LANGUAGE = "zh"
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {
        "pictures": 1200, "vocab_size": 3000, "max_tokens": 64,
        "stage1": {"steps": 400, "batch_size": 16, "lr": 5e-4, "warmup_steps": 30, "weight_decay": 0.1, "ema": 0.99},
    },
    "gpu24": {
        "stage1": {"steps": 200_000, "batch_size": 8, "lr": 1e-4, "warmup_steps": 2000, "weight_decay": 0.1,
                   "ema": 0.0, "resolution": 512, "checkpointing": True},
    },
    "gpu80": {
        "stage1": {"steps": 200_000, "batch_size": 48, "lr": 1e-4, "warmup_steps": 2000, "weight_decay": 0.1,
                   "ema": 0.0, "resolution": 512, "checkpointing": True},
    },
}  # fmt: skip


def stages(
    run: Path, size: str, *, base: str, student: str, images: str, device: str = "cpu", seed: int = 0,
    caption_column: str | None = None,
) -> tuple[Localizing, ...]:  # fmt: skip
    """The one stage's configuration."""
    return (
        Localizing(
            base=base, student=student, language=LANGUAGE, run=str(run / "stage1"), plan="stage1", start="given",
            images=images, caption_column=caption_column, crop="random", latents="sample", dropout=0.1,
            long_prompt="cut", weighting="plain", beta2=0.999, seed=seed, device=device, **SIZES[size]["stage1"],
        ),
    )  # fmt: skip


def random_bert(run: Path, base: str, settings: dict[str, Any], seed: int) -> str:
    """A small BERT with random weights that fits a base, and its tokenizer, in a folder."""
    folder = run / "student"
    if not folder.exists():
        texts = vocabulary_texts(LANGUAGE)
        most = settings["vocab_size"]
        tokenizer = train_wordpiece(
            texts, run / "tokenizer", most, max_tokens=settings["max_tokens"], at_most=True, overwrite=True
        )
        width = load(base).unet.spec.cross_attention_dim
        spec = BertSpec(
            vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=4 * width, num_layers=4,
            num_heads=width // 32, positions=settings["max_tokens"],
            bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad,
        )  # fmt: skip
        with initialising(seed):
            encoder = BertText(spec)
            for part in encoder.modules():
                if isinstance(part, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(part.weight, std=0.02)
        conditioners.write(Conditioner(LANGUAGE, tokenizer, encoder), folder)
    return str(folder)


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    student: str | None = None, images: str | None = None, caption_column: str | None = None,
) -> Path:  # fmt: skip
    """The stage in run; gives the folder of the model. base: Stable Diffusion 1.4; images: captions in Chinese."""
    run, settings = Path(run), SIZES[size]
    if size == "emoji":
        base = base or emoji_english(run)
        images = images or emoji_pictures(run, (LANGUAGE,), settings["pictures"], seed)
        student = student or random_bert(run, base, settings, seed)
    base, student, images = needed("seed_taiyi.py", size, base=base, student=student, images=images)
    (wanted,) = stages(
        run, size, base=base, student=student, images=images, device=device_of(size, device), seed=seed,
        caption_column=caption_column,
    )  # fmt: skip
    return done(wanted)
