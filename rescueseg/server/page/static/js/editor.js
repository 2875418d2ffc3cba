// The open patch: its image in the viewer, the drawing on it, undo, and the draft that survives a reload.

import { say } from "./dialogs.js";
import { Drawing } from "./drawing.js";
import { Frame } from "./frame.js";
import { drafts } from "./drafts.js";
import { Objects } from "./objects.js";

const SPOTS = 50;

export class Editor {
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

  // view: what readNpz read from a view.npz; keepsDraft: whether the drawing is kept in this browser.
  // Returns the seconds of work in the draft, 0 without one.
  async open(view, keepsDraft) {
    this.close();
    const { about } = view;
    const key = keepsDraft ? [...this.owner, about.ticket.ticket_id, about.start] : null;
    const box = ({ offset_zyx: offset, shape_zyx: shape }) => ({ offset, shape });
    const frame = new Frame(box(about.context), box(about.ticket.box), about.spacing_um_zyx);
    const objects = this.kind === "instance" ? new Objects() : null;
    const toDrawing = (labels) => (objects ? objects.toDrawing(labels.classes.voxels, labels.instances.voxels) : labels.classes.voxels);
    const start = toDrawing(view);
    const layer = (array, channels = 1) => array && { voxels: array.voxels, shape: [...frame.shapeXyz, channels] };
    const channels = view.image.shape[0];
    await this.viewer.show(frame, {
      image: layer(view.image, channels), prediction: layer(view.prediction), uncertainty: layer(view.uncertainty),
    });
    const drawing = new Drawing(frame, start);
    this.patch = { key, frame, drawing, start, objects, toDrawing, channels, ticket: about.ticket, view, channel: 0, spot: -1 };
    this.viewer.labels = start;
    this.#levels();
    return (await this.#restore(key)) ?? 0;
  }

  // Puts a draft back; returns the seconds of work in it.
  async #restore(key) {
    const draft = key && (await drafts.load(key).catch(() => null));
    if (!draft || draft.labels.length !== this.labels.length) return null;
    if (this.#put(draft.labels)) say("Your drawing from before is back.");
    return draft.seconds;
  }

  close() {
    this.patch = null;
    this.viewer.close();
  }

  // Takes the labels after a stroke; returns whether it changed any.
  take(labels) {
    if (!this.patch.drawing.take(labels)) return false;
    this.#changed();
    return true;
  }

  #put(labels) {
    if (!labels || !this.patch.drawing.take(labels)) return false;
    this.#redraw();
    return true;
  }

  #redraw() {
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
    await drafts.save(key, this.labels, this.seconds()).catch(() => say("This browser keeps no copy of your drawing.", "bad"));
    this.saving -= 1;
  }

  undo() { if (this.patch?.drawing.undo()) this.#redraw(); }
  redo() { if (this.patch?.drawing.redo()) this.#redraw(); }
  restart() { if (this.patch) this.#put(this.patch.start); }
  load(labels) { this.#put(this.patch.toDrawing(labels)); }
  forget() { if (this.patch?.key) drafts.drop(this.patch.key).catch(() => {}); }

  fill(at, value, plane) { this.#put(this.patch.drawing.fill(at, value, plane)); }

  // share: the tolerance as a share of the visible range of grey levels
  grow(at, value, plane, share) {
    const [low, high] = this.viewer.levels;
    this.#put(this.patch.drawing.grow(at, value, plane, this.#image(), share * (high - low)));
  }

  // The visible channel, over the patch.
  #image() {
    const { frame, view, channel } = this.patch;
    const size = frame.shapeXyz.reduce((product, n) => product * n);
    return frame.inner(view.image.voxels.subarray(channel * size, (channel + 1) * size));
  }

  // Black and white are those of the patch, not of its surroundings.
  #levels() { this.viewer.levels = range(this.#image()); }

  channel(number) {
    this.patch.channel = number;
    this.viewer.channel(number);
    this.#levels();
  }

  // Moves to the most uncertain spot of the patch; called again, to the next one.
  jump() {
    const { frame, view } = this.patch ?? {};
    if (!view?.uncertainty) return;
    this.patch.spots ??= peaks(frame, frame.inner(view.uncertainty.voxels));
    if (!this.patch.spots.length) return;
    this.patch.spot = (this.patch.spot + 1) % this.patch.spots.length;
    this.viewer.moveTo(this.patch.spots[this.patch.spot]);
  }

  // The labels as the server takes them.
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
  const spots = [];
  for (const index of order) {
    const here = frame.at(index);
    if (values[index] <= 0 || spots.length >= SPOTS) break;
    if (spots.every((other) => other.some((n, axis) => Math.abs(n - here[axis]) >= apart[axis]))) spots.push(here);
  }
  return spots;
}
