"""The engine's networks against the plain ones: the same numbers in float32, no further from them in bfloat16."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kotoe import engine
from kotoe.checkpoints import Bundle, save
from kotoe.config import MAX_SEED, Request
from kotoe.drawing import Picture, generate, replay, resolve
from kotoe.engine import FastDecoder, FastText, FastTinyDecoder, FastUNet
from kotoe.errors import UserError
from kotoe.images import differences
from kotoe.rng import generator
from kotoe.spec import TextSpec, TinyVAESpec, UNetSpec, VAESpec
from kotoe.text import CLIPText
from kotoe.tiny_vae import TinyVAE
from kotoe.unet import UNet
from kotoe.vae import VAE
from tiny import apart, seeded, tiny_bundle

TOLERANCE = 1e-5  # of the largest value, in float32; observed 2e-6
SPECS = {
    "sd1": UNetSpec(
        block_out_channels=(32, 64, 64), cross_attention=(True, True, False), num_heads=(4, 2, 2),
        cross_attention_dim=24, norm_num_groups=8, sample_size=16,
    ),
    "sd2": UNetSpec(
        block_out_channels=(32, 64), cross_attention=(True, True), num_heads=(1, 2), cross_attention_dim=40,
        norm_num_groups=8, use_linear_projection=True, layers_per_block=1, sample_size=8,
    ),
    "inpainting": UNetSpec(
        in_channels=9, block_out_channels=(32, 64), cross_attention=(True, False), num_heads=(2, 2),
        cross_attention_dim=16, norm_num_groups=4, sample_size=8,
    ),
    "tanh": UNetSpec(
        block_out_channels=(32, 32), cross_attention=(True, True), num_heads=(2, 2), cross_attention_dim=16,
        norm_num_groups=4, gelu="tanh", transformer_norm_eps=1e-5,
    ),
}  # fmt: skip
VAE_SPEC = VAESpec(block_out_channels=(32, 64, 64), norm_num_groups=8, sample_size=32)


def inputs(spec: UNetSpec, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Noised latents of two pictures and their texts."""
    x = torch.randn(2, spec.in_channels, *size, generator=generator(1))
    return x.to(dtype), torch.randn(2, 11, spec.cross_attention_dim, generator=generator(2)).to(dtype)


@torch.inference_mode()
def both(net: UNet, fast: FastUNet, size: tuple[int, int] = (16, 16), at: Any = 1) -> tuple[Tensor, Tensor]:
    """(fast, plain) predictions."""
    x, context = inputs(net.spec, size, net.conv_in.weight.dtype)
    rows = net.time_table(torch.tensor([10.0, 500.0])).at(at)
    return fast(x, rows, fast.text_kv(context)), net(x, rows, net.text_kv(context))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (24, 8)])
@pytest.mark.parametrize("at", [1, torch.tensor([1, 0])], ids=["one step", "a step each"])
def test_the_unet(spec: str, size: tuple[int, int], at: Any) -> None:
    net = seeded(UNet(SPECS[spec]), 3)
    assert apart(*both(net, engine.of(net), size, at)) < TOLERANCE


