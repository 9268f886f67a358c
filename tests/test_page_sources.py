"""The page of `kotoe serve` in a real browser: pictures to start from, masks, and what is dropped and pasted."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from browser import Open, Window, picture

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.allow_hosts(["127.0.0.1"])]


def started(window: Window, folder: Path, size: tuple[int, int]) -> Window:
    """The page with a picture of that size, all teal, to start from."""
    Image.new("RGB", size, "teal").save(folder / "start.png")
    window.page.click("#source-fold summary")
    window.page.set_input_files("#source-file", folder / "start.png")
    return window


def test_the_mask_painter_paints(opened: Open, tmp_path: Path) -> None:
    window = started(opened(), tmp_path, (300, 150))
    page = window.page
    page.wait_for_selector("#mask-open:not([hidden])")
    size = int(page.input_value("#width")), int(page.input_value("#height"))
    assert size == (192, 96)  # as the picture's shape, in multiples of 32, about as many pixels as 128 x 128
    page.click("#mask-open")
    box = page.locator(".painter-view").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    page.mouse.move(*at(0.2, 0.5))
    page.mouse.down()
    page.mouse.move(*at(0.4, 0.5), steps=5)
    page.mouse.up()
    page.mouse.move(*at(0.8, 0.5))  # a stroke that is taken back
    page.mouse.down()
    page.mouse.up()
    page.click("#painter [data-t='painter.undo']")
    page.click("#painter button.primary")
    page.fill("#strength", "0.5")
    job = window.draw("a cat", steps=4)
    window.state(job, "done")
    body = window.sent[0]
    mask, init = picture(body["mask"]).convert("L"), picture(body["init_image"]).convert("RGB")
    assert mask.size == init.size == size
    assert [mask.getpixel((int(192 * x), 48)) for x in (0.2, 0.3, 0.4)] == [255, 255, 255]
    assert [mask.getpixel(p) for p in ((153, 48), (58, 5), (58, 90), (2, 48))] == [0, 0, 0, 0]
    assert init.getpixel((80, 48)) == (0, 128, 128)
    assert body["strength"] == 0.5
    page.click("#source-remove")
    window.state(window.draw("a cat"), "done")
    assert not {"init_image", "mask", "strength"} & set(window.sent[1])


def test_only_what_is_masked_is_drawn(opened: Open, tmp_path: Path) -> None:
    """A part of a photo as large as it is; the mask stays where it is when that is chosen after it was painted."""
    window = started(opened(), tmp_path, (601, 301))
    page = window.page
    page.wait_for_selector("#closeup-row:not([hidden])")
    page.fill("#width", "128")  # of the photo the middle
    page.fill("#height", "128")
    page.check("#closeup")
    page.fill("#prompt", "a red cat")
    page.click("#draw")
    assert page.inner_text("#error-mask") == "Paint what is to be drawn anew first."
    page.uncheck("#closeup")
    page.click("#mask-open")
    box = page.locator(".painter-view").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.click("#painter button.primary")
    page.check("#closeup")
    job = window.draw("a red cat", steps=6)
    window.state(job, "done").locator("img[src^=blob]").wait_for()
    body = window.sent[0]
    mask, init = picture(body["mask"]).convert("L"), picture(body["init_image"]).convert("RGB")
    assert mask.size == init.size == (601, 301)
    left, top, right, bottom = mask.point(lambda v: 255 * (v > 128)).getbbox()
    assert abs(left + right - 601) <= 4  # the middle of the middle
    assert abs(top + bottom - 301) <= 4
    assert 8 <= body["padding_mask_crop"] <= (right - left) / 2
    assert (body["width"], body["height"]) == (128, 128)
    shown = page.locator(f'[data-id="{job}"] img').first
    assert shown.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [601, 301]
    kept = page.evaluate(
        """async (img) => {
        const canvas = new OffscreenCanvas(601, 301);
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(document.querySelector(img), 0, 0);
        return [[3, 3], [590, 290], [300, 150]].map((at) => [...context.getImageData(...at, 1, 1).data.slice(0, 3)]);
    }""",
        f'[data-id="{job}"] img',
    )
    assert kept[0] == kept[1] == [0, 128, 128] != kept[2]
    page.click("#source-remove")
    page.locator(f'[data-id="{job}"]').get_by_role("button", name="Use settings").click()
    page.wait_for_selector("#closeup:checked")
    window.state(window.draw("a red cat"), "done")
    assert {k: window.sent[1][k] for k in ("mask", "init_image", "padding_mask_crop")} == {
        k: body[k] for k in ("mask", "init_image", "padding_mask_crop")
    }


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        ((1500, 1000), ("192", "128")),
        ((1000, 1500), ("128", "192")),
        ((400, 300), ("128", "96")),
        ((99, 99), ("128", "128")),
    ],
)
def test_a_photos_shape_is_kept(opened: Open, tmp_path: Path, photo: tuple[int, int], size: tuple[str, str]) -> None:
    window = started(opened(), tmp_path, photo)
    page = window.page
    page.wait_for_selector("#source-view:not([hidden])")
    assert (page.input_value("#width"), page.input_value("#height")) == size
    assert "cut off" not in page.inner_text("#source-note")


def test_a_photo_too_large_for_the_server_is_said_to_be(opened: Open, tmp_path: Path) -> None:
    """A closeup sends it whole, and 32 MB have to hold it."""
    window = started(opened(), tmp_path, (4032, 3024))
    page = window.page
    page.wait_for_selector("#closeup-row:not([hidden])")
    page.check("#closeup")
    page.wait_for_function("() => document.querySelector('#source-note').innerText.includes('too large')")


def test_a_mask_painted_with_a_finger_and_with_the_keyboard(opened: Open, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "start.png")
    window = opened(has_touch=True)
    page = window.page
    page.click("#source-fold summary")
    page.set_input_files("#source-file", tmp_path / "start.png")
    page.click("#mask-open")
    box = page.locator(".painter-view").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
    page.keyboard.press("ArrowRight")  # from where the finger was: 32, 32
    page.keyboard.press("Space")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_function("() => /painted/.test(document.querySelector('#painter-told').textContent)")
    page.click("#painter [data-t='painter.invert']")
    page.click("#painter button.primary")
    window.state(window.draw("a cat", steps=2), "done")
    mask = picture(window.sent[0]["mask"]).convert("L")
    assert [mask.getpixel(p) for p in ((32, 32), (37, 116), (100, 32), (37, 75))] == [0, 0, 255, 255]


def test_a_mask_goes_when_the_picture_gets_another_shape(opened: Open, tmp_path: Path) -> None:
    Image.new("RGBA", (128, 128), (0, 0, 0, 0)).save(tmp_path / "start.png")
    window = opened()
    page = window.page
    page.click("#source-fold summary")
    page.set_input_files("#source-file", tmp_path / "start.png")
    page.click("#mask-open")
    page.focus(".painter-view")
    page.keyboard.press("Space")
    page.click("#painter button.primary")
    page.wait_for_selector("#mask-remove:not([hidden])")
    assert "white" in page.inner_text("#source-note")  # see-through parts
    page.fill("#width", "256")
    assert "removed" in page.inner_text("#source-note")
    window.state(window.draw("a cat", steps=2), "done")
    assert "mask" not in window.sent[0]
    assert picture(window.sent[0]["init_image"]).getpixel((10, 10))[:3] == (255, 255, 255)


def test_pictures_are_dropped_and_pasted(opened: Open) -> None:
    """Each way with a file that the page makes itself, as the browser hands them over."""
    window = opened()
    page = window.page
    window.state(window.draw("a rocket", steps=3, seed=11), "done")
    page.click("#reset")
    page.fill("#prompt", "")
    give = """async ([type, target, kept]) => {
        const address = `kotoe/v1/pictures/${document.querySelector("button.tile").dataset.picture}.png`;
        const file = kept
            ? new File([await (await fetch(address)).blob()], "picture.png", { type: "image/png" })
            : new File([await new Promise((done) => Object.assign(document.createElement("canvas"),
                { width: 64, height: 64 }).toBlob(done))], "picture.png", { type: "image/png" });
        const transfer = new DataTransfer();
        transfer.items.add(file);
        const element = document.querySelector(target);
        const how = { bubbles: true, cancelable: true };
        if (type === "paste") {
            element.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, ...how }));
            return;
        }
        for (const step of ["dragenter", "dragover", "drop"]) {
            const on = step === "dragenter" ? document.body : element;
            on.dispatchEvent(new DragEvent(step, { dataTransfer: transfer, ...how }));
            if (step === "dragover" && !element.checkVisibility()) throw new Error("no zone is shown");
        }
    }"""
    page.evaluate(give, ["drop", "#drop-settings", True])
    page.wait_for_function("() => document.querySelector('#prompt').value === 'a rocket'")
    assert page.input_value("#seed") == "11"
    assert not page.is_visible("#drop")
    page.evaluate(give, ["drop", "#drop-start", False])
    page.wait_for_selector("#source-canvas")
    page.click("#source-remove")
    page.evaluate(give, ["paste", "#prompt", False])
    page.wait_for_selector("#ask[open] img")
    page.click("#ask button.primary")
    page.wait_for_selector("#source-canvas")
    page.evaluate(give, ["paste", "#prompt", True])
    page.click("#ask button[value=settings]")
    page.wait_for_function("() => document.querySelectorAll('.notice').length === 2")
