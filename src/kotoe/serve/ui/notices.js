// Short messages at the foot of the window, and questions in a dialog.

import { byId, h } from "./dom.js";
import { sentences, t, translate } from "./strings.js";

const SHOWN_MS = 10_000;
const MOST = 3; // at a time: they lie over the pictures

/**
 * A message that goes by itself, unless it is an error or something to read; not while it is pointed at or has the focus.
 * @param {string} text
 * @param {object} [how]
 * @param {"news"|"error"} [how.kind] an error is told at once and stays
 * @param {string[]} [how.list] points below it; it stays
 * @param {{key: string, fn: () => void}|null} [how.action] a button
 * @param {() => void} [how.gone] called when it goes and the action wasn't taken
 */
export function notice(text, { kind = "news", list = [], action = null, gone = () => {} } = {}) {
  let timer = 0;
  let taken = false;
  const box = h("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" });
  const close = () => {
    clearTimeout(timer);
    if (!box.isConnected) return;
    if (box.contains(document.activeElement)) byId("board-title").focus();
    box.remove();
    if (!taken) gone();
  };
  const wait = () => {
    clearTimeout(timer);
    if (kind === "news" && list.length === 0) timer = setTimeout(close, SHOWN_MS);
  };
  box.append(
    h("div", { class: "notice-text" }, h("p", { text }), list.length > 0 && h("ul", {}, ...list.map((one) => h("li", { text: one })))),
    ...(action ? [h("button", { type: "button", t: action.key, on: { click: () => ((taken = true), action.fn(), close()) } })] : []),
    h("button", { type: "button", class: "quiet close", "data-t-label": "close", text: "×", on: { click: close } }),
  );
  translate(box);
  for (const event of ["pointerenter", "focusin"]) box.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) box.addEventListener(event, wait);
  byId("notices").append(box);
  while (byId("notices").children.length > MOST) byId("notices").querySelector(".close").click(); // the oldest goes
  wait();
}

/**
 * A question in a dialog.
 * @param {object} about
 * @param {string} about.title
 * @param {string} [about.text]
 * @param {string|null} [about.picture] address of a picture that it is about
 * @param {string|null} [about.field] label of a field for a secret; then the answer is what was typed
 * @param {{key: string, value: string, kind?: string}[]} about.answers the last one is the usual one
 * @returns {Promise<string|null>} the answer's value or what was typed; null: dismissed
 */
export function ask({ title, text = "", picture = null, field = null, answers }) {
  const dialog = byId("ask");
  const input = field && h("input", { type: "password", id: "ask-field", autocomplete: "current-password", required: true });
  const form = h("form", { method: "dialog" },
    h("h2", { id: "ask-title", text: title }),
    text && h("p", { text }),
    picture && h("img", { class: "ask-picture", src: picture, alt: "" }),
    input && h("div", { class: "field" }, h("label", { for: "ask-field", text: field }), input),
    h("div", { class: "row wrap end" },
      h("button", { value: "", formnovalidate: true, t: "cancel" }),
      ...answers.map(({ key, value, kind }) => h("button", { value, class: kind, t: key })),
    ),
  );
  // Enter in the field gives the usual answer, not the first button, which is to leave.
  input?.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit(form.querySelector("button.primary"));
  });
  dialog.replaceChildren(form);
  translate(dialog);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const typed = input?.value ?? "";
      dialog.replaceChildren();
      resolve(dialog.returnValue === "" ? null : field ? typed : dialog.returnValue);
    }, { once: true });
  });
}

/**
 * What to tell of an error.
 * @param {import("./api.js").ApiError} error
 * @returns {string} the server's words; ours where it can't be reached
 */
export function wordsOf(error) {
  if (error.status === 0) return t("error.unreachable");
  if (error.retryAfter !== null) return sentences([error.message, t("error.retry", { n: Math.ceil(error.retryAfter) })]);
  return error.message;
}
