"""Our networks against diffusers' and transformers', the same random weights on both sides, float32 on the CPU.

Every comparison comes with deliberate faults: small wrongs that a careless port would have, each of which must be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import kotoe.text
import kotoe.unet
from kotoe.spec import TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText
from kotoe.unet import UNet
from kotoe.vae import VAE
from tiny import seeded

TOLERANCE = 1e-5  # of the output's scale; observed about 1e-6
Fault = Callable[[nn.Module], None]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the reference's largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pair(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both the same seeded weights; the names must be the same, all of them."""
    seeded(theirs, 1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.eval()


def swap_qk(module: nn.Module) -> None:
    for m in module.modules():
        if hasattr(m, "to_q") and m.to_q.weight.shape == m.to_k.weight.shape:
            m.to_q, m.to_v = m.to_v, m.to_q
        if hasattr(m, "q_proj"):
            m.q_proj, m.v_proj = m.v_proj, m.q_proj


def eps_of(kind: type[nn.Module], was: float, now: float) -> Fault:
    def fault(module: nn.Module) -> None:
        found = [m for m in module.modules() if isinstance(m, kind) and m.eps == was]
        assert found
        for m in found:
            m.eps = now

    return fault


@contextmanager
def patched(module: object, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# UNet


def unets(linear: bool) -> tuple[UNet, UNet2DConditionModel]:
    heads = (2, 4, 4) if linear else (4, 4, 4)
    spec = UNetSpec(
        block_out_channels=(32, 64, 64),
        cross_attention=(True, True, False),
        num_heads=heads,
        cross_attention_dim=24,
        use_linear_projection=linear,
        norm_num_groups=8,
        sample_size=16,
    )
    theirs = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=heads if linear else 4,
        norm_num_groups=8,
        use_linear_projection=linear,
    )
    ours = UNet(spec)
    pair(ours, theirs)
    return ours, theirs


def unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    # Small latents: the norms' eps count only where the spread is small (T3).
    return 0.02 * torch.randn(2, 4, 16, 16, generator=g), torch.tensor([3, 700]), torch.randn(2, 7, 24, generator=g)


UNET_FAULTS: dict[str, Fault] = {
    "queries and values swapped": swap_qk,
    "resnet eps of the transformer": eps_of(nn.GroupNorm, 1e-5, 1e-6),
    "transformer eps of the resnets (T3)": eps_of(nn.GroupNorm, 1e-6, 1e-5),
}


@pytest.mark.parametrize("linear", [False, True], ids=["sd1", "sd2"])
def test_unet(linear: bool) -> None:
    ours, theirs = unets(linear)
    x, t, context = unet_inputs()
    with torch.inference_mode():
        expected = theirs(x, t, context).sample
        assert distance(ours(x, t, context), expected) <= TOLERANCE
        # what is computed once a picture gives the same
        table, kv = ours.time_table(t), ours.text_kv(context)
        assert distance(ours(x, table.at(torch.tensor([0, 1])), kv), expected) <= TOLERANCE
        one = ours(x[:1], table.at(0), [(k[:1], v[:1]) for k, v in kv])
        assert distance(one, expected[:1]) <= TOLERANCE


@pytest.mark.parametrize("fault", UNET_FAULTS)
def test_unet_fault_is_seen(fault: str) -> None:
    ours, theirs = unets(True)
    UNET_FAULTS[fault](ours)
    with torch.inference_mode():
        assert distance(ours(*unet_inputs()), theirs(*unet_inputs()).sample) > TOLERANCE


def test_T2_tanh_gelu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: GEGLU's GELU is exact; KerasCV's tanh form differs by more than our tolerance."""
    ours, theirs = unets(False)
    g = torch.Generator().manual_seed(3)
    inputs = (3 * torch.randn(2, 4, 16, 16, generator=g), torch.tensor([3, 700]), torch.randn(2, 7, 24, generator=g))
    exact = torch.nn.functional.gelu
    with torch.inference_mode():
        expected = theirs(*inputs).sample
        assert distance(ours(*inputs), expected) <= 1e-5
        monkeypatch.setattr(kotoe.unet.F, "gelu", lambda x, **_: exact(x, approximate="tanh"))
        assert distance(ours(*inputs), expected) > 1e-5


def norms(module: nn.Module) -> dict[str, float]:
    return {name: m.eps for name, m in module.named_modules() if isinstance(m, nn.GroupNorm)}


def test_T3_every_norm_has_its_own_eps() -> None:
    """T3: 1e-5 in the UNet's residual blocks, 1e-6 before its transformers and in the whole autoencoder."""
    ours, theirs = unets(False)
    assert norms(ours) == norms(theirs)
    assert set(norms(ours).values()) == {1e-5, 1e-6}
    assert {eps for name, eps in norms(ours).items() if "attentions" in name} == {1e-6}
    assert {eps for name, eps in norms(ours).items() if "attentions" not in name} == {1e-5}
    vae, stock = vaes()
    assert norms(vae) == norms(stock)
    assert set(norms(vae).values()) == {1e-6}
    eps_of(nn.GroupNorm, 1e-6, 1e-5)(ours)  # the fault: one eps everywhere, as KerasCV and mlx have it
    assert norms(ours) != norms(theirs)
    with torch.inference_mode():
        assert distance(ours(*unet_inputs()), theirs(*unet_inputs()).sample) > TOLERANCE


def test_cosines_come_first() -> None:
    ours, theirs = unets(False)
    real = kotoe.unet.timestep_embedding
    with torch.inference_mode(), patched(kotoe.unet, "timestep_embedding", lambda t, w: real(t, w).roll(w // 2, 1)):
        assert distance(ours(*unet_inputs()), theirs(*unet_inputs()).sample) > TOLERANCE


# VAE


def vaes() -> tuple[VAE, AutoencoderKL]:
    spec = VAESpec(block_out_channels=(16, 32, 64), layers_per_block=2, norm_num_groups=8, scaling_factor=0.18215)
    theirs = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    ours = VAE(spec)
    pair(ours, theirs)
    return ours, theirs


def vae_distances(ours: VAE, theirs: AutoencoderKL) -> tuple[float, float]:
    g = torch.Generator().manual_seed(4)
    x, z = 0.01 * torch.randn(2, 3, 32, 32, generator=g), 0.01 * torch.randn(2, 4, 8, 8, generator=g)
    with torch.inference_mode():
        encoded = theirs.encode(x).latent_dist.mean * 0.18215
        decoded = theirs.decode(z / 0.18215).sample
        return distance(ours.encode(x), encoded), distance(ours.decode(z), decoded)


def test_vae() -> None:
    """T6: latents are unit-scaled outside; the reference's pipeline multiplies and divides by 0.18215 itself."""
    assert max(vae_distances(*vaes())) <= TOLERANCE


@pytest.mark.parametrize("times", [0, 2])
def test_T6_the_scaling_factor_is_applied_once_and_inside(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """T6: latents outside `encode` and `decode` have unit scale. Left out or applied twice, the factor is seen."""
    ours, theirs = vaes()
    assert max(vae_distances(ours, theirs)) <= TOLERANCE
    assert ours.spec.scaling_factor == theirs.config.scaling_factor == 0.18215
    monkeypatch.setattr(ours, "spec", replace(ours.spec, scaling_factor=0.18215**times))
    assert min(vae_distances(ours, theirs)) > 0.01


def symmetric_padding(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d) and m.stride == (2, 2):
            m.register_forward_pre_hook(lambda _, args: (args[0].roll((1, 1), (2, 3)),))


@pytest.mark.parametrize(
    ("fault", "side"),
    [
        (eps_of(nn.GroupNorm, 1e-6, 1e-5), 0),
        (eps_of(nn.GroupNorm, 1e-6, 1e-5), 1),
        (swap_qk, 0),
        (swap_qk, 1),
        (symmetric_padding, 0),
    ],
    ids=[
        "eps, encoder",
        "eps, decoder",
        "q and v swapped, encoder",
        "q and v swapped, decoder",
        "padding left and top",
    ],
)
def test_vae_fault_is_seen(fault: Fault, side: int) -> None:
    ours, theirs = vaes()
    fault(ours)
    assert vae_distances(ours, theirs)[side] > TOLERANCE


def test_T7_encode_is_the_mean_unless_noise_is_given() -> None:
    """T7: the caller owns the randomness."""
    ours, theirs = vaes()
    g = torch.Generator().manual_seed(5)
    x, noise = torch.randn(1, 3, 32, 32, generator=g), torch.randn(1, 4, 8, 8, generator=g)
    with torch.inference_mode():
        posterior = theirs.encode(x).latent_dist
        expected = (posterior.mean + posterior.std * noise) * 0.18215
        assert distance(ours.encode(x, noise), expected) <= TOLERANCE
        assert distance(ours.encode(x), expected) > 1e-2


# CLIP text


def texts(act: str, layers: int, layer: int = -1) -> tuple[CLIPText, CLIPTextModel]:
    spec = TextSpec(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_layers=layers, num_heads=4, max_tokens=12,
        hidden_act=act, bos=48, eos=49, pad=49, layer=layer,
    )  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=12, hidden_act=act, bos_token_id=48, eos_token_id=49, pad_token_id=49,
    )  # fmt: skip
    theirs = CLIPTextModel(config)
    ours = CLIPText(spec)
    seeded(theirs, 2)
    prefix = "" if next(iter(theirs.state_dict())).startswith("text_model.") else "text_model."
    weights = {prefix + name: value for name, value in theirs.state_dict().items() if "position_ids" not in name}
    ours.load_state_dict(weights, strict=True)
    return ours.eval(), theirs.eval()


IDS = torch.tensor([[48, 3, 7, 11, 2, 49, 49, 49, 49, 49, 49, 49], [48, 1, 49, 49, 49, 49, 49, 49, 49, 49, 49, 49]])


def test_text_last_layer_quick_gelu() -> None:
    """SD 1.x: the last layer and the final norm."""
    ours, theirs = texts("quick_gelu", 3)
    with torch.inference_mode():
        expected = theirs(IDS)
        assert distance(ours(IDS), expected.last_hidden_state) <= TOLERANCE
        assert distance(ours.pooled(IDS), expected.pooler_output) <= TOLERANCE


def test_text_penultimate_gelu() -> None:
    """SD 2.x (T14): the layer before the last, then the final norm."""
    ours, theirs = texts("gelu", 3, layer=-2)
    with torch.inference_mode():
        hidden = theirs(IDS, output_hidden_states=True).hidden_states[-2]
        norm = theirs.final_layer_norm if hasattr(theirs, "final_layer_norm") else theirs.text_model.final_layer_norm
        assert distance(ours(IDS), norm(hidden)) <= TOLERANCE


@pytest.mark.parametrize("fault", ["q and v swapped", "other gelu", "last layer", "no mask"])
def test_text_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "last layer":
        ours, theirs = texts("gelu", 3, layer=-2)
    else:
        ours, theirs = texts("quick_gelu", 3)
    with torch.inference_mode():
        expected = theirs(IDS).last_hidden_state
    if fault == "q and v swapped":
        swap_qk(ours)
    if fault == "other gelu":
        for m in ours.modules():
            if hasattr(m, "activation"):
                m.activation = torch.nn.functional.gelu
    if fault == "no mask":
        real = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(kotoe.text.F, "scaled_dot_product_attention", lambda q, k, v, is_causal: real(q, k, v))
    with torch.inference_mode():
        assert distance(ours(IDS), expected) > TOLERANCE


def test_T15_padding_is_attended_after_the_text_only() -> None:
    """T15: CLIP's mask is causal: changing the padding changes the states of padding, never those of the text."""
    ours, _ = texts("quick_gelu", 3)
    other = IDS.clone()
    other[0, 8] = 5
    with torch.inference_mode():
        a, b = ours(IDS), ours(other)
    assert torch.equal(a[0, :8], b[0, :8])
    assert (a[0, 8:] - b[0, 8:]).abs().max() > 1e-3
    assert torch.equal(a[1], b[1])
