"""LoRAs: what fits is folded in and nothing else is touched; what doesn't fit is refused by name.

That the result is the right one is shown against diffusers and peft: parity/test_adapters_diffusers.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import seeds
from adapters import ATTENTION, NAMINGS, factors, lora_file, lora_tensors
from kotoe.checkpoints import Bundle, load, lora, save
from kotoe.checkpoints.adapters import with_adapters
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.files import skeleton, tensors_sha256
from kotoe.checkpoints.lora import Lora, place_of, targets, with_loras
from kotoe.config import Request
from kotoe.drawing import generate, replay
from kotoe.errors import CheckpointError, UserError
from kotoe.recording import check_same, model_record
from kotoe.spec import UNetSpec
from kotoe.unet import UNet
from tiny import saved_tiny, tiny_bundle, tiny_conditioner


@pytest.fixture(scope="module")
def base() -> Bundle:
    return tiny_bundle("sd1", languages=("en", "ja"))


@pytest.fixture
def file(base: Bundle, tmp_path: Path) -> Path:
    """UNet and text encoder, in kohya's form."""
    unet, text = factors(base.unet, seed=1), factors(base.conditioner().encoder, seed=2)
    return lora_file(tmp_path / "style.safetensors", "kohya", unet, text, alpha=2.0)


def states(bundle: Bundle, language: str, words: str) -> Tensor:
    return bundle.conditioner(language).encode([words]).states


def pixels(bundle: Bundle, prompt: str, language: str) -> bytes:
    return generate(bundle, Request(prompt=prompt, language=language, seed=3))[0].image.tobytes()


# --- Names


@pytest.mark.parametrize("linear", [False, True], ids=["sd1", "sd2"])
def test_every_naming_leads_to_the_module_it_is_of(linear: bool) -> None:
    """Of all modules of a published UNet, and of a text encoder; no two have one name with _ for the dots."""
    unet = skeleton(lambda: UNet(UNetSpec(use_linear_projection=linear)))
    known = targets(unet)
    assert len(known) == len({name for name, _ in known.values()}) == 282
    attention = [name for name, _ in known.values() if name.endswith(ATTENTION)]
    assert len(attention) == 128
    text = [name for name, _ in targets(tiny_bundle().conditioner().encoder).values()]
    for naming, (of_unet, of_text) in NAMINGS.items():
        old = naming == "processor"
        for name in attention if old else [name for name, _ in known.values()]:
            part, module, role = place_of(f"{of_unet(name)}.weight") or ("", "", "")
            assert (part, known[module.replace(".", "_")][0], role) == ("unet", name, "A")
        for name in text:
            if not old or name.endswith(ATTENTION):
                part, module, role = place_of(f"{of_text(name)}.weight") or ("", "", "")
                assert (part, module.replace(".", "_"), role) == ("text_encoder", name.replace(".", "_"), "A")


