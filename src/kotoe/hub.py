"""A checkpoint's name on the Hugging Face hub to a folder: the hub's own cache, downloaded once, pinned by revision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from kotoe.errors import CheckpointError

NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")  # owner/name or owner/name@revision
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "conditioners")
TOP = ("model_index.json", "kotoe.json")
TEXT_MODEL = "config.json"  # at the top of a repository: a model of one part, see checkpoints/text_models.py
MODEL = (f"{TOP[0]}|{TEXT_MODEL}",)
MODELS = "a repository in diffusers' layout of folders, or of a text model for `kotoe conditioner add`"
PICKLED, SAFE = ".bin", ".safetensors"
SAFER = "Where you trust its pickle, transformers' from_pretrained and save_pretrained write a folder with safetensors"


def wanted(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that make up the model: nothing for other frameworks, of weights that are there
    both as safetensors and as pickles the safetensors, and full precision where there are several."""
    files = list(files)
    alone = TOP[0] not in files and TEXT_MODEL in files
    known = [
        name
        for name in files
        if name in TOP
        or (
            ("/" not in name if alone else name.split("/")[0] in PARTS)
            and name.endswith((".json", ".txt", ".model", SAFE, PICKLED))
            and not re.search(r"\.(non_ema|fp16|bf16)\.|flax|openvino|onnx", name)
        )
    ]
    safe = {str(PurePosixPath(name).parent) for name in known if name.endswith(SAFE)}
    return [name for name in known if not (name.endswith(PICKLED) and str(PurePosixPath(name).parent) in safe)]


def fetch(name: str, *, needed: Sequence[str] = MODEL, wanted: Callable[[Sequence[str]], list[str]] = wanted) -> Path:
    """The folder of `owner/name`, or `owner/name@revision` (a branch, a tag or a commit), in the hub's cache.

    needed: patterns of files that it must have, a|b for either; a diffusers or text model's by default.
    wanted: those of its files to download.
    What the cache holds is used as it is, without asking the hub; else it is downloaded. HF_TOKEN opens gated models.
    Raises CheckpointError when the hub can't be reached or has no such model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"hub name {name!r}", allowed="owner/name or owner/name@revision")
    repository, revision = found.groups()
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if all(any(any(folder.glob(p)) for p in pattern.split("|")) for pattern in needed):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        files = wanted(HfApi().list_repo_files(repository, revision=revision))
        for pattern in needed:
            if not any(fnmatch(file, p) for file in files for p in pattern.split("|")):
                raise CheckpointError(
                    f"{name} on the hub holds no {pattern.replace('|', ' and no ')}",
                    allowed=MODELS if needed == MODEL else f"a repository with {', '.join(needed)}",
                    hint=SAFER if pattern.endswith(SAFE) else "",
                )
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(
            f"{name} is neither in the hub's cache nor could it be downloaded ({reason})",
            allowed="a model's name on the hub, or a folder",
            hint=f"Download it where there is a network: hf download {repository} --local-dir FOLDER",
        ) from None
