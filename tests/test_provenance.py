"""Signatures and what `kotoe verify` says, also of pictures that somebody has changed; c2pa's Reader is the oracle."""

from __future__ import annotations

import json
import stat
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from commands import Kotoe, running
from kotoe import images
from kotoe.config import dumps
from kotoe.errors import UserError
from kotoe.provenance import c2pa, certificate
from kotoe.provenance.encode import FORMATS, MEDIA, encode, marked
from kotoe.provenance.verify import verify
from pictures import RECORD, drawn, png, scene


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trial certificate."""
    return certificate.make(tmp_path_factory.mktemp("certificate") / "trial", "Studio 猫")


@pytest.fixture(scope="module")
def signer(trial: Path) -> c2pa.Signer:
    return c2pa.signer_of(trial)


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with a further chunk before its end."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content[:-12] + chunk + content[-12:]


def rewritten(content: bytes, change: Callable[[Image.Image, dict[str, str]], None]) -> bytes:
    """A PNG's pixels and texts, changed, in a new file: what an editor does that keeps texts."""
    with Image.open(BytesIO(content)) as image:
        image.load()
        texts = dict(image.text)
    change(image, texts)
    return png(texts, image=image)


# --- Signing


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_signed_is_valid_to_c2pa(format: Any, signer: c2pa.Signer, trial: Path) -> None:
    import c2pa as library

    content = encode(drawn(), format=format, watermark=7, signer=signer)
    with library.Reader(MEDIA[format], BytesIO(content)) as reader:
        assert reader.get_validation_state() == "Valid"
        document = json.loads(reader.json())
        manifest = reader.get_active_manifest()
    assert [fault["code"] for fault in document["validation_status"]] == ["signingCredential.untrusted"]
    assert manifest["claim_generator_info"][0]["name"] == "Kotoe"
    assertions = {a["label"]: a["data"] for a in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    made = assertions["kotoe.generation"]
    assert made["model"] == "kotoe-emoji"
    assert made["unet_sha256"] == RECORD.model.unet_sha256
    assert made["watermark"] == "7"
    assert "prompt" not in made
    anchors = {"trust": {"trust_anchors": (trial / "root.pem").read_text()}, "verify": {"verify_trust": True}}
    with library.Context.from_dict(anchors) as context:
        with library.Reader(MEDIA[format], BytesIO(content), context=context) as reader:
            assert reader.get_validation_state() == "Trusted"
    with Image.open(BytesIO(content)) as image:  # others read it as ever
        assert images.texts(image)["parameters"].startswith("青い背景に猫")


def test_the_prompt_is_said_only_when_asked_for(trial: Path) -> None:
    asked = c2pa.signer_of(trial / "certificate.pem", trial / "key.pem", prompt=True)
    manifest = asked.manifest(RECORD)
    assert manifest["assertions"][1]["data"]["prompt"] == "青い背景に猫"
    from_picture = replace(RECORD, init_image="a.png", strength=0.5)
    (action,) = asked.manifest(from_picture)["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert verify(encode(drawn(), signer=asked)).signature.state == "valid"


def test_the_trial_certificate(trial: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE((trial / "key.pem").stat().st_mode) == 0o600
    assert not c2pa.open_to_others(trial / "key.pem")
    with pytest.raises(UserError, match="is there already"):
        certificate.make(trial)
    for name, days, message in (("", 1, "name ''"), ("a\nb", 1, "name 'a"), ("a", 0, "days 0")):
        with pytest.raises(UserError, match=message):
            certificate.make(tmp_path / "x", name, days=days)
    assert not (tmp_path / "x").exists()


def test_what_cannot_sign_is_said_at_once(trial: Path, tmp_path: Path) -> None:
    other = certificate.make(tmp_path / "other")
    (tmp_path / "words.pem").write_text("hello")
    for place, key, message in (
        (trial, other / "key.pem", "can't sign"),
        (trial / "root.pem", trial / "key.pem", "can't sign"),
        (tmp_path / "absent", None, "is no file.*kotoe certificate FOLDER"),
        (tmp_path / "words.pem", None, "holds no CERTIFICATE"),
        (trial, trial / "certificate.pem", "holds no PRIVATE KEY"),
    ):
        with pytest.raises(UserError, match=message):
            c2pa.signer_of(place, key)


def test_a_certificate_that_has_run_out_is_not_called_tampering() -> None:
    chain, key, _ = certificate._pair("Studio", timedelta(seconds=1.5))
    content = encode(drawn(), signer=c2pa.Signer(certificate=chain, key=key))
    time.sleep(3)
    found = verify(content)
    assert found.signature.state == "lapsed"
    assert found.changed == ()
    assert "certificate isn't good" in found.conclusion


# --- Verifying what is as it was


@pytest.mark.parametrize("format", FORMATS)
def test_all_layers_agree(format: Any, signer: c2pa.Signer, trial: Path) -> None:
    content = encode(drawn(), format=format, watermark=7, signer=signer)
    found = verify(content, anchors=(trial / "root.pem").read_text())
    assert found.changed == ()
    assert found.signature.state == "trusted"
    assert (found.signature.issuer, found.signature.model) == ("Studio 猫", "kotoe-emoji")
    assert found.signature.when.startswith("20")
    assert (found.record.state, found.record.pixels, found.record.unchanged) == ("whole", True, True)
    assert found.record.watermark == 7
    assert found.parameters == "agrees"
    assert (found.watermark.number, found.watermark.found) == (7, True)
    assert "as Studio 猫 signed it" in found.conclusion
    plain = verify(content)
    assert plain.signature.state == "valid"
    assert "calls itself 'Studio 猫'" in plain.conclusion


def test_less_is_said_of_less() -> None:
    found = verify(encode(drawn()))
    assert (found.signature.state, found.record.state, found.watermark.found) == ("none", "whole", False)
    assert "Without a signature anybody could have written it" in found.conclusion
    bare = verify(png({"kotoe": dumps(RECORD)}))
    assert (bare.record.state, bare.record.pixels, bare.changed) == ("bare", None, ())
    foreign = verify(png({"parameters": "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"}))
    assert (foreign.parameters, foreign.tool) == ("alone", "AUTOMATIC1111")
    assert "AUTOMATIC1111 drew it" in foreign.conclusion
    assert verify(png({})).conclusion == "Nothing here says where it comes from."


# --- Verifying what was changed


def test_a_pixel_changed_after_signing(signer: c2pa.Signer) -> None:
    content = encode(drawn(), watermark=7, signer=signer)

    def touch(image: Image.Image, texts: dict[str, str]) -> None:
        pixel = image.getpixel((3, 3))
        image.putpixel((3, 3), (pixel[0] ^ 1, *pixel[1:]))

    manifest = content[content.index(b"caBX") - 4 :]
    chunk = manifest[: struct.unpack(">I", manifest[:4])[0] + 12]
    edited = rewritten(content, touch)
    kept = edited[:33] + chunk + edited[33:]  # the manifest as it was, after IHDR
    found = verify(kept)
    assert found.signature.state == "broken"
    assert any("dataHash" in fault for fault in found.signature.faults)
    assert found.record.pixels is False
    assert found.record.unchanged is True
    assert found.conclusion.startswith("Changed since it was made: the signature doesn't hold")
    assert found.watermark.number == 7
    unsigned = verify(edited)  # the manifest thrown away: the digest still shows it
    assert unsigned.signature.state == "none"
    assert unsigned.changed == ("the pixels are not those that the file was written with",)
    same = verify(rewritten(content, lambda image, texts: None))  # saved anew with every text and pixel
    assert same.changed == ()


def test_a_text_added_after_signing(signer: c2pa.Signer) -> None:
    content = encode(drawn(), signer=signer)
    for added in (
        with_chunk(content, b"tEXt", b"Comment\0hello"),
        with_chunk(content, b"iTXt", "Title\0\0\0\0\0猫".encode()),
        content + b"\0",
    ):
        found = verify(added)
        assert found.signature.state == "broken"
        assert found.changed
        assert found.record.state == "whole"


def test_a_record_swapped_from_another_picture(signer: c2pa.Signer) -> None:
    content, other = encode(drawn()), encode(drawn(scene(seed=3), prompt="a dog", seed=8))
    theirs = images.texts(other)

    def swap(*keys: str) -> tuple[str, ...]:
        return verify(rewritten(content, lambda _, texts: texts.update({key: theirs[key] for key in keys}))).changed

    record, digest, parameters = "kotoe", "kotoe-digest", "parameters"
    pixels, unlike = "the pixels are not", "the text `parameters` says other"
    assert [c.split(" that")[0] for c in swap(record)] == ["the record is not the one", f"{unlike} than the record"]
    assert [c[: len(pixels)] for c in swap(record, digest, parameters)] == [pixels]
    assert [c[: len(unlike)] for c in swap(parameters)] == [unlike]
    assert len(swap(digest)) == 2
    signed = encode(drawn(), signer=signer)  # and with a manifest from another file
    chunk = signed[33 : 33 + 12 + struct.unpack(">I", signed[33:37])[0]]
    assert verify(other[:33] + chunk + other[33:]).signature.state == "broken"


def test_other_changes_that_a_layer_shows(signer: c2pa.Signer) -> None:
    content = encode(drawn(), watermark=7)

    def clear(image: Image.Image, texts: dict[str, str]) -> None:
        image.putalpha(Image.new("L", image.size, 254))

    assert verify(rewritten(content, clear)).record.pixels is False
    other = encode(marked(drawn(), 9))
    texts = images.texts(content)
    with Image.open(BytesIO(other)) as image:
        found = verify(png({"kotoe": texts["kotoe"]}, image=image.convert("RGB")))
    assert found.changed == ("the watermark has the number 9, the record 7",)
    found = verify(png({"kotoe": dumps(RECORD)}, image=scene(64, 64)))
    assert found.changed == ("the record is of 128x128 pixels, the picture has 64x64",)
    assert verify(png({"kotoe": "{}"})).changed == ("Kotoe's record can't be read",)
    assert verify(png({"kotoe": dumps(RECORD), "kotoe-digest": "[]"})).record.state == "changed"


def test_saved_as_jpeg_only_the_watermark_is_left(signer: c2pa.Signer) -> None:
    content = encode(drawn(), watermark=7, signer=signer)
    with Image.open(BytesIO(content)) as image:
        file = BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=75)
    found = verify(file.getvalue())
    assert (found.signature.state, found.record.state, found.parameters) == ("none", "none", "none")
    assert (found.watermark.number, found.watermark.found) == (7, True)
    assert found.changed == ()
    assert found.conclusion == (
        "Its texts are gone, but the watermark says that Kotoe drew it, for the operator with the number 7."
    )


def manifest_of(content: bytes, format: str) -> tuple[int, int]:
    """Where in a file the manifest's chunk begins and ends."""
    at = {"png": content.find(b"caBX") - 4, "jpeg": content.find(b"\xff\xeb"), "webp": content.rfind(b"C2PA")}[format]
    if format == "png":
        return at, at + 12 + struct.unpack(">I", content[at : at + 4])[0]
    if format == "jpeg":
        return at, at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
    return at, at + 8 + struct.unpack("<I", content[at + 4 : at + 8])[0]


@pytest.fixture(scope="module")
def signed(signer: c2pa.Signer) -> dict[str, bytes]:
    return {format: encode(drawn(), format=format, signer=signer) for format in FORMATS}


@settings(max_examples=60)
@given(data=st.data(), format=st.sampled_from(FORMATS))
def test_any_byte_changed_is_seen_or_makes_no_picture(
    signed: dict[str, bytes], data: st.DataObject, format: Any
) -> None:
    """Inside the manifest there are bytes that say nothing, such as padding; around it every one is signed."""
    content = bytearray(signed[format])
    begins, ends = manifest_of(signed[format], format)
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        found = verify(bytes(content))
    except UserError:
        return
    if begins <= at < ends:
        assert found.changed == () or found.signature.state == "broken"
        assert found.record.state == "whole"
    else:
        assert found.signature.state == "broken"


@settings(max_examples=80)
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b""]), st.binary(max_size=300))
def test_garbage_is_no_picture(head: bytes, rest: bytes) -> None:
    with pytest.raises(UserError):
        verify(head + rest)
    c2pa.read(head + rest, "image/png")


