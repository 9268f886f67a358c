"""The compiled networks against the plain ones, what is kept of compiling, and the choice of an attention's kernel.

Compiling takes seconds, so that most tests here share one bundle and its two programs.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend

from kotoe import bench, compiled, engine
from kotoe.checkpoints import Bundle, load, save
from kotoe.compiled import Compiled
from kotoe.config import Request
from kotoe.drawing import generate, replay, resolve
from kotoe.errors import UserError
from kotoe.images import differences
from kotoe.rng import generator
from kotoe.shortcuts import Shortcuts
from kotoe.spec import UNetSpec
from kotoe.unet import Attention, UNet
from kotoe.vae import VAE
from tiny import apart, seeded, tiny_bundle

# Inductor's own import warns of a part of torch's
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
TOLERANCE = 1e-5  # of the largest value, in float32; observed 1e-6
ASKED: dict[str, Any] = {"prompt": "a red cat", "seed": 3, "engine": "compiled"}
DEVICES = ["cpu", "cuda"]
FLASH, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH


def cuda(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which Inductor keeps what this module compiles."""
    folder = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        compiled.keep(folder)
        yield folder
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is removed in the end


@pytest.fixture(scope="module")
def bundle(kept: Path) -> Bundle:
    return tiny_bundle()


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


# --- The same numbers --------------------------------------------------------------------------------


@torch.inference_mode()
def both(net: UNet, found: Any, at: int = 1) -> tuple[Tensor, Tensor]:
    """(compiled, plain) predictions of the shapes that a guided step has."""
    device = net.conv_in.weight.device
    x = torch.randn(2, 4, 8, 8, generator=generator(1)).contiguous(memory_format=torch.channels_last).to(device)
    context = torch.randn(2, 16, 32, generator=generator(2)).to(device)
    table = net.time_table(torch.tensor([10.0, 500.0], device=device))
    return found(x, table.at(at), found.text_kv(context), Shortcuts()), net(x, table.at(1), net.text_kv(context))


@pytest.mark.parametrize("device", DEVICES)
def test_the_unet(bundle: Bundle, device: str) -> None:
    cuda(device)
    net = bundle.unet if device == "cpu" else seeded(UNet(bundle.unet.spec), 0).to(device)
    found = compiled.of(net)
    assert found.graphs == (device == "cuda")
    assert apart(*both(net, found)) < TOLERANCE
    assert apart(*both(net, found, at=0)) > 100 * TOLERANCE  # another step's time


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_the_decoder(bundle: Bundle, device: str) -> None:
    cuda(device)
    net = bundle.vae if device == "cpu" else seeded(VAE(bundle.vae.spec), 1).to(device)
    z = torch.randn(1, 4, 8, 8, generator=generator(1)).contiguous(memory_format=torch.channels_last).to(device)
    first = compiled.of(net)(z)
    then = first.clone()
    assert apart(first, net.decode(z)) < TOLERANCE
    assert apart(compiled.of(net)(2 * z), net.decode(z)) > 100 * TOLERANCE
    assert torch.equal(first, then)  # a graph's second run would write where its first result was


def test_cuda_graphs_are_recorded(kept: Path) -> None:
    cuda("cuda")
    net = seeded(VAE(tiny_bundle().vae.spec), 1).to("cuda")
    z = torch.randn(1, 4, 8, 8, generator=generator(1)).to("cuda")
    before = counters["inductor"]["cudagraph_skips"]
    for _ in range(4):  # torch warms up, records, and runs what it has
        compiled.of(net)(z)
    assert counters["inductor"]["cudagraph_skips"] == before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        compiled.of(net)(z)
        torch.cuda.synchronize()
    assert any("cudaGraphLaunch" in event.name for event in seen.events())


