/** Flow: one token through all stages, from its number to the next token, with its real vectors. */

import { el } from "./dom.js";
import { strip } from "./heat.js";
import { partName } from "./lens.js";
import { frame, short, toTable } from "./panel.js";
import { percent, visible } from "./tokens.js";

const EXPLAIN =
  "The chosen token on its way through the model. Its number selects a row of the embedding. Each " +
  "layer then adds what its attention and its MLP write (and normalizes the sum, if its norms come " +
  "after them). Every strip is the vector itself: one cell " +
  "per number, green is positive and red is negative. The number beside it is its length (norm).";

const GPT3 = {
  n_layer: 96,
  d_model: 12288,
  n_head: 96,
  context: 2048,
  vocab_size: 50257,
  parameters: 175e9,
};
const STRIP = 640; // pixels

export async function flow({ trace, tensor, model, go }) {
  const { position } = trace;
  if (!trace.lens)
    return el(
      "p",
      { class: "help" },
      `A ${trace.family} has states instead of a stream: see its panel.`,
    );
  const stack = trace.lens[0].site.replace(".input", "");
  const hasSource = trace.source !== null;
  const [input, attn, cross, mlp, stream] = await Promise.all(
    [".input", ".*.self_attn", hasSource && ".*.cross_attn", ".*.mlp", ".*"].map(
      (part) => part && tensor(`${stack}${part}`, { position, format: "f32" }),
    ),
  );
  const open = (layer, branch) => () =>
    go({ panel: "attention", map: `${stack}.*.${branch}.heads`, layer });
  const d = input.values.length;
  const nLayer = stream.values.length / d;
  const slice = (tensorOf, layer) => tensorOf.values.subarray(layer * d, (layer + 1) * d);
  const steps = [
    step(
      `embedding of “${visible(trace.tokens[position].text)}” (id ${trace.tokens[position].id})`,
      `1 × ${d}`,
      input.values,
    ),
  ];
  for (let layer = 0; layer < nLayer; layer++) {
    steps.push(
      step(
        `layer ${layer}: attention adds`,
        `1 × ${d}`,
        slice(attn, layer),
        open(layer, "self_attn"),
      ),
      ...(cross
        ? [
            step(
              `layer ${layer}: cross-attention adds`,
              `1 × ${d}`,
              slice(cross, layer),
              open(layer, "cross_attn"),
            ),
          ]
        : []),
      step(`layer ${layer}: MLP adds`, `1 × ${d}`, slice(mlp, layer), () =>
        go({ panel: "neurons", layer }),
      ),
      step(`the stream after layer ${layer}`, `1 × ${d}`, slice(stream, layer), () =>
        go({ panel: "lens" }),
      ),
    );
  }
  const shape = {
    n_layer: nLayer,
    d_model: d,
    context: model.context,
    vocab_size: model.vocab_size,
    parameters: model.parameters,
  };
  return frame(
    {
      title: "Flow",
      explain: EXPLAIN,
      data: () => ({ position, input: [...input.values], stream: [...stream.values] }),
      rows: () => [
        ["Stage", "Norm"],
        ...trace.lens.map(({ site, norm }) => [partName(site), short(norm)]),
      ],
    },
    sizes(shape),
    el("ol", { class: "flow" }, steps),
    el(
      "p",
      { class: "told" },
      "The last norm and the output matrix turn the stream into one logit per token, and the softmax into: ",
      trace.top
        .slice(0, 5)
        .map((token) =>
          el(
            "button",
            { type: "button", class: "outcome", onclick: () => go({ panel: "next" }) },
            el("span", { class: "piece" }, visible(token.text)),
            " ",
            percent(token.logprob),
          ),
        ),
    ),
  );
}

function step(name, shape, values, open) {
  const norm = Math.hypot(...values);
  const canvas = strip(values, STRIP, 18, `${values.length} numbers with norm ${short(norm)}`);
  return el(
    "li",
    {},
    open
      ? el("button", { type: "button", class: "link", onclick: open }, name)
      : el("span", {}, name),
    canvas,
    el("span", { class: "help" }, `${shape}, norm ${short(norm)}`),
  );
}

/** Return a table of the model's shape beside GPT-3's. */
function sizes(shape) {
  const rows = [
    ["layers", "n_layer"],
    ["width", "d_model"],
    ["context", "context"],
    ["vocabulary", "vocab_size"],
    ["parameters", "parameters"],
  ];
  const count = (value) => (value === undefined ? "" : value.toLocaleString("en"));
  return el(
    "details",
    {},
    el(
      "summary",
      {},
      `This model: ${count(shape.parameters)} parameters, ${shape.n_layer} layers of width ${shape.d_model}. Compare with GPT-3`,
    ),
    toTable([
      ["", "this model", "GPT-3"],
      ...rows.map(([label, key]) => [label, count(shape[key]), count(GPT3[key])]),
    ]),
  );
}
