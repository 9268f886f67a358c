"""The page of `kotoe serve`, in a real browser against the real server: what a visitor does, and that nothing goes
wrong in the console meanwhile."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from browser import Open
from serving import serving

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.allow_hosts(["127.0.0.1"])]
LONG = {"steps": 150, "n": 10}  # of pictures of 512 x 512: minutes, if nobody cancels them
TOO_LONG = {**LONG, "width": 512, "height": 512}


# --- Words


def test_enter_in_a_composition_never_submits(opened: Open) -> None:
    window = opened(locale="ja-JP")
    page = window.page
    page.focus("#prompt")
    keys = page.context.new_cdp_session(page)
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229, "nativeVirtualKeyCode": 229}
    for text in ("あ", "あお", "青い", "青い背景に猫"):
        keys.send("Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)})
    keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})  # as input methods have it: keyCode 229
    keys.send("Input.insertText", {"text": "青い背景に猫"})  # the composition ends
    keys.send("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    page.wait_for_function("() => document.querySelector('#prompt').value === '青い背景に猫'")
    page.evaluate(
        """async () => {  // the three ways in which browsers tell of such an Enter, each alone
            const field = document.querySelector("#prompt");
            const fire = (type, init = {}) => field.dispatchEvent(new KeyboardEvent(type, {
                key: "Enter", bubbles: true, cancelable: true, ...init }));
            fire("keydown", { isComposing: true });
            fire("keydown", { keyCode: 229 });
            field.dispatchEvent(new CompositionEvent("compositionstart"));
            fire("keydown", { keyCode: 13 });
            field.dispatchEvent(new CompositionEvent("compositionend"));
            fire("keydown", { keyCode: 13 });  // Safari: the end is told first
            fire("keyup");
        }"""
    )
    page.wait_for_timeout(300)
    assert window.sent == []
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#prompt") == "青い背景に猫\n"
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    assert [body["prompt"] for body in window.sent] == ["青い背景に猫"]
    assert page.input_value("#prompt") == "青い背景に猫"


def test_tokens_language_and_limit_are_told_as_one_types(opened: Open) -> None:
    window = opened(refusals=(400,))
    page = window.page
    page.fill("#prompt", "파란 배경의 고양이")
    page.wait_for_selector("#meter :text('kotoe-emoji/ko')")
    assert "한국어 · Korean" in page.inner_text("#meter")
    assert page.get_attribute("#prompt", "lang") == "ko"
    page.fill("#prompt", "a cat and " * 60 + "zebra")
    page.wait_for_selector("#meter.is-over")
    assert "zebra" in page.inner_text("#meter .wrong")
    page.fill("#prompt", "a (cat")  # the server's own words, where the prompt is
    page.wait_for_function("() => document.querySelector('#meter .wrong').textContent.includes('(')")
    page.click("#draw")
    page.wait_for_selector("#error-prompt:not([hidden]), #form-error:not([hidden])")
    assert window.page.locator(".card").count() == 0


def test_an_answer_to_older_words_is_dropped(opened: Open) -> None:
    window = opened()
    page = window.page
    held: list[Any] = []
    page.route("**/tokens", lambda route: held.append(route) if "cat" in route.request.post_data else route.continue_())
    page.fill("#prompt", "a cat")
    page.wait_for_timeout(500)
    assert len(held) == 1
    page.fill("#prompt", "青い犬")
    page.wait_for_selector("#meter :text('kotoe-emoji/ja')")
    held[0].fulfill(
        json={"language": "en", "language_source": "asked", "conditioner": "old", "tokens": 1, "limit": 2, "over": []}
    )
    page.wait_for_timeout(200)
    assert "old" not in page.inner_text("#meter")


# --- Jobs


def test_previews_cancelling_finishing_and_a_reload(opened: Open) -> None:
    window = opened()
    page = window.page
    long = window.draw("a panda on a green background", **TOO_LONG)
    card = window.state(long, "drawing")
    page.wait_for_selector(f'.card[data-id="{long}"] .tile[data-seen="preview"] img[src^="data:image/png"]')
    assert float(card.locator("progress").get_attribute("max")) >= 150
    page.reload()  # what runs is taken up again
    window.ready()
    card = window.state(long, "drawing")
    page.wait_for_selector(f'.card[data-id="{long}"] .tile[data-seen="preview"]')
    card.get_by_role("button", name="Cancel").click()
    window.state(long, "cancelled")
    page.click("#more summary")
    page.click("#reset")
    done = window.draw("a strawberry on a white background", n=2, seed=5)
    card = window.state(done, "done")
    page.wait_for_function(
        "id => document.querySelectorAll(`[data-id='${id}'] button.tile img`).length === 2", arg=done
    )
    assert card.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
    assert "seeds from 5" in card.inner_text()
    page.reload()
    window.ready()
    card = window.state(done, "done")
    assert card.locator("img").last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
    assert window.state(long, "cancelled").inner_text().startswith("a panda")
    assert page.input_value("#prompt") == "a strawberry on a white background"  # the draft


def test_several_jobs_at_once_and_their_places(opened: Open) -> None:
    window = opened()
    first = window.draw("a cat", **TOO_LONG)
    others = [window.draw(f"{n} cats", n=1, steps=5, width=128, height=128) for n in range(2, 6)]
    assert window.page.locator(".card").count() == 5
    window.state(first, "drawing").get_by_role("button", name="Cancel").click()
    for other in others:
        window.state(other, "done")
    assert window.page.locator("button.tile").count() == 4


def test_a_seed_is_random_told_and_used_again(opened: Open) -> None:
    window = opened()
    page = window.page
    job = window.draw("a rocket", steps=2)
    card = window.state(job, "done")
    assert "seed" not in window.sent[0]
    told = re.search(r"seed (\d+)", card.inner_text())
    assert told is not None
    card.get_by_role("button", name="Use seed").click()
    assert page.input_value("#seed") == told[1]
    again = window.draw("a rocket", steps=2)
    window.state(again, "done")
    assert window.sent[1]["seed"] == int(told[1])
    page.click("#seed-random")
    assert page.input_value("#seed") == ""


def test_fast_leaves_its_settings_to_the_model(opened: Open) -> None:
    window = opened()
    page = window.page
    page.check("#fast")
    window.state(window.draw("a rocket", guidance_scale="1"), "done")
    sent = window.sent[0]
    assert (sent["fast"], sent["guidance_scale"]) == (True, 1)
    assert not {"steps", "sampler"} & set(sent)
    page.uncheck("#fast")
    assert (page.input_value("#steps"), page.input_value("#sampler")) == ("10", "ddim")
    window.state(window.draw("a rocket"), "done")
    assert (window.sent[1]["steps"], "fast" in window.sent[1]) == (10, False)


def test_a_large_picture_its_settings_and_its_file(opened: Open, tmp_path: Path) -> None:
    window = opened()
    page = window.page
    job = window.draw("a rocket", steps=3, seed=11, guidance_scale=3, negative_prompt="a cat")
    window.state(job, "done").locator("button.tile").click()
    page.wait_for_selector("#viewer img[src^=blob]")
    assert re.search(r"Seed\s*11\b", page.inner_text("#viewer dl"))
    with page.expect_download() as download:
        page.click("#viewer a[download]")
    file = tmp_path / "picture.png"
    download.value.save_as(file)
    assert download.value.suggested_filename == "kotoe-a-rocket-11.png"
    page.keyboard.press("Escape")
    page.click("#reset")
    page.fill("#prompt", "")
    page.set_input_files("#settings-file", file)  # and back from the file
    page.wait_for_function("() => document.querySelector('#prompt').value === 'a rocket'")
    found = {name: page.input_value(f"#{name}") for name in ("seed", "steps", "guidance_scale", "negative_prompt")}
    assert found == {"seed": "11", "steps": "3", "guidance_scale": "3", "negative_prompt": "a cat"}
    assert "Kotoe" in page.inner_text("#notices")
    again = window.draw("a rocket")
    window.state(again, "done")
    mine = {"seed", "steps", "guidance_scale", "negative_prompt", "width", "height", "sampler"}
    assert {k: window.sent[0][k] for k in mine} == {k: window.sent[1][k] for k in mine}


def test_settings_used_again_are_all_taken_over(opened: Open) -> None:
    """Also those that were left to the model; and nothing is told that isn't there."""
    window = opened()
    page = window.page
    job = window.draw("a rocket", steps=2)
    window.state(job, "done").get_by_role("button", name="Use settings").click()
    page.wait_for_function("() => document.activeElement.id === 'prompt'")
    assert page.locator(".notice").count() == 0


