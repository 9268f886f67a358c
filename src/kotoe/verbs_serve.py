"""What `kotoe serve` does. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from kotoe.config import to_json
from kotoe.consent import agree
from kotoe.console import Adapting, Common, Loading, Values, adapted, bundle_of, finish, part_of, say, show_config
from kotoe.errors import UserError
from kotoe.provenance.marking import Marking, signer
from kotoe.safety.checks import Checks
from kotoe.serve.settings import Serving, read_keys


def serve(common: Common, values: Values) -> int:
    """Listen, load the models, and draw for whoever asks, until told to end."""
    wanted: Serving = part_of(values, Serving)
    loading: Loading = part_of(values, Loading)
    checks: Checks = part_of(values, Checks)
    marking: Marking = part_of(values, Marking)
    adapting: Adapting = part_of(values, Adapting)
    if adapting.fast:
        raise UserError("fast for a server", allowed="fast in requests: a model's few-step way is there for who asks")
    if wanted.keys is not None:
        read_keys(wanted.keys)
    signer(marking, say)  # a certificate that can't sign is told now
    for model in wanted.model:
        agree(values, model, dry_run=common.dry_run)
    config = to_json(wanted) | to_json(adapting) | to_json(loading) | to_json(checks) | to_json(marking)
    show_config("serve", config)
    if common.dry_run:
        finish(common, {"dry_run": True, "config": config}, [])
        return 0
    try:
        from kotoe.serve.app import run
    except ModuleNotFoundError as error:
        raise UserError(
            f"kotoe serve needs {error.name}, which is not installed", allowed="pip install 'kotoe[serve]'"
        ) from error
    from kotoe.memory import keep_memory

    sources: dict[str, str] = {}  # by the models' names
    opened = partial(_opened, wanted, adapting, loading)

    def load() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for model in wanted.model:
            bundle = opened(model)
            if bundle.name in found:
                raise UserError(f"two models are called {bundle.name}", allowed="models of different names")
            found[bundle.name], sources[bundle.name] = bundle, model
        keep_memory()
        return found

    def listening(address: str) -> None:
        say(f"kotoe serves on {address}")
        if wanted.host not in ("127.0.0.1", "localhost", "::1") and wanted.keys is None:
            say("note: whoever reaches this address may draw; --keys FILE lets only those with a key")
        finish(common, {"address": address, "config": config}, [])

    return run(wanted, checks, marking, load, partial(_called, opened, sources), listening=listening)


def _opened(wanted: Serving, adapting: Adapting, loading: Loading, model: str) -> Any:
    """A model as it is served; the first with what is to be put into it. Its few-step way is a LoRA of its own, and
    all LoRAs go in at once: with others there is none."""
    bundle = bundle_of(model, wanted.dtype, loading, wanted.device)
    if model == wanted.model[0] and (found := adapted(bundle, adapting, loading)) is not bundle:
        bundle = replace(found, fast=None) if found.adapters else found
    return _settled(bundle)


def _called(opened: Callable[[str], Any], sources: Mapping[str, str], name: str) -> Any:
    """The one that is called so, of those that are served."""
    return opened(sources[name])


def _settled(bundle: Any) -> Any:
    """The bundle, with no weight in memory twice: of one whose few-step way is made from its weights, all stay."""
    from kotoe.bench import settle
    from kotoe.drawing import has_engine

    if bundle.fast is None and has_engine(bundle):
        settle(bundle, "fast")
    return bundle
