// Where a patch lies in its context (the part that is shown), and how the context lies on the screen.
//
// Arrays are zyx with x running fastest. NiiVue draws y upwards and z upwards; microscopists expect y downwards and
// the first plane on top. Turning both axes (a rotation, no mirror image) is the same as reversing the order of rows.

export class Frame {
  // context, box: {offset: [z, y, x], shape: [z, y, x]} in voxels of the volume; spacing: [z, y, x] in micrometre
  constructor(context, box, spacing) {
    this.context = context;
    this.box = box;
    this.spacing = spacing;
    this.start = box.offset.map((n, axis) => n - context.offset[axis]);
    this.size = box.shape.reduce((product, n) => product * n);
  }

  // Shape as x, y, z of what is shown, and its voxel size with the finest side as 1: NiiVue loses its footing at 1e-5.
  get shapeXyz() { return [...this.context.shape].reverse(); }
  get unitXyz() {
    const finest = Math.min(...this.spacing);
    return [...this.spacing].reverse().map((n) => n / finest);
  }

  // Rows reversed within every channel: context order to screen order, and back.
  flipRows(voxels) {
    const width = this.context.shape[2];
    const frame = this.context.shape[0] * this.context.shape[1] * width;
    const out = new voxels.constructor(voxels.length);
    for (let base = 0; base < voxels.length; base += frame)
      for (let at = 0; at < frame; at += width)
        out.set(voxels.subarray(base + at, base + at + width), base + frame - width - at);
    return out;
  }

  // Calls visit(patch index, screen index, width) for every row of the patch.
  rows(visit) {
    const [depth, height, width] = this.box.shape;
    const [deep, high, wide] = this.context.shape;
    for (let z = 0, at = 0; z < depth; z++)
      for (let y = 0; y < height; y++, at += width) {
        const [up, back] = [high - 1 - this.start[1] - y, deep - 1 - this.start[0] - z];
        visit(at, (back * high + up) * wide + this.start[2], width);
      }
  }

  // The patch's part of an array in screen order.
  cut(screen) {
    const out = new screen.constructor(this.size);
    this.rows((at, from, width) => out.set(screen.subarray(from, from + width), at));
    return out;
  }

  // An array in screen order that holds the patch, and 0 in the context around it.
  inContext(patch) {
    const [z, y, x] = this.context.shape;
    const out = new patch.constructor(z * y * x);
    this.rows((at, to, width) => out.set(patch.subarray(at, at + width), to));
    return out;
  }

  // The part of a context array (context order) that is the patch.
  inner(voxels) {
    const out = new voxels.constructor(this.size);
    const [, high, wide] = this.context.shape;
    const [depth, height, width] = this.box.shape;
    for (let z = 0, at = 0; z < depth; z++)
      for (let y = 0; y < height; y++, at += width) {
        const from = ((z + this.start[0]) * high + y + this.start[1]) * wide + this.start[2];
        out.set(voxels.subarray(from, from + width), at);
      }
    return out;
  }

  // NiiVue's voxel [x, y, z] to the patch's [z, y, x]; null outside.
  fromScreen([x, y, z]) {
    const [deep, high] = this.context.shape;
    const at = [deep - 1 - z - this.start[0], high - 1 - y - this.start[1], x - this.start[2]];
    return at.every((n, axis) => n >= 0 && n < this.box.shape[axis]) ? at : null;
  }

  // The patch's [z, y, x] to NiiVue's voxel [x, y, z].
  toScreen([z, y, x]) {
    const [deep, high] = this.context.shape;
    return [x + this.start[2], high - 1 - y - this.start[1], deep - 1 - z - this.start[0]];
  }

  index([z, y, x]) { return (z * this.box.shape[1] + y) * this.box.shape[2] + x; }
  at(index) {
    const [, height, width] = this.box.shape;
    return [Math.floor(index / (height * width)), Math.floor(index / width) % height, index % width];
  }
}
