// Dialogs, one at a time, and the message line over the image.

const dialog = document.getElementById("dialog");
const form = dialog.querySelector("form");
const message = document.getElementById("message");

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Shows content and buttons ({label: value}); resolves to the value of the button, null when the dialog was closed.
export function ask(title, content, buttons) {
  const nodes = Object.entries(buttons).map(([label, value], i, all) => {
    const button = element("button", { textContent: label, value: String(i), className: i === all.length - 1 ? "on" : "" });
    if (value === null) button.formNoValidate = true;
    return button;
  });
  const last = nodes.at(-1);
  form.replaceChildren(element("h2", { textContent: title }), ...content, element("div", { className: "buttons" }, ...nodes));
  form.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.target.tagName === "BUTTON") return;
    event.preventDefault();
    form.requestSubmit(last);
  };
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const values = Object.values(buttons);
      resolve(dialog.returnValue === "" ? null : values[Number(dialog.returnValue)]);
    }, { once: true });
  });
}

// A text that must not be empty; null when it was cancelled.
export async function askText(title, hint, submit) {
  const text = element("textarea", { rows: 3, required: true, placeholder: hint, maxLength: 2000, id: "text" });
  const isOk = await ask(title, [text], { Cancel: null, [submit]: true });
  return isOk && text.value.trim() ? text.value.trim() : null;
}

export const isOpen = () => dialog.open;

export function say(text = "", kind = "", actions = {}) {
  const buttons = Object.entries(actions).map(([label, onclick]) => element("button", { textContent: label, onclick }));
  message.className = kind;
  message.replaceChildren(text, ...buttons);
}

export const complain = (error, actions = {}) =>
  say([error.message, error.where && `(${error.where})`, error.todo && `${error.todo}.`].filter(Boolean).join(" "), "bad", actions);
