// The labels of a patch while somebody draws: the strokes, undo and redo, fill and grow.

export const IGNORE = 255;
const STEPS = 200;

export class Drawing {
  constructor(frame, labels) {
    this.frame = frame;
    this.labels = labels;
    this.undoSteps = [];
    this.redoSteps = [];
  }

  // Takes the labels as they are now; true when anything changed.
  take(labels) {
    const changed = [];
    for (let i = 0; i < labels.length; i++) if (labels[i] !== this.labels[i]) changed.push(i);
    if (!changed.length) return false;
    const at = Uint32Array.from(changed);
    this.undoSteps.push({ at, before: valuesAt(this.labels, at), after: valuesAt(labels, at) });
    if (this.undoSteps.length > STEPS) this.undoSteps.shift();
    this.redoSteps = [];
    this.labels = labels.slice();
    return true;
  }

  undo() { return this.#move(this.undoSteps, this.redoSteps, "before"); }
  redo() { return this.#move(this.redoSteps, this.undoSteps, "after"); }

  #move(from, to, side) {
    const step = from.pop();
    if (!step) return false;
    to.push(step);
    this.labels = this.labels.slice();
    step.at.forEach((at, i) => { this.labels[at] = step[side][i]; });
    return true;
  }

  // Labels with the region around a seed recoloured; null where nothing would change.
  recolour(seed, value, plane, inside) {
    const region = connected(this.frame.box.shape, seed, plane, inside);
    const labels = this.labels.slice();
    let changed = false;
    for (const at of region) { changed ||= labels[at] !== value; labels[at] = value; }
    return changed ? labels : null;
  }

  // Region of one label around the seed, in its plane (axis 0, 1, 2) or, with null, in three dimensions.
  fill(seed, value, plane) {
    const old = this.labels[this.frame.index(seed)];
    return this.recolour(seed, value, plane, (at) => this.labels[at] === old);
  }

  // As `fill`, where the image is also within a tolerance of the seed's intensity.
  grow(seed, value, plane, image, tolerance) {
    const first = this.frame.index(seed);
    const [old, level] = [this.labels[first], image[first]];
    return this.recolour(seed, value, plane, (at) => this.labels[at] === old && Math.abs(image[at] - level) <= tolerance);
  }

  counts() {
    const counts = new Map();
    for (const value of this.labels) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  }
}

const valuesAt = (labels, at) => Uint8Array.from(at, (i) => labels[i]);

// Voxels that are joined to the seed over faces and inside; as indices.
function connected(shape, seed, plane, inside) {
  const steps = [shape[1] * shape[2], shape[2], 1];
  const first = seed.reduce((sum, n, axis) => sum + n * steps[axis], 0);
  const visited = new Uint8Array(shape[0] * steps[0]);
  const region = inside(first) ? [first] : [];
  visited[first] = 1;
  for (let next = 0; next < region.length; next++) {
    const at = region[next];
    for (let axis = 0; axis < 3; axis++) {
      if (axis === plane) continue;
      const place = Math.floor(at / steps[axis]) % shape[axis];
      for (const way of [-1, 1]) {
        const to = at + way * steps[axis];
        if (place + way < 0 || place + way >= shape[axis] || visited[to]) continue;
        visited[to] = 1;
        if (inside(to)) region.push(to);
      }
    }
  }
  return region;
}