def test_attention_processors_saved_alone_have_no_prefix(base: Bundle, tmp_path: Path) -> None:
    unet = factors(base.unet, seed=1)
    whole = lora_file(tmp_path / "whole.safetensors", "processor", unet)
    bare = {name.removeprefix("unet."): t for name, t in load_file(whole).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    one, two = (with_loras(base, [Lora(file=tmp_path / f"{x}.safetensors")]) for x in ("whole", "bare"))
    assert tensors_sha256(one.unet) == tensors_sha256(two.unet) != tensors_sha256(base.unet)


# --- Folding


def test_the_loaded_bundle_stays_as_it_is(base: Bundle, file: Path) -> None:
    before = [tensors_sha256(m) for m in (base.unet, base.vae, base.conditioner().encoder)]
    adapted = with_loras(base, [Lora(file=file, weight=0.8)])
    assert [tensors_sha256(m) for m in (base.unet, base.vae, base.conditioner().encoder)] == before
    assert tensors_sha256(adapted.unet) != before[0]
    assert tensors_sha256(adapted.conditioner().encoder) != before[2]
    assert adapted.vae is base.vae
    # no copy of what isn't changed
    ours, theirs = dict(base.unet.named_parameters()), dict(adapted.unet.named_parameters())
    changed = {name for name in ours if ours[name] is not theirs[name]}
    assert changed == {f"{name}.weight" for name, _ in targets(base.unet).values() if name.endswith(ATTENTION)}


def test_weight_zero_is_the_base_to_the_bit(base: Bundle, file: Path) -> None:
    adapted = with_loras(base, [Lora(file=file, weight=0)])
    assert tensors_sha256(adapted.unet) == tensors_sha256(base.unet)
    assert pixels(adapted, "a red cat", "en") == pixels(base, "a red cat", "en")
    assert pixels(with_loras(base, [Lora(file=file)]), "a red cat", "en") != pixels(base, "a red cat", "en")
    assert adapted.adapters[0].weight == 0.0


def test_it_is_summed_in_float32_and_rounded_once(tmp_path: Path) -> None:
    """Two changes that bfloat16 would each lose, or round twice."""
    folder = saved_tiny(tmp_path / "m")
    exact, rounded = load(folder, dtype="float32"), load(folder, dtype="bfloat16")
    made = [factors(exact.unet, seed=k, size=0.002) for k in (1, 2)]
    files = [lora_file(tmp_path / f"{k}.safetensors", "peft", m) for k, m in enumerate(made)]
    adapted = with_loras(rounded, [Lora(file=f) for f in files])
    for module in made[0]:
        weight = rounded.unet.get_submodule(module).weight
        (a, b), (c, d) = (m[module] for m in made)
        expected = (weight.float() + b @ a + d @ c).bfloat16()
        found = adapted.unet.get_submodule(module).weight
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)
        apart = weight + (b @ a).bfloat16() + (d @ c).bfloat16()
        assert not torch.equal(found, apart)  # the fault: rounded after each


def test_all_loras_are_given_at_once(base: Bundle, file: Path) -> None:
    with pytest.raises(UserError, match="has LoRAs already"):
        with_loras(with_loras(base, [Lora(file=file)]), [Lora(file=file)])
    assert with_loras(base, []) is base


def test_one_by_one_convolutions_and_linear_layers_are_the_same(tmp_path: Path) -> None:
    """kohya's trainer makes convolutions of SD 2.x's linear projections."""
    bundle = tiny_bundle("sd2")
    proj = factors(bundle.unet, seed=1, keep=lambda m: "proj_in" in m)
    plain = lora_file(tmp_path / "plain.safetensors", "kohya", proj)
    convolved = {m: (a[:, :, None, None], b[:, :, None, None]) for m, (a, b) in proj.items()}
    other = lora_file(tmp_path / "conv.safetensors", "kohya", convolved)
    one, two = (with_loras(bundle, [Lora(file=f)]) for f in (plain, other))
    assert tensors_sha256(one.unet) == tensors_sha256(two.unet) != tensors_sha256(bundle.unet)


def test_low_memory_and_other_numerics_draw_it_too(tmp_path: Path) -> None:
    folder = saved_tiny(tmp_path / "m", languages=("en", "ja"))
    whole, pieces = (load(folder, dtype="float32", low_memory=x) for x in (False, True))
    unet, text = factors(whole.unet, seed=1), factors(whole.conditioner().encoder, seed=2)
    file = lora_file(tmp_path / "a.safetensors", "kohya", unet, text)
    drawn = pixels(with_loras(whole, [Lora(file=file)]), "a red cat", "en")
    adapted = with_loras(pieces, [Lora(file=file)])
    assert adapted.unet.mid_block.attentions[0].transformer_blocks[0].attn1.sliced
    assert pixels(adapted, "a red cat", "en") == drawn != pixels(whole, "a red cat", "en")
    request = Request(prompt="a red cat", numerics="kerascv", sampler="ddim", grid="trailing", seed=3)
    other = [generate(b, request)[0].image.tobytes() for b in (adapted, whole)]
    assert other[0] != other[1]


