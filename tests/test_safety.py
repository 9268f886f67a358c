"""Safety checks round drawing: which checker is read, what its verdict does, and what the command line says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file

from checkers import EDGE_PX, photos, save_checker, stock_checker
from commands import Done, Kotoe, running
from kotoe import images
from kotoe.config import Request, dumps, from_json, to_json
from kotoe.drawing import generate, resolve
from kotoe.errors import CheckpointError, UserError
from kotoe.reading import Job
from kotoe.record import Record, TranslationRecord, Verdict
from kotoe.safety import reasons
from kotoe.safety.checks import Checks
from kotoe.safety.images import ImageChecker, Offsets, Preprocessing, blurred, carry_out, judge
from kotoe.safety.load import load_checker, wanted
from kotoe.verbs_safety import BLOCKED, Guard
from tiny import edit, saved_tiny, tiny_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four languages with a safety checker of its own."""
    folder = saved_tiny(tmp_path_factory.mktemp("safety") / "m", "sd2", languages=("en", "ja", "zh", "ko"))
    return save_checker(stock_checker(), folder)


@pytest.fixture(scope="module")
def bare(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a checker."""
    folder = tmp_path_factory.mktemp("safety") / "bare"
    return Path(shutil.copytree(model, folder, ignore=shutil.ignore_patterns("safety_checker", "feature_extractor")))


@pytest.fixture(scope="module")
def checker(model: Path) -> ImageChecker:
    return load_checker(model)


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def drawn(done: Done) -> list[str]:
    """The pictures that are there, without the grid."""
    assert sorted(str(p) for p in Path("out").glob("*-s*.png")) == sorted(p["path"] for p in done.json["pictures"])
    return [entry["path"] for entry in done.json["pictures"]]


# --- Reading a checker


def test_layouts_give_the_same_scores(checker: ImageChecker, tmp_path: Path) -> None:
    """As transformers 4.21 wrote it, as a pickle, and in a repository of its own."""
    expected = judge(checker, photos())
    net = stock_checker()
    old = load_checker(save_checker(net, tmp_path / "old", old=True))
    assert [v.concept_scores for v in judge(old, photos())] == [v.concept_scores for v in expected]
    pickled = save_checker(net, tmp_path / "pickled", old=True, pickled=True)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        load_checker(pickled)
    found = judge(load_checker(pickled, allow_pickle=True), photos())
    assert [v.concept_scores for v in found] == [v.concept_scores for v in expected]
    assert found[0].checker_sha256 != expected[0].checker_sha256
    alone = Path(shutil.copytree(tmp_path / "old/safety_checker", tmp_path / "alone"))
    shutil.copyfile(tmp_path / "old/feature_extractor/preprocessor_config.json", alone / "preprocessor_config.json")
    assert [v.special_scores for v in judge(load_checker(alone), photos())] == [v.special_scores for v in expected]


CHECKER, PIXELS = "safety_checker/config.json", "feature_extractor/preprocessor_config.json"
VISION = "vision_config"


def _vision(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CHECKER).read_text())
    edit(folder / CHECKER, vision_config={**config[VISION], **changes})


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "safety_checker/model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no preprocessing": (lambda f: (f / PIXELS).unlink(), "holds no feature_extractor/preprocessor_config.json"),
    "another class": (lambda f: edit(f / CHECKER, architectures=["CLIPModel"]), "CLIPModel.*Is that a safety checker"),
    "an unknown key": (lambda f: _vision(f, rotary=True), "unknown key 'rotary'"),
    "another activation": (lambda f: _vision(f, hidden_act="relu"), "hidden_act is 'relu'. Allowed: quick_gelu, gelu"),
    "a decoder": (lambda f: _vision(f, is_decoder=True), "is_decoder is True"),
    "heads that don't divide": (lambda f: _vision(f, num_attention_heads=5), "5 heads in 32 numbers"),
    "no vision": (lambda f: edit(f / CHECKER, vision_config=3), "vision_config is 3"),
    "two tables that differ": (
        lambda f: edit(f / CHECKER, vision_config_dict={"patch_size": 14}),
        "vision_config_dict",
    ),
    "a square": (lambda f: edit(f / PIXELS, size={"height": 30, "width": 30}), "size is .*a whole number"),
    "an oblong crop": (lambda f: edit(f / PIXELS, crop_size={"height": 30, "width": 20}), "crop_size is"),
    "a crop of another size": (lambda f: edit(f / PIXELS, crop_size=28), "cuts out 28 pixels. Allowed: 30"),
    "a crop larger than the edge": (lambda f: edit(f / PIXELS, size=20), "crop 30 of a shortest edge 20"),
    "bilinear": (lambda f: edit(f / PIXELS, resample=2), "resample is 2. Allowed: 3"),
    "no normalisation": (lambda f: edit(f / PIXELS, do_normalize=False), "do_normalize is False"),
    "another scale": (lambda f: edit(f / PIXELS, rescale_factor=1 / 127.5), "rescale_factor is 0.0078"),
    "a mean of one number": (lambda f: edit(f / PIXELS, image_mean=[0.5]), "image_mean is .*three numbers"),
    "no deviation": (lambda f: edit(f / PIXELS, image_std=[0.0, 1, 1]), "no std 0"),
    "another processor": (lambda f: edit(f / PIXELS, image_processor_type="ViTImageProcessor"), "ViTImageProcessor"),
    "a missing tensor": (
        lambda f: _tensors(f, lambda t: t.pop("concept_embeds")),
        r"concept_embeds \[17, 24\] is missing",
    ),
    "an extra tensor": (lambda f: _tensors(f, lambda t: t.update(logit=torch.ones(1))), "logit .* is extra"),
    "fewer concepts": (
        lambda f: _tensors(f, lambda t: t.update(special_care_embeds_weights=torch.ones(2))),
        "special_care_embeds_weights has another shape",
    ),
    "no weights": (lambda f: (f / "safety_checker/model.safetensors").unlink(), "holds no weights"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checker_is_refused(case: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for part in ("safety_checker", "feature_extractor"):
        shutil.copytree(model / part, folder / part)
    assert judge(load_checker(folder), photos(1))
    change, message = BROKEN[case]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checker(folder)


def test_what_cannot_be_checked_does_not_pass(model: Path, tmp_path: Path) -> None:
    """Weights that are no numbers give scores that are above no threshold."""
    shutil.copytree(model / "safety_checker", tmp_path / "safety_checker")
    shutil.copytree(model / "feature_extractor", tmp_path / "feature_extractor")
    _tensors(tmp_path, lambda t: t["visual_projection.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="scores that are no numbers"):
        judge(load_checker(tmp_path), photos(1))


def test_of_a_repository_only_the_checker_is_wanted() -> None:
    whole = ["model_index.json", "unet/model.safetensors", CHECKER, PIXELS, "safety_checker/model.safetensors"]
    pickles = ["safety_checker/pytorch_model.bin", "safety_checker/model.fp16.safetensors"]
    assert wanted([*whole, *pickles]) == [CHECKER, PIXELS, "safety_checker/model.safetensors"]
    alone = ["README.md", "config.json", "preprocessor_config.json", "pytorch_model.bin", "flax_model.msgpack"]
    assert wanted(alone) == ["config.json", "preprocessor_config.json", "pytorch_model.bin"]
    with pytest.raises(UserError, match="no folder at nowhere.*safety_checker/"):
        load_checker("nowhere")
    with pytest.raises(CheckpointError, match="neither in the hub's cache nor"):
        load_checker("nobody/nothing")


# --- The verdict


def test_a_picture_is_judged_as_it_is_alone(checker: ImageChecker) -> None:
    together = judge(checker, photos())
    assert [judge(checker, [photo])[0] for photo in photos()] == together
    flagged = [v for v in together if not v.allowed]
    assert flagged
    for verdict in flagged:
        highest = max(verdict.concept_scores)
        assert verdict.score == highest > 0
        concept = verdict.concept_scores.index(highest)
        assert verdict.reason == f"the picture is {highest:.3f} over the checker's threshold for concept {concept}"
    for verdict in together:
        assert (verdict.score <= 0) == verdict.allowed == (verdict.reason == "")
        assert from_json(Verdict, json.loads(dumps(verdict))) == verdict
    assert len({v.checker_sha256 for v in together}) == 1


def test_offsets_move_thresholds(checker: ImageChecker) -> None:
    """By what is said, all or one; 0 is a value, and a special one decides by the 0.01 that it adds."""
    plain = judge(checker, photos())
    assert judge(checker, photos(), offsets=Offsets(every=0.0, concept={"3": 0.0}))[0].concept_scores == (
        plain[0].concept_scores
    )
    assert all(v.allowed for v in judge(checker, photos(), offsets=Offsets(every=2.0)))
    assert not any(v.allowed for v in judge(checker, photos(), offsets=Offsets(every=-2.0)))
    calm = Offsets(concept={f"special-{i}": 2.0 for i in range(3)})
    before = judge(checker, photos(), offsets=calm)
    after = judge(checker, photos(), offsets=Offsets(concept={**calm.concept, "5": 0.05}))
    for one, other in zip(before, after, strict=True):
        moved = [round(a - b, 3) for a, b in zip(one.concept_scores, other.concept_scores, strict=True)]
        assert moved[5] == pytest.approx(0.05, abs=1.1e-3)
        assert [m for i, m in enumerate(moved) if i != 5] == [0.0] * 16
    assert after[0].concept_offsets == ("special-0=2", "special-1=2", "special-2=2", "5=0.05")
    for wrong, message in (
        ({"every": float("nan")}, "every nan"),
        ({"every": 2.5}, "every 2.5. Allowed: -2.0 to 2.0"),
        ({"concept": {"17": 0.1}}, "concept '17'. Allowed: 0 to 16, special-0 to special-2"),
    ):
        with pytest.raises(UserError, match=message):
            Offsets(**wrong)  # type: ignore[arg-type]


def test_what_is_done_with_a_picture(checker: ImageChecker) -> None:
    picture = generate(tiny_bundle(), Request(prompt="a red cat", seed=3))[0]
    for action in ("flag", "blur", "block"):
        good, bad = (
            judge(checker, [picture.image], action=action, offsets=Offsets(every=x))[0]  # type: ignore[arg-type]
            for x in (2.0, -2.0)
        )
        kept = carry_out(picture, good)
        assert kept is not None
        assert kept.image.tobytes() == picture.image.tobytes()
        assert kept.record.picture_verdict == good
        found = carry_out(picture, bad)
        if action == "block":
            assert found is None
            continue
        assert found is not None
        assert found.record.picture_verdict == bad
        assert (found.image.tobytes() == picture.image.tobytes()) == (action == "flag")
    assert picture.record.picture_verdict is None  # `generate` knows nothing of it


def test_blur_hides_what_is_there() -> None:
    """Edges are gone, colours on the whole stay: no black picture."""
    image = Image.new("RGB", (256, 256), "white")
    image.paste((200, 30, 30), (90, 90, 166, 166))
    soft = blurred(image)
    assert soft.size == image.size
    assert soft.tobytes() == image.filter(ImageFilter.GaussianBlur(32)).tobytes()
    steps = (images.to_tensor(soft).diff(dim=-1)).abs().max() * 127.5
    assert 0 < steps < 6  # levels from a pixel to the next; of the sharp picture 225
    large = image.resize((1024, 512))
    assert blurred(large).tobytes() == large.filter(ImageFilter.GaussianBlur(64)).tobytes()
    mean = images.to_tensor(soft).mean() - images.to_tensor(image).mean()
    assert abs(float(mean)) < 0.02


@pytest.mark.parametrize("language", reasons.LANGUAGES)
def test_reasons_in_four_languages(language: str) -> None:
    said = {reasons.of_picture(3, 0.0214, tag) for tag in reasons.LANGUAGES}
    assert len(said) == 4
    assert "0.021" in reasons.of_picture(3, 0.0214, language)
    assert "3" in reasons.of_picture(3, 0.0214, language)
    for category, names in reasons.CATEGORIES.items():
        assert names.keys() == set(reasons.LANGUAGES), category
    assert reasons.spoken("zh-Hant") == reasons.spoken("yue") == "zh"
    assert reasons.spoken("fr") == reasons.spoken(None) == "en"


# --- The command line


def test_a_models_own_checker_is_used_and_said(kotoe: Kotoe, model: Path) -> None:
    done = kotoe("generate", "a red cat", "--n", "3", "--model", model, "--json")
    assert done.code == 0, done.err
    sha = load_checker(model).hashes["weights"]
    assert f"safety: pictures are checked by m/safety_checker (sha256 {sha[:12]}), action flag" in done.err
    for path, entry in zip(drawn(done), done.json["pictures"], strict=True):
        record = from_json(Record, json.loads(images.read_record(path)))
        assert to_json(record) == entry["record"]
        verdict = record.picture_verdict
        assert verdict is not None
        assert (verdict.checker, verdict.checker_sha256, verdict.action) == ("m/safety_checker", sha, "flag")
        assert (len(verdict.concept_scores), len(verdict.special_scores)) == (17, 3)
        assert record.prompt_verdict is not None
        assert record.prompt_verdict.allowed
        with Image.open(path) as image:
            assert judge(load_checker(model), [image])[0] == verdict
    off = kotoe("generate", "a red cat", "--n", "3", "--model", model, "--safety", "off", "--out", "off", "--json")
    assert "safety:" not in off.err
    assert [p["record"]["picture_verdict"] for p in off.json["pictures"]] == [None] * 3
    assert off.json["config"]["safety"] == "off"
    assert done.json["config"]["safety"] == "flag"


def test_flagged_blurred_and_blocked(kotoe: Kotoe, model: Path) -> None:
    """Of four pictures those over a threshold that divides them, by the same scores whatever is done with them."""
    base = ["generate", "青い背景に猫", "--n", "4", "--seed", "5", "--model", model, "--json"]
    every = kotoe(*base, "--out", "all", "--safety-threshold", "2").json["pictures"]
    assert all(p["record"]["picture_verdict"]["allowed"] for p in every)
    scores = [p["record"]["picture_verdict"]["score"] for p in every]
    # Special care adds 0.01 where the threshold lets it: half way between, wide apart.
    ranked = sorted(scores)
    offset = round(2 + max(((b + a) / 2, b - a) for a, b in zip(ranked, ranked[1:]))[0], 4)
    outcome = {}
    for action in ("flag", "blur", "block"):
        shutil.rmtree("out", ignore_errors=True)
        done = kotoe(*base, "--safety", action, "--safety-threshold", offset)
        found = {p["seed"]: p for p in done.json["pictures"]}
        blocked = {b["seed"] for b in done.json["blocked"]}
        drawn(done)
        over = {s for s, p in found.items() if not p["record"]["picture_verdict"]["allowed"]} | blocked
        assert 0 < len(over) < 4
        assert found.keys() | blocked == {5, 6, 7, 8}
        assert done.code == (BLOCKED if action == "block" else 0)
        assert blocked == (over if action == "block" else set())
        assert done.err.count("しきい値を") == len(over)  # a reason each, in the prompt's language
        for seed, entry in found.items():
            sharp = Image.open(every[seed - 5]["path"]).convert("RGB")
            expected = blurred(sharp) if seed in over and action == "blur" else sharp
            assert images.open_picture(entry["path"]).tobytes() == expected.tobytes()
            assert entry["record"]["picture_verdict"]["threshold_offset"] == offset
        for entry in done.json["blocked"]:
            assert entry["verdict"]["reason"].startswith("画像は検査器の概念")
            assert entry["prompt"] == "青い背景に猫"
        outcome[action] = over
    assert outcome["flag"] == outcome["blur"] == outcome["block"]


def test_all_blocked_leaves_nothing(kotoe: Kotoe, model: Path) -> None:
    done = kotoe(
        "generate", "a red cat", "--n", "2", "--model", model, "--safety", "block", "--safety-threshold", "-2", "--json"
    )
    assert done.code == BLOCKED
    assert not Path("out").exists()
    assert (done.json["pictures"], done.json["grid"], len(done.json["blocked"])) == ([], None, 2)
    assert done.err.count("is blocked: no file is written. the picture is") == 2


def test_a_replay_is_the_picture_as_it_was(kotoe: Kotoe, model: Path) -> None:
    arguments = ["--model", model, "--safety", "blur", "--safety-threshold", "-2"]
    entry = kotoe("generate", "a red cat", *arguments, "--json").json["pictures"][0]
    done = kotoe("generate", "--replay", entry["path"], "--model", model, "--out", "again", "--json")
    assert (done.code, done.json["identical"]) == (0, True), done.err
    assert done.json["pictures"][0]["record"] | {"seconds": 0} == entry["record"] | {"seconds": 0}
    refused = kotoe("generate", "--replay", entry["path"], "--model", model, "--safety", "off")
    assert (refused.code, "--replay together with safety" in refused.err) == (2, True)
    forged = {**entry["record"]["picture_verdict"], "action": "block"}
    images.save_png(Image.new("RGB", (16, 16)), Path("f.png"), dumps({**entry["record"], "picture_verdict": forged}))
    done = kotoe("generate", "--replay", "f.png", "--model", model)
    assert (done.code, "says that the picture was blocked" in done.err) == (2, True)


def test_a_model_without_a_checker(kotoe: Kotoe, bare: Path, model: Path) -> None:
    """Nothing is checked unless asked, and then it is an error that says where one is to be had."""
    plain = kotoe("generate", "a red cat", "--model", bare, "--json")
    assert plain.code == 0
    assert "safety:" not in plain.err
    assert plain.json["pictures"][0]["record"]["picture_verdict"] is None
    for given in (["--safety", "flag"], ["--safety", "block"], ["--safety-threshold", "0.1"]):
        for where in ("kotoe-emoji", bare):
            done = kotoe("generate", "a red cat", "--model", where, "--dry-run", *given)
            assert done.code == 2, given
            assert "which has no safety checker" in done.err
            assert "--safety-checker FOLDER takes the one of another checkpoint" in done.err
    with pytest.raises(UserError, match="which has no safety checker"):  # a single file has no folder to look in
        Guard(Checks(safety="flag"), tiny_bundle())
    lent = kotoe("generate", "a red cat", "--model", bare, "--safety-checker", model, "--json")
    assert lent.json["pictures"][0]["record"]["picture_verdict"]["checker"] == "m/safety_checker"
    shutil.copytree(bare, "named")
    edit(Path("named/model_index.json"), safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    done = kotoe("generate", "a red cat", "--model", "named", "--dry-run")
    assert (done.code, "names a safety checker that isn't in its folder" in done.err) == (0, True)


def test_a_checker_that_is_a_pickle(kotoe: Kotoe, bare: Path) -> None:
    """Not skipped because it can't be read: an error that names both ways on."""
    shutil.copytree(bare, "p")
    save_checker(stock_checker(), Path("p"), pickled=True)
    done = kotoe("generate", "a red cat", "--model", "p", "--dry-run")
    assert done.code == 2
    assert "--allow-pickle" in done.err
    assert "--safety off" in done.err
    assert kotoe("generate", "a red cat", "--model", "p", "--dry-run", "--allow-pickle").code == 0
    assert kotoe("generate", "a red cat", "--model", "p", "--dry-run", "--safety", "off").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--safety", "blacken"], "safety"),
        (["--prompt-check", "blur"], "prompt"),
        (["--safety", "off", "--safety-threshold", "0.1"], "safety_threshold with safety off has no effect"),
        (["--safety-threshold", "3"], "threshold offset every 3.0. Allowed: -2.0 to 2.0"),
        (["--safety-concepts", "3"], "safety_concepts '3'. Allowed: NAME=X"),
        (["--safety-concepts", "x=1"], "concept 'x'. Allowed: 0 to 16, special-0 to special-2"),
        (["--safety-concepts", "3=0.1", "3=0.2"], "names 3 twice"),
        (["--safety-checker", "nowhere"], "no folder at nowhere"),
    ],
)
def test_bad_options(kotoe: Kotoe, model: Path, arguments: list[str], message: str) -> None:
    done = kotoe("generate", "a red cat", "--model", model, *arguments)
    assert done.code == 2
    assert message in done.err
    assert not Path("out").exists()


