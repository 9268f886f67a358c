"""Downloads through the real huggingface_hub from a small hub of our own (hub_server.py), as kotoe.hub makes them:
broken off and gone on with, pinned, gated, spoilt, offline, and from hubs that fail.

Server and clients are processes of their own; in the test's sockets stay blocked.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hub_client import PIECE, Client, Done
from hub_server import Hub
from kotoe import hub

LARGE = "unet/diffusion_pytorch_model.safetensors"
BYTES = 20 * PIECE
CARD = "---\nlicense: mit\nlanguage: en\n---\n# A model\n"
TOKEN = "hf_thisIsNobodysToken"


@pytest.fixture(scope="module")
def home(hub_folder: Path) -> Path:
    """HF_HOME of the clients."""
    return hub_folder / "home"


@pytest.fixture(scope="module")
def client(running_hub: Hub, home: Path) -> Iterator[Client]:
    found = Client(running_hub.environment(home))
    yield found
    found.close()


@pytest.fixture(scope="module")
def hurried(running_hub: Hub, home: Path) -> Iterator[Client]:
    """One that waits a second, no longer."""
    found = Client(running_hub.environment(home, HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def offline(running_hub: Hub, home: Path) -> Iterator[Client]:
    found = Client(running_hub.environment(home, HF_HUB_OFFLINE="1"))
    yield found
    found.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return "someone/" + "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")[:60]


def model(folder: Path, seed: int = 0) -> Path:
    """Files of a model's names: enough for what is only downloaded."""
    files = {
        "README.md": CARD.encode(),
        "LICENSE": b"Do what you like.",
        "model_index.json": b'{"seed": %d}' % seed,
        "unet/config.json": b"{}",
        LARGE: random.Random(str(folder)).randbytes(BYTES),
        "vae/diffusion_pytorch_model.safetensors": b"small, in LFS, of " + str(folder).encode(),
        "big.ckpt": b"nobody asked for it",
    }
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return model(tmp_path / "m")


@pytest.fixture
def root(home: Path, name: str) -> Path:
    """The repository's folder in the cache."""
    return home / "hub" / f"models--{name.replace('/', '--')}"


def downloaded(done: Done, source: Path) -> Path:
    """The folder that was printed; its files are the source's."""
    assert done.code == 0, done.err
    assert TOKEN not in done.out + done.err
    folder = Path(done.out.strip())
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    published = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    assert there == sorted(["LICENSE", "README.md", *hub.wanted(published)])
    for file in there:
        assert (folder / file).read_bytes() == (source / file).read_bytes(), file
    return folder


def refused(done: Done, *messages: str) -> None:
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert TOKEN not in done.out + done.err
    for message in messages:
        assert message in done.err, done.err


def ranges(server: Hub) -> list[str | None]:
    """Of what was loaded of large files since the server was told something."""
    found = [each for each in server.asked("GET") if "/store/" in each["path"]]
    return [each["range"] for each in found]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_download(server: Hub, client: Client, offline: Client, name: str, root: Path, source: Path) -> None:
    commit = server.put(name, source)
    folder = downloaded(client.fetch(name), source)
    assert folder == root / "snapshots" / commit
    assert not (folder / "big.ckpt").exists()
    server.told()
    assert client.fetch(name).out.strip() == str(folder)
    assert offline.fetch(name).out.strip() == str(folder)
    assert offline.fetch(f"{name}@{commit}").out.strip() == str(folder)
    assert server.asked() == []  # the hub isn't asked for what is there


def test_huggingface_hub_takes_the_cache_for_its_own(
    server: Hub, client: Client, home: Path, name: str, source: Path
) -> None:
    """The oracle for the layout: its own look-up, scan and download find all that is there, and nothing odd."""
    server.put(name, source)
    folder = downloaded(client.fetch(name), source)
    server.told()
    code = f"""
import json
from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache
found = scan_cache_dir()
repo = next(repo for repo in found.repos if repo.repo_id == {name!r})
print(json.dumps([
    try_to_load_from_cache({name!r}, {LARGE!r}),
    hf_hub_download({name!r}, {LARGE!r}),
    [str(w) for w in found.warnings if {name!r}.replace("/", "--") in str(w)], sorted(repo.refs), repo.nb_files,
]))
"""
    environment = server.environment(home)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(folder / LARGE)] * 2 + [[], ["main"], 6]
    assert server.asked("GET") == []


