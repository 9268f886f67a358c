"""A new language for a model that exists: texts in, a bundle out that draws from the language.

What is frozen is the same to the bit afterwards; that is checked, not hoped for.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kotoe import builtin
from kotoe.bert import BertText
from kotoe.checkpoints import Bundle, conditioners, save, terms
from kotoe.checkpoints.files import choose_dtype, replacing, tensor_sha256
from kotoe.config import to_json
from kotoe.errors import UserError
from kotoe.localize.fit import Plan, fit
from kotoe.localize.lint import Finding, lint
from kotoe.localize.plans import (
    TEXTS_COUNTED,
    Captioned,
    Captions,
    Reading,
    Task,
    Texts,
    clip,
    end_alike,
    new_student,
    task,
)
from kotoe.localize.settings import PLANS, Localizing
from kotoe.localize.spread import ALONE, Processes
from kotoe.localize.vocabulary import train_sentencepiece
from kotoe.runs import Following, Run
from kotoe.text import CLIPText, Conditioner
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer

VOCABULARY = 2000  # pieces a language
GAMMA = 5.0  # of min-snr
TRIAL, WARMING = 10, 2  # steps that a forecast takes, and of these the ones it doesn't count
# settings that may differ when a run is resumed
FREE = ("out", "overwrite", "device", "threads", "log_every", "cache", "checkpointing", "shard", "allow_pickle")


@dataclass(frozen=True, kw_only=True)
class Localized:
    """The bundle with its new language, and what it cost and left alone (JSON-able)."""

    bundle: Bundle
    report: dict[str, Any]


def localize(
    bundle: Bundle,
    wanted: Localizing,
    *,
    pairs: Texts | None = None,
    captions: Captions | Captioned | None = None,
    progress: bool = True,
    on_finding: Callable[[Finding], None] | None = None,
    processes: Processes = ALONE,
) -> Localized:
    """Teach a loaded model (in float32) a language by one of PLANS; `wanted.run` resumes what it holds.

    captions:   for the plans that learn from pictures. What isn't encoded yet is, when nothing speaks against the plan.
    on_finding: called with everything that `lint` finds, before anything is trained.
    processes:  those that do it together (`spread.joined`); each has loaded the model and gets the result.
    Raises UserError before that too: a language that is there, texts over the limit, an encoder that doesn't fit, a run
    directory of other settings.
    """
    way = PLANS[wanted.plan]
    processes.share(wanted.batch_size or way.batch)
    if wanted.shard and processes.count == 1:
        raise UserError("shard with one process", allowed="several: torchrun --nproc-per-node N -m kotoe localize ...")
    taken = [tag for tag in wanted.tags if tag in bundle.languages]
    if taken and not way.changes_unet:
        raise UserError(
            f"{bundle.name} has a conditioner for {', '.join(taken)}",
            allowed="another tag",
            hint=f"Take it out first: kotoe conditioner remove FOLDER --language {taken[0]}",
        )
    if way.reads == "captions" and captions is None:
        raise UserError(f"plan {wanted.plan} without captioned pictures", allowed="--images SOURCE")
    wanted = replace(wanted, dtype=computing(wanted))
    with processes.run(wanted.run, {**to_json(wanted), "base_sha256": bundle.sha256}, free=FREE) as run:
        said = None if captions is None else captions.texts
        given = _given(wanted)
        if given is None:
            with processes.in_turn():  # the first may have to train it
                tokenizer = _tokenizer(bundle, wanted, run, pairs, said)
            student = Conditioner(wanted.language, tokenizer, _encoder(bundle, wanted, tokenizer, pairs))
        else:
            tokenizer, student = given.tokenizer, given
        if wanted.plan == "distil-behind":
            end_alike(clip(student, wanted.plan), clip(bundle.conditioner(), wanted.plan))
        conditioners.swap(bundle, wanted.tags, student)  # does it fit?
        _heed(lint(bundle, wanted, student, pairs, said), on_finding)
        report: dict[str, Any] = {"plan": wanted.plan, "languages": list(wanted.tags), "dtype": wanted.dtype}
        report["vocab_size"] = tokenizer.vocab_size
        if wanted.taken == 0:
            return Localized(bundle=conditioners.swap(bundle, wanted.tags, student), report={**report, "steps": 0})
        if captions is not None and not isinstance(captions, Captions):
            with processes.in_turn():  # the first encodes, the others find the cache
                captions = captions.encoded(run)
        reading = Reading(
            seed=wanted.seed,
            batch=wanted.batch_size or way.batch,
            dropout=wanted.dropout,
            long_prompt=wanted.long_prompt,
            device=torch.device(wanted.device),
            processes=processes,
        )
        gamma = GAMMA if wanted.weighting == "min-snr" else None
        what = task(wanted.plan, bundle, student, reading, pairs=pairs, captions=captions, gamma=gamma)
        report |= _trained(what, wanted, bundle, student, run, progress, processes)
        if captions is not None and captions.about:
            report["pictures"] = dict(captions.about)
    return Localized(bundle=conditioners.swap(bundle, wanted.tags, student), report=report)


def write(found: Localized, wanted: Localizing, *, overwrite: bool = False) -> Path:
    """The folder of a localized model: the base's own files byte for byte where only a conditioner is new."""
    out = Path(wanted.run) / "bundle" if wanted.out is None else Path(wanted.out)
    source = builtin.resolve(wanted.base)
    if PLANS[wanted.plan].changes_unet or not source.is_dir():
        save(found.bundle, out, dtype="float16", overwrite=overwrite)
        terms.hand_on(source, out, wanted.base)
        return out
    part = Path(wanted.run) / "conditioner"
    new_one = found.bundle.conditioner(wanted.tags[0])
    conditioners.write(new_one, part, dtype=torch.float16)
    with replacing(out, overwrite=overwrite, marker="model_index.json") as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        conditioners.add(new, wanted.language, part, serves=wanted.serves, licence=new_one.licence)
    return out


