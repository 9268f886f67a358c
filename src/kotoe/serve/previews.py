"""Pictures on their way, small and quick: the model's small decoder, or one linear map from a latent to a colour."""

from __future__ import annotations

from io import BytesIO
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe import engine, images
from kotoe.checkpoints import Bundle
from kotoe.rng import generator

SAMPLES, EDGE = 96, 4  # latents that the map is fitted to, and rows and columns of each, all of one value
LARGEST = 256  # pixels of an edge of a preview


class Previews:
    """Makes previews; what a model needs for that is made when first asked for."""

    def __init__(self) -> None:
        self.maps: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()

    @torch.inference_mode()
    def png(self, bundle: Bundle, x0: Tensor) -> bytes:
        """A PNG of predicted latents x0 (1, C, h, w) of unit scale."""
        weight = bundle.vae.quant_conv.weight
        if bundle.small_decoder is not None and engine.usable(bundle.small_decoder):
            pixels = engine.of(bundle.small_decoder)(x0.to(weight)).float()[0]  # (3, H, W)
        else:
            z = F.pad(x0[0].float().cpu(), (0, 0, 0, 0, 0, 1), value=1.0)  # (C + 1, h, w)
            pixels = (self._map(bundle) @ z.flatten(1)).unflatten(1, z.shape[1:])  # (3, h, w)
        if max(pixels.shape[1:]) > LARGEST:
            scale = LARGEST / max(pixels.shape[1:])
            pixels = F.interpolate(pixels[None], scale_factor=scale, mode="area")[0]
        kept = BytesIO()
        images.to_pil(pixels.nan_to_num(0.0)).save(kept, format="PNG")
        return kept.getvalue()

    def _map(self, bundle: Bundle) -> Tensor:
        """(3, C + 1): the colours of latents and a constant, by least squares over what the decoder makes of some."""
        known = self.maps.get(bundle.vae)
        if known is None:
            spec, weight = bundle.vae.spec, bundle.vae.quant_conv.weight
            z = torch.randn(SAMPLES, spec.latent_channels, 1, 1, generator=generator(0))  # (S, C, 1, 1)
            decode = engine.of(bundle.vae) if engine.usable(bundle.vae) else bundle.vae.decode
            colours = torch.cat(
                [decode(part.expand(-1, -1, EDGE, EDGE).to(weight)).float().cpu().mean((2, 3)) for part in z.split(8)]
            )  # (S, 3)
            given = F.pad(z.flatten(1), (0, 1), value=1.0)  # (S, C + 1)
            known = self.maps[bundle.vae] = torch.linalg.lstsq(given, colours).solution.T.contiguous()
        return known
