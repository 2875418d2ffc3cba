// Time of work without idle time, the heartbeat that reports it, and the time until the lease ends.

const IDLE_SECONDS = 60;
const BEAT_SECONDS = 30;

export class Clock {
  // beat(seconds) keeps the lease and returns when it expires; show(active, left) is called every second
  constructor(beat, show) {
    this.beat = beat;
    this.show = show;
    this.running = false;
    for (const kind of ["mousemove", "mousedown", "wheel", "keydown", "touchstart"])
      window.addEventListener(kind, () => { this.lastActivity = Date.now(); }, { passive: true, capture: true });
    setInterval(() => this.#tick(), 1000);
  }

  start(expires, seconds = 0) {
    Object.assign(this, { active: seconds, unsent: 0, sinceBeat: 0, running: true, expires: Date.parse(expires) });
    this.lastActivity = this.last = Date.now();
  }

  stop() { this.running = false; }

  // Seconds that no heartbeat has reported; they go with the submission.
  get rest() { return Math.round(this.unsent); }

  #tick() {
    if (!this.running) return;
    const now = Date.now();
    const elapsed = Math.min((now - this.last) / 1000, 5); // a suspended laptop does not work
    this.last = now;
    if (now - this.lastActivity < IDLE_SECONDS * 1000 && document.visibilityState === "visible") {
      this.active += elapsed;
      this.unsent += elapsed;
    }
    this.sinceBeat += elapsed;
    if (this.sinceBeat >= BEAT_SECONDS && this.unsent > 0) this.send().catch(() => {}); // beat() shows the error
    this.show(this.active, (this.expires - now) / 1000);
  }

  // Without activity there is no heartbeat: an abandoned lease runs out.
  async send() {
    const seconds = this.unsent;
    [this.unsent, this.sinceBeat] = [0, 0];
    try { this.expires = Date.parse(await this.beat(seconds)); } catch (error) { this.unsent += seconds; throw error; }
  }
}
