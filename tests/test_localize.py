"""A new language for a tiny model: every plan learns, leaves alone what it should, resumes, and opens elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kotoe.checkpoints import Bundle, conditioners, load, save
from kotoe.data.pairs import pairs
from kotoe.errors import CheckpointError, UserError
from kotoe.localize.align import align, carried_over
from kotoe.localize.lint import Finding
from kotoe.localize.localize import Localized, computing, forecast, localize, write
from kotoe.localize.losses import behind
from kotoe.localize.plans import Captions, Kept, Reading, Texts, asked_of, drawn, new_student, period, task
from kotoe.localize.settings import PLANS, Localizing
from kotoe.text import CLIPText
from seeds import alt_diffusion
from tiny import tiny_bundle, tiny_conditioner, tiny_tokenizer

FALLS = {
    "stage1": 0.9,
    "stage2": 0.8,
    "unet": 0.8,
    "kv": 0.99,
    "adapter": 0.8,
}  # how far the loss falls in 60 steps; else 0.3
PAIRS = Texts(
    source=["a red cat", "an owl", "two dogs", "a castle", "a red owl", "two red dogs", "a moon", "a red castle"],
    target=["빨간 고양이", "부엉이", "강아지 두 마리", "성", "빨간 부엉이", "빨간 강아지 두 마리", "달", "빨간 성"],
)
CAPTIONS = Captions(
    texts=PAIRS.target, latents=torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
)


BEFORE_LAST = ("text.text_model.embeddings.", "text.text_model.encoder.layers.0.")
TRAINED = {  # plan: what alone may change
    "distil-behind": BEFORE_LAST,
    "distil-reader": ("text.",),
    "distil-states": ("text.",),
    "distil-pooled": ("text.",),
    "stage1": ("text.",),
    "stage2": ("text.", "unet."),
    "unet": ("unet.",),
    "kv": ("attn2.to_k.", "attn2.to_v."),
    "adapter": ("text.transformation.",),
}
GIVEN = ("swap", "kv", "unet", "stage2")


def korean(folder: Path) -> str:
    """A folder with a Korean encoder that fits the base."""
    return str(conditioners.write(tiny_conditioner("ko", 32, seed=9), folder / "korean"))


def wanted(folder: Path, plan: str, **changed: Any) -> Localizing:
    given = {}
    if plan in GIVEN:
        given["student"] = korean(folder)
    if plan == "adapter":
        given["student"] = str(alt_diffusion(folder / "multilingual"))
    if plan == "swap":
        given["steps"] = 0
    values: dict[str, Any] = {
        "base": "tiny", "language": "ko", "run": str(folder / "run"), "plan": plan, "pairs": ("pairs.tsv",),
        "steps": 20, "batch_size": 8, "lr": 3e-3, "vocab_size": 277, "dropout": 0.0, "long_prompt": "cut",
        "log_every": 1, "dtype": "float32", **given, **changed,
    }  # fmt: skip
    return Localizing(**values)


def run(asked: Localizing, base: Bundle | None = None, pairs: Texts = PAIRS) -> Localized:
    """A plan on a fresh base."""
    return localize(tiny_bundle("sd2") if base is None else base, asked, pairs=pairs, captions=CAPTIONS, progress=False)


def losses(asked: Localizing) -> list[float]:
    """What its run has written, step by step."""
    rows = (Path(asked.run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def named(bundle: Bundle, language: str) -> dict[str, torch.Tensor]:
    """Every parameter of a bundle, the encoder of one language as "text"."""
    parts = {"unet": bundle.unet, "vae": bundle.vae, "text": bundle.conditioner(language).encoder}
    parts |= {"english": bundle.conditioner("en").encoder}
    return {f"{part}.{name}": p.detach().clone() for part, m in parts.items() for name, p in m.named_parameters()}


# --- Plans ---------------------------------------------------------------------------------------------------------


def test_every_plan_is_tested() -> None:
    assert set(PLANS) == {"swap", *TRAINED}


@pytest.mark.parametrize("plan", TRAINED)
def test_a_plan_overfits_one_batch_and_changes_only_what_it_trains(plan: str, tmp_path: Path) -> None:
    asked = wanted(tmp_path, plan, steps=60)
    base = tiny_bundle("sd2")
    start = localize(
        base,
        wanted(tmp_path, "swap", student=asked.student or korean(tmp_path), run=str(tmp_path / "swap")),
    )
    before = named(start.bundle, "ko")
    found = run(asked, base)
    curve = losses(asked)
    assert sum(curve[-10:]) < FALLS.get(plan, 0.3) * sum(curve[:10])
    after = named(found.bundle, "ko")
    frozen = [n for n in after if not any(t in n for t in TRAINED[plan])]
    trained = [n for n in after if any(t in n for t in TRAINED[plan])]
    assert trained
    assert all(torch.equal(after[n], before[n]) for n in frozen if not n.startswith("text.") or asked.student)
    if asked.student:
        assert any(not torch.equal(after[n], before[n]) for n in trained)
    assert found.report["changed"] == found.report["trained"] or plan in ("stage1", "stage2", "unet", "distil-pooled")
    assert found.report["frozen"] > 0


@pytest.mark.parametrize("room", [0, 2 * 4 * 77 * 32, 2**20], ids=["none fits", "two fit", "all fit"])
def test_a_frozen_encoder_reads_a_text_once(room: int) -> None:
    """As many of the first texts as there is room for, and the empty one; what it says of all is the same."""
    student = tiny_conditioner("ko", 32)
    reading = Reading(seed=0, batch=4, dropout=0.0, long_prompt="cut", device=torch.device("cpu"))
    texts = [*PAIRS.target[:4], ""]
    asked: list[int] = []
    student.encoder.register_forward_hook(lambda module, args, out: asked.append(len(args[0])))
    kept = Kept(student, texts[:4], reading, room=room)
    first, second = kept(texts), kept([*texts[::-1], texts[0]])
    fit_in = min(4, room // (4 * student.tokenizer.max_tokens * 32))
    often = [4 - fit_in] if fit_in < 4 else []  # those that don't fit are read at every step, together
    assert asked == [1] * (fit_in + 1) + often + often
    with torch.no_grad():
        alike = student.encoder(reading.ids(student.tokenizer, texts, [False] * 5))
    assert torch.allclose(first, alike, atol=1e-5)
    assert torch.equal(second[:-1].flip(0), first)
    assert torch.equal(second[-1], first[0])


@pytest.mark.parametrize(("plan", "keeps"), [("unet", True), ("kv", True), ("stage1", False), ("stage2", False)])
def test_states_are_kept_where_the_encoder_does_not_learn(plan: str, keeps: bool) -> None:
    base, student = tiny_bundle("sd2"), tiny_conditioner("ko", 32)
    reading = Reading(seed=0, batch=4, dropout=0.0, long_prompt="cut", device=torch.device("cpu"))
    batch = task(plan, base, student, reading, pairs=None, captions=CAPTIONS).batches(0)
    assert batch.text.is_floating_point() == keeps


def test_what_should_be_frozen_and_is_not_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof has teeth: a loss that changes the UNet behind fit's back is caught."""
    base = tiny_bundle("sd2")
    honest = behind()

    def careless(*args: Any) -> Any:
        with torch.no_grad():
            base.unet.conv_in.bias += 1e-3
        return honest(*args)

    monkeypatch.setattr("kotoe.localize.plans.behind", lambda: careless)
    with pytest.raises(AssertionError, match="unet.conv_in.bias"):
        run(wanted(tmp_path, "distil-behind", steps=2), base)