def test_a_cut_connection_goes_on_where_it_was(
    server: Hub, client: Client, name: str, root: Path, source: Path
) -> None:
    server.put(name, source)
    server.told(cut=12 * PIECE + 100, cuts=100)
    downloaded(client.fetch(name), source)
    assert [each for each in ranges(server) if each] == [f"bytes={12 * PIECE}-"]  # what had arrived in whole pieces
    assert hub.PIECE <= 2**20  # huggingface_hub's are of 10 MiB: a connection cut before that would begin anew for ever
    assert not list(root.glob("blobs/*.incomplete"))


def test_what_is_to_come_has_room(server: Hub, client: Client, name: str, source: Path) -> None:
    """Is compared with the room that there is, before it comes."""
    server.put(name, source)
    server.told(sizes={LARGE: 10**18})
    refused(client.fetch(name), f"no room for {name}", ": 1,000,000,000.0 GB are to come and", "set HF_HOME")
    assert ranges(server) == []
    server.told()
    downloaded(client.fetch(name), source)


def test_a_connection_that_is_always_cut_is_said_and_the_next_command_goes_on(
    server: Hub, client: Client, name: str, source: Path
) -> None:
    server.put(name, source)
    server.told(cut=1, cuts=100)
    refused(client.fetch(name), "4 of 6 files are kept, also parts of one: the same command goes on from there")
    server.told()
    downloaded(client.fetch(name), source)


