"""LoRA and textual inversion files: the latents that stock diffusers with peft ends at, given the same random files.

The stock side is called as its users call it: StableDiffusionPipeline, load_lora_weights, set_adapters,
load_textual_inversion. Its files are read there by its own converters, and written by its own functions where it has
them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from adapters import ATTENTION, Factors, factors, lora_file, vectors
from kotoe.checkpoints import Bundle, load, lora, save
from kotoe.checkpoints.embeddings import Embedding, with_embeddings
from kotoe.checkpoints.lora import Lora, with_loras
from stock import our_latents, stock, stock_latents
from tiny import apart, tiny_bundle

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*peft_config.*:UserWarning"
)

TOLERANCE = 3e-4  # of the largest latent, where 1e-3 is promised


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tiny_bundle(request.param)
    schedule = replace(bundle.schedule, sampler="ddim", timestep_spacing="trailing", set_alpha_to_one=True)
    return save(bundle.changed(schedule=schedule), tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def base(folder: Path) -> Bundle:
    return load(folder, dtype="float32")


def stock_with(folder: Path, *files: tuple[Path, float]) -> StableDiffusionPipeline:
    pipe = stock(folder)
    for file, _ in files:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=file.stem, local_files_only=True)
    pipe.set_adapters([file.stem for file, _ in files], [weight for _, weight in files])
    return pipe


# --- LoRA


@pytest.mark.parametrize("naming", ["peft", "flat", "down", "processor", "kohya"])
def test_lora_of_attention_in_every_naming(naming: str, folder: Path, base: Bundle, tmp_path: Path) -> None:
    unet = factors(base.unet, rank=3, seed=1)
    text = factors(base.conditioner().encoder, rank=2, seed=2)
    file = lora_file(tmp_path / f"{naming}.safetensors", naming, unet, text)
    expected = stock_latents(stock_with(folder, (file, 0.7)))
    adapted = with_loras(base, [Lora(file=file, weight=0.7)])
    assert apart(our_latents(adapted), expected) < TOLERANCE
    # the faults: another weight, a lost part, factors the wrong way round, the base
    for fault in (
        with_loras(base, [Lora(file=file, weight=0.77)]),
        with_loras(base, [Lora(file=file, weight=0.7)], text=False),
        with_loras(base, [Lora(file=file, weight=-0.7)]),
        base,
    ):
        assert apart(our_latents(fault), expected) > 10 * TOLERANCE


def everything(module: str) -> bool:
    return True


def test_kohya_file_with_convolutions_and_an_alpha_for_each_module(folder: Path, base: Bundle, tmp_path: Path) -> None:
    """LoCon: 3 x 3 convolutions, those of up- and downsamplers, 1 x 1 ones, time projections, feed-forward layers."""
    unet = factors(base.unet, rank=4, seed=3, keep=everything)
    text = factors(base.conditioner().encoder, rank=4, seed=4, keep=everything, size=0.1)
    alphas = {m: 4.0 if m.endswith(ATTENTION) else 0.5 + k % 3 for k, m in enumerate(unet)} | dict.fromkeys(text, 2.0)
    file = lora_file(tmp_path / "locon.safetensors", "kohya", unet, text, alpha=alphas)
    assert any(a.shape[2:] == (3, 3) for a, _ in unet.values())
    assert any(a.shape[2:] == (1, 1) for a, _ in unet.values())
    pipe = stock_with(folder, (file, 0.5))
    expected = stock_latents(pipe)
    assert apart(our_latents(with_loras(base, [Lora(file=file, weight=0.5)])), expected) < TOLERANCE
    # the fault: the alpha of one module
    off = lora_file(tmp_path / "off.safetensors", "kohya", unet, text, alpha=alphas | {next(iter(unet)): 3.0})
    assert apart(our_latents(with_loras(base, [Lora(file=off, weight=0.5)])), expected) > 10 * TOLERANCE


def test_two_at_once_with_different_weights(folder: Path, base: Bundle, tmp_path: Path) -> None:
    encoder = base.conditioner().encoder
    one = lora_file(
        tmp_path / "one.safetensors", "kohya", factors(base.unet, seed=5), factors(encoder, seed=6), alpha=2.0
    )
    two = lora_file(
        tmp_path / "two.safetensors", "peft", factors(base.unet, rank=2, seed=7), factors(encoder, rank=2, seed=8)
    )
    expected = stock_latents(stock_with(folder, (one, 0.8), (two, -0.6)))
    both = [Lora(file=one, weight=0.8), Lora(file=two, weight=-0.6)]
    assert apart(our_latents(with_loras(base, both)), expected) < TOLERANCE
    swapped = [Lora(file=one, weight=-0.6), Lora(file=two, weight=0.8)]
    for fault in (both[:1], both[1:], swapped):
        assert apart(our_latents(with_loras(base, fault)), expected) > 10 * TOLERANCE


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_file_that_diffusers_wrote_with_its_settings(
    rslora: bool, folder: Path, base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """alpha stands in the file's head then, for all modules, and for some otherwise."""
    pipe = stock(folder)
    torch.manual_seed(11)
    shared: dict[str, Any] = {"init_lora_weights": False, "use_rslora": rslora, "lora_alpha": 2.0}
    pipe.unet.add_adapter(
        LoraConfig(
            r=4,
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"],
            rank_pattern={"attn1.to_q": 2},
            alpha_pattern={"attn2.to_k": 5.0},
            **shared,
        )
    )
    pipe.text_encoder.add_adapter(
        LoraConfig(r=3, target_modules=["q_proj", "fc1"], alpha_pattern={"fc1": 0.5}, **shared)
    )
    expected = stock_latents(pipe)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        **_collate_lora_metadata(parts),
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        assert LORA_ADAPTER_METADATA_KEY in opened.metadata()
        assert LORA_ADAPTER_METADATA_KEY == lora.SETTINGS
    assert apart(our_latents(with_loras(base, [Lora(file=file)])), expected) < TOLERANCE
    # the fault: nobody looks into the head
    monkeypatch.setattr(lora, "SETTINGS", "another key")
    assert apart(our_latents(with_loras(base, [Lora(file=file)])), expected) > 10 * TOLERANCE


