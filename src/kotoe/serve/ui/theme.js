// Light, dark, or as the system has it. Loaded before the page is first painted.

const KEPT = "kotoe.theme";

/** @returns {string} auto, light or dark */
export function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

/**
 * @param {string} name auto, light or dark
 */
export function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem(KEPT, name);
  } catch {
    // Nothing is kept in this browser: the choice holds until the page is closed.
  }
}

try {
  document.documentElement.dataset.theme = localStorage.getItem(KEPT) ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto";
}