def test_a_run_goes_on_to_the_same_losses_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wanted(tmp_path / "whole", "distil-behind", dropout=0.2)
    run(whole)
    cut = replace(whole, run=str(tmp_path / "cut"))
    honest = behind()
    calls = []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return honest(*args)

    with monkeypatch.context() as patched:
        patched.setattr("kotoe.localize.plans.behind", lambda: dying)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
    again = run(cut)
    assert losses(cut) == losses(whole)
    same = named(run(whole).bundle, "ko")
    assert all(torch.equal(p, same[name]) for name, p in named(again.bundle, "ko").items())


GOLDEN_LOSSES = {  # of the first and the twentieth step
    "distil-behind": [0.87146, 0.23851],
    "distil-reader": [3.46655, 0.26313],
    "distil-states": [1.23423, 0.29228],
    "distil-pooled": [1.85673, 0.11613],
    "stage1": [1.34398, 0.97281],
    "stage2": [1.27952, 0.8866],
    "unet": [1.27952, 0.88999],
    "kv": [1.27952, 1.07256],
    "adapter": [16.88591, 13.51002],
}


@pytest.mark.parametrize("plan", TRAINED)
def test_the_first_twenty_losses_are_what_they_were(plan: str, tmp_path: Path) -> None:
    """A change of data order, seeding, start or loss shows here first."""
    asked = wanted(tmp_path, plan)
    run(asked)
    curve = losses(asked)
    assert len(curve) == 20
    assert [curve[0], curve[-1]] == pytest.approx(GOLDEN_LOSSES[plan], rel=2e-3)


