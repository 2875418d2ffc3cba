// NiiVue on the page: layers, planes and 3D, the pen, the patch's outline.

import { drawTable } from "./colours.js";
import { makeNifti } from "./nifti.js";

/* global niivue */
const { Niivue, SLICE_TYPE, DRAG_MODE } = niivue;
const SVG = "http://www.w3.org/2000/svg";
export const VIEWS = {
  all: SLICE_TYPE.MULTIPLANAR, xy: SLICE_TYPE.AXIAL, xz: SLICE_TYPE.CORONAL, zy: SLICE_TYPE.SAGITTAL,
  "3d": SLICE_TYPE.RENDER,
};
// xy, in which most people draw, largest; left, top, width, height as shares of the stage
const ALL = [
  { sliceType: SLICE_TYPE.AXIAL, position: [0, 0, 0.62, 1] },
  { sliceType: SLICE_TYPE.CORONAL, position: [0.63, 0, 0.37, 0.33] },
  { sliceType: SLICE_TYPE.SAGITTAL, position: [0.63, 0.34, 0.37, 0.33] },
  { sliceType: SLICE_TYPE.RENDER, position: [0.63, 0.68, 0.37, 0.32] },
];

export class Viewer {
  constructor(canvas, outline) {
    this.canvas = canvas;
    this.outline = outline;
    this.frame = null;
    this.layers = {};
    this.levels = [0, 1];
    this.onStroke = () => {};
    this.onClick = () => {};
    this.onMove = () => {};
    this.nv = new Niivue({
      backColor: [0.07, 0.08, 0.09, 1], crosshairColor: [0.35, 0.85, 1, 0.8], crosshairGap: 6, crosshairWidth: 0.6,
      dragAndDropEnabled: false, isForceMouseClickToVoxelCenters: true, isNearestInterpolation: true,
      isOrientationTextVisible: false, isSliceMM: false, logLevel: "error", maxDrawUndoBitmaps: 2,
      sagittalNoseLeft: true, show3Dcrosshair: true, loadingText: "",
      clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
    });
  }

  async open() {
    await this.nv.attachToCanvas(this.canvas);
    const { nv, canvas } = this;
    this.#wrap("refreshDrawing", () => this.#confine(), () => {});
    const line = nv.drawPenLine.bind(nv);
    nv.drawPenLine = (to, from, value) => { line(to, from, value); nv.drawPt(...to, value); }; // it leaves out the last
    this.#wrap("drawScene", () => {}, () => this.#drawOutline());
    nv.onLocationChange = (where) => this.onMove(where);
    // right and middle button pan, the wheel goes through planes, with Ctrl it zooms
    canvas.addEventListener("mousedown", () => { nv.opts.dragMode = DRAG_MODE.pan; }, true);
    canvas.addEventListener("wheel", (event) => {
      nv.opts.dragMode = event.ctrlKey ? DRAG_MODE.pan : DRAG_MODE.none;
    }, true);
    canvas.addEventListener("dblclick", (event) => event.stopImmediatePropagation(), true);
    for (const kind of ["keydown", "keyup"])
      canvas.addEventListener(kind, (event) => event.stopImmediatePropagation(), true);
    for (const kind of ["mouseup", "touchend"]) window.addEventListener(kind, () => this.frame && this.onStroke());
    canvas.addEventListener("mouseleave", () => this.frame && this.onStroke());
    canvas.addEventListener("click", (event) => this.frame && this.#click(event));
  }

  #wrap(name, before, after) {
    const plain = this.nv[name].bind(this.nv);
    this.nv[name] = (...options) => { before(); const result = plain(...options); after(); return result; };
  }

