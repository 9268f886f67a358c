// The page: the parts, put together, and what is sent when the visitor says "Draw".

import { announce } from "./announce.js";
import { ApiError, getModel, onKeyNeeded } from "./api.js";
import { byId, h, setText, show } from "./dom.js";
import { Gallery } from "./gallery.js";
import { takePictures } from "./intake.js";
import { Jobs } from "./jobs.js";
import { ask, notice, wordsOf } from "./notices.js";
import { Meter, submitOnEnter } from "./prompt.js";
import { Invalid, Settings } from "./settings.js";
import { SideBySide } from "./sidebyside.js";
import { Source } from "./source.js";
import { allEntries, getBlob, kept } from "./store.js";
import { locale, LOCALES, onLocale, ownName, preferred, sentences, setLocale, t } from "./strings.js";
import { setTheme, theme } from "./theme.js";

const RETRY_MS = 3000; // while the server doesn't answer the first question
const EXAMPLES = { en: "a cat on a blue background", ja: "青い背景に猫", ko: "파란 배경의 고양이", zh: "蓝色背景上的猫" };

/** The form: one prompt or several, settings, a picture to start from. */
class Form {
  #model;
  #jobs;
  #sending = false;
  /** @type {Gallery} */
  gallery;

  constructor(model, jobs) {
    this.#model = model;
    this.#jobs = jobs;
    const submit = () => this.submit();
    const { languages } = model;
    this.settings = new Settings(model);
    this.source = new Source(this.settings);
    this.meter = new Meter({ field: byId("prompt"), place: byId("meter"), languages, asked: () => this.settings.words });
    this.many = new SideBySide({ languages, settings: this.settings, submit });
    this.settings.onWords = () => (this.several ? this.many.count() : this.meter.count());
    submitOnEnter(byId("prompt"), submit);
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    this.#tabs();
    this.meter.count();
  }

  /** @returns {boolean} whether several languages are drawn side by side */
  get several() {
    return byId("tab-many").getAttribute("aria-selected") === "true";
  }

