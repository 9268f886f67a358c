"""Kotoe draws pictures from words of any language. `import kotoe` loads no torch: public names resolve when used.

No module of the package may have the name of one of these: importing it would put it in the name's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kotoe.checkpoints import Bundle, load, save
    from kotoe.checkpoints.adapters import with_adapters
    from kotoe.config import Request
    from kotoe.drawing import Picture, generate, replay
    from kotoe.errors import UserError
    from kotoe.images import read_record
    from kotoe.record import Record
    from kotoe.translate import with_translator

__version__ = "0.1.0"

_HOMES = {
    "load": "kotoe.checkpoints",
    "save": "kotoe.checkpoints",
    "Bundle": "kotoe.checkpoints",
    "generate": "kotoe.drawing",
    "replay": "kotoe.drawing",
    "Picture": "kotoe.drawing",
    "read_record": "kotoe.images",
    "with_adapters": "kotoe.checkpoints.adapters",
    "with_translator": "kotoe.translate",
    "Request": "kotoe.config",
    "Record": "kotoe.record",
    "UserError": "kotoe.errors",
}
__all__ = [
    "Bundle",
    "Picture",
    "Record",
    "Request",
    "UserError",
    "__version__",
    "generate",
    "load",
    "read_record",
    "replay",
    "save",
    "with_adapters",
    "with_translator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kotoe' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
