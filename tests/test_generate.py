"""One function draws from words, from a picture, into a mask; a picture alone is the picture in a batch; replays."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kotoe import drawing, images
from kotoe.checkpoints import Bundle
from kotoe.config import Request, dumps, from_json
from kotoe.drawing import Picture, Progress, draw, generate, pixel_multiple, plan, replay, resolve
from kotoe.engine import FastUNet
from kotoe.errors import UserError
from kotoe.numerics import with_numerics
from kotoe.reading import Memory, read_prompts
from kotoe.record import Record
from kotoe.recording import check_same
from kotoe.samplers import SAMPLERS
from kotoe.unet import UNet
from kotoe.workers import side_by_side
from tiny import seeded, tiny_bundle

PROMPTS = ("a red cat", "青い背景に猫", "蓝色背景上的猫", "파란 배경의 고양이")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle("sd2", languages=("en", "ja", "zh", "ko"))


@pytest.fixture(scope="module")
def batch(bundle: Bundle) -> list[Picture]:
    return generate(bundle, Request(prompt=PROMPTS, n=2, seed=5))


def bits(picture: Picture) -> bytes:
    return picture.image.tobytes()


def one(bundle: Bundle, **asked: Any) -> Picture:
    return generate(bundle, Request(**{"prompt": "a red cat", "seed": 3, **asked}))[0]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (16, 16))
    picture.putdata([(x * 16, y * 16, 99) for y in range(16) for x in range(16)])
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    picture = Image.new("L", (16, 16), 0)
    picture.paste(255, (5, 5, 12, 12))
    picture.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


# --- Batches


def test_order_seeds_and_languages(batch: list[Picture]) -> None:
    records = [p.record for p in batch]
    assert [r.prompt for r in records] == [p for p in PROMPTS for _ in range(2)]
    assert [r.seed for r in records] == [5, 6] * 4
    assert [r.conditioner.language for r in records] == ["en", "en", "ja", "ja", "zh", "zh", "ko", "ko"]
    assert {r.language_source for r in records} == {"detected"}
    assert len({bits(p) for p in batch}) == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_alone_is_the_picture_in_a_batch(dtype: str) -> None:
    """To the bit by default; in larger batches to one level of 255, because sums may be taken in another order."""
    bundle = tiny_bundle("sd1", languages=("en", "ja", "zh", "ko"))
    kind = getattr(torch, dtype)
    bundle = bundle.changed(unet=bundle.unet.to(kind), vae=bundle.vae.to(kind))
    by_one = generate(bundle, Request(prompt=PROMPTS, n=2, seed=5))
    by_eight = generate(bundle, Request(prompt=PROMPTS, n=2, seed=5, batch_size=8))
    for i, picture in enumerate(by_one):
        alone = generate(bundle, Request(prompt=PROMPTS[i // 2], seed=5 + i % 2))[0]
        assert bits(alone) == bits(picture)
        assert images.differences(alone.image, by_eight[i].image)[1] <= 1


def test_batch_sizes(bundle: Bundle, batch: list[Picture]) -> None:
    assert {p.record.batch for p in batch} == {(0, 1)}
    by_three = generate(bundle, Request(prompt=PROMPTS, n=2, seed=5, batch_size=3))
    assert [p.record.batch for p in by_three] == [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    assert max(images.differences(a.image, b.image)[1] for a, b in zip(by_three, batch, strict=True)) <= 1
    assert bits(replay(bundle, by_three[4].record)) == bits(by_three[4])


def test_the_seed_matters_and_repeats(bundle: Bundle) -> None:
    assert bits(one(bundle)) == bits(one(bundle))
    assert bits(one(bundle)) != bits(one(bundle, seed=4))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_draws(bundle: Bundle, sampler: str) -> None:
    picture = one(bundle, sampler=sampler, steps=6, grid="trailing")
    assert picture.record.sampler == sampler
    assert picture.image.size == (16, 16)
    assert bits(picture) == bits(one(bundle, sampler=sampler, steps=6, grid="trailing", n=3))


def test_what_is_asked_changes_the_picture(bundle: Bundle) -> None:
    """Each option reaches the arithmetic."""
    variants = {
        "plain": {}, "steps": {"steps": 5}, "grid": {"grid": "linspace"}, "scale": {"guidance_scale": 5.0},
        "unguided": {"guidance_scale": 1.0}, "rescale": {"guidance_rescale": 0.7},
        "negative": {"negative_prompt": "dogs"},
        "eta": {"eta": 1.0}, "sampler": {"sampler": "heun"}, "prompt": {"prompt": "a red dog"},
        "language": {"language": "ja"},
    }  # fmt: skip
    drawn = {name: bits(one(bundle, **{"sampler": "ddim", **asked})) for name, asked in variants.items()}
    for a, b in itertools.combinations(drawn, 2):
        assert drawn[a] != drawn[b], f"{a} and {b} are the same picture"


def test_guidance_1_is_one_forward(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = type(bundle.unet).forward

    def counted(self: Any, x: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(type(bundle.unet), "forward", counted)
    one(bundle, guidance_scale=1.0, steps=4, sampler="euler", engine="plain")
    assert sizes == [1] * 4
    sizes.clear()
    one(bundle, guidance_scale=3.0, steps=4, sampler="euler", engine="plain")
    assert sizes == [2] * 4
    sizes.clear()
    one(
        bundle, guidance_scale=0.0, steps=4, sampler="euler", engine="plain"
    )  # zero is a value: the negative prompt alone
    assert sizes == [2] * 4


def test_texts_and_times_are_computed_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"text_kv": 0, "time_table": 0, "encode": 0}
    conditioner = type(bundle.conditioner("en"))
    for cls, name in ((FastUNet, "text_kv"), (UNet, "time_table"), (conditioner, "encode")):
        original = getattr(cls, name)

        def counted(*a: Any, _name: str = name, _original: Any = original, **k: Any) -> Any:
            counts[_name] += 1
            return _original(*a, **k)

        monkeypatch.setattr(cls, name, counted)
    generate(bundle, Request(prompt=("a cat", "猫の絵", "a cat"), n=2, steps=9, batch_size=6))
    assert counts == {"text_kv": 1, "time_table": 1, "encode": 4}  # two prompts, no words in two languages


def test_the_table_of_times_says_what_the_times_say(bundle: Bundle) -> None:
    """The fast path (rows and keys computed beforehand) is the plain one."""
    torch_x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10.0, 500.0])
    context = bundle.conditioner("en").encode(["a", "b"]).states
    with torch.inference_mode():
        plain = bundle.unet(torch_x, t[1:].expand(2), context)
        fast = bundle.unet(torch_x, bundle.unet.time_table(t).at(1), bundle.unet.text_kv(context))
        wrong = bundle.unet(torch_x, bundle.unet.time_table(t).at(0), bundle.unet.text_kv(context))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wrong, plain, rtol=1e-2, atol=1e-2)


def test_pictures_come_as_they_are_done(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture waits, in its first step, until the first has been handed over."""
    monkeypatch.setattr(drawing, "side_by_side", lambda tasks, **how: side_by_side(tasks, **how | {"workers": 1}))
    seen: list[tuple[int, int]] = []
    taken = Event()

    def on_step(p: Progress) -> None:
        seen.append((p.done, p.total))
        assert p.done <= 4 or taken.wait(30), "the first picture is kept back until the others are done"

    pictures: Iterator[Picture] = draw(
        bundle, Request(prompt="a cat", n=3, batch_size=1, steps=4, sampler="euler"), on_step=on_step
    )
    next(pictures)
    assert not torch.is_inference_mode_enabled(), "the mode leaks out between two pictures"
    taken.set()
    assert len(list(pictures)) == 2
    assert seen == [(k + 1, 12) for k in range(12)]


