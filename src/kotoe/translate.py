"""Translate first: prompts in languages that no conditioner reads, by a published translator, and said so.

The main line is a prompt read as it is written, and a language that the model reads is never translated. For the others
mBART-50, M2M100, NLLB and Marian checkpoints of transformers' do, after mBART before Stable Diffusion in diffusers'
community pipeline "multilingual_stable_diffusion"; where the script doesn't tell the language (Latin letters serve most
of them) a language detector may. Both run on the processor, in float32, with the beams and lengths stated here, so that
a prompt has one translation; the Record keeps it, and a replay needs neither.

transformers is an optional package, imported when a translator is first at work: pip install 'kotoe[translate]'.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kotoe import builtin, hub
from kotoe.checkpoints.files import Folder, LazyHashes
from kotoe.config import Request
from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.language import (
    UNDETERMINED,
    Source,
    canonical,
    choose,
    covering,
    detect,
    has_letters,
    of_script,
    primary,
    script_of,
)
from kotoe.record import DetectionRecord, TranslationRecord

if TYPE_CHECKING:
    from kotoe.checkpoints import Bundle

BEAMS = 5  # as the configurations of mBART-50 and M2M100 say
MOST_TOKENS = 256  # of a translation
SURE = 0.5  # below it the detector holds all other languages together for likelier, and decides nothing
SHOWN = 12  # languages listed in an error before "and n more"
INSTALL = "pip install 'kotoe[translate]'"
NETWORKS = {  # tokenizer: its network's model_type and class
    "MBart50Tokenizer": ("mbart", "MBartForConditionalGeneration"),
    "M2M100Tokenizer": ("m2m_100", "M2M100ForConditionalGeneration"),
    "NllbTokenizer": ("m2m_100", "M2M100ForConditionalGeneration"),
    "MarianTokenizer": ("marian", "MarianMTModel"),
}
DETECTORS = {"XLMRobertaTokenizer": ("xlm-roberta", "XLMRobertaForSequenceClassification")}
DERIVED = ("position_ids", "embed_positions.weights")  # tables of positions in older files: no weights
UNNAMED = (None, "TokenizersBackend", "PreTrainedTokenizer")  # tokenizer classes that say nothing
NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
LABEL = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z]{2,4})*")  # a detector's, after BCP 47
NEEDED = ("config.json", "*.safetensors")
FILES = (
    *NEEDED,
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "target_vocab.json", "*.safetensors.index.json", "*.model", "*.spm"),
)


# --- What a prompt is read as ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Understood:
    """Which conditioner reads a prompt, how its language was found, and the translation where there had to be one."""

    language: str
    source: Source
    translation: TranslationRecord | None = None
    detection: DetectionRecord | None = None


def with_translator(bundle: Bundle, translator: str | Path, *, detector: str | Path | None = None) -> Bundle:
    """The bundle, which now also takes prompts in the translator's languages, translated first.

    translator: an mBART-50, M2M100, NLLB or Marian checkpoint: its folder, or its name on the hub (owner/name).
    detector:   for prompts whose script doesn't tell the language and whose request doesn't: an XLM-RoBERTa classifier
                whose labels are language tags.
    Networks are read when first needed. Raises CheckpointError for checkpoints of other kinds.
    """
    return replace(bundle, translator=Translator(translator, None if detector is None else Detector(detector)))


def understood(bundle: Bundle, request: Request, prompt: str, words: str) -> Understood:
    """What reads a prompt of the request, and the words it reads. Translates only what no conditioner covers.

    words: the prompt without marks of grammar, which say nothing of its language.
    """
    asked = request.language
    tag, source, detection = _language(bundle, words) if asked is None else (asked, "asked", None)
    language = covering(tag, bundle.languages)
    if language is not None:
        return Understood(language=language, source=source, detection=detection)
    target = target_language(bundle, request)
    if bundle.translator is None or target is None:
        choose(tag, bundle.languages)  # raises
        raise AssertionError(f"no conditioner covers {tag}, and one was chosen")
    translation = bundle.translator.record(prompt, request.negative_prompt, tag, target)
    return Understood(language=target, source=source, detection=detection, translation=translation)


def source_language(bundle: Bundle, asked: str) -> str:
    """The language of the bundle that `asked` names, or `asked` where the translator has it."""
    if bundle.translator is None or covering(asked, bundle.languages) is not None:
        return choose(asked, bundle.languages)
    bundle.translator.code(asked)
    return asked


def target_language(bundle: Bundle, request: Request) -> str | None:
    """What is translated into: as the request says, else English, else the model's first. None: no translator."""
    if bundle.translator is None:
        if request.translate_to is not None:
            raise UserError(
                f"translate_to {request.translate_to} without a translator",
                allowed="translate_to together with a translator",
                hint="Give one: --translator FOLDER",
            )
        return None
    if request.translate_to is not None:
        return choose(request.translate_to, bundle.languages)
    return covering("en", bundle.languages) or bundle.default_language


