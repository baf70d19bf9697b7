/** A row of tabs, which arrow keys walk. */

import { byId, el, moveFocus, replaceChildren } from "./dom.js";

/** Show tabs for `entries`, `{name: label}`, with `current` selected. `open(name)` is called. */
export function showTabs(entries, current, open) {
  const box = byId("tabs");
  const buttons = Object.entries(entries).map(([name, label]) =>
    el(
      "button",
      {
        type: "button",
        role: "tab",
        "aria-selected": String(name === current),
        tabindex: name === current ? 0 : -1,
        "data-panel": name,
        onclick: () => open(name),
      },
      label,
    ),
  );
  replaceChildren(box, ...buttons);
  box.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  box.onkeydown = (event) => {
    if (moveFocus(event, buttons, document.activeElement, "ArrowLeft", "ArrowRight"))
      document.activeElement.click();
  };
}
