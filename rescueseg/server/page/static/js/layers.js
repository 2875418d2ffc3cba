// Controls of the view: planes, opacities, grey levels, channels.

import { element } from "./dialogs.js";
import { VIEWS } from "./viewer.js";

const LAYERS = ["drawing", "prediction", "uncertainty"];
const $ = (id) => document.getElementById(id);

export class Layers {
  constructor(editor, viewer) {
    Object.assign(this, { editor, viewer, hidden: {} });
    $("views").replaceChildren(...Object.keys(VIEWS).map((name) =>
      element("button", { textContent: name, id: `view-${name}`, type: "button", onclick: () => this.view(name) })));
    for (const layer of LAYERS) $(`o-${layer}`).oninput = () => this.#opacity(layer);
    for (const id of ["low", "high"]) $(id).oninput = () => this.#contrast();
    $("smooth").onchange = () => viewer.smooth($("smooth").checked);
    $("cut").onchange = () => viewer.cut($("cut").checked);
    $("channel").onchange = () => {
      editor.channel(Number($("channel").value));
      this.#contrast();
    };
    $("jump").onclick = () => editor.jump();
    this.view("all");
  }

  keys() {
    const names = Object.keys(VIEWS);
    const next = () => this.view(names[(names.indexOf(this.name) + 1) % names.length]);
    return [
      [["W"], "Next view: all planes, one of them, 3D", next],
      [["ArrowLeft", "ArrowRight"], "Step in x", (e) => this.#step(2, e.key === "ArrowRight" ? 1 : -1)],
      [["ArrowUp", "ArrowDown"], "Step in y", (e) => this.#step(1, e.key === "ArrowDown" ? 1 : -1)],
      [["PageUp", "PageDown", ",", "."], "Plane before, plane after", (e) => this.#step(0, /Down|\./.test(e.key) ? 1 : -1)],
      [["H"], "Hide or show the drawing", () => this.toggle("drawing")],
      [["M"], "Hide or show the model's mask", () => this.toggle("prediction")],
      [["U"], "Hide or show the uncertainty", () => this.toggle("uncertainty")],
      [["J"], "To the most uncertain spot; again, to the next", () => this.editor.jump()],
    ];
  }

  // Adapts the controls to a patch that was just opened.
  fit() {
    const { layers } = this.viewer;
    for (const row of document.querySelectorAll("[data-layer]")) row.hidden = !layers[row.dataset.layer];
    const { channels } = this.editor.patch;
    $("channels").hidden = channels < 2;
    $("channel").replaceChildren(...Array.from({ length: channels }, (_, i) => new Option(i + 1, i)));
    for (const layer of LAYERS) this.#opacity(layer);
    this.#contrast();
    this.viewer.cut($("cut").checked);
    this.view(this.name);
  }

  view(name) {
    this.name = name;
    this.viewer.view(name);
    for (const other of Object.keys(VIEWS)) $(`view-${other}`).classList.toggle("on", other === name);
  }

  toggle(layer) {
    const slider = $(`o-${layer}`);
    const shown = Number(slider.value);
    if (shown) this.hidden[layer] = shown;
    slider.value = shown ? 0 : this.hidden[layer] ?? 0.5;
    this.#opacity(layer);
  }

  #step(axis, way) { if (this.editor.isOpen) this.viewer.step(axis, way); }
  #opacity(layer) { if (this.editor.isOpen) this.viewer.opacity(layer, Number($(`o-${layer}`).value)); }
  #contrast() { this.viewer.contrast(Number($("low").value), Number($("high").value)); }
}