def test_new_values_are_seen_and_another_parameter_or_module_makes_it_anew(bundle: Bundle) -> None:
    net = bundle.unet
    first, block = compiled.of(net), net.mid_block.resnets[0]
    both(net, first)
    before, conv = compilations(), block.conv1
    with torch.no_grad():
        conv.weight.mul_(1.5)
    try:
        assert compiled.of(net) is first
        assert apart(*both(net, first)) < TOLERANCE
        assert compilations() == before
        block.conv1, block.conv2 = block.conv2, block.conv1
        assert apart(*both(net, first)) > 100 * TOLERANCE
        assert compiled.of(net) is not first
        assert apart(*both(net, compiled.of(net))) < TOLERANCE
    finally:
        block.conv1, block.conv2 = conv, block.conv1
        with torch.no_grad():
            conv.weight.div_(1.5)


def test_a_compiled_network_goes_with_its_network(bundle: Bundle) -> None:
    net = seeded(UNet(bundle.unet.spec), 5)
    found = compiled.of(net)
    assert apart(*both(net, found)) < TOLERANCE
    made, weight = weakref.ref(found), weakref.ref(net.conv_in.weight)
    del net, found
    gc.collect()
    assert made() is None
    assert weight() is None


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """A network compiled as far as torch's tracing and its guards go: what Inductor would add takes seconds a shape."""
    compiles = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode, **how: compiles(f, backend="eager", **how))
    monkeypatch.setattr(compiled, "fastest_attention", lambda *qkv: SDPBackend(torch._fused_sdp_choice(*qkv)))
    torch._dynamo.reset()
    spec = UNetSpec(
        block_out_channels=(32,), cross_attention=(True,), num_heads=(4,), cross_attention_dim=32, norm_num_groups=8,
        sample_size=2, layers_per_block=1,
    )  # fmt: skip
    return compiled.of(seeded(UNet(spec), 0))


@torch.inference_mode()
def answered(found: Compiled, many: int, *, lies: bool = False) -> float:
    """How far a traced network is from the plain one for so many pictures. lies: the texts' values in another order."""
    assert isinstance(found.net, UNet)
    x = torch.randn(many, 4, 2, 2, generator=generator(1))
    kv = found.text_kv(torch.randn(many, 3, 32, generator=generator(2)))
    time = [row.expand(many, -1) for row in found.net.time_table(torch.tensor([10.0])).at(0)]
    laid = [(k.mT.contiguous().mT, v.mT.contiguous().mT) for k, v in kv] if lies else kv
    return apart(found(x, time, laid), found.net(x, time, kv))


def test_a_known_shape_with_texts_that_lie_otherwise_is_the_same_program(traced: Compiled) -> None:
    assert answered(traced, 2) < TOLERANCE
    before = compilations()
    assert answered(traced, 2, lies=True) < TOLERANCE
    assert (len(traced.programs), compilations()) == (1, before)


def test_a_known_shape_is_compiled_again_beyond_torchs_own_limits(traced: Compiled) -> None:
    """Where a setting of torch's has changed that its program hangs on."""
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for many in (1, 2):
            assert answered(traced, many) < TOLERANCE
        before = compilations()
        torch.use_deterministic_algorithms(True)
        try:
            assert answered(traced, 2) < TOLERANCE
        finally:
            torch.use_deterministic_algorithms(False)
        assert (len(traced.programs), compilations()) == (2, before + 1)


def test_torchs_limit_is_said_in_words(traced: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_unlimited", lambda: torch._dynamo.config.patch(recompile_limit=1))
    answered(traced, 1)
    with pytest.raises(UserError, match="no more than .* forms of one function. Allowed: engine fast or plain"):
        answered(traced, 2)


# --- In pictures --------------------------------------------------------------------------------------


def test_a_picture_says_compiled_and_is_replayed_by_it(bundle: Bundle) -> None:
    picture, plain = generate(bundle, Request(**ASKED))[0], generate(bundle, Request(**{**ASKED, "engine": "plain"}))[0]
    assert picture.record.engine == "compiled"
    assert differences(picture.image, plain.image)[1] <= 1
    before = compilations()
    again = replay(bundle, picture.record)
    assert again.image.tobytes() == picture.image.tobytes()
    assert again.record.engine == "compiled"
    assert compilations() == before


def test_threads_draw_side_by_side(bundle: Bundle) -> None:
    alone = generate(bundle, Request(**{**ASKED, "seed": 5}))[0]
    before, count = compilations(), torch.get_num_threads()
    torch.set_num_threads(2)  # two workers, each with one thread
    try:
        drawn = generate(bundle, Request(**ASKED, n=3))
    finally:
        torch.set_num_threads(count)
    assert [picture.record.threads for picture in drawn] == [1, 1, 1]
    assert drawn[2].image.tobytes() == alone.image.tobytes() != drawn[1].image.tobytes()
    assert compilations() == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cache_interval": 2}, "compiled with cache_interval 2. Allowed: cache_interval 1, or engine fast or plain"),
        ({"token_merging_ratio": 0.5}, "compiled with token_merging_ratio 0.5. Allowed: token_merging_ratio 0.0"),
    ],
)
def test_what_it_does_not_do_is_refused(asked: dict[str, Any], said: str) -> None:
    bundle = tiny_bundle()
    assert resolve(bundle, Request(**ASKED)).engine == "compiled"
    with pytest.raises(UserError, match=said):
        resolve(bundle, Request(**ASKED, **asked))


