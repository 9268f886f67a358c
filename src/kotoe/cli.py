"""The command line: generate, inspect, evaluate, train, bench, check, ... Made from frozen dataclasses by cyclopts.

Exit codes: 0 done, 1 `check` found a fault or `verify` a changed picture, 2 bad input, 3 a safety check blocked
something, 130 interrupted.
`kotoe --help` loads no torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from kotoe import (
    __version__,
    consent,
    console,
    verbs,
    verbs_bench,
    verbs_evaluate,
    verbs_provenance,
    verbs_serve,
    verbs_tokenizer,
    verbs_training,
)
from kotoe.config import Request, from_json, read_json
from kotoe.console import INTERRUPTED, Common, Saying, Values, say
from kotoe.errors import ProcessError, UserError, nearest, unknown
from kotoe.localize.settings import Localizing, Studying
from kotoe.provenance.marking import Marking
from kotoe.runs import processes_started
from kotoe.safety.checks import Checks
from kotoe.serve.settings import Serving


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb: its parts (dataclasses whose fields are its options), what it does, and its positional options.

    positional: their names in order, as "source out"; only a single one may take several values.
    """

    parts: tuple[type, ...]
    positional: str | None
    run: Callable[[Common, Values], int]
    doc: str

    @property
    def places(self) -> list[str]:
        """Names of the positional options in order."""
        return (self.positional or "").split()


# --- The verbs -----------------------------------------------------------------------------------