# --- Prompts on the command line


def test_a_flagged_prompt_is_drawn_and_recorded(kotoe: Kotoe, bare: Path) -> None:
    done = kotoe("generate", "裸の猫", "青い背景に猫", "--language", "ja", "--model", bare, "--json")
    assert done.code == 0, done.err
    assert "safety: the prompt '裸の猫' is flagged. プロンプトの「裸」: 性的な内容" in done.err
    first, second = (p["record"]["prompt_verdict"] for p in done.json["pictures"])
    assert (first["allowed"], first["score"], second["allowed"], second["score"]) == (False, 1.0, True, 0.0)
    assert first["found"] == [
        {"category": "sexual", "term": "裸", "language": "ja", "written": "裸", "start": 0, "end": 1}
    ]
    off = kotoe("generate", "裸の猫", "--language", "ja", "--model", bare, "--prompt-check", "off", "--json")
    assert "safety:" not in off.err
    assert off.json["pictures"][0]["record"]["prompt_verdict"] is None


def test_a_blocked_prompt_draws_nothing(kotoe: Kotoe, bare: Path) -> None:
    """Neither its own picture nor the others'; and sexual content with minors is never only flagged."""
    for arguments in (
        ["a red cat", "a nude cat", "--prompt-check", "block"],
        ["a red cat", "a nude child"],
        ["a red cat", "a nude child", "--dry-run"],
    ):
        done = kotoe("generate", *arguments, "--model", bare, "--json")
        assert done.code == BLOCKED, arguments
        assert not Path("out").exists()
        assert done.json["pictures"] == []
        (entry,) = done.json["blocked"]
        assert entry["prompt"] == arguments[1]
        assert "is blocked: nothing is drawn." in done.err
    assert entry["verdict"]["action"] == "block"
    assert "sexual content with minors" in done.err


