"""Prompts in languages without a conditioner: translated first, said and recorded; and never where one reads them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import Hub
from kotoe import cli, images, translate
from kotoe.checkpoints import Bundle, load
from kotoe.config import Request, dumps, from_json
from kotoe.drawing import generate, plan, replay, resolve
from kotoe.errors import CheckpointError, UserError
from kotoe.record import Record
from kotoe.translate import Detector, Translator, with_translator
from test_hub import cached
from tiny import edit, saved_tiny, tiny_bundle
from translators import detector, mbart50

FRENCH, ENGLISH = "un chat sur fond bleu", "a cat on a blue background"


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mbart50(tmp_path_factory.mktemp("translator") / "mbart")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("detector") / "xlm")


@pytest.fixture(scope="module")
def plain() -> Bundle:
    return tiny_bundle("sd2", languages=("en", "ja"))


@pytest.fixture
def bundle(plain: Bundle, translator: Path, classifier: Path) -> Bundle:
    return with_translator(plain, translator, detector=classifier)


@pytest.fixture
def undetected(plain: Bundle, translator: Path) -> Bundle:
    return with_translator(plain, translator)


def bits(bundle: Bundle, **asked: Any) -> bytes:
    return generate(bundle, Request(seed=3, **asked))[0].image.tobytes()


def record(bundle: Bundle, **asked: Any) -> Record:
    return generate(bundle, Request(seed=3, **asked))[0].record


def used(bundle: Bundle) -> bool:
    assert bundle.translator is not None
    return bool(bundle.translator._loaded)


# --- The picture


def test_the_built_in_models_picture_is_that_of_the_translation(translator: Path) -> None:
    model = load(dtype="float32")
    model = model.changed(conditioners={"en": model.conditioner("en")})  # it reads French, too
    translated = with_translator(model, translator)
    asked = {"seed": 7, "steps": 2}
    ours = generate(translated, Request(prompt=FRENCH, negative_prompt="sale", language="fr", **asked))[0]
    theirs = generate(model, Request(prompt=ENGLISH, negative_prompt="dirty", **asked))[0]
    other = generate(model, Request(prompt=ENGLISH, **asked))[0]
    assert ours.image.tobytes() == theirs.image.tobytes()
    assert ours.image.tobytes() != other.image.tobytes(), "the negative prompt makes no difference"
    assert ours.record.conditioner == theirs.record.conditioner
    assert ours.record.tokens == theirs.record.tokens


def test_several_prompts_each_in_its_language(bundle: Bundle, plain: Bundle) -> None:
    prompts = (FRENCH, "猫の絵", ENGLISH, "แมวแดง")
    drawn = generate(bundle, Request(prompt=prompts, negative_prompt="", seed=3, n=2))
    read = [generate(plain, Request(prompt=p, seed=3, n=2)) for p in (ENGLISH, "猫の絵", ENGLISH, "a red cat")]
    assert [p.image.tobytes() for p in drawn] == [p.image.tobytes() for pair in read for p in pair]
    assert [p.record.prompt for p in drawn] == [p for p in prompts for _ in range(2)]
    assert [p.record.prompt_language for p in drawn[::2]] == ["fr", "ja", "en", "th"]


def test_the_target_is_english_or_the_first_language_or_as_asked(
    bundle: Bundle, undetected: Bundle, plain: Bundle
) -> None:
    japanese = tiny_bundle("sd2", languages=("ja",))
    alone = with_translator(japanese, undetected.translator.name)  # type: ignore[union-attr]
    assert resolve(undetected, Request(prompt="x")).translate_to == "en"
    assert resolve(alone, Request(prompt="x")).translate_to == "ja"
    assert bits(alone, prompt=FRENCH, language="fr") == bits(japanese, prompt="青い背景に猫")
    assert bits(bundle, prompt=FRENCH, translate_to="ja-JP") == bits(plain, prompt="青い背景に猫")
    with pytest.raises(UserError, match=r"'de' is not in this model\. Allowed: en, ja"):
        resolve(bundle, Request(prompt=FRENCH, translate_to="de"))
    with pytest.raises(UserError, match="translate_to en without a translator"):
        resolve(plain, Request(prompt=FRENCH, translate_to="en"))


def test_what_a_conditioner_reads_is_never_translated(bundle: Bundle, plain: Bundle) -> None:
    """By what is asked, by script and by the detector; the translator isn't even loaded."""
    for asked in ({"prompt": "猫の絵"}, {"prompt": "sale", "language": "en"}, {"prompt": "青い", "language": "ja-JP"}):
        assert bits(bundle, **asked) == bits(plain, **asked)
    english = record(bundle, prompt=ENGLISH)
    assert english.translation is None
    assert english.detection is not None
    assert (english.detection.label, english.language_source) == ("en", "detected")
    assert not used(bundle)
    assert bits(bundle, prompt=FRENCH)
    assert used(bundle)