# --- What a request becomes


def test_defaults_are_the_models(bundle: Bundle) -> None:
    found = resolve(bundle, Request(prompt="a"))
    assert (found.width, found.height, found.steps, found.guidance_scale) == (16, 16, 4, 3.0)
    assert (found.sampler, found.grid, found.strength) == ("ddim", "trailing", None)
    assert resolve(bundle, found) == found


def test_bad_input_is_refused_before_anything_is_drawn(bundle: Bundle, photo: Path, mask: Path) -> None:
    init = {"init_image": str(photo)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"width": 18}, r"width 18 is not a multiple of 4\. Allowed: 16 or 20"),
        ({"height": 3}, r"height 3 is not a multiple of 4\. Allowed: 4\."),
        ({"language": "ge"}, r"'ge' is not in this model\. Allowed: en, ja, ko, zh"),
        ({"prompt": "кошка"}, "Cyrillic"),
        ({"steps": 2000}, "1 to 1000"),
        ({"dtype": "bfloat16"}, r"loaded in float32.*dtype='bfloat16'"),
        ({"steps": 4, "strength": 0.2, **init}, "leaves no step"),
        ({"width": 8, **init}, "would distort"),
        ({"init_image": "absent.png"}, "can't read init_image absent.png"),
        ({"prompt": "one two three four five six seven eight nine ten eleven twelve"}, "these would be dropped"),
        ({"guidance_scale": None, "negative_prompt": "dog " * 40}, "these would be dropped"),
    ]  # fmt: skip
    for asked, message in cases:
        steps: list[int] = []
        request = {"prompt": "a cat", **asked}
        with pytest.raises(UserError, match=message):
            generate(bundle, Request(**request), on_step=lambda p, steps=steps: steps.append(p.done))
        assert not steps
    other = tiny_bundle("sd1")
    with pytest.raises(UserError, match="eta 0.5 with pndm, this model's sampler"):
        resolve(other, Request(prompt="a", eta=0.5))


