// A text field for words of any language: Enter that no input method needs, and how much of the limit the words take.

import { ApiError, countTokens } from "./api.js";
import { debounced, h, setText, show } from "./dom.js";
import { languageName, offLocale, onLocale, t } from "./strings.js";

const AFTER_TYPING_MS = 250;
const AFTER_COMPOSITION_MS = 100;
const UNSURE = ["unsure", "default"]; // sources of a language that was not told by the text
const MOST_SHOWN = 240; // characters of what is over the limit
const AT_ONCE = 2; // requests of all meters: there may be one for each of 43 languages
let running = 0;
/** @type {(() => void)[]} */
const waiting = [];

/**
 * Enter submits; Shift+Enter is a new line; an Enter that ends or belongs to an IME's composition does neither.
 * Browsers say so in three ways: isComposing; keyCode 229; and Safari ends the composition before the key is told.
 * @param {HTMLTextAreaElement} field
 * @param {() => void} submit
 */
export function submitOnEnter(field, submit) {
  let composing = false;
  let endedAt = -Infinity;
  field.addEventListener("compositionstart", () => (composing = true));
  field.addEventListener("compositionend", () => {
    composing = false;
    endedAt = performance.now();
  });
  field.addEventListener("keyup", () => (endedAt = -Infinity)); // the key that ended it is up: the next is the visitor's
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return;
    const ends = performance.now() - endedAt < AFTER_COMPOSITION_MS;
    if (event.isComposing || event.keyCode === 229 || composing || ends) return;
    event.preventDefault();
    if (!event.repeat) submit();
  });
}

/** Under a text field: the language it is read as, by what, tokens and limit, and the words over it. */
export class Meter {
  #field;
  #place;
  #languages;
  #asked;
  #bar = h("progress", { "aria-hidden": "true", max: 1, value: 0 });
  #says = h("p", { class: "meter-says" });
  #over = h("p", { class: "wrong", role: "status" });
  /** @type {AbortController|null} */
  #running = null;
  #answer = null;
  #trouble = "";

  /**
   * @param {object} about
   * @param {HTMLTextAreaElement} about.field
   * @param {HTMLElement} about.place where it is shown
   * @param {{tag: string, name: string}[]} about.languages the model's
   * @param {() => {language: string|null, negative: string, model: string}} about.asked what else counts
   */
  constructor({ field, place, languages, asked }) {
    this.#field = field;
    this.#place = place;
    this.#languages = new Map(languages.map((one) => [one.tag, one.name]));
    this.#asked = asked;
    place.append(this.#bar, this.#says, this.#over);
    const soon = debounced(AFTER_TYPING_MS, () => this.count());
    field.addEventListener("input", (event) => event.isComposing || soon());
    field.addEventListener("compositionend", soon);
    this.#listener = () => (this.#trouble ? this.count() : this.#update());
    onLocale(this.#listener);
    this.#update();
  }

  #listener;

  /** The field is gone. */
  release() {
    this.#running?.abort();
    offLocale(this.#listener);
  }

  /** Count now. An answer to an older text is dropped. */
  async count() {
    this.#running?.abort();
    if (!this.#field.value.trim()) {
      this.#answer = null;
      this.#trouble = "";
      this.#field.removeAttribute("lang");
      return this.#update();
    }
    const mine = (this.#running = new AbortController());
    const { language, negative, model } = this.#asked();
    const body = { model, prompt: this.#field.value, language, ...(negative && { negative_prompt: negative }) };
    await turn();
    try {
      if (mine.signal.aborted) return;
      const answer = await countTokens(body, mine.signal);
      if (mine.signal.aborted) return;
      this.#answer = answer;
      this.#trouble = "";
      this.#field.lang = answer.language; // its own glyphs of Han characters, its own voice
    } catch (error) {
      if (mine.signal.aborted || !(error instanceof ApiError)) return;
      this.#answer = null;
      this.#trouble = error.status === 0 ? t("error.unreachable") : error.message;
    } finally {
      done();
    }
    this.#update();
  }

  #update() {
    const found = this.#answer;
    const over = found?.over ?? [];
    show(this.#bar, found !== null);
    if (found) {
      this.#bar.max = Math.max(1, found.limit);
      this.#bar.value = Math.min(found.tokens, found.limit);
      const name = languageName(found.language, this.#languages.get(found.language) ?? found.language);
      setText(this.#says, t(UNSURE.includes(found.language_source) ? "meter.unsure" : "meter.says", {
        language: name, conditioner: found.conditioner, tokens: found.tokens, limit: found.limit,
      }));
    } else setText(this.#says, "");
    this.#place.classList.toggle("is-over", over.length > 0);
    this.#over.lang = found?.language ?? "";
    setText(this.#over, this.#trouble || (over.length ? t("meter.over", { words: shortened(tail(this.#field.value, over)) }) : ""));
  }
}

/**
 * The end of a text that these pieces of it are, as it was typed. Pieces say nothing of spaces between them.
 * @param {string} text
 * @param {string[]} pieces
 * @returns {string} the pieces, where the text doesn't end with them: it has marks that aren't read
 */
export function tail(text, pieces) {
  const plain = (part) => part.normalize("NFKC").toLowerCase().replace(/\s/gu, "");
  const wanted = plain(pieces.join(""));
  const characters = [...text];
  let found = "";
  let from = characters.length;
  while (from > 0 && found.length < wanted.length) found = plain(characters[--from]) + found;
  return found === wanted ? characters.slice(from).join("").trim() : pieces.join(" ");
}

/** @param {string} text */
const shortened = (text) => (text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN / 2)} … ${text.slice(-MOST_SHOWN / 2)}` : text);

/** Wait until fewer than AT_ONCE counts run. */
async function turn() {
  if (running >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
}

function done() {
  running -= 1;
  waiting.shift()?.();
}
