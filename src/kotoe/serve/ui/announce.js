// What a screen reader is told without being asked: news at once, progress at most every few seconds, the last word wins.

import { byId } from "./dom.js";

const RATE_MS = 5000;
let last = 0;
let timer = 0;

/**
 * Say it in the polite live region.
 * @param {string} text
 * @param {{soon?: boolean}} [how] soon: news, not progress: doesn't wait its turn
 */
export function announce(text, { soon = false } = {}) {
  clearTimeout(timer);
  const wait = soon ? 0 : Math.max(0, last + RATE_MS - performance.now());
  timer = setTimeout(() => {
    last = performance.now();
    byId("live").textContent = text;
  }, wait);
}
