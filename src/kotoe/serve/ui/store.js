// What this browser keeps: entries (a job, its settings, how it went) and blobs (pictures). IndexedDB; where the browser
// allows none (some private windows), memory, and `kept` says so.

const NAME = `kotoe${new URL("..", import.meta.url).pathname}`;

/**
 * @typedef {object} Picture
 * @property {string} id
 * @property {string} file its name on the server
 * @property {number} seed
 * @property {number} width pixels
 * @property {number} height pixels
 *
 * @typedef {object} Entry
 * @property {string} id the job's; "local-..." where the server took none
 * @property {number} created ms since 1970
 * @property {string} model name
 * @property {Record<string, any>} request fields of POST jobs, without pictures
 * @property {boolean} init whether a blob `${id}/init` is the picture it started from
 * @property {boolean} mask whether a blob `${id}/mask` says where to paint
 * @property {{id: string, order: number}|null} group side by side with others
 * @property {"waiting"|"drawing"|"done"|"failed"|"cancelled"|"lost"} state
 * @property {number} place
 * @property {number|null} seconds
 * @property {{done: number, total: number}} steps
 * @property {string|null} language
 * @property {number[]} seeds
 * @property {Picture[]} pictures
 * @property {string[]} removed ids of pictures that the visitor deleted here
 * @property {{seed: number, reason: string}[]} blocked
 * @property {string[]} notes the server's, of what was done otherwise than one may think
 * @property {string|null} error the server's words
 */

/** @type {Promise<IDBDatabase|null>|null} */
let opening = null;
const memory = { entries: new Map(), blobs: new Map() };

/** @returns {Promise<boolean>} whether what is put stays after the page is closed */
export const kept = async () => (await database()) !== null;

/** @returns {Promise<Entry[]>} newest first */
export async function allEntries() {
  const found = (await run("entries", "readonly", (store) => store.getAll())) ?? [...memory.entries.values()];
  return found.sort((a, b) => b.created - a.created);
}

/** @param {Entry} entry */
export async function putEntry(entry) {
  if (await kept()) await run("entries", "readwrite", (store) => store.put(structuredClone(entry)));
  else memory.entries.set(entry.id, entry);
}

/**
 * Forget an entry and its pictures.
 * @param {Entry} entry
 */
export async function removeEntry(entry) {
  memory.entries.delete(entry.id);
  await run("entries", "readwrite", (store) => store.delete(entry.id));
  for (const key of [...entry.pictures.map((p) => p.id), `${entry.id}/init`, `${entry.id}/mask`]) await removeBlob(key);
}

/**
 * @param {string} key a picture's id, or an entry's with /init or /mask
 * @returns {Promise<Blob|null>}
 */
export async function getBlob(key) {
  return (await run("blobs", "readonly", (store) => store.get(key))) ?? memory.blobs.get(key) ?? null;
}

/**
 * @param {string} key
 * @param {Blob} blob
 * @returns {Promise<boolean>} false: the disk is full; the blob is there until the page is closed
 */
export async function putBlob(key, blob) {
  try {
    if (await kept()) {
      await run("blobs", "readwrite", (store) => store.put(blob, key));
      return true;
    }
  } catch {
    memory.blobs.set(key, blob);
    return false;
  }
  memory.blobs.set(key, blob);
  return true;
}

/** @param {string} key */
export async function removeBlob(key) {
  memory.blobs.delete(key);
  await run("blobs", "readwrite", (store) => store.delete(key));
}

/** @returns {Promise<IDBDatabase|null>} */
function database() {
  opening ??= new Promise((resolve) => {
    let asked;
    try {
      asked = indexedDB.open(NAME, 1);
    } catch {
      resolve(null);
      return;
    }
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("entries", { keyPath: "id" });
      asked.result.createObjectStore("blobs");
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => resolve(null);
  });
  return opening;
}

/**
 * One request in a transaction of its own; undefined without a database.
 * @param {"entries"|"blobs"} name
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} ask
 */
async function run(name, mode, ask) {
  const base = await database();
  if (base === null) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = base.transaction(name, mode);
    const request = ask(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}
