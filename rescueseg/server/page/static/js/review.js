// A reviewer's work: list the tickets that wait, compare versions, accept, reject, fix.

import { api } from "./api.js";
import { Clock } from "./clock.js";
import { askText, complain, element, say } from "./dialogs.js";

const $ = (id) => document.getElementById(id);

function facts(ticket) {
  const agreement = ticket.agreement === null ? "" : `agreement ${ticket.agreement.toFixed(2)}`;
  const purpose = ticket.purpose === "pool" ? "" : `holdout, ${ticket.purpose}`;
  return [ticket.volume_id, ticket.ticket_id, purpose, agreement].filter(Boolean).join(" · ");
}

export class Review {
  constructor(editor, onChange) {
    Object.assign(this, { editor, onChange, ticket: null, versions: [], version: null });
    this.clock = new Clock(async () => null, () => {}); // a review has no lease to keep
    $("accept").onclick = () => this.#judge(() => api.accept(this.ticket.ticket_id, this.version), "Accepted.");
    $("fix").onclick = () => this.#judge(() => this.#fix(), "Fixed and accepted.");
    $("reject").onclick = () => this.#reject();
  }

  keys() {
    return [[["A"], "In review: the next version, back and forth (A/B)", () => this.ticket && this.#flip()]];
  }

  async list() {
    try {
      const waiting = await api.toReview();
      $("waiting").textContent = waiting.length ? `(${waiting.length})` : "";
      $("tickets").replaceChildren(...waiting.map((ticket) => element("li", {}, element("button", {
        textContent: facts(ticket), onclick: () => this.open(ticket),
        className: ticket.ticket_id === this.ticket?.ticket_id ? "on" : "",
      }))));
      if (!waiting.length) say("Nothing waits for a review.");
    } catch (error) { complain(error); }
  }

  async open(ticket) {
    say("Loading the patch …");
    try {
      const [view, versions] = await Promise.all([api.reviewView(ticket.ticket_id), api.versions(ticket.ticket_id)]);
      Object.assign(this, { ticket, versions, version: versions.at(-1).version });
      await this.editor.open(view, false);
      this.clock.start(null);
      say();
    } catch (error) {
      this.close();
      complain(error, { "Try again": () => this.open(ticket) });
    }
    this.#buttons();
    this.onChange();
  }

  async show(version) {
    try {
      this.editor.load(await api.versionLabels(this.ticket.ticket_id, version));
      this.version = version;
      this.#buttons();
    } catch (error) { complain(error); }
  }

  #flip() {
    const at = this.versions.findIndex((record) => record.version === this.version);
    const next = this.versions[(at + 1) % this.versions.length];
    if (next.version !== this.version) this.show(next.version);
  }

  #buttons() {
    $("judge").disabled = !this.ticket;
    $("versions").replaceChildren(...(this.ticket ? this.versions : []).map((record) => element("button", {
      textContent: `${record.version}: ${record.annotator}`, title: `${record.tool}, ${record.verdict}`,
      className: record.version === this.version ? "on" : "", onclick: () => this.show(record.version),
    })));
  }

  async #reject() {
    const comment = await askText("What should the annotator change?", "the nucleus at the left goes on in plane 7", "Reject");
    if (comment) await this.#judge(() => api.reject(this.ticket.ticket_id, comment), "Sent back.");
  }

  #fix() { return api.fix(this.ticket.ticket_id, this.editor.files, this.editor.frame, Math.round(this.clock.active)); }

  async #judge(action, message) {
    try {
      await action();
      this.close();
      await this.list();
      say(message);
    } catch (error) { complain(error); }
  }

  close() {
    Object.assign(this, { ticket: null, versions: [], version: null });
    this.clock.stop();
    this.editor.close();
    this.#buttons();
    this.onChange();
  }
}
