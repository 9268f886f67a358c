// Pictures that come in: dropped, pasted or chosen. A picture is something to start from, or has its settings read.

import { ApiError, readSettings } from "./api.js";
import { byId, show } from "./dom.js";
import { ask, notice, wordsOf } from "./notices.js";
import { t } from "./strings.js";

/**
 * @param {object} form
 * @param {(request: Record<string, any>) => string[]} form.write takes settings; gives what it has no field for
 * @param {(file: Blob) => void} form.start from a picture
 */
export function takePictures(form) {
  byId("read-settings").addEventListener("click", () => byId("settings-file").click());
  byId("settings-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) read(file, form);
  });
  takeDrops(form);
  document.addEventListener("paste", async (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (!file || event.clipboardData.types.includes("text/plain") || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    const address = URL.createObjectURL(file);
    const answer = await ask({
      title: t("intake.what"), picture: address,
      answers: [{ key: "drop.settings", value: "settings" }, { key: "drop.start", value: "start", kind: "primary" }],
    });
    URL.revokeObjectURL(address);
    if (answer === "start") form.start(file);
    if (answer === "settings") read(file, form);
  });
}

/** Two zones over the page while a file is dragged over it. */
function takeDrops(form) {
  const zones = { "drop-start": form.start, "drop-settings": (file) => read(file, form) };
  let inside = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  const mark = (target) => {
    for (const id of Object.keys(zones)) byId(id).classList.toggle("is-over", byId(id).contains(target));
  };
  const done = () => {
    inside = 0;
    show(byId("drop"), false);
  };
  addEventListener("dragenter", (event) => {
    if (!files(event)) return;
    inside += 1;
    show(byId("drop"), true);
  });
  addEventListener("dragleave", () => {
    inside -= 1;
    if (inside <= 0) done();
  });
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    mark(event.target);
  });
  addEventListener("drop", (event) => {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault(); // else the browser leaves the page for the picture
    const id = Object.keys(zones).find((one) => byId(one).contains(event.target));
    done();
    if (id) zones[id](event.dataTransfer.files[0]);
  });
}

async function read(file, form) {
  try {
    const { request, tool, notes } = await readSettings(file);
    const unused = form.write(request);
    if (request.init_image) notes.push(t("intake.init"));
    if (unused.length) notes.push(t("intake.unused", { names: unused.join(", ") }));
    notice(t("intake.read", { tool }), { list: notes });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice(wordsOf(error), { kind: "error" });
  }
}
