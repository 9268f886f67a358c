"""LoRA and textual inversion files at random values, in the namings that published ones have.

unet, text = factors(bundle.unet, seed=1), factors(bundle.conditioner().encoder, seed=2)
file = lora_file(folder / "a.safetensors", "kohya", unet, text, alpha=2.0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kotoe.checkpoints.lora import targets

Factors = dict[str, tuple[Tensor, Tensor]]  # module: A (r, I, ...), B (O, r, ...)
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj")


def factors(
    net: nn.Module,
    *,
    rank: int = 4,
    seed: int = 0,
    keep: Callable[[str], bool] = lambda module: module.endswith(ATTENTION),
    size: float = 0.3,
) -> Factors:
    """Random factors for the modules of a network that `keep` says: of its attention if nothing is said."""
    generator = torch.Generator().manual_seed(seed)
    made: Factors = {}
    for module, (outputs, inputs, *kernel) in targets(net).values():
        if keep(module):
            a = torch.randn(rank, inputs, *kernel, generator=generator) / a_size(inputs, kernel)
            made[module] = (a, size * torch.randn(outputs, rank, *([1] * len(kernel)), generator=generator))
    assert made
    return made


def a_size(inputs: int, kernel: list[int]) -> float:
    """What keeps A's products of order 1."""
    return (inputs * torch.Size(kernel).numel()) ** 0.5


def _old(module: str) -> str:
    """The name that attention processors had: to_q_lora for q_proj too."""
    head, _, last = module.removesuffix(".0").rpartition(".")
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    return f"{head}{'' if last in names else '.processor'}.{names.get(last, last)}_lora"


NAMINGS: dict[
    str, tuple[Callable[[str], str], Callable[[str], str]]
] = {  # naming: of a UNet's module, a text encoder's
    "peft": (lambda m: f"unet.{m}.lora_A", lambda m: f"text_encoder.{m}.lora_A"),
    "flat": (lambda m: f"unet.{m}.lora_A", lambda m: f"text_encoder.{m.removeprefix('text_model.')}.lora_A"),
    "down": (lambda m: f"unet.{m}.lora.down", lambda m: f"text_encoder.{m}.lora_linear_layer.down"),
    "processor": (lambda m: f"unet.{_old(m)}.down", lambda m: f"text_encoder.{_old(m)}.down"),
    "kohya": (
        lambda m: f"lora_unet_{m.replace('.', '_')}.lora_down",
        lambda m: f"lora_te_{m.replace('.', '_')}.lora_down",
    ),
}
OTHER = {"lora_A": "lora_B", ".down": ".up", "lora_down": "lora_up"}


def lora_tensors(
    naming: str,
    unet: Factors | None = None,
    text: Factors | None = None,
    alpha: float | Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a LoRA file. alpha: of all modules, or of each by its name."""
    made: dict[str, Tensor] = {}
    for which, found in enumerate((unet or {}, text or {})):
        for module, (a, b) in found.items():
            down = NAMINGS[naming][which](module)
            end = next(end for end in ("lora_A", "lora_down", ".down") if down.endswith(end))
            made[f"{down}.weight"] = a
            made[f"{down.removesuffix(end)}{OTHER[end]}.weight"] = b
            if alpha is not None:
                value = alpha if isinstance(alpha, float) else alpha[module]
                made[f"{down.removesuffix(end)}alpha"] = torch.tensor(value)
    return made


def lora_file(
    path: Path,
    naming: str,
    unet: Factors | None = None,
    text: Factors | None = None,
    *,
    alpha: float | Mapping[str, float] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A LoRA file in one of NAMINGS."""
    save_file(lora_tensors(naming, unet, text, alpha), path, metadata=metadata)
    return path


def vectors(n: int, width: int, seed: int = 0) -> Tensor:
    """Random vectors (n, width) of a new word, of the size that a tiny encoder's tokens have."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
