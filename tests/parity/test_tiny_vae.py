"""TinyVAE against diffusers' AutoencoderTiny, the same random weights on both sides, float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

import kotoe.tiny_vae
from kotoe.checkpoints import tiny
from kotoe.spec import TinyVAESpec
from kotoe.tiny_vae import Block, TinyVAE
from tiny import apart, seeded

TOLERANCE = 1e-5  # of the output's scale; observed about 5e-7


def spec_of(widths: tuple[int, int], encoder: tuple[int, ...], decoder: tuple[int, ...], **more: object) -> TinyVAESpec:
    return TinyVAESpec(
        encoder_block_out_channels=(widths[0],) * len(encoder),
        decoder_block_out_channels=(widths[1],) * len(decoder),
        num_encoder_blocks=encoder,
        num_decoder_blocks=decoder,
        **more,  # type: ignore[arg-type]
    )


SPECS = {
    "as published, thinner": spec_of((8, 8), (1, 3, 3, 3), (3, 3, 3, 1)),
    "unequal blocks and widths": spec_of((8, 12), (2, 1, 3), (1, 0, 2), latent_channels=16),
    "five levels": spec_of((4, 8), (0, 0, 1, 0, 2), (2, 1, 1, 0, 0), latent_channels=32),
    "one level": spec_of((6, 6), (2,), (1,)),
    "silu, scaled": spec_of((8, 8), (1, 1), (1, 1), act_fn="silu", scaling_factor=0.3),
    "swish": spec_of((8, 8), (1, 1), (1, 1), act_fn="swish"),
    "mish": spec_of((8, 8), (1, 1), (2, 1), act_fn="mish", latent_magnitude=1.5, latent_shift=0.25),
    "gelu": spec_of((8, 8), (1, 2), (1, 1), act_fn="gelu"),
    "four times at once": spec_of((8, 8), (1, 0, 1), (1, 1), upsampling_scaling_factor=4),
}
FIRST = SPECS["as published, thinner"]


def pair(spec: TinyVAESpec) -> tuple[TinyVAE, AutoencoderTiny]:
    """Both with the same seeded weights; the names must be the same, all of them."""
    theirs = AutoencoderTiny(**asdict(spec))
    seeded(theirs, 1)
    ours = TinyVAE(spec)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def inputs(spec: TinyVAESpec, size: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    edge = max(size // spec.downscale, 2)
    return 2 * torch.rand(2, 3, size, size, generator=g) - 1, 2 * torch.randn(
        2, spec.latent_channels, edge, edge, generator=g
    )


def distances(ours: TinyVAE, theirs: AutoencoderTiny) -> tuple[float, float]:
    """Of encode and decode; the reference's pipelines multiply and divide by its scaling factor themselves."""
    x, z = inputs(ours.spec)
    factor = theirs.config.scaling_factor
    with torch.inference_mode():
        encoded, decoded = theirs.encode(x).latents * factor, theirs.decode(z / factor).sample
        return apart(ours.encode(x), encoded), apart(ours.decode(z), decoded)


@pytest.mark.parametrize("name", SPECS)
def test_encode_and_decode(name: str) -> None:
    assert max(distances(*pair(SPECS[name]))) <= TOLERANCE


