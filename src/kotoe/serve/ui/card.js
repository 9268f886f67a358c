// One job on the board: its pictures or what can be seen of them, its words, how far it is, what can be done with it.

import { h, setText, show } from "./dom.js";
import { isRunning } from "./jobs.js";
import { duration, languageName, sentences, t, translate } from "./strings.js";

/** @typedef {import("./store.js").Entry} Entry */

/**
 * What a card asks its board to do.
 * @typedef {object} Deeds
 * @property {(entry: Entry, index: number) => void} open a picture large
 * @property {(entry: Entry) => void} cancel
 * @property {(entry: Entry) => void} reuse its settings
 * @property {(seed: number) => void} seed to draw with again
 * @property {(entry: Entry) => void} remove
 * @property {(picture: import("./store.js").Picture) => Promise<Blob|null>} picture
 * @property {(entry: Entry) => boolean} isCut whether the server can't be reached
 * @property {(tag: string) => string} languageOf a tag's own name
 */

/** A card; `element` is put on the board. */
export class Card {
  #deeds;
  /** @type {any[]} one for each picture that was asked for */
  #tiles = [];
  /** @type {Map<string, string>} picture id to object URL */
  #addresses = new Map();
  #progress = h("progress", { max: 1, value: 0, "data-t-label": "card.progress" });
  #status = h("p", { class: "status" });
  #remarks = h("ul", { class: "remarks" });
  #grid = h("div", { class: "tiles" });
  #words = h("p", { class: "words", dir: "auto" });
  #facts = h("p", { class: "facts" });
  #heading = h("h3", { class: "card-language" });
  #dead = false;