def forecast(
    bundle: Bundle,
    wanted: Localizing,
    *,
    pairs: Texts | None = None,
    captions: Captions | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """What a plan will cost, by taking ten of its steps: seconds of preparing, a step and all of them, peak memory.

    on_finding: as of `localize`. The bundle is changed by a plan that trains its UNet: load it again afterwards.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tried = TRIAL if wanted.taken else 0
        trial = replace(wanted, run=processes.agreed(f"{folder}/run"), steps=tried, log_every=1)
        localize(
            bundle,
            trial,
            pairs=pairs,
            captions=captions,
            progress=False,
            on_finding=on_finding,
            processes=processes,
        )
        whole = time.perf_counter() - began
        if not tried:
            return {"steps": 0, "prepare_s": round(whole, 1), "seconds": 0.0}
        seconds = [row["seconds"] for row in Following(trial.run).metrics()]
        processes.wait()  # before the first takes the folder away
    each = (seconds[-1] - seconds[WARMING - 1]) / (TRIAL - WARMING)
    on_gpu = torch.device(wanted.device).type == "cuda"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cost = {
        "steps": wanted.taken,
        "prepare_s": round(whole - seconds[-1], 1),
        "step_s": round(each, 4),
        "seconds": round(each * wanted.taken, 1),
        "peak_memory_gib": round((torch.cuda.max_memory_allocated() if on_gpu else peak) / 2**30, 3),
    }
    return cost if captions is None or not captions.about else {**cost, "pictures": dict(captions.about)}


def computing(wanted: Localizing) -> Literal["float32", "bfloat16"]:
    """What its networks compute in on its device."""
    chosen = choose_dtype(wanted.dtype, torch.device(wanted.device))
    return "bfloat16" if chosen == torch.bfloat16 else "float32"


# --- Parts -----------------------------------------------------------------------------------------------------


def _heed(found: Sequence[Finding], on_finding: Callable[[Finding], None] | None) -> None:
    for finding in found:
        if on_finding is not None:
            on_finding(finding)
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        raise UserError("; ".join(f"{e.what}" for e in errors), hint="; ".join(e.do for e in errors if e.do))


def _given(wanted: Localizing) -> Conditioner | None:
    """The student that somebody else has trained, without the hashes of files that it won't have been read from."""
    if wanted.student is None:
        return None
    found = conditioners.read(
        wanted.student, wanted.language, dtype="float32", allow_pickle=wanted.allow_pickle
    ).conditioner
    return replace(found, hashes={})


def _tokenizer(
    bundle: Bundle, wanted: Localizing, run: Run, pairs: Texts | None, captions: Sequence[str] | None
) -> Tokenizer:
    if wanted.tokenizer is not None:
        return load_tokenizer(wanted.tokenizer)
    folder = run.path("tokenizer")
    if folder.exists():
        return load_tokenizer(folder)
    texts = pairs.target if pairs is not None else captions
    if not texts:
        raise UserError("no texts to train a tokenizer on", allowed="--pairs, --images or --tokenizer")
    positions = bundle.conditioner().encoder.spec.max_tokens
    usual = VOCABULARY * len(wanted.tags)
    size, at_most = (usual, True) if wanted.vocab_size is None else (wanted.vocab_size, False)
    return train_sentencepiece(texts, folder, size, max_tokens=positions, at_most=at_most)


def _encoder(bundle: Bundle, wanted: Localizing, tokenizer: Tokenizer, pairs: Texts | None) -> CLIPText | BertText:
    teacher = bundle.conditioner()
    encoder = clip(teacher, "a new encoder")
    counted = TEXTS_COUNTED * len(wanted.tags)
    if pairs is not None and len(pairs.target) > counted:  # files stand one behind the other
        order = torch.randperm(len(pairs.target), generator=torch.Generator().manual_seed(wanted.seed)).tolist()
        pairs = Texts(source=[pairs.source[i] for i in order], target=[pairs.target[i] for i in order])
    return new_student(
        encoder,
        tokenizer,
        wanted.begins,
        seed=wanted.seed,
        other=teacher.tokenizer,
        pairs=pairs,
        counted=counted,
    )


def _trained(
    what: Task,
    wanted: Localizing,
    bundle: Bundle,
    student: Conditioner,
    run: Run,
    progress: bool,
    processes: Processes,
) -> dict[str, Any]:
    """Train, and prove that only what should has changed."""
    way = PLANS[wanted.plan]
    parts = {"unet": bundle.unet, "vae": bundle.vae, "teacher": bundle.conditioner().encoder, "text": student.encoder}
    for module in parts.values():
        module.requires_grad_(False)
    before = _fingerprints(parts)
    plan = Plan(
        name=f"{wanted.language}/{wanted.plan}",
        trainable=what.trains,
        loss=what.loss,
        steps=wanted.taken,
        lr=wanted.lr or way.lr,
        schedule=wanted.schedule,
        warmup_steps=wanted.warmup_steps,
        betas=(0.9, wanted.beta2),
        weight_decay=wanted.weight_decay,
        ema=wanted.ema,
        seed=wanted.seed,
        log_every=wanted.log_every,
        bf16=computing(wanted) == "bfloat16",
        recompute=wanted.checkpointing,
    )
    fit(
        what.modules,
        plan,
        what.batches,
        run,
        device=wanted.device,
        progress=progress,
        rows=what.rows,
        processes=processes,
        shard=wanted.shard,
    )
    learned = {f"{part}.{n}" for part, m in what.modules.items() for n, p in m.named_parameters() if p.requires_grad}
    for module in parts.values():
        module.requires_grad_(False)
    after = _fingerprints(parts)
    changed = {name for name in before if before[name] != after[name]}
    if changed - learned:
        raise AssertionError(f"frozen parameters changed: {sorted(changed - learned)[:5]}")
    last = run.metrics()[-1]
    return {
        "steps": plan.steps,
        "texts": plan.steps * (wanted.batch_size or way.batch),
        "seconds": last["seconds"],
        "loss": last["loss"],
        "trained": len(learned),
        "changed": len(changed),
        "frozen": len(before) - len(learned),
    }


def _fingerprints(parts: Mapping[str, nn.Module]) -> dict[str, str]:
    return {f"{part}.{name}": tensor_sha256(p) for part, m in parts.items() for name, p in m.named_parameters()}
