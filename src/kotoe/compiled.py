"""The plain networks through torch's compiler, for graphics processors above all. Numerically equal to them.

torch.compile fuses what lies between products; on CUDA it also records a whole step as one graph (CUDA graphs), so that
no kernel waits for Python. Compiling takes seconds to minutes, once for each shape: Inductor keeps what it made on
disk, where the next process finds it (`keep`). Which kernel of torch's computes an attention is measured, once for each
shape of queries and keys.

The first call with a shape compiles; calls with known ones may come from several threads at a time.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kotoe.checkpoints.twins import twin
from kotoe.errors import UserError
from kotoe.runs import write_atomic
from kotoe.shortcuts import Shortcuts
from kotoe.tiny_vae import TinyVAE
from kotoe.unet import KV, Attention, UNet
from kotoe.vae import VAE

BACKENDS = {
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    "cuda": (
        *(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION),
        *(SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH),
    ),
}
SCORES = 2**28  # of an attention, beyond which MATH, which has them all in memory, several times, isn't tried
MEASURED = 0.05  # seconds for one kernel, and two calls at least
SHAPES = 2**16  # compiled forms of one function that torch allows; its own limit is meant to tell of mistakes
CHOICES = "attention.json"  # beside what Inductor keeps: another choice would be another program

_made: WeakKeyDictionary[nn.Module, Compiled] = WeakKeyDictionary()
_chosen: dict[str, SDPBackend] = {}
_lock = threading.RLock()  # of all here: torch compiles one thing at a time, and its graphs share their memory


def keep(folder: Path) -> None:
    """Have Inductor keep what it compiles in a folder of the user's, not in the system's temporary one. To be called
    before anything is compiled. Of a whole process; what the environment already says stays."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def of(net: UNet | VAE | TinyVAE) -> Compiled:
    """A network compiled: made when first asked for, and again when it has other parameters; new values are seen."""
    with _lock:
        known = _made.get(net)
        if known is None or known.parameters != [id(p) for p in net.parameters()]:
            known = _made[net] = Compiled(net)
        return known


class Compiled:
    """A UNet, called with a step's time projections and `text_kv`; or a decoder, called with latents.

    What is kept isn't the network itself but copies of its modules round the same parameters, one for each shape of
    what is given: the kernels of its attentions are that shape's.
    """

    def __init__(self, net: UNet | VAE | TinyVAE) -> None:
        self.graphs = next(net.parameters()).device.type == "cuda"
        if self.graphs:
            with torch.inference_mode(False):  # else these would be other parameters
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = twin(net)
        self.parameters = [id(p) for p in net.parameters()]  # which the twin keeps alive
        self.programs: dict[Any, Callable[..., Tensor]] = {}

    def text_kv(self, context: Tensor) -> KV:
        """Keys and values of context (B, L, D) for every cross-attention, as UNet.text_kv."""
        assert isinstance(self.net, UNet)
        return _contiguous(self.net.text_kv(context))

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, time: list[Tensor] | None = None, kv: KV | None = None, shortcuts: Shortcuts | None = None
    ) -> Tensor:
        """As UNet.forward, or as `decode` with x alone. shortcuts: None, or those that leave nothing out."""
        assert shortcuts is None or (shortcuts.every, shortcuts.ratio) == (1, 0.0)
        given: tuple[Any, ...]
        if time is None or kv is None:
            given, text = (x,), None
        else:  # however texts come to lie, it is the same program
            kv = _contiguous(kv)
            given, text = (x, time, kv), (time[0].shape, kv[0][0].shape, kv[0][0].stride())
        key = (x.shape, x.stride(), text, torch.get_num_threads())
        with _explained(), _unlimited():  # a known one, too, is compiled again when a setting of torch's has changed
            program = self.programs.get(key)
            if program is not None and not self.graphs:
                return program(*given)
            with _lock:
                program = self.programs.get(key) or self._program(given)
                if self.graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                made = program(*given)
                self.programs[key] = program
                return made.clone() if self.graphs else made  # a graph's next run writes where its last result is

    def _program(self, given: tuple[Any, ...]) -> Callable[..., Tensor]:
        net = twin(self.net)
        function = net.forward if isinstance(net, UNet) else net.decode
        hooks = [m.register_forward_pre_hook(_choose) for m in net.modules() if isinstance(m, Attention)]
        if hooks:
            function(*given)  # once as it is: its attentions see what they will be given
        for hook in hooks:
            hook.remove()
        mode = "reduce-overhead" if self.graphs else None
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def _contiguous(kv: KV) -> KV:
    return [(k.contiguous(), v.contiguous()) for k, v in kv]