def _language(bundle: Bundle, prompt: str) -> tuple[str, Source, DetectionRecord | None]:
    """A prompt's language: by its script where that is sure, else by the detector, else as without a translator."""
    translator, ours = bundle.translator, bundle.languages

    counts: dict[int, int] = {}  # several languages can have one tokenizer

    def spelt(language: str) -> tuple[int, int]:
        tokenizer = bundle.tokenizer(language)
        if id(tokenizer) not in counts:
            counts[id(tokenizer)] = len(tokenizer.text_ids([prompt])[0])
        return id(tokenizer), counts[id(tokenizer)]

    if translator is not None and set(ours) != {UNDETERMINED}:
        sure = of_script(prompt)
        if sure is not None and sure not in map(primary, ours):
            return sure, "detected", None
        found = None
        if sure is None and translator.detector is not None and has_letters(prompt):
            found = translator.detector.detect(prompt)
            if found.score >= SURE:
                return found.language, "detected", found
        try:
            ordinary = detect(prompt, ours, bundle.default_language, spelt=spelt)
        except UserError as error:
            hint = "Say which language it is (--language)"
            hint += ", or give a detector (--detector)" if found is None else f"; {found.label!r} is unsure"
            raise UserError(error.given, allowed=error.allowed, hint=hint) from None
        return ordinary.tag, ordinary.source if sure is not None else "unsure", found
    ordinary = detect(prompt, ours, bundle.default_language, spelt=spelt)
    return ordinary.tag, ordinary.source, None


# --- Checkpoints ----------------------------------------------------------------------------------


def wanted(files: Sequence[str]) -> list[str]:
    """Those of a repository's files that a translator or detector is read from."""
    return [name for name in files if any(fnmatch(name, pattern) for pattern in FILES) and "/" not in name]