def test_marked_once() -> None:
    with pytest.raises(UserError, match="has the watermark 7 already"):
        encode(marked(drawn(), 7), watermark=7)
    assert marked(drawn(), None) == drawn()


# --- The command line


def test_generate_marks_signs_and_replays(kotoe: Kotoe, trial: Path) -> None:
    signing = ("--watermark", "513", "--c2pa", trial, "--c2pa-prompt")
    done = kotoe("generate", "a red cat", "--n", "2", "--fast", *signing, "--grid-image", "--json")
    assert done.code == 0, done.err
    assert "grid.png itself is not signed" in done.err
    assert done.json["config"]["watermark"] == 513
    paths = [entry["path"] for entry in done.json["pictures"]]
    assert all(entry["record"]["watermark"] == 513 for entry in done.json["pictures"])
    checked = kotoe("verify", *paths, "--trust", trial / "root.pem", "--json")
    assert checked.code == 0, checked.err
    assert checked.json["changed"] is False
    for entry in checked.json["pictures"]:
        assert entry["signature"]["state"] == "trusted"
        assert entry["watermark"]["number"] == 513
    again = kotoe("generate", "--replay", paths[0], "--out", "again", "--json")
    assert again.code == 0, again.err
    assert again.json["identical"] is True
    (replayed,) = again.json["pictures"]
    assert replayed["record"]["watermark"] == 513
    plain = kotoe("verify", replayed["path"])
    assert plain.code == 0
    assert "watermark: number 513" in plain.out
    assert "signature: none" in plain.out
    done = kotoe("generate", "--replay", paths[0], "--watermark", "5")
    assert done.code == 2
    assert "--replay together with watermark" in done.err