def with_peft(pipe: StableDiffusionPipeline, part: str, made: Factors, alphas: dict[str, float]) -> None:
    """Put the factors into a part of the pipeline by peft alone, which is told each module's alpha."""
    net = getattr(pipe, part)
    names = {module: module.removeprefix("text_model.") for module in made}
    told = {names[module]: alphas[module] for module in made}
    net.add_adapter(LoraConfig(r=4, lora_alpha=4.0, target_modules=list(told), alpha_pattern=told))
    state = net.state_dict()
    for module, both in made.items():
        for which, factor in zip("AB", both, strict=True):
            state[f"{names[module]}.lora_{which}.default.weight"].copy_(factor)


def test_an_alpha_for_each_attention_module_is_kept_where_stock_loses_them(
    folder: Path, base: Bundle, tmp_path: Path
) -> None:
    """Of kohya's attention modules diffusers can't tell whose alpha is whose, and takes the commonest one for all; peft
    alone, told each, agrees with us. A release of diffusers that tells them apart fails here."""
    unet = factors(base.unet, rank=4, seed=9)
    text = factors(base.conditioner().encoder, rank=4, seed=10)
    alphas = {module: 1.0 + k % 5 for k, module in enumerate((*unet, *text))}
    file = lora_file(tmp_path / "kohya.safetensors", "kohya", unet, text, alpha=alphas)
    adapted = our_latents(with_loras(base, [Lora(file=file)]))
    pipe = stock(folder)
    with_peft(pipe, "unet", unet, alphas)
    with_peft(pipe, "text_encoder", text, alphas)
    assert apart(adapted, stock_latents(pipe)) < TOLERANCE
    with pytest.warns(RuntimeWarning, match="alpha_pattern keys did not match any"):
        mixed = stock_with(folder, (file, 1.0))
    assert apart(adapted, stock_latents(mixed)) > 10 * TOLERANCE


