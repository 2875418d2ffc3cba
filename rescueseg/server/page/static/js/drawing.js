// The labels of a patch while they are drawn: what changed, undo and redo, and what a click fills or grows.

export const IGNORE = 255;
const STEPS = 200;

export class Drawing {
  constructor(frame, labels) {
    this.frame = frame;
    this.labels = labels;
    this.done = [];
    this.undone = [];
  }

  // Takes the labels as they are now; true when anything changed.
  take(labels) {
    const changed = [];
    for (let i = 0; i < labels.length; i++) if (labels[i] !== this.labels[i]) changed.push(i);
    if (!changed.length) return false;
    const at = Uint32Array.from(changed);
    this.done.push({ at, before: at2values(this.labels, at), after: at2values(labels, at) });
    if (this.done.length > STEPS) this.done.shift();
    this.undone = [];
    this.labels = labels.slice();
    return true;
  }

  undo() { return this.#move(this.done, this.undone, "before"); }
  redo() { return this.#move(this.undone, this.done, "after"); }

  #move(from, to, side) {
    const step = from.pop();
    if (!step) return false;
    to.push(step);
    this.labels = this.labels.slice();
    step.at.forEach((at, i) => { this.labels[at] = step[side][i]; });
    return true;
  }

  // Labels with the region around a seed recoloured; null where nothing would change.
  recoloured(seed, value, plane, inside) {
    const region = connected(this.frame.box.shape, seed, plane, inside);
    const labels = this.labels.slice();
    let changed = false;
    for (const at of region) { changed ||= labels[at] !== value; labels[at] = value; }
    return changed ? labels : null;
  }

  // Region of one label around the seed, in its plane (axis 0, 1, 2) or, with null, in three dimensions.
  filled(seed, value, plane) {
    const old = this.labels[this.frame.index(seed)];
    return this.recoloured(seed, value, plane, (at) => this.labels[at] === old);
  }

  // As `filled`, where the image is also within a tolerance of the seed's intensity.
  grown(seed, value, plane, image, tolerance) {
    const first = this.frame.index(seed);
    const [old, level] = [this.labels[first], image[first]];
    return this.recoloured(seed, value, plane, (at) => this.labels[at] === old && Math.abs(image[at] - level) <= tolerance);
  }

  counts() {
    const found = new Map();
    for (const value of this.labels) found.set(value, (found.get(value) ?? 0) + 1);
    return found;
  }
}

const at2values = (labels, at) => Uint8Array.from(at, (i) => labels[i]);

// Voxels that are joined to the seed over faces and inside; as indices.
function connected(shape, seed, plane, inside) {
  const steps = [shape[1] * shape[2], shape[2], 1];
  const first = seed.reduce((sum, n, axis) => sum + n * steps[axis], 0);
  const seen = new Uint8Array(shape[0] * steps[0]);
  const found = inside(first) ? [first] : [];
  seen[first] = 1;
  for (let next = 0; next < found.length; next++) {
    const at = found[next];
    for (let axis = 0; axis < 3; axis++) {
      if (axis === plane) continue;
      const place = Math.floor(at / steps[axis]) % shape[axis];
      for (const way of [-1, 1]) {
        const to = at + way * steps[axis];
        if (place + way < 0 || place + way >= shape[axis] || seen[to]) continue;
        seen[to] = 1;
        if (inside(to)) found.push(to);
      }
    }
  }
  return found;
}
