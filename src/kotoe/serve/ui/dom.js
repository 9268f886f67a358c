// Elements from data. Text goes in as text nodes only: nothing here parses HTML.

/**
 * An element. Props: `class`, `text`, `t` (a key of strings: translated, and again when the language changes),
 * `on` (event name to listener), `data`; any other is an attribute: true is empty, false, null and undefined are left out.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {any} the HTMLElement
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") element.textContent = value;
    else if (name === "t") element.dataset.t = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * The element with an id, which the page must have.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * Set text only where it differs: a screen reader is told of no change that is none.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Show or hide. The focus, if it was inside what is hidden, goes to `next`.
 * @param {HTMLElement} element
 * @param {boolean} shown
 * @param {HTMLElement|null} [next]
 */
export function show(element, shown, next = null) {
  if (!shown && !element.hidden && element.contains(document.activeElement)) next?.focus();
  element.hidden = !shown;
}

/** @returns {boolean} whether the visitor asked for little movement */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/**
 * Call `fn` once the calls have stopped for `ms`.
 * @template {any[]} A
 * @param {number} ms
 * @param {(...args: A) => void} fn
 * @returns {(...args: A) => void}
 */
export function debounced(ms, fn) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => fn(...args), ms);
  };
}
