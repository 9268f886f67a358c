// A picture to start from (img2img), cut to the size that is asked for, and its mask. What is shown is what is sent.

import { byId, h, setText, show } from "./dom.js";
import { paintMask, tinted } from "./mask.js";
import { onLocale, sentences, t } from "./strings.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp"];
const SAME_SHAPE = 0.005; // of the ratio of the edges: less is rounding

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

  /**
   * Start from a picture file.
   * @param {Blob} file
   * @param {{mask?: Blob|null, resize?: boolean}} [how] resize: the size that is asked for follows the picture
   * @returns {Promise<boolean>} false: it is none that can be read, and that is said
   */
  async take(file, { mask = null, resize = true } = {}) {
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
    this.#dropped = this.#sized = false;
    this.#update();
    byId("source-choose").focus();
  }

  /**
   * What is sent.
   * @returns {Promise<{init: Blob|null, mask: Blob|null}>} PNGs of the size that is asked for
   */
  async files() {
    if (!this.#bitmap) return { init: null, mask: null };
    return { init: await png(this.#cut()), mask: this.#mask && (await png(blackAndWhite(this.#mask))) };
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
    const { width, height } = this.#settings.size;
    if (this.#mask && (this.#mask.width !== width || this.#mask.height !== height)) {
      const ratio = (width * this.#mask.height) / (height * this.#mask.width);
      const same = Math.abs(ratio - 1) < SAME_SHAPE;
      this.#mask = same ? drawn(this.#mask, width, height) : null;
      this.#dropped = !same;
    }
    this.#update();
  }

  /** @returns {HTMLCanvasElement} the middle of the picture, on white, at the size that is asked for */
  #cut() {
    const { width, height } = this.#settings.size;
    const source = this.#bitmap;
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    const scale = Math.max(width / source.width, height / source.height);
    const [across, down] = [width / scale, height / scale]; // of the source
    const from = [(source.width - across) / 2, (source.height - down) / 2];
    context.drawImage(source, ...from, across, down, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    this.#clear = data.some((value, at) => at % 4 === 3 && value < 255);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    return canvas;
  }

  async #paint() {
    const painted = await paintMask(this.#cut(), this.#mask);
    if (painted === undefined) return; // left without a change
    this.#mask = painted;
    this.#dropped = false;
    this.#update();
  }

  #update() {
    const given = this.given;
    show(byId("source-view"), given);
    show(byId("mask-open"), given, byId("source-choose"));
    show(byId("source-remove"), given, byId("source-choose"));
    show(byId("mask-remove"), this.#mask !== null, byId("mask-open"));
    show(byId("strength-row"), given);
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
    const notes = [
      this.#sized && t("source.sized", { width: String(cut.width), height: String(cut.height) }),
      Math.abs(ratio - 1) > SAME_SHAPE && t("source.cut"),
      this.#clear && t("source.clear"),
      this.#mask && t("mask.given"),
      this.#dropped && t("mask.dropped"),
    ];
    setText(byId("source-note"), sentences(notes));
  }
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
function drawn(source, width, height) {
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

/** A mask out of a file in black and white. @param {Blob} file */
async function canvasOf(file) {
  const bitmap = await createImageBitmap(file);
  const canvas = drawn(bitmap, bitmap.width, bitmap.height);
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
