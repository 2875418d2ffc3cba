// A reviewer's work: what waits, its versions against each other, accept, reject, fix.

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
  constructor(bench, opened) {
    Object.assign(this, { bench, opened, ticket: null, versions: [], shown: null });
    this.clock = new Clock(async () => null, () => {}); // a review has no lease to keep
    $("accept").onclick = () => this.#judge(() => api.accept(this.ticket.ticket_id, this.shown), "Accepted.");
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
      Object.assign(this, { ticket, versions, shown: versions.at(-1).version });
      await this.bench.open(view, false);
      this.clock.start(null);
      say();
    } catch (error) {
      this.leave();
      complain(error, { "Try again": () => this.open(ticket) });
    }
    this.#buttons();
    this.opened();
  }

  async show(version) {
    try {
      this.bench.load(await api.versionLabels(this.ticket.ticket_id, version));
      this.shown = version;
      this.#buttons();
    } catch (error) { complain(error); }
  }

  #flip() {
    const at = this.versions.findIndex((record) => record.version === this.shown);
    const next = this.versions[(at + 1) % this.versions.length];
    if (next.version !== this.shown) this.show(next.version);
  }

  #buttons() {
    $("judge").disabled = !this.ticket;
    $("versions").replaceChildren(...(this.ticket ? this.versions : []).map((record) => element("button", {
      textContent: `${record.version}: ${record.annotator}`, title: `${record.tool}, ${record.verdict}`,
      className: record.version === this.shown ? "on" : "", onclick: () => this.show(record.version),
    })));
  }

  async #reject() {
    const comment = await askText("What should the annotator change?", "the nucleus at the left goes on in plane 7", "Reject");
    if (comment) await this.#judge(() => api.reject(this.ticket.ticket_id, comment), "Sent back.");
  }

  #fix() { return api.fix(this.ticket.ticket_id, this.bench.files, this.bench.frame, Math.round(this.clock.active)); }

  async #judge(action, done) {
    try {
      await action();
      this.leave();
      await this.list();
      say(done);
    } catch (error) { complain(error); }
  }

  leave() {
    Object.assign(this, { ticket: null, versions: [], shown: null });
    this.clock.stop();
    this.bench.close();
    this.#buttons();
    this.opened();
  }
}
