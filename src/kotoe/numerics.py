"""Named arithmetics: how another program computes the same networks, so that its pictures can be drawn here too.

A preset makes another Bundle with the same tensors in memory; the one that was loaded stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.files import fill, skeleton
from kotoe.errors import UserError, unknown
from kotoe.text import CLIPText, Conditioner, Conditioners
from kotoe.unet import UNet
from kotoe.vae import VAE

Net = TypeVar("Net", UNet, VAE, CLIPText)


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What a program does otherwise; the defaults are what the weights were trained with.

    gelu:          of the UNet's feed-forward gates, and of text encoders that have a GELU: "exact" or "tanh".
    norm_eps:      of the GroupNorms that were trained with 1e-6: the autoencoder's, those before transformers.
    pads_with_eos: whatever padding the tokenizer's files name.
    sampler:       the only sampler there is; None: any.
    grid:          where the steps lie unless the request says; None: the model's own.
    always_guided: runs the negative prompt at guidance scale 1.0 too.
    truncated:     pixels to the level below, not to the nearest one.
    """

    gelu: str = "exact"
    norm_eps: float = 1e-6
    pads_with_eos: bool = False
    sampler: str | None = None
    grid: str | None = None
    always_guided: bool = False
    truncated: bool = False


NUMERICS = {
    "exact": Numerics(),
    "kerascv": Numerics(
        gelu="tanh",
        norm_eps=1e-5,
        pads_with_eos=True,
        sampler="ddim",
        grid="kerascv",
        always_guided=True,
        truncated=True,
    ),
}


def check_numerics(bundle: Bundle, name: str, sampler: str, eta: float) -> None:
    """Refuse what the program of that name couldn't have drawn at all."""
    if name not in NUMERICS:
        raise unknown("numerics", name, NUMERICS)
    how = NUMERICS[name]
    if how.sampler is None:
        return
    if sampler != how.sampler:
        raise UserError(
            f"sampler {sampler} with numerics {name}",
            allowed=how.sampler,
            hint="It has no other; draw with numerics exact for a choice",
        )
    if eta != 0.0:
        raise UserError(f"eta {eta} with numerics {name}", allowed="0.0; it adds no noise on the way")
    if bundle.schedule.prediction_type != "epsilon":
        raise UserError(
            f"numerics {name} with a model of {bundle.schedule.prediction_type}",
            allowed="models that predict epsilon",
            hint="It would take the answer for noise; draw with numerics exact",
        )


def with_numerics(bundle: Bundle, name: str) -> Bundle:
    """The bundle with that arithmetic: the same tensors, no copy, in networks of another spec. "exact": itself."""
    how = NUMERICS[name]
    if how == NUMERICS["exact"]:
        return bundle

    def read(language: str) -> Conditioner:
        return _conditioner(bundle.conditioner(language), how)

    readers: dict[str, Callable[[], Conditioner]] = {x: partial(read, x) for x in bundle.conditioners}
    unet, vae = bundle.unet.spec, bundle.vae.spec
    return replace(
        bundle,  # hashes and folder stay: they are of the tensors, and these are the same
        unet=_respecified(bundle.unet, replace(unet, gelu=how.gelu, transformer_norm_eps=how.norm_eps)),
        vae=_respecified(bundle.vae, replace(vae, norm_eps=how.norm_eps)),
        conditioners=Conditioners(readers),
    )


def _conditioner(found: Conditioner, how: Numerics) -> Conditioner:
    encoder, tokenizer = found.encoder, found.tokenizer
    if not isinstance(encoder, CLIPText):
        raise UserError(
            f"another program's numerics with the BERT text encoder for {found.language}",
            allowed="CLIP's text encoders",
        )
    spec = encoder.spec
    if how.gelu == "tanh" and spec.hidden_act == "gelu":
        spec = replace(spec, hidden_act="gelu_tanh")
    if how.pads_with_eos:
        tokenizer = replace(tokenizer, pad=tokenizer.eos)
        spec = replace(spec, pad=tokenizer.eos)
    return replace(found, tokenizer=tokenizer, encoder=_respecified(encoder, spec))


def _respecified(net: Net, spec: object) -> Net:
    """A network of another spec round the tensors of `net`, for drawing only: its parameters want no gradient."""
    if spec == net.spec:
        return net
    made: Net = skeleton(lambda: type(net)(spec))  # type: ignore[arg-type]
    return fill(made.requires_grad_(False), net.state_dict())
