"""What each peer of peers.py runs, in a process of its own: text, since their environments don't have Kotoe.

A program gets folder, inputs and kind as arguments, and in the environment BEGUN (the clock just before it started),
THREADS and ASKED, a JSON object: size (pixels), steps, guidance, prompts, sd2 (whether the layout is that), work (a
folder for what it makes) and request (further fields of Kotoe's Request). It answers lines of its standard input.
"""

from __future__ import annotations

COMMON = """\
import json, os, sys, time
begun, asked = float(os.environ["BEGUN"]), json.loads(os.environ["ASKED"])
size, prompts = asked["size"], asked["prompts"]
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print belongs to the log
def peak():
    with open("/proc/self/status") as f:
        return 1024 * int(f.read().split("VmHWM:")[1].split()[0])
def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start
def say(what):
    print(json.dumps(what), file=answers, flush=True)
def serve(calls, draw, **said):
    # draw(prompts, batch, steps): whole pictures of these prompts, `batch` of them together
    calls = {
        **calls, "peak": lambda _: peak(),
        "warm": lambda batch: draw(prompts[:int(batch)], int(batch), 1) and 0.0,
        "picture": lambda batch: timed(lambda: draw(prompts, int(batch), asked["steps"])),
    }
    say({"ready": time.time() - begun, **said})
    for line in sys.stdin:
        name, _, argument = line.strip().partition(" ")
        if name == "quit":
            say({"peak": peak()})
            break
        say(calls[name](argument) if argument else timed(calls[name]))
folder, given, kind = sys.argv[1:4]
"""
TORCH = """\
import numpy as np
import torch
torch.set_grad_enabled(False)
torch.set_num_threads(int(os.environ["THREADS"]))
arrays = np.load(given)
x, context, z = (torch.from_numpy(arrays[k]) for k in ("x", "context", "z"))
"""
KOTOE = """\
import kotoe
from kotoe import engine, memory
from kotoe.reading import run_of
memory.large_pages()
bundle = kotoe.load(folder, dtype=kind)
few = asked["request"].pop("fast", False)
if few:  # as --fast does
    from kotoe.checkpoints.adapters import with_adapters
    from kotoe.checkpoints.fast import fast
    bundle, loras = fast(bundle)
    bundle = with_adapters(bundle, loras)
    asked |= {"steps": bundle.defaults.steps, "guidance": bundle.defaults.guidance_scale}
dtype = bundle.unet.conv_in.weight.dtype
if asked["request"].get("engine") == "plain":
    unet, decode = bundle.unet, bundle.vae.decode
else:
    alone = "numerics" not in asked["request"]  # another arithmetic makes networks of the same weights
    decoder = bundle.small_decoder if bundle.defaults.decoder == "small" else bundle.vae
    unet, decode = (engine.of(net, release=alone) for net in (bundle.unet, decoder))
    memory.keep_memory()
x, context, z = (t.to(dtype).contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.to(dtype)
                 for t in (x, context, z))
conditioner = bundle.conditioner("en")
encoder = conditioner.encoder
run = run_of(encoder, asked["request"].get("engine", "fast"))
with torch.inference_mode():
    rows, kv = bundle.unet.time_table(torch.tensor([500.0])).at(0), unet.text_kv(context)
def step():
    with torch.inference_mode():
        return unet(x, rows, kv)
def latents(path):
    np.save(path, step().float().numpy())
    return 0.0
def decoding():
    with torch.inference_mode():
        decode(z)
def text():
    with torch.inference_mode():
        conditioner.encode([prompts[0], ""], run=run)
def draw(prompts, batch, steps):
    fields = {"language": "en", "width": size, "height": size, "steps": steps, "sampler": "ddim", "seed": 1,
              "guidance_scale": asked["guidance"], "batch_size": batch, **asked["request"]}
    return kotoe.generate(bundle, kotoe.Request(prompt=prompts, **fields))
step()
serve({"step": step, "latents": latents, "decode": decoding, "text": text}, draw, first=time.time() - begun)
"""
DIFFUSERS = """\
if kind == "tuned":
    import ctypes
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 30), libc.mallopt(-1, (1 << 31) - 1), libc.mallopt(-2, 64 << 20)
from diffusers import DDIMScheduler, StableDiffusionPipeline
dtype = torch.float32 if kind == "float32" else torch.bfloat16
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None, feature_extractor=None)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
layout = torch.channels_last if kind in ("tuned", "compiled") else torch.contiguous_format
for part in (pipe.unet, pipe.vae):
    part.to(memory_format=layout)
x, context, z = (t.to(dtype).contiguous(memory_format=layout) if t.ndim == 4 else t.to(dtype) for t in (x, context, z))
t = torch.tensor(500)
if kind == "compiled":
    import torch._inductor.config as inductor
    inductor.freezing = True
    pipe.unet = torch.compile(pipe.unet)
unet = pipe.unet
def step():
    with torch.inference_mode():
        return unet(x, t, encoder_hidden_states=context, return_dict=False)[0]
def latents(path):
    np.save(path, step().float().numpy())
    return 0.0
def decoding():
    with torch.inference_mode():
        pipe.vae.decode(z / pipe.vae.config.scaling_factor, return_dict=False)
def text():
    with torch.inference_mode():
        pipe.encode_prompt(prompts[0], "cpu", 1, True, "")
def draw(prompts, batch, steps):
    for first in range(0, len(prompts), batch):
        part = prompts[first:first + batch]
        seeds = [torch.Generator().manual_seed(1 + first + i) for i in range(len(part))]
        made = pipe(part, num_inference_steps=steps, guidance_scale=asked["guidance"], height=size, width=size,
                    generator=seeds).images
    return made
step()
serve({"step": step, "latents": latents, "decode": decoding, "text": text}, draw, first=time.time() - begun)
"""
OPENVINO = """\
from pathlib import Path
import numpy as np
import openvino as ov
usual = "" if asked["usual"] else f"-{size}"
core, made = ov.Core(), Path(asked["work"]) / f"openvino-{Path(folder).name}{usual}"
arrays = np.load(given)
if not (made / "text.xml").exists():
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    torch.set_grad_enabled(False)
    class Step(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x, t, context):
            return self.net(x, t, context, return_dict=False)[0]
    class Decode(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, z):
            return self.net.decode(z, return_dict=False)[0]
    class Text(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, ids):
            return self.net(input_ids=ids, return_dict=False)[0]
    x, context, z, ids = (torch.from_numpy(arrays[k]) for k in ("x", "context", "z", "ids"))
    if not made.is_dir():
        unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=torch.float32)
        half = made.with_name(f"{made.name}-half")
        half.mkdir(exist_ok=True)
        example = {"x": x, "t": torch.tensor(500.0), "context": context}
        shapes = [("x", list(x.shape)), ("t", []), ("context", list(context.shape))]
        ov.save_model(ov.convert_model(Step(unet).eval(), example_input=example, input=shapes), half / "unet.xml")
        ov.save_model(ov.convert_model(Decode(vae).eval(), example_input=z, input=list(z.shape)), half / "vae.xml")
        half.rename(made)
    text = Text(CLIPTextModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=torch.float32)).eval()
    two = [2, ids.shape[1]]
    ov.save_model(ov.convert_model(text, example_input=ids[[0, -1]], input=two), made / "words.xml")
    (made / "words.bin").rename(made / "text.bin")
    (made / "words.xml").rename(made / "text.xml")
    os.dup2(answers.fileno(), 1)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # conversion's memory is not the engine's
settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": os.environ["THREADS"],
            "PERFORMANCE_HINT": "LATENCY"}
x, context, z, ids = (arrays[k] for k in ("x", "context", "z", "ids"))
request = core.compile_model(made / "unet.xml", "CPU", settings).create_infer_request()
def unet(x, t, context):
    return request.infer({0: x, 1: np.float32(t), 2: context})[0]
def step():
    return unet(x, 500.0, context)
def latents(path):
    np.save(path, step())
    return 0.0
step()
first = time.time() - begun
vae = core.compile_model(made / "vae.xml", "CPU", settings).create_infer_request()
encoder = core.compile_model(made / "text.xml", "CPU", settings).create_infer_request()
known = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
def text(index=0):
    return encoder.infer({0: ids[[index, -1]]})[0]
def draw(prompts, batch, steps):  # DDIM, one picture after the other: the shapes are static
    for index in range(len(prompts)):
        positive, negative = text(index)
        states = np.stack([negative, positive])
        y = np.random.default_rng(1 + index).standard_normal(x[:1].shape).astype(np.float32)
        stride = 1000 // steps
        for t in (np.arange(steps)[::-1] * stride + 1).clip(0, 999):
            a, before = known[t], known[t - stride] if t >= stride else known[0]
            without, wanted = unet(np.concatenate([y, y]), t, states)
            noise = without + asked["guidance"] * (wanted - without)
            clean = (y - (1 - a) ** 0.5 * noise) / a**0.5
            y = (before**0.5 * clean + (1 - before) ** 0.5 * noise).astype(np.float32)
        pixels = vae.infer({0: y / np.float32(asked["scaling"])})[0]
        made = ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return [made]
calls = {"step": step, "latents": latents, "decode": lambda: vae.infer({0: z / np.float32(asked["scaling"])})}
serve({**calls, "text": text}, draw, first=first)
"""
SDCPP = """\
from stable_diffusion_cpp import StableDiffusion
told = {}
sd = StableDiffusion(model_path=folder + ".safetensors", n_threads=int(os.environ["THREADS"]), verbose=False)
def report(step, steps, seconds, *more):
    told.update(step=seconds, at=time.perf_counter())
def step(_):
    sd.generate_image(prompt=prompts[0], negative_prompt="dog", width=size, height=size, sample_steps=1, cfg_scale=7.5,
                      seed=1, progress_callback=report)
    told["decode"] = time.perf_counter() - told["at"]
    return told["step"]
def draw(prompts, batch, steps):  # its default sampler: one evaluation of the UNet, with guidance two, for each step
    return [sd.generate_image(prompt=each, width=size, height=size, sample_steps=steps, cfg_scale=asked["guidance"],
                              seed=1 + i) for i, each in enumerate(prompts)]
serve({"step": step, "decode": lambda _: told["decode"]}, draw, first=None)
"""
KERASCV = """\
os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
from pathlib import Path
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(os.environ["THREADS"]))
tf.config.threading.set_inter_op_parallelism_threads(int(os.environ["THREADS"]))
import keras_cv
from keras_cv.src.models.stable_diffusion import decoder, diffusion_model, text_encoder
two, compiled = ("V2" if asked["sd2"] else ""), kind == "compiled"
arrays = np.load(given)
x, z = (np.ascontiguousarray(arrays[k].transpose(0, 2, 3, 1)) for k in ("x", "z"))
context, ids = arrays["context"], arrays["ids"].astype(np.int32)
sd = getattr(keras_cv.models, f"StableDiffusion{two}")(size, size, jit_compile=compiled)
parts = {
    "_diffusion_model": getattr(diffusion_model, f"DiffusionModel{two}")(size, size, 77, download_weights=False),
    "_text_encoder": getattr(text_encoder, f"TextEncoder{two}")(77, download_weights=False),
    "_decoder": decoder.Decoder(size, size, download_weights=False),
}
for (name, net), file in zip(parts.items(), asked["kerascv"]):
    net.load_weights(f"{folder}-kerascv/{file}")
    if compiled:
        net.compile(jit_compile=True)
    setattr(sd, name, net)
time_embedding = np.array(sd._get_timestep_embedding(500, 1))
def step():  # as its own loop: the two latents of a guided step are two calls
    return [sd.diffusion_model.predict_on_batch({"latent": x[i:i + 1], "timestep_embedding": time_embedding,
                                                 "context": context[i:i + 1]}) for i in range(2)]
def latents(path):
    np.save(path, np.concatenate(step()).transpose(0, 3, 1, 2))
    return 0.0
def encoded(index):
    positions = np.arange(77, dtype=np.int32)[None]
    return sd.text_encoder.predict_on_batch({"tokens": ids[index][None], "positions": positions})
def text():
    encoded(0), encoded(-1)
def draw(prompts, batch, steps):
    made = []
    for index in range(len(prompts)):
        made.append(sd.generate_image(encoded(index), num_steps=steps, seed=1 + index,
                                      unconditional_guidance_scale=asked["guidance"]))
    return made
step()
first = time.time() - begun
decode = lambda: sd.decoder.predict_on_batch(z)
serve({"step": step, "latents": latents, "decode": decode, "text": text}, draw, first=first)
"""
