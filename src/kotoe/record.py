"""What was done for a picture: the Record that is embedded in it, and its parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from kotoe.config import (
    MAX_BATCH,
    MAX_THREADS,
    DecoderName,
    Dtype,
    Emphasis,
    Ending,
    EngineName,
    NumericsName,
    Request,
    check_text,
    check_types,
)
from kotoe.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Found:
    """A term that a check found in a prompt: of which category, as the list has it and in which language, as the prompt
    has it, and where: from character `start` up to `end`, counted in code points."""

    category: str
    term: str
    language: str
    written: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a safety check said of a prompt or of a picture, and what is done about it.

    allowed: nothing was found. reason: what was, in the prompt's language; "" where nothing was.
    checker, checker_sha256: who says so: a list of terms, or a network (of its files).
    action:  what is done with what isn't allowed.
    score:   of a picture the largest of its concepts' scores, above 0 where it isn't allowed; of a prompt the number of
             terms found.
    found:   the terms. For pictures: the scores themselves, and what was added to the checker's own thresholds, to all
             and by concept ("3=0.05").
    """

    allowed: bool
    reason: str
    checker: str
    checker_sha256: str
    action: Literal["flag", "blur", "block"]
    score: float
    found: tuple[Found, ...] = ()
    concept_scores: tuple[float, ...] = ()
    special_scores: tuple[float, ...] = ()
    threshold_offset: float = 0.0
    concept_offsets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class ConditionerRecord:
    """Which tokenizer and text encoder read the prompt."""

    language: str
    tokenizer_sha256: str
    text_encoder_sha256: str


@dataclass(frozen=True, kw_only=True)
class DetectionRecord:
    """What a language detector said of a prompt: its label, the BCP 47 tag of that, and its probability, 0 to 1."""

    detector: str
    detector_sha256: str
    label: str
    language: str
    score: float

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 <= self.score <= 1.0:
            raise UserError(f"DetectionRecord: score {self.score}", allowed="0.0 to 1.0")


@dataclass(frozen=True, kw_only=True)
class TranslationRecord:
    """What was read instead of the prompt and the negative prompt, and the translator that wrote it.

    source, target: BCP 47 tags; source_code, target_code: the translator's own. translator_sha256: of all its files.
    """

    translator: str
    translator_sha256: str
    source: str
    target: str
    source_code: str
    target_code: str
    beams: int
    prompt: str
    negative_prompt: str

    def __post_init__(self) -> None:
        check_types(self)
        for text in (self.prompt, self.negative_prompt):
            check_text(text)


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """A LoRA or an embedding that was put into the model: its file's name and sha256.

    weight:   of a LoRA; None for an embedding.
    language: whose text encoder it changed; None: none.
    token:    what an embedding is called in prompts; None for a LoRA.
    """

    name: str
    kind: Literal["lora", "embedding"]
    sha256: str
    weight: float | None = None
    language: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if (self.weight is None) != (self.kind == "embedding") or (self.token is None) != (self.kind == "lora"):
            raise UserError(
                f"AdapterRecord: {self.kind} with weight {self.weight}, token {self.token!r}",
                allowed="a lora with a weight, an embedding with a token",
            )


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Which networks drew: the sha256 of their files (of their tensors where there are none) and of the schedule."""

    name: str
    unet_sha256: str
    vae_sha256: str
    schedule_sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was done for one picture: enough to draw it again. Embedded in the picture.

    The hashes of `model` and `conditioner` are those of the base where there are `adapters` beside them.
    prompt and negative_prompt are as given; `translation` has what was read instead, where the model lacks their
    language. detection: what a language detector said, where it was asked.
    width and height are those that were drawn; with padding_mask_crop the picture has those of init_image.
    dtype is the UNet's. tokens: the prompt's, without start, end and padding; dropped, dropped_negative: pieces of it
    and of the negative prompt that were not read (long_prompt "cut"). batch: (index, size), and threads: arithmetic
    may round differently for other numbers of pictures at once or of threads, so a replay uses the same.
    prompt_verdict, picture_verdict: what safety checks said; None: there was none.
    watermark: the number that was put into the pixels after all else, 0 to 65535 (see docs/provenance.md); None: none.
    """

    kotoe: str
    torch: str
    model: ModelRecord
    conditioner: ConditionerRecord
    adapters: tuple[AdapterRecord, ...] = ()
    language_source: Literal["asked", "detected", "shared", "unsure"]
    prompt: str
    negative_prompt: str
    translation: TranslationRecord | None = None
    detection: DetectionRecord | None = None
    width: int
    height: int
    steps: int
    sampler: str
    grid: str
    ending: Ending = "zero"
    guidance_scale: float
    guidance_rescale: float
    seed: int
    eta: float
    init_image: str | None = None
    init_image_sha256: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    strength: float | None = None
    padding_mask_crop: int | None = None
    long_prompt: Literal["error", "chunk", "cut"]
    emphasis: Emphasis = "none"  # as pictures were drawn whose records don't say
    full_width: Literal["folded", "kept"] = "kept"  # the same
    padding: Literal["max_length", "longest"] = "max_length"
    punctuation: Literal["kept", "ascii"] = "kept"
    numerics: NumericsName = "exact"
    engine: EngineName = "plain"  # as pictures were drawn whose records don't say
    decoder: DecoderName = "full"
    decoder_sha256: str | None = None  # of the small one
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_interval: int = 1
    token_merging_ratio: float = 0.0
    dtype: Dtype
    vae_dtype: Dtype
    text_dtype: Dtype
    device: str
    low_memory: bool = False
    threads: int
    tokens: int
    dropped: tuple[str, ...] = ()
    dropped_negative: tuple[str, ...] = ()
    batch: tuple[int, int] = (0, 1)
    prompt_verdict: Verdict | None = None
    picture_verdict: Verdict | None = None
    watermark: int | None = None
    seconds: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        check_types(self)
        index, size = self.batch
        if not 0 <= index < size <= MAX_BATCH:
            raise UserError(
                f"Record: batch {self.batch}", allowed=f"(index, size) with index below size, size up to {MAX_BATCH}"
            )
        if not 1 <= self.threads <= MAX_THREADS:
            raise UserError(f"Record: threads {self.threads}", allowed=f"1 to {MAX_THREADS}")
        if self.watermark is not None and not 0 <= self.watermark < 2**16:
            raise UserError(f"Record: watermark {self.watermark}", allowed=f"0 to {2**16 - 1}")
        if self.translation is not None and self.translation.target != self.conditioner.language:
            raise UserError(
                f"Record: a translation into {self.translation.target}, read as {self.conditioner.language}",
                allowed="one language",
            )

    @property
    def prompt_language(self) -> str:
        """BCP 47 tag of the prompt as it was given."""
        return self.conditioner.language if self.translation is None else self.translation.source

    def request(self) -> Request:
        """The Request for this picture. Its dtype is the loaded model's (see `dtype` here), and it would be translated
        anew where the picture's was (`replay` reads the recorded translation)."""
        theirs = {"prompt", "language", "translate_to", "n", "dtype", "batch_size"}
        same = {f.name: getattr(self, f.name) for f in dataclasses.fields(Request) if f.name not in theirs}
        return Request(
            prompt=(self.prompt,),
            language=self.prompt_language,
            translate_to=None if self.translation is None else self.translation.target,
            batch_size=self.batch[1],
            **same,
        )
