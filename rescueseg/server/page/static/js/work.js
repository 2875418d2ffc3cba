// An annotator's work: take a patch, draw, hand it in, skip it or give it back.

import { api } from "./api.js";
import { ask, askText, complain, element, say } from "./dialogs.js";
import { Clock } from "./clock.js";
import { keep } from "./keep.js";

const $ = (id) => document.getElementById(id);
const SOON_SECONDS = 300;

export class Work {
  constructor(bench, opened, handedIn) {
    Object.assign(this, { bench, opened, handedIn, lease: null, busy: false });
    this.clock = new Clock((seconds) => this.#beat(seconds), (active, left) => this.#time(active, left));
    bench.seconds = () => this.clock.active ?? 0;
    $("next").onclick = () => this.next();
    $("submit").onclick = () => this.submit();
    $("skip").onclick = () => this.skip();
    $("release").onclick = () => this.release();
  }

  keys() {
    return [
      [["N"], "Next patch", () => !this.lease && this.next()],
      [["Ctrl+Enter"], "Submit", () => this.lease && this.submit()],
      [["K"], "Skip, with a reason", () => this.lease && this.skip()],
    ];
  }

  // One thing at a time; errors are said and leave everything as it was.
  async #once(action, retry) {
    if (this.busy) return;
    this.busy = true;
    try { await action(); } catch (error) { this.#failed(error, retry); } finally { this.busy = false; }
  }

  #failed(error, retry) {
    const gone = ["LeaseExpiredError", "NotYourLeaseError", "TicketNotFoundError"].includes(error.kind);
    const again = gone && this.lease ? { "Take the patch again": () => this.#retake() } : retry ? { "Try again": retry } : {};
    complain(error, again);
  }

  filters() {
    const entries = [...new FormData($("filters"))].filter(([, value]) => value !== "");
    return Object.fromEntries(entries.map(([key, value]) => [key, key === "generation" ? Number(value) : value]));
  }

  next(wanted = this.filters()) {
    return this.#once(async () => {
      say("Asking for a patch …");
      const lease = await api.next(wanted);
      if (lease) await this.#open(lease);
      else say(Object.keys(wanted).length ? "No patch like that is waiting." : "Nothing is waiting for you now.");
    }, () => this.next(wanted));
  }

  // What one holds already, after a reload; else what one drew under a lease that ran out.
  resume() {
    return this.#once(async () => {
      const [lease] = await api.held();
      if (lease) { await this.#open(lease); return; }
      const [kept] = await keep.keys(...this.bench.owner).catch(() => []);
      if (!kept) { say("Press “Next patch” to begin."); return; }
      say(`Your drawing on ${kept[2]} was not handed in.`, "", {
        "Take the patch again": () => this.next({ ticket_id: kept[2] }),
        "Drop the drawing": () => keep.drop(kept).then(() => this.resume(), complain),
      });
    });
  }

  async #open(lease) {
    this.lease = lease;
    this.#buttons();
    say("Loading the patch …");
    try {
      const view = await api.view(lease.lease_id);
      say();
      const seconds = await this.bench.open(view, true);
      this.clock.start(lease.expires_at, seconds);
    } catch (error) {
      this.bench.close();
      complain(error, {
        "Try again": () => this.#once(() => this.#open(lease)),
        "Skip it": () => this.skip(`could not be loaded: ${error.message}`),
        "Give it back": () => this.release(),
      });
    }
    this.opened();
    this.#buttons();
  }

  #buttons() {
    $("hand").disabled = !this.lease;
    $("submit").disabled = !this.bench.isOpen;
    $("next").disabled = this.lease !== null;
  }

  submit() {
    return this.#once(async () => {
      const { lease_id: lease } = this.lease;
      const { files, frame } = this.bench;
      say("Checking …");
      const odd = await api.check(lease, files, frame);
      say();
      if (odd.length && !(await this.#override(odd))) return;
      const done = await api.submit(lease, files, frame, this.clock.rest, odd.length > 0);
      this.#over();
      this.handedIn(done);
      say(`Handed in: ${done.voxels_corrected.toLocaleString("en")} voxels corrected, ${done.verdict}.`, "",
        { "Next patch": () => this.next() });
    });
  }

  async #override(odd) {
    const rows = odd.map((warning) => {
      const row = element("li", {}, warning.message);
      if (warning.at_zyx) {
        const show = () => this.bench.viewer.moveTo(warning.at_zyx);
        row.append(" ", element("button", { type: "button", textContent: "show", onclick: show }));
      }
      return row;
    });
    return ask("Is this as you mean it?", [element("ul", { id: "odd" }, ...rows)], { "Back to it": null, "Submit all the same": true });
  }

  async skip(reason) {
    const why = reason ?? (await askText("Why can nobody annotate this patch?", "out of focus, damaged, …", "Skip"));
    if (why) await this.#once(async () => { await api.skip(this.lease.lease_id, why); this.#over(); say("Skipped."); });
  }

  async release() {
    const changed = this.bench.isOpen && this.bench.labels.some((value, at) => value !== this.bench.patch.start[at]);
    const text = "What you drew on it is lost.";
    if (changed && !(await ask("Give the patch back?", [text], { Cancel: null, "Give it back": true }))) return;
    await this.#once(async () => { await api.release(this.lease.lease_id); this.#over(); say("Given back."); });
  }

  #over() {
    this.bench.forget();
    this.leave();
  }

  leave() {
    this.lease = null;
    this.clock.stop();
    this.bench.close();
    $("lease").textContent = $("active").textContent = "";
    this.opened();
    this.#buttons();
  }

  // The lease ran out: the same ticket again, if nobody else has it, with the drawing put back.
  #retake() {
    return this.#once(async () => {
      const { lease, bench } = this;
      const kept = bench.isOpen ? bench.labels.slice() : null;
      const again = await api.next({ ticket_id: lease.ticket.ticket_id });
      if (!again) throw new Error("somebody else has the patch now");
      await this.#open(again);
      if (kept && bench.isOpen) { bench.take(kept); bench.viewer.labels = kept; }
    });
  }

  async #beat(seconds) {
    try {
      this.lease = await api.beat(this.lease.lease_id, seconds);
      return this.lease.expires_at;
    } catch (error) {
      this.#failed(error);
      throw error;
    }
  }

  #time(active, left) {
    const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    $("active").textContent = `at work ${clock(active)}`;
    $("lease").textContent = left > 0 ? `lease ${clock(left)}` : "lease over";
    $("lease").classList.toggle("warn", left < SOON_SECONDS);
  }
}
