// Object numbers of any size in a drawing of 8 bits: at most 254 objects, 255 stays "not annotated".

import { IGNORE } from "./drawing.js";

export const MOST = IGNORE - 1;

export class Objects {
  constructor() { this.ids = [0]; }

  // classes: uint8 with 255 where nothing was annotated; instances: any object numbers
  toDrawing(classes, instances) {
    const existing = new Set(this.ids);
    const ids = [...this.ids, ...[...new Set(instances)].filter((id) => !existing.has(id)).sort((a, b) => a - b)];
    if (ids.length - 1 > MOST)
      throw new Error(`this patch holds ${ids.length - 1} objects, and this page can draw ${MOST}: ` +
        "open it in napari (rescueseg annotate), or give it back");
    this.ids = ids;
    const short = new Map(this.ids.map((id, i) => [id, i]));
    return Uint8Array.from(classes, (value, at) => (value === IGNORE ? IGNORE : short.get(instances[at])));
  }

  // The drawing as the server takes it.
  files(drawing) {
    const most = this.ids.reduce((largest, id) => Math.max(largest, id));
    const long = (value) => this.ids[value] ?? most + value - this.ids.length + 1;
    return {
      instances: Uint32Array.from(drawing, (value) => (value === IGNORE ? 0 : long(value))),
      ignore: Uint8Array.from(drawing, (value) => Number(value === IGNORE)),
    };
  }

  // The next number that is free in this drawing, null when there is none.
  free(drawing) {
    const used = new Set(drawing);
    for (let value = this.ids.length; value <= MOST; value++) if (!used.has(value)) return value;
    for (let value = 1; value <= MOST; value++) if (!used.has(value)) return value;
    return null;
  }
}