  /**
   * @param {Entry} entry
   * @param {Deeds} deeds
   * @param {{column?: boolean}} [how] column: one of several languages, named above it
   */
  constructor(entry, deeds, { column = false } = {}) {
    this.entry = entry;
    this.column = column;
    this.#deeds = deeds;
    const { width = 1, height = 1 } = entry.request;
    this.#grid.style.setProperty("--ratio", `${width} / ${height}`);
    const count = Math.max(entry.request.n ?? 1, entry.pictures.length + entry.blocked.length, 1);
    this.#grid.dataset.count = String(count > 4 ? "many" : count);
    setText(this.#words, entry.request.prompt);
    this.cancelButton = h("button", { type: "button", t: "card.cancel", on: { click: () => deeds.cancel(entry) } });
    this.actions = h("div", { class: "actions" },
      h("button", { type: "button", class: "quiet", t: "card.reuse", on: { click: () => deeds.reuse(entry) } }),
      h("button", { type: "button", class: "quiet", t: "card.seed", on: { click: () => deeds.seed(entry.seeds[0]) } }),
      h("button", { type: "button", class: "quiet", t: "card.delete", on: { click: () => deeds.remove(entry) } }),
    );
    this.element = h(column ? "div" : "article", { class: "card", role: column && "group", tabindex: -1, data: { id: entry.id } },
      column ? this.#heading : null,
      this.#grid,
      h("div", { class: "card-body" }, this.#words, this.#facts, this.#progress, this.#status, this.#remarks, this.cancelButton, column ? null : this.actions),
    );
    this.update();
  }

  /** Show what the entry says now. */
  update() {
    const { entry } = this;
    const running = isRunning(entry);
    this.element.dataset.state = entry.state;
    const language = entry.language ? languageName(entry.language, this.#deeds.languageOf(entry.language)) : "";
    const label = t("card.label", { prompt: entry.request.prompt, state: t(`state.name.${entry.state}`) });
    this.element.setAttribute("aria-label", this.column ? `${language} · ${label}` : label);
    translate(this.element);
    setText(this.#heading, language);
    this.#words.lang = entry.language ?? "";
    this.#fill();
    show(this.#progress, running);
    Object.assign(this.#progress, { max: Math.max(1, entry.steps.total), value: entry.steps.done });
    setText(this.#status, this.#says());
    this.#status.classList.toggle("wrong", entry.state === "failed");
    show(this.#status, this.#status.textContent !== "");
    const blocked = entry.blocked.map(({ seed, reason }) => t("card.blocked", { seed: String(seed), reason }));
    const remarks = [...blocked, ...entry.notes];
    this.#remarks.replaceChildren(...remarks.map((text) => h("li", { text })));
    show(this.#remarks, remarks.length > 0);
    setText(this.#facts, this.#described());
    show(this.#facts, this.#facts.textContent !== "");
    show(this.cancelButton, running, this.element);
    show(this.actions, !running, this.element);
    show(this.actions.children[1], entry.seeds.length > 0);
  }

  /**
   * A picture as far as it is drawn.
   * @param {{picture: number, image: string}} preview
   */
  preview({ picture, image }) {
    const tile = this.#tiles[picture];
    if (!tile || tile.dataset.picture) return;
    const seen = tile.querySelector("img");
    if (seen) seen.src = image;
    else tile.replaceChildren(h("img", { src: image, alt: "" }));
    tile.dataset.seen = "preview";
  }

  /** Give the pictures' memory back: the card is gone. */
  release() {
    this.#dead = true;
    for (const address of this.#addresses.values()) URL.revokeObjectURL(address);
    this.#addresses.clear();
  }

  /** @returns {HTMLElement} where the focus goes to when it comes to this card */
  get focusable() {
    return this.element.querySelector("button:not([hidden])") ?? this.element;
  }

  /** The tiles: a picture that is done is a button that opens it. */
  #fill() {
    const { entry } = this;
    const running = isRunning(entry);
    const seeds = running || entry.pictures.length === 0 ? entry.seeds : entry.pictures.map((picture) => picture.seed);
    const wanted = seeds.filter((seed) => !entry.blocked.some((one) => one.seed === seed));
    const places = running ? entry.seeds : wanted;
    const ended = !running && entry.pictures.length === 0;
    this.#grid.hidden = ended;
    if (ended) return this.#grid.replaceChildren((this.#tiles = [], ""));
    places.forEach((seed, at) => {
      const picture = entry.pictures.find((one) => one.seed === seed);
      let tile = this.#tiles[at];
      if (!tile || (picture?.id ?? "") !== (tile.dataset.picture ?? "")) {
        const made = picture ? this.#button(picture) : h("div", { class: "tile", data: { seen: "nothing" } });
        if (tile) {
          made.append(...tile.querySelectorAll("img")); // the preview stays until the picture is there
          tile.replaceWith(made);
        } else this.#grid.append(made);
        this.#tiles[at] = made;
        if (picture) this.#load(made, picture);
      }
      if (picture) this.#tiles[at].setAttribute("aria-label", t("card.open", { prompt: entry.request.prompt, seed: String(seed) }));
    });
    for (const extra of this.#tiles.splice(places.length)) extra.remove();
    this.#grid.dataset.count = String(places.length > 4 ? "many" : places.length);
  }

  #button(picture) {
    const open = () => this.#deeds.open(this.entry, this.entry.pictures.findIndex((one) => one.id === picture.id));
    return h("button", { type: "button", class: "tile", data: { picture: picture.id }, on: { click: open } });
  }

  async #load(tile, picture) {
    if (!this.#addresses.has(picture.id)) {
      const blob = await this.#deeds.picture(picture);
      if (this.#dead || !tile.isConnected) return;
      if (blob === null) {
        tile.replaceChildren(h("span", { class: "gone", t: "card.gone", text: t("card.gone") }));
        tile.disabled = true;
        return;
      }
      this.#addresses.set(picture.id, URL.createObjectURL(blob));
    }
    this.#grid.style.setProperty("--ratio", `${picture.width} / ${picture.height}`); // may not be what was drawn (closeup)
    tile.replaceChildren(h("img", { src: this.#addresses.get(picture.id), alt: "", width: picture.width, height: picture.height }));
    tile.dataset.seen = "picture";
  }

  #says() {
    const { entry } = this;
    if (isRunning(entry) && this.#deeds.isCut(entry)) return t("state.cut");
    const left = entry.seconds === null || entry.seconds === undefined ? "" : t("state.left", { time: duration(entry.seconds) });
    switch (entry.state) {
      case "waiting":
        return sentences([t("state.waiting", { n: entry.place }), left]);
      case "drawing":
        return sentences([t("state.drawing", { done: entry.steps.done, total: entry.steps.total }), left]);
      case "failed":
        return entry.error ?? t("state.failed");
      case "done":
        return "";
      default:
        return t(`state.${entry.state}`);
    }
  }

  #described() {
    const { entry } = this;
    const { width, height, fast, strength } = entry.request;
    const size = entry.pictures[0] ?? { width, height };
    const parts = [
      !this.column && entry.language && this.#deeds.languageOf(entry.language),
      size.width && `${size.width} × ${size.height}`,
      !this.column && entry.seeds.length > 0 && t("card.seeds", { seed: String(entry.seeds[0]), n: entry.seeds.length }),
      fast && t("fast"),
      entry.init && t("card.from", { strength: strength ?? "" }),
    ];
    return parts.filter(Boolean).join(" · ");
  }
}

/** Several languages side by side, one card each; the same interface as a card's. */
export class Group {
  /** @type {Card[]} in the order in which they were asked for */
  #cards = [];
  #row = h("div", { class: "columns", role: "group", tabindex: 0 });
  #title = h("h3", { class: "group-title" });
  #deeds;

  /**
   * @param {Deeds} deeds
   * @param {{reuse: (entries: Entry[]) => void, remove: (entries: Entry[]) => void, cancel: (entries: Entry[]) => void}} whole
   */
  constructor(deeds, whole) {
    this.#deeds = deeds;
    this.cancelButton = h("button", { type: "button", t: "card.cancelAll", on: { click: () => whole.cancel(this.entries) } });
    this.actions = h("div", { class: "actions" },
      h("button", { type: "button", class: "quiet", t: "card.reuse", on: { click: () => whole.reuse(this.entries) } }),
      h("button", { type: "button", class: "quiet", t: "card.seed", on: { click: () => deeds.seed(this.entries[0].seeds[0]) } }),
      h("button", { type: "button", class: "quiet", t: "card.delete", on: { click: () => whole.remove(this.entries) } }),
    );
    this.element = h("article", { class: "group", tabindex: -1 },
      h("div", { class: "group-head" }, this.#title, this.cancelButton, this.actions), this.#row);
  }

  /** @returns {Entry[]} */
  get entries() {
    return this.#cards.map((card) => card.entry);
  }

  /** @param {Entry} entry */
  add(entry) {
    const card = new Card(entry, this.#deeds, { column: true });
    const next = this.#cards.find((other) => other.entry.group.order > entry.group.order);
    this.#row.insertBefore(card.element, next?.element ?? null);
    this.#cards.splice(next ? this.#cards.indexOf(next) : this.#cards.length, 0, card);
    this.update();
  }

  /** @param {Entry} [entry] the one that changed; else all */
  update(entry) {
    for (const card of this.#cards) if (!entry || card.entry === entry) card.update();
    const running = this.entries.some(isRunning);
    const seeds = this.entries.find((one) => one.seeds.length > 0)?.seeds ?? [];
    const count = t("group.title", { n: this.#cards.length });
    setText(this.#title, seeds.length ? `${count} · ${t("card.seeds", { seed: String(seeds[0]), n: seeds.length })}` : count);
    this.element.setAttribute("aria-label", this.#title.textContent);
    this.#row.setAttribute("aria-label", t("group.row"));
    translate(this.element);
    show(this.cancelButton, running, this.element);
    show(this.actions, !running, this.element);
    show(this.actions.children[1], seeds.length > 0);
  }

  /** @param {any} preview @param {Entry} entry */
  preview(preview, entry) {
    this.#cards.find((card) => card.entry === entry)?.preview(preview);
  }

  /** @param {Entry} entry @returns {boolean} whether nothing is left */
  drop(entry) {
    const card = this.#cards.find((one) => one.entry === entry);
    card?.release();
    card?.element.remove();
    this.#cards = this.#cards.filter((one) => one !== card);
    if (this.#cards.length) this.update();
    return this.#cards.length === 0;
  }

  release() {
    for (const card of this.#cards) card.release();
  }

  get focusable() {
    return this.element.querySelector("button:not([hidden])") ?? this.element;
  }
}