# --- Textual inversion


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin", "a1111", "emb_params"])
def test_textual_inversion(form: str, n: int, folder: Path, base: Bundle, tmp_path: Path) -> None:
    made = vectors(n, 32, seed=n)
    token, pickled = "<toy>", form in ("bin", "a1111")
    named = None if form != "emb_params" else "my-toy"
    if form == "safetensors":
        save_file({token: made if n > 1 else made[0]}, tmp_path / "learned_embeds.safetensors")
    elif form == "bin":
        torch.save({token: made if n > 1 else made[0]}, tmp_path / "learned_embeds.bin")
    elif form == "a1111":
        beside = {"step": 99, "sd_checkpoint": "0123", "sd_checkpoint_name": "m"}
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": made}, "name": token, **beside}
        torch.save(content, tmp_path / "toy.pt")
    else:
        token = "my-toy"
        save_file({"emb_params": made}, tmp_path / "my-toy.safetensors")
    (file,) = tmp_path.iterdir()
    pipe = stock(folder)
    pipe.load_textual_inversion(str(tmp_path), weight_name=file.name, token=named, local_files_only=True)
    prompt = f"a {token} on a red {token if n > 1 else token.upper()}, it's"
    expected = stock_latents(pipe, prompt=prompt)
    adapted = with_embeddings(base, [Embedding(file=file)], allow_pickle=pickled)
    assert apart(our_latents(adapted, prompt=prompt), expected) < TOLERANCE
    ids = adapted.conditioner().tokenizer.text_ids([prompt])[0]
    assert ids == pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids[1:-1]
    # the faults: the base, which spells the word; other vectors; the word elsewhere
    assert apart(our_latents(base, prompt="a toy on a red toy, it's"), expected) > 10 * TOLERANCE
    save_file({token: vectors(n, 32, seed=50)}, tmp_path / "other.safetensors")
    other = with_embeddings(base, [Embedding(file=tmp_path / "other.safetensors")])
    assert apart(our_latents(other, prompt=prompt), expected) > 10 * TOLERANCE
    assert apart(our_latents(adapted, prompt=f"a red {token} on a {token}, it's"), expected) > 10 * TOLERANCE


def test_a_word_of_several_vectors_has_them_all_in_upper_case_too(folder: Path, base: Bundle, tmp_path: Path) -> None:
    """diffusers writes the further tokens into the prompt where it finds the word as it is spelt in the file, and reads
    <TOY> as the first vector alone. One vector means the same in either case there too (above)."""
    file = tmp_path / "toy.safetensors"
    save_file({"<toy>": vectors(3, 32, seed=3)}, file)
    adapted = with_embeddings(base, [Embedding(file=file)])
    upper, lower = our_latents(adapted, prompt="a <TOY>"), our_latents(adapted, prompt="a <toy>")
    pipe = stock(folder)
    pipe.load_textual_inversion(str(tmp_path), weight_name=file.name, local_files_only=True)
    assert torch.equal(upper, lower)
    assert apart(lower, stock_latents(pipe, prompt="a <toy>")) < TOLERANCE
    assert apart(upper, stock_latents(pipe, prompt="a <TOY>")) > 10 * TOLERANCE


def test_words_and_loras_together(folder: Path, base: Bundle, tmp_path: Path) -> None:
    save_file({"<a>": vectors(2, 32, seed=1)}, tmp_path / "a.safetensors")
    save_file({"<b>": vectors(1, 32, seed=2)}, tmp_path / "b.safetensors")
    file = lora_file(
        tmp_path / "lora.safetensors",
        "kohya",
        factors(base.unet, seed=3),
        factors(base.conditioner().encoder, seed=4),
        alpha=3.0,
    )
    pipe = stock_with(folder, (file, 0.9))
    for name in ("a", "b"):
        pipe.load_textual_inversion(str(tmp_path), weight_name=f"{name}.safetensors", local_files_only=True)
    prompt = "<b> <a>, a cat<a>"
    expected = stock_latents(pipe, prompt=prompt)
    embedded = with_embeddings(base, [Embedding(file=tmp_path / f"{name}.safetensors") for name in ("a", "b")])
    adapted = with_loras(embedded, [Lora(file=file, weight=0.9)])
    assert apart(our_latents(adapted, prompt=prompt), expected) < TOLERANCE
    for fault in (embedded, with_loras(base, [Lora(file=file, weight=0.9)])):
        assert apart(our_latents(fault, prompt=prompt), expected) > 10 * TOLERANCE
