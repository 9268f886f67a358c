"""Licences go with what they bind: a conditioner's beside its model's, texts with what was made; and one model's terms
are accepted for no other.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands import Kotoe, running
from hub_server import Hub
from kotoe import licences
from kotoe.checkpoints import conditioners, load, save, terms
from kotoe.errors import CheckpointError, UserError
from kotoe.licences import Licensed
from tiny import saved_tiny

OWN = "---\nlicense: other\n---\n"
NC = "---\nlicense: cc-by-nc-4.0\n---\n"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "kotoe" / "licences.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "base"))


@pytest.fixture
def other(tiny: Path, tmp_path: Path) -> Path:
    """A model of another licence, with its text beside its card."""
    return carded(Path(shutil.copytree(tiny, tmp_path / "other")), NC, "No money.")


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def carded(folder: Path, card: str | bytes, text: str | None = None) -> Path:
    (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    if text is not None:
        (folder / "LICENSE").write_text(text)
    return folder


def licensed(model: Path) -> Licensed:
    found = licences.of(model)
    assert found is not None
    return found


def asks(model: Path) -> bool:
    found = licensed(model)
    return any(
        each.card is not None and each.card.terms is not None and licences.accepted(each) is None
        for each in (found, *found.parts.values())
    )


# --- A conditioner's licence beside its model's


def check_bound(kotoe: Kotoe, folder: Path, name: str = "de") -> None:
    """A conditioner's licence is kept with its text, shown and asked for."""
    found = kotoe("inspect", folder, "--json").json
    assert found["licence"] == "Apache-2.0"
    part = found["licences"][name]
    assert (part["licence"], part["terms"]["kind"]) == ("cc-by-nc-4.0", "non-commercial")
    assert (folder / part["license_link"]).read_text() == "No money."
    plain = kotoe("inspect", folder).out
    assert f"conditioner {name}: licence cc-by-nc-4.0, beside the model's" in plain
    assert "Commercial use is not allowed" in plain
    assert asks(folder)
    done = kotoe("generate", "a red cat", "--language", "en", "--model", folder)
    assert (done.code, "Commercial use is not allowed" in done.err) == (2, True)
    assert not (folder / "README.md").exists()  # which would be the whole model's


def test_an_added_conditioner_keeps_its_licence(kotoe: Kotoe, base: Path, other: Path) -> None:
    add = ("conditioner", "add", base, "--language", "de", "--from", other)
    assert kotoe(*add, "--accept-license").code == 0
    check_bound(kotoe, base)
    assert kotoe("generate", "a red cat", "--language", "en", "--model", base, "--accept-license").code == 0
    assert not asks(base)
    # saved again, copied as files into a third model, converted
    again = save(load(base), Path("again"))
    check_bound(kotoe, again)
    third = saved_tiny(Path("third"), seed=1)
    assert kotoe("conditioner", "add", third, "--language", "de", "--from", base, "--accept-license").code == 0
    check_bound(kotoe, third)
    assert kotoe("convert", base, "made", "--to", "diffusers", "--accept-license").code == 0
    check_bound(kotoe, Path("made"))
    assert kotoe("convert", base, "german", "--to", "diffusers", "--language", "de", "--accept-license").code == 0
    check_bound(kotoe, Path("german"))
    # gone with the conditioner
    assert kotoe("conditioner", "remove", base, "--language", "de").code == 0
    assert kotoe("inspect", base, "--json").json["licences"] == {}
    assert not list(base.glob("LICENSE*"))


def test_replaced_by_one_of_the_models_own_licence(kotoe: Kotoe, base: Path, other: Path, tiny: Path) -> None:
    conditioners.add(base, "de", other)
    conditioners.add(base, "de", tiny, overwrite=True)
    assert kotoe("inspect", base, "--json").json["licences"] == {}
    assert "licences" not in json.loads((base / "kotoe.json").read_text())
    assert not list(base.glob("LICENSE*"))


def test_a_student_keeps_its_licence(kotoe: Kotoe, base: Path, other: Path) -> None:
    swap = ("localize", base, "--language", "de", "--plan", "swap", "--student", other, "--run", "r")
    assert kotoe(*swap, "--accept-license").code == 0
    check_bound(kotoe, Path("r/bundle"))


def test_one_conditioner_of_several_languages(kotoe: Kotoe, base: Path, other: Path) -> None:
    conditioners.add(base, "mul", other, serves=("de", "fr"), source_language="en")
    check_bound(kotoe, base, "mul")
    again = save(load(base), Path("again"))
    check_bound(kotoe, again, "mul")
    conditioners.remove(base, "de")
    check_bound(kotoe, base, "mul")
    conditioners.remove(base, "fr")
    assert not licensed(base).parts


