"""Kotoe draws pictures from words of any language. `import kotoe` loads no torch: public names resolve when used."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "kotoe.checkpoints",
    "save": "kotoe.checkpoints",
    "Bundle": "kotoe.checkpoints",
    "generate": "kotoe.generate",
    "Picture": "kotoe.generate",
    "with_adapters": "kotoe.checkpoints.adapters",
    "with_translator": "kotoe.translate",
    "Request": "kotoe.config",
    "Record": "kotoe.config",
    "UserError": "kotoe.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kotoe' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
