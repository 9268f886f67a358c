"""Checkpoints: load and save are inverse, every fault in a folder is named, and hostile folders get nowhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kotoe.checkpoints import Bundle, files, load, save
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.diffusers import vae_name
from kotoe.checkpoints.files import check_shapes, choose_dtype, file_sha256, replacing, shapes_of, skeleton
from kotoe.errors import CheckpointError, UserError
from kotoe.text import CLIPText
from tiny import saved_tiny, tiny_bundle

LANGUAGES = ("en", "ja", "ko")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "sd1", "sd1", languages=LANGUAGES)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def networks(bundle: Bundle) -> dict[str, torch.nn.Module]:
    encoders = {language: bundle.conditioners[language].encoder for language in bundle.languages}
    return {"unet": bundle.unet, "vae": bundle.vae, **encoders}


def files_of(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


# --- round trip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_save_and_load_are_inverse(family: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(family, languages=LANGUAGES)
    found = load(save(bundle, tmp_path / "one"), dtype="float32")
    for name, module in networks(bundle).items():
        again = networks(found)[name]
        assert again.spec == module.spec
        mine, theirs = module.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    same = ("name", "schedule", "default_language", "languages", "family", "licence", "defaults")
    assert [getattr(found, f) for f in same] == [getattr(bundle, f) for f in same]
    for language in LANGUAGES:
        one, two = bundle.conditioner(language).tokenizer, found.conditioner(language).tokenizer
        assert (one.sha256, one.kind, one.pad) == (two.sha256, two.kind, two.pad)
    assert found.folder == (tmp_path / "one").resolve()
    save(found, tmp_path / "two")
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_dtypes_on_disk_and_in_memory(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    half = save(bundle, tmp_path / "half", dtype="float16")
    full = save(bundle, tmp_path / "full")
    sizes = [(f / "unet/diffusion_pytorch_model.safetensors").stat().st_size for f in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    for name in ("float32", "bfloat16", "float16"):
        loaded = load(half, dtype=name)
        assert {t.dtype for m in networks(loaded).values() for t in m.state_dict().values()} == {getattr(torch, name)}
    mixed = load(half, dtype={"unet": "bfloat16", "vae": torch.float32, "text_encoder": "float32"})
    assert (mixed.unet.conv_in.weight.dtype, mixed.vae.quant_conv.weight.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(load(half, dtype="float32").unet.conv_in.weight, bundle.unet.conv_in.weight.half().float())
    with pytest.raises(UserError, match="dtype 'float8'.*auto, float32"):
        load(half, dtype="float8")
    with pytest.raises(UserError, match="unknown part in dtype 'unit'.*Did you mean 'unet'"):
        load(half, dtype={"unit": "float32"})


def test_auto_is_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("flags: sse avx512f avx512_bf16", torch.bfloat16), ("flags: sse avx512f", torch.float32)):
        monkeypatch.setattr(Path, "read_text", lambda *_, flags=flags, **__: flags)
        assert choose_dtype(None, torch.device("cpu")) is choose_dtype("auto", torch.device("cpu")) is expected
        assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16  # asked for is asked for


def test_weights_in_memory_may_change_without_touching_the_file(folder: Path) -> None:
    """They are memory-mapped: training in place must not write through, nor saving over the folder cut them off."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    before = file_sha256(path)
    bundle = load(folder, dtype="float32")
    with torch.no_grad():
        bundle.unet.conv_in.weight.add_(1.0)
    assert file_sha256(path) == before
    changed = bundle.unet.conv_in.weight.clone()
    save(bundle, folder, overwrite=True)
    assert torch.equal(load(folder, dtype="float32").unet.conv_in.weight, changed)
    assert torch.equal(bundle.unet.conv_in.weight, changed)


def test_only_the_conditioner_in_use_is_read(folder: Path) -> None:
    (folder / "conditioners/ja/text_encoder/model.safetensors").write_bytes(b"broken")
    (folder / "text_encoder/model.safetensors").write_bytes(b"broken")
    bundle = load(folder)
    assert bundle.languages == LANGUAGES
    assert "ja" in bundle.conditioners
    assert bundle.tokenizer("ja").vocab_size == bundle.tokenizer("ko").vocab_size
    assert bundle.conditioners.loaded == ()
    korean = bundle.conditioner("ko")
    assert bundle.conditioners.loaded == ("ko",)
    assert bundle.tokenizer("ko") is korean.tokenizer
    assert bundle.conditioner("ko") is korean
    with pytest.raises(CheckpointError, match=r"conditioners/ja/text_encoder: model\.safetensors \(6 bytes\) is trunc"):
        bundle.conditioner("ja")
    with pytest.raises(UserError, match="unknown language 'jp'.*en, ja, ko.*Did you mean 'ja'"):
        bundle.conditioner("jp")


def test_a_conditioner_first_read_while_drawing_is_like_any_other(folder: Path) -> None:
    """Inference mode marks the tensors made in it, which could never be trained or put into another network."""
    bundle = load(folder, dtype="float32")
    with torch.inference_mode():
        encoder = bundle.conditioner("ja").encoder
    assert not any(p.is_inference() for p in encoder.parameters())


