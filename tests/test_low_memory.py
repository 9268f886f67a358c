"""Low memory: the same pictures with one part on the device at a time and attention in pieces; and every dtype."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import kotoe.vae
from kotoe import cli
from kotoe.checkpoints import Bundle, load, save
from kotoe.config import Request
from kotoe.drawing import generate, replay
from kotoe.errors import UserError
from kotoe.images import differences
from kotoe.record import Record
from kotoe.rng import generator
from tiny import tiny_bundle

PROMPT = "a red cat"
DEVICES = ["cpu", "cuda"]
PATHS = {
    "words": (False, {}),
    "picture": (False, {"init_image": "photo.png", "strength": 0.6}),
    "mask": (False, {"init_image": "photo.png", "mask": "mask.png"}),
    "inpainting model": (True, {"init_image": "photo.png", "mask": "mask.png"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ordinary model, an inpainting model, a picture and a mask."""
    folder = tmp_path_factory.mktemp("place")
    save(tiny_bundle(sampler="ddim"), folder / "plain")
    save(tiny_bundle(sampler="ddim", inpaints=True), folder / "inpaints")
    photo, mask = Image.new("RGB", (16, 16)), Image.new("L", (16, 16), 0)
    photo.putdata([(x * 16, y * 16, 99) for y in range(16) for x in range(16)])
    mask.paste(255, (5, 5, 12, 12))
    photo.save(folder / "photo.png")
    mask.save(folder / "mask.png")
    return folder


def loaded(place: Path, inpaints: bool, **asked: Any) -> Bundle:
    return load(place / ("inpaints" if inpaints else "plain"), **{"dtype": "float32", **asked})


def request_of(place: Path, asked: dict[str, Any], **more: Any) -> Request:
    files = {k: str(place / v) if k in ("init_image", "mask") else v for k, v in asked.items()}
    return Request(**{"prompt": PROMPT, "language": "en", "seed": 3, "steps": 5, "engine": "plain", **files, **more})


def cuda(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


# --- Attention in pieces


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, fault: bool = False) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the queries that attention is called with; a fault gives each piece the first one's keys."""
    shapes: list[tuple[int, ...]] = []
    real, first = F.scaled_dot_product_attention, []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape))
        first.append(k)
        same = [each for each in first if each.shape == k.shape]
        return real(q, same[0] if fault else k, v)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        yield shapes


@torch.inference_mode()
def test_the_unets_attention_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_bundle().unet
    x, context = torch.randn(2, 4, 8, 8, generator=generator(1)), torch.randn(2, 16, 32, generator=generator(2))
    t = torch.tensor([10.0, 500.0])
    with counted(monkeypatch) as shapes:
        whole = unet(x, t, context)
    assert {s[1] for s in shapes} == {4}
    unet.slice_attention()
    with counted(monkeypatch) as pieces:
        sliced = unet(x, t, context)
    assert {s[1] for s in pieces} == {1}
    assert len(pieces) == 4 * len(shapes)
    assert torch.equal(sliced, whole)
    with counted(monkeypatch, fault=True):
        assert (unet(x, t, context) - whole).abs().max() > 1e-3


