"""What the verbs of the command line take, and how they say things.

Standard output carries data (paths, figures; with --json one JSON document as the last line); all else goes to
standard error.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kotoe import builtin
from kotoe.config import DecoderName, EngineName, dumps, from_json
from kotoe.errors import UserError
from kotoe.runs import cache_folder, leads

Values = dict[str, Any]
INTERRUPTED = 130


# --- What each verb takes -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes.

    config:  a JSON file with any of these options; the command line wins over it.
    dry_run: check everything, print the resolved configuration, and do nothing but download what is checked: models
             from the hub.
    json:    the last line of standard output is one JSON document.
    """

    config: str | None = None
    dry_run: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Where from and where to.

    model:      a model's name, built in or on the hub (owner/name), its folder, or a single file.
    out:        folder for the pictures, and beside them the resolved configuration as generate-*.json.
    translator: translates prompts in languages that the model lacks, and no others: an mBART-50, M2M100, NLLB or Marian
                checkpoint, its folder or its name on the hub.
    detector:   with --translator: a classifier that tells the language of prompts whose script doesn't.
    replay:     draw a picture of Kotoe's again, from the record inside it; no prompt then.
    grid_image: also write grid.png, all pictures with their prompts; by default when there are several.
    device:     where to compute: cpu, cuda, cuda:N or mps; cpu by default.
    low_memory: bring only the part of the model that is at work to the device, and compute attention in pieces; slower.
    """

    model: str = builtin.DEFAULT
    out: str = "out"
    translator: str | None = None
    detector: str | None = None
    replay: str | None = None
    grid_image: bool | None = None
    device: str | None = None
    low_memory: bool = False

    def __post_init__(self) -> None:
        if self.detector is not None and self.translator is None:
            raise UserError(f"detector {self.detector} without a translator", allowed="--detector with --translator")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What a model's files may not say themselves. An option that doesn't apply to the files given is an error.

    tokenizer:       for a single file or KerasCV's: a folder with its text encoder's tokenizer, or a whole checkpoint.
    ema:             for a single file that holds two UNets: the running average, or the one as trained.
    prediction_type: for a single file of SD 2.x: epsilon (512 pixels) or v_prediction (768 pixels).
    allow_pickle:    read .ckpt and .bin files too, as tensors only.
    """

    tokenizer: str | None = None
    ema: bool | None = None
    prediction_type: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Adapting:
    """What to put into the model that was loaded. A replay needs what its picture was drawn with, but for `fast`.

    fast:             draw in few steps, as the model was taught to: its LoRA for that, and the steps, guidance and
                      decoder that go with it, where nothing else is said. Approximate.
    lora:             LoRA files, each FILE or FILE:WEIGHT; the weight is 1 unless said, may be 0 or negative.
    embedding:        textual inversion files, each FILE or TOKEN=FILE: what the word is called in prompts.
    adapter_language: whose text encoder gets the embeddings and the LoRAs' parts for it; the model's first by default.
    lora_text:        the LoRAs' parts for the text encoder too; --no-lora-text leaves them out.
    taesd:            a folder of a small decoder (diffusers' AutoencoderTiny, such as TAESD) for --decoder small,
                      instead of the model's own, if it has one.
    """

    fast: bool = False
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    adapter_language: str | None = None
    lora_text: bool = True
    taesd: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inspecting:
    """What to look at.

    model:        a model's name, built in or on the hub (owner/name, which is downloaded whole), a folder in diffusers'
                  layout, a single file, also of an adapter, or a picture (.png, .jpg, .webp) that Kotoe drew.
    allow_pickle: look into .ckpt, .pt and .bin files too, which are read for it, as tensors only.
    """

    model: str = builtin.DEFAULT
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Converting:
    """What to write in another format.

    source:    a model's name, a folder in diffusers' layout or of KerasCV's files, or a single file.
    out:       where to: a folder for diffusers and kerascv, a name ending in .safetensors for compvis.
    to:        diffusers, a folder; compvis, a single file of one language, without its tokenizer; or kerascv, a
               folder of HDF5 files of one language.
    language:  keep the conditioner of this language only.
    dtype:     of the weights written: float32, bfloat16 or float16; each tensor's own by default.
    overwrite: replace what is at OUT, if it is a checkpoint.
    """

    source: str
    out: str
    to: str
    language: str | None = None
    dtype: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluating:
    """What to measure.

    suite:      emoji: fixed prompts and seeds, the drawn objects looked up by a matcher that has learned nothing.
    model:      a model's name, built in or on the hub (owner/name), its folder, or a single file.
    languages:  BCP 47 tags; all that the model and the suite share by default.
    tier:       everyday, all or flags: which objects.
    n:          prompts of one object per language, and half as many of two; all of the suite's by default.
    controls:   also measure true renders, shuffled prompts, and the English encoder fed foreign prompts.
    batch_size: pictures drawn together; by default 16, with engine int8 1.
    dtype:      what to draw in: auto, float32, bfloat16 or float16; auto as of `kotoe generate`.
    steps:      denoising steps; the model's default otherwise, as with what follows, see `kotoe generate --help`:
    guidance_scale: how strongly to follow the prompt.
    engine:     fast, plain, int8 or compiled.
    decoder:    full or small.
    guidance_start: where guidance begins, 0.0 to 1.0.
    guidance_stop: where it ends, 0.0 to 1.0.
    cache_interval: every how many steps the whole network is computed.
    token_merging_ratio: share of positions merged, 0.0 to 0.75.
    out:        folder for results.json, report.md, failures.json and pictures.png beside their true renders.
    """

    suite: str = "emoji"
    model: str = builtin.DEFAULT
    languages: tuple[str, ...] | None = None
    tier: str = "everyday"
    n: int | None = None
    controls: bool = True
    batch_size: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    steps: int | None = None
    guidance_scale: float | None = None
    engine: EngineName = "fast"
    decoder: DecoderName | None = None
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_interval: int = 1
    token_merging_ratio: float = 0.0
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train.

    recipe: a Python file with main(run, size=..., device=..., seed=...), such as those in recipes/.
    run:    the run's directory; the same command resumes it.
    size:   how much effort, of those the recipe names (--dry-run lists them); its own choice by default.
    device: cpu, cuda or cuda:N; the size's own by default.
    seed:   of everything that is drawn while training.
    set:    what else the recipe takes, NAME=VALUE each: base=MODEL, images=FOLDER.
    """

    recipe: str
    run: str
    size: str | None = None
    device: str | None = None
    seed: int = 0
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adding:
    """Which conditioner to put where.

    bundle:          the folder that gets it, in diffusers' layout.
    language:        the language it reads, a BCP 47 tag; with `serves` its name.
    serves:          the languages that it reads, if there are several; its name is then mul, say.
    from_:           where it comes from: a model's name or folder, a folder with tokenizer/ and text_encoder/ alone, or
                     the repository of a text model (CLIP, BERT, AltDiffusion's XLM-R) with its tokenizer.
    source_language: which of its conditioners, if it has several: the one for that language by default.
    own_language:    what the folder's own text encoder reads, where its files don't say so ("und" in `kotoe inspect`).
    overwrite:       replace the conditioner that the language has.
    allow_pickle:    read .bin weights too, as tensors only; they are written as safetensors.
    """

    bundle: str
    language: str
    from_: str
    serves: tuple[str, ...] = ()
    source_language: str | None = None
    own_language: str | None = None
    overwrite: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Removing:
    """Which conditioner to take away.

    bundle:   the folder that has it, in diffusers' layout.
    language: the language it reads, a BCP 47 tag.
    """

    bundle: str
    language: str


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What parallel text to write.

    language:  the language beside English, a BCP 47 tag.
    out:       the file: columns source and target when it ends in .tsv, an object a line when it ends in .jsonl.
    count:     how many pairs.
    tier:      everyday, all or flags: which objects.
    seed:      of scenes and wording; the English side is the same for every language.
    split:     train, only combinations that training may see; or held-out, only those it never does.
    overwrite: replace the file.
    """

    language: str
    out: str
    count: int = 40_000
    tier: str = "everyday"
    seed: int = 0
    split: str = "train"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingTokenizer:
    """What to train a tokenizer on, and for which text encoder.

    texts:              files: .txt with a text a line, or .tsv, .csv, .jsonl, .parquet with a column of texts.
    out:                folder that gets the tokenizer.
    family:             of the text encoder: clip (byte-level BPE), sentencepiece (rinna's layout: no BOS, a pad of its
                        own), xlm-roberta, or bert (WordPiece).
    vocab_size:         ids in all, special tokens included: the rows of the encoder's embedding.
    column:             of the files that have columns; "target" by default, as in a file of pairs.
    max_tokens:         positions of the text encoder, special tokens included.
    model_type:         sentencepiece: unigram or bpe; unigram by default.
    normalization:      sentencepiece: nmt_nfkc (the default), nfkc, identity, nfkc_cf or nmt_nfkc_cf (cf: case folded);
                        the other families have their own.
    byte_fallback:      sentencepiece: spell what the vocabulary lacks in bytes (the default) instead of as <unk>.
    character_coverage: share of the characters seen that get a piece of their own, not for clip; 1 by default, for
                        SentencePiece 0.98 or more.
    lower_case:         sentencepiece: as rinna's, off by default; bert: lower case without accents, on by default.
    pad_token:          clip: <|endoftext|> as in SD 1.x (the default), or ! as in SD 2.x.
    overwrite:          replace the tokenizer that is in OUT.
    """

    texts: tuple[str, ...]
    out: str
    family: str
    vocab_size: int
    column: str | None = None
    max_tokens: int = 77
    model_type: str | None = None
    normalization: str | None = None
    byte_fallback: bool | None = None
    character_coverage: float | None = None
    lower_case: bool | None = None
    pad_token: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """Which tokenizers to compare on which texts.

    texts:     files, each [NAME=]FILE[:COLUMN]: .txt with a text a line, or .tsv, .csv, .jsonl, .parquet with columns.
    tokenizer: tokenizers, each [NAME=]PLACE: a folder with a tokenizer's files; a model's name or folder, for those of
               all its languages; or MODEL:LANGUAGE for one of them.
    column:    of the files that have columns and name none; "target" by default, as in a file of pairs.
    limit:     positions of the text encoder, special tokens included; each tokenizer's own by default.
    out:       folder for report.json, report.md and fertility.png.
    """

    texts: tuple[str, ...]
    tokenizer: tuple[str, ...]
    column: str | None = None
    limit: int | None = None
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checking:
    """What to check.

    model: a model's name, built in or on the hub (owner/name), its folder, or a single file.
    """

    model: str = builtin.DEFAULT


@dataclass(frozen=True, kw_only=True)
class Benching:
    """What to measure.

    model:      a model's name, built in or on the hub (owner/name), its folder, or a single file.
    rounds:     how often each thing is measured, in turns, after once that isn't counted; 1 or more.
    engine:     what computes it: fast, plain, int8 or compiled.
    dtype:      what to draw in: auto, float32, bfloat16 or float16; auto as of `kotoe generate`.
    width:      pixels; the model's own size by default.
    height:     the same.
    steps:      denoising steps of a picture; the model's default otherwise.
    batch_size: pictures drawn together, beside one alone; by default 16 with a small model (a guided step below 0.1
                TFLOP), else 1, which measures no batch.
    card:       a Markdown file (.md) for the figures; an earlier card is replaced, another file never.
    """

    model: str = builtin.DEFAULT
    rounds: int = 7
    engine: EngineName = "fast"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    card: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"rounds {self.rounds}", allowed="1 or more")


