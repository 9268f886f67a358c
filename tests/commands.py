"""The command line, run in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kotoe import cli


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


Kotoe = Callable[..., Done]


def running(capsys: pytest.CaptureFixture[str]) -> Kotoe:
    """Runs `kotoe ARGUMENTS` and gives what it said; a traceback fails the test."""

    def run(*arguments: object) -> Done:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(code=code, out=captured.out, err=captured.err)

    return run
