/** The bar on top: which models are asked, and how their tokens are tinted. */

import { byId, el, iconButton, moveFocus } from "./dom.js";
import { FULL_ENTROPY } from "./tokens.js";

const MOST_MODELS = 3;
const TINTS = [
  ["none", "No tint", "Plain text"],
  ["probability", "Probability", "Stronger where the token was unlikely: none at 100 %, full at 0 %"],
  [
    "entropy",
    "Entropy",
    `Stronger where many tokens were possible: none at 0 bits, full at ${FULL_ENTROPY}. Estimated from the 10 likeliest tokens, the others counted as one: it is never less than this.`,
  ],
];

/** Show a choice for each model that is asked; `use(ids)` takes other ones. */
export function showModels(models, asked, use) {
  const choice = (id, place) => {
    const others = asked.filter((other) => other !== id);
    const options = models.map((model) =>
      el("option", { value: model.id, selected: model.id === id, disabled: others.includes(model.id) }, model.id),
    );
    const change = ({ target }) => use(asked.with(place, target.value));
    const select = el(
      "select",
      { "aria-label": asked.length > 1 ? `Model ${place + 1}` : "Model", onchange: change },
      options,
    );
    const remove = asked.length > 1 && iconButton("close", `Ask ${id} no longer`, () => use(others));
    return el("span", { class: "model" }, select, remove);
  };
  const free = models.find(({ id }) => !asked.includes(id));
  const add =
    free &&
    asked.length &&
    asked.length < MOST_MODELS &&
    iconButton("columns", "Compare with another model", () => use([...asked, free.id]));
  byId("models").replaceChildren(...asked.map(choice), ...(add ? [add] : []));
}

/** Show the switch of the tint; `set(name)` takes another one. */
export function showTint(current, set) {
  document.documentElement.dataset.tint = current;
  const buttons = TINTS.map(([name, label, explained]) => {
    const checked = name === current;
    return el(
      "button",
      {
        type: "button",
        role: "radio",
        "aria-checked": String(checked),
        tabindex: checked ? 0 : -1,
        title: explained,
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

/** Whether the page is dark now: by its own switch, else as the system is. */
const isDark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

export function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("seq2chat.theme", theme);
  nameTheme();
}

/** Say on the button what it does. */
export function nameTheme() {
  const label = isDark() ? "Light colours" : "Dark colours";
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
}
