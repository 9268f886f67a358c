// The controls of a request. A field left empty isn't sent: the model's own value is taken.

import { byId, debounced, h, setText, show } from "./dom.js";
import { keep, languageName, number, onLocale, remembered, t, translate } from "./strings.js";

const MAX_SEED = 2 ** 32 - 1;
const DRAFT = "kotoe.draft";
const NUMBERS = ["width", "height", "n", "steps", "guidance_scale", "strength"];
const CHOICES = ["language", "sampler", "grid", "long_prompt"];
const BYTES_A_PIXEL = 6; // of a PNG and its mask in base64, at the worst
const PAIRS = ["steps", "guidance_scale", "strength"];
const SET_BY_FAST = ["steps", "guidance_scale", "sampler"];
const WITH_FILES = ["prompt", "fast", "previews", "init_image", "mask", "padding_mask_crop"]; // stand elsewhere in the form
const SHAPE_COUNTS = 8; // times as much as the number of pixels
const SHAPES = [[1, 1], [4, 3], [3, 2], [16, 9], [3, 4], [2, 3], [9, 16]];

/** A value that can't be sent, and the field it stands in. */
export class Invalid extends Error {
  /** @param {string} field @param {string} message */
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** The controls, filled from the model's description. */
export class Settings {
  #model;
  /** @type {Record<string, string>} what stood in the fields that Fast sets, to put it back */
  #before = {};
  /** Called after each change of width or height. */
  onSize = () => {};
  /** Called when what is counted as tokens changes: the language, the negative prompt. */
  onWords = () => {};

