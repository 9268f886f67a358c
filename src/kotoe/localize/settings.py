"""What `kotoe localize` can be asked for. Standard library only: the command line shows it without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kotoe.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to teach a model a language.

    trains:  what learns, as regular expressions over "text.", the new encoder, and "unet.".
    reads:   "pairs" of texts, "captions" of pictures, or "nothing".
    starts:  where the new encoder can start from, the usual one first.
    steps, batch, lr: what it gets if nobody says otherwise.
    about:   what it does, and who did it.
    """

    trains: tuple[str, ...]
    reads: str
    starts: tuple[str, ...]
    steps: int
    batch: int
    lr: float
    about: str

    @property
    def changes_unet(self) -> bool:
        """Whether the base's own languages draw otherwise afterwards."""
        return any(pattern.startswith("unet") for pattern in self.trains)


ANEW = ("aligned", "warm", "scratch")
PLANS: Mapping[str, Way] = {
    "swap": Way(
        trains=(), reads="nothing", starts=("given",), steps=0, batch=0, lr=0.0,
        about="puts an encoder in place that somebody has trained to say what the old one says (Bingsu)",
    ),
    "distil-behind": Way(
        trains=("text.",), reads="pairs", starts=(*ANEW, "given"), steps=1000, batch=32, lr=1e-3,
        about="the states behind the words, before the last layer, which draws in every language (ours)",
    ),
    "distil-reader": Way(
        trains=("text.",), reads="pairs", starts=(*ANEW, "given"), steps=1000, batch=32, lr=1e-3,
        about="what the frozen UNet reads: the answers to its recorded questions (ours)",
    ),
    "distil-states": Way(
        trains=("text.",), reads="pairs", starts=(*ANEW, "given"), steps=1000, batch=32, lr=1e-3,
        about="every state in its place (tohoku-nlp, GlueGen)",
    ),
    "distil-pooled": Way(
        trains=("text.",), reads="pairs", starts=ANEW, steps=1000, batch=32, lr=1e-3,
        about="the pooled vector alone (Bingsu, M-CLIP)",
    ),
    "stage1": Way(
        trains=("text.",), reads="captions", starts=("scratch", "warm", "aligned", "given"), steps=3000, batch=32,
        lr=5e-4,
        about="the diffusion loss through the frozen model (rinna's first stage, Taiyi)",
    ),
    "kv": Way(
        trains=(r"unet\..*attn2\.to_[kv]\.",), reads="captions", starts=("given",), steps=3000, batch=32, lr=1e-4,
        about="the UNet's keys and values of a text alone, for an encoder that is there (AltDiffusion's paper)",
    ),
    "unet": Way(
        trains=("unet.",), reads="captions", starts=("given",), steps=3000, batch=32, lr=1e-5,
        about="the UNet alone, for an encoder that is there (svjack, Cool Japan, AltDiffusion's second stage)",
    ),
    "stage2": Way(
        trains=("text.", "unet."), reads="captions", starts=("given", "warm", "aligned"), steps=3000, batch=32, lr=1e-4,
        about="encoder and UNet together, after stage1 (rinna's second stage)",
    ),
    "adapter": Way(
        trains=("text.transformation",), reads="pairs", starts=("given",), steps=1000, batch=32, lr=1e-3,
        about="the projection behind a frozen multilingual encoder (AltDiffusion; GlueGen, MuLan, PEA)",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Localizing:
    """A language for a model that exists.

    base:          the model: a name, built in or on the hub (owner/name), or a folder.
    language:      the new language, a BCP 47 tag; with `serves` the name of their conditioner.
    serves:        several languages that one conditioner shall read; its name is then mul, say.
    run:           the run's directory; the same command resumes it.
    plan:          which way: distil-behind, distil-reader, distil-states, distil-pooled or adapter from pairs; stage1,
                   kv or stage2 from captioned pictures; swap trains nothing.
    pairs:         files of parallel text, .tsv, .csv, .jsonl or .parquet, with columns source (the base's own language)
                   and target.
    images:        captioned pictures: a folder with metadata.jsonl or metadata.csv (file_name, text) or with a .txt
                   beside each; webdataset's .tar shards or .parquet: one, a folder of them or a range x-{000..012}.tar.
    caption_column: where captions are: text by default; in shards the .txt, or else text or caption of the .json.
    image_column:  where pictures are: image of .parquet by default, file_name of a folder's metadata.
    resolution:    pixels of an edge that pictures get; the base's own by default.
    crop:          what of a picture is seen: the middle of its longer edge; a part that chance picks, once for all; or
                   all of it, its proportions lost.
    resample:      how pictures are made smaller or larger.
    latents:       what is learned of a picture: the mean of what the autoencoder says, or at each look a sample.
    cache:         the folder for the pictures' latents, which runs can share; by default in the run's directory.
    out:           the folder that gets the model with its new language; by default `bundle` in the run's directory.
    tokenizer:     a folder with the new language's tokenizer; by default one is trained on the texts.
    vocab_size:    of the tokenizer to be trained; by default 2,000 a language, or as many as the texts have.
    start:         aligned, tokens begin as the mean of those they translate; warm, the base's weights with new tokens;
                   scratch; given, the encoder of `student`. The plan's own by default.
    student:       a model or a folder with tokenizer/ and text_encoder/ whose encoder is to be the new language's.
    allow_pickle:  read .bin weights of base and student too, as tensors only.
    steps:         how long to train; the plan's own number by default. 0: not at all, the student stays as it starts.
    batch_size:    rows of a step; the plan's own number by default.
    lr:            peak learning rate; the plan's own by default.
    schedule:      after warming up the rate falls by a half cosine to a fiftieth, or stays constant.
    warmup_steps:  steps in which the rate rises from nothing.
    weight_decay:  of AdamW.
    beta2:         of AdamW: how long squared gradients are remembered.
    ema:           decay of the averaged weights that come out; 0: the last weights come out.
    weighting:     of noise levels, for the plans that learn from pictures: min-snr holds down those of little noise;
                   plain is the unweighted loss, as Stable Diffusion was trained.
    dropout:       share of texts that are emptied, 0 to 1, so that the empty text, which guidance needs, is taught too.
    long_prompt:   texts over the limit: error, or cut, which says how many.
    seed:          of everything that is drawn while training.
    device:        cpu, cuda or cuda:N.
    dtype:         what the networks compute in; weights and losses are float32. "auto" is bfloat16 where the device
                   computes in it, float32 elsewhere.
    overwrite:     replace the folder at `out`, if it is a model's.
    log_every:     steps between two lines of metrics.jsonl.
    threads:       processor threads; torch's own choice by default.
    checkpointing: compute activations again for the backward pass instead of keeping them: less memory, more time.
    shard:         of several processes each keeps a slice of parameters, gradients and optimizer state; for stage2.
    """

    base: str
    language: str
    run: str
    serves: tuple[str, ...] = ()
    plan: str = "distil-behind"
    pairs: tuple[str, ...] = ()
    images: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    resolution: int | None = None
    crop: Literal["center", "random", "squash"] = "center"
    resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic"
    latents: Literal["mean", "sample"] = "mean"
    cache: str | None = None
    out: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    start: str | None = None
    student: str | None = None
    allow_pickle: bool = False
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 30
    weight_decay: float = 0.01
    beta2: float = 0.98
    ema: float = 0.99
    weighting: Literal["min-snr", "plain"] = "min-snr"
    dropout: float = 0.05
    long_prompt: str = "error"
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    overwrite: bool = False
    log_every: int = 25
    threads: int | None = None
    checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise unknown("plan", self.plan, PLANS)
        way = PLANS[self.plan]
        if self.start is not None and self.start not in way.starts:
            raise UserError(f"start {self.start} with plan {self.plan}", allowed=", ".join(way.starts))
        if (self.student is None) == (self.begins == "given"):
            raise UserError(
                f"plan {self.plan} from start {self.begins} {'without' if self.student is None else 'with'} a student",
                allowed="--student with start given, and only with it",
            )
        if len({tag.lower() for tag in self.serves}) != len(self.serves):
            raise UserError(f"serves {', '.join(self.serves)}", allowed="every language once")
        if not self.pairs and way.reads == "pairs":
            raise UserError(f"plan {self.plan} without parallel text", allowed="--pairs FILE")
        if self.images is not None and way.reads != "captions":
            readers = ", ".join(name for name, other in PLANS.items() if other.reads == "captions")
            raise UserError(f"plan {self.plan} with captioned pictures", allowed=f"--images with {readers}")
        for name in ("caption_column", "image_column", "resolution", "cache"):
            if self.images is None and getattr(self, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} without pictures", allowed="it with --images SOURCE")
        least_of = {"steps": 0, "resolution": 1, "batch_size": 1, "vocab_size": 16, "log_every": 1, "threads": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} {value}", allowed=f"{least} or more")
        if way.reads == "nothing" and self.taken:
            raise UserError(f"steps {self.steps} with plan {self.plan}", allowed="0: it trains nothing")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"lr {self.lr}", allowed="above 0")
        for name in ("dropout", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}", allowed="0 to below 1")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} {getattr(self, name)}", allowed="0 or more")
        closed = {
            "schedule": ("cosine", "constant"),
            "weighting": ("min-snr", "plain"),
            "dtype": ("auto", "float32", "bfloat16"),
        }
        for name, choices in closed.items():
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if self.weighting != "min-snr" and way.reads != "captions":
            raise UserError(f"weighting {self.weighting} with plan {self.plan}", allowed="plans that read pictures")
        if self.long_prompt not in ("error", "cut"):
            raise unknown("long_prompt", self.long_prompt, ("error", "cut"))
        if self.shard and self.plan != "stage2":
            raise UserError(f"shard with plan {self.plan}", allowed="stage2, which trains the UNet and the encoder")

    @property
    def taken(self) -> int:
        """Steps that are taken."""
        return PLANS[self.plan].steps if self.steps is None else self.steps

    @property
    def tags(self) -> tuple[str, ...]:
        """The languages that get the new conditioner."""
        return self.serves or (self.language,)

    @property
    def begins(self) -> str:
        """Where the encoder starts from."""
        return PLANS[self.plan].starts[0] if self.start is None else self.start


