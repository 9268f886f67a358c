// The board: cards of all jobs, newest first, kept in this browser.

import { announce } from "./announce.js";
import { Card, Group } from "./card.js";
import { byId, calm, setText, show } from "./dom.js";
import { isRunning } from "./jobs.js";
import { ask, notice, wordsOf } from "./notices.js";
import { onLocale, t } from "./strings.js";
import { Viewer } from "./viewer.js";

/** @typedef {import("./store.js").Entry} Entry */

const AT_ONCE = 40; // cards drawn without being asked for older ones

/** The board. */
export class Gallery {
  #jobs;
  #form;
  #deeds;
  /** @type {Entry[]} newest first */
  #entries = [];
  /** @type {Map<string, Card|Group>} by the entry's id or the group's */
  #cards = new Map();
  #shown = AT_ONCE;
  #viewer;

  /**
   * @param {import("./jobs.js").Jobs} jobs
   * @param {object} form what takes settings and seeds back
   * @param {(entries: Entry[]) => void} form.reuse
   * @param {(seed: number) => void} form.seed
   * @param {(blob: Blob) => void} form.start from a picture
   * @param {(tag: string) => string} form.languageOf
   */
  constructor(jobs, form) {
    this.#jobs = jobs;
    this.#form = form;
    this.#viewer = new Viewer({
      ...form,
      picture: (picture) => jobs.picture(picture),
      remove: (entry, id) => this.#removePicture(entry, id),
      all: () => this.#visible().flatMap((entry) => entry.pictures.map((picture) => ({ entry, picture }))),
    });
    this.#deeds = {
      open: (entry, index) => this.#viewer.open(entry.pictures[index]),
      cancel: (entry) => this.#cancel([entry]),
      reuse: (entry) => form.reuse([entry]),
      seed: form.seed,
      remove: (entry) => this.#remove([entry]),
      picture: (picture) => jobs.picture(picture),
      isCut: (entry) => jobs.isCut(entry),
      languageOf: form.languageOf,
    };
    jobs.addEventListener("change", (event) => this.#changed(event.detail.entry));
    jobs.addEventListener("preview", ({ detail }) => this.#card(detail.entry)?.preview(detail.preview, detail.entry));
    jobs.addEventListener("gone", (event) => this.#gone(event.detail.entry));
    jobs.addEventListener("full", () => notice(t("error.full"), { kind: "error" }));
    byId("older").addEventListener("click", () => {
      const last = byId("cards").lastElementChild;
      this.#shown += AT_ONCE;
      this.#render();
      last?.nextElementSibling?.querySelector("button")?.focus();
    });
    byId("clear").addEventListener("click", () => this.#clear());
    onLocale(() => {
      for (const card of this.#cards.values()) card.update();
      this.#count();
    });
  }

  /**
   * Show what was kept, and follow what still runs.
   * @param {Entry[]} entries newest first
   */
  restore(entries) {
    this.#entries = entries;
    this.#render();
    for (const entry of entries) this.#jobs.watch(entry);
  }

  /**
   * A new job on top.
   * @param {Entry} entry
   */
  add(entry) {
    this.#entries.unshift(entry);
    this.#place(entry, true);
    this.#count();
    const { element } = this.#card(entry);
    element.scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
    this.#title();
  }

  // --- Cards

  #card(entry) {
    return this.#cards.get(entry.group?.id ?? entry.id);
  }

  #visible() {
    return this.#entries.filter((entry) => this.#card(entry) && !this.#card(entry).element.hidden);
  }

  #render() {
    for (const entry of this.#entries) {
      const known = this.#card(entry);
      if (known && (!entry.group || known.entries.includes(entry))) continue;
      if (!known && this.#cards.size >= this.#shown) break;
      this.#place(entry, false);
    }
    this.#count();
  }

  #place(entry, first) {
    const key = entry.group?.id ?? entry.id;
    const board = byId("cards");
    let card = this.#cards.get(key);
    if (!card) {
      card = entry.group ? this.#group() : new Card(entry, this.#deeds);
      this.#cards.set(key, card);
      if (first) board.prepend(card.element);
      else board.append(card.element);
      if (!entry.group) card.update(); // its tiles load once they are on the page
    }
    if (entry.group) card.add(entry);
  }

  #group() {
    const whole = {
      reuse: this.#form.reuse,
      remove: (entries) => this.#remove(entries),
      cancel: (entries) => this.#cancel(entries.filter(isRunning)),
    };
    return new Group(this.#deeds, whole);
  }

  #count() {
    const pictures = this.#entries.reduce((sum, entry) => sum + entry.pictures.length, 0);
    const nothing = this.#entries.length === 0;
    setText(byId("count"), nothing ? "" : t("board.count", { n: pictures }));
    show(byId("empty"), nothing);
    show(byId("clear"), !nothing, byId("board-title"));
    show(byId("older"), this.#entries.some((entry) => !this.#card(entry)), byId("board-title"));
  }

  /** The window's title tells how far the jobs are: the page may be behind others. */
  #title() {
    const running = this.#entries.filter(isRunning);
    const [done, total] = ["done", "total"].map((part) => running.reduce((sum, entry) => sum + entry.steps[part], 0));
    document.title = running.length === 0 ? "Kotoe" : `${Math.floor((100 * done) / Math.max(1, total))} % · Kotoe`;
  }

  #changed(entry) {
    if (!this.#entries.includes(entry)) return;
    this.#card(entry)?.update(entry);
    this.#count();
    this.#title();
    this.#tell(entry);
  }

  #told = new WeakMap();

  #tell(entry) {
    const { state, steps } = entry;
    const fresh = this.#told.get(entry) !== state;
    this.#told.set(entry, state);
    const prompt = entry.request.prompt.slice(0, 60);
    if (state === "drawing") announce(t("said.drawing", { prompt, share: Math.floor((100 * steps.done) / Math.max(1, steps.total)) }));
    else if (state === "done" && fresh) announce(t("said.done", { prompt, n: entry.pictures.length }), { soon: true });
    else if (state === "failed" && fresh) announce(t("said.failed", { prompt, error: entry.error ?? "" }), { soon: true });
    else if (!isRunning(entry) && fresh) announce(t(`state.${state}`), { soon: true });
  }

  // --- What visitors do

  async #cancel(entries) {
    for (const entry of entries) {
      try {
        await this.#jobs.cancel(entry);
      } catch (error) {
        notice(wordsOf(error), { kind: "error" });
        return;
      }
    }
  }

  /** Gone from sight at once, for good when the notice with "Undo" is. */
  #remove(entries) {
    const card = this.#card(entries[0]);
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    card.element.hidden = true;
    (next && !next.hidden ? (next.querySelector("button:not([hidden])") ?? next) : byId("board-title")).focus();
    notice(t("said.deleted"), {
      action: { key: "undo", fn: () => ((card.element.hidden = false), card.focusable.focus()) },
      gone: async () => {
        for (const entry of [...entries]) await this.#jobs.remove(entry);
      },
    });
  }

  async #removePicture(entry, id) {
    const answer = await ask({ title: t("ask.picture"), answers: [{ key: "card.delete", value: "yes", kind: "primary" }] });
    if (answer) await this.#jobs.removePicture(entry, id);
    return answer !== null;
  }

  async #clear() {
    const text = this.#entries.some(isRunning) ? t("ask.running") : t("ask.clearText");
    const answer = await ask({ title: t("ask.clear"), text, answers: [{ key: "board.clear", value: "yes", kind: "primary" }] });
    if (!answer) return;
    for (const entry of [...this.#entries]) await this.#jobs.remove(entry);
    byId("board-title").focus();
  }

  #gone(entry) {
    const card = this.#card(entry);
    this.#entries = this.#entries.filter((one) => one !== entry);
    if (card && (!entry.group || card.drop(entry))) {
      card.release();
      card.element.remove();
      this.#cards.delete(entry.group?.id ?? entry.id);
    }
    this.#render();
    this.#title();
  }
}
