// Keyboard: one table for the listener and for the help.

import { ask, element, isOpen } from "./dialogs.js";

// actions: rows of [keys, what it does, function(event)]; a key is written as the help shows it
export function listen(actions) {
  const table = new Map();
  for (const [keys, , action] of actions) for (const key of keys) table.set(key.toLowerCase(), action);
  window.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input:not([type=range], [type=checkbox]), textarea, select");
    const name = keyName(event);
    if (isOpen() || (typing && !name.startsWith("ctrl+"))) return;
    const action = table.get(name);
    if (!action) return;
    event.preventDefault();
    action(event);
  }, true);
  return () => help(actions);
}

function keyName(event) {
  const key = event.key === " " ? "space" : event.key.toLowerCase();
  const shift = event.shiftKey && /^[a-z]$|^.{2,}$/.test(key) ? "shift+" : "";
  return `${event.ctrlKey || event.metaKey ? "ctrl+" : ""}${shift}${key}`;
}

function help(actions) {
  const rows = actions.map(([keys, what]) =>
    element("p", {}, ...keys.flatMap((key) => [element("kbd", { textContent: key }), " "]), what));
  const mouse = element("p", { className: "quiet",
    textContent: "Mouse: left draws, wheel goes through the planes, Ctrl+wheel zooms, right button drags. Drag the 3D view to turn it." });
  return ask("Keyboard and mouse", [element("div", { className: "keys" }, ...rows), mouse], { Close: true });
}