VERBS = {
    "generate": Verb(
        parts=(
            *(Request, console.Drawing, console.Adapting, console.Loading, consent.Agreeing),
            *(Checks, Marking),
        ),
        positional="prompt",
        run=verbs.generate,
        doc="""Draw pictures from prompts in any language the model has.

Each PNG carries the record of how it was drawn, and the text `parameters` that many programs read. Image k of
a prompt has seed + k.

How exact: a replay with the same versions and threads gives the same bits. Another batch size, number of
threads or engine is numerically equal: it rounds otherwise, and errs no more. What is called approximate
below draws another picture, faster, is off unless asked for, and is measured in docs/engine.md.

    kotoe generate "a cat on a blue background" --seed 7
    kotoe generate "青い背景に猫" "蓝色背景上的猫" "파란 배경의 고양이" --n 2 --out out
    kotoe generate "a cat" --init-image photo.png --strength 0.6
    kotoe generate "a cat" --init-image photo.png --mask mask.png
    kotoe generate "a cat" --init-image large.png --mask mask.png --padding-mask-crop 32
    kotoe generate "a <toy> cat" --model FOLDER --lora style.safetensors:0.8 --embedding toy.safetensors
    kotoe generate "a cat" --fast
    kotoe generate "a cat" --watermark 7 --c2pa FOLDER
    kotoe generate --replay out/picture.png""",
    ),
    "verify": Verb(
        parts=(verbs_provenance.Verifying,),
        positional="pictures",
        run=verbs_provenance.verify,
        doc="""Say where pictures come from: by their signature, record, texts and watermark, and what that comes to.

The exit code is 1 when a picture was changed since it was made, as far as a layer shows it.

    kotoe verify out/PICTURE.png
    kotoe verify downloads/*.png --trust FOLDER/root.pem --json""",
    ),
    "certificate": Verb(
        parts=(verbs_provenance.Certifying,),
        positional="folder",
        run=verbs_provenance.certificate,
        doc="""Make a certificate and a key to try `kotoe generate --c2pa` with: it signs, and nobody trusts it.

    kotoe certificate trial --name "Our studio"
    kotoe generate "a cat" --c2pa trial
    kotoe verify out/PICTURE.png --trust trial/root.pem""",
    ),
    "inspect": Verb(
        parts=(console.Inspecting, consent.Agreeing),
        positional="model",
        run=verbs.inspect,
        doc="""Say what a model is made of, and its licence, without loading weights; or how a picture was drawn.

    kotoe inspect kotoe-emoji
    kotoe inspect path/to/folder --json
    kotoe inspect out/PICTURE.png""",
    ),
    "convert": Verb(
        parts=(console.Converting, console.Loading, consent.Agreeing),
        positional="source out",
        run=verbs.convert,
        doc="""Write a model in another format: a folder in diffusers' layout, a single CompVis file, KerasCV's files.

Nothing is lost or left over in silence: what a format can't hold is refused, and what isn't read is said.

    kotoe convert v1-5.safetensors sd15 --to diffusers --tokenizer path/to/tokenizer
    kotoe convert v2-1.ckpt sd21 --to diffusers --tokenizer sd2 --prediction-type v_prediction --allow-pickle
    kotoe convert sd15 sd15.safetensors --to compvis --dtype float16""",
    ),
    "evaluate": Verb(
        parts=(console.Evaluating, console.Adapting, console.Loading, consent.Agreeing),
        positional=None,
        run=verbs_evaluate.evaluate,
        doc="""Measure what a model draws, per language, each figure with its n and 95 % interval, beside controls.

    kotoe evaluate --suite emoji
    kotoe evaluate --suite emoji --languages en ja --n 40 --json""",
    ),
    "train": Verb(
        parts=(console.Training,),
        positional="recipe",
        run=verbs_training.train,
        doc="""Run a recipe. The same command resumes it; Ctrl-C saves first.

    kotoe train recipes/emoji_base.py --run runs/base --size cpu""",
    ),
    "localize": Verb(
        parts=(Localizing, consent.Agreeing),
        positional="base",
        run=verbs_training.localize,
        doc="""Teach a model that exists a language, most often from parallel text alone. The same command resumes it.

The result is the model with a further conditioner; its UNet and its other languages stay the same to the bit.

    kotoe data pairs --language da --out da.tsv
    kotoe localize kotoe-emoji --language da --pairs da.tsv --run runs/da
    kotoe localize path/to/model --language ko --plan swap --student path/to/korean --run runs/ko
    kotoe localize path/to/model --language ko --plan stage1 --images path/to/pictures --run runs/ko""",
    ),
    "study localization": Verb(
        parts=(Studying, consent.Agreeing),
        positional=None,
        run=verbs_training.study,
        doc="""Measure plans, languages and budgets beside each other on the emoji world. What is done is kept.

    kotoe study localization --out study --languages ja zh ko --plans distil-behind distil-states --budgets 200 600""",
    ),
    "conditioner add": Verb(
        parts=(console.Adding, consent.Agreeing),
        positional="bundle",
        run=verbs.add_conditioner,
        doc="""Put a language's tokenizer and text encoder beside the others of a model; everything else stays as it is.

The UNet is not loaded, nothing is trained: whether width, vocabulary and special tokens fit is checked first.

    kotoe conditioner add path/to/model --language ko --from path/to/korean-model
    kotoe conditioner add path/to/model --language ko --from path/to/korean-clip --allow-pickle""",
    ),
    "conditioner remove": Verb(
        parts=(console.Removing,),
        positional="bundle",
        run=verbs.remove_conditioner,
        doc="""Take a language's tokenizer and text encoder out of a model; everything else stays as it is.

    kotoe conditioner remove path/to/model --language ko""",
    ),
    "data pairs": Verb(
        parts=(console.Pairing,),
        positional=None,
        run=verbs_training.write_pairs,
        doc="""Write parallel text: what English and another language say of the same scenes of the emoji world.

It is what the text encoder of a new language is trained on; every language of docs/world.md has captions.

    kotoe data pairs --language da --out da.tsv
    kotoe data pairs --language da --out da-held-out.jsonl --split held-out --count 2000""",
    ),
    "tokenizer train": Verb(
        parts=(console.TrainingTokenizer,),
        positional="texts",
        run=verbs_tokenizer.train,
        doc="""Train a tokenizer for a new language on its texts, in the layout of the text encoder it is for.

The same texts and options give the same files, which stock transformers opens. It then says how they fit.

    kotoe tokenizer train captions.txt --out tok-ja --family sentencepiece --vocab-size 8000
    kotoe tokenizer train pairs.tsv --column target --out tok-fr --family clip --vocab-size 16000""",
    ),
    "tokenizer report": Verb(
        parts=(console.Comparing,),
        positional="texts",
        run=verbs_tokenizer.report,
        doc="""Compare tokenizers on texts: tokens per word and character, what they can't spell, what is too long.

    kotoe tokenizer report en=captions.txt ja=pairs.tsv:target --tokenizer clip=path/to/sd15 tok-ja kotoe-emoji:ja
    kotoe tokenizer report captions.txt --tokenizer tok-ja --limit 77 --out report""",
    ),
    "check": Verb(
        parts=(console.Checking, console.Loading, consent.Agreeing),
        positional=None,
        run=verbs.check,
        doc="""Test this machine: versions, processor, fonts, and a picture in every language with the time it took.

    kotoe check""",
    ),
    "serve": Verb(
        parts=(Serving, Checks, Marking, console.Adapting, console.Loading, consent.Agreeing),
        positional=None,
        run=verbs_serve.serve,
        doc="""Draw for everyone who asks, over HTTP: a page, and APIs that existing programs know.

The page is at the address that is said. OpenAI's images API is under /v1, AUTOMATIC1111's under /sdapi/v1,
Kotoe's own under /kotoe/v1. Steps of many pictures are computed together; a picture's last bits may hang on
its company (numerically equal), unless --deterministic keeps them apart.

    kotoe serve
    kotoe serve --host 0.0.0.0 --keys keys.txt --port 8080
    kotoe serve --model path/to/model --max-steps 50 --safety block
    kotoe serve --model path/to/model --lora style.safetensors:0.8""",
    ),
    "bench": Verb(
        parts=(console.Benching, console.Loading, consent.Agreeing),
        positional=None,
        run=verbs_bench.bench,
        doc="""Measure how fast this machine draws with a model: steps, decoding, texts, pictures, a cold start, memory.

Speeds are held against what the processor's own matrix products and convolutions reach in the same run.
Let nothing else run beside it.

    kotoe bench
    kotoe bench --model path/to/model --steps 20 --rounds 3 --card bench.md
    kotoe bench --engine plain --dtype float32 --json""",
    ),
}