def test_settings_of_training_reach_it(tmp_path: Path) -> None:
    """Each alone changes the run: how fast it learns, how the last weights and their average differ, what counts."""
    plain = wanted(tmp_path, "stage1", steps=8, lr=1e-2)
    ends = {}
    for name, more in {
        "usual": {}, "schedule": {"schedule": "constant"}, "warmup": {"warmup_steps": 0},
        "decay": {"weight_decay": 5.0}, "beta2": {"beta2": 0.5}, "ema": {"ema": 0.0},
        "weighting": {"weighting": "plain"},
    }.items():  # fmt: skip
        asked = replace(plain, run=str(tmp_path / name), **({"warmup_steps": 2} | more))
        found = run(asked)
        ends[name] = losses(asked), named(found.bundle, "ko")["text.text_model.final_layer_norm.weight"]
    usual, average = ends.pop("usual")
    assert ends["weighting"][0][0] != usual[0]
    assert ends["ema"][0] == usual
    assert not torch.equal(ends["ema"][1], average)
    for name in ("schedule", "warmup", "decay", "beta2"):
        assert ends[name][0][0] == usual[0]
        assert ends[name][0][-1] != usual[-1], name


def test_another_configuration_in_the_same_run_is_refused(tmp_path: Path) -> None:
    asked = wanted(tmp_path, "distil-states", steps=1)
    run(asked)
    with pytest.raises(UserError, match="lr: 0.003 there, 0.001 asked"):
        run(replace(asked, lr=1e-3))


@pytest.mark.parametrize("plan", TRAINED)
def test_bfloat16_computes_otherwise_and_learns_the_same(plan: str, tmp_path: Path) -> None:
    """Weights stay float32; the losses are float32's but for rounding; and a run keeps what it computes in."""
    exact = wanted(tmp_path / "exact", plan, steps=8)
    short = wanted(tmp_path / "short", plan, steps=8, dtype="bfloat16")
    assert run(exact).report["dtype"] == "float32"
    found = run(short)
    assert found.report["dtype"] == "bfloat16"
    assert {p.dtype for p in named(found.bundle, "ko").values()} == {torch.float32}
    assert losses(short) != losses(exact)
    assert losses(short) == pytest.approx(losses(exact), rel=0.1)
    with pytest.raises(UserError, match='dtype: "bfloat16" there, "float32" asked'):
        run(replace(short, dtype="float32"))


def test_auto_is_what_the_device_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("kotoe.checkpoints.files.has_bf16", lambda device, has=has: has)
        assert computing(wanted(tmp_path, "distil-behind", dtype="auto")) == dtype