def test_it_is_saved_as_part_of_the_weights(base: Bundle, file: Path, tmp_path: Path) -> None:
    adapted = with_loras(base, [Lora(file=file)])
    again = load(save(adapted, tmp_path / "m"), dtype="float32")
    assert again.adapters == ()
    assert pixels(again, "a red cat", "en") == pixels(adapted, "a red cat", "en")


# --- Languages


def test_the_text_part_is_for_one_language_and_the_unet_part_for_all(base: Bundle, file: Path) -> None:
    adapted = with_loras(base, [Lora(file=file)])
    assert not torch.equal(states(adapted, "en", "a red cat"), states(base, "en", "a red cat"))
    assert adapted.conditioner("ja").encoder is base.conditioner("ja").encoder
    assert pixels(adapted, "猫", "ja") != pixels(base, "猫", "ja")
    japanese = with_loras(base, [Lora(file=file)], language="ja")
    assert japanese.conditioner("en").encoder is base.conditioner("en").encoder
    assert not torch.equal(states(japanese, "ja", "猫"), states(base, "ja", "猫"))
    without = with_loras(base, [Lora(file=file)], text=False)
    assert without.conditioner("en").encoder is base.conditioner("en").encoder
    assert [b.adapters[0].language for b in (adapted, japanese, without)] == ["en", "ja", None]


def test_languages_that_share_an_encoder_share_its_text_part(tmp_path: Path) -> None:
    one, other = tiny_conditioner("ja", 32, seed=5), tiny_conditioner("zh", 32, seed=6)
    conditioners = {"ja": one, "ko": replace(one, language="ko"), "zh": other}
    folder = save(tiny_bundle().changed(conditioners=conditioners, default_language="ja"), tmp_path / "m")
    bundle = load(folder, dtype="float32")
    file = lora_file(tmp_path / "t.safetensors", "peft", None, factors(one.encoder, seed=2))
    adapted = with_loras(bundle, [Lora(file=file)])
    assert set(adapted.conditioners.loaded) <= {"ja"}  # type: ignore[attr-defined]
    assert adapted.conditioner("ja").encoder is adapted.conditioner("ko").encoder
    assert adapted.conditioner("ko").language == "ko"
    assert adapted.conditioner("zh").encoder is bundle.conditioner("zh").encoder
    assert adapted.tokenizer("ko") is adapted.tokenizer("ja") is bundle.tokenizer("ja")


def test_a_text_part_for_another_kind_of_encoder_is_refused(tmp_path: Path) -> None:
    bundle = load(seeds.taiyi(tmp_path / "taiyi"), dtype="float32")
    (tag,) = bundle.languages
    clip = tiny_bundle().conditioner().encoder
    file = lora_file(tmp_path / "a.safetensors", "peft", factors(bundle.unet, seed=1), factors(clip, seed=2))
    with pytest.raises(UserError, match=f"CLIP's text encoder, that of {tag} is another kind.*--no-lora-text"):
        with_loras(bundle, [Lora(file=file)])
    assert with_loras(bundle, [Lora(file=file)], text=False).conditioner().encoder is bundle.conditioner().encoder


def test_options_that_nothing_uses_are_refused(base: Bundle, tmp_path: Path) -> None:
    unet = lora_file(tmp_path / "u.safetensors", "peft", factors(base.unet))
    text = lora_file(tmp_path / "t.safetensors", "peft", None, factors(base.conditioner().encoder))
    with pytest.raises(UserError, match="adapter language en .* without anything for its text encoder"):
        with_adapters(base, [str(unet)], language="en")
    with pytest.raises(UserError, match="language 'xx'"):
        with_adapters(base, [str(unet), str(text)], language="xx")
    with pytest.raises(UserError, match="without a LoRA"):
        with_adapters(base, text=False)
    with pytest.raises(UserError, match="no part for the text encoder to leave out"):
        with_adapters(base, [str(unet)], text=False)
    with pytest.raises(UserError, match="t.safetensors has a part for the text encoder only"):
        with_adapters(base, [str(text)], text=False)


