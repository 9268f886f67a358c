"""The languages captions are written in, one file each."""

from .base import Form, Language
from .en import ENGLISH
from .ja import JAPANESE
from .ko import KOREAN
from .zh import CHINESE

LANGUAGES: dict[str, Language] = {table.tag: table for table in (ENGLISH, JAPANESE, CHINESE, KOREAN)}

__all__ = ["LANGUAGES", "Form", "Language"]
