// Time of work with idle cut out, the heartbeat that reports it, and how long the lease still runs.

const IDLE_SECONDS = 60;
const BEAT_SECONDS = 30;

export class Clock {
  // beat(seconds) keeps the lease and returns when it expires; show(active, left) is called every second
  constructor(beat, show) {
    this.beat = beat;
    this.show = show;
    this.running = false;
    for (const kind of ["mousemove", "mousedown", "wheel", "keydown", "touchstart"])
      window.addEventListener(kind, () => { this.touched = Date.now(); }, { passive: true, capture: true });
    setInterval(() => this.#tick(), 1000);
  }

  start(expires, seconds = 0) {
    Object.assign(this, { active: seconds, unsent: 0, waited: 0, running: true, expires: Date.parse(expires) });
    this.touched = this.last = Date.now();
  }

  stop() { this.running = false; }

  // Seconds that no heartbeat has reported; they go with the submission.
  get rest() { return Math.round(this.unsent); }

  #tick() {
    if (!this.running) return;
    const now = Date.now();
    const passed = Math.min((now - this.last) / 1000, 5); // a suspended laptop does not work
    this.last = now;
    if (now - this.touched < IDLE_SECONDS * 1000 && document.visibilityState === "visible") {
      this.active += passed;
      this.unsent += passed;
    }
    this.waited += passed;
    if (this.waited >= BEAT_SECONDS && this.unsent > 0) this.send().catch(() => {}); // the beat said what is wrong
    this.show(this.active, (this.expires - now) / 1000);
  }

  // Nobody at work, no heartbeat: a lease left lying runs out.
  async send() {
    const seconds = this.unsent;
    [this.unsent, this.waited] = [0, 0];
    try { this.expires = Date.parse(await this.beat(seconds)); } catch (error) { this.unsent += seconds; throw error; }
  }
}