def test_notices_do_not_pile_up(opened: Open, tmp_path: Path) -> None:
    window = opened()
    page = window.page
    job = window.draw("a rocket", steps=2)
    window.state(job, "done").locator("button.tile").click()
    with page.expect_download() as download:
        page.click("#viewer a[download]")
    download.value.save_as(tmp_path / "picture.png")
    page.keyboard.press("Escape")
    for k in range(5):
        page.set_input_files("#settings-file", tmp_path / "picture.png")
        page.wait_for_function("n => document.querySelectorAll('.notice').length === n", arg=min(3, k + 1))
        page.wait_for_timeout(300)
    words = page.inner_text("#notices")
    assert "null" not in words
    assert "Kotoe" in words
    assert "ending" not in words  # it is what jobs have anyway


def test_a_picture_without_settings_is_said_to_have_none(opened: Open, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    window = opened(refusals=(400,))
    window.page.set_input_files("#settings-file", tmp_path / "plain.png")
    window.page.wait_for_selector(".notice.error")


def test_deleting_can_be_undone_and_is_for_good(opened: Open) -> None:
    window = opened(refusals=(404,))
    page = window.page
    job = window.draw("a cat", steps=2)
    card = window.state(job, "done")
    card.get_by_role("button", name="Delete").click()
    assert not card.is_visible()
    assert "BODY" not in window.focused()  # the focus is somewhere
    page.get_by_role("button", name="Undo").click()
    assert card.is_visible()
    card.get_by_role("button", name="Delete").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.locator(".notice").get_by_role("button", name="Close").click()
    assert page.locator(".card").count() == 0
    assert page.evaluate("id => fetch(`kotoe/v1/jobs/${id}`).then((answer) => answer.status)", job) == 404
    page.reload()
    window.ready()
    assert page.locator(".card").count() == 0


def test_deleting_what_is_drawn_deletes_it_on_the_server(opened: Open) -> None:
    window = opened(refusals=(404,))
    page = window.page
    job = window.draw("a secret cat", **TOO_LONG)
    window.state(job, "drawing")
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as answered:
        page.click("#clear")
        page.click("dialog[open] button.primary")
    assert answered.value.json()["deleted"]
    assert page.evaluate("id => fetch(`kotoe/v1/jobs/${id}`).then((answer) => answer.status)", job) == 404


def test_wrong_values_are_told_at_their_fields(opened: Open) -> None:
    window = opened(refusals=(400,))
    page = window.page
    page.click("#draw")
    assert page.inner_text("#error-prompt") == "Write what the picture should show."
    page.fill("#prompt", "a cat")
    page.fill("#width", "100")
    page.click("#draw")
    assert page.inner_text("#error-width") == "A multiple of 32, please."
    assert "#width" in window.focused()
    page.fill("#width", "128")
    assert not page.is_visible("#error-width")
    page.click("#more summary")
    page.fill("#guidance_scale", "1")
    page.fill("#negative_prompt", "a dog")
    page.click("#draw")  # only the server knows
    page.wait_for_selector("#error-negative_prompt:not([hidden]), #form-error:not([hidden])")
    assert page.locator(".card").count() == 0


# --- Languages


def test_the_language_of_the_page(opened: Open) -> None:
    window = opened(locale="ko-KR")
    page = window.page
    assert (page.get_attribute("html", "lang"), page.inner_text("#draw")) == ("ko", "그리기")
    job = window.draw("고양이", steps=2)
    card = window.state(job, "done")
    for tag, lang, button in (("zh", "zh-Hans", "绘制"), ("en", "en", "Draw"), ("ja", "ja", "描く")):
        page.select_option("#locale", tag)
        page.wait_for_function("text => document.querySelector('#draw').textContent === text", arg=button)
        assert page.get_attribute("html", "lang") == lang
    assert card.get_by_role("button", name="設定を使う").is_visible()
    assert card.locator(".words").get_attribute("lang") == "ko"
    page.reload()
    window.ready()
    assert page.inner_text("#draw") == "描く"
    window.draw("猫", steps=2)
    assert window.languages == ["ko", "ja"]
    assert "xx" not in opened(locale="fr-FR").page.get_attribute("html", "lang")


def test_languages_side_by_side(opened: Open) -> None:
    window = opened()
    page = window.page
    page.click("#tab-many")
    page.fill("#text-en", "a cat on a blue background")
    page.fill("#text-ja", "青い背景に猫")
    page.select_option("#add-language", "ru")
    assert "#text-ru" in window.focused()
    page.keyboard.type("кот на синем фоне")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.group .card[data-state=done]').length === 3")
    assert [body["language"] for body in window.sent] == ["en", "ja", "ru"]
    assert len({body["seed"] for body in window.sent}) == 1
    titles = page.locator(".card-language").all_inner_texts()
    assert titles == ["English", "日本語 · Japanese", "русский · Russian"]
    page.reload()
    window.ready()
    assert page.locator(".group .card img").count() == 3
    page.click("#tab-many")
    assert page.input_value("#text-ru") == "кот на синем фоне"
    page.click("#copy-first")
    assert page.input_value("#text-zh") == "a cat on a blue background"
    page.locator(".group").get_by_role("button", name="Use settings").click()
    assert page.locator("#languages textarea").count() == 3
    assert page.input_value("#seed") == str(window.sent[0]["seed"])


# --- Without a mouse, on a phone, in the dark


def test_by_the_keyboard_alone(opened: Open) -> None:
    window = opened()
    page = window.page
    page.keyboard.press("Tab")
    assert "Skip" in window.focused()
    window.tab_to("#tab-one")
    page.keyboard.press("ArrowRight")
    assert "#tab-many" in window.focused()
    page.keyboard.press("ArrowLeft")
    window.tab_to("#prompt")
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    page.wait_for_selector("button.tile img")
    assert "#prompt" in window.focused()
    window.tab_to("button.tile")
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open] img[src^=blob]")
    for _ in range(12):  # the focus stays in the dialog
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.matches('button.tile')")
    window.tab_to("[data-t='card.reuse']")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'prompt'")
    page.wait_for_function("() => document.querySelector('#live').innerText === 'Its settings are in the form.'")