def test_multiple_of_both_networks() -> None:
    assert pixel_multiple(tiny_bundle("sd1")) == 4  # autoencoder 2, UNet 2


def test_other_sizes(bundle: Bundle) -> None:
    assert one(bundle, width=24, height=8).image.size == (24, 8)


# --- Long prompts

LONG = "a red cat on a blue background and two dogs to the left of a green tree and an owl above a yellow moon"


def test_long_prompts_are_read_whole(bundle: Bundle) -> None:
    picture = one(bundle, prompt=LONG, long_prompt="chunk")
    shorter = one(bundle, prompt=LONG.removesuffix(" moon"), long_prompt="chunk")
    assert picture.record.tokens > 14
    assert picture.record.dropped == ()
    assert bits(picture) != bits(shorter), "the last word is not read"


def test_a_short_prompt_beside_a_long_one_is_itself(bundle: Bundle) -> None:
    pair = generate(bundle, Request(prompt=("a red cat", LONG), long_prompt="chunk", seed=3))
    assert images.differences(pair[0].image, one(bundle).image)[1] <= 1


# --- From a picture


def test_img2img_stays_near_at_low_strength(bundle: Bundle, photo: Path) -> None:
    def distance(strength: float) -> float:
        drawn = one(bundle, init_image=str(photo), strength=strength, steps=20, guidance_scale=1.0)
        roundtrip = bundle.vae.decode(bundle.vae.encode(images.to_tensor(Image.open(photo))))
        return float((images.to_tensor(drawn.image) - roundtrip.clamp(-1, 1)).abs().mean())

    with torch.no_grad():
        near, far = distance(0.1), distance(1.0)
    assert near < far


def test_img2img_records_what_it_started_from(bundle: Bundle, photo: Path) -> None:
    record = one(bundle, init_image=str(photo)).record
    assert record.strength == 0.8
    assert record.init_image_sha256 == images.file_sha256(photo)


def test_what_the_mask_keeps_is_kept_to_the_bit(bundle: Bundle, photo: Path, mask: Path) -> None:
    drawn = one(bundle, init_image=str(photo), mask=str(mask), strength=1.0).image
    before = Image.open(photo)
    inside = {(x, y) for x in range(5, 12) for y in range(5, 12)}
    changed = {(x, y) for x in range(16) for y in range(16) if drawn.getpixel((x, y)) != before.getpixel((x, y))}
    assert changed <= inside
    assert len(changed) > 30


def test_a_white_mask_is_img2img(bundle: Bundle, photo: Path, tmp_path: Path) -> None:
    Image.new("L", (16, 16), 255).save(tmp_path / "white.png")
    masked = one(bundle, init_image=str(photo), mask=str(tmp_path / "white.png"))
    assert bits(masked) == bits(one(bundle, init_image=str(photo)))


def test_mask_of_another_size(bundle: Bundle, photo: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 16), 255).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="mask is 8x16, init_image 16x16"):
        one(bundle, init_image=str(photo), mask=str(tmp_path / "m.png"))


# --- Records and replays


def test_replays_are_bit_identical(bundle: Bundle, batch: list[Picture]) -> None:
    for picture in batch[::3]:
        record = from_json(Record, json.loads(dumps(picture.record)))
        again = replay(bundle, record)
        assert bits(again) == bits(picture)
        assert again.record == picture.record


