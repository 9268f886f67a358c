"""The application: its parts, what happens at its beginning and end, and how errors are said."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from kotoe import __version__
from kotoe.checkpoints import Bundle
from kotoe.errors import UserError, shown
from kotoe.provenance.marking import Marking
from kotoe.safety.checks import Checks
from kotoe.serve import a1111, a1111_lists, api, openai, refusals
from kotoe.serve.a1111_state import Seats
from kotoe.serve.gate import Gate, error_response
from kotoe.serve.local import Local
from kotoe.serve.metrics import Lines, tell
from kotoe.serve.refusals import Refusal
from kotoe.serve.service import Service
from kotoe.serve.settings import Serving, read_keys, state_folder
from kotoe.serve.store import Store

UI = Path(__file__).parent / "ui"
DRAIN_SECONDS = 60.0  # at the end, for what has been taken
Load = Callable[[], Mapping[str, Bundle]]
T = TypeVar("T")


def application(
    settings: Serving, checks: Checks, marking: Marking, load: Load, one: Callable[[str], Bundle]
) -> FastAPI:
    """The app. load: the models by name, called on a thread once the port is open. one: a model by its name, for
    replicas, which load for themselves."""
    keys = {} if settings.keys is None else read_keys(settings.keys)
    app = FastAPI(title="Kotoe", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.checks, app.state.load, app.state.service = settings, checks, load, None
    app.state.one, app.state.marking = one, marking
    app.state.failed, app.state.listen_to_signals = None, lambda: None
    app.state.ends, app.state.hurry = None, lambda: False
    app.state.a1111 = Seats()
    for router in (api.router, openai.router, a1111_lists.router, a1111.router, a1111.internal):
        app.include_router(router)
    _plain_routes(app)
    _errors(app)
    described = app.openapi

    def description() -> dict[str, Any]:
        schema = described()
        openai.describe(schema)
        return schema

    app.openapi = description  # type: ignore[method-assign]

    def count(route: str, status: int) -> None:
        if app.state.service is not None:
            app.state.service.metrics.requests.labels(route, str(status)).inc()

    app.add_middleware(Gate, settings=settings, keys=keys, metrics=count)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's SDK in a browser sends a dozen of its own
            expose_headers=["Retry-After"],
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The port is open from the beginning, and /readyz says when models are there."""
    settings: Serving = app.state.settings
    starting = asyncio.create_task(_start(app))
    expiring = asyncio.create_task(_expire(app))
    yield
    expiring.cancel()
    starting.cancel()
    service: Service | None = app.state.service
    if service is not None:
        ends = app.state.ends or time.monotonic() + DRAIN_SECONDS
        await service.drain(max(0.0, ends - time.monotonic()), app.state.hurry)
        tell(logging.INFO, "ended", host=settings.host)


async def _start(app: FastAPI) -> None:
    settings: Serving = app.state.settings
    try:
        store = Store(store_path(settings))
        bundles = await _aside(app.state.load)
        drawer: Callable[..., Any] = Local
        if settings.ray:
            from kotoe.serve.remote import Remote, deploy

            # a thread that stays: Ray's processes end with the one that has started them
            drawer = partial(Remote, deployed=await asyncio.to_thread(deploy, settings, app.state.one))
            app.state.listen_to_signals()  # which Ray has taken
        service = Service(settings, app.state.checks, bundles, store, drawer, app.state.marking)
        if store.lost:
            tell(logging.WARNING, "jobs of an earlier server were not finished", jobs=store.lost)
        await service.warm()
        app.state.service = service
        tell(logging.INFO, "ready", models=list(bundles))
    except Exception as error:
        app.state.failed = error
        if not isinstance(error, UserError):
            logging.getLogger("kotoe.serve").error("could not start", exc_info=error)
            what = f"{type(error).__name__}: {error}"
            app.state.failed = UserError(f"the server could not start: {what}", hint="Its log says where")
        os.kill(os.getpid(), signal.SIGTERM)


