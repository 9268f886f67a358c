"""What other programs call samplers and the grids their steps lie on, in Kotoe's words and back.

Grids that stand beside each other here are equal but for rounding: "Uniform" and "Normal" are linspace, "Simple" and,
nearly, "SGM Uniform" trailing, "DDIM" leading.
"""

from __future__ import annotations

import re

# Kotoe's to AUTOMATIC1111's, as they are written
SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
}
SCHEDULES = {"linspace": "Uniform", "leading": "DDIM", "trailing": "Simple", "karras": "Karras"}

# Any program's to Kotoe's, as `_plain` has them
_SAMPLERS = {
    "euler": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "heun": "heun",
    "lms": "lms",
    "ddim": "ddim",
    "ddimtrailing": "ddim",
    "plms": "pndm",
    "pndm": "pndm",
    "dpm++2m": "dpmpp_2m",
    "dpm++2msde": "dpmpp_2m_sde",
    "unipc": "unipc",
}
_GRIDS = {
    "uniform": "linspace",
    "normal": "linspace",
    "discrete": "linspace",
    "simple": "trailing",
    "sgmuniform": "trailing",
    "ddim": "leading",
    "ddimuniform": "leading",
    "karras": "karras",
}
# What the programs draw on when nothing else is said
_OWN = {"ddim": "leading", "pndm": "leading", "unipc": "leading"}
_AUTOMATIC = {"dpmpp_2m": "karras"}


def sampler_of(name: str) -> str | None:
    """Kotoe's sampler for another program's name ("Euler a", "k_dpmpp_2m", "dpm++2m", "uni_pc"), None: it has none."""
    return _SAMPLERS.get(_plain(name))


def grid_of(name: str, sampler: str | None = None) -> str | None:
    """Kotoe's grid for another program's schedule ("Karras", "sgm_uniform"), None: it has none.

    name: "" where none is said, as by versions of AUTOMATIC1111 that put it into the sampler's name.
    """
    plain = _plain(name)
    if sampler is not None and plain in ("", "automatic"):
        return _OWN.get(sampler, _AUTOMATIC.get(sampler, "linspace") if plain else "linspace")
    return _GRIDS.get(plain)


def apart(name: str) -> tuple[str, str]:
    """Sampler and schedule of a name that may have both: "DPM++ 2M Karras", "euler_a karras", "dpmpp_2m_k"."""
    if sampler_of(name) is not None:
        return name, "simple" if _plain(name) == "ddimtrailing" else ""
    head, _, tail = name.strip().replace("_", " ").rpartition(" ")
    if tail.lower() == "k":
        tail = "karras"
    return (head, tail) if sampler_of(head) is not None and tail else (name, "")


def _plain(name: str) -> str:
    """Lower case without spaces and underscores, "pp" as "++" and without k-diffusion's "k_"."""
    text = re.sub(r"^(sample_)?k_", "", name.strip().lower())
    return re.sub(r"[\s_]", "", text).replace("dpmpp", "dpm++")
