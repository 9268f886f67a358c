"""A safety checker from a checkpoint's safety_checker/ and feature_extractor/, or from a repository of its own.

As strict as everything that is loaded: every key of the configurations known, every tensor expected and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kotoe import builtin, hub
from kotoe.checkpoints.diffusers import weight_files
from kotoe.checkpoints.files import Folder, LazyHashes, fill, read_tensors, shapes_of, skeleton
from kotoe.checkpoints.keys import LARGEST_DEPTH, LARGEST_WIDTH, Config, Keys, make_spec
from kotoe.checkpoints.text_models import GENERATION, PLAIN
from kotoe.errors import CheckpointError, UserError
from kotoe.safety.images import CLIP_MEAN, CLIP_STD, ImageChecker, Preprocessing
from kotoe.spec import VisionSpec
from kotoe.vision import SafetyNet

PART, EXTRACTOR = "safety_checker", "feature_extractor"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
CLASS = "StableDiffusionSafetyChecker"
LARGEST_EDGE_PX = 2048  # of what the network reads
OWN = (f"{PART}/{CONFIG}", f"{EXTRACTOR}/{PREPROCESSOR}")  # of a checkpoint that names a checker
NEEDED = (f"{PART}/{CONFIG}|{CONFIG}", f"{EXTRACTOR}/{PREPROCESSOR}|{PREPROCESSOR}")

# --- Configurations -------------------------------------------------------------------------------

WHOLE_IGNORED = tuple(
    "architectures dtype initializer_factor logit_scale_init_value model_type text_config text_config_dict torch_dtype "
    "transformers_version".split()
)
VISION_DEFAULTS: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VISION_FIXED: Config = {"model_type": "clip_vision_model", "num_channels": 3, "is_encoder_decoder": False}
# Of training, of transformers' bookkeeping, or (projection_dim) said beside it: the projection is the whole model's.
VISION_IGNORED = tuple(
    "architectures attention_dropout bos_token_id chunk_size_feed_forward dropout dtype eos_token_id id2label "
    "initializer_factor initializer_range label2id output_attentions output_hidden_states pad_token_id problem_type "
    "projection_dim return_dict torch_dtype transformers_version".split()
)
PIXEL_DEFAULTS: Config = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "rescale_factor": 1 / 255,
}
PIXEL_FIXED: Config = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,  # bicubic
}
PIXEL_TYPES = ("CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
# do_convert_rgb: our pictures are RGB before they come here.
PIXEL_IGNORED = ("do_convert_rgb", "feature_extractor_type", "image_processor_type", "processor_class")


def vision_spec(config: Config, where: str) -> VisionSpec:
    """The VisionSpec of a StableDiffusionSafetyChecker's config.json."""
    named = config.get("architectures")
    if named not in (None, [CLASS]) or config.get("model_type", "clip") != "clip":
        said = f"architectures {named!r}, model_type {config.get('model_type')!r}"
        raise CheckpointError(f"{where}: {said}", allowed=f"{CLASS}, clip", hint="Is that a safety checker?")
    defaults: Config = {"vision_config": None, "vision_config_dict": None, "projection_dim": 512}
    whole = Keys(config, defaults, where, WHOLE_IGNORED)
    vision: Any = whole["vision_config"]
    again: Any = whole["vision_config_dict"]  # of transformers before 4.27, which lets it win over vision_config
    if not isinstance(vision, dict):
        raise whole.refuse("vision_config", "a table")
    if again is not None and (not isinstance(again, dict) or vision != vision | again):
        raise whole.refuse("vision_config_dict", "null, or what vision_config says")
    for key, value in PLAIN.items():
        if vision.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} is {vision[key]!r}", allowed=repr(value))
    kept = {key: value for key, value in vision.items() if key not in GENERATION and key not in PLAIN}
    keys = Keys(kept, {**VISION_DEFAULTS, **VISION_FIXED}, f"{where}: vision_config", VISION_IGNORED)
    keys.fixed(**VISION_FIXED)
    return make_spec(
        lambda: VisionSpec(
            hidden_size=keys.whole("hidden_size", LARGEST_WIDTH),
            intermediate_size=keys.whole("intermediate_size", LARGEST_WIDTH),
            num_layers=keys.whole("num_hidden_layers", LARGEST_DEPTH),
            num_heads=keys.whole("num_attention_heads", LARGEST_WIDTH),
            image_size=keys.whole("image_size", LARGEST_EDGE_PX),
            patch_size=keys.whole("patch_size", LARGEST_EDGE_PX),
            hidden_act=keys.choice("hidden_act", "quick_gelu", "gelu"),
            layer_norm_eps=keys.number("layer_norm_eps"),
            projection_dim=whole.whole("projection_dim", LARGEST_WIDTH),
        ),
        where,
    )


