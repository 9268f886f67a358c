"""Counts that don't depend on the machine's mood, as they are now: a change that makes Kotoe slower shows here, where
times would be noise. A count that falls is good news: write it down.

Operations are calls of torch's that make a tensor (a view is none); bytes, what they make; products, multiplications in
matrix products and convolutions, the engine's own included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kotoe import builtin, engine, load
from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.drawing import generate
from kotoe.shortcuts import Shortcuts
from kotoe.spec import UNetSpec, VAESpec
from kotoe.unet import UNet
from kotoe.vae import VAE

# A guided step of kotoe-emoji in float32, alone:
OPERATIONS, BYTES, PRODUCTS, ALLOCATIONS = 212, 7_003_392, 195_297_280, 460
DECODING = 151  # operations
MODULES = 1350  # of Python, after a picture: 1,281 with 3.11


class Counting(TorchDispatchMode):
    """Operations, bytes and products within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not func.is_view:
            self.operations += 1
            self.bytes += made.numel() * made.element_size()
            self.products += made.numel() * self.depth(str(func), args)
        return made

    @staticmethod
    def depth(name: str, args: Any) -> int:
        """Products behind each number that an operation makes."""
        if any(kind in name for kind in ("linear", "matmul", "bmm")):
            return int(args[0].shape[-1])
        if "conv" in name:  # its weight comes after the maps
            return prod([a for a in args if isinstance(a, Tensor) and a.ndim == 4][-1].shape[1:])
        return 0


@pytest.fixture(scope="module")
def emoji() -> Bundle:
    return load("kotoe-emoji", dtype="float32")


def step(bundle: Bundle, shortcuts: Shortcuts | None = None, rows: int = 2) -> tuple[Any, ...]:
    """A step's arguments: the same latents twice, as guidance has them."""
    x = torch.zeros(1, 32, 8, 8).expand(rows, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    fast = engine.of(bundle.unet)
    with torch.inference_mode():
        kv = fast.text_kv(torch.zeros(rows, 96, 192))
        return fast, x, bundle.unet.time_table(torch.tensor([10.0])).at(0), kv, shortcuts


@torch.inference_mode()
def counted(call: Any, *arguments: Any) -> Counting:
    with Counting() as count:
        call(*arguments)
    return count


def test_a_guided_step(emoji: Bundle) -> None:
    fast, *arguments = step(emoji)
    count = counted(fast, *arguments)
    assert count.operations <= OPERATIONS
    assert count.bytes <= BYTES
    assert count.products <= PRODUCTS
    assert count.products > 0.95 * PRODUCTS, "fewer: lower the bound"


def test_a_step_without_guidance_is_half_the_products(emoji: Bundle) -> None:
    fast, *arguments = step(emoji, rows=1)
    assert counted(fast, *arguments).products <= 0.53 * PRODUCTS


def test_a_cached_step_is_a_fraction(emoji: Bundle) -> None:
    shortcuts = Shortcuts(cache_interval=2)
    fast, *arguments = step(emoji, shortcuts)
    whole, cached = (counted(fast, *arguments) for _ in range(2))
    assert whole.products <= PRODUCTS
    assert cached.products <= 0.2 * PRODUCTS
    assert cached.operations <= 0.16 * OPERATIONS


def test_a_steps_allocations(emoji: Bundle) -> None:
    fast, *arguments = step(emoji)
    with torch.inference_mode():
        fast(*arguments)
        with profile(profile_memory=True) as seen:
            fast(*arguments)
    taken = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]
    assert 0 < len(taken) <= ALLOCATIONS


def test_decoding(emoji: Bundle) -> None:
    z = torch.zeros(1, 32, 8, 8)
    fast = counted(engine.of(emoji.vae), z)
    plain = counted(emoji.vae.decode, z)
    assert fast.products <= 0.87 * plain.products  # upsampled convolutions read the small map
    assert fast.operations <= DECODING


def test_operations_of_stable_diffusions_size() -> None:
    """800 and 1,257 giga-products for a guided step and for decoding, counted by hand from the configurations."""
    with torch.device("meta"), torch.inference_mode():
        unet, vae = UNet(UNetSpec()), VAE(VAESpec())
        x, context = torch.zeros(2, 4, 64, 64), torch.zeros(2, 77, 768)
        kv, rows = unet.text_kv(context), unet.time_table(torch.zeros(1)).at(0)
        with FlopCounterMode(display=False) as of_unet:
            unet(x, rows, kv)
        with FlopCounterMode(display=False) as of_vae:
            vae.decode(torch.zeros(1, 4, 64, 64))
    assert of_unet.get_total_flops() / 2e9 == pytest.approx(800, rel=0.01)
    assert of_vae.get_total_flops() / 2e9 == pytest.approx(1257, rel=0.01)


def test_a_picture_reads_the_weights_it_needs_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from kotoe.checkpoints import files

    read: dict[str, int] = {}
    real = files.read_tensors

    def watched(paths: Any, *rest: Any, **how: Any) -> Any:
        for path in paths:
            name = Path(path).parent.parent.name + "/" + Path(path).parent.name
            read[name] = read.get(name, 0) + Path(path).stat().st_size
        return real(paths, *rest, **how)

    for module in ("kotoe.checkpoints.diffusers", "kotoe.checkpoints.tiny"):
        monkeypatch.setattr(f"{module}.read_tensors", watched)
    generate(load("kotoe-emoji"), Request(prompt="a cat", steps=1))
    folder = builtin.resolve("kotoe-emoji")
    sizes = {p.parent.name: p.stat().st_size for p in folder.glob("*/*.safetensors") if p.parent.name != "fast"}
    assert {name.split("/")[1]: size for name, size in read.items()} == sizes  # no other language's encoder


def test_a_picture_imports_little(tmp_path: Path) -> None:
    said = (
        "import json, sys; from kotoe import cli\n"
        f"try: cli.main(['generate', 'a cat', '--steps', '1', '--out', {str(tmp_path)!r}])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    for heavy in (
        "diffusers",
        "transformers",
        "scipy",
        "torch._dynamo",
        "torch._inductor",
        "sympy",
        "matplotlib",
        "pandas",
    ):
        assert heavy not in modules, heavy
    assert len(modules) <= MODULES