def test_replay_of_everything_at_once(bundle: Bundle, photo: Path, mask: Path) -> None:
    picture = one(
        bundle, init_image=str(photo), mask=str(mask), strength=0.7, steps=9, sampler="ddim", eta=0.6, grid="karras",
        guidance_scale=4.5, guidance_rescale=0.3, negative_prompt="dog", n=2, language="ja", prompt="青い猫",
    )  # fmt: skip
    assert picture.record.language_source == "asked"
    assert bits(replay(bundle, picture.record)) == bits(picture)


def test_replay_refuses_another_part_by_name(bundle: Bundle, batch: list[Picture]) -> None:
    record = batch[2].record  # Japanese
    check_same(bundle, record)
    other_unet = bundle.changed(unet=seeded(type(bundle.unet)(bundle.unet.spec), 99))
    other_vae = bundle.changed(vae=seeded(type(bundle.vae)(bundle.vae.spec), 99))
    other_schedule = bundle.changed(schedule=dataclasses.replace(bundle.schedule, beta_end=0.013))
    japanese = bundle.conditioner("ja")
    encoder = seeded(type(japanese.encoder)(japanese.encoder.spec), 99)
    other_text = bundle.changed(
        conditioners={**bundle.conditioners, "ja": dataclasses.replace(japanese, encoder=encoder, hashes={})}
    )
    other_tokens = bundle.changed(
        conditioners={
            **bundle.conditioners,
            "ja": dataclasses.replace(japanese, tokenizer=bundle.conditioner("ko").tokenizer, hashes={}),
        }
    )
    without = bundle.changed(conditioners={"en": bundle.conditioner("en")})
    for changed, part in (
        (other_unet, "the UNet of"), (other_vae, "the VAE of"), (other_schedule, "the noise schedule of"),
        (other_text, "the text encoder of ja"), (other_tokens, "the tokenizer of ja"), (without, "conditioner ja"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=part):
            replay(changed, record)


def test_replay_refuses_a_changed_picture(bundle: Bundle, photo: Path) -> None:
    record = one(bundle, init_image=str(photo)).record
    Image.new("RGB", (16, 16)).save(photo)
    with pytest.raises(UserError, match="has changed since the picture was drawn"):
        replay(bundle, record)


def test_jobs_of_ones_own(bundle: Bundle) -> None:
    request = resolve(bundle, Request(prompt=PROMPTS, seed=5))
    jobs = plan(bundle, request)
    assert [bits(p) for p in draw(bundle, request, jobs=jobs[1:2])] == [bits(one(bundle, prompt=PROMPTS[1], seed=5))]
    assert read_prompts(bundle, request, jobs).keys() == {(j.language, j.prompt) for j in jobs}


def test_a_memory_of_texts_takes_no_encoder_for_one_that_is_gone() -> None:
    """Networks of another program's numerics are made for a job, and the next job's could lie where they lay."""
    models = []
    for seed in (0, 100):
        model = tiny_bundle("sd2", seed=seed)  # of OpenCLIP's GELU, where KerasCV has another
        schedule = replace(model.schedule, prediction_type="epsilon", rescale_betas_zero_snr=False)
        models.append(replace(model, schedule=schedule))
    asked = Request(prompt="a red cat", language="en", numerics="kerascv", long_prompt="cut")
    encoders: list[weakref.ref[nn.Module]] = []

    def states(model: Bundle, memory: Memory | None) -> Tensor:
        request = resolve(model, asked)
        made = with_numerics(model, request.numerics)
        encoders.append(weakref.ref(made.conditioner("en").encoder))
        return read_prompts(made, request, plan(model, request), memory)["en", "a red cat"].positive

    alone, memory = [states(model, None) for model in models], Memory()
    assert not torch.equal(*alone)
    encoders.clear()
    for i in [0, 1] * 5:
        assert torch.equal(states(models[i], memory), alone[i])
    gc.collect()
    assert None not in [encoder() for encoder in encoders]  # whose ids are none of the next ones
    for _ in range(memory.most):
        memory.put(object(), next(iter(memory.known.values())))
    gc.collect()
    assert {encoder() for encoder in encoders} == {None}


def test_a_text_is_read_once_by_the_same_encoder(bundle: Bundle) -> None:
    request, memory = resolve(bundle, Request(prompt="a red cat", language="en", long_prompt="cut")), Memory()
    read_prompts(bundle, request, plan(bundle, request), memory)
    first = list(memory.known.values())
    read_prompts(bundle, request, plan(bundle, request), memory)
    assert len(first) == 2  # it, and the empty one
    assert all(a is b for a, b in zip(first, memory.known.values(), strict=True))
