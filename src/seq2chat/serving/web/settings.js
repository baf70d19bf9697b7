/** Settings for sampling and display. They are stored in this browser and changed in a drawer. */

import { el, iconButton, openDialog } from "./dom.js";

const KEY = "seq2chat.settings";

/** The numbers of the sampling panel. With the value `off`, an option has no effect. */
const NUMBERS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    value: 0, // small models are often wrong at more
    off: 1,
    help: "Lower values make answers more predictable. 0 always takes the most likely token.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.05,
    max: 1,
    step: 0.05,
    value: 0.95,
    off: 1,
    help: "Keeps the most likely tokens that together have this probability.",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 0,
    max: 100,
    step: 1,
    value: 0,
    off: 0,
    help: "Keeps this many of the most likely tokens. 0 keeps all.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    value: 0,
    off: 0,
    help: "Keeps tokens with at least this share of the largest probability.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 1,
    max: 2,
    step: 0.05,
    value: 1,
    off: 1,
    help: "Above 1, tokens that were seen before become less likely.",
  },
];
const DEFAULTS = {
  ...Object.fromEntries(NUMBERS.map(({ name, value }) => [name, value])),
  maxTokens: 128,
  seed: null,
  frame: "text",
  tint: "probability",
};

export class Settings {
  constructor() {
    this.values = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };
  }

  set(name, value) {
    this.values[name] = value;
    localStorage.setItem(KEY, JSON.stringify(this.values));
  }

  reset() {
    const { tint } = this.values;
    this.values = { ...DEFAULTS };
    this.set("tint", tint);
  }

  /** Return the sampling fields of a request. Options that are off are left out. */
  sampling(maxTokens) {
    const { seed, ...values } = this.values;
    const on = NUMBERS.filter(({ name, off }) => values[name] !== off).map(({ name }) => [
      name,
      values[name],
    ]);
    return {
      temperature: 1,
      ...Object.fromEntries(on),
      max_tokens: maxTokens,
      ...(seed !== null && { seed }),
    };
  }
}

/**
 * Open the drawer. `system` holds the instructions of the conversation, `instruct(text)` changes
 * them, and `own` is shown while there are none.
 */
export function openSettings(dialog, settings, system, own, instruct) {
  const close = iconButton("close", "Close", () => dialog.close());
  const reset = el(
    "button",
    {
      type: "button",
      class: "button",
      onclick: () => (
        settings.reset(),
        openSettings(dialog, settings, dialog.querySelector("#system").value, own, instruct)
      ),
    },
    "Reset sampling",
  );
  openDialog(
    dialog,
    el("header", {}, el("h2", { id: "settings-title" }, "Settings"), close),
    section(
      "This conversation",
      el("label", { for: "system" }, "Instructions (system prompt)"),
      el(
        "textarea",
        {
          id: "system",
          rows: 4,
          placeholder: own,
          oninput: ({ target }) => instruct(target.value),
        },
        system,
      ),
      el(
        "p",
        { class: "help" },
        "They precede all messages from the next answer on. Base models ignore them.",
      ),
    ),
    section(
      "Sampling",
      NUMBERS.map((number) => slider(settings, number)),
      limit(settings),
      seed(settings),
      reset,
    ),
    section("Base models", frame(settings)),
  );
}

const section = (title, ...content) => el("section", {}, el("h3", {}, title), content);

/** Return a range and a number field for the same value. */
function slider(settings, { name, label, min, max, step, help }) {
  const attributes = { min, max, step, value: settings.values[name] };
  const range = el("input", {
    type: "range",
    ...attributes,
    "aria-label": label,
    tabindex: -1,
    "aria-hidden": true,
  });
  const field = el("input", {
    type: "number",
    id: name,
    ...attributes,
    "aria-describedby": `${name}-help`,
  });
  const take = (from, to) => {
    const value = Math.min(max, Math.max(min, Number(from.value)));
    to.value = value;
    settings.set(name, value);
  };
  range.addEventListener("input", () => take(range, field));
  field.addEventListener("change", () => (take(field, range), (field.value = range.value)));
  return el(
    "div",
    { class: "setting" },
    el("label", { for: name }, label),
    field,
    range,
    el("p", { class: "help", id: `${name}-help` }, help),
  );
}

function limit(settings) {
  const take = ({ target }) => {
    target.value = Math.max(1, Math.round(Number(target.value)) || DEFAULTS.maxTokens);
    settings.set("maxTokens", Number(target.value));
  };
  const field = el("input", {
    type: "number",
    id: "max-tokens",
    min: 1,
    step: 1,
    value: settings.values.maxTokens,
    onchange: take,
  });
  return el(
    "div",
    { class: "setting" },
    el("label", { for: "max-tokens" }, "Maximum tokens per answer"),
    field,
  );
}

function seed(settings) {
  const take = ({ target }) => {
    const value = Math.round(Number(target.value));
    const isSet = target.value !== "" && value >= 0;
    target.value = isSet ? value : "";
    settings.set("seed", isSet ? value : null);
  };
  const field = el("input", {
    type: "number",
    id: "seed",
    min: 0,
    step: 1,
    placeholder: "random",
    value: settings.values.seed,
    onchange: take,
    "aria-describedby": "seed-help",
  });
  const help = el(
    "p",
    { class: "help", id: "seed-help" },
    "The same seed gives the same answer to the same question.",
  );
  return el("div", { class: "setting" }, el("label", { for: "seed" }, "Seed"), field, help);
}

function frame(settings) {
  const option = (value, text) =>
    el("option", { value, selected: settings.values.frame === value }, text);
  const field = el(
    "select",
    {
      id: "frame",
      onchange: ({ target }) => settings.set("frame", target.value),
      "aria-describedby": "frame-help",
    },
    option("text", "the plain text"),
    option("question", "Question: … Answer:"),
  );
  const help = el(
    "p",
    { class: "help", id: "frame-help" },
    "A base model isn't trained to chat: it continues a text. Choose the form of that text.",
  );
  return [el("label", { for: "frame" }, "Prompt"), field, help];
}
