// The same prompt in several languages: a text for each, one seed, the pictures in a row.

import { byId, debounced, h, show } from "./dom.js";
import { Meter, submitOnEnter } from "./prompt.js";
import { keep, languageName, LOCALES, onLocale, remembered, t, translate } from "./strings.js";

const KEPT = "kotoe.texts";
const FEW = 6; // a model with so many languages begins with all of them

/** The fields of the languages. */
export class SideBySide {
  #languages;
  #settings;
  #submit;
  /** @type {{tag: string, element: HTMLElement, field: HTMLTextAreaElement, meter: Meter, label: HTMLElement}[]} */
  #rows = [];

  /**
   * @param {object} about
   * @param {{tag: string, name: string}[]} about.languages the model's
   * @param {import("./settings.js").Settings} about.settings
   * @param {() => void} about.submit
   */
  constructor({ languages, settings, submit }) {
    this.#languages = languages;
    this.#settings = settings;
    this.#submit = submit;
    byId("add-language").addEventListener("change", (event) => {
      const { value } = event.target;
      for (const { tag } of value === "*" ? this.#absent() : [{ tag: value }]) this.#add(tag, "");
      if (value !== "*") this.#rows.at(-1).field.focus();
      this.#save();
    });
    byId("copy-first").addEventListener("click", () => {
      const [first, ...rest] = this.#rows;
      for (const row of rest) {
        row.field.value = first.field.value;
        row.meter.count();
      }
      this.#save();
    });
    onLocale(() => this.#names());
    this.#restore();
  }

  #save = debounced(300, () => keep(KEPT, JSON.stringify(this.#rows.map(({ tag, field }) => [tag, field.value]))));

  /** @returns {{language: string, prompt: string}[]} of the fields that hold anything */
  get texts() {
    return this.#rows.map(({ tag, field }) => ({ language: tag, prompt: field.value })).filter(({ prompt }) => prompt.trim());
  }

  /**
   * Put texts into the fields, in place of what is there.
   * @param {{language: string, prompt: string}[]} texts
   */
  write(texts) {
    for (const row of [...this.#rows]) this.#drop(row);
    for (const { language, prompt } of texts)
      if (this.#languages.some(({ tag }) => tag === language)) this.#add(language, prompt);
    this.#save();
  }

  /** Go to the first field, or the first that is empty. */
  focus() {
    (this.#rows.find(({ field }) => !field.value.trim()) ?? this.#rows[0])?.field.focus();
  }

  /** Count all fields' tokens anew. */
  count() {
    for (const { meter } of this.#rows) meter.count();
  }

  #absent() {
    return this.#languages.filter(({ tag }) => !this.#rows.some((row) => row.tag === tag));
  }

  #add(tag, text) {
    const id = `text-${tag}`;
    const field = h("textarea", { class: "words", id, rows: 2, dir: "auto", lang: tag, "aria-describedby": `meter-${tag}` });
    field.value = text;
    const place = h("div", { class: "meter", id: `meter-${tag}` });
    const label = h("label", { for: id });
    const row = { tag, field, label };
    const remove = h("button", { type: "button", class: "quiet close", text: "×", on: { click: () => this.#leave(row) } });
    row.remove = remove;
    row.element = h("div", { class: "language" }, h("div", { class: "language-head" }, label, remove), field, place);
    byId("languages").append(row.element);
    row.meter = new Meter({
      field, place, languages: this.#languages, asked: () => ({ ...this.#settings.words, language: tag }),
    });
    submitOnEnter(field, this.#submit);
    field.addEventListener("input", this.#save);
    this.#rows.push(row);
    this.#names();
    if (text) row.meter.count();
  }

  /** The visitor takes a language out: the focus goes to the next one. */
  #leave(row) {
    const at = this.#rows.indexOf(row);
    this.#drop(row);
    (this.#rows[at] ?? this.#rows.at(-1))?.field.focus();
    if (this.#rows.length === 0) byId("add-language").focus();
    this.#save();
  }

  #drop(row) {
    row.element.remove();
    row.meter.release();
    this.#rows = this.#rows.filter((one) => one !== row);
    this.#names();
  }

  #names() {
    const own = new Map(this.#languages.map(({ tag, name }) => [tag, name]));
    for (const { tag, label, remove } of this.#rows) {
      label.textContent = languageName(tag, own.get(tag));
      remove.setAttribute("aria-label", t("many.remove", { language: label.textContent }));
    }
    const absent = this.#absent();
    byId("add-language").replaceChildren(
      h("option", { value: "", disabled: true, selected: true, t: "many.add" }),
      ...absent.map(({ tag, name }) => h("option", { value: tag, text: languageName(tag, name) })),
      absent.length > 1 && h("option", { value: "*", text: t("many.all", { n: absent.length }) }),
    );
    translate(byId("add-language"));
    show(byId("add-language"), absent.length > 0);
    show(byId("copy-first"), this.#rows.length > 1);
  }

  #restore() {
    let texts = [];
    try {
      texts = JSON.parse(remembered(KEPT) ?? "[]").map(([language, prompt]) => ({ language, prompt: String(prompt) }));
    } catch {
      // not ours: begin as with nothing
    }
    this.write(texts);
    if (this.#rows.length > 0) return;
    const few = this.#languages.length <= FEW ? this.#languages : this.#languages.filter(({ tag }) => tag in LOCALES);
    for (const { tag } of few.length ? few : this.#languages.slice(0, FEW)) this.#add(tag, "");
  }
}
