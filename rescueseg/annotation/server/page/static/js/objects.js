// Object numbers of any size in a drawing of 8 bits: at most 254 objects, 255 stays "not annotated".

import { IGNORE } from "./drawing.js";

export const MOST = IGNORE - 1;

export class Objects {
  // classes: uint8 with 255 where nothing was annotated; instances: any object numbers
  constructor(instances) {
    this.ids = [0, ...new Set(instances)].filter((id, i) => id !== 0 || i === 0).sort((a, b) => a - b);
    if (this.ids.length - 1 > MOST)
      throw new Error(`this patch holds ${this.ids.length - 1} objects, and this page can draw ${MOST}: ` +
        "open it in napari (rescueseg annotate), or give it back");
  }

  drawn(classes, instances) {
    const short = new Map(this.ids.map((id, i) => [id, i]));
    return Uint8Array.from(classes, (value, at) => (value === IGNORE ? IGNORE : short.get(instances[at])));
  }

  // The drawing as the server takes it.
  files(drawn) {
    const long = (value) => this.ids[value] ?? (this.ids.at(-1) + value - this.ids.length + 1);
    return {
      instances: Uint32Array.from(drawn, (value) => (value === IGNORE ? 0 : long(value))),
      ignore: Uint8Array.from(drawn, (value) => Number(value === IGNORE)),
    };
  }

  // The next number nobody uses in this drawing, null when there is none.
  free(drawn) {
    const used = new Set(drawn);
    for (let value = this.ids.length; value <= MOST; value++) if (!used.has(value)) return value;
    for (let value = 1; value <= MOST; value++) if (!used.has(value)) return value;
    return null;
  }
}
