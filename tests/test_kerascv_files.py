"""KerasCV's HDF5 files are untrusted input: what is missing, extra, of another kind or hostile is refused by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kerascv_reference as ref
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.inspect import describe
from kotoe.checkpoints.keras_h5 import layers_of
from kotoe.checkpoints.kerascv import save_kerascv
from kotoe.config import to_json
from kotoe.errors import CheckpointError, UserError
from kotoe.text import CLIPText, Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE
from tiny import saved_tiny, seeded, tiny_bundle, tiny_conditioner, tiny_tokenizer

DECODER, ENCODER = "kcv_decoder.h5", "vae_encoder.h5"
TEXT, UNET = ref.NAMES["sd1"]
KERNEL = "padded_conv2d_1/part_0/kernel_0:0"  # conv_in's, inside its layer's group
LAYER = "padded_conv2d_1"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ref.write_folder(tmp_path_factory.mktemp("kerascv") / "sd1", "sd1")
    (folder / "tokenizer").mkdir()
    tiny_tokenizer("en").save(folder / "tokenizer")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


@pytest.fixture(scope="module")
def bundle(original: Path) -> Bundle:
    return load(original, dtype="float32")


def test_the_copy_loads(folder: Path) -> None:
    bundle = load(folder)
    assert bundle.conditioner().tokenizer.vocab_size == 560
    assert (bundle.name, bundle.family, bundle.languages) == ("copy", "sd1", ("en",))
    assert (bundle.schedule.sampler, bundle.schedule.set_alpha_to_one) == ("ddim", True)
    assert set(bundle.hashes) == {"unet", "vae"}
    assert all(len(bundle.hashes[part]) == 64 for part in bundle.hashes)
    assert any("numerics kerascv" in note for note in bundle.notes)


def test_inspection_says_what_loading_makes(folder: Path, bundle: Bundle) -> None:
    """Without reading a tensor."""
    found = describe(folder)
    text = bundle.conditioner().encoder
    for part, net in (("unet", bundle.unet), ("vae", bundle.vae), ("text_encoder", text)):
        said = {key: value for key, value in found["components"][part].items() if key != "class"}
        assert said == to_json(net.spec)
        assert found["sizes"][part]["parameters"] == sum(p.numel() for p in net.parameters())
    assert found["hashes"]["unet"] == bundle.hashes["unet"]
    assert (found["name"], found["family"], found["size_px"]) == ("copy", "sd1", 128)
    assert found["defaults"] == {"sampler": "ddim", "steps": 50, "guidance_scale": 7.5, "grid": "leading"}
    assert found.keys() == describe().keys()


# --- What HDF5 can hold, and Keras 2 doesn't write ----------------------------------------------------------


def instead(file: h5py.File, make: Callable[[h5py.Group, str], Any]) -> None:
    """Another thing in the place of one kernel."""
    group = file[LAYER]
    del group[KERNEL]
    make(group, KERNEL)


def names(file: h5py.File, value: Any, key: str = "layer_names", where: str = "/") -> None:
    del file[where].attrs[key]
    if value is not None:
        file[where].attrs[key] = value


def virtual(group: h5py.Group, name: str) -> None:
    layout = h5py.VirtualLayout((3, 3, 4, 64), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (3, 3, 4, 64))
    group.create_virtual_dataset(name, layout)


def keras_3(file: h5py.File) -> None:
    file.clear()
    file.attrs.clear()
    file.create_dataset("layers/dense/vars/0", data=np.zeros((2, 2), "f4"))


def keras_3_functional(file: h5py.File) -> None:
    file.clear()
    file.create_dataset("_layer_checkpoint_dependencies/dense/vars/0", data=np.zeros((2, 2), "f4"))


def loop(file: h5py.File) -> None:
    for k in range(12):
        file[LAYER][f"again_{k}"] = file[LAYER]


def dataset(**options: Any) -> Callable[[h5py.File], None]:
    return lambda file: instead(file, lambda group, name: group.create_dataset(name, **options))


def linked(link: Any) -> Callable[[h5py.File], None]:
    return lambda file: instead(file, lambda group, name: group.__setitem__(name, link))


SHAPE = (3, 3, 4, 64)
DAMAGES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "keras 3": (keras_3, r"a weight file of Keras 3 \(.weights.h5\)"),
    "keras 3, functional": (keras_3_functional, r"a weight file of Keras 3 \(.weights.h5\)"),
    "keras_version 3": (lambda f: f.attrs.__setitem__("keras_version", b"3.1.0"), "written by Keras 3.1.0.*2.x"),
    "no version": (lambda f: f.attrs.__delitem__("keras_version"), "Keras 1, or by no Keras"),
    "version a number": (lambda f: f.attrs.__setitem__("keras_version", 2), "keras_version of type int64"),
    "a whole model": (lambda f: f.create_group("model_weights"), "a whole Keras model"),
    "no layer_names": (lambda f: names(f, None), "has no layer_names"),
    "numbers as names": (lambda f: names(f, np.arange(3)), "layer_names of / is no list of names"),
    "one name": (lambda f: names(f, b"dense"), "layer_names of / is no list of names"),
    "a layer twice": (
        lambda f: names(f, [*f.attrs["layer_names"], LAYER.encode()]),
        f"layer_names lists '{LAYER}' twice",
    ),
    "a layer less": (lambda f: names(f, f.attrs["layer_names"][1:]), "groups that layer_names doesn't list: rescaling"),
    "a layer that isn't there": (
        lambda f: names(f, [*f.attrs["layer_names"], b"ghost"]),
        "'ghost' is listed but not in /",
    ),
    "a name that climbs": (lambda f: names(f, [*f.attrs["layer_names"], b"../x"]), "no '../x' in /"),
    "a name that can't be printed": (lambda f: names(f, [b"a\x1b[2J"]), r"lists 'a\\x1b\[2J'"),
    "very many names": (lambda f: names(f, np.array([b"%d" % k for k in range(5000)])), "5000 names in layer_names"),
    "no weight_names": (lambda f: names(f, None, "weight_names", LAYER), f"/{LAYER} has no weight_names"),
    "a weight that isn't listed": (
        lambda f: f[LAYER].create_dataset("more/extra:0", data=[1.0]),
        "weight_names doesn't list: more/extra:0",
    ),
    "a weight that isn't there": (lambda f: f[LAYER].__delitem__(KERNEL), "is listed but not in"),
    "a weight of no layer": (
        lambda f: (
            f["top_level_model_weights"].create_dataset("w:0", data=np.zeros(1, "f4")),
            names(f, [b"w:0"], "weight_names", "top_level_model_weights"),
        ),
        "weights of no layer",
    ),
    "groups in a loop": (loop, "more than 65536 groups|weight_names doesn't list"),
    "a soft link": (linked(h5py.SoftLink("/padded_conv2d/x")), "a link to another place"),
    "an external link": (linked(h5py.ExternalLink("/etc/hostname", "/x")), "a link to another file"),
    "a named type": (
        lambda f: instead(f, lambda g, n: g.__setitem__(n, np.dtype("f4"))),
        "is no dataset",
    ),
    "references": (dataset(shape=SHAPE, dtype=h5py.ref_dtype), "holds object"),
    "variable length": (dataset(shape=SHAPE, dtype=h5py.vlen_dtype(np.float32)), "holds object"),
    "texts": (dataset(data=["a", "b"]), "holds object"),
    "compounds": (dataset(data=np.zeros(3, [("a", "f4")])), "holds "),
    "whole numbers": (dataset(data=np.zeros(SHAPE, "i4")), "holds int32.*float16 or float32"),
    "float64": (dataset(data=np.zeros(SHAPE)), "holds float64"),
    "a virtual dataset": (lambda f: instead(f, virtual), "is virtual"),
    "values in another file": (
        dataset(shape=SHAPE, dtype="f4", external=[("/etc/hostname", 0, 4 * 3 * 3 * 4 * 64)]),
        "is in another file",
    ),
    "compressed": (dataset(data=np.zeros(SHAPE, "f4"), compression="gzip"), "is chunked"),
    "a bomb of chunks": (dataset(shape=(2**20, 2**20), dtype="f4", chunks=(64, 64)), "is chunked"),
    "an absurd shape": (dataset(shape=(2**20, 2**20), dtype="f4"), "needs 4398046511104 bytes"),
    "an absurd edge": (dataset(shape=(2**40,), dtype="f4"), "has shape"),
    "never written": (dataset(shape=SHAPE, dtype="f4"), "which the file doesn't have"),
    "a single number": (dataset(data=np.float32(1)), r"has shape \(\)"),
    "nothing": (dataset(data=h5py.Empty("f4")), "has shape None"),
    "an empty edge": (dataset(shape=(0, 3), dtype="f4"), r"has shape \(0, 3\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_keras_2_never_writes(damage: str, folder: Path) -> None:
    make, message = DAMAGES[damage]
    with h5py.File(folder / DECODER, "r+") as file:
        make(file)
    with pytest.raises(CheckpointError, match=rf"^{DECODER}: .*({message})"), layers_of(folder / DECODER):
        pass


@pytest.mark.parametrize("keep", [0, 100, 3000, -5000])
def test_truncated_files(keep: int, folder: Path) -> None:
    path = folder / DECODER
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="damaged or no HDF5 file|which the file doesn't have"):
        load(folder)


def test_other_files_under_the_name(folder: Path) -> None:
    (folder / DECODER).write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(CheckpointError, match=f"^{DECODER} is damaged or no HDF5 file"):
        load(folder)
    (folder / DECODER).unlink()
    (folder / DECODER).symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="outside the folder"):
        load(folder)


def test_flipped_bytes_never_crash(folder: Path) -> None:
    """Whatever a byte of the file's structure is changed to: a CheckpointError, or the same layers."""
    path = folder / DECODER
    with layers_of(path) as layers:
        shapes = [[w.shape for w in layer.weights] for layer in layers]
    content = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for position in rng.integers(0, 4000, 60):
        changed = bytearray(content)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with layers_of(path) as layers:
                for layer in layers:
                    for weight in layer.weights:
                        assert weight.read().shape == weight.shape
                assert len(layers) == len(shapes)
        except CheckpointError:
            refused += 1
    assert refused > 0


