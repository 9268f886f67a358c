"""Everything that the OpenAPI description allows, and what it doesn't, asked of a real server by schemathesis.

    python benchmarks/serve_fuzz.py --minutes 10

Rounds with other seeds until the time is up: of the whole description, the two dialects that others' programs speak
among it. Anything that the server didn't foresee ends it with exit code 1: an answer of 500 or one that the description
doesn't have, a line of level "error" in the log, a process that has ended. What is valid by its types and refused for
what it means (a step too many, a picture that is none) is no fault, and neither is a 501 that says what can't be done.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
# bodies as large as any that is made: the tool takes 413 for no refusal
LIMITS = ("--max-steps", "3", "--max-n", "2", "--max-pixels", "16384", "--max-body-mb", "32", "--body-seconds", "5")


def served(log: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "kotoe", "serve", "--port", "0", "--json", "--store", "none", *LIMITS]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


def errors(log: Path) -> list[str]:
    """What the server did not foresee."""
    lines = [line for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    return [json.dumps(line)[:2000] for line in found if line["level"] == "error" or line.get("status") == 500]


def round_of(url: str, seed: int, examples: int) -> tuple[int, str]:
    """One round of schemathesis: how many cases, and what it says where it found something."""
    program = str(Path(sys.executable).parent / "schemathesis")
    phases = ("--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS))
    how = ("--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "30")
    command = [program, "run", f"{url}/openapi.json", *phases, *how, "--no-color", "--generation-database", "none"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    counted = re.search(r"(\d+) generated", done.stdout)
    return int(counted[1]) if counted else 0, "" if done.returncode == 0 else done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--examples", type=int, default=40, help="of each route, in each round")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    options = parser.parse_args(arguments)
    ends, seed, cases = time.monotonic() + 60 * options.minutes, options.seed, 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process, url = served(log)
        try:
            while True:
                count, said = round_of(url, seed, options.examples)
                cases += count
                found = errors(log)
                print(f"seed {seed}: {count} cases, {len(found)} unforeseen", flush=True)
                if said or found or process.poll() is not None or not count:
                    print("\n".join([said[-6000:], *found[:5]]))
                    return 1
                seed += 1
                if time.monotonic() > ends:
                    break
        finally:
            process.terminate()
            process.wait(90)
    print(f"{cases} cases in {options.minutes:g} minutes, seeds {options.seed} to {seed - 1}: nothing unforeseen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