async def _aside(work: Callable[[], T]) -> T:
    """What it gives, from a thread that the process doesn't wait for when it is told to end meanwhile."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def tell_it(set_it: Callable[[Any], None], what: Any) -> None:
        if not found.done():
            set_it(what)

    def run() -> None:
        set_it: Callable[[Any], None]
        try:
            set_it, what = found.set_result, work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, who waits is told
            set_it, what = found.set_exception, error  # type: ignore[assignment]
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell_it, set_it, what)

    threading.Thread(target=run, name="kotoe-start", daemon=True).start()
    return await found


async def _expire(app: FastAPI) -> None:
    """Delete what has been kept long enough, every few minutes."""
    settings: Serving = app.state.settings
    while True:
        await asyncio.sleep(min(300.0, settings.keep_hours * 3600 / 4))
        service: Service | None = app.state.service
        if service is not None:
            await asyncio.to_thread(service.expire)


def store_path(settings: Serving) -> Path | None:
    """Where the jobs are kept."""
    if settings.store == "none":
        return None
    return state_folder() / "serve.sqlite" if settings.store is None else Path(settings.store)


def _plain_routes(app: FastAPI) -> None:
    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """The process is there."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"], responses={503: {"description": "Models are loading, or it ends."}})
    async def readyz() -> Response:
        """Whether it draws."""
        service: Service | None = app.state.service
        state = "starting" if service is None else "draining" if service.draining else "ready"
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        return Response(api.service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if (UI / "index.html").is_file():

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(UI / "index.html", headers={"Cache-Control": "no-cache"})

        app.mount("/ui", StaticFiles(directory=UI), name="ui")


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return error_response(request.url.path, error)

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> Response:
        return error_response(request.url.path, refusals.of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, _validation(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        refusal = Refusal(error.status_code, str(error.detail), kind=kind)
        response = error_response(request.url.path, refusal)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        if error.status_code == 405:  # routes of one path each know their own methods alone
            found = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = {method for route in found for method in getattr(route, "methods", None) or ()}
            response.headers["Allow"] = ", ".join(sorted(methods))
        return response


def _validation(error: RequestValidationError) -> Refusal:
    """What pydantic found first: the field, what was given, what is allowed."""
    first: dict[str, Any] = dict(error.errors()[0])
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    name = ".".join(place) or None
    given, kind = first.get("input"), first["type"]
    if not place and kind in ("model_attributes_type", "model_type", "dict_type"):
        if isinstance(given, bytes):
            return Refusal(400, "The body isn't said to be JSON. Send it with Content-Type: application/json.")
        return Refusal(400, f"The body is {shown(given)}. Allowed: a JSON object.", code="invalid_value")
    if kind == "value_error":
        allowed = first["msg"].removeprefix("Value error, ")
        return Refusal(400, f"{name} {shown(given)}. Allowed: {allowed}.", param=name, code="invalid_value")
    if kind == "missing":
        return Refusal(400, f"{name} is missing.", param=name, code="invalid_value")
    if kind == "extra_forbidden":
        return Refusal(400, f"Unknown field {name!r}.", param=name, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return Refusal(
            400, f"The body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}.", code="invalid_json"
        )
    return Refusal(400, f"{name}: {first['msg']}; given: {shown(given)}.", param=name, code="invalid_value")


class Server(uvicorn.Server):
    """uvicorn's, which takes nothing new from the moment it is told to end, and ends as a program that did its work."""

    def listen_to_signals(self) -> None:
        """On the main thread."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self.handle_exit)

    async def shutdown(self, sockets: Any = None) -> None:
        """uvicorn's leaves the application's own end out after a second Ctrl-C; it would not end then."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came. A second Ctrl-C doesn't wait for what was taken."""
        app: Any = self.config.app
        if app.state.service is not None:
            app.state.service.draining = True
        app.state.ends = app.state.ends or time.monotonic() + DRAIN_SECONDS
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run(
    settings: Serving,
    checks: Checks,
    marking: Marking,
    load: Load,
    one: Callable[[str], Bundle],
    *,
    listening: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C. listening: is told the address once the port is open. Gives an exit code.

    Raises UserError for what can't be served.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, level in (("kotoe.serve", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)
    app = application(settings, checks, marking, load, one)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=15, timeout_graceful_shutdown=int(DRAIN_SECONDS), h11_max_incomplete_event_size=2**16,
    )  # fmt: skip
    server = Server(config)
    app.state.listen_to_signals, app.state.hurry = server.listen_to_signals, lambda: server.force_exit
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise UserError(
            f"can't listen on {settings.host}, port {settings.port}",
            allowed="a free port and an address of this machine",
            hint="--port 0 takes a free one",
        ) from None
    socket.listen(config.backlog)  # who comes at once is answered as soon as the loop runs
    host, port = socket.getsockname()[:2]
    listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run(sockets=[socket])
    if app.state.failed is not None:
        raise app.state.failed
    return 0