@cache
def _unlimited() -> Any:
    """Torch with our number of forms. One for all calls: torch keeps something of each in the thread for good."""
    return torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES)


# --- Attention ------------------------------------------------------------------------------------


def _choose(attention: Attention, given: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
    x, kv = given
    q = attention.split(attention.to_q(x))  # (B, heads, N, C/heads)
    fastest = fastest_attention(q, *kv)
    # where it is what torch takes by itself nothing is said: its cache of traced graphs doesn't take what says so
    attention.kernel = None if fastest == SDPBackend(torch._fused_sdp_choice(q, *kv)) else fastest


def fastest_attention(q: Tensor, k: Tensor, v: Tensor) -> SDPBackend:
    """The quickest of torch's kernels for softmax(q k) v. q (B, H, N, d), k and v (B, H, M, d).

    Measured once for each shape, dtype, device and number of threads, and kept with what Inductor keeps, if `keep` or
    the environment says where: two processes then draw by the same kernels.
    """
    device = q.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    said = (tuple(q.shape), tuple(k.shape), q.dtype, name, torch.get_num_threads(), torch.__version__)
    key = " ".join(map(str, said))
    with _lock:
        if key not in _chosen:
            _chosen.update({**_read(), **_chosen})
        if key not in _chosen:
            seconds = attention_seconds(q, k, v)
            _chosen[key] = min(seconds, key=seconds.__getitem__)
            _write()
        return _chosen[key]


def attention_seconds(q: Tensor, k: Tensor, v: Tensor) -> dict[SDPBackend, float]:
    """Median seconds of each kernel that takes these tensors. MATH is left out beyond 2**28 scores, if another does."""
    from torch.utils.benchmark import Timer

    found: dict[SDPBackend, float] = {}
    attention = {"attention": F.scaled_dot_product_attention, "q": q, "k": k, "v": v}
    for backend in BACKENDS[q.device.type]:
        if backend == SDPBackend.MATH and found and q.shape[:3].numel() * k.shape[2] > SCORES:
            continue
        # a kernel that doesn't take them, or has no room, warns and raises
        with sdpa_kernel(backend), suppress(RuntimeError), warnings.catch_warnings(action="ignore"):
            timer = Timer("attention(q, k, v)", globals=attention, num_threads=torch.get_num_threads())
            found[backend] = timer.blocked_autorange(min_run_time=MEASURED).median
    return found


def _choices() -> Path | None:
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(folder) / CHOICES if folder else None


def _read() -> dict[str, SDPBackend]:
    file, names = _choices(), SDPBackend.__members__
    try:
        said = {} if file is None else json.loads(file.read_text("utf-8"))
        return {key: names[name] for key, name in said.items()}
    except (OSError, ValueError, AttributeError, KeyError):  # none yet, or not ours: measured anew
        return {}


def _write() -> None:
    file = _choices()
    if file is not None:
        with suppress(OSError):  # a folder that is read-only: measured anew next time
            names = {key: chosen.name for key, chosen in {**_read(), **_chosen}.items()}
            write_atomic(file, json.dumps(names, indent=1))


# --- Errors that teach ----------------------------------------------------------------------------


@contextmanager
def _explained() -> Iterator[None]:
    """What torch's compiler lacks on a machine, as a UserError."""
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit
    from torch._inductor import exc

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise UserError(
            f"engine compiled for yet another shape: torch compiles no more than {SHAPES} forms of one function",
            allowed="engine fast or plain",
            hint="A new process begins anew",
        ) from error
    except (BackendCompilerFailed, exc.TritonMissing, exc.GPUTooOldForTriton) as error:
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, exc.InvalidCxxCompiler | exc.CppCompileError) or "C compiler" in str(cause):
            lack, hint = "a C++ compiler that works", "Install one (apt install g++), or name yours in CXX"
        elif isinstance(cause, exc.TritonMissing):
            lack, hint = "triton", "Install it (pip install triton)"
        elif isinstance(cause, exc.GPUTooOldForTriton):
            lack, hint = "a graphics processor that triton knows", str(cause).splitlines()[0]
        elif isinstance(cause, OSError):
            lack, hint = "room for what it compiles", f"{cause}; TORCHINDUCTOR_CACHE_DIR names another folder"
        else:
            raise
        raise UserError(f"engine compiled lacks {lack}", allowed="engine fast or plain", hint=hint) from error
