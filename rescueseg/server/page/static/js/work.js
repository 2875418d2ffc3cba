// An annotator's work: take a patch, draw, hand it in, skip it or give it back.

import { api } from "./api.js";
import { ask, askText, complain, element, say } from "./dialogs.js";
import { Clock } from "./clock.js";
import { drafts } from "./drafts.js";

const $ = (id) => document.getElementById(id);
const SOON_SECONDS = 300;

export class Work {
  constructor(editor, onChange, onSubmit) {
    Object.assign(this, { editor, onChange, onSubmit, lease: null, busy: false });
    this.clock = new Clock((seconds) => this.#beat(seconds), (active, left) => this.#time(active, left));
    editor.seconds = () => this.clock.active ?? 0;
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

  // Runs one action at a time; an error is shown and leaves everything as it was.
  async #once(action, retry) {
    if (this.busy) return;
    this.busy = true;
    try { await action(); } catch (error) { this.#failed(error, retry); } finally { this.busy = false; }
  }

  #failed(error, retry) {
    const isGone = ["LeaseExpiredError", "NotYourLeaseError", "TicketNotFoundError"].includes(error.kind);
    const actions = isGone && this.lease ? { "Take the patch again": () => this.#retake() } : retry ? { "Try again": retry } : {};
    complain(error, actions);
  }

  filters() {
    const entries = [...new FormData($("filters"))].filter(([, value]) => value !== "");
    return Object.fromEntries(entries.map(([key, value]) => [key, key === "generation" ? Number(value) : value]));
  }

  next(filters = this.filters()) {
    return this.#once(async () => {
      say("Asking for a patch …");
      const lease = await api.next(filters);
      if (lease) await this.#open(lease);
      else say(Object.keys(filters).length ? "No patch like that is waiting." : "Nothing is waiting for you now.");
    }, () => this.next(filters));
  }

  // Opens the leased patch, after a reload; else offers a draft from under a lease that ran out.
  resume() {
    return this.#once(async () => {
      const [lease] = await api.leases();
      if (lease) { await this.#open(lease); return; }
      const [draft] = await drafts.keys(...this.editor.owner).catch(() => []);
      if (!draft) { say("Press “Next patch” to begin."); return; }
      say(`Your drawing on ${draft[2]} was not handed in.`, "", {
        "Take the patch again": () => this.next({ ticket_id: draft[2] }),
        "Drop the drawing": () => drafts.drop(draft).then(() => this.resume(), complain),
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
      const seconds = await this.editor.open(view, true);
      this.clock.start(lease.expires_at, seconds);
    } catch (error) {
      this.editor.close();
      complain(error, {
        "Try again": () => this.#once(() => this.#open(lease)),
        "Skip it": () => this.skip(`could not be loaded: ${error.message}`),
        "Give it back": () => this.release(),
      });
    }
    this.onChange();
    this.#buttons();
  }

  #buttons() {
    $("hand").disabled = !this.lease;
    $("submit").disabled = !this.editor.isOpen;
    $("next").disabled = this.lease !== null;
  }

  submit() {
    return this.#once(async () => {
      const { lease_id: lease } = this.lease;
      const { files, frame } = this.editor;
      say("Checking …");
      const warnings = await api.check(lease, files, frame);
      say();
      if (warnings.length && !(await this.#override(warnings))) return;
      const annotation = await api.submit(lease, files, frame, this.clock.rest, warnings.length > 0);
      this.#finish();
      this.onSubmit(annotation);
      say(`Handed in: ${annotation.voxels_corrected.toLocaleString("en")} voxels corrected, ${annotation.verdict}.`, "",
        { "Next patch": () => this.next() });
    });
  }

  async #override(warnings) {
    const rows = warnings.map((warning) => {
      const row = element("li", {}, warning.message);
      if (warning.at_zyx) {
        const show = () => this.editor.viewer.moveTo(warning.at_zyx);
        row.append(" ", element("button", { type: "button", textContent: "show", onclick: show }));
      }
      return row;
    });
    return ask("Is this as you mean it?", [element("ul", { id: "odd" }, ...rows)], { "Back to it": null, "Submit all the same": true });
  }

  async skip(reason) {
    const why = reason ?? (await askText("Why can nobody annotate this patch?", "out of focus, damaged, …", "Skip"));
    if (why) await this.#once(async () => { await api.skip(this.lease.lease_id, why); this.#finish(); say("Skipped."); });
  }

  async release() {
    const changed = this.editor.isOpen && this.editor.labels.some((value, at) => value !== this.editor.patch.start[at]);
    const text = "What you drew on it is lost.";
    if (changed && !(await ask("Give the patch back?", [text], { Cancel: null, "Give it back": true }))) return;
    await this.#once(async () => { await api.release(this.lease.lease_id); this.#finish(); say("Given back."); });
  }

  #finish() {
    this.editor.forget();
    this.close();
  }

  close() {
    this.lease = null;
    this.clock.stop();
    this.editor.close();
    $("lease").textContent = $("active").textContent = "";
    this.onChange();
    this.#buttons();
  }

  // After the lease ran out: leases the same ticket again, if nobody else has it, and puts the drawing back.
  #retake() {
    return this.#once(async () => {
      const { lease, editor } = this;
      const labels = editor.isOpen ? editor.labels.slice() : null;
      const again = await api.next({ ticket_id: lease.ticket.ticket_id });
      if (!again) throw new Error("somebody else has the patch now");
      await this.#open(again);
      if (labels && editor.isOpen) { editor.take(labels); editor.viewer.labels = labels; }
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
