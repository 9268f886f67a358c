// The mask painter: a dialog with the picture and a brush, for mouse, finger, pen and keyboard.

import { byId, debounced, h, setText } from "./dom.js";
import { number, t, translate } from "./strings.js";

const MOST_UNDO = 30;
const TOLD_MS = 700; // after the last move of the keyboard's brush

/**
 * Let the visitor paint where the picture is to be drawn anew.
 * @param {HTMLCanvasElement} picture as it will be sent
 * @param {HTMLCanvasElement|null} mask to go on with: white where it is painted, else clear
 * @returns {Promise<HTMLCanvasElement|null|undefined>} the mask; null: nothing is painted; undefined: it was left as it was
 */
export function paintMask(picture, mask) {
  return new Painter(picture, mask).done;
}

/**
 * A mask in the colour in which it is shown.
 * @param {HTMLCanvasElement} mask
 * @returns {HTMLCanvasElement}
 */
export function tinted(mask) {
  const canvas = h("canvas", { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "rgb(214 62 36 / 62%)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

class Painter {
  #picture;
  #mask;
  #view;
  #dialog = byId("painter");
  /** @type {ImageData[]} the mask before each stroke, the last one last */
  #past = [];
  #brush; // diameter in the picture's pixels
  #erasing = false;
  #at; // of the keyboard's brush, in the picture's pixels
  #cursor = false; // the keyboard's brush is shown
  #space = false;
  /** @type {number|null} the pointer that paints; others (a palm, a second finger) don't */
  #pointer = null;
  #tell = debounced(TOLD_MS, () => this.#say());

  constructor(picture, mask) {
    this.#picture = picture;
    const { width, height } = picture;
    this.#mask = h("canvas", { width, height });
    if (mask) this.#context.drawImage(mask, 0, 0);
    this.#brush = Math.max(2, Math.round(Math.min(width, height) / 6));
    this.#at = { x: width / 2, y: height / 2 };
    this.#build();
    this.done = new Promise((resolve) => {
      this.#dialog.addEventListener("close", () => {
        this.#dialog.replaceChildren();
        const used = this.#dialog.returnValue === "use";
        resolve(used ? (this.#share() > 0 ? this.#mask : null) : undefined);
      }, { once: true });
    });
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    this.#view.focus();
    this.#draw();
  }

  get #context() {
    return this.#mask.getContext("2d", { willReadFrequently: true });
  }

  #build() {
    const { width, height } = this.#picture;
    const button = (key, fn, props = {}) => h("button", { type: "button", t: key, on: { click: fn }, ...props });
    this.#view = h("canvas", {
      class: "painter-view", width, height, tabindex: 0, role: "application",
      "data-t-label": "painter.canvas", "aria-describedby": "painter-keys painter-told",
      on: {
        pointerdown: (e) => this.#down(e), pointermove: (e) => this.#move(e), pointerup: (e) => this.#up(e),
        pointercancel: (e) => this.#up(e), keydown: (e) => this.#key(e), keyup: (e) => e.key === " " && (this.#space = false),
        blur: () => ((this.#space = this.#cursor = false), this.#draw()),
      },
    });
    this.#view.style.setProperty("--ratio", String(width / height));
    this.paintButton = button("painter.paint", () => this.#erase(false), { "aria-pressed": "true" });
    this.eraseButton = button("painter.erase", () => this.#erase(true), { "aria-pressed": "false" });
    this.undoButton = button("painter.undo", () => this.#undo());
    const most = Math.max(4, Math.round(Math.min(width, height) / 2));
    this.size = h("input", { type: "range", id: "painter-size", min: 1, max: most, value: this.#brush });
    this.size.addEventListener("input", () => ((this.#brush = Number(this.size.value)), this.#draw()));
    this.told = h("p", { id: "painter-told", class: "hint", role: "status" });
    this.#dialog.replaceChildren(
      h("form", { method: "dialog" },
        h("h2", { id: "painter-title", t: "painter.title" }),
        h("p", { class: "hint", t: "painter.hint" }),
        h("div", { class: "painter-stage" }, this.#view),
        h("div", { class: "row wrap" },
          h("div", { class: "row tight", role: "group", "data-t-label": "painter.tool" }, this.paintButton, this.eraseButton),
          h("label", { class: "row tight grow", for: "painter-size" }, h("span", { t: "painter.size" }), this.size),
        ),
        h("div", { class: "row wrap" }, this.undoButton, button("painter.invert", () => this.#invert()), button("painter.clear", () => this.#clear())),
        this.told,
        h("p", { class: "hint keys", id: "painter-keys", t: "painter.keys" }),
        h("div", { class: "row wrap end" },
          h("button", { value: "", formnovalidate: true, t: "cancel" }),
          h("button", { value: "use", class: "primary", t: "painter.use" }),
        ),
      ),
    );
    translate(this.#dialog);
    this.#dialog.querySelector("form").addEventListener("keydown", (e) => this.#shortcut(e));
  }

  // --- Strokes

  #down(event) {
    if (this.#pointer !== null || event.button > 0) return;
    event.preventDefault();
    this.#view.focus({ preventScroll: true });
    this.#view.setPointerCapture(event.pointerId);
    this.#pointer = event.pointerId;
    this.#cursor = false;
    this.#remember();
    this.#at = this.#point(event);
    this.#line(this.#at, this.#at, event);
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) {
      const to = this.#point(one);
      this.#line(this.#at, to, one);
      this.#at = to;
    }
  }

  #up(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    this.#say();
  }

  /** Where a pointer is, in the picture's pixels. @param {PointerEvent} event */
  #point(event) {
    const box = this.#view.getBoundingClientRect();
    const scale = this.#mask.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  /** A stroke; a pen's pressure makes it thinner, its other end erases. */
  #line(from, to, event = null) {
    const context = this.#context;
    const pen = event?.pointerType === "pen" && event.pressure > 0 ? 0.3 + 0.7 * event.pressure : 1;
    const erasing = this.#erasing || Boolean(event && event.buttons & 32);
    context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = Math.max(1, this.#brush * pen);
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y === from.y && to.x === from.x ? to.y + 0.01 : to.y); // a point is a line of no length
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.#draw();
  }

  // --- Keyboard

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      const far = event.shiftKey ? this.#brush : Math.max(1, this.#brush / 4);
      const to = {
        x: Math.min(this.#mask.width, Math.max(0, this.#at.x + step[0] * far)),
        y: Math.min(this.#mask.height, Math.max(0, this.#at.y + step[1] * far)),
      };
      if (this.#space) this.#line(this.#at, to);
      this.#at = to;
    } else if (event.key === " ") {
      event.preventDefault();
      if (!this.#space) this.#remember();
      this.#space = true;
      this.#line(this.#at, this.#at);
    } else return;
    this.#cursor = true;
    this.#draw();
    this.#tell();
  }

  #shortcut(event) {
    if (event.key === "Enter" && event.target === this.#view) event.preventDefault();
    if (event.target === this.size && event.key.startsWith("Arrow")) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === "z") this.#undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (key === "e") this.#erase(!this.#erasing);
    else if (key === "[" || key === "]") this.#resize(key === "]" ? 1.25 : 0.8);
    else return;
    event.preventDefault();
  }

  #resize(factor) {
    const grown = Math.round(this.#brush * factor);
    const next = grown === this.#brush ? grown + Math.sign(factor - 1) : grown;
    this.size.value = String(next);
    this.#brush = Number(this.size.value);
    this.#draw();
  }

  // --- The whole mask

  #erase(on) {
    this.#erasing = on;
    this.paintButton.setAttribute("aria-pressed", String(!on));
    this.eraseButton.setAttribute("aria-pressed", String(on));
  }

  #remember() {
    this.#past.push(this.#context.getImageData(0, 0, this.#mask.width, this.#mask.height));
    if (this.#past.length > MOST_UNDO) this.#past.shift();
  }

  #undo() {
    const before = this.#past.pop();
    if (before) this.#context.putImageData(before, 0, 0);
    this.#draw();
    this.#say();
  }

  #invert() {
    this.#remember();
    this.#context.globalCompositeOperation = "xor";
    this.#fill();
    this.#context.globalCompositeOperation = "source-over";
    this.#draw();
    this.#say();
  }

  #clear() {
    this.#remember();
    this.#context.clearRect(0, 0, this.#mask.width, this.#mask.height);
    this.#draw();
    this.#say();
  }

  #fill() {
    this.#context.fillStyle = "#fff";
    this.#context.fillRect(0, 0, this.#mask.width, this.#mask.height);
  }

  /** @returns {number} how much of the picture is painted, 0 to 1 */
  #share() {
    const { data } = this.#context.getImageData(0, 0, this.#mask.width, this.#mask.height);
    let sum = 0;
    for (let at = 3; at < data.length; at += 4) sum += data[at];
    return sum / (255 * (data.length / 4));
  }

  // --- What is seen and said

  #draw() {
    const context = this.#view.getContext("2d");
    context.drawImage(this.#picture, 0, 0);
    context.drawImage(tinted(this.#mask), 0, 0);
    this.undoButton.setAttribute("aria-disabled", String(this.#past.length === 0));
    if (!this.#cursor) return;
    for (const [colour, width] of [["#000", 3], ["#fff", 1.5]]) {
      context.beginPath();
      context.arc(this.#at.x, this.#at.y, this.#brush / 2, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = (width * this.#mask.width) / Math.max(1, this.#view.clientWidth);
      context.stroke();
    }
  }

  #say() {
    const percent = (part) => number(Math.round(100 * part));
    const x = percent(this.#at.x / this.#mask.width);
    const y = percent(this.#at.y / this.#mask.height);
    setText(this.told, t(this.#cursor ? "painter.at" : "painter.share", { x, y, share: percent(this.#share()) }));
  }
}
