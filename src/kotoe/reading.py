"""Prompts to what the UNet reads: which conditioner reads each, what it says by the request's settings, its states."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from kotoe import engine
from kotoe.checkpoints import Bundle
from kotoe.config import EngineName, Request, Resolved
from kotoe.errors import UserError, shown
from kotoe.language import ASCII_MARKS, Source
from kotoe.numerics import NUMERICS
from kotoe.prompts import Prompt, folded, literal, parse, unweighted
from kotoe.record import DetectionRecord, TranslationRecord
from kotoe.text import Context
from kotoe.workers import side_by_side, small

Reading = tuple[str, str | TranslationRecord]  # which conditioner reads, and what: a prompt as given, or a translation


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to draw: the prompt as given, the conditioner that reads it, and the words it reads, if others."""

    prompt: str
    language: str
    language_source: Source
    seed: int
    translation: TranslationRecord | None = None
    detection: DetectionRecord | None = None

    @property
    def prompt_language(self) -> str:
        """BCP 47 tag of the prompt as given."""
        return self.language if self.translation is None else self.translation.source

    @property
    def reading(self) -> Reading:
        """What is read for this picture."""
        return self.language, self.prompt if self.translation is None else self.translation


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a conditioner made of a prompt: its states and, when guided, the negative prompt's, (1, L, D) each."""

    positive: Tensor
    negative: Tensor | None
    tokens: int
    dropped: tuple[str, ...] = ()
    dropped_negative: tuple[str, ...] = ()


def is_guided(request: Resolved) -> bool:
    """Whether a resolved request asks the network for the negative prompt too."""
    return request.guidance_scale != 1.0 or NUMERICS[request.numerics].always_guided


class Memory:
    """Texts that were read lately, for a server: many of its requests have the same negative prompt. Thread-safe.

    most: how many are kept, each with the encoder that read it: its id would be another's when it is gone.
    """

    def __init__(self, most: int = 64) -> None:
        self.most, self.lock = most, Lock()
        self.known: OrderedDict[Hashable, Context] = OrderedDict()

    def get(self, key: Hashable) -> Context | None:
        """What was read for a key, if it is still known."""
        with self.lock:
            if key in self.known:
                self.known.move_to_end(key)
            return self.known.get(key)

    def put(self, key: Hashable, context: Context) -> None:
        """Keep it, and forget what has not been asked for the longest."""
        with self.lock:
            self.known[key] = context
            while len(self.known) > self.most:
                self.known.popitem(last=False)


@torch.inference_mode()
def read_prompts(
    bundle: Bundle, request: Resolved, jobs: Sequence[Job], memory: Memory | None = None
) -> dict[Reading, Read]:
    """Every distinct (language, prompt or translation), encoded once, with the negative prompt in the same language.

    With long_prompt "chunk" a prompt and its negative get as many windows as the longer of the two needs: the prompts
    beside it don't change it. Each text is encoded alone, so that none hangs on the others, where its length doesn't:
    where both fit into one window, for one.
    memory: what is looked up there first, and put there.
    """
    guided = is_guided(request)
    asked: dict[Reading, list[tuple[str, tuple[Prompt, ...]]]] = {}  # what to encode for each, in one call or in two
    whose: dict[tuple[str, tuple[Prompt, ...]], str] = {}  # of each call a prompt that needs it, for errors
    for language, given in dict.fromkeys(job.reading for job in jobs):
        translated = isinstance(given, TranslationRecord)
        if isinstance(given, TranslationRecord):
            prompt, negative = given.prompt, given.negative_prompt
        else:
            prompt, negative = given, request.negative_prompt
        texts = tuple(said(request, t, translated=translated) for t in ((prompt, negative) if guided else (prompt,)))
        together = request.padding == "longest" or (request.long_prompt == "chunk" and _long(bundle, language, texts))
        asked[language, given] = [(language, texts)] if together else [(language, (text,)) for text in texts]
        for call in asked[language, given]:
            whose.setdefault(call, prompt)
    calls = {call: partial(_encoded, bundle, request, *call, prompt, memory) for call, prompt in whose.items()}
    if small(bundle, request) and (workers := torch.get_num_threads()) > 1:
        known = dict(zip(calls, side_by_side(list(calls.values()), workers=workers), strict=True))
    else:
        known = {}
        for language in dict.fromkeys(language for language, _ in calls):  # an encoder comes to the device once
            with bundle.at_work(bundle.conditioner(language).encoder):
                known |= {call: encode() for call, encode in calls.items() if call[0] == language}
    reads: dict[Reading, Read] = {}
    for reading, wanted in asked.items():
        contexts = [known[call] for call in wanted]
        states = torch.cat([context.states for context in contexts])  # (1 or 2, L, D)
        overflow = [over for context in contexts for over in context.tokens.overflow]
        dropped = [tuple(over) if request.long_prompt == "cut" else () for over in overflow]
        reads[reading] = Read(
            positive=states[:1],
            negative=states[1:] if guided else None,
            tokens=contexts[0].tokens.counts[0],
            dropped=dropped[0],
            dropped_negative=dropped[1] if guided else (),
        )
    return reads


def _long(bundle: Bundle, language: str, texts: Sequence[Prompt]) -> bool:
    """Whether any of the texts needs more than one window."""
    tokenizer = bundle.tokenizer(language)
    return len(tokenizer.encode(texts, long_prompt="chunk").ids[0]) > tokenizer.max_tokens


def run_of(encoder: nn.Module, name: EngineName) -> Callable[[Tensor], Tensor] | None:
    """What an engine computes a text encoder with, ids (B, L) to states (B, L, D); None: the encoder itself."""
    return engine.of(encoder) if name != "plain" and engine.worth_it(encoder) else None


@torch.inference_mode()
def _encoded(
    bundle: Bundle, request: Resolved, language: str, texts: tuple[Prompt, ...], prompt: str, memory: Memory | None
) -> Context:
    """Texts in one call. prompt: for whose sake."""
    conditioner = bundle.conditioner(language)
    encoder = conditioner.encoder
    key = (language, encoder, texts, request.long_prompt, request.padding, request.emphasis, request.engine)
    if memory is not None and (known := memory.get(key)) is not None:
        return known
    try:
        found = conditioner.encode(
            texts,
            long_prompt=request.long_prompt,
            padding=request.padding,
            restore_mean=request.emphasis == "original",
            run=run_of(encoder, request.engine),
        )
    except UserError as error:
        raise UserError(f"{shown(prompt, 200)}: {error.given}", allowed=error.allowed, hint=error.hint) from None
    if memory is not None:
        memory.put(key, found)
    return found


def said(request: Request, text: str, *, translated: bool = False) -> Prompt:
    """What a prompt, or a negative one, says by the request's settings. A translator's words have no grammar."""
    if request.full_width == "folded":
        text = folded(text)
    if request.punctuation == "ascii":
        text = text.translate(ASCII_MARKS)
    if request.emphasis == "none" or translated:
        return literal(text)
    prompt = parse(text)
    return unweighted(prompt) if request.emphasis == "ignore" else prompt