@dataclass(frozen=True, kw_only=True)
class Studying:
    """Which cells to run, and where they are kept.

    out:       the study's folder: cells/, results.json, report.md, r1.png; the same command goes on.
    base:      the model whose encoder is the teacher.
    allow_pickle: read its .bin weights too, as tensors only.
    languages: the new languages, BCP 47 tags.
    plans:     plans of `kotoe localize`; those that read nothing or need a given student are left out.
    starts:    where students start from, for the plans that have a choice; each plan's own by default.
    budgets:   steps of 32 texts.
    n:         prompts of one object that a cell is evaluated on, and half as many of two.
    count:     pairs a language.
    tier:      everyday or all: which objects.
    seed:      of everything that is drawn.
    dtype:     what training computes in, as of `kotoe localize`. Pictures are drawn in float32.
    threads:   processor threads; torch's own choice by default.
    """

    out: str
    base: str = "kotoe-emoji"
    allow_pickle: bool = False
    languages: tuple[str, ...] = ("ja", "zh", "ko")
    plans: tuple[str, ...] = ("distil-behind",)
    starts: tuple[str, ...] = ()
    budgets: tuple[int, ...] = (600,)
    n: int = 200
    count: int = 40_000
    tier: str = "everyday"
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for plan in self.plans:
            if plan not in PLANS:
                raise unknown("plan", plan, PLANS)
            if "given" in PLANS[plan].starts[:1]:
                raise UserError(
                    f"plan {plan} needs a student of its own",
                    allowed=", ".join(n for n, w in PLANS.items() if w.starts[0] != "given"),
                )
        for start in self.starts:
            if not any(start in PLANS[plan].starts for plan in self.plans):
                raise unknown("start", start, {s for plan in self.plans for s in PLANS[plan].starts} - {"given"})
        if not 2 <= self.n <= 400:
            raise UserError(f"n {self.n}", allowed="2 to 400: every other prompt is of a combination never trained on")
        if not all(budget >= 0 for budget in self.budgets):
            raise UserError(f"budgets {self.budgets}", allowed="0 (the start itself) or more steps")
