"""The ways a model has been taught a language, and ours: what each trains, what it reads, where its student starts.

Every way ends in the one `fit`. A text-only way has a teacher, the model's own encoder of its first language, and a
student that shall say of a text what the teacher says of its translation; the others learn from captioned latents
through the UNet. Legend: B texts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.bert import BertText
from kotoe.checkpoints import Bundle
from kotoe.denoise import begin, denoiser
from kotoe.errors import UserError
from kotoe.localize.align import align, carried_over
from kotoe.localize.fit import Loss, step_seed
from kotoe.localize.losses import (
    Queries,
    TextBehind,
    TextLatents,
    TextPairs,
    behind,
    diffusion,
    pooled,
    reader,
    record_queries,
    states,
    unexplained,
)
from kotoe.localize.settings import PLANS
from kotoe.localize.spread import ALONE, Processes
from kotoe.rng import ImageNoise, initialising
from kotoe.runs import Run
from kotoe.samplers import along
from kotoe.schedule import walk
from kotoe.text import CLIPText, Conditioner, first_eos
from kotoe.tokens import Tokenizer

SAME_PLACE = 0.02  # unexplained share under which two positions say the same
QUERIES, QUESTIONED_STEPS = 96, 8  # of a cross-attention, and of the pictures they are recorded in, for `distil-reader`
WIDEST_LOOK, SELDOM = 0.18, 8  # share of the positions that `distil-behind` looks at in all but one of so many steps
STATES_KEPT = 2**31  # bytes of a frozen encoder's states that are kept on the host: 9,000 captions of SD 1.5
TEXTS_COUNTED = 20_000  # pairs of a language that `aligned` students start from: more changed nothing


# --- Students --------------------------------------------------------------------------------------------------


def new_student(
    teacher: CLIPText,
    tokenizer: Tokenizer,
    start: str,
    *,
    seed: int,
    other: Tokenizer,
    pairs: Texts | None,
    counted: int = TEXTS_COUNTED,
) -> CLIPText:
    """An encoder with the teacher's shape for another tokenizer.

    start:   "aligned", the teacher's weights, and for each token the mean of the teacher's tokens that stand in the
             translations of texts with it (see align.py); "warm", the teacher's weights and new tokens; "scratch".
    counted: pairs that aligned students start from.
    """
    if tokenizer.max_tokens > teacher.spec.max_tokens:
        raise UserError(
            f"a tokenizer of {tokenizer.max_tokens} tokens for an encoder of {teacher.spec.max_tokens} positions",
            allowed=f"{teacher.spec.max_tokens} at most",
            hint="Set model_max_length in its tokenizer_config.json",
        )
    spec = replace(
        teacher.spec, vocab_size=tokenizer.vocab_size, bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad
    )
    with initialising(seed):
        student = CLIPText(spec)
        nn.init.normal_(student.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(student.text_model.embeddings.position_embedding.weight, std=0.01)
    student.to(next(teacher.parameters()).device)
    if start == "scratch":
        return student
    own = {name: p for name, p in student.state_dict().items() if "token_embedding" in name}
    student.load_state_dict({**teacher.state_dict(), **own})
    rows, theirs = (e.text_model.embeddings.token_embedding.weight.data for e in (student, teacher))
    if start == "aligned":
        if pairs is None:
            raise UserError("start aligned without parallel text", allowed="warm, scratch, or --pairs FILE")
        mine = tokenizer.text_ids(pairs.target[:counted])
        found = align(mine, other.text_ids(pairs.source[:counted]))
        carried, seen = carried_over(theirs.cpu(), found, len(rows))
        rows[seen] = carried[seen].to(rows)
    for here, there in ((tokenizer.bos, other.bos), (tokenizer.eos, other.eos), (tokenizer.pad, other.pad)):
        if here is not None and there is not None:
            rows[here] = theirs[there]
    return student


def end_alike(student: CLIPText, teacher: CLIPText) -> None:
    """Give a student the teacher's last layer and final norm, which `distil-behind` doesn't train."""
    own, theirs = student.spec, teacher.spec
    words = {name: getattr(own, name) for name in ("vocab_size", "max_tokens", "bos", "eos", "pad", "projection_dim")}
    if own != replace(theirs, **words):
        raise UserError(
            "distil-behind for an encoder whose layers aren't the teacher's in number and size",
            allowed="one begun from the teacher",
            hint="distil-reader teaches any encoder",
        )
    last = theirs.num_layers + theirs.layer
    student.text_model.encoder.layers[last].load_state_dict(teacher.text_model.encoder.layers[last].state_dict())
    student.text_model.final_layer_norm.load_state_dict(teacher.text_model.final_layer_norm.state_dict())


# --- Batches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Parallel text: source[i], in the teacher's language, says what target[i] says in the new one."""

    source: Sequence[str]
    target: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Captions in the new language and the unit-scaled latents (N, C, h, w) of what they describe.

    spread: their standard deviations (N, C, h, w), if a step shall read a sample, and not the latents themselves.
    about:  where they are from, for the report (JSON-able).
    """

    texts: Sequence[str]
    latents: Tensor
    spread: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class Captioned(Protocol):
    """Captions whose pictures are still to be encoded, once the run's directory is open (see pictures.py)."""

    @property
    def texts(self) -> Sequence[str]:
        """All captions, also of pictures that won't open."""

    def encoded(self, run: Run) -> Captions:
        """Those whose pictures open, and their latents."""


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(step_seed(seed, epoch, "order"))
    return torch.randperm(count, generator=generator)