class _Checkpoint:
    """A folder in transformers' layout, of one of a few kinds, its tokenizer and network read when first needed."""

    def __init__(self, source: str | Path, what: str, kinds: Mapping[str, tuple[str, str]]) -> None:
        self.name, self._what = str(source), what
        path = Path(source).expanduser()
        if not path.exists() and hub.NAME.fullmatch(self.name):
            path = hub.fetch(self.name, needed=NEEDED, wanted=wanted)
        if not path.is_dir():
            allowed = "a folder, or a name on the hub (owner/name)"
            raise UserError(f"no {what} at {source}", allowed=allowed, hint=builtin.spelling(self.name))
        self._folder = Folder(path)
        self.config = self._folder.json("config.json")
        self._classes = self._kind(kinds)
        names = sorted(wanted([p.name for p in self._folder.root.iterdir()]))
        paths = [self._folder.path(name) for name in names]  # none leads out of the folder
        if not any(p.suffix == ".safetensors" for p in paths):
            raise CheckpointError(
                f"{self.name} holds no .safetensors file",
                allowed="weights that can't run code",
                hint=hub.SAFER,
            )
        if self._folder.has("adapter_config.json"):
            raise CheckpointError(f"{self.name} is an adapter of another checkpoint", allowed="a whole checkpoint")
        self._hashes = LazyHashes({what: tuple(paths)})
        self._lock = threading.RLock()  # a tokenizer is told its language before it reads
        self._loaded: dict[str, Any] = {}

    def _kind(self, kinds: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
        """Class names of tokenizer and network."""
        kind = self.config.get("model_type")
        ours = [name for name, (model_type, _) in kinds.items() if model_type == kind]
        types = ", ".join(dict.fromkeys(model_type for model_type, _ in kinds.values()))
        if not ours:
            raise CheckpointError(f"{self.name}: model_type {kind!r} for a {self._what}", allowed=types)
        says = self._folder.json("tokenizer_config.json") if self._folder.has("tokenizer_config.json") else {}
        named = says.get("tokenizer_class") or self.config.get("tokenizer_class")
        named = named.removesuffix("Fast") if isinstance(named, str) else None
        if named in UNNAMED:  # of the two of M2M100's networks, NLLB's has no vocab.json
            named = ours[-1] if len(ours) > 1 and not self._folder.has("vocab.json") else ours[0]
        if named not in ours:
            raise CheckpointError(f"{self.name}: tokenizer {named} for a {self._what}", allowed=", ".join(ours))
        return str(named), kinds[str(named)][1]

    @property
    def sha256(self) -> str:
        """Identity: sha256 over its files."""
        return self._hashes[self._what]

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        with self._lock:
            if "tokenizer" not in self._loaded:
                with self._reading():
                    self._loaded["tokenizer"] = self._class(self._classes[0]).from_pretrained(
                        self._folder.root, local_files_only=True, trust_remote_code=False
                    )
            return self._loaded["tokenizer"]

    @property
    def network(self) -> Any:
        """transformers' network, every tensor of it from the file."""
        with self._lock:
            if "network" not in self._loaded:
                with self._reading():
                    network, report = self._class(self._classes[1]).from_pretrained(
                        self._folder.root,
                        local_files_only=True,
                        trust_remote_code=False,
                        use_safetensors=True,
                        dtype=torch.float32,
                        output_loading_info=True,
                    )
                left = [
                    f"{name} ({kind.removesuffix('_keys')})"
                    for kind, names in report.items()
                    for name in sorted(map(str, names))
                    if not (kind == "unexpected_keys" and name.endswith(DERIVED))
                ]
                if left:
                    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
                    raise CheckpointError(
                        f"{self.name}: tensors that don't fit its config.json: {', '.join(left[:SHOWN])}{more}"
                    )
                if len(self.tokenizer) > network.config.vocab_size:
                    raise CheckpointError(
                        f"{self.name}: {len(self.tokenizer)} ids of the tokenizer, {network.config.vocab_size} rows",
                        allowed="as many rows as ids, or more",
                    )
                self._loaded["network"] = network.eval()
            return self._loaded["network"]

    def ids(self, text: str, room: int) -> Any:
        """Token ids (1, L) of a text that the vocabulary holds whole. room: the most tokens, special ones included."""
        marks = set(self.tokenizer.all_special_ids)  # unknown ones included
        plain = self.tokenizer(text, add_special_tokens=False).input_ids
        if marks & set(plain):
            lost = [
                c for c in dict.fromkeys(text) if marks & set(self.tokenizer(c, add_special_tokens=False).input_ids)
            ]
            named = lost or self.tokenizer.convert_ids_to_tokens(sorted(marks & set(plain)))
            raise UserError(
                f"the {self._what} can't read {' '.join(named)} in {text!r}",
                allowed="what is in its vocabulary",
                hint=f"Leave it out, or take another {self._what}",
            )
        encoded = self.tokenizer(text, return_tensors="pt").input_ids  # (1, L)
        rows = self.network.config.vocab_size
        if int(encoded.max()) >= rows:
            raise CheckpointError(f"{self.name}: id {int(encoded.max())} of the tokenizer for {rows} rows")
        if encoded.shape[1] > room:
            raise UserError(
                f"a prompt of {encoded.shape[1]} tokens for the {self._what} {self.name}",
                allowed=f"at most {room}",
                hint="Shorten it: nothing is cut",
            )
        return encoded

    def _class(self, name: str) -> Any:
        """What transformers calls so."""
        try:
            import transformers
        except ImportError:
            raise UserError(f"a {self._what} needs the package transformers", hint=f"Install it: {INSTALL}") from None
        return getattr(transformers, name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Without progress bars, and with CheckpointErrors for whatever goes wrong."""
        bars = self._class("logging")
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (what transformers and its tokenizers raise for damaged files)
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{self.name} can't be read as a {self._what} ({type(error).__name__}: {reason})",
                hint=f"Get its files again; where a package is missing: {INSTALL}",
            ) from None
        finally:
            if shown:
                bars.enable_progress_bar()


class Detector(_Checkpoint):
    """Finds the language of a text: an XLM-RoBERTa classifier whose labels are language tags."""

    def __init__(self, source: str | Path) -> None:
        super().__init__(source, "detector", DETECTORS)
        labels = self.config.get("id2label")
        labels = list(labels.values()) if isinstance(labels, dict) else []
        if len(labels) < 2 or not all(isinstance(label, str) and LABEL.fullmatch(label) for label in labels):
            raise CheckpointError(
                f"{self.name}: labels {labels[:SHOWN]} in config.json are no languages", allowed="BCP 47 tags as en, fr"
            )

    @torch.inference_mode()
    def detect(self, text: str) -> DetectionRecord:
        """The likeliest language and its probability among the labels."""
        with self._lock, torch.random.fork_rng(devices=[]):  # building a network draws random numbers
            network = self.network
            ids = self.ids(text, network.config.max_position_embeddings - 2)  # RoBERTa counts from the pad's row on
            chances = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].softmax(-1)  # (labels,)
            best = int(chances.argmax())
        label = network.config.id2label[best]
        return DetectionRecord(
            detector=self.name,
            detector_sha256=self.sha256,
            label=label,
            language=canonical(label),
            score=round(float(chances[best]), 4),
        )


class Translator(_Checkpoint):
    """Translates texts between the languages of its checkpoint, always in the same way."""

    def __init__(self, source: str | Path, detector: Detector | None = None) -> None:
        super().__init__(source, "translator", NETWORKS)
        self.detector = detector

    @property
    def languages(self) -> dict[str, str]:
        """BCP 47 tag to the checkpoint's own code (fr_XX, fr, fra_Latn), from the tokenizer's own table."""
        tokenizer = self.tokenizer
        if self._classes[0] == "MarianTokenizer":
            codes = [tokenizer.source_lang, tokenizer.target_lang]
            if tokenizer.supported_language_codes or not all(re.fullmatch("[a-z]{2,3}", str(code)) for code in codes):
                raise CheckpointError(
                    f"{self.name} translates {codes[0]} to {codes[1]}", allowed="Marian models of one pair of languages"
                )
        elif self._classes[0] == "NllbTokenizer":
            codes = [code for code in map(str, tokenizer.all_special_tokens) if NLLB_CODE.fullmatch(code)]
        else:
            codes = list(tokenizer.lang_code_to_id)
        return {_tag(code): code for code in codes}

    def code(self, asked: str) -> str:
        """The checkpoint's own code of a language. UserError for one that it doesn't have, naming the nearest."""
        languages = self.languages
        near = [tag for tag in languages if primary(tag) == primary(asked)]
        script = script_of(asked)
        found = [tag for tag in near if script is None or script_of(tag) in (None, script)]
        if len(found) == 1:
            return languages[found[0]]
        tags = sorted(near or languages)
        close = nearest(asked, languages)
        raise UserError(
            f"language {asked!r} is {'ambiguous for' if found else 'not among those of'} the translator {self.name}",
            allowed=", ".join(tags[:SHOWN]) + (f" and {len(tags) - SHOWN} more" if len(tags) > SHOWN else ""),
            hint=f"Did you mean {close!r}?" if close and not near else "",
        )

    def record(self, prompt: str, negative_prompt: str, source: str, target: str) -> TranslationRecord:
        """Both texts, which are of one language, and how they were translated."""
        codes = self.code(source), self.code(target)
        return TranslationRecord(
            translator=self.name,
            translator_sha256=self.sha256,
            source=source,
            target=target,
            source_code=codes[0],
            target_code=codes[1],
            beams=BEAMS,
            prompt=self.translate(prompt, source, target),
            negative_prompt=self.translate(negative_prompt, source, target),
        )

    @torch.inference_mode()
    def translate(self, text: str, source: str, target: str) -> str:
        """The translation. A text without letters or digits is itself. UserError for what is too long, cut or empty."""
        if not any(c.isalnum() for c in text):
            return text
        codes = self.code(source), self.code(target)
        if codes[0] == codes[1]:
            raise UserError(f"{self.name}: a translation from {codes[0]} into itself")
        with self._lock, torch.random.fork_rng(devices=[]):
            forced = self._first_token(*codes)
            network, tokenizer = self.network, self.tokenizer
            room = network.config.max_position_embeddings
            ids, most = self.ids(text, room), min(MOST_TOKENS, room - 2)
            made = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._settings(forced, most),
            )[0]  # (L,)
            begun = 1 if len(made) < 2 or forced is None or int(made[1]) != forced else 2  # its start, and the language
            said = str(tokenizer.decode(made[begun:], skip_special_tokens=True)).strip()
        if int(made[-1]) not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            raise UserError(
                f"the translation of {text!r} came to no end within {most} tokens ({said[:60]}...)",
                hint="Say it otherwise or more shortly, or take another translator",
            )
        if not said:
            raise UserError(
                f"the translation of {text!r} is empty", hint="Say it otherwise, or take another translator"
            )
        return said

    def _first_token(self, source: str, target: str) -> int | None:
        """Tell the tokenizer the source. The token that a translation into the target begins with, if it has one."""
        tokenizer = self.tokenizer
        if self._classes[0] == "MarianTokenizer":
            if (source, target) != (tokenizer.source_lang, tokenizer.target_lang):
                raise UserError(
                    f"{self.name} doesn't translate {source} to {target}",
                    allowed=f"{tokenizer.source_lang} to {tokenizer.target_lang}",
                )
            return None
        tokenizer.src_lang = source
        if self._classes[0] == "M2M100Tokenizer":
            first = int(tokenizer.get_lang_id(target))
        else:
            first = int(tokenizer.convert_tokens_to_ids(target))
        only = self._stated.get("forced_bos_token_id")
        if only is not None and only != first:
            raise UserError(
                f"{self.name} doesn't translate into {target}", allowed=str(tokenizer.convert_ids_to_tokens(only))
            )
        return first

    @property
    def _stated(self) -> dict[str, Any]:
        """What the checkpoint says about generating."""
        own = self._folder.json("generation_config.json") if self._folder.has("generation_config.json") else {}
        return {**self.config, **own}

    def _settings(self, forced: int | None, longest: int) -> Any:
        """Everything that decides between two translations: ours, but for the checkpoint's special tokens."""
        stated, tokenizer = self._stated, self.tokenizer
        settings = self._class("GenerationConfig")(
            do_sample=False,
            num_beams=BEAMS,
            early_stopping=False,  # True takes the first five answers that end, and drops a better one that is longer
            length_penalty=1.0,
            max_new_tokens=longest,
            min_length=0,
            forced_bos_token_id=forced,
            decoder_start_token_id=stated.get("decoder_start_token_id"),
            bos_token_id=stated.get("bos_token_id"),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bad_words_ids=stated.get("bad_words_ids"),  # Marian's padding, which nothing else keeps out
        )
        self.network.generation_config = settings  # else what we don't say would be the checkpoint's
        return settings


def _tag(code: str) -> str:
    """BCP 47 of a code: fr_XX and fr and fra_Latn are fr, fr and fr-Latn."""
    head, _, rest = code.partition("_")
    return canonical(head if rest in ("", "XX") else f"{head}-{rest}")
