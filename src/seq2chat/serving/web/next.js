/** The next token: the exact distribution, and the tokens that sampling options cut. */

import { el } from "./dom.js";
import { frame } from "./panel.js";
import { percent, visible } from "./tokens.js";

const EXPLAIN =
  "The softmax of the logits over the whole vocabulary. Temperature divides the logits. Then top-k, " +
  "top-p and min-p cut tokens, in this order, and the rest is scaled to 1. Nothing is computed " +
  "again by the model: move the sliders and see which tokens remain.";

const OPTIONS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, off: 1 },
  { name: "topK", label: "Top-k (0 keeps all)", min: 0, max: 100, step: 1, off: 0 },
  { name: "topP", label: "Top-p", min: 0.05, max: 1, step: 0.01, off: 1 },
  { name: "minP", label: "Min-p", min: 0, max: 0.5, step: 0.01, off: 0 },
];

/**
 * Return the probability of each token after the options, 0 for tokens that are cut, as the server
 * computes it (`generation/sampling.py`).
 */
export function distribution(logits, { temperature, topK, topP, minP }) {
  const order = Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const result = new Float64Array(logits.length);
  if (temperature === 0) {
    result[order[0]] = 1;
    return result;
  }
  const highest = logits[order[0]];
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - highest) / temperature));
  const sum = (tokens) => tokens.reduce((total, token) => total + weights[token], 0);
  // Tokens that are as likely as the last one stay, too.
  const least = topK > 0 ? logits[order[Math.min(topK, order.length) - 1]] : -Infinity;
  let kept = order.filter((token) => logits[token] >= least);
  if (topP < 1) {
    const mass = topP * sum(kept);
    let before = 0;
    kept = kept.filter((token) => {
      const stays = before < mass;
      before += weights[token];
      return stays;
    });
  }
  kept = kept.filter((token) => weights[token] >= minP);
  const total = sum(kept);
  for (const token of kept) result[token] = weights[token] / total;
  return result;
}

export async function next({ trace, tensor }) {
  const { values: logits } = await tensor("logits", { position: trace.position, format: "f32" });
  const options = Object.fromEntries(OPTIONS.map(({ name, off }) => [name, off]));
  const plain = distribution(logits, options);
  const order = trace.top.map(({ id }) => id);
  const names = trace.top.map(({ text }) => text);
  const list = el("ul", { class: "bars" });
  const summary = el("p", { class: "told", role: "status" });
  const show = () => {
    const shares = distribution(logits, options);
    const kept = shares.reduce((sum, share) => sum + (share > 0), 0);
    const mass = plain.reduce((sum, share, token) => sum + (shares[token] > 0 ? share : 0), 0);
    summary.textContent = `${kept.toLocaleString("en")} of ${logits.length.toLocaleString("en")} tokens remain. They had ${percent(Math.log(mass))} of the probability.`;
    list.replaceChildren(
      ...order.map((token, i) =>
        el(
          "li",
          { class: shares[token] ? "" : "cut", "data-token-id": token },
          el("span", { class: "piece" }, visible(names[i])),
          el("span", { class: "gauge", vars: { "--share": shares[token] } }),
          el("span", { class: "share" }, shares[token] ? percent(Math.log(shares[token])) : "cut"),
          el("span", { class: "share help" }, percent(Math.log(plain[token]))),
        ),
      ),
    );
  };
  const sliders = OPTIONS.map(({ name, label, min, max, step, off }) => {
    const output = el("output", {}, String(off));
    return el(
      "label",
      { class: "slider" },
      el("span", {}, label, " ", output),
      el("input", {
        type: "range",
        "aria-label": label,
        min,
        max,
        step,
        value: off,
        oninput: ({ target }) => {
          options[name] = Number(target.value);
          output.textContent = target.value;
          show();
        },
      }),
    );
  });
  show();
  return frame(
    {
      title: "Next token",
      explain: EXPLAIN,
      data: () => ({ position: trace.position, logits: [...logits] }),
      rows: () => [
        ["Token", "Probability"],
        ...order.map((token, i) => [visible(names[i]), percent(Math.log(plain[token]))]),
      ],
    },
    el("div", { class: "sliders" }, sliders),
    summary,
    list,
  );
}