def preprocessing_of(config: Config, where: str) -> Preprocessing:
    """The Preprocessing of a preprocessor_config.json."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if config.get(key, PIXEL_TYPES[0]) not in PIXEL_TYPES:
            raise CheckpointError(f"{where}: {key} {config[key]!r}", allowed=", ".join(PIXEL_TYPES))
    keys = Keys(config, {**PIXEL_DEFAULTS, **PIXEL_FIXED}, where, PIXEL_IGNORED)
    keys.fixed(**PIXEL_FIXED)
    if abs(keys.number("rescale_factor") - 1 / 255) > 1e-9:
        raise keys.refuse("rescale_factor", "1 / 255")

    def edge(key: str, *names: str) -> int:
        value = keys[key]  # a number in older files, a table in newer ones
        if isinstance(value, dict) and value.keys() == set(names) and len(set(map(str, value.values()))) == 1:
            keys.values[key] = next(iter(value.values()))
        return keys.whole(key, LARGEST_EDGE_PX)

    def colours(key: str) -> tuple[float, ...]:
        value = keys[key]
        good = isinstance(value, list) and len(value) == 3
        if not good or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e3 for v in value):
            raise keys.refuse(key, "three numbers, of red, green and blue")
        return tuple(float(v) for v in value)

    return make_spec(
        lambda: Preprocessing(
            shortest_edge=edge("size", "shortest_edge"),
            crop=edge("crop_size", "height", "width"),
            mean=colours("image_mean"),
            std=colours("image_std"),
        ),
        where,
    )


# --- The checker ----------------------------------------------------------------------------------


def name_of(name: str) -> str:
    """A file's tensor name to ours: transformers before version 5 writes the tower's prefix twice."""
    return name.removeprefix("vision_model.") if name.startswith("vision_model.vision_model.") else name


def names_checker(folder: Path) -> bool:
    """Whether a checkpoint's model_index.json names a safety checker, be it there or not."""
    index = Folder(folder)
    if not index.has("model_index.json"):
        return False
    said = index.json("model_index.json").get(PART)
    return isinstance(said, list) and any(part is not None for part in said)


def own_checker(folder: Path) -> Path | None:
    """The folder with a checkpoint's own safety checker; None where it has none.

    A model on the hub has the one that its model_index.json names. It is downloaded here, since loading the model
    leaves it out.
    """
    name = hub.named(folder)
    if name == folder.name:
        return folder if Folder(folder).has(PART) else None
    try:
        return _from_hub(name, OWN) if names_checker(folder) else None
    except hub.Lacking:
        return None


def _from_hub(name: str, needed: Sequence[str]) -> Path:
    return hub.fetch(name, needed=needed, wanted=lambda files: wanted(list(files)))


def wanted(files: list[str]) -> list[str]:
    """Those of a repository's files that make up its safety checker."""
    beside = any(name.startswith(f"{PART}/") for name in files)
    known = [
        name
        for name in files
        if (name.startswith((f"{PART}/", f"{EXTRACTOR}/")) if beside else "/" not in name)
        and name.endswith((".json", hub.SAFE, hub.PICKLED))
        and not any(word in name for word in ("flax", "onnx", "openvino"))
    ]
    return hub.best_weights(known)


def load_checker(
    source: str | Path, *, allow_pickle: bool = False, device: torch.device | str | None = None
) -> ImageChecker:
    """The safety checker of a checkpoint's folder, of a repository of its own, or of either's name on the hub.

    allow_pickle: read .bin weights too, as tensors only.
    device:       None is the CPU. It computes in float32 everywhere, so that its scores are the same.
    Raises CheckpointError naming the file, key or tensor that is missing, damaged or not implemented.
    """
    text, path = str(source), Path(source).expanduser()
    if not path.is_dir():
        if path.exists() or not hub.NAME.fullmatch(text):
            raise UserError(
                f"no folder at {text}",
                allowed=f"a checkpoint's folder with {PART}/ and {EXTRACTOR}/, or a safety checker's own",
                hint=builtin.spelling(text),
            )
        path = _from_hub(text, NEEDED)
    folder = Folder(path)
    part, extractor = (PART, f"{EXTRACTOR}/") if folder.has(PART) else ("", "")
    base = f"{part}/" if part else ""
    for name in (base + CONFIG, extractor + PREPROCESSOR):
        if not folder.has(name):
            raise CheckpointError(
                f"{folder.name} holds no {name}, which a safety checker needs",
                allowed=f"{PART}/ and {EXTRACTOR}/ of a checkpoint, or a safety checker's own folder with both files",
            )
    spec = vision_spec(folder.json(base + CONFIG), f"{folder.name}/{base}{CONFIG}")
    where = f"{folder.name}/{extractor}{PREPROCESSOR}"
    preprocessing = preprocessing_of(folder.json(extractor + PREPROCESSOR), where)
    if preprocessing.crop != spec.image_size:
        raise CheckpointError(f"{where}: cuts out {preprocessing.crop} pixels", allowed=f"{spec.image_size}")
    paths = weight_files(folder, part, allow_pickle)
    net = skeleton(lambda: SafetyNet(spec))
    tensors = read_tensors(
        paths,
        shapes_of(net),
        what=part or folder.name,
        dtype=torch.float32,
        device=torch.device("cpu" if device is None else device),
        rename=name_of,
        allow_pickle=allow_pickle,
    )
    hashes = LazyHashes({"weights": paths})
    name = f"{folder.name}/{part}" if part else folder.name
    return ImageChecker(name=name, net=fill(net, tensors), preprocessing=preprocessing, hashes=hashes)
