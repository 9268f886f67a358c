// A picture to start from (img2img) and its mask. What is shown is what is sent: the picture cut to the size that is asked
// for, or, where only what is masked is drawn, all of it, with what that size asks for in a part of it.

import { byId, h, setText, show } from "./dom.js";
import { paintMask, tinted } from "./mask.js";
import { Invalid } from "./settings.js";
import { onLocale, sentences, t } from "./strings.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp"];
const SAME_SHAPE = 0.005; // of the ratio of the edges: less is rounding
const MARGIN = 0.25; // of what is masked: what lies around it is drawn with it, to fit in
const LEAST_MARGIN = 8; // pixels

/** Which part of the picture is shown, and how large. @typedef {{left: number, top: number, across: number, down: number, width: number, height: number}} Frame */

/** The picture to start from, if there is one. */
export class Source {
  #settings;
  /** @type {ImageBitmap|null} */
  #bitmap = null;
  /** @type {HTMLCanvasElement|null} white where it is painted anew, else clear; as large as the picture that is sent */
  #mask = null;
  #clear = false; // parts were see-through
  #sized = false; // the size was set after the picture
  #dropped = false; // the mask went, since the size has another shape now

  /** @param {import("./settings.js").Settings} settings */
  constructor(settings) {
    this.#settings = settings;
    settings.onSize = () => this.#resize();
    byId("source-choose").addEventListener("click", () => byId("source-file").click());
    byId("source-file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      event.target.value = ""; // the same file again is a change again
      if (file) await this.take(file);
    });
    byId("source-remove").addEventListener("click", () => this.remove());
    byId("mask-open").addEventListener("click", () => this.#paint());
    byId("closeup").addEventListener("input", () => this.#toggle());
    byId("mask-remove").addEventListener("click", () => {
      this.#mask = null;
      this.#update();
    });
    onLocale(() => this.#update());
  }

  /** @returns {boolean} whether there is a picture */
  get given() {
    return this.#bitmap !== null;
  }

  /** @returns {boolean} whether only what is masked is drawn, and put back into the picture as large as it is */
  get #closeup() {
    return byId("closeup").checked;
  }

  /**
   * Start from a picture file.
   * @param {Blob} file
   * @param {{mask?: Blob|null, resize?: boolean, closeup?: boolean}} [how] resize: the size that is asked for follows the
   *   picture. closeup: only what is masked is drawn
   * @returns {Promise<boolean>} false: it is none that can be read, and that is said
   */
  async take(file, { mask = null, resize = true, closeup = false } = {}) {
    byId("source-fold").open = true;
    let bitmap;
    try {
      if (!PICTURES.includes(file.type)) throw new TypeError(file.type);
      bitmap = await createImageBitmap(file); // upright: EXIF's rotation is applied
    } catch {
      this.#settings.fault("init_image", t("wrong.picture"));
      return false;
    }
    this.#settings.clearFaults();
    this.#bitmap?.close();
    this.#bitmap = bitmap;
    byId("closeup").checked = closeup;
    this.#mask = mask && (await canvasOf(mask));
    this.#dropped = false;
    this.#sized = resize;
    if (resize) this.#settings.setSize(this.#fitting(bitmap));
    else this.#update();
    return true;
  }

  /** Start from words alone again. */
  remove() {
    this.#bitmap?.close();
    this.#bitmap = this.#mask = null;
    this.#dropped = this.#sized = byId("closeup").checked = false;
    this.#update();
    byId("source-choose").focus();
  }

  /**
   * What is sent.
   * @returns {Promise<{init: Blob|null, mask: Blob|null, fields: Record<string, any>}>} PNGs of one size, and fields of
   *   the request that go with them. Throws Invalid where only what is masked is drawn, and nothing is
   */
  async files() {
    if (!this.#bitmap) return { init: null, mask: null, fields: {} };
    if (this.#closeup && !this.#mask) throw new Invalid("mask", t("wrong.mask"));
    const fields = this.#closeup ? { padding_mask_crop: margin(this.#mask) } : {};
    return { init: await png(this.#cut()), mask: this.#mask && (await png(blackAndWhite(this.#mask))), fields };
  }

  /** The model's usual number of pixels, in the picture's shape; the picture's own size where that is small and fits. */
  #fitting({ width, height }) {
    const like = this.#settings.sizeLike(width, height);
    const small = width * height <= like.width * like.height * 1.1;
    const whole = this.#settings.isWhole(width) && this.#settings.isWhole(height);
    return small && whole ? { width, height } : like;
  }

  #resize() {
    if (!this.#bitmap) return;
    const { width, height } = this.#frame();
    if (this.#mask && (this.#mask.width !== width || this.#mask.height !== height)) {
      const ratio = (width * this.#mask.height) / (height * this.#mask.width);
      const same = Math.abs(ratio - 1) < SAME_SHAPE;
      this.#mask = same ? sized(this.#mask, width, height) : null;
      this.#dropped = !same;
    }
    this.#update();
  }

  /** @returns {Frame} all of the picture, as large as the server takes one; or the middle of it at the size that is asked for */
  #frame(closeup = this.#closeup) {
    const source = this.#bitmap;
    if (closeup) {
      const scale = Math.min(1, Math.sqrt(this.#settings.mostPixels / (source.width * source.height)));
      const [width, height] = [source.width, source.height].map((edge) => Math.max(1, Math.floor(edge * scale)));
      return { left: 0, top: 0, across: source.width, down: source.height, width, height };
    }
    const { width, height } = this.#settings.size;
    const scale = Math.max(width / source.width, height / source.height);
    const [across, down] = [width / scale, height / scale];
    return { left: (source.width - across) / 2, top: (source.height - down) / 2, across, down, width, height };
  }

  /** @returns {HTMLCanvasElement} what is in the frame, on white */
  #cut() {
    const { left, top, across, down, width, height } = this.#frame();
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#bitmap, left, top, across, down, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    this.#clear = data.some((value, at) => at % 4 === 3 && value < 255);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    return canvas;
  }

  /** Another frame: the mask stays over what it covers. */
  #toggle() {
    if (!this.#bitmap) return;
    const [from, to] = [this.#frame(!this.#closeup), this.#frame()];
    const before = this.#mask;
    this.#mask = before && moved(before, from, to);
    this.#dropped = before !== null && this.#mask === null;
    this.#update();
  }

  async #paint() {
    const drawn = await paintMask(this.#cut(), this.#mask);
    if (drawn === undefined) return; // left without a change
    this.#mask = drawn;
    this.#dropped = false;
    this.#resize(); // the size may be another one by now
  }

  #update() {
    const given = this.given;
    show(byId("source-view"), given);
    show(byId("mask-open"), given, byId("source-choose"));
    show(byId("source-remove"), given, byId("source-choose"));
    show(byId("mask-remove"), this.#mask !== null, byId("mask-open"));
    show(byId("strength-row"), given);
    show(byId("closeup-row"), given, byId("source-choose"));
    setText(byId("source-choose"), t(given ? "source.other" : "source.choose"));
    byId("source-choose").dataset.t = given ? "source.other" : "source.choose";
    setText(byId("mask-open"), t(this.#mask ? "mask.change" : "mask.open"));
    byId("mask-open").dataset.t = this.#mask ? "mask.change" : "mask.open";
    if (!given) return;
    const cut = this.#cut();
    const view = byId("source-canvas");
    Object.assign(view, { width: cut.width, height: cut.height });
    const context = view.getContext("2d");
    context.drawImage(cut, 0, 0);
    if (this.#mask) context.drawImage(tinted(this.#mask), 0, 0);
    const ratio = (this.#bitmap.width * cut.height) / (this.#bitmap.height * cut.width);
    const [own, asked] = [cut, this.#settings.size].map(({ width, height }) => ({ width: String(width), height: String(height) }));
    const notes = [
      this.#sized && !this.#closeup && t("source.sized", own),
      !this.#closeup && Math.abs(ratio - 1) > SAME_SHAPE && t("source.cut"),
      this.#clear && t("source.clear"),
      this.#mask && t("mask.given"),
      this.#closeup && t("closeup.note", asked),
      this.#closeup && cut.width < this.#bitmap.width && t("closeup.smaller", own),
      this.#dropped && t("mask.dropped"),
    ];
    setText(byId("source-note"), sentences(notes));
  }
}

/**
 * A mask in another frame.
 * @param {HTMLCanvasElement} mask @param {Frame} from @param {Frame} to
 * @returns {HTMLCanvasElement|null} null: nothing of it is in that frame
 */
function moved(mask, from, to) {
  const canvas = h("canvas", { width: to.width, height: to.height });
  const [across, down] = [to.width / to.across, to.height / to.down];
  const place = [(from.left - to.left) * across, (from.top - to.top) * down, from.across * across, from.down * down];
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(mask, ...place);
  return painted(canvas) ? canvas : null;
}

/** The edges of what is painted, in pixels; null: nothing is. @param {HTMLCanvasElement} mask */
function painted(mask) {
  const { width, height } = mask;
  const { data } = mask.getContext("2d").getImageData(0, 0, width, height);
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (data[4 * (y * width + x) + 3] === 0) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), y + 1];
    }
  }
  return right > left ? { left, top, right, bottom } : null;
}

/** How many pixels around what is masked are drawn with it. @param {HTMLCanvasElement} mask */
function margin(mask) {
  const { left, top, right, bottom } = painted(mask);
  return Math.max(LEAST_MARGIN, Math.round(MARGIN * Math.max(right - left, bottom - top)));
}

/** White on black: what the server reads. @param {HTMLCanvasElement} mask */
function blackAndWhite(mask) {
  const canvas = h("canvas", { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(mask, 0, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} source @param {number} width @param {number} height */
function sized(source, width, height) {
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(source, 0, 0, width, height);
  return canvas;
}

/** A mask out of a file in black and white. @param {Blob} file */
async function canvasOf(file) {
  const bitmap = await createImageBitmap(file);
  const canvas = sized(bitmap, bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = pixels.data[at];
    pixels.data.fill(255, at, at + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas @returns {Promise<Blob>} */
const png = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
