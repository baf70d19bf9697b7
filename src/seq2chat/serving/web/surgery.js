/** Surgery: switch off heads and MLPs, and see how the prediction changes. */

import { maps } from "./attention.js";
import { el } from "./dom.js";
import { frame, short, toTable } from "./panel.js";
import { percent, visible } from "./tokens.js";

const EXPLAIN =
  "Switch parts of the model off: their output becomes zero, and the pass runs again. If the " +
  "followed token becomes less likely, the part helped to write it. Or replace parts by those of " +
  "another text of the same length (activation patching), and see which of them carry the difference.";

export async function surgery({ trace, api, spec, state, go }) {
  // Places such as "0.1" are heads of cross-attention in an encoder–decoder.
  const branch = trace.family === "transformer" ? "cross_attn" : "self_attn";
  const group = maps(trace).find(({ name }) => name.endsWith(`*.${branch}.heads`));
  if (!group)
    return el(
      "p",
      { class: "help" },
      "Surgery on this page is for Transformers; see docs/inside.md for RNNs.",
    );
  const [nLayer, nHead] = group.shape;
  const kind = branch === "cross_attn" ? "cross-attention " : "";
  const off = new Set((state.off ?? "").split(",").filter(Boolean));
  const toggle = (name) => () => {
    if (!off.delete(name)) off.add(name);
    go({ off: [...off].join(",") || undefined });
  };
  const cell = (name, label) =>
    el(
      "button",
      {
        type: "button",
        class: "part",
        "aria-pressed": String(off.has(name)),
        "aria-label": label,
        title: label,
        onclick: toggle(name),
      },
      name.endsWith("mlp") ? "MLP" : name.split(".")[1],
    );
  const rows = Array.from({ length: nLayer }, (_, layer) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, `layer ${layer}`),
      Array.from({ length: nHead }, (_, head) =>
        el("td", {}, cell(`${layer}.${head}`, `layer ${layer}, ${kind}head ${head}`)),
      ),
      el("td", {}, cell(`${layer}.mlp`, `layer ${layer}, MLP`)),
    ),
  );
  const interventions = [...off].map((name) => ({ site: name }));
  const request =
    state.map_of === undefined ? null : state.map_of ? { from: { text: state.map_of } } : {};
  const reply =
    interventions.length || request
      ? await api.trace({
          ...spec,
          target: trace.target.id,
          ...(interventions.length && { interventions }),
          ...(request && { effects: request }),
        })
      : {};
  if (reply.effects) color(rows, reply.effects.values);
  const other = el("input", {
    id: "other",
    value: state.map_of ?? "",
    placeholder: "Another text with equally many tokens",
    "aria-label": "Text to take the heads from",
  });
  const measure = (text) => go({ map_of: text, off: undefined });
  return frame(
    {
      title: "Surgery",
      explain: EXPLAIN,
      data: () => ({ interventions, effect: reply.effect, effects: reply.effects }),
      rows: () =>
        reply.effects
          ? [
              ["", ...reply.effects.values[0].map((_, head) => `head ${head}`)],
              ...reply.effects.values.map((row, layer) => [`layer ${layer}`, ...row.map(short)]),
            ]
          : [
              ["Token", "Before", "After"],
              ...(reply.effect?.tokens ?? []).map((t) => [
                visible(t.text),
                percent(t.before),
                percent(t.after),
              ]),
            ],
    },
    el(
      "p",
      { class: "told", role: "status" },
      reply.effects
        ? `${reply.effects.question} The numbers are the changes of the log-probability of “${visible(trace.target.text)}”, in nats.`
        : off.size
          ? `${off.size} part${off.size === 1 ? " is" : "s are"} switched off:`
          : "Nothing is switched off. Choose a head or an MLP.",
    ),
    reply.effects &&
      largest(reply.effects.values, (layer, head) =>
        go({ panel: "attention", map: group.name, layer, head }),
      ),
    reply.effect && changes(reply.effect),
    el(
      "form",
      {
        class: "choices",
        onsubmit: (event) => {
          event.preventDefault();
          if (other.value.trim()) measure(other.value);
        },
      },
      el(
        "button",
        { type: "button", class: "button", onclick: () => measure("") },
        "Switch each head off in turn",
      ),
      other,
      el("button", { class: "button" }, "Take each head from this text"),
      (off.size > 0 || request) &&
        el(
          "button",
          {
            type: "button",
            class: "button",
            onclick: () => go({ off: undefined, map_of: undefined }),
          },
          "Start again",
        ),
    ),
    el("div", { class: "scroll" }, el("table", { class: "parts" }, el("tbody", {}, rows))),
  );
}

function changes({ tokens }) {
  const rows = tokens.map(({ text, before, after, delta }) => [
    el("span", { class: "piece" }, visible(text)),
    percent(before),
    percent(after),
    el("span", { class: delta < 0 && "minus" }, `${short(delta)} nats`),
  ]);
  return toTable([["token", "before", "after", "Δ log-probability"], ...rows], "effects");
}

/** Return a sentence about the heads with the largest effects, which open their attention. */
function largest(values, open) {
  const all = values.flatMap((row, layer) => row.map((delta, head) => ({ layer, head, delta })));
  const first = all.sort((a, b) => Math.abs(b.delta) - Math.abs(a.delta)).slice(0, 3);
  const links = first.map(({ layer, head, delta }) =>
    el(
      "button",
      { type: "button", class: "link", onclick: () => open(layer, head) },
      `layer ${layer}, head ${head} (${short(delta)})`,
    ),
  );
  return el("p", { class: "largest" }, "The largest effects: ", links);
}

/** Write the effect of each head into its button. */
function color(rows, values) {
  const reach = Math.max(...values.flat().map(Math.abs)) || 1;
  values.forEach((row, layer) =>
    row.forEach((delta, head) => {
      const cell = rows[layer].querySelectorAll("button")[head];
      cell.textContent = delta.toFixed(2);
      cell.title += `: ${short(delta)} nats`;
      cell.classList.toggle("minus", delta < 0);
      cell.style.setProperty("--share", (Math.abs(delta) / reach).toFixed(3));
    }),
  );
}