def begun(server: Hub, client: Client, name: str, root: Path) -> int:
    """A download of which the large file has begun: its process."""
    server.told(store_wait_s=0.2)
    process = client.start(name)
    ends = time.monotonic() + 200
    while not any(p.stat().st_size >= 2 * PIECE for p in root.glob("blobs/*.incomplete")):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_what_was_loaded_is_kept(
    how: signal.Signals, server: Hub, client: Client, offline: Client, name: str, root: Path, source: Path
) -> None:
    server.put(name, source)
    os.kill(begun(server, client, name, root), how)
    assert client.wait().code == {signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert not (root / "refs" / "main").exists()
    (part,) = root.glob("blobs/*.incomplete")
    had = part.stat().st_size
    assert 0 < had < BYTES
    refused(  # half a model is none
        offline.fetch(name),
        "HF_HUB_OFFLINE forbids asking the hub",
        "4 of 6 files are kept, also parts of one",
        f"hf download {name} --local-dir FOLDER",
    )
    server.told()
    downloaded(client.fetch(name), source)
    assert f"bytes={had}-" in ranges(server)


def test_a_server_without_ranges_begins_anew(server: Hub, client: Client, name: str, root: Path, source: Path) -> None:
    server.put(name, source)
    os.kill(begun(server, client, name, root), signal.SIGKILL)
    client.wait()
    server.told(no_range=True)
    downloaded(client.fetch(name), source)


def test_two_at_once(server: Hub, client: Client, hurried: Client, name: str, root: Path, source: Path) -> None:
    """The second waits for the first, and finds what that has loaded."""
    server.put(name, source)
    begun(server, client, name, root)
    other = hurried.start(name)
    time.sleep(0.5)
    os.kill(other, 0)  # still at it
    server.told()
    for each in (client, hurried):
        downloaded(each.wait(), source)
    assert len(ranges(server)) <= 1  # the small file in LFS; the large one had begun before `told`


def test_a_revision_is_pinned(server: Hub, client: Client, offline: Client, name: str, tmp_path: Path) -> None:
    old, new = model(tmp_path / "old"), model(tmp_path / "new", seed=1)
    first = server.put(name, old)
    server.put(name, old, branch="v1")
    server.put(name, old, branch="refs/pr/1")
    downloaded(client.fetch(name), old)
    second = server.put(name, new)
    assert client.fetch(name).out.strip().endswith(first)  # what the cache holds is used as it is
    assert downloaded(client.fetch(f"{name}@{second}"), new).name == second
    assert downloaded(client.fetch(f"{name}@{first}"), old).name == first
    assert downloaded(client.fetch(f"{name}@v1"), old).name == first
    assert [offline.fetch(f"{name}@{each}").out.strip()[-40:] for each in (second, "v1")] == [second, first]
    assert downloaded(client.fetch(f"{name}@refs/pr/1"), old).name == first
    assert offline.fetch(f"{name}@refs/pr/1").out.strip()[-40:] == first
    refused(client.fetch(f"{name}@../main"), "owner/name@revision")
    refused(offline.fetch(f"{name}@v9"), f"hf download {name} --revision v9 --local-dir FOLDER")
    refused(client.fetch(f"{name}@v3"), f"{name} has no revision 'v3'")


def test_gated_models(server: Hub, client: Client, home: Path, name: str, source: Path) -> None:
    """What to do is said; the token goes to the hub, not to where the hub sends, and lies in no file."""
    server.put(name, source, gated=TOKEN)
    refused(
        client.fetch(name),
        f"{name} is gated",
        "no token is set",
        f"accept them at {server.url}/{name}, then set HF_TOKEN",
    )
    done = client.fetch(name, HF_TOKEN="hf_anothersToken")
    refused(done, "the token that is set belongs to an account without it")
    assert "hf_anothersToken" not in done.err
    server.told()
    downloaded(client.fetch(name, HF_TOKEN=TOKEN), source)
    tokens = {(each["port"], each["token"]) for each in server.asked()}
    assert tokens == {(server.ports[0], TOKEN), (server.ports[1], "")}
    assert not [p for p in home.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_tokens_that_cannot_be_used(server: Hub, client: Client, hub_folder: Path, name: str, source: Path) -> None:
    server.put(name, source)
    done = client.fetch(name, HF_TOKEN="hf_ключ")
    refused(done, "the token that is set can't be sent", "HF_TOKEN")
    assert "ключ" not in done.err
    for home in (hub_folder / "token-is-a-folder", Path(os.devnull)):
        if home != Path(os.devnull):
            (home / "token").mkdir(parents=True)
        other = Client(server.environment(hub_folder / "home", HF_HOME=str(home)))
        refused(other.fetch(name), f"the hub's token in {home / 'token'} can't be read", "Set HF_HOME")
        other.close()


def test_settings_that_huggingface_hub_refuses(server: Hub, hub_folder: Path) -> None:
    code = "from kotoe.cli import main; main(['inspect', 'no/such'])"
    environment = server.environment(hub_folder / "home", HF_HUB_ETAG_TIMEOUT="abc")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "HF_HUB_ETAG_TIMEOUT='abc'. Allowed: whole numbers of seconds" in done.stderr


@pytest.mark.parametrize(
    "damage", ['{"files": 3}', '{"files": [1]}', '{"files": {"a": 1}, "listed": 3}', "[", "3"], ids=range(5)
)
def test_notes_that_are_damaged(damage: str, server: Hub, client: Client, name: str, root: Path, source: Path) -> None:
    commit = server.put(name, source)
    downloaded(client.fetch(name), source)
    for note in (f"{commit}.json", "verified.json"):
        (root / ".kotoe" / note).write_text(damage)
    downloaded(client.fetch(name), source)


def test_private_and_absent_models(server: Hub, client: Client, name: str, source: Path) -> None:
    server.put(name, source, private=TOKEN)
    for each in (name, "no/such"):
        refused(client.fetch(each), f"the hub has no model {each}, or it is private", "if it is private, set HF_TOKEN")
    downloaded(client.fetch(name, HF_TOKEN=TOKEN), source)
    refused(client.fetch("a--b/.."), "Allowed: owner/name")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "down": ({"status": 503}, "the hub answers HTTP 503, it is down"),
    "too many requests": ({"status": 429}, "the hub answers HTTP 429, too many requests: wait a while"),
    "too many for now": ({"status": 429, "retry_after": 7}, "HTTP 429, too many requests: wait 7 seconds"),
    "a login page": ({"html": True}, "what answers at http://127.0.0.1"),
    "refusing": ({"status": 403}, "(HTTP 403)"),
    "leading out": ({"listed": ["unet/../../../evil.json"]}, "evil.json', which leads out of its folder"),
    "from the root": ({"listed": ["/etc/evil.json"]}, "'/etc/evil.json', which leads out of its folder"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_hub_that_fails(fault: str, server: Hub, client: Client, home: Path, name: str, source: Path) -> None:
    server.put(name, source)
    faults, message = FAULTS[fault]
    server.told(**faults)
    refused(client.fetch(name), message)
    assert not list(home.rglob("*evil*"))


def test_a_hub_that_does_not_answer(server: Hub, hurried: Client, client: Client, name: str, source: Path) -> None:
    server.put(name, source)
    server.told(wait_s=120)
    began = time.monotonic()
    message = "no answer within 1 s, or none within 1 s while loading; HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
    refused(hurried.fetch(name), message)
    assert time.monotonic() - began < 100
    server.told()
    downloaded(client.fetch(name), source)


def test_a_store_that_stops_answering(server: Hub, hurried: Client, client: Client, name: str, source: Path) -> None:
    server.put(name, source)
    server.told(store_wait_s=120)
    refused(hurried.fetch(name), "none within 1 s while loading", "the same command goes on from there")
    server.told()
    downloaded(client.fetch(name), source)


def test_a_hub_that_is_not_there(running_hub: Hub, home: Path) -> None:
    gone = Hub(home / "gone")
    gone.close()
    client = Client({**running_hub.environment(home), "HF_ENDPOINT": gone.url})
    refused(client.fetch("someone/nothing"), "neither in the hub's cache nor could it be downloaded (", "hf download")
    client.close()


def test_a_file_of_another_sha256_is_refused(server: Hub, client: Client, name: str, root: Path, source: Path) -> None:
    server.put(name, source)
    server.told(spoilt=[LARGE])
    refused(
        client.fetch(name),
        f"{LARGE} is not what the hub says it is (sha256 ",
        "It was removed: the same command downloads it again",
    )
    assert not list(root.glob(f"snapshots/*/{LARGE}"))
    assert not [p for p in root.glob("blobs/*") if p.stat().st_size == BYTES]
    server.told()
    downloaded(client.fetch(name), source)


def test_half_a_file_that_is_wrong_is_loaded_anew(
    server: Hub, client: Client, name: str, root: Path, source: Path
) -> None:
    server.put(name, source)
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"{sha256_of(source / LARGE)}.incomplete").write_bytes(b"another file's beginning" * 1000)
    downloaded(client.fetch(name), source)
    assert sorted(ranges(server), key=str) == [None, None, "bytes=24000-"]


def test_a_cached_file_is_hashed_once_and_again_when_it_changed(
    server: Hub, client: Client, name: str, source: Path
) -> None:
    server.put(name, source)
    folder = downloaded(client.fetch(name), source)
    blob = (folder / LARGE).resolve()
    assert blob.name == sha256_of(source / LARGE)
    then = blob.stat()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert client.fetch(name).code == 0  # same size and time: not hashed again
    os.utime(blob)
    server.told()
    refused(client.fetch(name), f"{LARGE} is not what the hub says it is")
    assert not blob.exists()
    assert not (folder / LARGE).is_symlink()
    assert server.asked() == []
    downloaded(client.fetch(name), source)


def test_what_others_downloaded_is_hashed_too(
    server: Hub, client: Client, home: Path, name: str, root: Path, source: Path
) -> None:
    """huggingface_hub's own downloads check no sha256, and one that was broken off is known by its list of files."""
    server.put(name, source)
    code = f"from huggingface_hub import snapshot_download; snapshot_download({name!r})"

    def theirs() -> None:
        environment = server.environment(home)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)

    server.told(spoilt=[LARGE])
    theirs()
    refused(client.fetch(name), f"{LARGE} is not what the hub says it is")
    shutil.rmtree(root)
    server.told()
    theirs()
    server.told()
    assert client.fetch(name).code == 0
    assert server.asked() == []
    (missing,) = root.glob(f"snapshots/*/{LARGE}")
    missing.unlink()
    assert client.fetch(name).code == 0
    assert missing.is_file()


def test_a_cache_that_cannot_be_written(server: Hub, name: str, source: Path) -> None:
    server.put(name, source)
    with TemporaryDirectory() as folder:  # tmp_path is for its owner alone
        place = Path(folder)
        place.chmod(0o555)
        client = Client(server.environment(place))
        other = {} if os.geteuid() else {"AS_USER": "65534"}  # root may write everywhere
        done = client.fetch(name, **other)
        place.chmod(0o755)
        folder = downloaded(client.fetch(name), source)
        shutil.rmtree(folder.parent.parent / ".kotoe")
        for each in (p for p in place.rglob("*") if p.is_dir()):
            each.chmod(0o555)
        assert client.fetch(name, **other).out.strip() == str(folder)  # reading is enough for what is there
        assert not (folder.parent.parent / ".kotoe").exists()
        for each in (p for p in place.rglob("*") if p.is_dir()):
            each.chmod(0o755)
        client.close()
    refused(done, f"can't be written into the hub's cache {place / 'hub'} (Permission denied)", "Set HF_HOME to one")
