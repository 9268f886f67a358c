// Jobs: sent, watched until they end, taken up again after a reload. What is known of each is an Entry (see store.js).
//
// A browser opens six connections to a host: of all running jobs only the next two are watched by their events, and none
// while the page is hidden; the others are asked for in turn.

import { ApiError, deleteJob, getJob, getPicture, jobEvents, postJob } from "./api.js";
import { getBlob, putBlob, putEntry, removeBlob, removeEntry } from "./store.js";

/** @typedef {import("./store.js").Entry} Entry */

const STREAMS = 2;
const POLL_MS = 1500;
const HIDDEN_POLL_MS = 5000;
const FULL_TRIES = 40; // while the queue is full, for one of several jobs that belong together
const POLLED = 8; // jobs asked for in one round, those that waited longest
const RUNNING = ["waiting", "drawing"];

/** @param {Entry} entry @returns {boolean} whether more is to come */
export const isRunning = (entry) => RUNNING.includes(entry.state);

/** All jobs of this page. Fires "change" {entry}, "preview" {entry, preview}, "gone" {entry}, "full" (the disk is). */
export class Jobs extends EventTarget {
  /** @type {Map<string, {entry: Entry, stream: AbortController|null, failed: boolean, asked: number}>} */
  #watched = new Map();
  /** @type {Set<string>} jobs that were forgotten here: what is still told of them is not taken */
  #removed = new Set();
  #polling = false;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => this.#arrange());
  }

  /** @returns {Entry[]} those that run */
  get running() {
    return [...this.#watched.values()].map((one) => one.entry);
  }

  /** @param {Entry} entry @returns {boolean} whether the server can't be reached for it at the moment */
  isCut(entry) {
    return this.#watched.get(entry.id)?.failed ?? false;
  }

  /**
   * Send a request.
   * @param {Record<string, any>} request fields of POST jobs, without pictures
   * @param {object} [about]
   * @param {Blob|null} [about.init] the picture to start from
   * @param {Blob|null} [about.mask]
   * @param {Entry["group"]} [about.group]
   * @returns {Promise<Entry>} which is watched. Throws ApiError where the server takes no such job
   */
  async send(request, { init = null, mask = null, group = null } = {}) {
    const body = { ...request };
    if (init) body.init_image = await dataUrl(init);
    if (mask) body.mask = await dataUrl(mask);
    const answer = group ? await patient(() => postJob(body)) : await postJob(body);
    const { previews, model, ...kept } = request;
    const entry = {
      id: answer.id, created: Date.now(), model, request: kept, init: init !== null, mask: mask !== null, group,
      removed: [], ...facts(answer),
    };
    await putEntry(entry);
    if (init) await putBlob(`${entry.id}/init`, init);
    if (mask) await putBlob(`${entry.id}/mask`, mask);
    this.watch(entry);
    return entry;
  }

  /**
   * Follow a job until it ends.
   * @param {Entry} entry
   */
  watch(entry) {
    if (!isRunning(entry) || this.#watched.has(entry.id)) return;
    this.#watched.set(entry.id, { entry, stream: null, failed: false, asked: 0 });
    this.#arrange();
    this.#poll();
  }

  /**
   * Stop a job that runs.
   * @param {Entry} entry
   */
  async cancel(entry) {
    await this.#take(entry, await deleteJob(entry.id));
  }

  /**
   * Forget a job and its pictures, here and on the server.
   * @param {Entry} entry
   */
  async remove(entry) {
    this.#removed.add(entry.id);
    this.#leave(entry.id);
    await removeEntry(entry);
    this.#fire("gone", { entry });
    if (entry.id.startsWith("local-")) return;
    try {
      await deleteJob(entry.id, { forget: true });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // else the server has forgotten it, or will in time
    }
  }

  /**
   * Delete one picture of a job that is done, the job with its last one.
   * @param {Entry} entry
   * @param {string} id
   */
  async removePicture(entry, id) {
    if (entry.pictures.length === 1) return this.remove(entry);
    entry.pictures = entry.pictures.filter((picture) => picture.id !== id);
    entry.removed.push(id);
    await removeBlob(id);
    await putEntry(entry);
    this.#fire("change", { entry });
  }

  /**
   * A picture's file: kept here, else the server's.
   * @param {import("./store.js").Picture} picture
   * @returns {Promise<Blob|null>} null: neither has it any more
   */
  async picture({ id, file }) {
    const here = await getBlob(id);
    if (here) return here;
    try {
      const blob = await getPicture(file);
      if (!(await putBlob(id, blob))) this.#fire("full", {});
      return blob;
    } catch (error) {
      if (error instanceof ApiError) return null;
      throw error;
    }
  }

  // --- Watching

  #arrange() {
    const all = [...this.#watched.values()].sort((a, b) => a.entry.place - b.entry.place || a.entry.created - b.entry.created);
    if (document.hidden) for (const one of all) one.stream?.abort();
    if (document.hidden) return;
    const open = all.filter((one) => one.stream).length;
    for (const one of all.filter((other) => !other.stream && !other.failed).slice(0, Math.max(0, STREAMS - open))) this.#stream(one);
  }

  async #stream(one) {
    const { entry } = one;
    one.stream = new AbortController();
    try {
      for await (const { event, data } of jobEvents(entry.id, one.stream.signal)) {
        if (event === "preview") this.#fire("preview", { entry, preview: data });
        else await this.#take(entry, data);
        if (event === "end") break;
      }
    } catch (error) {
      await this.#failed(one, error);
    } finally {
      one.stream = null;
    }
    if (this.#watched.has(entry.id) && !document.hidden && !one.failed) setTimeout(() => this.#arrange(), POLL_MS);
    else this.#arrange();
  }

  async #poll() {
    if (this.#polling) return;
    this.#polling = true;
    while (this.#watched.size > 0) {
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? HIDDEN_POLL_MS : POLL_MS));
      const quiet = [...this.#watched.values()].filter((one) => !one.stream).sort((a, b) => a.asked - b.asked);
      for (const one of quiet.slice(0, POLLED)) {
        one.asked = performance.now();
        try {
          const answer = await getJob(one.entry.id);
          one.failed = false;
          await this.#take(one.entry, answer);
        } catch (error) {
          await this.#failed(one, error);
          if (one.failed) break; // the others would wait for the same server
        }
      }
      this.#arrange();
    }
    this.#polling = false;
  }

  async #failed(one, error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 404) return this.#take(one.entry, { ...one.entry, state: "lost" });
    one.failed = true; // unreachable, draining, a key that isn't given: asked for again in a while
    this.#fire("change", { entry: one.entry });
  }

  /** What the server says of a job, into its entry. Its new pictures are fetched first: they are there when it is told. */
  async #take(entry, answer) {
    const one = this.#watched.get(entry.id);
    const before = `${entry.state} ${entry.pictures.length} ${entry.blocked.length}`;
    const told = facts(answer);
    told.pictures = told.pictures.filter((picture) => !entry.removed.includes(picture.id));
    const known = new Set(entry.pictures.map((picture) => picture.id));
    await Promise.all(told.pictures.filter((picture) => !known.has(picture.id)).map((picture) => this.picture(picture)));
    if (this.#removed.has(entry.id)) return;
    if (!isRunning(entry) && RUNNING.includes(told.state)) return; // asked for before it ended, and come late
    if (told.state === "cancelled" && told.pictures.length < entry.pictures.length) told.pictures = entry.pictures;
    Object.assign(entry, told);
    if (one) one.failed = false;
    if (!isRunning(entry)) this.#leave(entry.id);
    if (before !== `${entry.state} ${entry.pictures.length} ${entry.blocked.length}`) await putEntry(entry);
    this.#fire("change", { entry });
  }

  #leave(id) {
    const one = this.#watched.get(id);
    this.#watched.delete(id);
    if (one?.stream) setTimeout(() => one.stream?.abort(), 0);
  }

  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** Of a job document what an entry keeps. */
function facts(answer) {
  return {
    state: answer.state,
    place: answer.place,
    seconds: answer.seconds,
    steps: answer.steps ?? { done: 0, total: 0 },
    language: answer.language ?? null,
    seeds: answer.seeds ?? [],
    pictures: (answer.pictures ?? []).map(({ id, url, file, seed, width, height }) => ({ id, file: file ?? url.split("/").at(-1), seed, width, height })),
    blocked: answer.blocked ?? [],
    notes: answer.notes ?? [],
    error: answer.error?.message ?? answer.error ?? null,
  };
}

/** Try again while the queue is full, as the server says when. @param {() => Promise<any>} ask */
async function patient(ask) {
  for (let left = FULL_TRIES; ; left -= 1) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 429 || left === 0) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(30, Math.max(1, error.retryAfter ?? 2))));
    }
  }
}

/** @param {Blob} blob @returns {Promise<string>} */
function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
