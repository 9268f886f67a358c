"""Keras 2's HDF5 weight files: read as untrusted input, written as Keras 2 writes them.

The root's attribute `layer_names` lists one group per layer, each group's attribute `weight_names` its datasets. Keras
loads both by position, layers without weights left out, and so does this. Keras 3's `.weights.h5` is another layout.
Of what HDF5 can do, only plain float datasets stored whole inside the file are read: no links but hard ones, nothing
virtual, external, chunked, compressed or of variable length, and never more bytes than the file has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kotoe.checkpoints.files import SHOWN
from kotoe.errors import CheckpointError, UserError

MODEL_WEIGHTS = "top_level_model_weights"  # a group that newer Keras 2 adds: weights of no layer
LARGEST_NAMES_BYTES, LONGEST_NAME = 2**20, 1024  # of one attribute; characters
MOST_LAYERS, MOST_WEIGHTS, DEEPEST = 4096, 1024, 8  # layers in a file, weights in a layer, groups in one another
MOST_ITEMS = 2**16  # groups and datasets, all told
LARGEST_EDGE = 2**24
KERAS_2 = "2.15.0"  # the last version of this layout, said in what we write
REFUSED = "float16 or float32 numbers, stored whole inside the file, as Keras writes them"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One dataset: its name in the file, its shape, and how to read it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with weights, in the order they are loaded in."""

    name: str
    weights: tuple[Weight, ...]


def library() -> Any:
    """h5py, or a UserError that says how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "KerasCV's weights are HDF5 files, and h5py isn't installed",
            allowed="h5py 3 or newer",
            hint="pip install 'kotoe[kerascv]'",
        ) from error
    return h5py


# --- Reading ------------------------------------------------------------------------------------------------


@contextmanager
def layers_of(path: Path) -> Iterator[list[Layer]]:
    """The layers of a file that have weights; each weight can be read until the block ends.

    Raises CheckpointError for a file of another kind, for what HDF5 may hold and Keras 2 never writes, and for
    groups and datasets that no list names.
    """
    h5 = library()
    with _guarded(path.name):
        file = h5.File(path, "r")
    try:
        with _guarded(path.name):
            found = _Reader(h5, file, path).layers()
        yield found
    finally:
        file.close()


@contextmanager
def _guarded(where: str) -> Iterator[None]:
    """h5py's own errors as a CheckpointError: what a damaged file raises differs from place to place."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{where} is damaged or no HDF5 file ({reason})",
            hint="Get the file again and compare its size and sha256 with its source",
        ) from None


