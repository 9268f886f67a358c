// The page's words: one JSON file a language. A value is text with {placeholders}, or {"one", "other"} by number `n`.

import { setText } from "./dom.js";

/** Languages of the page, as they call themselves. */
export const LOCALES = { en: "English", ja: "日本語", ko: "한국어", zh: "简体中文" };
const HTML_LANG = { en: "en", ja: "ja", ko: "ko", zh: "zh-Hans" };
const KEPT = "kotoe.locale";

let current = "en";
/** @type {Record<string, string|Record<string, string>>} */
let words = {};
/** @type {Set<() => void>} */
const listeners = new Set();

/** @returns {string} the tag that requests carry as Accept-Language */
export const locale = () => current;

/** @returns {string} what the visitor chose earlier, else the first of the browser's languages that the page has */
export function preferred() {
  const kept = remembered(KEPT);
  if (kept && kept in LOCALES) return kept;
  for (const tag of navigator.languages) {
    const base = tag.toLowerCase().split("-")[0];
    if (base in LOCALES) return base;
  }
  return "en";
}

/**
 * Change the page's language at once.
 * @param {string} tag one of LOCALES
 * @param {{remember?: boolean}} [how] remember: for the next visit
 */
export async function setLocale(tag, { remember = false } = {}) {
  const answer = await fetch(new URL(`strings/${tag}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`strings/${tag}.json: ${answer.status}`);
  words = await answer.json();
  current = tag;
  document.documentElement.lang = HTML_LANG[tag];
  if (remember) keep(KEPT, tag);
  translate(document);
  for (const listener of listeners) listener();
}

/**
 * Call when the language has changed, for text that holds values.
 * @param {() => void} listener
 */
export function onLocale(listener) {
  listeners.add(listener);
}

/** @param {() => void} listener that is to be called no more */
export function offLocale(listener) {
  listeners.delete(listener);
}

/**
 * The text of a key. A key that is missing shows itself; tests/test_page.py sees to it that none is.
 * @param {string} key
 * @param {Record<string, string|number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  let text = words[key] ?? key;
  if (typeof text === "object") text = text[new Intl.PluralRules(current).select(Number(values.n))] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === "number" ? number(value) : value;
  });
}

/**
 * Sentences one after the other; what is empty is left out.
 * @param {(string|false|null|undefined|0)[]} parts
 * @returns {string}
 */
export function sentences(parts) {
  return parts.filter(Boolean).join(["ja", "zh"].includes(current) ? "" : " ");
}

/**
 * A number as the page's language writes it.
 * @param {number} value
 * @returns {string}
 */
export function number(value) {
  return new Intl.NumberFormat(HTML_LANG[current], { maximumFractionDigits: 2 }).format(value);
}

/**
 * A time that has still to pass, in whole units, rounded up.
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  const whole = Math.max(1, Math.ceil(seconds));
  if (whole < 90) return t("time.seconds", { n: whole });
  return whole < 5400 ? t("time.minutes", { n: Math.ceil(whole / 60) }) : t("time.hours", { n: Math.ceil(whole / 3600) });
}

/**
 * When something was, short.
 * @param {number} ms since 1970
 * @returns {string}
 */
export function moment(ms) {
  return new Intl.DateTimeFormat(HTML_LANG[current], { dateStyle: "medium", timeStyle: "short" }).format(ms);
}

/**
 * A language's name: its own, and in the page's language where that is another.
 * @param {string} tag
 * @param {string} own
 * @returns {string}
 */
export function languageName(tag, own) {
  const here = new Intl.DisplayNames(HTML_LANG[current], { type: "language", fallback: "none" }).of(tag);
  return !here || here.toLowerCase() === own.toLowerCase() ? own : `${own} · ${here}`;
}

/**
 * What a language calls itself.
 * @param {string} tag
 * @returns {string} the tag where the browser doesn't know it
 */
export function ownName(tag) {
  return new Intl.DisplayNames(tag, { type: "language" }).of(tag);
}

/**
 * Put words into elements: `data-t` is the text, `data-t-label`, `-placeholder`, `-title` and `-alt` are attributes.
 * @param {Document|Element} root
 */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) setText(element, t(element.dataset.t));
  for (const [name, attribute] of Object.entries({ tLabel: "aria-label", tPlaceholder: "placeholder", tTitle: "title" })) {
    const selector = `[data-t-${name.slice(1).toLowerCase()}]`;
    for (const element of root.querySelectorAll(selector)) element.setAttribute(attribute, t(element.dataset[name]));
  }
}

/**
 * A small thing kept for the next visit; null where the browser keeps nothing.
 * @param {string} key
 * @returns {string|null}
 */
export function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/**
 * @param {string} key
 * @param {string} value
 */
export function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // A browser that keeps nothing: the choice holds until the page is closed.
  }
}