def test_chunked_lists_of_names(folder: Path) -> None:
    """Keras splits a list over 64 KB into layer_names0, layer_names1, ..."""
    with layers_of(folder / DECODER) as layers:
        before = [layer.name for layer in layers]
    with h5py.File(folder / DECODER, "r+") as file:
        found = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = found[:5], found[5:]
    with layers_of(folder / DECODER) as layers:
        assert [layer.name for layer in layers] == before


def test_names_of_any_length_too(folder: Path) -> None:
    """h5py 3 writes lists of bytes so, older ones at a fixed length."""
    with h5py.File(folder / DECODER, "r+") as file:
        found = [name.decode() for name in file.attrs["layer_names"]]
        file.attrs["layer_names"] = found
        assert file.attrs.get_id("layer_names").dtype.kind == "O"
    assert load(folder).family == "sd1"


# --- Other layers than KerasCV's ----------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[list[ref.Entry]], Any]) -> None:
    entries = LAYERS[path.name](ref.SIZES["sd1"])
    change(entries)
    ref.write(path, entries, 0)


def shaped(layers: list[ref.Entry], i: int, k: int, shape: tuple[int, ...]) -> None:
    kind, tensors = layers[i]
    layers[i] = (kind, [*tensors[:k], (tensors[k][0], shape), *tensors[k + 1 :]])


