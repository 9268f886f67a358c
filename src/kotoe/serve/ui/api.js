// Kotoe's HTTP API (/kotoe/v1). Every call that fails throws an ApiError with the server's own words.

import { locale } from "./strings.js";

const BASE = new URL("../kotoe/v1/", import.meta.url);
const KEY = "kotoe.key";

/** @type {(() => Promise<string|null>)|null} */
let askForKey = null;
/** @type {RequestCredentials|null} null: not known yet, see `reached` */
let credentials = null;
/** @type {Promise<string|null>|null} one question for all calls that wait for it */
let asking = null;

/** What went wrong. status 0: the server could not be reached. */
export class ApiError extends Error {
  /**
   * @param {string} message the server's, in the page's language; empty with status 0
   * @param {{status: number, param?: string|null, code?: string|null, retryAfter?: number|null}} about
   */
  constructor(message, { status, param = null, code = null, retryAfter = null }) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.param = param;
    this.code = code;
    /** Seconds after which to try again, or null. */
    this.retryAfter = retryAfter;
  }
}

/**
 * How to get a key from the visitor, where the server wants one; null: they would not say.
 * @param {() => Promise<string|null>} ask
 */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/**
 * @param {string|null} name of one of the server's models; null: its first
 * @returns {Promise<any>} what it can draw, its defaults and limits
 */
export const getModel = (name) => json(name === null ? "model" : `model?${new URLSearchParams({ name })}`);

/**
 * @param {{prompt: string, negative_prompt?: string, language: string|null, model: string}} body
 * @param {AbortSignal} signal
 * @returns {Promise<any>}
 */
export const countTokens = (body, signal) => json("tokens", { ...sent(body), signal });

/**
 * @param {Record<string, any>} body a request
 * @returns {Promise<any>} the job document
 */
export const postJob = (body) => json("jobs", sent(body));

/**
 * @param {string} id
 * @returns {Promise<any>} the job document
 */
export const getJob = (id) => json(`jobs/${id}`);

/**
 * Cancel a job; of one that is done, delete its pictures.
 * @param {string} id
 * @param {{forget?: boolean}} [how] forget: cancel it, and delete all of it
 * @returns {Promise<any>} the job document
 */
export const deleteJob = (id, { forget = false } = {}) => json(`jobs/${id}${forget ? "?forget=true" : ""}`, { method: "DELETE" });

/**
 * The settings that a picture file holds.
 * @param {Blob} file
 * @returns {Promise<{request: Record<string, any>, tool: string, notes: string[]}>}
 */
export const readSettings = (file) =>
  json("settings", { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });

/**
 * @param {string} name of a picture's file
 * @returns {Promise<Blob>} with its record
 */
export const getPicture = async (name) => (await call(`pictures/${name}`)).blob();

/**
 * A job's events, until the last one. Not EventSource: that can't send a key.
 * @param {string} id
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* jobEvents(id, signal) {
  const answer = await call(`jobs/${id}/events`, { signal, headers: { Accept: "text/event-stream" } });
  try {
    for await (const { event, data } of eventsOf(answer.body)) yield { event, data: JSON.parse(data) };
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("", { status: 0 });
  }
}

/**
 * text/event-stream, parsed: `event` and `data` lines; comments and other fields are passed over.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) yield { event, data: data.join("\n") };
        if (line === "") [event, data] = ["message", []];
        else if (line.startsWith("event:")) event = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection is gone already, or goes now
  }
}

/** @param {any} body @returns {RequestInit} */
const sent = (body) => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

/** @param {string} path @param {RequestInit} [init] */
const json = async (path, init) => (await call(path, init)).json();

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} whose status says that it went well
 */
async function call(path, init = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Accept-Language": locale(), ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await reached(new URL(path, BASE), { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("", { status: 0 });
  }
  if (answer.ok) return answer;
  if (answer.status === 401 && askForKey && (await newKey(key))) return call(path, init);
  throw await errorOf(answer);
}

/**
 * A fetch without the browser's own credentials: with them a 401 makes some browsers ask for a name and a password. A
 * proxy in front of the server may want them, though: what comes back then isn't the server's, and they are sent.
 * @param {URL} address
 * @param {RequestInit} init
 */
async function reached(address, init) {
  if (credentials) return fetch(address, { ...init, credentials });
  const plain = await fetch(address, { ...init, credentials: "omit" }).catch((error) => error);
  const ours = plain instanceof Response && !plain.redirected && /json/.test(plain.headers.get("Content-Type") ?? "");
  if (!ours && plain.name !== "AbortError") {
    const answer = await fetch(address, { ...init, credentials: "same-origin" });
    if (answer.ok) credentials = "same-origin";
    return answer;
  }
  if (!ours) throw plain;
  credentials = "omit";
  return plain;
}

/** Whether there is another key now than the one that was refused. @param {string|null} refused */
async function newKey(refused) {
  if (sessionStorage.getItem(KEY) === refused) {
    asking ??= askForKey().finally(() => (asking = null));
    const key = await asking;
    if (key === null) return false;
    sessionStorage.setItem(KEY, key);
  }
  return true;
}

/** @param {Response} answer */
async function errorOf(answer) {
  const after = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  const about = { status: answer.status, retryAfter: Number.isFinite(after) ? after : null };
  try {
    const { error } = await answer.json();
    return new ApiError(error.message, { ...about, param: error.param, code: error.code });
  } catch {
    return new ApiError(`HTTP ${answer.status}`, about); // a proxy's page, not our server's
  }
}