def test_a_cold_load_imports_nothing_heavy(original: Path) -> None:
    code = (
        "import sys, kotoe; b = kotoe.load(sys.argv[1], dtype='float32'); b.conditioner('ja').encode(['猫']);"
        "heavy = {'sympy', 'transformers', 'diffusers', 'huggingface_hub', 'torch._dynamo', 'torch.onnx'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, original], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_hashes_are_those_of_the_files_when_they_were_loaded(folder: Path) -> None:
    bundle = load(folder)
    unet = folder / "unet/diffusion_pytorch_model.safetensors"
    assert bundle.hashes["unet"] == file_sha256(unet)
    assert set(bundle.hashes) == {"unet", "vae"}
    korean = conditioner_hashes(bundle.conditioner("ko"))
    assert korean["text_encoder"] == file_sha256(folder / "conditioners/ko/text_encoder/model.safetensors")
    assert korean["tokenizer"] == bundle.conditioner("ko").tokenizer.sha256
    other = load(folder)
    save_file({k: v + 1 for k, v in load_file(unet).items()}, unet, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="changed after it was loaded"):
        other.hashes["unet"]
    assert load(folder).sha256 != bundle.sha256
    # made or changed in memory, a bundle doesn't claim any file
    changed = bundle.changed(name="new")
    assert (changed.folder, dict(changed.hashes)) == (None, {})
    with torch.no_grad():
        before = changed.sha256
        changed.unet.conv_in.bias.add_(1.0)
    assert changed.sha256 != before


# --- tensors ------------------------------------------------------------------------------------------------

NORM, LINEAR, CONV = "conv_norm_out.weight", "time_embedding.linear_1.weight", "conv_in.weight"
TENSOR_FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda t: t.pop(NORM), rf"1 of \d+ tensors don't fit: {NORM} \[32\] is missing"),
    "extra": (lambda t: t.update(stray=torch.zeros(3, 5)), r"stray \[3, 5\] is extra"),
    "renamed": (
        lambda t: t.update({"conv_norm_out.gamma": t.pop(NORM)}),
        f"{NORM} is missing but conv_norm_out.gamma of the same shape is there",
    ),
    "transposed": (
        lambda t: t.update({LINEAR: t[LINEAR].T.contiguous()}),
        rf"{LINEAR} is transposed: \[32, 128\] in the file, \[128, 32\] by",
    ),
    "channels last": (
        lambda t: t.update({CONV: t[CONV].permute(2, 3, 1, 0).contiguous()}),
        rf"{CONV} is transposed: \[3, 3, 4, 32\] in the file, \[32, 4, 3, 3\]",
    ),
    "wider": (
        lambda t: t.update({CONV: torch.zeros(32, 9, 3, 3)}),
        rf"{CONV} has another shape: \[32, 9, 3, 3\] in the file",
    ),
    "integers": (lambda t: t.update({NORM: torch.zeros(32, dtype=torch.int8)}), f"{NORM} holds I8"),
    "many": (lambda t: [t.pop(k) for k in list(t)[:20]], "and 12 more"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_a_faulty_tensor_is_named(fault: str, folder: Path) -> None:
    damage, message = TENSOR_FAULTS[fault]
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"unet: .*{message}"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_single_tensor_is_needed(part: str) -> None:
    """Left out, any one tensor of any part is named; with all of them there is no complaint."""
    bundle = tiny_bundle()
    module = {"unet": bundle.unet, "vae": bundle.vae, "text_encoder": bundle.conditioner().encoder}[part]
    expected = shapes_of(module)
    check_shapes(expected, expected, part)
    for name in expected:
        with pytest.raises(CheckpointError, match=rf"{part}: 1 of .*{name} "):
            check_shapes(expected, {k: v for k, v in expected.items() if k != name}, part)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named(kept: float, folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    cut = int(len(content) * kept) if 0 < kept < 1 else int(kept)
    path.write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match=r"vae: diffusion_pytorch_model.safetensors \(\d+ bytes\) is truncated"):
        load(folder)


def test_shards_are_joined(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    for k, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, folder / f"unet/part-{k}.safetensors")
    table = {n: f"part-{k % 2}.safetensors" for k, n in enumerate(names)}
    path.unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert torch.equal(load(folder, dtype="float32").unet.conv_in.weight, tensors["conv_in.weight"])
    assert len(load(folder).hashes["unet"]) == 64
    index.write_text(json.dumps({"weight_map": {**table, names[0]: "../vae/config.json"}}))
    with pytest.raises(CheckpointError, match="weight_map isn't a table"):
        load(folder)


def test_older_names_are_understood(folder: Path) -> None:
    """VAE attention of before diffusers 0.15, stored position ids, and text encoders without their prefix."""
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    before = load(folder, dtype="float32")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in tensors.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, path)
    text = folder / "text_encoder/model.safetensors"
    states = {k.removeprefix("text_model."): v for k, v in load_file(text).items()}
    save_file({**states, "embeddings.position_ids": torch.arange(16)[None]}, text)
    after = load(folder, dtype="float32")
    for name in ("unet", "vae", "en"):
        mine, theirs = networks(before)[name].state_dict(), networks(after)[name].state_dict()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert vae_name("encoder.conv_in.weight") == "encoder.conv_in.weight"
    save_file({**tensors, "encoder.mid_block.attentions.0.to_q.weight": torch.zeros(32, 32)}, path)
    with pytest.raises(CheckpointError, match=r"are both encoder\.mid_block\.attentions\.0\.to_q\.weight"):
        load(folder)