@pytest.mark.parametrize("spec", ["sd1", "sd2", "plain first"])
def test_halves_that_are_the_same_are_computed_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As guidance has them: the same latents with two texts."""
    without = replace(SPECS["sd1"], cross_attention=(False, True, True))
    net = seeded(UNet({**SPECS, "plain first": without}[spec]), 3)
    fast, seen = engine.of(net), list[int]()
    convolve = engine.Conv.__call__
    monkeypatch.setattr(engine.Conv, "__call__", lambda *a, **k: (seen.append(len(a[1])), convolve(*a, **k))[1])
    (x, context), rows = inputs(net.spec, (16, 16)), net.time_table(torch.tensor([10.0])).at(0)
    with torch.inference_mode():
        for latents, first in ((x[:1].expand(2, -1, -1, -1), 1), (x, 2)):
            seen.clear()
            y = fast(latents, rows, fast.text_kv(context))
            assert apart(y, net(latents, rows, net.text_kv(context))) < TOLERANCE
            assert (seen[0], seen[-1]) == (first, 2)


@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
@torch.inference_mode()
def test_the_decoder(size: tuple[int, int]) -> None:
    net = seeded(VAE(VAE_SPEC), 3)
    z = torch.randn(2, 4, *size, generator=generator(1))
    assert apart(engine.of(net)(z), net.decode(z)) < TOLERANCE


def exchange(a: Any, b: str, c: str) -> None:
    first, second = getattr(a, b), getattr(a, c)
    setattr(a, b, second)
    setattr(a, c, first)


FAULTS: dict[str, Callable[[Any], None]] = {
    "no shortcut": lambda e: setattr(e.up[0].resnets[0], "shortcut", e.up[0].resnets[1].shortcut),
    "value for gate": lambda e: exchange(e.mid_transformer, "value", "gate"),
    "the other GELU": lambda e: setattr(e.mid_transformer, "approximate", "tanh"),
    "unscaled": lambda e: setattr(e.mid_transformer, "qkv", engine.Linear(torch.eye(64).repeat(3, 1), None)),
    "norms exchanged": lambda e: exchange(e.down[0].resnets[0], "norm1", "norm2"),
    "another level's text": lambda e: e.cross.reverse(),
    "a convolution's bias": lambda e: e.down[0].resnets[0].conv1.bias.mul_(1.01),
    "an upsampling's": lambda e: e.up[0].up[0].conv.bias.roll(1),
    "an upsampling's channels": lambda e: e.up[0].up[0].conv.bias.copy_(e.up[0].up[0].conv.bias.roll(1)),
}
HARMLESS = "an upsampling's"


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault: str) -> None:
    spec = UNetSpec(
        block_out_channels=(64, 64), cross_attention=(True, True), num_heads=(2, 2), cross_attention_dim=24,
        norm_num_groups=8, sample_size=16,
    )  # fmt: skip
    net = seeded(UNet(spec), 3)
    fast = FastUNet(net)
    with torch.inference_mode():
        FAULTS[fault](fast)
    found = apart(*both(net, fast))
    assert (found < TOLERANCE) == (fault == HARMLESS), found


@torch.inference_mode()
def test_an_upsampling_in_four_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = seeded(nn.Conv2d(8, 12, 3, padding=1), 5)
    x = torch.randn(2, 8, 5, 7, generator=generator(1)).contiguous(memory_format=torch.channels_last)
    plain = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    fast = engine.Upsample(conv)
    assert apart(fast(x), plain) < TOLERANCE
    phases = fast.conv.bias.view(4, -1)
    phases[1] += 0.01
    assert apart(fast(x), plain) > TOLERANCE


@torch.inference_mode()
def test_attention_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, 3, 50, 8, generator=generator(i)) for i in range(3))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    keys = (k * 8**-0.5).transpose(2, 3)
    assert apart(engine.attend(q, keys, v), plain) < TOLERANCE
    monkeypatch.setattr(engine, "WHOLE", 10)
    monkeypatch.setattr(engine, "QUERIES", 16)
    assert apart(engine.attend(q, keys, v), plain) < TOLERANCE
    assert apart(engine.attend(q, k.transpose(2, 3), v), plain) > 0.01


TINY_SPECS = {
    "taesd": TinyVAESpec(),
    "unequal": TinyVAESpec(
        latent_channels=8, encoder_block_out_channels=(16,) * 3, decoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(0,) * 3, num_decoder_blocks=(2, 0, 1), scaling_factor=4.0,
    ),
    "gelu": TinyVAESpec(act_fn="gelu", decoder_block_out_channels=(32,) * 4),
}  # fmt: skip


def tiny_of(name: str) -> TinyVAE:
    net = TinyVAE(TINY_SPECS[name]).requires_grad_(False)
    seeded(net, 4)
    return net


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
@pytest.mark.parametrize("name", TINY_SPECS)
def test_the_small_decoder(name: str, size: tuple[int, int]) -> None:
    net = tiny_of(name)
    z = torch.randn(2, net.spec.latent_channels, *size, generator=generator(3)) * 3
    with torch.inference_mode():
        assert apart(engine.of(net)(z), net.decode(z)) < TOLERANCE


@pytest.mark.parametrize("fault", ["a layer less", "no scaling", "no clamp"])
def test_faults_in_the_small_decoder_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_of("unequal")
    made = FastTinyDecoder(net)
    if fault == "a layer less":
        del made.layers[2]
    elif fault == "no scaling":
        made.scaling = 1.0
    z = torch.randn(1, 8, 4, 4, generator=generator(3)) * 12
    exact = net.decode(z)
    if fault == "no clamp":
        monkeypatch.setattr(engine.tiny, "CLAMP", 1e4)
    with torch.inference_mode():
        assert apart(made(z), exact) > 100 * TOLERANCE


TEXTS = {
    "sd1": TextSpec(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_layers=3, num_heads=4, max_tokens=16, bos=62, eos=63,
        pad=63, hidden_act="quick_gelu",
    ),
    "sd2": TextSpec(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_layers=3, num_heads=3, max_tokens=16, bos=62, eos=63,
        pad=0, hidden_act="gelu", layer=-2,
    ),
    "unfinished": TextSpec(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, max_tokens=8, bos=62, eos=63,
        pad=0, hidden_act="gelu_tanh", final_norm=False,
    ),
}  # fmt: skip


def text_of(name: str) -> CLIPText:
    net = CLIPText(TEXTS[name]).requires_grad_(False)
    seeded(net, 8)
    return net


@pytest.mark.parametrize("length", [5, 8])
@pytest.mark.parametrize("name", TEXTS)
def test_the_text_encoder(name: str, length: int) -> None:
    net = text_of(name)
    ids = torch.arange(2 * length).view(2, length)
    with torch.inference_mode():
        assert apart(engine.of(net)(ids), net(ids)) < TOLERANCE


@pytest.mark.parametrize("fault", ["another layer", "later words", "another activation"])
def test_faults_in_the_text_encoder_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = text_of("sd2")
    made = FastText(net)
    real = torch.nn.functional.scaled_dot_product_attention
    if fault == "another layer":
        made.layers.append(engine.TextLayer(net.text_model.encoder.layers[-1]))
    elif fault == "another activation":
        made.layers[0].activation = torch.nn.functional.silu
    ids = torch.arange(16).view(2, 8)
    exact = net(ids)
    if fault == "later words":
        monkeypatch.setattr(engine.F, "scaled_dot_product_attention", lambda q, k, v, **_: real(q, k, v))
    assert apart(made(ids), exact) > 100 * TOLERANCE


def test_texts_over_the_encoders_length_are_refused() -> None:
    with pytest.raises(UserError, match="9 tokens for an encoder of 8 positions"):
        engine.of(text_of("unfinished"))(torch.zeros(1, 9, dtype=torch.long))


def test_only_small_clip_encoders_are_laid_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.worth_it(text_of("sd1"))
    assert not engine.worth_it(text_of("sd1").half())
    assert not engine.worth_it(nn.Linear(2, 2))
    monkeypatch.setattr(engine, "LARGE_TEXT", 100)
    assert not engine.worth_it(text_of("sd1"))


@torch.inference_mode()
def test_bfloat16_is_no_further_from_float32_than_the_plain_networks() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 on this processor")
    spec = UNetSpec(
        block_out_channels=(64, 128), cross_attention=(True, True), num_heads=(2, 4), cross_attention_dim=64,
        norm_num_groups=32, sample_size=32,
    )  # fmt: skip
    errors = []
    for seed in range(4):
        net = seeded(UNet(spec), seed)
        _, exact = both(net, engine.of(net), (32, 32))
        net = net.to(torch.bfloat16)
        errors.append([float((y.float() - exact).norm() / exact.norm()) for y in both(net, engine.of(net), (32, 32))])
    fast, plain = torch.tensor(errors).mean(0).tolist()
    assert fast < 1.1 * plain, errors


# --- One engine for each network --------------------------------------------------------------------


def test_an_engine_is_made_once_and_anew_for_new_weights() -> None:
    net = seeded(UNet(SPECS["sd2"]), 3)
    first = engine.of(net)
    assert engine.of(net) is first
    with torch.no_grad():
        net.mid_block.resnets[0].conv1.weight.mul_(1.5)  # type: ignore[union-attr, operator]
    assert apart(*both(net, first)) > 1e-3
    assert apart(*both(net, engine.of(net))) < TOLERANCE


def test_an_engine_is_made_anew_for_another_weight_at_the_same_address() -> None:
    """As one comes to lie where the first was, when a weight is replaced twice between two pictures."""
    net = seeded(UNet(SPECS["sd2"]), 3)
    layer: Any = net.mid_block.resnets[0].conv1  # type: ignore[union-attr, index]
    place = layer.weight.detach().clone().numpy()
    layer.weight = nn.Parameter(torch.from_numpy(place), requires_grad=False)
    first, address = engine.of(net), layer.weight.data_ptr()
    place *= 3
    layer.weight = nn.Parameter(torch.from_numpy(place), requires_grad=False)
    assert (layer.weight.data_ptr(), layer.weight._version) == (address, 0)
    assert engine.of(net) is not first
    assert apart(*both(net, engine.of(net))) < TOLERANCE


def test_an_engine_is_made_anew_for_other_modules() -> None:
    net = UNet(SPECS["sd2"]).requires_grad_(False)
    seeded(net, 3)
    first = engine.of(net)
    attention = net.mid_block.attentions[0].transformer_blocks[0].attn1  # type: ignore[union-attr, index]
    attention.to_q, attention.to_v = attention.to_v, attention.to_q  # type: ignore[union-attr]
    assert engine.of(net) is not first
    assert apart(*both(net, engine.of(net))) < TOLERANCE


def test_an_engine_goes_with_its_network() -> None:
    net = seeded(VAE(VAE_SPEC), 3)
    made = weakref.ref(engine.of(net))
    assert isinstance(made(), FastDecoder)
    del net
    gc.collect()
    assert made() is None


def test_a_released_network_draws_the_same_and_holds_no_weights_twice() -> None:
    net, twin = seeded(UNet(SPECS["sd1"]), 3), seeded(UNet(SPECS["sd1"]), 3)
    before = sum(p.numel() for p in net.parameters())
    fast = engine.of(net, release=True)
    assert engine.of(net) is fast
    assert sum(p.numel() for p in net.parameters()) < 0.2 * before
    x, context = inputs(net.spec, (16, 16))
    with torch.inference_mode():
        rows = net.time_table(torch.tensor([10.0])).at(0)
        assert torch.equal(rows[0], twin.time_table(torch.tensor([10.0])).at(0)[0])
        assert apart(fast(x, rows, fast.text_kv(context)), twin(x, rows, twin.text_kv(context))) < TOLERANCE
        with pytest.raises(RuntimeError):
            net(x, rows, net.text_kv(context))


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("to", ["diffusers", "compvis", "kerascv"])
def test_a_released_network_is_not_saved(part: str, to: str, tmp_path: Path) -> None:
    bundle = tiny_bundle()
    engine.of(getattr(bundle, part), release=True)
    with pytest.raises(UserError, match="were let go of .* can only draw.*Load the model again"):
        save(bundle, tmp_path / "made", to=to)
    assert not list(tmp_path.iterdir())


def test_a_released_network_is_not_hashed() -> None:
    """As a record of a bundle without files would have it be."""
    bundle = tiny_bundle()
    engine.of(bundle.unet, release=True)
    with pytest.raises(UserError, match="the weights of this UNet were let go of"):
        generate(bundle, Request(prompt="a red cat", steps=2))


def test_dtypes_and_devices() -> None:
    net = UNet(SPECS["sd2"])
    assert engine.usable(net)
    assert not engine.usable(net.to(torch.float16))
    assert not engine.usable(UNet(SPECS["sd2"]).to("meta"))


# --- In pictures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


def one(bundle: Bundle, **asked: Any) -> Picture:
    return generate(bundle, Request(**{"prompt": "a red cat", "seed": 3, **asked}))[0]


def test_pictures_say_which_engine_drew_them_and_are_replayed_by_it(bundle: Bundle) -> None:
    fast, plain = one(bundle), one(bundle, engine="plain")
    assert (fast.record.engine, plain.record.engine) == ("fast", "plain")
    assert differences(fast.image, plain.image)[1] <= 1
    for picture in (fast, plain):
        again = replay(bundle, picture.record)
        assert again.image.tobytes() == picture.image.tobytes()
        assert again.record.engine == picture.record.engine


def test_a_replay_computes_as_many_pictures_in_every_layer_as_the_batch_did(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sizes round otherwise. Without guidance the halves of a batch are different pictures."""
    seen = list[int]()
    convolve = engine.Conv.__call__
    monkeypatch.setattr(engine.Conv, "__call__", lambda *a, **k: (seen.append(len(a[1])), convolve(*a, **k))[1])
    asked = Request(prompt="a red cat", seed=MAX_SEED - 3, n=4, batch_size=4, guidance_scale=1.0, steps=2)
    pictures, drawn = generate(bundle, asked), list(seen)
    assert set(drawn) == {4}
    for picture in pictures:
        seen.clear()
        assert replay(bundle, picture.record).image.tobytes() == picture.image.tobytes()
        assert seen == drawn