def test_news_is_told_to_screen_readers_and_not_too_often(opened: Open) -> None:
    window = opened()
    page = window.page
    page.evaluate(
        """() => { const live = document.querySelector("#live"); window.told = [];
            new MutationObserver(() => window.told.push(live.textContent)).observe(live, { childList: true }); }"""
    )
    window.state(window.draw("a cat", steps=100), "done")
    page.wait_for_function("() => window.told.at(-1)?.includes('done')")
    told = page.evaluate("window.told")
    assert told[0] == "Sent."
    assert told[-1] == "a cat: the picture is done."
    assert len(told) <= 5  # of a hundred steps


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_nothing_is_too_wide_or_too_small(opened: Open, width: int) -> None:
    window = opened(viewport={"width": width, "height": 740}, is_mobile=True, has_touch=True, color_scheme="dark")
    page = window.page
    window.state(window.draw("supercalifragilisticexpialidocious" * 3, steps=2, n=4), "done")
    page.click("#source-fold summary")
    small = """() => [...document.querySelectorAll("button, select, summary, textarea, input, a")]
        .filter((e) => e.checkVisibility() && !["range", "checkbox"].includes(e.type) && !e.matches(".skip"))
        .map((e) => [e.id || e.textContent, e.getBoundingClientRect()])
        .filter(([, box]) => Math.min(box.width, box.height) < 43.9).map(([name]) => name)"""
    assert window.wide() <= 0
    assert page.evaluate(small) == []
    page.click("#tab-many")
    assert window.wide() <= 0
    assert page.evaluate(small) == []
    page.locator("button.tile").first.click()
    page.wait_for_selector("#viewer img[src^=blob]")
    assert page.evaluate("document.querySelector('#viewer').scrollWidth - innerWidth") <= 0
    assert page.evaluate(small) == []