# --- What doesn't fit


def broken(tensors: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """The tensors, with those whose name ends so exchanged; None leaves one out."""
    made = dict(tensors)
    for end, value in changes.items():
        name = next(n for n in made if n.endswith(end.replace("__", ".")))
        if value is None:
            del made[name]
        else:
            made[name] = value
    return made


REFUSED = {
    "half a pair": ({"lora_up__weight": None}, "without the other factor"),
    "ranks that differ": ({"lora_up__weight": torch.ones(32, 3)}, "no pair of factors"),
    "three dimensions": ({"lora_down__weight": torch.ones(4, 32, 1)}, "no pair of factors"),
    "rank 0": ({"lora_down__weight": torch.ones(0, 32), "lora_up__weight": torch.ones(32, 0)}, "no pair of factors"),
    "a kernel in the second factor": ({"lora_up__weight": torch.ones(32, 4, 3, 3)}, "no pair of factors"),
    "other inputs": ({"lora_down__weight": torch.ones(4, 31)}, "1 of 32 modules don't fit the UNet"),
    "other outputs": ({"lora_up__weight": torch.ones(31, 4)}, "1 of 32 modules don't fit the UNet"),
    "NaN": ({"lora_down__weight": torch.full((4, 32), torch.nan)}, "holds NaN or infinity"),
    "infinity": ({"lora_up__weight": torch.full((32, 4), torch.inf)}, "holds NaN or infinity"),
    "alpha NaN": ({"alpha": torch.tensor(torch.nan)}, "alpha is nan. Allowed: a finite number"),
    "two alphas": ({"alpha": torch.ones(2)}, "alpha of shape .2."),
    "whole numbers": ({"lora_up__weight": torch.ones(32, 4, dtype=torch.int64)}, "holds I64"),
    "doubles": ({"lora_up__weight": torch.ones(32, 4, dtype=torch.float64)}, "holds F64"),
}


@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("case", list(REFUSED))
def test_a_broken_file_is_refused(case: str, weight: float, base: Bundle, tmp_path: Path) -> None:
    """At weight 0 too."""
    changes, reason = REFUSED[case]
    tensors = lora_tensors("kohya", factors(base.unet, seed=1), alpha=2.0)
    path = tmp_path / "bad.safetensors"
    save_file(broken(tensors, **changes), path)
    with pytest.raises(CheckpointError, match="bad.safetensors.*" + reason):
        with_loras(base, [Lora(file=path, weight=weight)])


ADDED = {
    "lora_unet_conv_in.hada_w1_a": "is LoHa",
    "lora_unet_conv_in.lokr_w1": "is LoKr",
    "lora_unet_conv_in.oft_diag": "is OFT",
    "lora_unet_conv_in.lora_mid.weight": "is a LoCon in Tucker form",
    "lora_unet_conv_in.dora_scale": "is DoRA",
    "unet.conv_in.lora_magnitude_vector.weight": "is DoRA",
    "lora_unet_conv_in.diff": "is a difference of whole weights",
    "lora_te1_text_model_x.lora_down.weight": "made for Stable Diffusion XL",
    "lora_te2_text_model_x.lora_down.weight": "made for Stable Diffusion XL",
    "text_encoder_2.text_model.x.lora_A.weight": "made for Stable Diffusion XL",
    "transformer.x.lora_A.weight": "UNet is a transformer",
    "base_model.model.conv_in.lora_A.weight": "peft alone",
    "unet.conv_in.weight": "unet.conv_in.weight of no naming",
    "conv_in.bias": "conv_in.bias of no naming",
    "lora_unet_conv_in.lora_A.bias": "of no naming",
    "lora_unet_a.b.lora_up.weight": "of no naming",
    "unet.conv_in_lora.down.weight": "of no naming",
    ".alpha": "of no naming",
    "lora_unet_conv_in.alpha": "without the other factor",
}


@pytest.mark.parametrize("name", list(ADDED))
def test_a_tensor_of_another_kind_is_refused_by_name(name: str, base: Bundle, tmp_path: Path) -> None:
    tensors = lora_tensors("kohya", factors(base.unet, seed=1), alpha=2.0)
    path = tmp_path / "other.safetensors"
    save_file({**tensors, name: torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=ADDED[name]):
        with_loras(base, [Lora(file=path)])


def test_a_lora_of_another_family_is_refused_with_what_it_is_of(base: Bundle, tmp_path: Path) -> None:
    """As SD 1.x's on SD 2.x: its text states have another width."""
    of_sd1 = skeleton(lambda: UNet(replace(base.unet.spec, cross_attention_dim=768)))
    file = lora_file(tmp_path / "sd1.safetensors", "kohya", factors(of_sd1, seed=1), alpha=1.0)
    with pytest.raises(CheckpointError) as caught:
        with_loras(base, [Lora(file=file)])
    said = str(caught.value)
    assert "sd1.safetensors: 8 of 32 modules don't fit the UNet of tiny-sd1: lora_unet_" in said
    assert "attn2_to_k.lora_down.weight [4, 768], [32, 4] for down_blocks.0.attentions.0" in said
    assert "Its sizes are those of Stable Diffusion 1.x" in said
    deeper = skeleton(lambda: UNet(replace(base.unet.spec, layers_per_block=2)))
    file = lora_file(tmp_path / "deep.safetensors", "peft", factors(deeper, seed=1))
    with pytest.raises(CheckpointError, match=r"no module for unet.down_blocks.0.attentions.1.* \(nearest: down_bl"):
        with_loras(base, [Lora(file=file)])
    wider = tiny_conditioner("en", 48).encoder
    file = lora_file(tmp_path / "text.safetensors", "peft", None, factors(wider, seed=1))
    with pytest.raises(CheckpointError, match="8 of 8 modules don't fit the text encoder of tiny-sd1, en"):
        with_loras(base, [Lora(file=file)])


def test_one_factor_under_two_names_is_refused(base: Bundle, tmp_path: Path) -> None:
    unet = factors(base.unet, seed=1)
    copied = {name: t.clone() for name, t in lora_tensors("peft", unet).items()}
    save_file(lora_tensors("kohya", unet) | copied, tmp_path / "twice.safetensors")
    with pytest.raises(CheckpointError, match="are the same factor of one module"):
        with_loras(base, [Lora(file=tmp_path / "twice.safetensors")])


def test_a_sum_that_the_dtype_cannot_hold_is_refused(base: Bundle, file: Path, tmp_path: Path) -> None:
    half = load(saved_tiny(tmp_path / "m"), dtype="float16")
    with pytest.raises(UserError, match=r"isn't finite with the LoRAs in it. Allowed: smaller weights"):
        with_loras(half, [Lora(file=file, weight=1e6)])


SETTINGS = {
    '{"unet.use_dora": true}': "unet.use_dora is True",
    '{"unet.bias": "all"}': "unet.bias is 'all'. Allowed: none",
    '{"unet.lora_alpha": "8"}': "unet.lora_alpha is '8'. Allowed: a finite number",
    '{"unet.lora_alpha": 1e999}': "Allowed: a finite number",
    '{"unet.lora_alpha": NaN}': "is not valid JSON",
    '{"unet.lora_alpha": 8, "unet.use_rslora": "yes"}': "unet.use_rslora is 'yes'",
    '{"unet.alpha_pattern": {"(a+)+$": 1.0}}': "Allowed: names of modules",
    '{"unet.alpha_pattern": [1]}': "Allowed: a table",
    "[": "is not valid JSON",
}


@pytest.mark.parametrize("text", list(SETTINGS))
def test_settings_that_are_not_understood_are_refused(text: str, base: Bundle, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "s.safetensors", "peft", factors(base.unet), metadata={lora.SETTINGS: text})
    with pytest.raises(CheckpointError, match="s.safetensors: .*" + SETTINGS[text].replace("[", r"\[")):
        with_loras(base, [Lora(file=file)])


def test_alpha_is_said_once(base: Bundle, tmp_path: Path) -> None:
    said = {lora.SETTINGS: '{"unet.lora_alpha": 8}'}
    file = lora_file(tmp_path / "s.safetensors", "peft", factors(base.unet), metadata=said, alpha=2.0)
    with pytest.raises(CheckpointError, match="alpha both as a tensor and in"):
        with_loras(base, [Lora(file=file)])


def test_an_alpha_may_be_a_whole_number_or_0(base: Bundle, tmp_path: Path) -> None:
    unet = factors(base.unet, seed=1)
    whole = {
        name: t.long() if name.endswith("alpha") else t for name, t in lora_tensors("kohya", unet, alpha=2.0).items()
    }
    save_file(whole, tmp_path / "whole.safetensors")
    one = lora_file(tmp_path / "one.safetensors", "kohya", unet, alpha=2.0)
    made = [with_loras(base, [Lora(file=f)]) for f in (tmp_path / "whole.safetensors", one)]
    assert tensors_sha256(made[0].unet) == tensors_sha256(made[1].unet)
    none = lora_file(tmp_path / "none.safetensors", "kohya", unet, alpha=0.0)
    assert tensors_sha256(with_loras(base, [Lora(file=none)]).unet) == tensors_sha256(base.unet)


def test_a_pickled_lora_is_read_when_asked_for(base: Bundle, tmp_path: Path) -> None:
    tensors = lora_tensors("processor", factors(base.unet, seed=1))
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    save_file(tensors, tmp_path / "same.safetensors")
    file = tmp_path / "pytorch_lora_weights.bin"
    with pytest.raises(CheckpointError, match="is a pickle, which can run any program"):
        with_loras(base, [Lora(file=file)])
    pickled = with_loras(base, [Lora(file=file)], allow_pickle=True)
    safe = with_loras(base, [Lora(file=tmp_path / "same.safetensors")])
    assert tensors_sha256(pickled.unet) == tensors_sha256(safe.unet)


@pytest.mark.parametrize("weight", ["abc", "", "1,5", "nan", "inf", "--1"])
def test_a_weight_that_is_no_number_is_refused(weight: str, file: Path) -> None:
    with pytest.raises(UserError, match=r"weight .* of the LoRA .*style.safetensors. Allowed:"):
        Lora.parse(f"{file}:{weight}")
    with pytest.raises(UserError, match="weight True"):
        Lora(file=file, weight=True)


def test_file_and_weight_in_one_text(file: Path, tmp_path: Path) -> None:
    assert Lora.parse(str(file)) == Lora(file=str(file), weight=1.0)
    assert Lora.parse(f"{file}:-0.5") == Lora(file=str(file), weight=-0.5)
    assert Lora.parse(f"{file}:0") == Lora(file=str(file), weight=0.0)
    odd = tmp_path / "a:2"
    odd.write_bytes(b"")
    assert Lora.parse(str(odd)) == Lora(file=str(odd))
    with pytest.raises(UserError, match="no file at nowhere.safetensors"):
        with_loras(tiny_bundle(), [Lora.parse("nowhere.safetensors:0.5")])


# --- Records


def test_hashes_stay_those_of_the_base_and_the_adapters_stand_beside_them(file: Path, tmp_path: Path) -> None:
    """Of files, and of a bundle made in memory."""
    for bundle in (tiny_bundle("sd1"), load(saved_tiny(tmp_path / "m"), dtype="float32")):
        adapted = with_loras(bundle, [Lora(file=file, weight=0.5)])
        assert model_record(adapted) == model_record(bundle)
        assert conditioner_hashes(adapted.conditioner()) == conditioner_hashes(bundle.conditioner())
        assert adapted.sha256 != bundle.sha256
        (record,) = adapted.adapters
        assert (record.name, record.kind, record.weight) == ("style.safetensors", "lora", 0.5)
        assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_replay_needs_the_same_adapters(base: Bundle, file: Path, tmp_path: Path) -> None:
    other = lora_file(tmp_path / "other.safetensors", "peft", factors(base.unet, seed=9))
    both = [Lora(file=file, weight=0.8), Lora(file=other, weight=-0.5)]
    adapted = with_loras(base, both)
    picture = generate(adapted, Request(prompt="a red cat", language="en", seed=3))[0]
    moved = file.rename(tmp_path / "moved.safetensors")
    again = with_loras(base, [replace(both[0], file=moved), both[1]])
    assert replay(again, picture.record).image.tobytes() == picture.image.tobytes()
    cases = {
        r"with the LoRA style.safetensors \(weight 0.8, text encoder of en, sha256 \w{12}\), which is missing. "
        "Give it by --lora FILE:0.8 --adapter-language en": both[1:],
        r"LoRA other.safetensors \(weight -0.5, .* differs here: LoRA other.safetensors \(weight -0.4,": [
            replace(both[0], file=moved),
            replace(both[1], weight=-0.4),
        ],
        "drawn without the LoRA other.safetensors .weight 1,": [
            replace(both[0], file=moved),
            both[1],
            replace(both[1], weight=1.0),
        ],
        "in another order": [both[1], replace(both[0], file=moved)],
    }
    for reason, loras in cases.items():
        loras = [replace(x, file=moved) if x.file == file else x for x in loras]
        with pytest.raises(UserError, match=reason):
            check_same(with_loras(base, loras), picture.record)
    with pytest.raises(UserError, match=r"LoRA style.safetensors .* which is missing"):
        check_same(base, picture.record)
    plain = generate(base, Request(prompt="a red cat", language="en", seed=3))[0]
    with pytest.raises(UserError, match=r"drawn without the LoRA moved.safetensors"):
        check_same(again, plain.record)
    other.write_bytes(lora_file(tmp_path / "x.safetensors", "peft", factors(base.unet, seed=10)).read_bytes())
    with pytest.raises(UserError, match=r"LoRA other.safetensors .* differs here: .* sha256"):
        check_same(with_loras(base, [replace(both[0], file=moved), both[1]]), picture.record)


def test_a_file_that_changes_while_it_is_read_is_refused(
    base: Bundle, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = lora.read

    def meanwhile(path: Path, *, allow_pickle: bool = False) -> lora.Contents:
        found = read(path, allow_pickle=allow_pickle)
        path.write_bytes(path.read_bytes() + b"\n")
        return found

    monkeypatch.setattr(lora, "read", meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        with_loras(base, [Lora(file=file)])


def test_what_with_adapters_takes(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    file = lora_file(tmp_path / "style.safetensors", "peft", factors(bundle.unet))
    by_path, by_text = with_adapters(bundle, [file]), with_adapters(bundle, [f"{file}:1.0"])
    assert by_path.adapters == by_text.adapters
    assert all(torch.equal(a, b) for a, b in zip(by_path.unet.parameters(), by_text.unet.parameters(), strict=True))
    for given in (str(file), file, 3):
        with pytest.raises(UserError, match="LoRAs as a .*Allowed: a list of LoRAs"):
            with_adapters(bundle, given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Lora as a tuple. Allowed: a text, a Path or a Lora"):
        with_adapters(bundle, [(str(file), 0.5)])  # type: ignore[list-item]
    with pytest.raises(UserError, match="weight 1000"):
        Lora(file=file, weight=10**400)
    with pytest.raises(UserError, match="is no file"):
        with_adapters(bundle, [tmp_path])
