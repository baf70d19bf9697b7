/** Neurons: the strongest activations of one layer at one token, and where else they fire. */

import { chooser } from "./attention.js";
import { el } from "./dom.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const EXPLAIN =
  "The MLP of a layer has many neurons: the numbers between its two matrices. These are the " +
  "strongest at the chosen token, each with its activation at every token of the text.";
const SHOWN = 16;

export async function neurons({ trace, state, tensor, go }) {
  const group = trace.sites.find(({ name }) => /^(layers|decoder).*mlp\.activation$/.test(name));
  if (!group) return el("p", { class: "help" }, "This model has no MLP.");
  const [nLayer, , nNeuron] = group.shape;
  const layer = Math.min(state.layer ?? 0, nLayer - 1);
  const { position } = trace;
  const own = await tensor(group.name, { layer, position, format: "f32" });
  const order = Array.from({ length: nNeuron }, (_, i) => i)
    .sort((a, b) => Math.abs(own.values[b]) - Math.abs(own.values[a]))
    .slice(0, SHOWN);
  const { values } = await tensor(group.name, { layer, dims: order.join(","), format: "f32" });
  const at = (neuron, token) => values[token * order.length + order.indexOf(neuron)];
  const reach = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  return frame(
    {
      title: "Neurons",
      explain: EXPLAIN,
      data: () =>
        order.map((neuron) => ({ neuron, activations: trace.tokens.map((_, t) => at(neuron, t)) })),
      rows: () => [
        ["Neuron", ...trace.tokens.map(({ text }) => visible(text))],
        ...order.map((neuron) => [neuron, ...trace.tokens.map((_, t) => short(at(neuron, t)))]),
      ],
    },
    el(
      "div",
      { class: "choices" },
      chooser("Layer", layer, nLayer, (i) => go({ layer: i })),
      el(
        "span",
        { class: "help" },
        `${nNeuron.toLocaleString("en")} neurons, strongest at “${visible(trace.tokens[position].text)}”`,
      ),
    ),
    el(
      "ul",
      { class: "neurons" },
      order.map((neuron) =>
        el(
          "li",
          {},
          el("span", { class: "share" }, `#${neuron} ${short(at(neuron, position))}`),
          el(
            "span",
            {},
            trace.tokens.map(({ text }, t) =>
              el(
                "span",
                {
                  class: at(neuron, t) < 0 ? "fires minus" : "fires",
                  title: short(at(neuron, t)),
                  vars: { "--share": Math.abs(at(neuron, t)) / reach },
                },
                text,
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
