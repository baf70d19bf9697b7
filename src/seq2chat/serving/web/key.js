/** The dialog for the API key. */

import { byId, el, openDialog } from "./dom.js";

/** Prompt for the API key. Resolves to it, or to null if the user cancels. */
export function askKey(wasWrong) {
  const { promise, resolve } = Promise.withResolvers();
  const dialog = byId("key");
  // An HTTP header can hold no other characters.
  const limits = {
    required: true,
    pattern: "[ -~]+",
    title: "A key has letters without accents, digits and signs.",
  };
  const field = el("input", { type: "password", id: "key-field", autocomplete: "off", ...limits });
  const send = (event) => {
    event.preventDefault();
    resolve(field.value.trim());
    dialog.close();
  };
  openDialog(
    dialog,
    el(
      "form",
      { onsubmit: send },
      el("h2", { id: "key-title" }, "API key"),
      el(
        "label",
        { for: "key-field" },
        wasWrong
          ? "The server refused this key. Enter the key that it was started with."
          : "This server requires a key. It is stored until you close this tab.",
      ),
      field,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"),
        el("button", { class: "button primary" }, "Use this key"),
      ),
    ),
  );
  dialog.addEventListener("close", () => resolve(null), { once: true });
  return promise;
}