@pytest.mark.parametrize("name", SPECS)
def test_shapes(name: str) -> None:
    spec = SPECS[name]
    ours, _ = pair(spec)
    x, z = inputs(spec)
    with torch.inference_mode():
        assert ours.encode(x).shape == (2, spec.latent_channels, 32 // spec.downscale, 32 // spec.downscale)
        assert ours.decode(z).shape == (2, 3, z.shape[2] * spec.downscale, z.shape[3] * spec.downscale)


def test_an_edge_that_is_no_multiple() -> None:
    ours, theirs = pair(FIRST)
    x, _ = inputs(FIRST, 37)
    with torch.inference_mode():
        assert ours.encode(x).shape[2:] == (5, 5)
        assert apart(ours.encode(x), theirs.encode(x).latents) <= TOLERANCE


# Faults: (what is done to ours, whether encode and decode must show it)


def no_clamp(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kotoe.tiny_vae.torch, "tanh", lambda x: x)


def clamp_by_magnitude(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kotoe.tiny_vae, "CLAMP", ours.spec.latent_magnitude)


def other_activation(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    for m in ours.modules():
        if isinstance(m, Block):
            m.conv[1] = m.conv[3] = nn.LeakyReLU(0.01)


def no_activation_after_the_first_layer(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    ours.decoder.layers[1] = nn.Identity()


def fused_by_the_activation(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    for m in ours.modules():
        if isinstance(m, Block):
            m.fuse = nn.SiLU()  # type: ignore[assignment]


def bias_after_resampling(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    for m in ours.modules():
        if isinstance(m, nn.Conv2d) and m.bias is None:
            m.bias = nn.Parameter(torch.full((m.out_channels,), 0.05))


def smooth_upsampling(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    for m in ours.modules():
        if isinstance(m, nn.Upsample):
            m.mode = "bilinear"


def pixels_as_they_are(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    encoder, decoder = ours.encoder.layers, ours.decoder.layers
    patch.setattr(ours.encoder, "forward", lambda x: encoder(x))
    patch.setattr(ours.decoder, "forward", lambda z: decoder(torch.tanh(z / 3) * 3))


def scaled_twice(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    ours.spec = replace(ours.spec, scaling_factor=ours.spec.scaling_factor**2)


def not_scaled(ours: TinyVAE, patch: pytest.MonkeyPatch) -> None:
    ours.spec = replace(ours.spec, scaling_factor=1.0)


Fault = Callable[[TinyVAE, pytest.MonkeyPatch], None]
FAULTS: dict[str, tuple[str, Fault, tuple[bool, bool]]] = {
    "no clamp": ("as published, thinner", no_clamp, (False, True)),
    "clamped by latent_magnitude": ("mish", clamp_by_magnitude, (False, True)),
    "another activation": ("as published, thinner", other_activation, (True, True)),
    "no activation after the first layer": (
        "as published, thinner",
        no_activation_after_the_first_layer,
        (False, True),
    ),
    "blocks end in act_fn": ("silu, scaled", fused_by_the_activation, (True, True)),
    "a bias after resampling": ("five levels", bias_after_resampling, (True, True)),
    "smooth upsampling": ("unequal blocks and widths", smooth_upsampling, (False, True)),
    "pixels not in [0, 1]": ("as published, thinner", pixels_as_they_are, (True, True)),
    "scaled twice": ("silu, scaled", scaled_twice, (True, True)),
    "not scaled": ("silu, scaled", not_scaled, (True, True)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, fault, seen = FAULTS[name]
    ours, theirs = pair(SPECS[spec])
    assert max(distances(ours, theirs)) <= TOLERANCE
    x, z = inputs(ours.spec)
    factor = theirs.config.scaling_factor
    with torch.inference_mode():
        encoded, decoded = theirs.encode(x).latents * factor, theirs.decode(z / factor).sample
        fault(ours, monkeypatch)
        assert (apart(ours.encode(x), encoded) > TOLERANCE, apart(ours.decode(z), decoded) > TOLERANCE) == seen


# Folders


@pytest.mark.parametrize("name", SPECS)
def test_diffusers_opens_what_is_saved(name: str, tmp_path: Path) -> None:
    ours, _ = pair(SPECS[name])
    theirs, info = AutoencoderTiny.from_pretrained(tiny.save(ours, tmp_path / "a", None), output_loading_info=True)
    assert not any(info.values())
    assert max(distances(ours, theirs.eval())) <= TOLERANCE


@pytest.mark.parametrize("name", SPECS)
def test_what_diffusers_saves_is_read(name: str, tmp_path: Path) -> None:
    _, theirs = pair(SPECS[name])
    theirs.save_pretrained(tmp_path / "a")
    ours = tiny.load(tmp_path / "a", "float32", "cpu")
    assert ours.spec == SPECS[name]
    assert not ours.training
    assert max(distances(ours, theirs)) <= TOLERANCE