def test_a_text_from_outside_the_folder_is_not_copied(base: Path, other: Path, tmp_path: Path) -> None:
    conditioners.add(base, "de", other)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for link in (str(secret), "../secret"):
        about = json.loads((base / "kotoe.json").read_text())
        about["licences"]["de"]["license_link"] = link
        (base / "kotoe.json").write_text(json.dumps(about))
        out = save(load(base), tmp_path / "out", overwrite=True)
        assert json.loads((out / "kotoe.json").read_text())["licences"] == {"de": {"license": "cc-by-nc-4.0"}}
        assert not list(out.glob("LICENSE*"))
    about["licences"]["de"] = "mine"
    (base / "kotoe.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="licences"):
        load(base)


# --- Whose terms were accepted


def test_unknown_terms_are_accepted_for_one_model(base: Path, other: Path) -> None:
    for card in (OWN, NC):
        for folder, text in ((base, "A"), (other, "B")):
            carded(folder, card, text)
        licences.accept(licensed(base))
        assert not asks(base)
        assert asks(other)
        carded(other, card, "A")
        assert asks(other)


@pytest.mark.parametrize("card", [OWN, NC, "---\nlicense: other\nlicense_name: x\nlicense_link: terms.txt\n---\n"])
def test_another_text_asks_again(card: str, base: Path) -> None:
    text = base / ("terms.txt" if "terms.txt" in card else "LICENSE")
    carded(base, card)
    text.write_text("Be good.")
    licences.accept(licensed(base))
    carded(base, card + "One sentence more.\n")
    assert not asks(base)
    text.write_text("Pay.")
    assert asks(base)
    text.unlink()  # the card alone says the terms now
    licences.accept(licensed(base))
    carded(base, card + "And pay.\n")
    assert asks(base) is ("other" in card)


def test_two_at_once_lose_nothing(config: Path, base: Path) -> None:
    """Processes that accept different models at the same time."""
    code = "import sys; from kotoe import licences; licences.accept(licences.of(sys.argv[1]))"
    models = [carded(Path(shutil.copytree(base, base.parent / f"m{k}")), OWN) for k in range(6)]
    started = [subprocess.Popen([sys.executable, "-c", code, str(model)]) for model in models]
    assert [process.wait() for process in started] == [0] * 6
    assert {entry["model"] for entry in json.loads(config.read_text())["accepted"]} == {str(m) for m in models}


def test_a_dry_run_accepts_nothing(kotoe: Kotoe, base: Path, config: Path) -> None:
    carded(base, NC)
    for more in ((), ("--accept-license",)):
        done = kotoe("generate", "a red cat", "--model", base, "--dry-run", *more)
        assert done.code == 0
        assert "Commercial use is not allowed" in done.err
        assert "it is not accepted yet; without --dry-run it would be" in done.err
        assert not config.exists()


# --- The text goes with what is made


def test_a_made_models_terms_have_a_text(base: Path, tmp_path: Path) -> None:
    """That of the file beside the card, the card's URL, or the card."""
    for k, (card, text, link) in enumerate(
        (
            (OWN, "Be good.", "LICENSE"),
            (OWN + "Be good.\n", None, "LICENSE-base.md"),
            ("---\nlicense: other\nlicense_link: https://example.org/t\n---\n", None, "https://example.org/t"),
            ("---\nlicense: openrail++\n---\n", None, "https://huggingface.co/"),
            ("---\nextra_gated_prompt: Be good.\n---\n", None, "LICENSE-base.md"),
            ("---\nlicense: other\nlicense_link: model_index.json\n---\n", None, "LICENSE-base.md"),
        )
    ):
        source = carded(Path(shutil.copytree(base, tmp_path / f"source{k}")), card, text)
        (source / "kotoe.json").unlink()
        out = save(load(source), tmp_path / f"out{k}")
        terms.hand_on(source, out, "source")
        found = licences.read(out)
        assert found is not None
        assert found.terms is not None
        assert found.terms.text.startswith(link)
        if text is not None or "Be good" in card:
            assert "Be good." in (out / found.terms.text).read_text()
        assert "unet" in json.loads((out / "model_index.json").read_text())


def test_a_card_of_another_licence_that_stays_is_said(kotoe: Kotoe, base: Path, other: Path) -> None:
    mine = carded(save(load(base), Path("mine")), "---\nlicense: mit\n---\n")
    convert = ("convert", other, mine, "--to", "diffusers", "--accept-license", "--overwrite")
    assert "which stays, says licence mit; the model's is cc-by-nc-4.0" in kotoe(*convert).err
    carded(mine, NC)
    assert "which stays" not in kotoe(*convert).err


def test_on_the_hub_a_text_of_another_name_does_not_ask_twice(base: Path) -> None:
    """It may come with the model, after the licence was accepted."""
    card = "---\nlicense: other\nlicense_link: terms.txt\n---\n"
    seen = []
    for text in (None, "Be good."):
        if text is not None:
            (base / "terms.txt").write_text(text)
        found = licences.read(carded(base, card), page="https://hub/someone/model")
        assert found is not None
        seen.append(found.terms_sha256)
    assert seen[0] == seen[1]


# --- From the hub


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path)
    yield found
    found.close()