# --- What comes out ------------------------------------------------------------------------------------------------


def test_a_localized_folder_keeps_every_file_of_its_base(tmp_path: Path) -> None:
    folder = save(tiny_bundle("sd2"), tmp_path / "base")
    asked = wanted(tmp_path, "distil-behind", steps=2, base=str(folder), out=str(tmp_path / "out"))
    found = run(asked, load(folder, dtype="float32"))
    out = write(found, asked)
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "kotoe.json":
            assert (out / file.relative_to(folder)).read_bytes() == file.read_bytes()
    again = load(out, dtype="float32")
    assert again.languages == ("en", "ko")
    texts = ["빨간 고양이"]
    states = (
        again.conditioner("ko")
        .encode(
            texts,
        )
        .states
    )
    assert torch.allclose(states, found.bundle.conditioner("ko").encode(texts).states, atol=2e-2)  # float16 on disk
    with pytest.raises(UserError, match="there already"):
        write(found, asked)
    assert write(found, asked, overwrite=True) == out
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("no model")
    with pytest.raises(UserError, match="isn't a checkpoint"):
        write(found, replace(asked, out=str(mine)), overwrite=True)
    assert (mine / "letter.txt").read_text() == "no model"


def test_one_conditioner_for_several_languages(tmp_path: Path) -> None:
    """Learnt from all their pairs at once, on disk once, and what each says is what the other says of the same text."""
    folder = save(tiny_bundle("sd2"), tmp_path / "base")
    thai = ["แมวสีแดง", "นกฮูก", "สุนัขสองตัว", "ปราสาท", "นกฮูกสีแดง", "สุนัขสีแดงสองตัว", "ดวงจันทร์", "ปราสาทสีแดง"]
    both = Texts(source=[*PAIRS.source, *PAIRS.source], target=[*PAIRS.target, *thai])
    asked = wanted(tmp_path, "distil-behind", language="mul", serves=("ko", "th"), base=str(folder), batch_size=16,
                   vocab_size=300)  # fmt: skip
    told: list[Finding] = []
    base = load(folder, dtype="float32")
    found = localize(base, asked, pairs=both, progress=False, on_finding=told.append)
    assert found.bundle.languages == ("en", "ko", "th")
    assert not [finding for finding in told if "by their script" in finding.what]
    curve = losses(asked)
    assert curve[-1] < 0.6 * curve[0]
    again = load(write(found, asked), dtype="float32")
    assert again.languages == ("en", "ko", "th")
    assert again.conditioner("ko").encoder is again.conditioner("th").encoder
    with pytest.raises(UserError, match="has a conditioner for th"):
        localize(again, replace(asked, serves=("ja", "th"), run=str(tmp_path / "other")), pairs=both, progress=False)
    localize(base, replace(asked, serves=("ko", "ja"), run=str(tmp_path / "third"), steps=1), pairs=both,
             progress=False, on_finding=told.append)  # fmt: skip
    assert any("50.0% of the texts are not in ko or ja by their script" in finding.what for finding in told)


@pytest.mark.needs("cldr")
@pytest.mark.needs("unicode-data")
def test_a_vocabulary_grows_with_the_languages(tmp_path: Path) -> None:
    told = {tag: list(pairs(tag, 1500, seed=0)) for tag in ("fi", "hy")}
    for served, least, most in ((("fi",), 1000, 2000), (("fi", "hy"), 2001, 4000)):
        rows = [row for tag in served for row in told[tag]]
        asked = wanted(tmp_path, "distil-behind", language="mul", serves=served, steps=0, start="warm", vocab_size=None,
                       run=str(tmp_path / str(len(served))))  # fmt: skip
        found = run(asked, pairs=Texts(source=[a for a, _ in rows], target=[b for _, b in rows]))
        assert least <= found.report["vocab_size"] <= most


def test_a_language_that_is_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a conditioner for ko"):
        run(wanted(tmp_path, "distil-behind"), tiny_bundle("sd2", languages=("en", "ko")))