  // What is outside the patch cannot be drawn on.
  #confine() {
    if (!this.frame || !this.nv.drawBitmap) return;
    this.nv.drawBitmap.set(this.frame.inContext(this.frame.cut(this.nv.drawBitmap)));
  }

  close() {
    this.frame = null;
    this.layers = {};
    if (this.nv.drawBitmap) this.nv.closeDrawing();
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.outline.replaceChildren();
  }

  // layers: image {voxels, shape} and, where there is a model, prediction and uncertainty, all over the context.
  async show(frame, layers) {
    this.close();
    for (const name of ["image", "prediction", "uncertainty"]) {
      if (!layers[name]) continue;
      const { voxels, shape } = layers[name];
      const file = makeNifti(frame.flipRows(voxels), shape, frame.unitXyz);
      const volume = await this.nv.niftiArray2NVImage(file);
      volume.name = name;
      this.nv.addVolume(volume);
      this.layers[name] = volume;
    }
    if (this.layers.uncertainty) this.#heat(this.layers.uncertainty);
    if (this.layers.prediction) this.#classes(this.layers.prediction);
    this.nv.createEmptyDrawing();
    this.frame = frame;
    this.nv.drawLut = drawTable();
    this.nv.updateGLVolume();
    this.moveTo(frame.box.shape.map((n) => Math.floor(n / 2)));
  }

  #heat(volume) {
    volume.colormap = "inferno";
    volume.cal_max = Math.max(volume.global_max, 1e-3);
    volume.cal_min = 0.05 * volume.cal_max;
    this.opacity("uncertainty", 0);
  }

  #classes(volume) {
    const { lut } = drawTable();
    const part = (offset) => Array.from({ length: 256 }, (_, value) => lut[4 * value + offset]);
    volume.setColormapLabel({ R: part(0), G: part(1), B: part(2), A: part(3), I: [...Array(256).keys()] });
    this.opacity("prediction", 0);
  }

  get busy() { return this.frame === null; }

  opacity(layer, value) {
    if (layer === "drawing") { this.nv.setDrawOpacity(value); return; }
    const at = this.nv.volumes.indexOf(this.layers[layer]);
    if (at >= 0) this.nv.setOpacity(at, value);
  }

  // Grey levels from low to high, as shares of `levels`.
  contrast(low, high) {
    const image = this.layers.image;
    if (!image) return;
    const [first, last] = this.levels;
    image.cal_min = first + low * (last - first);
    image.cal_max = first + Math.max(high, low + 0.01) * (last - first);
    this.nv.updateGLVolume();
  }

  channel(number) { if (this.layers.image) this.nv.setFrame4D(this.layers.image.id, number); }
  view(name) {
    this.nv.setSliceType(VIEWS[name]);
    if (name === "all") this.nv.setCustomLayout(ALL);
    else this.nv.clearCustomLayout();
  }

  // The image cut open in 3D, so that the drawing stands free before it.
  cut(on) { this.nv.setClipPlane(on ? [0, 270, 0] : [2, 0, 0]); }
  smooth(on) { this.nv.setInterpolation(!on); }

  // A pen of a value; null leaves the mouse to looking and clicking.
  pen(value, size = 1, filled = false) {
    this.nv.setDrawingEnabled(value !== null && this.frame !== null);
    this.nv.opts.penSize = size;
    if (value !== null) this.nv.setPenValue(value, filled);
  }

  get labels() { return this.frame.cut(this.nv.drawBitmap); }
  set labels(patch) {
    this.nv.drawBitmap.set(this.frame.inContext(patch));
    this.nv.refreshDrawing(true);
  }

  // Crosshair to the patch's [z, y, x].
  moveTo(zyx) {
    this.nv.scene.crosshairPos = this.nv.vox2frac(this.frame.toScreen(zyx));
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  step(axis, way) {
    const by = [0, 0, 0];
    by[2 - axis] = axis === 2 ? way : -way;
    this.nv.moveCrosshairInVox(...by);
  }

  // Where a mouse event lies: {zyx of the patch, or null outside; axis across the plane}.
  place(event) {
    const dpr = this.nv.uiData.dpr;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) * dpr, (event.clientY - box.top) * dpr];
    const tile = this.nv.tileIndex(x, y);
    const axis = tile < 0 ? 9 : this.nv.screenSlices[tile].axCorSag;
    if (axis > SLICE_TYPE.SAGITTAL) return null;
    const frac = this.nv.screenXY2TextureFrac(x, y, tile, true);
    return frac[0] < 0 ? null : { zyx: this.frame.fromScreen([...this.nv.frac2vox(frac)]), axis };
  }

  // Where the patch's [z, y, x] lies in a plane, in pixels of the window; moves there.
  pixel(zyx, axis) {
    this.moveTo(zyx);
    const position = this.nv.frac2canvasPosWithTile(this.nv.vox2frac(this.frame.toScreen(zyx)), axis);
    const box = this.canvas.getBoundingClientRect();
    return position && position.pos.map((n, i) => n / this.nv.uiData.dpr + (i ? box.top : box.left));
  }

  #click(event) {
    const place = this.nv.opts.drawingEnabled ? null : this.place(event);
    if (place) this.onClick(place);
  }

  #drawOutline() {
    if (!this.frame) return;
    const dpr = this.nv.uiData.dpr;
    const here = this.nv.frac2vox(this.nv.scene.crosshairPos);
    const low = this.frame.toScreen([this.frame.box.shape[0] - 1, this.frame.box.shape[1] - 1, 0]);
    const high = low.map((n, i) => n + this.frame.box.shape[2 - i]);
    const outlines = this.nv.screenSlices.filter((slice) => slice.axCorSag <= SLICE_TYPE.SAGITTAL).map((slice) => {
      const axis = 2 - slice.axCorSag; // of x, y, z: the one that stands on the plane
      const inside = here[axis] >= low[axis] && here[axis] < high[axis];
      const corner = (at) => {
        const frac = at.map((n, i) => n / this.frame.shapeXyz[i]);
        frac[axis] = this.nv.scene.crosshairPos[axis];
        return this.nv.frac2canvasPosWithTile(frac, slice.axCorSag)?.pos.map((n) => n / dpr);
      };
      const [a, b] = [corner(low), corner(high)];
      return a && b ? tileOutline(slice.leftTopWidthHeight.map((n) => n / dpr), a, b, inside) : null;
    });
    this.outline.replaceChildren(...outlines.filter(Boolean));
  }
}

function tileOutline([left, top, width, height], a, b, inside) {
  const tile = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ x: left, y: top, width, height })) tile.setAttribute(key, value);
  const [x, y] = [Math.min(a[0], b[0]) - left, Math.min(a[1], b[1]) - top];
  const [w, h] = [Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
  const path = document.createElementNS(SVG, "path");
  const hole = inside ? `M${x} ${y}h${w}v${h}h${-w}z` : "";
  path.setAttribute("d", `M0 0h${width}v${height}h${-width}z${hole}`);
  path.setAttribute("class", "context");
  const edge = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ x, y, width: w, height: h })) edge.setAttribute(key, value);
  edge.setAttribute("class", inside ? "edge" : "edge away");
  tile.append(path, edge);
  return tile;
}
