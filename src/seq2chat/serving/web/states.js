/** States: the hidden vectors and gates of an RNN, one step after another. */

import { chooser } from "./attention.js";
import { el } from "./dom.js";
import { strip } from "./heat.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const EXPLAIN =
  "An RNN has one state per layer, which it changes token by token. Gates between 0 and 1 say how " +
  "much of the old state stays (z of a GRU, f of an LSTM) and how much is read (r, i, o). Each strip " +
  "is one vector: green is positive and red is negative.";
const STRIP = 420; // pixels
const GATES = { 3: ["r", "z", "n"], 4: ["i", "f", "g", "o"] };

/** Return the groups of states and gates, in the order of the model. */
export const stateSites = (trace) =>
  trace.sites.filter(({ name }) => /^(encoder\.(forward|backward)|decoder\.cells)\b/.test(name));

export async function states({ trace, state, tensor, go }) {
  const groups = stateSites(trace);
  if (!groups.length)
    return el(
      "p",
      { class: "help" },
      "Only an RNN has states. This model reads all tokens at once, by attention.",
    );
  const group = groups.find(({ name }) => name === state.site) ?? groups.at(-1);
  const hasLayers = group.axes[0] === "layer";
  const layer = Math.min(state.layer ?? 0, hasLayers ? group.shape[0] - 1 : 0);
  const { values, axes, shape } = await tensor(group.name, {
    format: "f32",
    ...(hasLayers && { layer }),
  });
  const tokens = group.name.startsWith("encoder") ? trace.source : trace.tokens;
  const nGate = axes.includes("gate") ? shape[1] : 1;
  const d = shape.at(-1);
  const vector = (step, gate) =>
    values.subarray((step * nGate + gate) * d, (step * nGate + gate + 1) * d);
  const names = nGate > 1 ? GATES[nGate] : [""];
  const steps = tokens.map(({ text }, step) =>
    el(
      "li",
      { "aria-current": step === trace.position && tokens === trace.tokens && "step" },
      el("span", { class: "piece" }, visible(text)),
      el(
        "div",
        {},
        names.map((name, gate) =>
          el(
            "div",
            { class: "gate" },
            name && el("i", {}, name),
            strip(
              vector(step, gate),
              STRIP,
              14,
              `${name} of step ${step}: norm ${short(Math.hypot(...vector(step, gate)))}`,
            ),
          ),
        ),
      ),
    ),
  );
  return frame(
    {
      title: "States",
      explain: EXPLAIN,
      data: () => ({ site: group.name, layer, shape, values: [...values] }),
      rows: () => [
        ["Token", ...names.map((name) => `norm ${name}`.trim())],
        ...tokens.map(({ text }, step) => [
          visible(text),
          ...names.map((_, gate) => short(Math.hypot(...vector(step, gate)))),
        ]),
      ],
    },
    el(
      "div",
      { class: "choices" },
      el(
        "select",
        {
          "aria-label": "States or gates",
          onchange: ({ target }) => go({ site: target.value, layer: 0 }),
        },
        groups.map(({ name }) => el("option", { value: name, selected: name === group.name }, name)),
      ),
      hasLayers &&
        group.shape[0] > 1 &&
        chooser("Layer", layer, group.shape[0], (i) => go({ layer: i })),
    ),
    el("ol", { class: "steps" }, steps),
  );
}
