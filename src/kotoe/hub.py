"""A checkpoint's name on the Hugging Face hub to a folder: the hub's own cache, downloaded once, pinned by revision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from kotoe.errors import CheckpointError

NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")  # owner/name or owner/name@revision
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "conditioners")
TOP = ("model_index.json", "kotoe.json")
TEXT_MODEL = "config.json"  # at the top of a repository: a model of one part, see checkpoints/text_models.py
PICKLED, SAFE = ".bin", ".safetensors"


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


def fetch(name: str) -> Path:
    """The folder of `owner/name`, or `owner/name@revision` (a branch, a tag or a commit), in the hub's cache.

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
        if any((folder / name).exists() for name in (TOP[0], TEXT_MODEL)):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        files = wanted(HfApi().list_repo_files(repository, revision=revision))
        if TOP[0] not in files and TEXT_MODEL not in files:
            raise CheckpointError(
                f"{name} on the hub holds no {TOP[0]}",
                allowed="a repository in diffusers' layout of folders, or of a text model for `kotoe conditioner add`",
            )
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(
            f"{name} is neither in the hub's cache nor could it be downloaded ({reason})",
            allowed="a model's name on the hub, or a folder",
            hint=f"Download it where there is a network: hf download {repository} --local-dir FOLDER",
        ) from None