TOGETHER = ("localize",)  # verbs that several processes do together, started by torchrun


# --- From dataclasses to a command line -----------------------------------------------------------


def field_help(cls: type) -> dict[str, str]:
    """Option to help: the `name: text` lines of a dataclass's docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        if match := re.match(r"(\w+): +(.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith("  "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def options(verb: Verb) -> dict[str, tuple[Any, Any, str]]:
    """Option to (type, default, help) over all parts of a verb and what every verb takes."""
    found = {}
    for part in (*verb.parts, Common):
        texts, hints = field_help(part), typing.get_type_hints(part)
        for field in dataclasses.fields(part):
            found[field.name] = (hints[field.name], field.default, texts[field.name])
    return found


def _bare(hint: Any) -> Any:
    """The type without its None."""
    rest = [a for a in typing.get_args(hint) if a is not type(None)]
    return rest[0] if type(None) in typing.get_args(hint) and len(rest) == 1 else hint


def _many(hint: Any) -> bool:
    return typing.get_origin(_bare(hint)) in (tuple, Sequence)


def _negatable(hint: Any, default: Any) -> bool:
    """Flags that are on, or undecided, can be switched off: --no-flag."""
    return _bare(hint) is bool and default is not False


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # from_, since Python keeps `from` for itself


def _signature(verb: Verb) -> inspect.Signature:
    """Every option as a parameter that may be left out, so that what was given can be told from what was not."""
    from cyclopts import Parameter

    first: list[inspect.Parameter] = []
    rest: list[inspect.Parameter] = []
    for name, (hint, default, _) in options(verb).items():
        off = "--no-" + name.replace("_", "-") if _negatable(hint, default) else ""
        named = [_flag(name)] if name.endswith("_") else None
        described = Parameter(name=named, negative=off, consume_multiple=_many(hint))
        if name in verb.places and _many(hint):
            annotation: Any = Annotated[str, described]
            first.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=annotation))
            continue
        annotation = Annotated[_bare(hint) | None, described]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name in verb.places else inspect.Parameter.KEYWORD_ONLY
        parameter = inspect.Parameter(name, kind, default=None, annotation=annotation)
        (first if name in verb.places else rest).append(parameter)
    return inspect.Signature([*first, *rest])


@cache
def application() -> Any:
    """The cyclopts App of all verbs. Its functions are never called: `parse` takes what was bound to them."""
    from cyclopts import App

    app = App(name="kotoe", help_flags=[], version_flags=[])
    for name, verb in VERBS.items():

        def bound() -> None:
            pass

        signature = _signature(verb)
        bound.__signature__ = signature  # type: ignore[attr-defined]
        bound.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        app.command(bound, name=name, help_flags=[], version_flags=[])
    return app


# --- Help -----------------------------------------------------------------------------------------


def help_text(name: str | None = None, width: int | None = None) -> str:
    """The help of a verb, or of the whole, for a terminal of that width (None: this one's)."""
    width = min(shutil.get_terminal_size((100, 24)).columns if width is None else width, 110)
    if name is None:
        rows = [(n, verb.doc.splitlines()[0]) for n, verb in VERBS.items()]
        return "\n".join(
            [
                "Usage: kotoe VERB [OPTIONS]\n",
                "Pictures from words of any language.\n",
                *_table(rows, width),
                "\nkotoe VERB --help says more. kotoe --version says which version this is.",
            ]
        )
    verb = VERBS[name]
    rows, usage = [], f"Usage: kotoe {name}"
    for option, (hint, default, text) in options(verb).items():
        kind = _kind(hint)
        if option in verb.places:
            argument = option.upper() + ("..." if _many(hint) else "")
            usage += f" [{argument}]" if default is not dataclasses.MISSING or _many(hint) else f" {argument}"
            rows.insert(verb.places.index(option), (argument, text + _default(default)))
        else:
            both = f"{_flag(option)}, --no-{_flag(option)[2:]}" if _negatable(hint, default) else _flag(option)
            rows.append((f"{both} {kind}".strip(), text + _default(default)))
    return "\n".join([usage + " [OPTIONS]\n", verb.doc, "\nOptions:", *_table(rows, width)])


def _kind(hint: Any) -> str:
    bare = _bare(hint)
    if typing.get_origin(bare) is typing.Literal:
        return "|".join(typing.get_args(bare))
    if _many(hint):
        return "TEXT..."
    return {bool: "", int: "N", float: "X"}.get(bare, "TEXT")


def _default(default: Any) -> str:
    if default is dataclasses.MISSING or default is None or default == "" or isinstance(default, bool):
        return ""
    return f" [{default}]"


def _table(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    left = min(max(len(name) for name, _ in rows), 30) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(width - left, 30), break_on_hyphens=False) or [""]
        head = f"  {name}"
        if len(head) + 2 > left:
            lines.append(head)
            head = ""
        lines += [f"{head:<{left}}{wrapped[0]}", *(" " * left + line for line in wrapped[1:])]
    return lines


# --- Parsing --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> tuple[str, Values] | None:
    """(verb, values given), or None when help or the version was printed instead."""
    arguments = list(arguments)
    if " ".join(arguments[:2]) in VERBS:  # a verb of two words
        arguments[:2] = [" ".join(arguments[:2])]
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not arguments or {"--help", "-h"} & set(before):
        print(help_text(before[0] if before and before[0] in VERBS else None))
        return None
    if arguments == ["--version"]:
        print(__version__)
        return None
    if arguments[0] not in VERBS:
        raise unknown("verb", arguments[0], VERBS)
    from cyclopts import CycloptsError

    try:
        _, bound, _ = application().parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message = re.sub(r"\s+", " ", str(error))
        raise UserError(message, hint=f"kotoe {arguments[0]} --help lists the options") from None
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in bound.arguments.items()}
    return arguments[0], {k: v for k, v in given.items() if v is not None and v != []}