# --- Which language


def test_detected_by_the_detector(bundle: Bundle, classifier: Path) -> None:
    found = record(bundle, prompt=FRENCH)
    assert found.detection is not None
    assert found.translation is not None
    assert (found.detection.label, found.detection.language, found.language_source) == ("fr", "fr", "detected")
    assert 0.5 < found.detection.score <= 1.0
    assert found.detection.detector == str(classifier)
    assert found.detection.detector_sha256 == Detector(classifier).sha256
    assert (found.translation.source, found.translation.target) == ("fr", "en")


def test_a_script_of_one_language_needs_no_detector(undetected: Bundle, bundle: Bundle) -> None:
    for each in (undetected, bundle):
        found = record(each, prompt="แมวแดง")
        assert found.detection is None
        assert found.language_source == "detected"
        assert found.translation is not None
        assert (found.translation.source, found.translation.source_code) == ("th", "th_TH")


def test_an_unsure_detection_decides_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is read as without a detector, and the record has what it said."""
    monkeypatch.setattr(translate, "SURE", 1.01)
    found = record(bundle, prompt="sale")
    assert (found.conditioner.language, found.language_source, found.translation) == ("en", "unsure", None)
    assert found.detection is not None
    japanese = with_translator(tiny_bundle("sd2", languages=("ja",)), bundle.translator.name)  # type: ignore[union-attr]
    assert japanese.translator is not None
    japanese.translator.detector = bundle.translator.detector  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"Latin script.*\(--language\); '\w+' is unsure"):
        plan(japanese, resolve(japanese, Request(prompt="sale")))


def test_a_model_of_an_unnamed_language_reads_everything(plain: Bundle, translator: Path, classifier: Path) -> None:
    unnamed = plain.changed(conditioners={"und": plain.conditioner("en")}, default_language="und")
    unnamed = with_translator(unnamed, translator, detector=classifier)
    assert record(unnamed, prompt="sale").translation is None
    assert not used(unnamed)
    with pytest.raises(UserError, match="language 'und' is not among those of the translator"):
        plan(unnamed, resolve(unnamed, Request(prompt="sale", language="fr")))


def test_without_a_detector_nothing_is_guessed(undetected: Bundle, plain: Bundle) -> None:
    """Read as without a translator, and unsure, since with one it could be another language."""
    found = record(undetected, prompt="sale")
    assert (found.conditioner.language, found.language_source, found.translation) == ("en", "unsure", None)
    assert record(plain, prompt="sale").language_source == "detected"
    assert record(undetected, prompt="🐱 12").language_source == "unsure"
    with pytest.raises(UserError, match=r"Cyrillic script.*\(--language\), or give a detector \(--detector\)"):
        plan(undetected, resolve(undetected, Request(prompt="кошка")))


def test_a_prompt_without_letters_is_not_for_the_detector(bundle: Bundle) -> None:
    found = record(bundle, prompt="12")
    assert (found.detection, found.language_source) == (None, "unsure")


def test_a_detected_language_that_nobody_has(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.translator is not None
    right = bundle.translator.detector
    assert right is not None
    right.network.config.id2label = {i: "xh" if i else "tlh" for i in range(4)}
    monkeypatch.setattr(right.network.classifier.out_proj, "bias", torch.nn.Parameter(torch.tensor([99.0, 0, 0, 0])))
    with pytest.raises(UserError, match=r"language 'tlh' is not among those of the translator .*and 40 more"):
        plan(bundle, resolve(bundle, Request(prompt=FRENCH)))


def test_without_a_translator_the_error_names_it(plain: Bundle) -> None:
    with pytest.raises(UserError, match=r"'fr' is not in this model\. Allowed: en, ja\..*--translator"):
        generate(plain, Request(prompt=FRENCH, language="fr"))
    with pytest.raises(UserError, match=r"Thai script.*Allowed: en, ja\..*--language.*--translator"):
        generate(plain, Request(prompt="แมวแดง"))


def test_a_language_the_translator_lacks_is_refused_before_anything_is_drawn(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"'eu' is not among those of the translator .*mbart\. Allowed: af-ZA, .*more"):
        resolve(bundle, Request(prompt="x", language="eu"))


# --- Records and replays


def test_the_record_has_both_texts_and_a_replay_needs_no_translator(
    bundle: Bundle, plain: Bundle, translator: Path
) -> None:
    picture = generate(bundle, Request(prompt=FRENCH, negative_prompt="sale", seed=3))[0]
    found = picture.record.translation
    assert found is not None
    assert (picture.record.prompt, picture.record.negative_prompt) == (FRENCH, "sale")
    assert (found.prompt, found.negative_prompt, found.source_code, found.target_code) == (
        ENGLISH, "dirty", "fr_XX", "en_XX",
    )  # fmt: skip
    assert (found.translator, found.translator_sha256) == (str(translator), Translator(translator).sha256)
    again = from_json(Record, json.loads(dumps(picture.record)))
    assert again == picture.record
    assert plain.translator is None
    for other in (plain, bundle):
        drawn = replay(other, again)
        assert drawn.image.tobytes() == picture.image.tobytes()
        assert drawn.record == picture.record


def test_the_records_request_asks_for_the_same_translation(bundle: Bundle) -> None:
    picture = generate(bundle, Request(prompt=FRENCH, seed=3))[0]
    request = picture.record.request()
    assert (request.prompt, request.language, request.translate_to) == ((FRENCH,), "fr", "en")
    assert generate(bundle, request)[0].image.tobytes() == picture.image.tobytes()


def test_older_and_forged_records(bundle: Bundle) -> None:
    document = json.loads(dumps(record(bundle, prompt=FRENCH)))
    old = {key: value for key, value in document.items() if key not in ("translation", "detection")}
    assert from_json(Record, old).translation is None
    forged = [
        ({"target": "ja"}, "a translation into ja, read as en"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"beams": "5"}, "beams"),
        ({"extra": 1}, "unknown key 'extra'"),
    ]
    for change, message in forged:
        with pytest.raises(UserError, match=message):
            from_json(Record, {**document, "translation": {**document["translation"], **change}})
    with pytest.raises(UserError, match=r"score 1.5. Allowed: 0.0 to 1.0"):
        from_json(Record, {**document, "detection": {**document["detection"], "score": 1.5}})


def test_other_files_are_another_identity(translator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(translator, tmp_path / "m"))
    assert Translator(folder).sha256 == Translator(translator).sha256
    edit(folder / "generation_config.json", max_length=9)
    assert Translator(folder).sha256 != Translator(translator).sha256


# --- Translations that are none


def test_texts_without_words_stay(translator: Path) -> None:
    ours = Translator(translator)
    assert [ours.translate(text, "fr", "en") for text in ("", "  ", "!?")] == ["", "  ", "!?"]


def test_what_a_translator_cant_read_is_refused(translator: Path) -> None:
    ours = Translator(translator)
    for text, message in (
        ("un chat Ω sur 🐱 fond bleu", r"can't read Ω 🐱 in .*Allowed: what is in its vocabulary"),
        ("un chat </s> sur fond", r"can't read < / > in"),
        (
            "un chat sur fond bleu " * 5,
            r"a prompt of \d+ tokens for the translator .*Allowed: at most 48.*nothing is cut",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ours.translate(text, "fr", "en")
    ours.tokenizer.add_special_tokens({"additional_special_tokens": ["chat"]})  # a mark whose letters are all known
    with pytest.raises(UserError, match="can't read chat in 'un chat'"):
        ours.translate("un chat", "fr", "en")
    with pytest.raises(UserError, match="from fr_XX into itself"):
        ours.translate("sale", "fr", "fr-CA")


def changed(translator: Path, folder: Path, **values: float) -> Translator:
    """The translator with other biases of its answers: "end" or "words"."""
    shutil.copytree(translator, folder)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["final_logits_bias"].abs().max() == 0
    tensors["final_logits_bias"][0, 2] = values["end"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Translator(folder)


def test_a_translation_without_an_end_or_without_words_is_refused(translator: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"came to no end within 46 tokens \("):
        changed(translator, tmp_path / "on", end=-1e9).translate(FRENCH, "fr", "en")
    with pytest.raises(UserError, match="is empty"):
        changed(translator, tmp_path / "off", end=1e9).translate(FRENCH, "fr", "en")


def test_a_translator_of_one_target(translator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(translator, tmp_path / "one"))
    english = Translator(translator).tokenizer.lang_code_to_id["en_XX"]
    edit(folder / "generation_config.json", forced_bos_token_id=english)
    assert Translator(folder).translate(FRENCH, "fr", "en") == ENGLISH
    with pytest.raises(UserError, match=r"doesn't translate into ja_XX\. Allowed: en_XX"):
        Translator(folder).translate(FRENCH, "fr", "ja")


# --- Checkpoints of other kinds, and damaged ones


def test_other_kinds_are_refused_by_name(translator: Path, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model_type 'xlm-roberta' for a translator\. Allowed: mbart, m2m_100, ma"
    ):
        Translator(classifier)
    with pytest.raises(CheckpointError, match=r"model_type 'mbart' for a detector\. Allowed: xlm-roberta"):
        Detector(translator)
    folder = Path(shutil.copytree(translator, tmp_path / "m"))
    edit(folder / "tokenizer_config.json", tokenizer_class="MBartTokenizerFast")
    with pytest.raises(CheckpointError, match=r"tokenizer MBartTokenizer for a translator\. Allowed: MBart50Tokenizer"):
        Translator(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="gone")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter"):
        Translator(folder)
    with pytest.raises(UserError, match="no translator at nowhere/at/all"):
        Translator("nowhere/at/all")
    labels = Path(shutil.copytree(classifier, tmp_path / "labels"))
    edit(labels / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    with pytest.raises(CheckpointError, match=r"labels \['LABEL_0', 'LABEL_1'\] in config.json are no languages"):
        Detector(labels)


def test_pickles_are_not_read(translator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(translator, tmp_path / "m"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file\. Allowed: weights that can't run code"):
        Translator(folder)


def test_links_out_of_the_folder_are_not_followed(translator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(translator, tmp_path / "m"))
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="outside the folder"):
        Translator(folder)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "truncated", "tokenizer", "vocabulary"])
def test_a_damaged_checkpoint_is_refused(translator: Path, tmp_path: Path, damage: str) -> None:
    """Nothing is initialised at random and nothing left over, as transformers alone would only warn."""
    folder = Path(shutil.copytree(translator, tmp_path / "m"))
    file, name = folder / "model.safetensors", "model.decoder.layers.0.fc1.weight"
    tensors = load_file(file)
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["model.decoder.layers.7.fc1.weight"] = tensors[name].clone()
    elif damage == "shape":
        tensors[name] = tensors[name][:, :32].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    elif damage == "vocabulary":
        ours = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        ours["model"]["vocab"] += [[f"word{i}", -9.0] for i in range(5)]
        (folder / "tokenizer.json").write_text(json.dumps(ours), encoding="utf-8")
    expected = {
        "missing": r"fc1\.weight \(missing\)", "extra": r"layers\.7\.fc1\.weight \(unexpected\)",
        "shape": r"can't be read as a translator .*|fc1\.weight", "truncated": "can't be read as a translator",
        "tokenizer": "can't be read as a translator", "vocabulary": r"ids of the tokenizer, \d+ rows",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=expected[damage]):
        Translator(folder).translate(FRENCH, "fr", "en")


def test_without_transformers_the_error_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert bits(bundle, prompt="猫の絵")  # nothing to translate, nothing needed
    with pytest.raises(
        UserError, match=r"needs the package transformers\. Install it: pip install 'kotoe\[translate\]'"
    ):
        bits(bundle, prompt=FRENCH, language="fr")


def test_a_translator_by_its_name_on_the_hub(translator: Path) -> None:
    cached("someone/mbart", translator)
    ours = Translator("someone/mbart")
    assert ours.name == "someone/mbart"
    assert ours.translate("sale", "it", "en") == "salt"
    assert ours.sha256 == Translator(translator).sha256
    with pytest.raises(CheckpointError, match="neither in the hub's cache nor could it be downloaded"):
        Translator("someone/absent")


def test_a_repository_of_pickles_is_refused(tmp_path: Path) -> None:
    """Before anything of it is downloaded."""
    (tmp_path / "m").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "m" / name).write_bytes(b"{}")
    server = Hub(tmp_path)
    server.put("someone/pickled", tmp_path / "m")
    code = "from kotoe.translate import Translator; Translator('someone/pickled')"
    environment = server.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    asked = server.asked()
    server.close()
    message = r"Lacking: someone/pickled on the hub holds no \*\.safetensors.*save_pretrained"
    assert re.search(message, done.stderr)
    assert not [each for each in asked if "/resolve/" in each["path"]]


def test_of_a_repository_only_the_translator_is_wanted() -> None:
    ours = ["config.json", "model.safetensors", "source.spm", "sentencepiece.bpe.model", "tokenizer.json", "vocab.json"]
    others = ["README.md", "pytorch_model.bin", "rust_model.ot", "modeling.py", "onnx/config.json", "onnx/vocab.json"]
    assert translate.wanted([*others, *ours]) == ours


# --- The command line


def kotoe(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_line(
    translator: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(saved_tiny(tmp_path / "tiny", "sd2", languages=("en", "ja")))
    base = ["generate", "--model", model, "--translator", str(translator), "--json"]
    code, out, err = kotoe(capsys, *base, FRENCH, "猫の絵", "--language", "fr", "--dry-run")
    assert code == 2  # the Japanese of it is no French
    code, out, err = kotoe(capsys, *base, FRENCH, "猫の絵", "--detector", str(classifier), "--negative-prompt", "")
    assert code == 0, err
    assert "Loading weights" not in err
    assert f"translated: {FRENCH!r} (fr) is read as {ENGLISH!r} (en)" in err
    assert "猫の絵' (" not in err
    document = json.loads(out)
    (entry,) = document["translations"]
    assert (entry["given"], entry["translation"]["prompt"]) == (FRENCH, ENGLISH)
    first, second = document["pictures"]
    assert first["record"]["translation"] == entry["translation"]
    assert second["record"]["translation"] is None
    assert document["config"]["translate_to"] == "en"

    code, out, err = kotoe(capsys, "generate", "--replay", first["path"], "--model", model, "--out", "again", "--json")
    assert code == 0, err
    assert json.loads(out)["identical"] is True
    (again,) = json.loads(out)["pictures"]
    assert images.open_picture(again["path"]).tobytes() == images.open_picture(first["path"]).tobytes()
    code, out, err = kotoe(capsys, "generate", "--replay", first["path"], "--model", model, *base[3:5])
    assert code == 2
    assert "--replay together with translator" in err

    code, out, err = kotoe(capsys, *base, "sale", "--dry-run")
    assert code == 0
    assert "the language of 'sale' is unsure, it is read as en; --language TAG settles it" in err
    assert json.loads(out)["translations"] == []
    code, out, err = kotoe(capsys, *base, FRENCH, "--language", "fr", "--negative-prompt", "sale", "--dry-run")
    assert code == 0
    assert "translated: 'sale' is read as 'dirty'" in err
    code, out, err = kotoe(capsys, "generate", FRENCH, "--model", model, "--detector", str(classifier))
    assert code == 2
    assert "without a translator" in err
    code, out, err = kotoe(capsys, "generate", FRENCH, "--model", model, "--language", "fr")
    assert code == 2
    assert "--translator" in err