def cut(layers: list[ref.Entry], i: int, kept: int) -> None:
    layers[i] = (layers[i][0], layers[i][1][:kept])


MISFITS: dict[str, tuple[str, Callable[[list[ref.Entry]], Any], str]] = {
    "a layer missing": (DECODER, lambda x: x.pop(3), "layers with weights. Allowed: "),
    "a layer extra": (DECODER, lambda x: x.insert(3, x[3]), "layers with weights. Allowed: "),
    "transposed": (
        DECODER,
        lambda x: shaped(x, 2, 0, (4, 64, 3, 3)),
        r"decoder.conv_in.weight\) is transposed \[4, 64, 3, 3\], not \[3, 3, 4, 64\]",
    ),
    "another shape": (DECODER, lambda x: shaped(x, 2, 1, (63,)), r"conv_in.bias\) is \[63\], not \[64\]"),
    "a tensor missing": (DECODER, lambda x: cut(x, 2, 1), "has 1 tensors where a padded_conv2d has 2"),
    "a linear attention": (DECODER, lambda x: shaped(x, 4, 2, (64, 64)), r"is \[64, 64\], not \[1, 1, 64, 64\]"),
    "an odd layer": (UNET, lambda x: cut(x, 7, 9), "layer 'res_block' has 9 tensors. Allowed: 2, 10, 12, 26"),
    "in torch's order": (
        UNET,
        lambda x: x.insert(2, x.pop(5)),  # the two layers of the time embedding, then the first convolution
        "misfits: |too few",
    ),
    "no transformers": (
        UNET,
        lambda x: x.__setitem__(slice(None), [e for e in x if e[0] != "spatial_transformer"]),
        "a UNet without transformers",
    ),
    "a level without blocks": (
        UNET,
        lambda x: x.__setitem__(slice(None), [e for e in x if e[0] != "res_block"]),
        "are no UNet of KerasCV's",
    ),
    "hardly any layers": (UNET, lambda x: x.__delitem__(slice(4, None)), "no UNet of KerasCV's|too few"),
    "groups that don't fit": (UNET, lambda x: shaped(x, 7, 2, (3, 3, 32, 40)), "40 channels don't split into 32"),
    "narrow text": (TEXT, lambda x: shaped(x, 2, 0, (560, 60)), "states 60 wide. Allowed: a multiple of 64"),
    "no text layers": (TEXT, lambda x: x.__delitem__(slice(3, 5)), "too few layers|layer 0"),
    "few words": (TEXT, lambda x: shaped(x, 2, 0, (500, 64)), "500 embeddings for a tokenizer of 560 ids"),
    "few positions": (TEXT, lambda x: shaped(x, 2, 1, (12, 64)), "12 positions for texts of 16 tokens"),
}
LAYERS = {DECODER: ref.decoder_layers, ENCODER: ref.encoder_layers, UNET: ref.unet_layers, TEXT: ref.text_layers}