def test_light_and_dark(opened: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(color_scheme=scheme).page for scheme in ("light", "dark"))
    bright, dim = light.evaluate(paper), dark.evaluate(paper)
    assert bright != dim
    dark.select_option("#theme", "light")
    assert dark.evaluate(paper) == bright
    dark.reload()
    assert dark.evaluate(paper) == bright
    dark.select_option("#theme", "auto")
    assert dark.evaluate(paper) == dim


# --- Servers


def test_a_server_with_keys(opened: Open, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("visitor:sesame-open-sesame\n")
    os.chmod(keys, 0o600)
    with serving("--keys", str(keys)) as server:
        window = opened(server.url, refusals=(401,))
        page = window.page
        page.wait_for_selector("#ask[open]")
        page.keyboard.type("not-the-right-key-at-all")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask[open] :text('not accepted')")
        page.fill("#ask-field", "sesame-open-sesame")
        page.keyboard.press("Enter")
        window.ready()
        job = window.draw("a cat", steps=5)
        window.state(job, "done")
        page.wait_for_selector("button.tile img")
        page.reload()  # kept in this tab
        window.ready()


def test_a_server_that_is_out_of_reach_for_a_while(opened: Open) -> None:
    window = opened()
    page = window.page
    job = window.draw("a cat", **TOO_LONG)
    window.state(job, "drawing")
    window.context.set_offline(True)
    page.click("#draw")
    page.wait_for_selector("#form-error:not([hidden])")
    assert page.inner_text("#form-error") == "The server can't be reached."
    page.click("#theme")  # any other part still works
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    card = page.locator(f'.card[data-id="{job}"]')
    window.context.set_offline(False)
    card.get_by_role("button", name="Cancel").click()
    window.state(job, "cancelled")
    window.wrong = [text for text in window.wrong if "ERR_" not in text]  # what the browser says of it itself