@torch.inference_mode()
def test_the_autoencoders_attention_some_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_bundle().vae
    picture, z = torch.randn(1, 3, 16, 16, generator=generator(1)), torch.randn(1, 4, 8, 8, generator=generator(2))
    whole = vae.encode(picture), vae.decode(z)
    vae.slice_attention()
    monkeypatch.setattr(kotoe.vae, "SLICE", 24)  # 64 positions: two whole pieces and a rest
    with counted(monkeypatch) as pieces:
        sliced = vae.encode(picture), vae.decode(z)
    assert [s[2] for s in pieces] == [24, 24, 16] * 2
    for a, b in zip(sliced, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(kotoe.vae, "SLICE", 64)
    assert torch.equal(vae.decode(z), whole[1])


# --- One part at a time


def test_a_part_is_on_the_device_while_it_works_and_back_afterwards() -> None:
    """On the meta device, where nothing can be computed but what is there can be told from what isn't."""
    bundle = tiny_bundle().changed(works_on=torch.device("meta"))
    assert bundle.low_memory
    assert bundle.device.type == "meta"
    encoder = bundle.conditioner().encoder
    before = {name: p for part in (bundle.unet, encoder) for name, p in part.named_parameters()}
    with bundle.at_work(bundle.unet):
        assert {p.device.type for p in bundle.unet.parameters()} == {"meta"}
        assert {p.device.type for part in (bundle.vae, encoder) for p in part.parameters()} == {"cpu"}
        assert len(list(bundle.unet.parameters())) == len(bundle.unet.state_dict())
    with pytest.raises(KeyError), bundle.at_work(encoder):
        raise KeyError
    after = {name: p for part in (bundle.unet, encoder) for name, p in part.named_parameters()}
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    plain = tiny_bundle()
    with plain.at_work(plain.unet):
        assert (plain.low_memory, plain.device.type) == (False, "cpu")


@pytest.mark.parametrize("path", PATHS)
def test_every_part_works_in_its_turn_only(path: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inpaints, asked = PATHS[path]
    bundle = loaded(place, inpaints, low_memory=True)
    turns: list[str] = []
    here: list[torch.nn.Module] = []
    real = Bundle.at_work

    @contextmanager
    def spy(self: Bundle, part: torch.nn.Module) -> Iterator[None]:
        assert not here, "two parts at work"
        with real(self, part):
            here.append(part)
            turns.append(type(part).__name__)
            yield
            here.clear()

    def watched(part: torch.nn.Module, *_: Any) -> None:
        assert here == [part]

    monkeypatch.setattr(Bundle, "at_work", spy)
    parts = (bundle.unet, bundle.vae.encoder, bundle.vae.decoder, bundle.conditioner().encoder)
    owners = (bundle.unet, bundle.vae, bundle.vae, bundle.conditioner().encoder)
    hooks = [
        part.register_forward_pre_hook(lambda *_, owner=owner: watched(owner))
        for part, owner in zip(parts, owners, strict=True)
    ]
    generate(bundle, request_of(place, asked))
    assert turns == ["CLIPText", "VAE", "UNet", "VAE"]
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", PATHS)
def test_the_same_pictures(path: str, device: str, place: Path) -> None:
    """To the bit on a processor; an accelerator may round a piece otherwise."""
    cuda(device)
    inpaints, asked = PATHS[path]
    plain = generate(loaded(place, inpaints, device=device), request_of(place, asked))[0]
    low = loaded(place, inpaints, device=device, low_memory=True)
    picture = generate(low, request_of(place, asked))[0]
    assert {p.device.type for part in (low.unet, low.vae) for p in part.parameters()} == {"cpu"}
    assert (plain.record.low_memory, picture.record.low_memory) == (False, True)
    assert torch.device(picture.record.device).type == device
    if device == "cpu":
        assert picture.image.tobytes() == plain.image.tobytes()
    else:
        assert differences(picture.image, plain.image)[1] <= 1
    assert replay(low, picture.record).image.tobytes() == picture.image.tobytes()


def test_latents_are_the_same_to_the_bit(place: Path) -> None:
    """The pixels above are rounded to 256 levels; what they are made of is the same too."""

    def latents(bundle: Bundle) -> Tensor:
        steps: list[Tensor] = []
        generate(bundle, request_of(place, {}), on_step=lambda p: steps.append(p.step.x))
        return steps[-1]

    assert torch.equal(latents(loaded(place, False, low_memory=True)), latents(loaded(place, False)))


def test_on_the_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [PROMPT, "--model", str(place / "plain"), "--steps", "2", "--dtype", "float32", "--json"]
    records = []
    for extra in ([], ["--low-memory"]):
        assert cli.run(["generate", *asked, *extra, "--out", str(tmp_path)]) == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        records.append(document["pictures"][0]["record"])
    assert [r["low_memory"] for r in records] == [False, True]
    path = document["pictures"][0]["path"]
    again = ["generate", "--replay", path, "--model", str(place / "plain"), "--out", str(tmp_path), "--json"]
    assert cli.run(again) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["identical"]
    assert document["pictures"][0]["record"]["low_memory"]


@pytest.mark.parametrize("device", ["cuda:99", "meta", "tpu!"])
def test_a_device_that_is_not_there(device: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=rf"device '{device}'.*Allowed: cpu"):
        loaded(place, False, device=device)
    assert cli.run(["generate", PROMPT, "--model", str(place / "plain"), "--device", device]) == 2
    assert f"device '{device}'" in capsys.readouterr().err
    assert loaded(place, False, device="cpu").device.type == "cpu"


# --- Every dtype on every path


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("path", PATHS)
def test_every_dtype_draws(path: str, dtype: str, low_memory: bool, place: Path) -> None:
    """Near to the float32 picture, and the Record says which it was; a request that asks for it by name is met."""
    inpaints, asked = PATHS[path]
    bundle = loaded(place, inpaints, dtype=dtype, low_memory=low_memory)
    picture = generate(bundle, request_of(place, asked, dtype=dtype))[0]
    record: Record = picture.record
    assert (record.dtype, record.vae_dtype, record.text_dtype) == (dtype, dtype, dtype)
    exact = generate(loaded(place, inpaints), request_of(place, asked))[0]
    assert differences(picture.image, exact.image)[1] <= {"float32": 0, "float16": 2, "bfloat16": 8}[dtype]
    assert replay(bundle, replace(record, seconds=0.0)).image.tobytes() == picture.image.tobytes()