  /** @param {any} model what GET /model gave */
  constructor(model) {
    this.#model = model;
    this.#fill();
    onLocale(() => this.#names());
    const save = debounced(300, () => this.#save());
    byId("form").addEventListener("input", (event) => {
      this.#clear(event.target.id);
      save();
    });
    for (const name of PAIRS) this.#pair(name);
    for (const name of ["width", "height"]) byId(name).addEventListener("input", () => this.#sized());
    byId("shape").addEventListener("input", () => this.#shape());
    byId("seed-random").addEventListener("click", () => (this.#put("seed", ""), byId("seed").focus(), save()));
    byId("fast").addEventListener("input", () => this.#fasten());
    byId("language").addEventListener("input", () => this.onWords());
    byId("negative_prompt").addEventListener("input", debounced(300, () => this.onWords()));
    byId("reset").addEventListener("click", () => (this.reset(), save()));
    this.reset();
    this.#restore();
  }

  /** Everything but the prompt as the model has it. */
  reset() {
    const { defaults } = this.#model;
    if (byId("fast").checked) this.#toggle(false);
    for (const name of NUMBERS) this.#put(name, defaults[name] ?? "");
    this.#put("n", 1);
    this.#put("seed", "");
    this.#put("negative_prompt", "");
    for (const name of CHOICES) byId(name).selectedIndex = 0;
    byId("sampler").value = defaults.sampler;
    this.#sized();
    this.onWords();
  }

  /** @returns {{width: number, height: number}} pixels, as they stand; the model's where a field is empty */
  get size() {
    const of = (name) => Number(byId(name).value) || this.#model.defaults[name];
    return { width: of("width"), height: of("height") };
  }

  /** @returns {number} pixels that the server takes in a picture to start from, and that fit into a request */
  get mostPixels() {
    const { max_init_pixels: most, max_body_bytes: bytes } = this.#model.limits;
    return Math.min(most, Math.floor(bytes / BYTES_A_PIXEL));
  }

  /** @returns {{language: string|null, negative: string, model: string}} what tells how a prompt is read */
  get words() {
    const negative = byId("negative_prompt").value;
    return { model: this.#model.name, language: byId("language").value || null, negative: negative.trim() ? negative : "" };
  }

  /**
   * The request, but for the prompt and what it starts from.
   * @param {{image: boolean}} about image: strength counts
   * @returns {Record<string, any>}
   */
  read({ image }) {
    const { limits } = this.#model;
    const whole = { integer: true };
    const m = limits.pixel_multiple;
    const request = {
      width: this.#number("width", { least: m, multiple: m, ...whole }),
      height: this.#number("height", { least: m, multiple: m, ...whole }),
      n: this.#number("n", { least: 1, most: limits.max_n, ...whole }),
      seed: this.#number("seed", { least: 0, most: MAX_SEED, ...whole }),
      steps: this.#number("steps", { least: 1, most: limits.max_steps, ...whole }),
      guidance_scale: this.#number("guidance_scale", { least: 0 }),
      strength: image ? this.#number("strength", { least: 0.01, most: 1 }) : undefined,
      negative_prompt: this.words.negative || undefined,
      fast: byId("fast").checked || undefined,
      previews: byId("previews").checked,
    };
    for (const name of CHOICES) request[name] = byId(name).value || undefined;
    const { width, height } = this.size;
    if (width * height > limits.max_pixels) throw new Invalid("width", t("wrong.pixels", { most: limits.max_pixels }));
    if (request.seed !== undefined && request.seed + (request.n ?? 1) - 1 > MAX_SEED)
      throw new Invalid("seed", t("wrong.range", { least: 0, most: MAX_SEED + 1 - (request.n ?? 1) }));
    return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== undefined));
  }

  /**
   * Put a request's values into the fields; what it doesn't say is the model's own.
   * @param {Record<string, any>} request
   * @returns {string[]} names of what has no field here, or a value that this model lacks
   */
  write(request) {
    this.reset();
    if (request.fast && this.#model.fast) this.#toggle(true);
    const unused = request.fast && !this.#model.fast ? ["fast"] : [];
    for (const [name, value] of Object.entries(request)) {
      if (value === null || value === undefined || WITH_FILES.includes(name)) continue;
      if (CHOICES.includes(name)) {
        if ([...byId(name).options].some((option) => option.value === value)) byId(name).value = value;
        else unused.push(`${name} ${value}`);
      } else if ([...NUMBERS, "seed", "negative_prompt"].includes(name)) this.#put(name, value);
      else unused.push(`${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    }
    this.#sized();
    this.onWords();
    this.#save();
    return unused;
  }

  /** @param {number} edge pixels @returns {boolean} whether the model can draw an edge of that length */
  isWhole(edge) {
    return edge > 0 && edge % this.#model.limits.pixel_multiple === 0;
  }

  /** @param {{width: number, height: number}} size pixels */
  setSize({ width, height }) {
    this.#put("width", width);
    this.#put("height", height);
    this.#sized();
  }

  /** @param {number} seed of the next picture */
  setSeed(seed) {
    this.#put("seed", seed);
    this.#save();
  }

  /**
   * Show what is wrong beside its field, and go there. Without a field of that name: false, and nothing is shown.
   * @param {string} field
   * @param {string} message
   * @returns {boolean}
   */
  fault(field, message) {
    const place = document.getElementById(`error-${field}`);
    if (!place) return false;
    setText(place, message);
    place.hidden = false;
    place.closest("details")?.setAttribute("open", "");
    const control = document.getElementById(field);
    control?.setAttribute("aria-invalid", "true");
    (control ?? byId("source-choose")).focus();
    return true;
  }

  /** Take back every fault that is shown. */
  clearFaults() {
    for (const place of document.querySelectorAll('[id^="error-"]')) this.#clear(place.id.slice("error-".length));
  }

  #clear(field) {
    const place = document.getElementById(`error-${field}`);
    if (!place || place.hidden) return;
    place.hidden = true;
    setText(place, "");
    document.getElementById(field)?.removeAttribute("aria-invalid");
  }

  #fill() {
    const { limits, samplers, grids, defaults, languages } = this.#model;
    const options = (names) => names.map((name) => h("option", { value: name, text: name }));
    byId("sampler").replaceChildren(...options(samplers));
    byId("grid").replaceChildren(h("option", { value: "", t: "choice.model" }), ...options(grids));
    const auto = h("option", { value: "", t: "language.auto" });
    byId("language").replaceChildren(auto, ...languages.map(({ tag, name }) => h("option", { value: tag, lang: tag, text: name })));
    byId("shape").replaceChildren(h("option", { value: "", t: "shape.own" }), ...SHAPES.map(([w, b]) => h("option", { value: `${w}:${b}`, text: `${w} : ${b}` })));
    for (const name of ["width", "height"]) {
      Object.assign(byId(name), { min: limits.pixel_multiple, step: limits.pixel_multiple });
    }
    byId("n").max = limits.max_n;
    byId("steps").max = limits.max_steps;
    byId("steps-range").max = Math.min(limits.max_steps, Math.max(50, 3 * defaults.steps));
    for (const name of NUMBERS) byId(name).placeholder = defaults[name] ?? "";
    byId("fast-row").hidden = !this.#model.fast;
    translate(byId("form"));
    this.#names();
  }

  #names() {
    const own = new Map(this.#model.languages.map(({ tag, name }) => [tag, name]));
    for (const option of byId("language").options)
      if (option.value) option.textContent = languageName(option.value, own.get(option.value));
    const fast = byId("fast").checked;
    for (const name of ["steps", "guidance_scale"]) byId(name).placeholder = fast ? t("choice.fast") : this.#model.defaults[name];
  }

  /** A slider beside a number: the number is the field, the slider a handle for a hand. */
  #pair(name) {
    const [field, slider] = [byId(name), byId(`${name}-range`)];
    slider.addEventListener("input", () => {
      field.value = slider.value;
      this.#clear(name);
    });
    field.addEventListener("input", () => this.#slide(name));
  }

  #slide(name) {
    const field = byId(name);
    byId(`${name}-range`).value = field.value || this.#model.defaults[name];
  }

  #put(name, value) {
    byId(name).value = value;
    this.#clear(name);
    if (PAIRS.includes(name)) this.#slide(name);
  }

  #sized() {
    const { width, height } = this.size;
    const same = SHAPES.find((shape) => {
      const made = this.#shaped(shape);
      return made.width === width && made.height === height;
    });
    byId("shape").value = same ? same.join(":") : "";
    this.onSize();
  }

  #shape() {
    const { value } = byId("shape");
    if (value) this.setSize(this.#shaped(value.split(":").map(Number)));
  }

  #shaped([across, down]) {
    return this.sizeLike(across, down);
  }

  /**
   * The size of these proportions with about as many pixels as the model usually draws, in its multiples.
   * @param {number} across
   * @param {number} down
   * @returns {{width: number, height: number}} pixels
   */
  sizeLike(across, down) {
    const { defaults, limits } = this.#model;
    const usual = defaults.width * defaults.height;
    let best = { far: Infinity, width: 0, height: 0 };
    for (let height = limits.pixel_multiple; height <= 4 * Math.sqrt(usual); height += limits.pixel_multiple) {
      const width = Math.max(1, Math.round((height * across) / down / limits.pixel_multiple)) * limits.pixel_multiple;
      const [shape, size] = [(width * down) / (height * across), (width * height) / usual].map((ratio) => Math.abs(Math.log(ratio)));
      const far = SHAPE_COUNTS * shape + size;
      if (far < best.far) best = { far, width, height };
    }
    return { width: best.width, height: best.height };
  }

  /** Fast has settings of its own: the fields are emptied, and filled again afterwards. */
  #fasten() {
    const on = byId("fast").checked;
    if (on) this.#before = Object.fromEntries(SET_BY_FAST.map((name) => [name, byId(name).value]));
    if (on && !byId("sampler").options[0].dataset.t) byId("sampler").prepend(h("option", { value: "", t: "choice.fast", }));
    translate(byId("sampler"));
    for (const name of SET_BY_FAST) this.#put(name, on ? "" : (this.#before[name] ?? ""));
    if (!on && byId("sampler").options[0].dataset.t) byId("sampler").options[0].remove();
    if (!on) byId("sampler").value = this.#before.sampler || this.#model.defaults.sampler;
    for (const name of ["steps", "guidance_scale"]) byId(`${name}-range`).hidden = on;
    this.#names();
    show(byId("fast-hint"), on);
  }

  #toggle(on) {
    byId("fast").checked = on;
    this.#fasten();
  }

  /** @returns {number|undefined} undefined: the field is empty */
  #number(name, { least = -Infinity, most = Infinity, multiple = 1, integer = false }) {
    const field = byId(name);
    const text = field.value.trim();
    if (field.validity.badInput || (text !== "" && !Number.isFinite(Number(text)))) throw new Invalid(name, t("wrong.number"));
    if (text === "") return undefined;
    const value = Number(text);
    if (integer && !Number.isInteger(value)) throw new Invalid(name, t("wrong.whole"));
    if (value < least || value > most)
      throw new Invalid(name, most === Infinity ? t("wrong.least", { least }) : t("wrong.range", { least: number(least), most: number(most) }));
    if (multiple > 1 && value % multiple) throw new Invalid(name, t("wrong.multiple", { multiple }));
    return value;
  }

  #save() {
    const fields = ["prompt", "seed", "negative_prompt", ...NUMBERS, ...CHOICES];
    const values = Object.fromEntries(fields.map((name) => [name, byId(name).value]));
    const flags = { fast: byId("fast").checked, previews: byId("previews").checked };
    keep(DRAFT, JSON.stringify({ model: this.#model.name, values, flags }));
  }

  /** What stood in the form when the page was left, if the model is the same. */
  #restore() {
    let draft;
    try {
      draft = JSON.parse(remembered(DRAFT) ?? "null");
    } catch {
      return; // not ours
    }
    if (draft?.model !== this.#model.name || !draft.values || !draft.flags) return;
    if (draft.flags.fast && this.#model.fast) this.#toggle(true);
    byId("previews").checked = draft.flags.previews;
    for (const [name, value] of Object.entries(draft.values)) this.#put(name, value);
    this.#sized();
  }
}