def test_generate_refuses_before_it_draws(kotoe: Kotoe, tmp_path: Path, trial: Path) -> None:
    for arguments, message in (
        (("--watermark", "65536"), "watermark 65536. Allowed: 0 to 65535"),
        (("--watermark", "1", "--width", "64", "--height", "64"), "64x64 pixels is too small for a watermark"),
        (("--c2pa", "absent"), "absent is no file"),
        (("--c2pa-prompt",), "c2pa_prompt without c2pa"),
        (("--c2pa", trial, "--c2pa-key", "absent.pem"), "absent.pem is no file"),
    ):
        done = kotoe("generate", "a cat", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert not (tmp_path / "out").exists()


def test_verify_says_and_ends_with_what_it_found(kotoe: Kotoe, signer: c2pa.Signer) -> None:
    good, bad = encode(drawn(), signer=signer), with_chunk(encode(drawn(), signer=signer), b"tEXt", b"a\0b")
    Path("good.png").write_bytes(good)
    Path("bad.png").write_bytes(bad)
    done = kotoe("verify", "good.png", "bad.png")
    assert done.code == 1
    assert done.out.count("signature: valid, not trusted: Studio 猫 (trial signer)") == 1
    assert done.out.count("DOES NOT HOLD") == 1
    assert kotoe("verify", "good.png").code == 0
    forged = json.loads(dumps(RECORD))
    forged["model"]["name"] = "x\x1b]0;owned\x07"
    Path("hostile.png").write_bytes(png({"kotoe": json.dumps(forged)}))
    done = kotoe("verify", "hostile.png")
    assert "\x1b" not in done.out
    for arguments, message in (
        (("absent.png",), "picture absent.png is absent"),
        ((".",), "is no file"),
        (("good.png", "--trust", "good.png"), "holds no certificate"),
        ((), "pictures is missing"),
    ):
        done = kotoe("verify", *arguments)
        assert done.code == 2, arguments
        assert message in done.err


def test_the_certificate_verb(kotoe: Kotoe) -> None:
    done = kotoe("certificate", "trial", "--name", "Studio", "--json")
    assert done.code == 0, done.err
    assert "nobody trusts this certificate" in done.err
    assert done.json == {"certificate": "trial/certificate.pem", "key": "trial/key.pem", "root": "trial/root.pem"}
    again = kotoe("certificate", "trial")
    assert again.code == 2
    assert "is there already" in again.err
    Path("trial/key.pem").chmod(0o644)
    done = kotoe("generate", "a cat", "--c2pa", "trial", "--dry-run")
    assert "others on this machine may read trial/key.pem" in done.err


def test_without_c2pa_python_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, signer: c2pa.Signer) -> None:
    content = encode(drawn(), signer=signer)
    import sys

    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = verify(content)
    assert found.signature.state == "unchecked"
    assert "kotoe[provenance]" in found.conclusion
    assert verify(encode(drawn())).signature.state == "none"
    with pytest.raises(UserError, match=r"pip install 'kotoe\[provenance\]'"):
        c2pa.signer_of("anywhere")


def test_inspect_reads_records_of_every_format(kotoe: Kotoe) -> None:
    for format in FORMATS:
        Path(f"a.{format}").write_bytes(encode(drawn(), format=format))
        done = kotoe("inspect", f"a.{format}", "--json")
        assert done.code == 0, done.err
        assert done.json["record"]["prompt"] == "青い背景に猫"


def test_pillow_reads_what_is_written(signer: c2pa.Signer) -> None:
    with Image.open(BytesIO(encode(drawn(), signer=signer))) as image:
        assert isinstance(image.text["parameters"], PngImagePlugin.iTXt)
        assert list(image.text) == ["kotoe", "kotoe-digest", "parameters"]
