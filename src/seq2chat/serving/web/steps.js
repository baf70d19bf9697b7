/** The checkpoints of one run among the served models, and a slider over them. */

import { el } from "./dom.js";

/** Return the checkpoints of the model's run among the served models, by step: `[{step, id}]`. */
export function siblings(models, id) {
  const parse = (name) => name.match(/^(.*?)-?step-(\d+)$/);
  const own = parse(id);
  if (!own) return [];
  return models
    .map((model) => ({ id: model.id, match: parse(model.id) }))
    .filter(({ match }) => match?.[1] === own[1])
    .map(({ id, match }) => ({ id, step: Number(match[2]) }))
    .sort((a, b) => a.step - b.step);
}

/** Return a slider over the checkpoints of the model's run, or "" if only one is served. */
export function slider(models, model, go) {
  const steps = siblings(models, model.id);
  if (steps.length < 2) return "";
  const at = steps.findIndex(({ id }) => id === model.id);
  return el(
    "label",
    { class: "steps-slider" },
    `Step ${steps[at].step.toLocaleString("en")}`,
    el("input", {
      type: "range",
      min: 0,
      max: steps.length - 1,
      value: at,
      "aria-label": "Checkpoint",
      "aria-valuetext": `step ${steps[at].step}`,
      onchange: ({ target }) => go({ model: steps[target.value].id }),
    }),
  );
}