def drawn(seed: int, step: int, batch: int, count: int) -> list[int]:
    """Which of `count` rows a step reads: all of them once, in a new order, before any of them again."""
    places = range(step * batch, (step + 1) * batch)
    return [int(_order(seed, place // count, count)[place % count]) for place in places]


def emptied(seed: int, step: int, batch: int, share: float) -> list[bool]:
    """Which rows of a step have no text, for guidance."""
    generator = torch.Generator().manual_seed(step_seed(seed, step, "empty"))
    return (torch.rand(batch, generator=generator) < share).tolist()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a step's texts become ids (B, L): by (seed, step) alone, so that a resumed run reads the same."""

    seed: int
    batch: int
    dropout: float
    long_prompt: str  # "error" or "cut"
    device: torch.device
    processes: Processes = ALONE  # among which a teacher's rows are split, too

    def rows(self, step: int, count: int) -> tuple[list[int], list[bool]]:
        """Places of a step's rows, and which of them are emptied."""
        return drawn(self.seed, step, self.batch, count), emptied(self.seed, step, self.batch, self.dropout)

    def ids(self, tokenizer: Tokenizer, texts: Sequence[str], gone: Sequence[bool]) -> Tensor:
        """Ids (B, L) of texts, some of them emptied."""
        said = ["" if empty else text for text, empty in zip(texts, gone, strict=True)]
        return torch.tensor(tokenizer.encode(said, long_prompt=self.long_prompt).ids, device=self.device)


def both_sides(
    step: int, student: Conditioner, teacher: Conditioner, pairs: Texts, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Ids (B, L) of a step's texts and of their translations."""
    rows, gone = reading.rows(step, len(pairs.target))
    own = reading.ids(student.tokenizer, [pairs.target[i] for i in rows], gone)
    return own, reading.ids(teacher.tokenizer, [pairs.source[i] for i in rows], gone)


def clip(conditioner: Conditioner, what: str) -> CLIPText:
    """Its encoder, if it is CLIP's."""
    if isinstance(conditioner.encoder, CLIPText):
        return conditioner.encoder
    raise UserError(
        f"{what} with the {conditioner.tokenizer.kind} encoder of {conditioner.language}", allowed="CLIP's text encoder"
    )


def _said(teacher: Conditioner, ids: Tensor, processes: Processes = ALONE) -> Tensor:
    with torch.no_grad():  # not inference_mode: its tensors can't take part in a loss
        return processes.rows(teacher.encoder)(ids)  # (B, L, D)


def period(teacher: CLIPText, ids: Tensor) -> int:
    """How many positions on a text tells the same again behind its words; 0 where it doesn't.

    CLIP's encoders say something of their own at every position. kotoe-emoji's tell a picture's 64 patches in turn, as
    far as there are positions. ids (B, L) of some of the teacher's texts.
    """
    with torch.no_grad():
        x = teacher.before_last(ids)
    x = F.layer_norm(x, x.shape[-1:])
    at = first_eos(ids, teacher.spec.eos)
    length = ids.shape[1]
    for shift in range(1, length - int(at.max())):
        both = torch.arange(length - shift, device=ids.device) >= at[:, None]  # (B, L - shift)
        if float(unexplained(x[:, shift:][both], x[:, : length - shift][both])) < SAME_PLACE:
            return shift
    return 0


def asked_of(mine: Tensor, theirs: Tensor, length: int, every: int) -> tuple[Tensor, Tensor]:
    """Which of the teacher's positions (B, length) each of the student's shall say, and whether (B, length) it shall.

    mine, theirs: where (B,) their words end. Behind its own words the student says what the teacher says there; where
    the teacher's words go on longer, what it says of the same a period later, if the texts have one and it fits.
    """
    position = torch.arange(length, device=mine.device)[None]  # (1, length)
    end = theirs[:, None]
    at = position.expand(len(mine), -1)
    if every:
        at = torch.where(position < end, end + (position - end) % every, at)
    return at.clamp(max=length - 1), (position >= mine[:, None]) & (at >= end) & (at < length)


# --- The ways --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """What `fit` gets: parts by name, of which `trains` says what learns; its loss; and batches by step number.

    rows: parts of which several processes run own rows of a batch each.
    """

    modules: Mapping[str, nn.Module]
    trains: tuple[str, ...]
    loss: Loss
    batches: Callable[[int], Any]
    rows: tuple[str, ...] = ("text",)


def task(
    plan: str,
    bundle: Bundle,
    student: Conditioner,
    reading: Reading,
    *,
    pairs: Texts | None,
    captions: Captions | None,
    gamma: float | None = 5.0,
) -> Task:
    """A plan of `settings.PLANS` on a model, a student and what it reads. gamma: see `losses.diffusion`."""
    way = PLANS[plan]
    modules: dict[str, nn.Module] = {"text": student.encoder}
    if way.reads == "captions":
        assert captions is not None
        learns = any(pattern.startswith("text") for pattern in way.trains)
        return Task(
            modules={**modules, "unet": bundle.unet},
            trains=way.trains,
            loss=diffusion(bundle.schedule, gamma=gamma),
            batches=_captioned(student, captions, reading, None if learns else Kept(student, captions.texts, reading)),
            rows=("text", "unet"),
        )
    assert pairs is not None
    teacher = bundle.conditioner()
    if plan == "distil-behind":
        return Task(
            modules=modules,
            trains=_before_last(clip(student, plan)),
            loss=behind(),
            batches=_behind(student, teacher, pairs, reading),
        )
    batches = _paired(student, teacher, pairs, reading)
    if plan == "distil-pooled":
        clip(student, plan)  # has a pooled vector
        batches = _paired(student, teacher, pairs, reading, to_eos=True)
        return Task(modules=modules, trains=way.trains, loss=pooled(eos=teacher.tokenizer.eos), batches=batches)
    if plan == "distil-states":
        check_lengths(student.tokenizer, teacher.tokenizer)
        return Task(modules=modules, trains=way.trains, loss=states(), batches=batches)
    trains = projection(student.encoder) if plan == "adapter" else way.trains
    bank = questions(bundle, pairs, seed=reading.seed)
    return Task(modules={**modules, "unet": bundle.unet}, trains=trains, loss=reader(bank), batches=batches)


def check_lengths(mine: Tokenizer, theirs: Tokenizer) -> None:
    """Refuse tokenizers of different lengths, for a plan that compares state by state."""
    if mine.max_tokens != theirs.max_tokens:
        raise UserError(
            f"distil-states of a student of {mine.max_tokens} states from a teacher of {theirs.max_tokens}",
            allowed="as many of each",
            hint="distil-reader compares what the UNet reads, whatever the number of states",
        )


def projection(encoder: CLIPText | BertText) -> tuple[str, ...]:
    """What `adapter` trains: the projection behind a frozen encoder, where it has one."""
    if isinstance(encoder, CLIPText) or encoder.spec.projection_dim is None:
        raise UserError(
            "plan adapter for an encoder without a projection behind it",
            allowed="an encoder of AltDiffusion's kind",
            hint="distil-reader trains all of an encoder",
        )
    names = r"(transformation_pre|pre_LN)" if encoder.spec.projects_penultimate else "transformation"
    return (rf"text\.{names}\.",)


def _before_last(encoder: CLIPText) -> tuple[str, ...]:
    """What `distil-behind` trains: everything before the last layer that is run. That one draws, in every language."""
    count = encoder.spec.num_layers + encoder.spec.layer
    return ("text.text_model.embeddings.", *(f"text.text_model.encoder.layers.{i}." for i in range(count)))


def _paired(
    student: Conditioner, teacher: Conditioner, pairs: Texts, reading: Reading, *, to_eos: bool = False
) -> Callable[[int], TextPairs]:
    """to_eos: nothing behind the longest text is read. Encoders are causal: what follows changes nothing before it."""

    def batches(step: int) -> TextPairs:
        own, other = both_sides(step, student, teacher, pairs, reading)
        if to_eos:
            sides = ((own, student.tokenizer.eos), (other, teacher.tokenizer.eos))
            own, other = (ids[:, : int(first_eos(ids, eos).max()) + 1] for ids, eos in sides)
        return TextPairs(ids=own, teacher_ids=other, teacher=_said(teacher, other, reading.processes))

    return batches


def _behind(student: Conditioner, teacher: Conditioner, pairs: Texts, reading: Reading) -> Callable[[int], TextBehind]:
    encoder = clip(teacher, "distil-behind")
    few = teacher.tokenizer.encode(pairs.source[:32], long_prompt="cut").ids
    every = period(encoder, torch.tensor(few, device=reading.device))

    def batches(step: int) -> TextBehind:
        own, other = both_sides(step, student, teacher, pairs, reading)
        mine, theirs = first_eos(own, student.tokenizer.eos), first_eos(other, teacher.tokenizer.eos)
        if step % SELDOM:  # encoders are causal: cutting what follows changes nothing before it
            ends = int(torch.maximum(mine, theirs).max())  # looking at nothing behind them would be no loss at all
            look = max(ends + 1, round(WIDEST_LOOK * own.shape[1]))
            own, other = own[:, :look], other[:, :look]
        at, behind = asked_of(mine, theirs, own.shape[1], every)  # (B, L)
        with torch.no_grad():
            before = reading.processes.rows(encoder).before_last(other)  # (B, L, D)
        return TextBehind(ids=own, before=before.gather(1, at[:, :, None].expand_as(before)), behind=behind)

    return batches


class Kept:
    """States of texts by an encoder that doesn't learn: of the first texts, as many as there is room for, and of the
    empty one they are computed once.

    A text that is kept is read by itself, so that its states, to the bit, don't hang on what else a step reads or on
    where a run was resumed. The others are read together at each step.
    """

    def __init__(
        self, conditioner: Conditioner, texts: Sequence[str], reading: Reading, *, room: int = STATES_KEPT
    ) -> None:
        self.conditioner, self.reading = conditioner, reading
        each = 4 * conditioner.tokenizer.max_tokens * conditioner.encoder.spec.context_dim  # bytes, float32
        self.known = {"", *islice(dict.fromkeys(texts), room // each)}
        self.states: dict[str, Tensor] = {}  # each (1, L, D), on the host

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """States (B, L, D)."""
        for text in set(texts) & self.known - self.states.keys():
            self.states[text] = self._read([text]).cpu()
        others = list(dict.fromkeys(text for text in texts if text not in self.known))
        if not others:
            return torch.cat([self.states[text] for text in texts]).to(self.reading.device)
        processes = self.reading.processes
        filled = others + others[:1] * (-len(others) % processes.count)
        found = dict(zip(others, self._read(filled, processes)[: len(others)].split(1), strict=True))
        return torch.cat([found[t] if t in found else self.states[t].to(self.reading.device) for t in texts])

    def _read(self, texts: Sequence[str], processes: Processes = ALONE) -> Tensor:
        ids = self.reading.ids(self.conditioner.tokenizer, texts, [False] * len(texts))
        return _said(self.conditioner, ids, processes)


def _captioned(
    student: Conditioner, captions: Captions, reading: Reading, kept: Kept | None
) -> Callable[[int], TextLatents]:
    """kept: what says the student's states, if it doesn't learn; else the batch has ids."""

    def batches(step: int) -> TextLatents:
        rows, gone = reading.rows(step, len(captions.texts))
        texts = [captions.texts[i] for i in rows]
        if kept is None:
            text = reading.ids(student.tokenizer, texts, gone)
        else:
            text = kept(["" if empty else one for one, empty in zip(texts, gone, strict=True)])
        latents = captions.latents[rows].float()  # (B, C, h, w)
        if captions.spread is not None:
            generator = torch.Generator().manual_seed(step_seed(reading.seed, step, "posterior"))
            latents += captions.spread[rows].float() * torch.randn(latents.shape, generator=generator)
        return TextLatents(text=text, latents=latents.to(reading.device))

    return batches


def questions(bundle: Bundle, pairs: Texts, *, seed: int, per_layer: int = QUERIES) -> Queries:
    """What the frozen UNet asks of texts while it draws: queries of 64 pictures of its own, at all noise levels.

    No picture is needed but those. Whoever has better ones gives them to `record_queries` himself.
    """
    teacher, spec, device = bundle.conditioner(), bundle.unet.spec, bundle.device
    grid = bundle.defaults.grid or bundle.schedule.timestep_spacing
    way = walk(bundle.schedule, QUESTIONED_STEPS, sampler="ddim", grid=grid, ending="zero", strength=1.0)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, 64, 16):
        texts = [pairs.source[i % len(pairs.source)] for i in range(first, first + 16)]
        ids = torch.tensor(teacher.tokenizer.encode(texts, long_prompt="cut").ids, device=device)
        context = _said(teacher, ids)
        noise = ImageNoise(
            [seed + first + k for k in range(16)],
            (bundle.vae.spec.latent_channels, spec.sample_size, spec.sample_size),
            device=device,
        )

        def asking(x: Tensor, t: Tensor, context: Tensor = context) -> Tensor:
            calls.append((x.clone(), t.to(device), context))
            return bundle.unet(x, t.to(device), context)

        x = begin(noise.initial(), way.first, sampler="ddim", grid=grid)
        with torch.no_grad():
            for _ in along("ddim", way, eta=0.0)(denoiser(asking, bundle.schedule), x, way.sigmas, noise):
                pass
    return record_queries(bundle.unet, calls, per_layer, seed)
