// The page: sign-in, the facts beside the image, and the parts put together.

import { api, follow, person } from "./api.js";
import { Editor } from "./editor.js";
import { ask, complain, element, say } from "./dialogs.js";
import { Effort } from "./effort.js";
import { drafts } from "./drafts.js";
import { listen } from "./keys.js";
import { Layers } from "./layers.js";
import { Review } from "./review.js";
import { Tools } from "./tools.js";
import { Viewer } from "./viewer.js";
import { Work } from "./work.js";

const $ = (id) => document.getElementById(id);

// Asks for a token or a name; resolves to whether the person gave one.
async function signIn(problem = "") {
  const token = element("input", { id: "token", autocomplete: "off", spellcheck: false });
  const name = element("input", { id: "name", autocomplete: "username", value: person.get().name ?? "" });
  const content = [
    element("p", { className: "quiet", textContent: problem || "On this machine's own server your name is enough." }),
    element("label", {}, "Token (from whoever runs the campaign)", token),
    element("label", {}, "or name", name),
  ];
  if (!(await ask("Who are you?", content, { Cancel: null, "Sign in": true }))) return false;
  person.set(token.value.trim(), name.value.trim());
  return true;
}

async function firstInfo() {
  for (;;) {
    try {
      return await api.info();
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      person.forget();
      await signIn(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
    }
  }
}

function showInfo(info) {
  const { counts } = info;
  $("campaign").textContent = info.campaign;
  $("who").textContent = info.annotator;
  $("counts").textContent = ["queued", "leased", "submitted", "accepted"].map((name) => `${counts[name] ?? 0} ${name}`).join(" · ");
}

function showTicket(editor, lease) {
  if (!editor.isOpen) { $("ticket").replaceChildren(); return; }
  const { ticket, frame } = editor.patch;
  const shape = `${ticket.box.shape_zyx.join(" × ")} at ${ticket.box.offset_zyx.join(", ")}`;
  const facts = {
    volume: ticket.volume_id, patch: `${shape} (z, y, x)`, voxel: `${frame.spacing.join(" × ")} µm`,
    "for": ticket.purpose === "pool" ? `generation ${ticket.generation}` : `holdout, ${ticket.purpose}`,
    stratum: ticket.stratum, why: ticket.reason,
  };
  const rows = Object.entries(facts).filter(([, text]) => text)
    .flatMap(([name, textContent]) => [element("dt", { textContent: name }), element("dd", { textContent })]);
  const comment = lease?.comment ? [element("p", { className: "comment", textContent: lease.comment })] : [];
  $("ticket").replaceChildren(element("h2", { textContent: "This patch" }), element("dl", {}, ...rows), ...comment);
}

function showPlace(editor, where) {
  if (!editor.isOpen) { $("place").textContent = ""; return; }
  const { context } = editor.frame;
  const [x, y, z] = where.vox;
  const zyx = [context.shape[0] - 1 - z, context.shape[1] - 1 - y, x].map((n, axis) => n + context.offset[axis]);
  const values = where.values.map((layer) => `${layer.name} ${Number(layer.value.toPrecision(4))}`);
  $("place").textContent = `z ${zyx[0]}  y ${zyx[1]}  x ${zyx[2]}   ${values.join("   ")}`;
}

async function start() {
  const viewer = new Viewer($("view"), $("outline"));
  await viewer.open();
  let info = await firstInfo();
  const editor = new Editor(viewer, info);
  const tools = new Tools(editor, viewer, info.classes, info.kind);
  const layers = new Layers(editor, viewer);
  const onChange = () => {
    for (const id of ["tools", "layers"]) $(id).disabled = !editor.isOpen;
    showTicket(editor, work.lease);
    if (editor.isOpen) layers.fit();
    else $("place").textContent = "";
    tools.apply();
  };
  const effort = new Effort($("mine"), info);
  const work = new Work(editor, onChange, (annotation) => effort.add(annotation));
  const review = new Review(editor, onChange);
  const refresh = async () => {
    try { showInfo(info = await api.info()); } catch { /* the next change of the queue asks again */ }
    if (mode === "review" && !editor.isOpen) review.list();
  };
  let mode = "work";
  const change = (to) => {
    if (mode === to) return;
    mode = to;
    if (to === "review") work.close(); else review.close();
    for (const name of ["work", "review"]) $(`mode-${name}`).classList.toggle("on", name === to);
    for (const id of ["review", "judge"]) $(id).hidden = to !== "review";
    for (const id of ["queue", "hand"]) $(id).hidden = to === "review";
    say();
    if (to === "review") review.list(); else work.resume();
  };
  editor.onChange = () => tools.show();
  viewer.onMove = (where) => showPlace(editor, where);
  $("mode-work").onclick = () => change("work");
  $("mode-review").onclick = () => change("review");
  $("mode-review").hidden = info.role === "annotator";
  $("undo").onclick = () => editor.undo();
  $("redo").onclick = () => editor.redo();
  $("restart").onclick = () => editor.restart();
  $("who").onclick = async () => { if (await signIn()) location.reload(); };
  for (const name of info.classes) $("filters").elements.class_name.append(new Option(name, name));
  const actions = [
    ...tools.keys(), ...layers.keys(), ...work.keys(), ...review.keys(),
    [["Z", "Ctrl+Z"], "Undo", () => editor.undo()],
    [["Shift+Z", "Ctrl+Shift+Z", "Ctrl+Y"], "Redo", () => editor.redo()],
    [["?"], "This help", () => $("help").click()],
  ];
  $("help").onclick = listen(actions);
  showInfo(info);
  onChange();
  drafts.tidy().catch(() => {});
  follow(refresh, new AbortController().signal);
  const ticket = new URLSearchParams(location.search).get("ticket");
  if (ticket) await work.next({ ticket_id: ticket }); else await work.resume();
  return { viewer, editor, tools, work };
}

// `page` in the console, for tests and for debugging
start().then((parts) => { window.page = parts; }, complain);
