"""Translators and detector against transformers called as its documentation says, each with a fault that is seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kotoe.errors import CheckpointError, UserError
from kotoe.translate import BEAMS, Detector, Translator
from tiny import edit
from translators import FRENCH, PAIRS, TO_ENGLISH, Pairs, detector, m2m100, marian, mbart50, nllb

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # Marian's optional helper
MORE = [*PAIRS, ("fr", "une lune sale", "en", ""), ("fr", "un chat jaune", "ja", "")]  # of known words, not learnt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("translators")


@pytest.fixture(scope="module")
def mbart(folder: Path) -> Path:
    return mbart50(folder / "mbart")


@pytest.fixture(scope="module")
def many_to_one(folder: Path) -> Path:
    return mbart50(folder / "mbart-one", TO_ENGLISH)


@pytest.fixture(scope="module")
def m2m(folder: Path) -> Path:
    return m2m100(folder / "m2m")


@pytest.fixture(scope="module")
def no_language(folder: Path) -> Path:
    return nllb(folder / "nllb")


@pytest.fixture(scope="module")
def opus(folder: Path) -> Path:
    return marian(folder / "opus")


def said(model: Any, tokenizer: Any, text: str, **more: Any) -> str:
    """The documented call, with Kotoe's beams and lengths."""
    longest = model.config.max_position_embeddings - 2
    with torch.no_grad():
        made = model.generate(
            **tokenizer(text, return_tensors="pt"), num_beams=BEAMS, do_sample=False, early_stopping=False,
            max_new_tokens=longest, **more,
        )  # fmt: skip
    return str(tokenizer.batch_decode(made, skip_special_tokens=True)[0]).strip()


Call = Callable[[str, str, str], str]  # (source, target, text) to the translation


def by_mbart(folder: Path, forced: bool = True) -> Call:
    codes = {"fr": "fr_XX", "it": "it_IT", "th": "th_TH", "en": "en_XX", "ja": "ja_XX"}
    model = transformers.MBartForConditionalGeneration.from_pretrained(folder)
    tokenizer = transformers.MBart50Tokenizer.from_pretrained(folder)

    def call(source: str, target: str, text: str) -> str:
        tokenizer.src_lang = codes[source]
        first = {"forced_bos_token_id": tokenizer.lang_code_to_id[codes[target]]} if forced else {}
        return said(model, tokenizer, text, **first)

    return call


def by_many_to_one(folder: Path) -> Call:
    """As its model card says: nothing forced, it has learnt to begin with en_XX."""
    return by_mbart(folder, forced=False)


def by_m2m(folder: Path) -> Call:
    model = transformers.M2M100ForConditionalGeneration.from_pretrained(folder)
    tokenizer = transformers.M2M100Tokenizer.from_pretrained(folder)

    def call(source: str, target: str, text: str) -> str:
        tokenizer.src_lang = source
        answer = said(model, tokenizer, text, forced_bos_token_id=tokenizer.get_lang_id(target))
        return answer.removeprefix(
            f"__{target}__"
        ).strip()  # not among this tokenizer's special tokens, unlike published

    return call


def by_nllb(folder: Path) -> Call:
    codes = {"fr": "fra_Latn", "it": "ita_Latn", "th": "tha_Thai", "en": "eng_Latn", "ja": "jpn_Jpan"}
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)

    def call(source: str, target: str, text: str) -> str:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, src_lang=codes[source])
        return said(model, tokenizer, text, forced_bos_token_id=tokenizer.convert_tokens_to_ids(codes[target]))

    return call


def by_marian(folder: Path) -> Call:
    model = transformers.MarianMTModel.from_pretrained(folder)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    return lambda source, target, text: said(model, tokenizer, text)


CASES: list[tuple[str, Any, Pairs]] = [
    ("mbart", by_mbart, MORE),
    ("many_to_one", by_many_to_one, TO_ENGLISH),
    ("m2m", by_m2m, MORE),
    ("no_language", by_nllb, MORE),
    ("opus", by_marian, FRENCH),
]


def check(translator: Translator, folder: Path, theirs: Any, pairs: Pairs) -> None:
    call = theirs(folder)
    for source, text, target, meaning in pairs:
        answer = call(source, target, text)
        assert translator.translate(text, source, target) == answer
        assert meaning in ("", answer)  # learnt by heart: the fixture is a translator


