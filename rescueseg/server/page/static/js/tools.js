// The drawing tool: its kind, label and size, and the buttons for them.

import { colour } from "./colours.js";
import { element, say } from "./dialogs.js";
import { IGNORE } from "./drawing.js";
import { MOST } from "./objects.js";

const TOOLS = {
  look: ["Look", "V", "Move the crosshair, draw nothing"],
  pen: ["Pen", "D", "Draw"],
  lasso: ["Outline", "F", "Draw around something: it is filled"],
  erase: ["Erase", "E", "Draw background"],
  fill: ["Fill", "B", "Recolour the region of one label"],
  grow: ["Grow", "G", "From a click over what is as bright"],
  remove: ["Remove", "X", "The connected piece that is clicked becomes background"],
  pick: ["Pick", "P", "Take the label that is clicked"],
};
const $ = (id) => document.getElementById(id);

export class Tools {
  constructor(editor, viewer, classes, kind) {
    Object.assign(this, { editor, viewer, classes, kind, tool: "look", value: 1 });
    $("pens").replaceChildren(...Object.entries(TOOLS).map(([name, [text, key, title]]) => {
      const onclick = () => this.use(name);
      return element("button", { textContent: text, title: `${title} (${key})`, id: `tool-${name}`, type: "button", onclick });
    }));
    for (const id of ["size", "tolerance"]) $(id).oninput = () => this.apply();
    viewer.onClick = (place) => this.#click(place);
  }

  keys() {
    const tools = Object.entries(TOOLS).map(([name, [, key, title]]) => [[key], title, () => this.use(name)]);
    const numbers = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(String);
    return [
      ...tools,
      [numbers, this.kind === "instance" ? "Object of that number" : "Class of that number", (e) => this.label(Number(e.key))],
      [["0"], "Not annotated: for what you cannot tell", () => this.label(IGNORE)],
      ...(this.kind === "instance" ? [[["O"], "A new object", () => this.fresh()]] : []),
      [["[", "]"], "Smaller, larger brush", (e) => this.resize(e.key === "]" ? 2 : -2)],
    ];
  }

  use(tool) {
    this.tool = tool;
    this.apply();
  }

  label(value) {
    const most = this.kind === "instance" ? MOST : this.classes.length;
    if (value !== IGNORE && (value < 1 || value > most)) return;
    this.value = value;
    if (["look", "erase", "remove", "pick"].includes(this.tool)) this.tool = "pen";
    this.apply();
  }

  fresh() {
    const value = this.editor.isOpen ? this.editor.patch.objects.free(this.editor.labels) : null;
    if (value === null) say(`A patch holds at most ${MOST} objects on this page; use napari for more.`, "bad");
    else this.label(value);
  }

  resize(by) {
    $("size").value = Number($("size").value) + by;
    this.apply();
  }

  apply() {
    const pens = { pen: this.value, lasso: this.value, erase: 0 };
    this.viewer.pen(pens[this.tool] ?? null, Number($("size").value), this.tool === "lasso");
    $("size-is").textContent = `${$("size").value} px`;
    $("tolerance-is").textContent = `${$("tolerance").value} %`;
    for (const name of Object.keys(TOOLS)) $(`tool-${name}`).classList.toggle("on", name === this.tool);
    this.show();
  }

  // Labels as buttons: classes, or the objects drawn so far.
  show() {
    const instances = this.kind === "instance";
    const counts = this.editor.isOpen ? this.editor.patch.drawing.counts() : new Map();
    const values = instances
      ? [...new Set([...counts.keys(), this.value])].filter((n) => n && n !== IGNORE).sort((a, b) => a - b)
      : this.classes.map((_, i) => i + 1);
    const buttons = values.map((value) => {
      const name = instances ? `object ${value}` : this.classes[value - 1];
      return this.#button(value, name, value < 10 ? value : "", counts.get(value));
    });
    if (instances) buttons.push(element("button", { id: "fresh", type: "button", onclick: () => this.fresh() }, "New object (O)"));
    buttons.push(this.#button(IGNORE, "not annotated", 0, counts.get(IGNORE)));
    $("labels").replaceChildren(...buttons);
  }

  #button(value, name, key, count = 0) {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = colour(value);
    const title = `${count.toLocaleString("en")} voxels`;
    return element("button",
      { id: `label-${value}`, type: "button", title, className: value === this.value ? "on" : "", onclick: () => this.label(value) },
      swatch, name, element("span", { className: "key", textContent: key }));
  }

  #click({ zyx, axis }) {
    if (!zyx || this.tool === "look") return;
    const plane = $("solid").checked ? null : axis;
    const here = this.editor.labels[this.editor.frame.index(zyx)];
    if (this.tool === "pick") { if (here) this.label(here); }
    else if (this.tool === "fill") this.editor.fill(zyx, this.value, plane);
    else if (this.tool === "grow") this.editor.grow(zyx, this.value, plane, Number($("tolerance").value) / 100);
    else if (here) this.editor.fill(zyx, 0, null);
  }
}
