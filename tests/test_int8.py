"""int8 layers against the same in float32, and pictures drawn by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe import engine, int8
from kotoe.config import Request
from kotoe.drawing import generate, replay, resolve
from kotoe.engine import FastUNet
from kotoe.errors import UserError
from kotoe.images import differences
from kotoe.int8 import Conv8, Linear8, Quantized, quantized
from kotoe.rng import generator
from kotoe.unet import UNet
from test_engine import SPECS, both, inputs
from tiny import seeded, tiny_bundle

ERROR = 0.015  # of the result's length, for one layer of random numbers; measured 0.008 to 0.011


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def products(x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(found, exact) of every way of calling both kinds of layer. x (2, 32, 9, 7)."""
    weight, bias, other = random(48, 32, 3, 3, seed=2) / 17, random(48, seed=3), random(2, 48, 9, 7, seed=4)
    conv, exact = Conv8(weight, bias, padding=1), F.conv2d(x, weight, bias, padding=1)
    flat, dense, row = x.permute(0, 2, 3, 1).flatten(1, 2), random(24, 32, seed=5) / 6, random(24, seed=6)
    linear, said, gate = Linear8(dense, row), F.linear(flat, dense, row), random(2, 63, 24, seed=7)
    return {
        "conv": (conv(x), exact),
        "conv of another bias": (conv(x, bias + 1), exact + 1),
        "conv and relu": (conv(x, after="relu"), exact.relu()),
        "conv and sum": (conv.plus(x, other), exact + other),
        "conv, sum and relu": (conv.plus(x, other, after="relu"), (exact + other).relu()),
        "conv onto": (conv.onto(x, other.clone()), exact + other),
        "halving": (Conv8(weight, bias, padding=1, stride=2)(x), F.conv2d(x, weight, bias, padding=1, stride=2)),
        "linear": (linear(flat), said),
        "linear and gelu": (linear.gelu(flat, "none"), F.gelu(said)),
        "linear and tanh gelu": (linear.gelu(flat, "tanh"), F.gelu(said, approximate="tanh")),
        "linear and sum": (linear.plus(flat, gate), said + gate),
        "linear and product": (linear.times(linear.read(flat), gate), said * gate),
    }


def given() -> Tensor:
    """What a layer reads: SiLU's range, far from even about 0."""
    return F.silu(random(2, 32, 9, 7)).contiguous(memory_format=torch.channels_last)


def test_layers_answer_as_in_float32() -> None:
    for name, (found, exact) in products(given()).items():
        assert found.shape == exact.shape, name
        assert off(found, exact) < ERROR, name


def no_zero(x: Tensor) -> Quantized:
    q = quantized(x)
    return Quantized(q.values, q.scale, 1)


def one_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 127
    return (weight / scale).round().to(torch.int8), scale.expand(len(weight)).contiguous() * 1.05


@pytest.mark.parametrize(
    ("name", "fault"), [("quantized", no_zero), ("levels", one_scale)], ids=["no shift", "wrong scale"]
)
def test_a_fault_shows(name: str, fault: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, name, fault)
    assert max(off(*pair) for pair in products(given()).values()) > 2 * ERROR


@pytest.mark.parametrize("x", [random(3, 4), random(3, 4).abs(), -random(3, 4).abs() - 1, torch.zeros(3, 4)])
def test_every_range_keeps_zero_and_its_ends(x: Tensor) -> None:
    q = quantized(x)
    back = (q.values.float() - q.zero) * q.scale
    assert float((back - x).abs().max()) <= 0.51 * q.scale
    assert 1 <= q.zero <= 255
    assert quantized(q) is q


def test_nan_stays_nan() -> None:
    conv = Conv8(random(4, 4, 3, 3), torch.zeros(4), padding=1)
    assert conv(torch.full((1, 4, 3, 3), torch.nan)).isnan().all()


@pytest.mark.parametrize("name", SPECS)
def test_a_unet_in_int8_is_near_the_exact_one(name: str) -> None:
    """Near, and not the same: 2 to 5 % of the prediction for random weights."""
    net = UNet(SPECS[name]).requires_grad_(False)
    seeded(net, 3)
    found, exact = both(net, engine.of(net, int8=True), (16, 16))
    assert 1e-3 < off(found, exact) < 0.1


def test_both_engines_of_one_network_are_told_apart() -> None:
    net = UNet(SPECS["sd2"]).requires_grad_(False)
    exact, coarse = engine.of(net), engine.of(net, int8=True)
    assert isinstance(coarse, FastUNet)
    assert exact is not coarse
    x, context = inputs(SPECS["sd2"], (8, 8))
    rows = net.time_table(torch.tensor([10.0])).at(0)
    with torch.inference_mode():
        assert not torch.equal(*(u(x, rows, u.text_kv(context)) for u in (exact, coarse)))


def test_a_picture_in_int8_is_recorded_and_drawn_again_to_the_bit() -> None:
    bundle = tiny_bundle("sd1")
    exact = generate(bundle, Request(prompt="a red cat"))[0]
    coarse = generate(bundle, Request(prompt="a red cat", engine="int8"))[0]
    assert coarse.record.engine == "int8"
    assert differences(exact.image, coarse.image)[0] > 0
    assert differences(replay(bundle, coarse.record).image, coarse.image)[0] == 0


@pytest.mark.parametrize("usual", [None, 16], ids=["", "of the model"])
def test_pictures_in_int8_are_drawn_one_at_a_time(usual: int | None) -> None:
    """Beside others they would be other pictures, and a replay, which doesn't know the others, could not draw them."""
    bundle = tiny_bundle("sd1")
    bundle = replace(bundle, defaults=replace(bundle.defaults, batch_size=usual))
    asked = Request(prompt=("a red cat", "a dog"), n=2, language="en", engine="int8", steps=2)
    assert resolve(bundle, asked).batch_size == 1
    for picture in generate(bundle, asked):
        assert differences(replay(bundle, picture.record).image, picture.image)[0] == 0
    assert resolve(bundle, replace(asked, batch_size=1)).batch_size == 1
    with pytest.raises(UserError, match="batch_size 2 with engine int8.*hang on the others.*engine fast"):
        resolve(bundle, replace(asked, batch_size=2))


def test_int8_is_refused_where_there_is_no_engine() -> None:
    bundle = tiny_bundle("sd1")
    half = bundle.changed(unet=bundle.unet.to(torch.float16), vae=bundle.vae.to(torch.float16))
    with pytest.raises(UserError, match="int8 with cpu in float16.*float32 or bfloat16"):
        resolve(half, Request(prompt="a", engine="int8"))