@pytest.mark.parametrize(
    "prompt",
    [
        "(nu:1)(de:1) (lo:1)(li:1)",
        "nude (lo:1)(li:1)",
        "n(ude:1.2) loli",
        "（ｎｕ：１）（ｄｅ：１） loli",
        "(n)ude loli",
    ],
)
def test_grammar_hides_nothing(kotoe: Kotoe, bare: Path, prompt: str) -> None:
    """The encoder reads the letters without brackets and weights."""
    done = kotoe("generate", prompt, "--language", "en", "--model", bare, "--json")
    assert done.code == BLOCKED, prompt
    assert done.json["blocked"][0]["verdict"]["action"] == "block"


def test_a_negative_prompt_that_is_drawn_is_checked(kotoe: Kotoe, bare: Path) -> None:
    """Guidance below 1 goes towards it."""
    asked = ["generate", "a cat", "--negative-prompt", "a nude woman", "--prompt-check", "block", "--model", bare]
    assert kotoe(*asked, "--guidance-scale", "0.5").code == BLOCKED
    assert kotoe(*asked, "--guidance-scale", "2").code == 0


def test_a_translation_is_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt in a language that the list lacks, read as English."""
    translation = TranslationRecord(
        translator="t", translator_sha256="0", source="fr", target="en", source_code="fr", target_code="en", beams=1,
        prompt="a naked woman", negative_prompt="",
    )  # fmt: skip
    job = Job(prompt="une femme sans voile", language="en", language_source="asked", seed=0, translation=translation)
    bundle = tiny_bundle()
    request = resolve(bundle, Request(prompt=job.prompt, language="en"))
    guard = Guard(Checks(), bundle)
    assert not guard.blocks(request, [job])
    verdict = guard.prompts[job.prompt]
    assert [one.written for one in verdict.found] == ["naked"]
    assert "“naked” in the prompt: sexual content" in capsys.readouterr().err
    assert Guard(Checks(prompt_check="block"), bundle).blocks(request, [job])


def test_preprocessing_of_a_checkers_own_size(checker: ImageChecker) -> None:
    assert checker.preprocessing == Preprocessing(shortest_edge=EDGE_PX, crop=EDGE_PX)
    assert checker.preprocessing(photos(1)[0]).shape == (1, 3, EDGE_PX, EDGE_PX)
