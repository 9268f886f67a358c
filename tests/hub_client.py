"""Programs that ask a hub, each a process of its own, forked from one that has imported huggingface_hub already: that
takes longer than a small download.

client = Client(environment); done = client.fetch("someone/model", HF_TOKEN="..."); process = client.start("...")
done = client.kotoe("inspect", "someone/model")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 2**14


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int  # below 0: the signal that ended it
    out: str
    err: str


class Client:
    """environment: of the processes; they can have more, but what huggingface_hub reads when it is imported (HF_HOME,
    HF_ENDPOINT, HF_HUB_OFFLINE and the time limits) is settled here. drawing: they can also draw at once."""

    def __init__(self, environment: Mapping[str, str], drawing: bool = False) -> None:
        command = [sys.executable, __file__, *(["drawing"] if drawing else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=dict(environment))

    def close(self) -> None:
        self.process.communicate()

    def fetch(self, name: str, **more: str) -> Done:
        """hub.fetch(name): prints the folder, or the error."""
        self.start(name, **more)
        return self.wait()

    def start(self, name: str, **more: str) -> int:
        """The same, begun; its process id."""
        return self._ask({"name": name}, more)

    def kotoe(self, *arguments: object, **more: str) -> Done:
        """The command line."""
        self._ask({"arguments": [str(each) for each in arguments]}, more)
        return self.wait()

    def _ask(self, what: Mapping[str, Any], more: Mapping[str, str]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**what, "environment": more}) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> Done:
        """The end of what was begun."""
        return Done(**self._line())

    def _line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def main() -> None:
    import encodings.idna  # what is imported late, another user may not be allowed to read

    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    from kotoe import hub

    assert all((encodings.idna, HfApi, hf_hub_download, WeakFileLock))
    if sys.argv[1:]:
        from kotoe import drawing
        from kotoe.safety import load

        assert all((drawing, load))
    hub.PIECE = PIECE  # of small files, too, there is a half then
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            child = os.fork()
            if child == 0:
                _child(asked, out, err)
            print(child, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = {"code": code, "out": out.read_text("utf-8"), "err": err.read_text("utf-8")}
            print(json.dumps(said), flush=True)


def _child(asked: Mapping[str, Any], out: Path, err: Path) -> None:
    """Never returns."""
    from kotoe import cli, hub
    from kotoe.errors import UserError

    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ.update(asked["environment"])
        if "AS_USER" in os.environ:
            os.seteuid(int(os.environ["AS_USER"]))
        try:
            if "arguments" in asked:
                code = cli.run(asked["arguments"])
            else:
                print(hub.fetch(asked["name"]))
                code = 0
        except UserError as error:
            print(f"kotoe: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
    finally:
        if (error := sys.exception()) is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