# --- pickles ------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    torch.save(tensors, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"unet/diffusion_pytorch_model\.bin is a pickle.*safetensors.*allow_pickle"
    ):
        load(folder)
    assert torch.equal(load(folder, allow_pickle=True, dtype="float32").unet.conv_in.weight, tensors["conv_in.weight"])
    torch.save({**tensors, "x": Bomb(tmp_path / "boom")}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or holds more than tensors"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "boom").exists()
    torch.save([1, 2], folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something else than a table of tensors"):
        load(folder, allow_pickle=True)


# --- saving -------------------------------------------------------------------------------------------------


def test_saving_is_all_or_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(folder)
    bundle = load(folder, dtype="float32")
    monkeypatch.setattr("kotoe.checkpoints._write_json", _fail_at("model_index.json"))
    with pytest.raises(OSError, match="disk full"):
        save(bundle, folder, overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        save(bundle, tmp_path / "new")
    assert files_of(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]  # no temporary folder is left either


def _fail_at(name: str) -> Callable[[Path, dict], None]:
    def write(path: Path, value: dict) -> None:
        if path.name == name:
            raise OSError("disk full")
        path.write_text(json.dumps(value))

    return write


def test_what_is_there_is_not_overwritten_by_chance(folder: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(seed=9)
    with pytest.raises(UserError, match="is there already.*overwrite"):
        save(bundle, folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no model_index\.json, so it isn't a checkpoint"):
        save(bundle, precious, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        save(bundle, precious / "thesis.txt", overwrite=True)
    (folder / "README.md").write_text("the card")
    save(bundle, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "the card"
    assert not (folder / "conditioners").exists()  # nothing of the old model
    assert torch.equal(load(folder, dtype="float32").unet.conv_in.weight, bundle.unet.conv_in.weight)
    (tmp_path / "empty").mkdir()
    assert load(save(bundle, tmp_path / "empty")).name == "tiny-sd1"


def test_an_interrupt_leaves_the_old_folder(folder: Path) -> None:
    before = files_of(folder)

    def interrupted() -> None:
        with replacing(folder, overwrite=True, marker="model_index.json") as new:
            (new / "model_index.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_of(folder) == before


def test_an_encoder_and_tokenizer_that_disagree_are_not_saved(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    one = bundle.conditioner()
    wrong = replace(one, encoder=skeleton(lambda: CLIPText(replace(one.encoder.spec, pad=0))))
    with pytest.raises(CheckpointError, match=r"the encoder's \{'pad': 0\} aren't the tokenizer's"):
        save(bundle.changed(conditioners={"en": wrong}), tmp_path / "m")
    assert not (tmp_path / "m").exists()


# --- memory -------------------------------------------------------------------------------------------------

PEAK = """\
import sys
from pathlib import Path
import torch
from kotoe.checkpoints import files
path, dtype, mapped = Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3])
files.MAPPED_BYTES = mapped or files.MAPPED_BYTES
def peak():
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
expected = {entry.name: entry.shape for entry in files.entries(path, "part")}
before = peak()
found = files.read_tensors([path], expected, what="part", dtype=dtype, device=torch.device("cpu"))
total = sum(int((t == 1).sum()) for t in found.values())  # looks at every page
size = sum(t.nbytes for t in found.values())
assert total * dtype.itemsize == size and all(t.dtype == dtype for t in found.values())
print((peak() - before) / size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 MiB of float16."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    save_file({f"t{i}": torch.ones(2048, 2048, dtype=torch.float16) for i in range(50)}, path)
    return path


def peak_of(path: Path, dtype: str, mapped: int = 0) -> float:
    """The largest resident set of a child that reads a file, over the tensors' size. mapped: another MAPPED_BYTES."""
    command = [sys.executable, "-c", PEAK, str(path), dtype, str(mapped)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_converting_holds_no_second_copy(large: Path) -> None:
    assert peak_of(large, "bfloat16") <= 1.25
    assert peak_of(large, "bfloat16", 2**40) > 1.25  # the fault: a mapping that stays to the end
    assert peak_of(large, "float32") <= 1.25


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAPPED_BYTES", 1)
    path = tmp_path / "model.safetensors"
    stored = {name: torch.randn(4, 4) for name in ("a", "b", "c")}
    save_file(stored, path)
    a, b, c = files.entries(path, "unet")
    assert torch.equal(a.read(torch.bfloat16), stored["a"].bfloat16())
    assert torch.equal(b.read(torch.bfloat16), stored["b"].bfloat16())  # through a new mapping
    save_file(stored, path.with_name("other"))
    path.with_name("other").rename(path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        c.read(torch.bfloat16)