@pytest.mark.parametrize(("name", "theirs", "pairs"), CASES, ids=[case[0] for case in CASES])
def test_translations_are_transformers(name: str, theirs: Any, pairs: Pairs, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    check(Translator(folder), folder, theirs, pairs)


@pytest.mark.parametrize("fault", ["source", "target"])
@pytest.mark.parametrize(("name", "theirs", "pairs"), [CASES[0], CASES[2], CASES[3]], ids=["mbart", "m2m", "nllb"])
def test_a_wrong_code_is_seen(
    name: str, theirs: Any, pairs: Pairs, fault: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's code is that of another language, or the first token is another target's."""
    folder = request.getfixturevalue(name)
    translator = Translator(folder)
    other = {"fr": "it", "it": "fr", "th": "fr", "en": "ja", "ja": "en"}
    changed = {code: translator.code(other[tag]) for tag in other for code in [translator.code(tag)]}
    right = translator._first_token

    def wrong(source: str, target: str) -> int | None:
        return right(changed[source], target) if fault == "source" else right(source, changed[target])

    monkeypatch.setattr(translator, "_first_token", wrong)
    with pytest.raises(AssertionError):
        check(translator, folder, theirs, pairs)


def test_the_checkpoints_own_way_of_generating_is_not_taken(mbart: Path, tmp_path: Path) -> None:
    """Sampling, penalties and lengths of a generation_config.json change nothing: a prompt has one translation."""
    folder = tmp_path / "m"
    transformers.MBartForConditionalGeneration.from_pretrained(mbart).save_pretrained(folder)
    transformers.MBart50Tokenizer.from_pretrained(mbart).save_pretrained(folder)
    edit(folder / "generation_config.json", do_sample=True, temperature=5.0, max_length=4, no_repeat_ngram_size=1)
    check(Translator(folder), mbart, by_mbart, PAIRS)


def test_languages_are_the_tokenizers(mbart: Path, m2m: Path, no_language: Path, opus: Path) -> None:
    assert len(Translator(mbart).languages) == 52
    assert len(Translator(m2m).languages) == 100
    assert len(Translator(no_language).languages) == 202
    assert Translator(opus).languages == {"fr": "fr", "en": "en"}
    asked = {
        "fr": ("fr_XX", "fr", "fra_Latn"),
        "FR-ca": ("fr_XX", "fr", "fra_Latn"),
        "zh-Hans": ("zh_CN", "zh", "zho_Hans"),
        "zh-CN": ("zh_CN", "zh", "zho_Hans"),
        "ar": ("ar_AR", "ar", "arb_Arab"),
        "ko": ("ko_KR", "ko", "kor_Hang"),
        "jpn": ("ja_XX", "ja", "jpn_Jpan"),
        "sw": ("sw_KE", "sw", "swh_Latn"),
    }
    for tag, codes in asked.items():
        assert tuple(Translator(folder).code(tag) for folder in (mbart, m2m, no_language)) == codes, tag
    assert Translator(no_language).code("yue") == "yue_Hant"
    assert Translator(no_language).code("zh-TW") == "zho_Hant"
    with pytest.raises(UserError, match=r"'zh' is ambiguous for the translator .*nllb\. Allowed: zh-Hans, zh-Hant\."):
        Translator(no_language).code("zh")
    with pytest.raises(UserError, match=r"'zh-TW' is not among those of the translator .*mbart\. Allowed: zh-CN\."):
        Translator(mbart).code("zh-TW")
    with pytest.raises(UserError, match=r"'sr-Latn' is not among those.*Allowed: sr-Cyrl\."):
        Translator(no_language).code("sr-Latn")
    with pytest.raises(UserError, match=r"Allowed: af-ZA, ar-AR, .* and 40 more\. Did you mean 'fr'\?"):
        Translator(mbart).code("frr")


def test_marian_has_one_pair(opus: Path) -> None:
    with pytest.raises(UserError, match=r"doesn't translate en to fr\. Allowed: fr to en"):
        Translator(opus).translate("dirty", "en", "fr")
    with pytest.raises(UserError, match=r"'it' is not among those of the translator"):
        Translator(opus).translate("sale", "it", "en")


def test_marian_of_several_targets_is_refused(opus: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(opus, tmp_path / "many"))
    edit(folder / "tokenizer_config.json", target_lang="ROMANCE")
    with pytest.raises(CheckpointError, match=r"translates fr to ROMANCE\. Allowed: Marian models of one pair"):
        Translator(folder).code("fr")


# --- The detector


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    return detector(folder / "detector")


def check_detector(ours: Detector, folder: Path) -> None:
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    for text in ("un chat sur fond bleu", "a cat on a blue background", "une lune jaune", "dirty", "a blue lune"):
        (theirs,) = pipeline([text], top_k=1, truncation=True, max_length=48)[0]
        found = ours.detect(text)
        assert found.label == theirs["label"]
        assert abs(found.score - theirs["score"]) < 1e-4


def test_detection_is_the_pipelines(classifier: Path, tmp_path: Path) -> None:
    check_detector(Detector(classifier), classifier)
    ours = Detector(classifier)  # the fault: a network whose first two answers have changed places
    tensors = load_file(classifier / "model.safetensors")
    assert "classifier.out_proj.weight" in tensors
    with torch.no_grad():
        for p in ours.network.classifier.out_proj.parameters():
            p[:2] = p[:2].flip(0).clone()
    with pytest.raises(AssertionError):
        check_detector(ours, classifier)


@pytest.mark.needs("protobuf")
def test_a_sentencepiece_model_alone_is_enough(mbart: Path, tmp_path: Path) -> None:
    """facebook/mbart-large-50-many-to-one-mmt has no tokenizer.json."""
    folder = Path(shutil.copytree(mbart, tmp_path / "spm", ignore=shutil.ignore_patterns("tokenizer.json")))
    check(Translator(folder), mbart, by_mbart, PAIRS)


def test_older_files_may_hold_tables_of_positions(m2m: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(m2m, tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.embed_positions.weights"] = torch.zeros(50, 64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert Translator(folder).translate("sale", "it", "en") == "salt"
