"""The languages captions are written in: those of kotoe-emoji, one file each, and many more as prompts of phrases."""

from kotoe.data.languages.base import Form, Language
from kotoe.data.languages.en import ENGLISH
from kotoe.data.languages.ja import JAPANESE
from kotoe.data.languages.ko import KOREAN
from kotoe.data.languages.plain import PLAIN
from kotoe.data.languages.zh import CHINESE

LANGUAGES: dict[str, Language] = {table.tag: table for table in (ENGLISH, JAPANESE, CHINESE, KOREAN)} | PLAIN

__all__ = ["LANGUAGES", "Form", "Language"]