class _Reader:
    def __init__(self, h5: Any, file: Any, path: Path) -> None:
        self.h5, self.file, self.where, self.size = h5, file, path.name, path.stat().st_size
        self.bytes = self.items = 0

    def refuse(self, what: str, allowed: str = "", hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.where}: {what}", allowed=allowed, hint=hint)

    def layers(self) -> list[Layer]:
        self.check_kind()
        names = self.names(self.file, "layer_names")
        self.check_names(names, MOST_LAYERS, "layer_names")
        extra = sorted(set(self.file) - {name.split("/")[0] for name in names} - {MODEL_WEIGHTS})
        if extra:
            raise self.refuse(f"groups that layer_names doesn't list: {', '.join(extra[:SHOWN])}")
        found = [Layer(name=name, weights=self.weights(name)) for name in names]
        if MODEL_WEIGHTS in self.file and MODEL_WEIGHTS not in names and self.weights(MODEL_WEIGHTS):
            raise self.refuse("weights of no layer (top_level_model_weights)", "none; KerasCV's models have none")
        return [layer for layer in found if layer.weights]

    def check_kind(self) -> None:
        """Refuse files of Keras 3, of Keras 1, and those of whole models."""
        inside = set(self.file)
        hint = "KerasCV's own files are Keras 2's, and Keras 3 reads those too; save_kerascv writes such"
        if "_layer_checkpoint_dependencies" in inside or ("layers" in inside and "layer_names" not in self.file.attrs):
            raise self.refuse("a weight file of Keras 3 (.weights.h5)", "Keras 2's layout, with layer_names", hint)
        if "model_weights" in inside:
            raise self.refuse("a whole Keras model, not its weights alone", "what save_weights writes")
        version = self.version()
        if version is None or version.split(".")[0] != "2":
            raise self.refuse(f"written by Keras {version or '1, or by no Keras'}", "keras_version 2.x", hint)

    def version(self) -> str | None:
        attrs = self.file.attrs
        if "keras_version" not in attrs:
            return None
        head = attrs.get_id("keras_version")
        if head.shape != () or self.h5.check_string_dtype(head.dtype) is None:
            raise self.refuse(f"keras_version of type {head.dtype}", "a text")
        value = attrs["keras_version"]
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        return text[:40]

    def names(self, item: Any, key: str) -> list[str]:
        """A list of names, which Keras splits into key0, key1, ... where HDF5's 64 KB for an attribute don't do."""
        split = takewhile(lambda name: name in item.attrs, (f"{key}{k}" for k in count()))
        keys = [key] if key in item.attrs else list(split)
        if not keys:
            raise self.refuse(f"{item.name} has no {key}", "a weight file of Keras 2")
        found: list[str] = []
        for each in keys:
            head = item.attrs.get_id(each)
            if head.shape == (0,):
                continue  # an empty list has no type of its own
            text = self.h5.check_string_dtype(head.dtype) is not None  # of fixed length, or by newer h5py of any
            if not text or len(head.shape or ()) != 1 or head.get_storage_size() > LARGEST_NAMES_BYTES:
                raise self.refuse(f"{each} of {item.name} is no list of names ({head.dtype}, {head.shape})")
            found += [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in item.attrs[each]]
        odd = [name for name in found if not name.isprintable() or len(name) > LONGEST_NAME]
        if odd:
            raise self.refuse(f"{key} of {item.name} lists {odd[0][:80]!a}", "printable names")
        return found

    def check_names(self, names: Sequence[str], most: int, what: str) -> None:
        if len(names) > most:
            raise self.refuse(f"{len(names)} names in {what}", f"{most} at most")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise self.refuse(f"{what} lists {', '.join(map(repr, twice[:SHOWN]))} twice")

    def child(self, parent: Any, name: str) -> Any:
        """What `name` leads to inside `parent`, by hard links alone."""
        item = parent
        for part in name.split("/"):
            if part in ("", ".", "..") or not isinstance(item, self.h5.Group):
                raise self.refuse(f"no {name!r} in {parent.name}")
            link = item.get(part, getlink=True)
            if link is None:
                raise self.refuse(f"{name!r} is listed but not in {parent.name}")
            if not isinstance(link, self.h5.HardLink):
                kind = "another file" if isinstance(link, self.h5.ExternalLink) else "another place"
                raise self.refuse(f"{name!r} in {parent.name} is a link to {kind}", "the weights themselves")
            item = item[part]
        return item

    def weights(self, layer: str) -> tuple[Weight, ...]:
        group = self.child(self.file, layer)
        if not isinstance(group, self.h5.Group):
            raise self.refuse(f"{layer!r} is no group")
        names = self.names(group, "weight_names")
        self.check_names(names, MOST_WEIGHTS, f"weight_names of {layer}")
        extra = sorted(set(self.inside(group, "", 1)) - set(names))
        if extra:
            raise self.refuse(f"{layer} holds what its weight_names doesn't list: {', '.join(extra[:SHOWN])}")
        return tuple(self.weight(self.child(group, name), f"{layer}: {name}") for name in names)

    def inside(self, group: Any, base: str, depth: int) -> list[str]:
        """Names of everything in a group that isn't a group."""
        found: list[str] = []
        for part in group:
            name = f"{base}{part}"
            item = self.child(group, part)
            if isinstance(item, self.h5.Group) and depth < DEEPEST:
                found += self.inside(item, f"{name}/", depth + 1)
            else:
                found.append(name)
            self.items += 1
            if self.items > MOST_ITEMS:  # groups may hold each other, round and round
                raise self.refuse(f"more than {MOST_ITEMS} groups and datasets")
        return found

    def weight(self, item: Any, name: str) -> Weight:
        """The head of a dataset, once it is known that reading it takes no more memory than the file has bytes."""
        if not isinstance(item, self.h5.Dataset):
            raise self.refuse(f"{name} is no dataset")
        kind, shape = item.dtype, item.shape
        if kind.kind != "f" or kind.itemsize not in (2, 4):
            raise self.refuse(f"{name} holds {kind}", REFUSED)
        for what, found in (("virtual", item.is_virtual), ("in another file", item.external), ("chunked", item.chunks)):
            if found:
                raise self.refuse(f"{name} is {what}", REFUSED)
        if shape is None or not 1 <= len(shape) <= 4 or not all(1 <= edge <= LARGEST_EDGE for edge in shape):
            raise self.refuse(f"{name} has shape {shape}", f"1 to 4 edges of 1 to {LARGEST_EDGE}")
        wanted, offset = math.prod(shape) * kind.itemsize, item.id.get_offset()
        self.bytes += wanted
        stored = item.id.get_storage_size()
        if stored != wanted or offset is None or offset + wanted > self.size or self.bytes > self.size:
            raise self.refuse(f"{name} {list(shape)} needs {wanted} bytes, which the file doesn't have", REFUSED)
        return Weight(name=name, shape=tuple(shape), read=partial(self.read, item))

    def read(self, item: Any) -> Tensor:
        with _guarded(self.where):
            array = item[()]
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


# --- Writing ------------------------------------------------------------------------------------------------


def write_layers(path: Path, layers: Sequence[tuple[str, Sequence[tuple[str, Callable[[], Tensor]]]]]) -> None:
    """A weight file of (layer, its (weight, what makes its tensor)s), in the order they are to be loaded in."""
    with library().File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = KERAS_2.encode()
        for layer, weights in sorted([*layers, (MODEL_WEIGHTS, ())], key=lambda entry: entry[0]):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name, _ in weights]
            for name, make in weights:
                group.create_dataset(name, data=make().contiguous().numpy())