def settings(verb: Verb, given: Values) -> tuple[Common, Values]:
    """The common options, and the verb's own as given on the command line or else in --config."""
    own = {name for part in verb.parts for name in (f.name for f in dataclasses.fields(part))}
    path = given.get("config")
    values: Values = {}
    if path is not None:
        document = read_json(path)
        if not isinstance(document, dict):
            raise UserError(f"{path} holds no JSON object", allowed='{"option": value, ...}')
        for key in document:
            if key not in own:
                near = nearest(key, own)
                raise UserError(
                    f"{path}: unknown key {key!r}",
                    allowed=", ".join(sorted(own)),
                    hint=f"Did you mean {near!r}?" if near else "",
                )
        values = {key: value for key, value in document.items() if value is not None}
    common = from_json(Common, {k: v for k, v in given.items() if k not in own}, "option")
    return common, values | {k: v for k, v in given.items() if k in own}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `kotoe` command. Raises SystemExit unless all went well.

    arguments: those of the process when None, which then ends here once torch is loaded: taking it down again in good
    order would take a third of a second.
    """
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `kotoe inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    if arguments is None and "torch" in sys.modules:
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line."""
    log = logging.getLogger("kotoe")
    if not log.handlers:
        log.addHandler(Saying())
        log.setLevel(logging.INFO)
        log.propagate = False  # said once
    try:
        parsed = parse(arguments)
        if parsed is None:
            return 0
        name, given = parsed
        if processes_started() > 1 and name not in TOGETHER:
            raise ProcessError(
                f"kotoe {name} on {processes_started()} processes",
                allowed=f"one process; {', '.join(TOGETHER)} on several",
                hint="RANK, WORLD_SIZE and MASTER_ADDR in the environment say that there are several",
            )
        return VERBS[name].run(*settings(VERBS[name], given))
    except ProcessError as error:  # of one process alone, which says it, be it the first or not
        if not error.spoken:
            say(f"kotoe: {error}", everywhere=True)
        return 2
    except UserError as error:
        say(f"kotoe: {error}")
        return 2
    except KeyboardInterrupt:
        say("kotoe: interrupted")
        return INTERRUPTED
