// The patch on the bench: what the viewer shows, what is drawn on it, undo, and the copy that survives a reload.

import { say } from "./dialogs.js";
import { Drawing } from "./drawing.js";
import { Frame } from "./frame.js";
import { keep } from "./keep.js";
import { Objects } from "./objects.js";

const SPOTS = 50;

export class Bench {
  constructor(viewer, info) {
    this.viewer = viewer;
    this.kind = info.kind;
    this.owner = [info.campaign, info.annotator];
    this.patch = null;
    this.saving = 0;
    this.onChange = () => {};
    this.seconds = () => 0;
    viewer.onStroke = () => this.patch && this.take(viewer.labels);
  }

  get isOpen() { return this.patch !== null; }
  get labels() { return this.patch.drawing.labels; }
  get frame() { return this.patch.frame; }

  // view: what readNpz made of a view.npz; keeps: whether the drawing is kept in this browser
  async open(view, keeps) {
    this.close();
    const { about } = view;
    const key = keeps ? [...this.owner, about.ticket.ticket_id, about.start] : null;
    const box = (given) => ({ offset: given.offset_zyx, shape: given.shape_zyx });
    const frame = new Frame(box(about.context), box(about.ticket.box), about.spacing_um_zyx);
    const objects = this.kind === "instance" ? new Objects() : null;
    const drawn = (labels) => (objects ? objects.drawn(labels.classes.voxels, labels.instances.voxels) : labels.classes.voxels);
    const start = drawn(view);
    const layer = (array, channels = 1) => array && { voxels: array.voxels, shape: [...frame.shapeXyz, channels] };
    const channels = view.image.shape[0];
    await this.viewer.show(frame, {
      image: layer(view.image, channels), prediction: layer(view.prediction), uncertainty: layer(view.uncertainty),
    });
    const drawing = new Drawing(frame, start);
    this.patch = { key, frame, drawing, start, objects, drawn, channels, ticket: about.ticket, view, channel: 0, spot: -1 };
    this.viewer.labels = start;
    this.#levels();
    return (await this.#restore(key)) ?? 0;
  }

  // A drawing that was kept comes back; returns the seconds that went into it.
  async #restore(key) {
    const kept = key && (await keep.load(key).catch(() => null));
    if (!kept || kept.labels.length !== this.labels.length) return null;
    if (this.#put(kept.labels)) say("Your drawing from before is back.");
    return kept.seconds;
  }

  close() {
    this.patch = null;
    this.viewer.close();
  }

  // Takes what was drawn; a stroke that changed nothing is none.
  take(labels) {
    if (!this.patch.drawing.take(labels)) return false;
    this.#changed();
    return true;
  }

  #put(labels) {
    if (!labels || !this.patch.drawing.take(labels)) return false;
    this.#redrawn();
    return true;
  }

  #redrawn() {
    this.viewer.labels = this.labels;
    this.#changed();
  }

  #changed() {
    const { key } = this.patch;
    if (key) this.#save(key);
    this.onChange();
  }

  async #save(key) {
    this.saving += 1;
    await keep.save(key, this.labels, this.seconds()).catch(() => say("This browser keeps no copy of your drawing.", "bad"));
    this.saving -= 1;
  }

  undo() { if (this.patch?.drawing.undo()) this.#redrawn(); }
  redo() { if (this.patch?.drawing.redo()) this.#redrawn(); }
  restart() { if (this.patch) this.#put(this.patch.start); }
  load(labels) { this.#put(this.patch.drawn(labels)); }
  forget() { if (this.patch?.key) keep.drop(this.patch.key).catch(() => {}); }

  fill(at, value, plane) { this.#put(this.patch.drawing.filled(at, value, plane)); }

  // tolerance as a share of the grey levels on show
  grow(at, value, plane, share) {
    const [low, high] = this.viewer.levels;
    this.#put(this.patch.drawing.grown(at, value, plane, this.#image(), share * (high - low)));
  }

  // The channel on show, over the patch.
  #image() {
    const { frame, view, channel } = this.patch;
    const size = frame.shapeXyz.reduce((product, n) => product * n);
    return frame.inner(view.image.voxels.subarray(channel * size, (channel + 1) * size));
  }

  // Black and white are those of the patch, not of what surrounds it.
  #levels() { this.viewer.levels = range(this.#image()); }

  channel(number) {
    this.patch.channel = number;
    this.viewer.channel(number);
    this.#levels();
  }

  // To the most uncertain spot in the patch; again, to the next one that lies elsewhere.
  jump() {
    const { frame, view } = this.patch ?? {};
    if (!view?.uncertainty) return;
    this.patch.spots ??= peaks(frame, frame.inner(view.uncertainty.voxels));
    if (!this.patch.spots.length) return;
    this.patch.spot = (this.patch.spot + 1) % this.patch.spots.length;
    this.viewer.moveTo(this.patch.spots[this.patch.spot]);
  }

  // What goes to the server.
  get files() { return this.patch.objects ? this.patch.objects.files(this.labels) : { classes: this.labels }; }
}

// Grey levels that all but half a percent at either end lie between, from a sample of at most 100,000 voxels.
function range(image) {
  const step = Math.ceil(image.length / 1e5);
  const sample = Float64Array.from({ length: Math.floor(image.length / step) }, (_, i) => image[i * step]).sort();
  const at = (share) => sample[Math.round(share * (sample.length - 1))];
  const [low, high] = [at(0.005), at(0.995)];
  return high > low ? [low, high] : [sample[0], Math.max(sample.at(-1), sample[0] + 1)];
}

// The highest voxels, each at least an eighth of the patch away from those before it; as [z, y, x].
function peaks(frame, values) {
  const order = Uint32Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  const apart = frame.box.shape.map((n) => Math.max(1, n / 8));
  const found = [];
  for (const index of order) {
    const here = frame.at(index);
    if (values[index] <= 0 || found.length >= SPOTS) break;
    if (found.every((other) => other.some((n, axis) => Math.abs(n - here[axis]) >= apart[axis]))) found.push(here);
  }
  return found;
}