def test_a_card_is_fetched_for_what_others_left_without(server: Hub, base: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = server.environment(home)

    def run(*arguments: str, **more: str) -> str:
        command = [sys.executable, "-m", "kotoe", *arguments]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.stderr

    (base / "kotoe.json").unlink()
    names = ("someone/bare", "someone/carded")
    for name in names:
        folder = Path(shutil.copytree(base, tmp_path / name.replace("/", "-")))
        commit = server.put(name, carded(folder, NC) if name.endswith("carded") else folder)
        root = home / "hub" / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        shutil.copytree(base, root / "snapshots" / commit, ignore=shutil.ignore_patterns("README.md"))
    draw = ("generate", "a red cat", "--dry-run", "--model")
    for name in names:
        said = f"note: {name} has no model card here, so its licence isn't known"
        assert said in run(*draw, name, HF_HUB_OFFLINE="1")
        assert (said in run(*draw, name)) is (name == "someone/bare")
    server.told()
    assert "Commercial use is not allowed" in run(*draw, "someone/carded")
    run(*draw, "someone/bare")
    assert server.asked() == []  # that there is none is remembered


def test_a_conditioners_licence_on_the_hub_is_asked_before_the_model(
    server: Hub, base: Path, other: Path, tmp_path: Path
) -> None:
    carded(other, OWN, "Be good.")
    conditioners.add(base, "de", other)
    server.put("someone/two", base)
    command = [sys.executable, "-m", "kotoe", "generate", "a red cat", "--language", "en", "--model", "someone/two"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        environment = server.environment(tmp_path / "home")
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, cwd=tmp_path)

    done = run()
    assert done.returncode == 2
    assert "someone/two, conditioner de has a licence that binds" in done.stderr
    assert f"{server.url}/someone/two/blob/main/LICENSE-de.txt" in done.stderr
    assert not [each for each in server.asked() if "safetensors" in each["path"]]
    for more in (["--accept-license"], []):
        assert run(*more).returncode == 0


# --- What can't be a model, a file or a disk


def test_names_that_no_file_can_have(kotoe: Kotoe) -> None:
    for name in ("", "a" * 5000, "~nobody-of-this-name/x"):
        for verb in (("inspect", name), ("generate", "a", "--model", name)):
            done = kotoe(*verb)
            assert (done.code, "unknown model" in done.err) == (2, True), name[:9]
            assert len(done.err) < 2000


def test_links_that_lead_to_themselves(kotoe: Kotoe, base: Path) -> None:
    for name in ("unet/config.json", "README.md", "kotoe.json"):
        folder = Path(shutil.copytree(base, base.parent / f"loop-{name.replace('/', '-')}"))
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(name).name)
        done = kotoe("inspect", folder)
        assert "is a link that leads to itself" in done.out + done.err
        assert done.code == (0 if name == "README.md" else 2)


def test_a_disk_that_takes_no_more_is_an_error_that_is_explained(base: Path, tmp_path: Path) -> None:
    """A process that may write no file beyond 20,000 bytes: what a full disk does, without filling one."""
    limited = (
        "import resource, sys; from kotoe import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); cli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limited, "convert", str(base), "out", "--to", "diffusers"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("*out*"))


def test_pickles_can_be_looked_into(kotoe: Kotoe, base: Path) -> None:
    from safetensors.torch import load_file

    for path in base.glob("*/*.safetensors"):
        tensors = load_file(path)
        path.unlink()
        torch.save(tensors, path.with_suffix(".bin"))
    assert "--allow-pickle" in kotoe("inspect", base).err
    assert kotoe("inspect", base, "--allow-pickle").code == 0
    swap = ("localize", base, "--language", "de", "--plan", "swap", "--student", base, "--run", "r")
    assert "--allow-pickle" in kotoe(*swap).err
    assert kotoe(*swap, "--allow-pickle").code == 0
    lora = {f"lora_unet_mid_block_attentions_0_proj_in.lora_{x}.weight": torch.zeros(1) for x in ("up", "down")}
    torch.save(lora, "lora.pt")
    assert "--allow-pickle" in kotoe("inspect", "lora.pt").err
    assert "pickle" not in kotoe("inspect", "lora.pt", "--allow-pickle").err


def test_a_recipe_does_not_start_from_another_models_shape(base: Path) -> None:
    from recipes.emoji_base import UNET, warm

    from kotoe.unet import UNet

    with pytest.raises(UserError, match=r"unet: .* tensors don't fit"):
        warm({"unet": UNet(UNET)}, ("unet",), base)


def test_languages_of_the_card_are_shown_where_they_differ(kotoe: Kotoe, base: Path) -> None:
    carded(base, "---\nlicense: mit\nlanguage: ko\n---\n")
    assert "its card says languages ko" in kotoe("inspect", base).out
    carded(base, "---\nlicense: mit\nlanguage: en\n---\n")
    assert "its card says" not in kotoe("inspect", base).out
