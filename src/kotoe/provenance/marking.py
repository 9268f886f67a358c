"""What pictures carry to say where they come from, as a command or a server is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kotoe.errors import UserError

if TYPE_CHECKING:
    from kotoe.provenance.c2pa import Signer


@dataclass(frozen=True, kw_only=True)
class Marking:
    """What pictures carry beside their record, to say where they come from. All of it is off by default.

    watermark:   a number of yours, 0 to 65535, put into the pixels of pictures of 128 pixels or more: hardly seen, and
                 `kotoe verify` finds it when texts are gone. A replay puts in the record's.
    c2pa:        sign each picture (C2PA): a folder with certificate.pem and key.pem, as `kotoe certificate` makes, or a
                 certificate chain's PEM file with key.pem beside it.
    c2pa_key:    the private key's PEM file, where it is another.
    c2pa_prompt: say the prompts in the signed manifest, too; the record beside it has them anyway.
    """

    watermark: int | None = None
    c2pa: str | None = None
    c2pa_key: str | None = None
    c2pa_prompt: bool = False

    def __post_init__(self) -> None:
        if self.watermark is not None and not 0 <= self.watermark < 2**16:
            raise UserError(f"watermark {self.watermark}", allowed=f"0 to {2**16 - 1}")
        if self.c2pa is None:
            for name, there in (("c2pa_key", self.c2pa_key is not None), ("c2pa_prompt", self.c2pa_prompt)):
                if there:
                    raise UserError(f"{name} without c2pa", allowed="--c2pa FOLDER with it, or neither")


def signer(marking: Marking, say: Callable[[str], None]) -> Signer | None:
    """Who signs, None: nobody. Reads and tries the certificate, before anything is drawn. say: told what isn't safe."""
    if marking.c2pa is None:
        return None
    from kotoe.provenance.c2pa import key_place, open_to_others, signer_of

    found = signer_of(marking.c2pa, marking.c2pa_key, prompt=marking.c2pa_prompt)
    if open_to_others(key := key_place(marking.c2pa, marking.c2pa_key)):
        say(f"note: others on this machine may read {key}; chmod 600 keeps it to you")
    return found


def check_size(marking: Marking, width: int, height: int) -> None:
    """Raise a UserError where pictures are too small for the watermark that was asked for."""
    if marking.watermark is not None:
        from kotoe.provenance.watermark import check_size as check

        check(width, height)
