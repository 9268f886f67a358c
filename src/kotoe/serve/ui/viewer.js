// A picture large, with how it was drawn and what can be done with it.

import { byId, h, setText, show } from "./dom.js";
import { languageName, moment, number, onLocale, t, translate } from "./strings.js";

const NAMED = 40; // characters of the prompt in a file's name

/** The dialog. */
export class Viewer {
  #deeds;
  #dialog = byId("viewer");
  /** @type {{entry: import("./store.js").Entry, picture: import("./store.js").Picture}|null} */
  #now = null;
  /** @type {Blob|null} */
  #blob = null;
  #address = "";

  /**
   * @param {object} deeds
   * @param {() => {entry: any, picture: any}[]} deeds.all pictures of the board, in its order
   * @param {(picture: any) => Promise<Blob|null>} deeds.picture
   * @param {(entries: any[]) => void} deeds.reuse
   * @param {(seed: number) => void} deeds.seed
   * @param {(blob: Blob) => void} deeds.start
   * @param {(entry: any, id: string) => Promise<boolean>} deeds.remove whether the visitor agreed
   * @param {(tag: string) => string} deeds.languageOf
   */
  constructor(deeds) {
    this.#deeds = deeds;
    const button = (key, fn, props = {}) => h("button", { type: "button", t: key, on: { click: fn }, ...props });
    const mark = (sign, key, fn, name) => h("button", { type: "button", class: name, text: sign, "data-t-label": key, on: { click: fn } });
    this.image = h("img", { class: "viewer-picture", alt: "" });
    this.words = h("h2", { class: "words", id: "viewer-words", dir: "auto", tabindex: -1 });
    this.facts = h("dl");
    this.download = h("a", { class: "button primary", t: "viewer.download" });
    this.before = mark("‹", "viewer.before", () => this.#go(-1), "step before");
    this.after = mark("›", "viewer.after", () => this.#go(1), "step after");
    const leaving = (fn) => () => (this.#dialog.close(), fn());
    this.#dialog.append(
      h("div", { class: "viewer-stage" }, this.image, this.before, this.after),
      h("div", { class: "viewer-side" },
        this.words,
        h("div", { class: "row wrap" },
          this.download,
          button("card.reuse", leaving(() => deeds.reuse([this.#now.entry]))),
          button("card.seed", leaving(() => deeds.seed(this.#now.picture.seed))),
          button("viewer.start", leaving(() => this.#blob && deeds.start(this.#blob))),
          button("card.delete", () => this.#remove()),
        ),
        this.facts,
      ),
      mark("×", "close", () => this.#dialog.close(), "close quiet"),
    );
    this.#dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "ArrowLeft") this.#go(-1);
      if (event.key === "ArrowRight") this.#go(1);
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#closed());
    onLocale(() => this.#dialog.open && this.#tell());
    translate(this.#dialog);
  }

  /** @param {import("./store.js").Picture} picture */
  async open(picture) {
    if (!this.#dialog.open) this.#dialog.showModal();
    await this.#show(this.#deeds.all().find((one) => one.picture.id === picture.id));
    this.words.focus();
  }

  async #show(one) {
    this.#now = one;
    this.#tell();
    const blob = await this.#deeds.picture(one.picture);
    if (this.#now !== one || !this.#dialog.open) return;
    URL.revokeObjectURL(this.#address);
    this.#blob = blob;
    this.#address = blob ? URL.createObjectURL(blob) : "";
    this.image.src = this.#address;
    this.download.href = this.#address;
    const { prompt } = one.entry.request;
    const words = [...prompt.replace(/[^\p{L}\p{M}\p{N}]+/gu, "-")].slice(0, NAMED).join("").replace(/^-|-$/g, "");
    this.download.download = `kotoe-${words}-${one.picture.seed}.png`;
  }

  #go(by) {
    const all = this.#deeds.all();
    const next = all[all.findIndex((one) => one.picture.id === this.#now.picture.id) + by];
    if (next) this.#show(next);
  }

  async #remove() {
    const { entry, picture } = this.#now;
    const all = this.#deeds.all();
    const at = all.findIndex((one) => one.picture.id === picture.id);
    const next = all[at + 1] ?? all[at - 1];
    if (!(await this.#deeds.remove(entry, picture.id))) return;
    if (next) await this.#show(next);
    else this.#dialog.close();
    if (next) this.words.focus();
  }

  #tell() {
    const { entry, picture } = this.#now;
    const { request } = entry;
    const all = this.#deeds.all();
    const at = all.findIndex((one) => one.picture.id === picture.id);
    show(this.before, at > 0, this.words);
    show(this.after, at >= 0 && at < all.length - 1, this.words);
    setText(this.words, request.prompt);
    this.words.lang = entry.language ?? "";
    this.image.alt = t("card.alt", { prompt: request.prompt });
    this.image.width = picture.width;
    this.image.height = picture.height;
    const facts = [
      ["field.negative", request.negative_prompt],
      ["fact.language", entry.language && languageName(entry.language, this.#deeds.languageOf(entry.language))],
      ["field.seed", String(picture.seed)],
      ["field.size", `${picture.width} × ${picture.height}`],
      ["fast", request.fast && t("yes")],
      ["field.steps", request.steps && number(request.steps)],
      ["field.guidance", request.guidance_scale !== undefined && number(request.guidance_scale)],
      ["field.sampler", request.sampler],
      ["field.grid", request.grid],
      ["field.strength", entry.init && number(request.strength ?? 0)],
      ["mask.title", entry.mask && t("yes")],
      ["fact.model", entry.model],
      ["fact.created", moment(entry.created)],
    ];
    this.facts.replaceChildren(
      ...facts.filter(([, value]) => value).map(([key, value]) => h("div", {}, h("dt", { text: t(key) }), h("dd", { text: value }))),
    );
  }

  #closed() {
    URL.revokeObjectURL(this.#address);
    this.#address = "";
    this.#blob = null;
    this.image.removeAttribute("src");
  }
}
