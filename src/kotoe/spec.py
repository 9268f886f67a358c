"""Specs: frozen, JSON-able descriptions of networks. No tensors, no paths."""

from __future__ import annotations

from dataclasses import dataclass

from kotoe.errors import UserError


def _same_length(what: str, **fields: tuple[object, ...]) -> None:
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(
            f"{what}: per-level fields of different length {lengths}",
            allowed="one entry per resolution level in each",
        )


def _one_of(what: str, field: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(f"{what}: {field} {value!r}", allowed=", ".join(options))


def _groups(what: str, channels: tuple[int, ...], groups: int) -> None:
    for c in channels:
        if c % groups:
            raise UserError(f"{what}: {c} channels don't split into {groups} groups", allowed=f"multiples of {groups}")


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """UNet2DConditionModel as Stable Diffusion 1.x and 2.x use it. One entry per level, finest first."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention: tuple[bool, ...] = (True, True, True, False)  # whether the level has transformer blocks
    num_heads: tuple[int, ...] = (8, 8, 8, 8)  # heads, not head width (diffusers calls it attention_head_dim)
    cross_attention_dim: int = 768
    use_linear_projection: bool = False  # SD1: 1x1 convolutions, SD2: linear layers round the transformer
    norm_num_groups: int = 32
    sample_size: int = 64  # default latent edge in latent pixels
    gelu: str = "exact"  # of the feed-forward gates; or "tanh", an approximation of it (see numerics.py)
    transformer_norm_eps: float = 1e-6  # of the GroupNorm before a spatial transformer

    def __post_init__(self) -> None:
        _one_of("UNetSpec", "gelu", self.gelu, ("exact", "tanh"))
        _same_length(
            "UNetSpec",
            block_out_channels=self.block_out_channels,
            cross_attention=self.cross_attention,
            num_heads=self.num_heads,
        )
        _groups("UNetSpec", self.block_out_channels, self.norm_num_groups)

    @property
    def inpaints(self) -> bool:
        """Whether it reads a mask and the masked picture's latents after the noised ones: 4 + 1 + 4 channels."""
        return self.in_channels == 2 * self.out_channels + 1

    @property
    def family(self) -> str:
        """sd1 (1x1 convolutions round the transformers) or sd2 (linear layers), each also as -inpainting."""
        return ("sd2" if self.use_linear_projection else "sd1") + ("-inpainting" if self.inpaints else "")


@dataclass(frozen=True, kw_only=True)
class VAESpec:
    """AutoencoderKL: pixels in [-1, 1] (B, 3, H, W) to latents (B, latent_channels, H / downscale, W / downscale)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512  # default picture edge in pixels
    norm_eps: float = 1e-6  # of every GroupNorm

    def __post_init__(self) -> None:
        _groups("VAESpec", self.block_out_channels, self.norm_num_groups)

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one edge."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class TinyVAESpec:
    """AutoencoderTiny, TAESD's small stand-in for an AutoencoderKL. Encoder levels finest first, decoder's coarsest.

    latent_magnitude, latent_shift: how others keep latents as bytes; neither `encode` nor `decode` reads them.
    """

    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # a level may have none
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    act_fn: str = "relu"
    upsampling_scaling_factor: int = 2  # between two levels of the decoder; those of the encoder halve
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    scaling_factor: float = 1.0  # 1.0 in what is published: such latents are unit-scaled already

    def __post_init__(self) -> None:
        _one_of("TinyVAESpec", "act_fn", self.act_fn, ("relu", "silu", "swish", "mish", "gelu"))
        for side in ("encoder", "decoder"):
            widths, blocks = f"{side}_block_out_channels", f"num_{side}_blocks"
            _same_length("TinyVAESpec", **{name: getattr(self, name) for name in (widths, blocks)})
            if len(set(getattr(self, widths))) != 1:
                raise UserError(
                    f"TinyVAESpec: {widths} {getattr(self, widths)}",
                    allowed="one width at all levels, since no layer of this network changes it",
                )
        grown = self.upsampling_scaling_factor ** (len(self.decoder_block_out_channels) - 1)
        if grown != self.downscale:
            raise UserError(
                f"TinyVAESpec: a decoder that enlarges {grown} times beside an encoder of 1/{self.downscale}",
                allowed="as many levels in both, and upsampling_scaling_factor 2",
            )
        for field in ("scaling_factor", "latent_magnitude"):
            if not getattr(self, field) > 0:
                raise UserError(f"TinyVAESpec: {field} {getattr(self, field)}", allowed="a number above 0")

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one edge."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """CLIP's text transformer. `layer` -1 is the last one, -2 the one before it; ids are the tokenizer's own."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_tokens: int = 77
    hidden_act: str = "quick_gelu"  # or "gelu", the exact one, or "gelu_tanh", an approximation of it
    layer_norm_eps: float = 1e-5
    bos: int | None = 49406
    eos: int = 49407
    pad: int = 49407
    layer: int = -1
    final_norm: bool = True
    projection_dim: int | None = None

    def __post_init__(self) -> None:
        _one_of("TextSpec", "hidden_act", self.hidden_act, ("quick_gelu", "gelu", "gelu_tanh"))
        if not -self.num_layers <= self.layer <= -1:
            raise UserError(f"TextSpec: layer {self.layer}", allowed=f"-1 (last) to {-self.num_layers} (first)")

    @property
    def context_dim(self) -> int:
        """Width of the states that a UNet reads."""
        return self.hidden_size


@dataclass(frozen=True, kw_only=True)
class BertSpec:
    """BERT as Taiyi's Stable Diffusion feeds it, or XLM-RoBERTa with a projection as AltDiffusion does.

    positions:            rows of the position embeddings.
    counts_from_pad:      RoBERTa's positions: padding at row `pad`, words from row `pad` + 1 on.
    masked:               no state reads the padding behind a text (whether a UNet does is another question).
    projection_dim:       width of the linear layer on top; None: there is none.
    projects_penultimate: it is on top of the normalised last-but-one layer, as in AltDiffusion-m18.
    """

    vocab_size: int = 21128
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    positions: int = 512
    token_types: int = 2
    layer_norm_eps: float = 1e-12
    bos: int | None = 101
    eos: int = 102
    pad: int = 0
    counts_from_pad: bool = False
    masked: bool = False
    projection_dim: int | None = None
    projects_penultimate: bool = False

    def __post_init__(self) -> None:
        if self.projects_penultimate and (self.projection_dim is None or self.num_layers < 2):
            raise UserError("BertSpec: projects_penultimate", allowed="with a projection_dim and 2 layers or more")

    @property
    def max_tokens(self) -> int:
        """The longest text, special tokens included."""
        return self.positions - (self.pad + 1 if self.counts_from_pad else 0)

    @property
    def context_dim(self) -> int:
        """Width of the states that a UNet reads."""
        return self.hidden_size if self.projection_dim is None else self.projection_dim


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """CLIP's vision transformer and the projection behind it. Pictures are image_size pixels square."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"  # or "gelu", the exact one
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768

    def __post_init__(self) -> None:
        _one_of("VisionSpec", "hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        if self.hidden_size % self.num_heads:
            raise UserError(f"VisionSpec: {self.num_heads} heads in {self.hidden_size} numbers", allowed="a divisor")
        if not 1 <= self.patch_size <= self.image_size:
            raise UserError(f"VisionSpec: patch_size {self.patch_size}", allowed=f"1 to {self.image_size} pixels")

    @property
    def patches(self) -> int:
        """Patches of a picture; what is left over at its right and lower edge belongs to none."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The noise schedule a UNet was trained with, and the sampler and grid its card recommends."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"  # or "linear"
    prediction_type: str = "epsilon"  # or "v_prediction"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"  # linspace, leading, trailing
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    sampler: str = "pndm"

    def __post_init__(self) -> None:
        for field, options in {
            "beta_schedule": ("scaled_linear", "linear"),
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": ("linspace", "leading", "trailing"),
        }.items():
            if getattr(self, field) not in options:
                raise UserError(f"ScheduleSpec: {field} {getattr(self, field)!r}", allowed=", ".join(options))