@pytest.mark.parametrize("misfit", MISFITS)
def test_other_layers_are_refused(misfit: str, folder: Path) -> None:
    name, change, message = MISFITS[misfit]
    rewrite(folder / name, change)
    with pytest.raises(CheckpointError, match=f"{name}.*({message})"):
        load(folder).conditioner()


def test_files_of_two_models(folder: Path, tmp_path: Path) -> None:
    other = ref.write_folder(tmp_path / "sd2", "sd2")
    (folder / UNET).rename(tmp_path / UNET)
    shutil.copy(other / ref.NAMES["sd2"][1], folder / UNET)
    with pytest.raises(CheckpointError, match=f"{UNET} has dense layers.*convolutions in {UNET}"):
        load(folder)
    shutil.copy(tmp_path / UNET, folder / UNET)
    shutil.copy(other / ref.NAMES["sd2"][1], folder)
    with pytest.raises(CheckpointError, match="files of both of KerasCV's models"):
        load(folder)


def test_another_width_than_the_unet_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref.write(folder / TEXT, ref.text_layers(replace(ref.SIZES["sd1"], text=128)), 0)
    with pytest.raises(CheckpointError, match=f"{TEXT}: states 128 wide for a UNet that reads 64"):
        load(folder).conditioner()


@pytest.mark.parametrize("name", [TEXT, UNET, DECODER, ENCODER])
def test_a_file_missing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"copy: {name} missing. Allowed: {TEXT}, {UNET}, {DECODER}, {ENCODER}"):
        load(folder)