# --- Where a student starts ----------------------------------------------------------------------------------------


def test_alignment_finds_which_token_translates_which() -> None:
    """Two words a text, in any order, besides one that is in every text and one that nothing translates."""
    draw = torch.Generator().manual_seed(0)
    own, other = [], []
    for _ in range(300):
        a, b = torch.randint(1, 9, (2,), generator=draw).tolist()
        own.append([a, 20, b])
        other.append([100 + b, 100 + a, 150])
    found = align(own, other)
    likeliest = {}
    for mine, theirs, share in zip(found.own.tolist(), found.other.tolist(), found.share.tolist()):
        likeliest[mine] = max(likeliest.get(mine, (0.0, -1)), (share, theirs))
    assert {mine: theirs for mine, (_, theirs) in likeliest.items()} == {**{i: 100 + i for i in range(1, 9)}, 20: 150}
    totals = torch.zeros(21).index_add_(0, found.own, found.share)
    assert torch.allclose(totals[found.own.unique()], torch.ones(9), atol=1e-5)
    table = torch.randn(151, 4, generator=draw)
    rows, seen = carried_over(table, found, 30)
    assert seen.nonzero().flatten().tolist() == [*range(1, 9), 20]
    assert torch.allclose(rows[3], table[103], atol=0.35)
    assert not rows[~seen].any()


def test_alignment_refuses_what_is_not_parallel() -> None:
    with pytest.raises(UserError, match="2 texts and 1 translations"):
        align([[1], [2]], [[1]])
    with pytest.raises(UserError, match="no pair of texts"):
        align([[]], [[1]])


def test_a_student_that_starts_aligned_is_nearer_from_the_first_step(tmp_path: Path) -> None:
    texts = Texts(source=PAIRS.source * 8, target=PAIRS.target * 8)
    first = {}
    for start in ("aligned", "warm", "scratch"):
        asked = wanted(tmp_path / start, "distil-behind", start=start, steps=1)
        run(asked, pairs=texts)
        first[start] = losses(asked)[0]
    assert first["aligned"] < 0.9 * first["warm"] < first["scratch"]


@pytest.mark.parametrize("start", ["scratch", "given"])
def test_behind_the_last_layer_is_the_teachers_wherever_the_student_starts(start: str, tmp_path: Path) -> None:
    base = tiny_bundle("sd2")
    same = tiny_conditioner("ko", 32, "sd2", seed=9)  # of the base's shape and activation
    more = {"student": str(conditioners.write(same, tmp_path / "same"))} if start == "given" else {}
    found = run(wanted(tmp_path, "distil-behind", start=start, steps=2, **more), base)
    said, theirs = (dict(found.bundle.conditioner(tag).encoder.named_parameters()) for tag in ("ko", "en"))
    last = [name for name in theirs if "layers.1." in name or "final" in name]
    assert len(last) > 10
    assert all(torch.equal(said[name], theirs[name]) for name in last)


def test_behind_refuses_an_encoder_of_another_shape(tmp_path: Path) -> None:
    plain = tiny_conditioner("ko", 32, seed=9)
    assert isinstance(plain.encoder, CLIPText)
    wide = CLIPText(replace(plain.encoder.spec, intermediate_size=96))
    folder = str(conditioners.write(replace(plain, encoder=wide), tmp_path / "wide"))
    with pytest.raises(UserError, match="layers aren't the teacher's.*distil-reader"):
        run(wanted(tmp_path, "distil-behind", start="given", student=folder))


# --- What a step reads ---------------------------------------------------------------------------------------------


def test_every_row_is_read_once_before_any_is_read_again() -> None:
    rows = [i for step in range(10) for i in drawn(0, step, 3, 10)]
    assert sorted(rows[:10]) == sorted(rows[10:20]) == sorted(rows[20:]) == list(range(10))
    assert rows[:10] != rows[10:20]
    assert drawn(0, 5, 3, 10) == rows[15:18]