  #tabs() {
    const tabs = [byId("tab-one"), byId("tab-many")];
    for (const tab of tabs) tab.addEventListener("click", () => this.choose(tab === tabs[1]));
    tabs[0].parentElement.addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      const several = event.key === "End" || (event.key !== "Home" && !this.several);
      this.choose(several);
      tabs[several ? 1 : 0].focus();
    });
  }

  /** @param {boolean} several */
  choose(several) {
    for (const [name, on] of [["one", !several], ["many", several]]) {
      byId(`tab-${name}`).setAttribute("aria-selected", String(on));
      byId(`tab-${name}`).tabIndex = on ? 0 : -1;
      byId(`panel-${name}`).hidden = !on;
    }
    byId("language-row").hidden = several;
  }

  /** Take up what an earlier job was asked for. @param {import("./store.js").Entry[]} entries one, or a group */
  async reuse(entries) {
    const [{ request, init, mask, id, seeds }] = entries;
    const several = entries.length > 1;
    const unused = this.settings.write({ ...request, language: several ? null : request.language, seed: seeds[0] });
    if (several) this.many.write(entries.map((entry) => ({ language: entry.request.language, prompt: entry.request.prompt })));
    else this.write(request.prompt);
    this.choose(several);
    if (this.source.given) this.source.remove();
    const blob = init && (await getBlob(`${id}/init`));
    const closeup = request.padding_mask_crop !== undefined;
    if (blob) await this.source.take(blob, { mask: mask ? await getBlob(`${id}/mask`) : null, resize: false, closeup });
    if (unused.length) notice(t("intake.unused", { names: unused.join(", ") }));
    announce(t("said.reused"), { soon: true });
    if (several) this.many.focus();
    else byId("prompt").focus();
  }

  /** @param {string} prompt */
  write(prompt) {
    byId("prompt").value = prompt;
    byId("prompt").dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** @param {number} seed */
  seed(seed) {
    this.settings.setSeed(seed);
    byId("seed").focus();
    announce(t("said.seed", { seed: String(seed) }), { soon: true });
  }

  /** Check, send, and say what is wrong where it is wrong. */
  async submit() {
    if (this.#sending) return;
    this.settings.clearFaults();
    show(byId("form-error"), false);
    this.#sending = true;
    byId("draw").setAttribute("aria-busy", "true");
    try {
      await (this.several ? this.#sendMany() : this.#sendOne());
    } catch (error) {
      this.#wrong(error);
    } finally {
      this.#sending = false;
      byId("draw").removeAttribute("aria-busy");
    }
  }

  async #sendOne() {
    const prompt = byId("prompt").value;
    if (!prompt.trim()) throw new Invalid("prompt", t("wrong.empty"));
    const settings = this.settings.read({ image: this.source.given });
    const { fields, ...files } = await this.source.files();
    const request = { model: this.#model.name, prompt, ...settings, ...fields };
    this.gallery.add(await this.#jobs.send(request, files));
    announce(t("said.sent"), { soon: true });
  }

  /** One job for each language, with one seed: chosen here if the visitor left it to chance. */
  async #sendMany() {
    const { texts } = this.many;
    if (texts.length === 0) {
      this.many.focus();
      throw new Invalid("", t("wrong.empty"));
    }
    const common = this.settings.read({ image: this.source.given });
    common.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] & 0x7fffffff;
    const { fields, ...files } = await this.source.files();
    const id = crypto.randomUUID?.() ?? String(crypto.getRandomValues(new BigUint64Array(1))[0]);
    const faults = [];
    for (const [order, text] of texts.entries()) {
      try {
        const request = { model: this.#model.name, ...common, ...fields, ...text };
        this.gallery.add(await this.#jobs.send(request, { group: { id, order }, ...files }));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        faults.push(`${this.languageOf(text.language)}: ${wordsOf(error)}`);
        if (error.status === 0 || error.status >= 500) break;
      }
    }
    announce(t("said.sent"), { soon: true });
    if (faults.length) throw new Invalid("", faults.join("\n"));
  }

  #wrong(error) {
    if (!(error instanceof ApiError) && !(error instanceof Invalid)) throw error;
    const field = error instanceof Invalid ? error.field : error.param;
    const message = error instanceof Invalid ? error.message : wordsOf(error);
    if (field && !(this.several && field === "prompt") && this.settings.fault(field, message)) {
      announce(message, { soon: true });
      return;
    }
    setText(byId("form-error"), message);
    show(byId("form-error"), true);
  }

  /** @param {string} tag @returns {string} its own name */
  languageOf(tag) {
    return this.#model.languages.find((one) => one.tag === tag)?.name ?? tag;
  }
}

/** The description of the model; while the server doesn't answer, the page says so and asks again. */
async function model() {
  let asked = new URLSearchParams(location.search).get("model");
  for (;;) {
    try {
      const found = await getModel(asked);
      for (const one of found.languages) if (one.name === one.tag) one.name = ownName(one.tag);
      show(byId("form-error"), false);
      return found;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (asked !== null && error.status === 400) {
        asked = null; // an address from when the server had other models
        continue;
      }
      setText(byId("form-error"), error.status === 0 ? wordsOf(error) : error.message);
      show(byId("form-error"), true);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function chooseLanguageAndTheme() {
  byId("locale").append(...Object.entries(LOCALES).map(([tag, name]) => h("option", { value: tag, lang: tag, text: name })));
  byId("locale").value = locale();
  byId("locale").addEventListener("change", (event) => setLocale(event.target.value, { remember: true }));
  byId("theme").value = theme();
  byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
}

/** What the page says of the model, in its language. */
function describe(about) {
  const { name, version, licence, keep_hours: hours } = about;
  const facts = [t("about.version", { version }), licence && t("about.licence", { model: name, licence }), hours && t("about.keep", { n: hours })];
  setText(byId("about"), sentences(facts));
}

/** The model's name; where there are several, a choice, which loads the page anew. */
function chooseModel({ name, models = [name] }) {
  const one = models.length < 2;
  show(byId("model"), one);
  show(byId("models-row"), !one);
  setText(byId("model"), name);
  byId("models").append(...models.map((other) => h("option", { value: other, text: other, selected: other === name })));
  byId("models").addEventListener("change", (event) => {
    location.search = new URLSearchParams({ model: event.target.value });
  });
}

function offerExamples(about, form) {
  const own = Object.entries(EXAMPLES).filter(([tag]) => about.languages.some((one) => one.tag === tag));
  const take = (text) => () => (form.choose(false), form.write(text), byId("prompt").focus());
  byId("examples").append(...own.map(([tag, text]) => h("button", { type: "button", class: "words", lang: tag, text, on: { click: take(text) } })));
}

await setLocale(preferred());
chooseLanguageAndTheme();
let refused = false;
onKeyNeeded(() => {
  const text = t(refused ? "key.wrong" : "key.text");
  refused = true;
  return ask({ title: t("key.title"), text, field: t("key.label"), answers: [{ key: "key.use", value: "use", kind: "primary" }] });
});
const about = await model();
refused = false;
const jobs = new Jobs();
const form = new Form(about, jobs);
const deeds = {
  reuse: (entries) => form.reuse(entries),
  seed: (seed) => form.seed(seed),
  start: (file) => form.source.take(file),
  languageOf: (tag) => form.languageOf(tag),
};
form.gallery = new Gallery(jobs, deeds);
chooseModel(about);
describe(about);
onLocale(() => describe(about));
offerExamples(about, form);
takePictures({
  start: deeds.start,
  write: (request) => {
    const unused = form.settings.write(request);
    form.write(request.prompt ?? "");
    form.choose(false);
    return unused;
  },
});
form.gallery.restore(await allEntries());
if (!(await kept())) notice(t("error.unkept"));
document.documentElement.dataset.ready = "true"; // everything that can be pressed works now
