/** The bar at the top: the choice of models, and the tint of the tokens. */

import { byId, el, iconButton, moveFocus } from "./dom.js";
import { FULL_ENTROPY } from "./tokens.js";

const MAX_MODELS = 3;
const TINTS = [
  ["none", "No tint", "Plain text"],
  [
    "probability",
    "Probability",
    "Stronger where the token was unlikely: none at 100 %, full at 0 %",
  ],
  [
    "entropy",
    "Entropy",
    `Stronger where many tokens were possible: none at 0 bits, full at ${FULL_ENTROPY}. ` +
      "A lower bound, estimated from the 10 most likely tokens, with all others counted as one.",
  ],
];

/** Show a select for each chosen model. `use(ids)` changes the choice. */
export function showModels(models, chosen, use) {
  const choice = (id, place) => {
    const others = chosen.filter((other) => other !== id);
    const options = models.map((model) =>
      el(
        "option",
        { value: model.id, selected: model.id === id, disabled: others.includes(model.id) },
        model.id,
      ),
    );
    const change = ({ target }) => use(chosen.with(place, target.value));
    const select = el(
      "select",
      { "aria-label": chosen.length > 1 ? `Model ${place + 1}` : "Model", onchange: change },
      options,
    );
    const remove = chosen.length > 1 && iconButton("close", `Remove ${id}`, () => use(others));
    return el("span", { class: "model" }, select, remove);
  };
  const free = models.find(({ id }) => !chosen.includes(id));
  const add =
    free &&
    chosen.length &&
    chosen.length < MAX_MODELS &&
    iconButton("columns", "Compare with another model", () => use([...chosen, free.id]));
  byId("models").replaceChildren(...chosen.map(choice), ...(add ? [add] : []));
}

/** Show the tint switch. `set(name)` changes the tint. */
export function showTint(current, set) {
  document.documentElement.dataset.tint = current;
  const buttons = TINTS.map(([name, label, help]) => {
    const checked = name === current;
    return el(
      "button",
      {
        type: "button",
        role: "radio",
        "aria-checked": String(checked),
        tabindex: checked ? 0 : -1,
        title: help,
        "data-tint": name,
        onclick: () => set(name),
      },
      label,
    );
  });
  const root = byId("tint");
  root.replaceChildren(...buttons);
  root.onkeydown = (event) => {
    if (moveFocus(event, buttons, document.activeElement, "ArrowLeft", "ArrowRight"))
      set(document.activeElement.dataset.tint, true);
  };
}

/** Return true if the page is dark now: by its own switch, or else by the system's setting. */
export const isDark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

export function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("seq2chat.theme", theme);
  nameTheme();
}

/** Label the button with its action. */
export function nameTheme() {
  const label = isDark() ? "Light colors" : "Dark colors";
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
}