def test_a_text_that_tells_the_same_again_has_a_period() -> None:
    encoder = tiny_conditioner("en", 32).encoder
    assert isinstance(encoder, CLIPText)
    ids = torch.tensor(tiny_tokenizer("en").encode(["an owl", "a moon"]).ids)
    assert period(encoder, ids) == 0
    with torch.no_grad():  # a position says what the one 4 before it says: no attention, the same embedding
        for layer in encoder.text_model.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
        table = encoder.text_model.embeddings.position_embedding.weight
        table.copy_(table[:4].repeat(4, 1))
    assert period(encoder, ids) == 4


def test_what_is_asked_behind_the_words() -> None:
    mine, theirs = torch.tensor([2, 5]), torch.tensor([4, 3])
    at, asks = asked_of(mine, theirs, 10, 4)
    assert asks.tolist() == [[False] * 2 + [True] * 8, [False] * 5 + [True] * 5]
    assert at[0, 2:].tolist() == [6, 7, 4, 5, 6, 7, 8, 9]  # 2 and 3 are told a period later
    assert at[1, 5:].tolist() == [5, 6, 7, 8, 9]
    at, asks = asked_of(mine, theirs, 10, 0)
    assert asks[0].tolist() == [False] * 4 + [True] * 6
    _, asks = asked_of(mine, theirs, 5, 4)
    assert asks[0].tolist() == [False] * 4 + [True]  # the rest is not in what is looked at


# --- Settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["distil-behind", "stage1"])
def test_no_steps_leave_the_student_as_it_starts(plan: str, tmp_path: Path) -> None:
    asked = wanted(tmp_path, plan, steps=0, start="aligned")
    base = tiny_bundle("sd2")
    found = run(asked, base)
    student = found.bundle.conditioner("ko")
    teacher = base.conditioner("en")
    assert isinstance(teacher.encoder, CLIPText)
    fresh = new_student(
        teacher.encoder, student.tokenizer, "aligned", seed=asked.seed, other=teacher.tokenizer, pairs=PAIRS
    )
    assert all(torch.equal(p, student.encoder.state_dict()[name]) for name, p in fresh.state_dict().items())
    assert found.report["steps"] == 0
    assert not (Path(asked.run) / "state.pt").exists()
    cost = forecast(base, replace(asked, run=str(tmp_path / "dry")), pairs=PAIRS, captions=CAPTIONS)
    assert (cost["steps"], cost["seconds"]) == (0, 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": "distill-states"}, "Did you mean 'distil-states'"),
        ({"start": "given"}, "start given"),
        ({"student": "x"}, "with a student"),
        ({"serves": ("ko", "KO")}, "serves ko, KO"),
        ({"pairs": ()}, "without parallel text"),
        ({"steps": -1}, "steps -1"),
        ({"plan": "swap", "steps": 1, "student": "x"}, "steps 1 with plan swap"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"long_prompt": "chunk"}, "long_prompt"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"beta2": -0.1}, "beta2 -0.1"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
        ({"schedule": "linear"}, "schedule"),
        ({"plan": "stage1", "weighting": "snr"}, "weighting"),
        ({"weighting": "plain"}, "weighting plain with plan distil-behind"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        wanted(tmp_path, changed.pop("plan", "distil-behind"), **changed)


def test_states_of_other_lengths_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="77 states from a teacher of 16"):
        run(wanted(tmp_path, "distil-states", start="given", student=str(alt_diffusion(tmp_path / "m"))))


def test_an_adapter_needs_a_projection(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a projection"):
        run(wanted(tmp_path, "adapter", student=korean(tmp_path)))


def test_a_student_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = conditioners.write(tiny_conditioner("ko", 64), tmp_path / "wide")
    with pytest.raises(CheckpointError, match="64 wide for a UNet that reads 32"):
        run(wanted(tmp_path, "stage2", student=str(folder)))