def test_a_replay_at_the_last_seed_has_companions_too(bundle: Bundle) -> None:
    asked = Request(prompt=("a red cat", "a dog"), language="en", seed=MAX_SEED, batch_size=2)
    for picture in generate(bundle, asked):
        assert replay(bundle, picture.record).image.tobytes() == picture.image.tobytes()


def test_where_there_is_no_engine_the_record_says_plain() -> None:
    bundle = tiny_bundle()
    assert resolve(bundle, Request(prompt="a")).engine == "fast"
    half = replace(bundle, unet=bundle.unet.to(torch.float16))
    assert resolve(half, Request(prompt="a")).engine == "plain"


# --- What a step costs --------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Operations, and bytes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not func.is_view:
            self.operations += 1
            self.bytes += made.numel() * made.element_size()
        return made


def test_a_step_takes_fewer_operations_and_less_memory_than_the_plain_one() -> None:
    """Counts don't depend on the machine's mood: these are for kotoe-emoji's UNet."""
    spec = UNetSpec(
        in_channels=32, out_channels=32, block_out_channels=(64, 128), layers_per_block=1, cross_attention=(True, True),
        num_heads=(2, 4), cross_attention_dim=192, sample_size=8,
    )  # fmt: skip
    net = seeded(UNet(spec), 3)
    fast = engine.of(net)
    counted = []
    with torch.inference_mode():
        x, context = inputs(spec, (8, 8))
        x = x.contiguous(memory_format=torch.channels_last)
        rows = net.time_table(torch.tensor([10.0])).at(0)
        for compute, kv in ((fast, fast.text_kv(context)), (net, net.text_kv(context))):
            with Counting() as count:
                compute(x, rows, kv)
            counted.append((count.operations, count.bytes))
    (fast_operations, fast_bytes), (operations, made_bytes) = counted
    assert fast_operations <= 0.9 * operations, counted
    assert fast_bytes <= 0.8 * made_bytes, counted
