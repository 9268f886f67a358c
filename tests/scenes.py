"""A scene as captions see it, without the atlas of a real one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scene:
    objects: tuple[int, ...]
    size: str = "medium"
    position: str = "centre"
    relation: str | None = None
    background: str = "blue"
    background_said: bool = True
