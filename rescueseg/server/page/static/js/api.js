// The server's /api/v1, for the person at this page.

import { labelFile } from "./nifti.js";
import { readNpz } from "./npz.js";

const TOOL = "browser";
const ROOT = new URL("api/v1/", document.baseURI);
const KEY = "rescueseg-person";

// An error of the server: what, where, todo as everywhere; kind is the exception's name.
export class ServerError extends Error {
  constructor(status, { error = "", what = `the server answered ${status}`, where = "", todo = "", warnings = [] } = {}) {
    super(what);
    Object.assign(this, { status, kind: error, where, todo, warnings });
  }
}

export const person = {
  get() { return JSON.parse(sessionStorage.getItem(KEY) ?? "{}"); },
  set(token, name) { sessionStorage.setItem(KEY, JSON.stringify({ token, name })); },
  forget() { sessionStorage.removeItem(KEY); },
};

function headers() {
  const { token, name } = person.get();
  if (token) return { Authorization: `Bearer ${token}` };
  return name ? { "X-Rescueseg-Annotator": encodeURIComponent(name) } : {};
}

async function ask(path, { method = "GET", json, body, query = {}, signal } = {}) {
  const url = new URL(path, ROOT);
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
  const allHeaders = json === undefined ? headers() : { ...headers(), "Content-Type": "application/json" };
  const reply = await fetch(url, {
    method, headers: allHeaders, body: json === undefined ? body : JSON.stringify(json), signal,
  }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { what: "the server cannot be reached", todo: "Your drawing is kept here; try again" });
  });
  if (!reply.ok) throw new ServerError(reply.status, await reply.json().catch(() => ({})));
  return reply;
}

const read = async (path, options) => {
  const reply = await ask(path, options);
  return reply.status === 204 ? null : reply.json();
};
const post = (path, json = {}) => read(path, { method: "POST", json });
const arrays = async (path, signal) => readNpz(await (await ask(path, { signal })).arrayBuffer());

// labels: the patch as {classes} or, where objects are numbered, {instances, ignore}
async function upload(path, labels, frame, query = {}) {
  const form = new FormData();
  form.append("labels", await labelFile(labels.instances ?? labels.classes, frame), "labels.nii.gz");
  if (labels.ignore) form.append("ignore", await labelFile(labels.ignore, frame), "ignore.nii.gz");
  return read(path, { method: "POST", body: form, query });
}

export const api = {
  info: () => read("info"),
  leases: () => read("leases"),
  next: (filters) => post("tickets/next", filters),
  beat: (lease, seconds) => post(`leases/${lease}/heartbeat`, { active_seconds: seconds }),
  view: (lease, signal) => arrays(`leases/${lease}/view.npz`, signal),
  check: (lease, labels, frame) => upload(`leases/${lease}/check`, labels, frame),
  submit: (lease, labels, frame, seconds, override) =>
    upload(`leases/${lease}/submit`, labels, frame, { tool: TOOL, active_seconds: seconds, override }),
  skip: (lease, reason) => post(`leases/${lease}/skip`, { reason }),
  release: (lease) => post(`leases/${lease}/release`),
  toReview: () => read("review"),
  reviewView: (ticket) => arrays(`tickets/${ticket}/view.npz`),
  versions: (ticket) => read(`tickets/${ticket}/versions`),
  versionLabels: (ticket, version) => arrays(`tickets/${ticket}/versions/${version}.npz`),
  history: (ticket) => read(`tickets/${ticket}/history`),
  accept: (ticket, version) => post(`tickets/${ticket}/accept`, { version }),
  reject: (ticket, comment) => post(`tickets/${ticket}/reject`, { comment }),
  fix: (ticket, labels, frame, seconds) =>
    upload(`tickets/${ticket}/fix`, labels, frame, { tool: TOOL, active_seconds: seconds }),
};

// Calls onChange() on every change of the queue, for ever; EventSource could not send the token.
export async function follow(onChange, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const allHeaders = last === null ? headers() : { ...headers(), "Last-Event-ID": last };
      const reply = await fetch(new URL("events", ROOT), { headers: allHeaders, signal });
      if (!reply.ok) return;
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (text + value).split(/\r?\n\r?\n/);
        text = events.pop();
        const numbers = events.map((event) => /^id: ?(\d+)/m.exec(event)?.[1]).filter(Boolean);
        last = numbers.at(-1) ?? last;
        if (numbers.length) onChange();
      }
    } catch { /* the server went away: ask again */ }
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
}