# --- Saying things --------------------------------------------------------------------------------


def say(text: str, *, everywhere: bool = False) -> None:
    """A line on standard error; of several processes the first says it, or each."""
    if everywhere or leads():  # a terminal would obey the control characters in what others wrote
        sys.stderr.write("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text) + "\n")
        sys.stderr.flush()


class Saying(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_config(verb: str, config: Any) -> None:
    """The resolved configuration, one line on standard error."""
    shown = {k: v for k, v in config.items() if v is not None}
    say(f"{verb}: {dumps(shown)}")


def finish(common: Common, document: Mapping[str, Any], plain: Sequence[str]) -> None:
    """The data of a verb on standard output: with --json the document, else plain lines; the first process's alone."""
    if not leads():
        return
    for line in [dumps(document)] if common.json else plain:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def part_of(values: Values, cls: type) -> Any:
    """The dataclass `cls` from those of the values that are its fields."""
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            needed = ", ".join(f.name for f in fields if f.default is dataclasses.MISSING)
            raise UserError(f"{field.name} is missing", allowed=f"{needed} are needed", hint="--help says more")
    names = {field.name for field in fields}
    return from_json(cls, {k: v for k, v in values.items() if k in names}, "option")


class Bar:
    """Progress with time left, on a terminal, once something has taken longer than a second."""

    def __init__(self, common: Common, what: str) -> None:
        self.what, self.began = what, time.monotonic()
        self.enabled = sys.stderr.isatty() and not common.json
        self.bar: Any = None

    def __call__(self, done: int, total: int, what: str | None = None) -> None:
        if not self.enabled or (self.bar is None and time.monotonic() - self.began < 1.0):
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.what, total=total)
            self.bar.start()
        self.bar.update(self.task, completed=done, total=total, description=self.what if what is None else what)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


# --- Models and files ------------------------------------------------------------------------------


def bundle_of(model: str, dtype: Any, loading: Loading, device: str | None = None, low_memory: bool = False) -> Any:
    """The Bundle of a model. dtype: as `load` takes it, "auto" for its own choice."""
    from kotoe import compiled
    from kotoe.checkpoints import load
    from kotoe.memory import large_pages

    large_pages()
    compiled.keep(cache_folder() / "compiled")
    dtype = None if dtype == "auto" else dtype
    return load(model, dtype=dtype, device=device, low_memory=low_memory, **dataclasses.asdict(loading))


def adapted(bundle: Any, adapting: Adapting, loading: Loading) -> Any:
    """The bundle with what is to be put into it, saying what of that only one language gets."""
    if adapting == Adapting():
        return bundle
    from kotoe.checkpoints.adapters import with_adapters
    from kotoe.checkpoints.fast import fast, with_small_decoder

    loras: Any = adapting.lora
    if adapting.taesd is not None:
        bundle = with_small_decoder(bundle, adapting.taesd)
    if adapting.fast:
        bundle, loras = fast(bundle, loras)
    if not loras and dataclasses.replace(adapting, fast=False, taesd=None) == Adapting():
        return bundle
    found = with_adapters(
        bundle,
        loras,
        adapting.embedding,
        language=adapting.adapter_language,
        text=adapting.lora_text,
        allow_pickle=loading.allow_pickle,
    )
    if len(bundle.languages) > 1:
        for adapter in found.adapters:
            if adapter.language is not None:
                what = "all of it" if adapter.kind == "embedding" else "its text part"
                say(f"note: {adapter.name}: {what} is for the text encoder of {adapter.language} alone")
    return found


@contextmanager
def writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"can't write in {out}: {error.strerror or error}", allowed="a writable folder") from error