def test_the_port_before(tmp_path: Path) -> None:
    (tmp_path / "diffusion_model.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="diffusion_model.h5 belongs to the port before KerasCV's"):
        load(tmp_path)


# --- Tokenizers, h5py ---------------------------------------------------------------------------------------


def test_the_tokenizer_is_the_callers(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer").rename(tmp_path / "words")
    with pytest.raises(UserError, match=r"KerasCV's files hold no vocabulary. Allowed: tokenizer=FOLDER"):
        load(folder)
    assert load(folder, tokenizer=tmp_path / "words").conditioner().tokenizer.vocab_size == 560
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load(folder, tokenizer=tmp_path / "nothing")
    (folder / "tokenizer").symlink_to(tmp_path / "words")
    with pytest.raises(CheckpointError, match="outside the folder"):
        load(folder).conditioner()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no tokenizer that Kotoe reads"):
        load(folder, tokenizer=tmp_path / "empty").conditioner()


def test_other_folders_have_their_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer .* for the folder.*files that can.t say it"):
        load(saved_tiny(tmp_path / "m"), tokenizer=tmp_path)


def test_without_h5py(folder: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for act in (lambda: load(folder), lambda: save_kerascv(bundle, tmp_path / "m")):
        with pytest.raises(UserError, match=r"h5py isn't installed.*pip install 'kotoe\[kerascv\]'"):
            act()
    assert not (tmp_path / "m").exists()
    load(saved_tiny(tmp_path / "other"))  # nobody else needs it


# --- What KerasCV has no place for --------------------------------------------------------------------------


def _unet(bundle: Bundle, **changes: Any) -> Bundle:
    return bundle.changed(unet=seeded(UNet(replace(bundle.unet.spec, **changes)), 0))


def _vae(bundle: Bundle, **changes: Any) -> Bundle:
    return bundle.changed(vae=seeded(VAE(replace(bundle.vae.spec, **changes)), 0))


def _text(bundle: Bundle, **changes: Any) -> Bundle:
    found = bundle.conditioner()
    encoder = seeded(CLIPText(replace(found.encoder.spec, **changes)), 0)
    return bundle.changed(conditioners={"en": Conditioner("en", found.tokenizer, encoder)})


UNWRITABLE: dict[str, tuple[Callable[[Bundle], Bundle], str]] = {
    "family": (lambda b: b.changed(family="sd2"), "the family is sd2.*sd1"),
    "heads": (lambda b: _unet(b, num_heads=(4, 4)), r"number of heads is \(4, 4\).*\(8, 8\)"),
    "width": (lambda b: _unet(b, block_out_channels=(36, 72), norm_num_groups=4, num_heads=(4, 4)), "multiples of 8"),
    "groups": (lambda b: _unet(b, norm_num_groups=8), "the UNet's groups is 8.*32"),
    "gelu": (lambda b: _unet(b, gelu="tanh"), "gelu is tanh.*exact"),
    "VAE groups": (lambda b: _vae(b, norm_num_groups=8), "the VAE's groups is 8"),
    "scaling": (lambda b: _vae(b, scaling_factor=0.13025), "scaling factor is 0.13025.*0.18215"),
    "text heads": (lambda b: _text(b, num_heads=4), "text encoder's number of heads is 256.*64"),
    "activation": (lambda b: _text(b, hidden_act="gelu"), "activation is gelu.*quick_gelu"),
    "no final norm": (lambda b: _text(b, final_norm=False), "without its final norm"),
    "schedule": (lambda b: b.changed(schedule=replace(b.schedule, beta_end=0.02)), "noise schedule is .*0.02"),
    "velocity": (
        lambda b: b.changed(schedule=replace(b.schedule, prediction_type="v_prediction")),
        "noise schedule is .*v_prediction",
    ),
    "tokenizer": (
        lambda b: b.changed(conditioners={"ja": tiny_conditioner("ja", 64)}, default_language="ja"),
        "text encoder's number of heads|kind of tokenizer is sentencepiece.*clip-bpe",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_kerascv_would_draw_otherwise_is_not_written(case: str, bundle: Bundle, tmp_path: Path) -> None:
    change, message = UNWRITABLE[case]
    with pytest.raises(CheckpointError, match=message):
        save_kerascv(change(bundle), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_one_language_is_written(bundle: Bundle, tmp_path: Path) -> None:
    """Nothing is left out in silence: of several languages one has to be named."""
    both = bundle.changed(conditioners={"en": bundle.conditioner(), "de": bundle.conditioner()})
    with pytest.raises(UserError, match="has the languages en, de.*language=TAG"):
        save_kerascv(both, tmp_path / "m")
    assert load(save_kerascv(both, tmp_path / "m", language="de")).languages == ("en",)


def test_layers_that_are_not_read_are_not_written(bundle: Bundle, tmp_path: Path) -> None:
    """The penultimate layer of three is the last of two, as diffusers and KerasCV ship Stable Diffusion 2."""
    written = load(save_kerascv(_text(bundle, num_layers=3, layer=-2), tmp_path / "m"))
    assert (written.conditioner().encoder.spec.num_layers, written.conditioner().encoder.spec.layer) == (2, -1)


def test_an_existing_folder_is_replaced_only_when_asked_and_recognised(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="is there already"):
        save_kerascv(bundle, tmp_path / "m")
    with pytest.raises(UserError, match=f"holds no {ENCODER}"):
        save_kerascv(bundle, tmp_path / "m", overwrite=True)


def test_a_diffusers_folder_is_one_whatever_else_lies_in_it(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / DECODER, saved_tiny(tmp_path / "m"))
    assert load(tmp_path / "m").name == "tiny-sd1"
    assert save(tiny_bundle(), tmp_path / "n")