def test_low_memory_and_other_devices_are_refused(tmp_path: Path) -> None:
    low = load(save(tiny_bundle(), tmp_path / "m"), dtype="float32", low_memory=True)
    with pytest.raises(UserError, match="compiled with low memory. Allowed: a processor or CUDA, without low memory"):
        resolve(low, Request(**ASKED))
    nowhere = tiny_bundle()
    nowhere.unet.to("meta")
    with pytest.raises(UserError, match="compiled with meta"):
        resolve(nowhere, Request(**ASKED))


# --- What is kept of compiling ------------------------------------------------------------------------

DECODES = """
import json, sys
from pathlib import Path
from kotoe import bench, compiled, engine
from kotoe.rng import generator
from kotoe.spec import VAESpec
from kotoe.vae import VAE
compiled.keep(Path(sys.argv[1]))
import torch
from torch._dynamo.utils import counters
net = VAE(VAESpec(block_out_channels=(16,), layers_per_block=1, norm_num_groups=8)).requires_grad_(False)
compiled.of(net)(torch.randn(1, 4, 8, 8, generator=generator(1)))
print(json.dumps([counters["inductor"][name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss")]))
"""


def test_a_second_process_finds_what_was_compiled(kept: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    for expected in ([0, 1], [1, 0]):
        command = [sys.executable, "-c", DECODES, str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == expected


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept"), "CXX": "no-such-compiler"}
    command = [sys.executable, "-m", "kotoe", "generate", "a cat", "--model", str(save(tiny_bundle(), tmp_path / "m"))]
    done = subprocess.run(
        [*command, "--engine", "compiled", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "engine compiled lacks a C++ compiler that works. Allowed: engine fast or plain. Install one" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_keeps_it_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kotoe.console import Loading, bundle_of

    monkeypatch.setenv("KOTOE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    bundle_of(str(save(tiny_bundle(), tmp_path / "m")), "float32", Loading())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    compiled.keep(tmp_path / "another")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


# --- Which kernel computes an attention ---------------------------------------------------------------


def attention_of(
    b: int, n: int, m: int, heads: int, d: int, dtype: torch.dtype, width: int | None = None
) -> list[Tensor]:
    shapes = ((n, d), (m, d), (m, width or d))
    made = (torch.randn(b, rows, heads, w, generator=generator(i)) for i, (rows, w) in enumerate(shapes))
    return [each.to(dtype).transpose(1, 2) for each in made]


DECIDED = {  # by a factor of 2.5 to 4 on the machine where this was written
    "many positions": ((1, 1024, 1024, 4, 8, torch.float32), FLASH),
    "single positions": ((64, 1, 1, 8, 8, torch.float32), MATH),
}


@pytest.mark.parametrize("shape", DECIDED)
@torch.inference_mode()
def test_the_fastest_kernel_is_chosen(shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "_chosen", {})
    given, expected = DECIDED[shape]
    q, k, v = attention_of(*given)
    seconds = compiled.attention_seconds(q, k, v)
    assert set(seconds) == {FLASH, MATH}
    assert min(seconds, key=seconds.__getitem__) == expected
    assert compiled.fastest_attention(q, k, v) == expected
    (key,) = compiled._chosen
    file = tmp_path / compiled.CHOICES
    assert json.loads(file.read_text()) == {key: expected.name}
    other = MATH if expected == FLASH else FLASH
    assert compiled.fastest_attention(q, k, v) == expected
    file.write_text(json.dumps({key: other.name}))  # what another process has measured is taken
    compiled._chosen.clear()
    assert compiled.fastest_attention(q, k, v) == other
    for damaged in ("{", '{"a": "NO_KERNEL"}', "[]"):
        file.write_text(damaged)
        compiled._chosen.clear()
        assert compiled.fastest_attention(q, k, v) == expected


@torch.inference_mode()
def test_a_kernel_that_refuses_a_shape_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(compiled.attention_seconds(*attention_of(1, 8, 8, 2, 4, torch.float32, width=6))) == {MATH}
    large = attention_of(1, 8, 8, 2, 4, torch.float32)
    assert set(compiled.attention_seconds(*large)) == {FLASH, MATH}
    monkeypatch.setattr(compiled, "SCORES", 127)
    assert set(compiled.attention_seconds(*large)) == {FLASH}
    assert set(compiled.attention_seconds(*attention_of(1, 8, 8, 2, 4, torch.float32, width=6))) == {MATH}


@torch.inference_mode()
def test_kernels_of_cuda() -> None:
    cuda("cuda")
    q, k, v = (each.to("cuda") for each in attention_of(2, 256, 77, 8, 64, torch.bfloat16))
    seconds = compiled.attention_seconds(q, k, v)
    assert {MATH, SDPBackend.EFFICIENT_ATTENTION} <= set(seconds)
    assert compiled.fastest_attention(q, k, v) in seconds
    wide = [each.to("cuda") for each in attention_of(1, 64, 64, 1, 512, torch.float32)]
    assert FLASH not in compiled.attention_seconds(*wide)  # neither float32 nor heads of 512


@torch.inference_mode()
def test_an_attention_is_told_its_kernel(kept: Path) -> None:
    attention = seeded(Attention(64, 64, 8), 1)
    hook = attention.register_forward_pre_hook(compiled._choose)
    for x, expected in ((torch.ones(64, 1, 64), MATH), (torch.ones(1, 1024, 64), None)):  # None: FLASH is the default
        attention(x, attention.kv(x))
        assert attention.kernel == expected
    hook.remove()


@pytest.mark.parametrize("kernel", [None, FLASH, MATH])
@torch.inference_mode()
def test_the_kernel_is_in_the_graph(kernel: SDPBackend | None) -> None:
    attention, seen = seeded(Attention(32, 32, 4), 1), list[str]()
    x = torch.randn(2, 8, 32, generator=generator(1))
    plain = attention(x, attention.kv(x))
    attention.kernel = kernel

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    found = torch.compile(attention.forward, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=collect))
    assert apart(found(x, attention.kv(x)), plain) < TOLERANCE
    assert any("flash_attention" in name for name in seen) == (kernel != MATH)
    assert any("softmax" in name for name in seen) == (kernel == MATH)
    assert apart(attention(x, attention.kv(x)), plain) < TOLERANCE
    assert torch.backends.cuda.flash_sdp_enabled()  # no choice stays
    assert torch.backends.cuda.math_sdp_enabled()


# --- kotoe bench --------------------------------------------------------------------------------------


def test_bench_measures_the_engine_that_is_asked_for() -> None:
    bundle = tiny_bundle()
    made = {
        name: bench.Stages(bundle, bench.asked(bundle, engine_name=name, batch_size=1))
        for name in ("plain", "fast", "int8", "compiled")
    }
    exact, coarse = engine.of(bundle.unet), engine.of(bundle.unet, int8=True)
    assert [stages.unet for stages in made.values()] == [bundle.unet, exact, coarse, compiled.of(bundle.unet)]
    assert made["compiled"].decoder is compiled.of(bundle.vae)
    assert made["int8"].decoder is made["fast"].decoder is engine.of(bundle.vae)
