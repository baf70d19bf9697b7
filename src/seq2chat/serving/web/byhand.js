/** By hand: one head on at most eight tokens, with every number from q, k and v to z. */

import { chooser, maps } from "./attention.js";
import { el } from "./dom.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const MOST = 8; // tokens
const SHOWN = 6; // numbers of a vector
const FAR = 1e-3; // a difference that rounding does not explain, as in GPT-Neo without √d
const EXPLAIN =
  "Attention of one head, computed here from the model's own q, k and v: scores q·k, divided by √d, " +
  "masked, and turned into weights by a softmax. z is the weighted sum of the values. The last line " +
  "compares with the weights that the model itself used.";

/** Return the steps of one head: arrays of rows. `q`, `k` and `v` are rows of numbers. */
export function byHand(q, k, v, causal) {
  const d = q[0].length;
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const scores = q.map((row) => k.map((other) => dot(row, other)));
  const scaled = scores.map((row) => row.map((score) => score / Math.sqrt(d)));
  const masked = scaled.map((row, i) =>
    row.map((score, j) => (causal && j > i ? -Infinity : score)),
  );
  const weights = masked.map((row) => {
    const highest = Math.max(...row);
    const powers = row.map((score) => Math.exp(score - highest));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  });
  const z = weights.map((row) =>
    v[0].map((_, c) => row.reduce((sum, w, j) => sum + w * v[j][c], 0)),
  );
  return { scores, scaled, masked, weights, z };
}

export async function hand({ trace, state, tensor, go }) {
  const group = maps(trace).find(({ name }) => /^(layers|decoder).*self_attn/.test(name));
  if (!group) return el("p", { class: "help" }, "This panel needs dot-product attention.");
  const [nLayer, nHead] = group.shape;
  const layer = Math.min(state.layer ?? 0, nLayer - 1);
  const head = Math.min(state.head ?? 0, nHead - 1);
  const n = Math.min(MOST, trace.tokens.length);
  const [q, k, v, own] = await Promise.all([
    ...["query", "key", "value"].map((name) =>
      tensor(`${group.name}.${name}`, { layer, until: n, format: "f32" }),
    ),
    tensor(group.name, { layer, head, format: "f32" }),
  ]);
  const d = q.shape.at(-1);
  // Several heads share one key and value in grouped-query attention.
  const rowsOf = ({ values, shape }) => {
    const heads = shape[1];
    const one = Math.floor((head * heads) / nHead);
    return Array.from({ length: n }, (_, t) => [
      ...values.subarray((t * heads + one) * d, (t * heads + one + 1) * d),
    ]);
  };
  const causal = trace.family !== "bert";
  const vectors = { q: rowsOf(q), k: rowsOf(k), v: rowsOf(v) };
  const steps = byHand(vectors.q, vectors.k, vectors.v, causal);
  const names = trace.tokens.slice(0, n).map(({ text }) => visible(text));
  const gap = Math.max(
    ...steps.weights.flatMap((row, i) =>
      row.map((w, j) => Math.abs(w - own.values[i * own.shape.at(-1) + j])),
    ),
  );
  const whole = causal || n === trace.tokens.length;
  return frame(
    {
      title: "By hand",
      explain: EXPLAIN,
      data: () => ({ layer, head, ...vectors, ...steps }),
      rows: () => [["", ...names], ...steps.weights.map((row, i) => [names[i], ...row.map(short)])],
    },
    el(
      "div",
      { class: "choices" },
      chooser("Layer", layer, nLayer, (i) => go({ layer: i })),
      chooser("Head", head, nHead, (i) => go({ head: i })),
    ),
    el(
      "div",
      { class: "hand" },
      [
        ["q", vectors.q, `the first ${Math.min(SHOWN, d)} of ${d} numbers`],
        ["k", vectors.k, ""],
        ["v", vectors.v, ""],
      ].map(([name, rows, note]) =>
        numberTable(
          name,
          note,
          null,
          names,
          rows.map((row) => row.slice(0, SHOWN)),
        ),
      ),
      numberTable("scores = q·k", "", names, names, steps.scores),
      numberTable(`scores ÷ √${d}`, "", names, names, steps.scaled),
      numberTable(
        "mask",
        causal ? "the future becomes −∞" : "none: every token reads all",
        names,
        names,
        steps.masked,
      ),
      numberTable("softmax", "each row adds up to 1", names, names, steps.weights, true),
      numberTable(
        "z = weights · v",
        `the first ${Math.min(SHOWN, d)} of ${d} numbers`,
        null,
        names,
        steps.z.map((row) => row.slice(0, SHOWN)),
      ),
    ),
    el(
      "p",
      { class: "told" },
      whole
        ? `The largest difference from the model's own weights is ${gap.toExponential(1)}.` +
            (gap > FAR ? " This model scales or masks its scores in another way." : "")
        : `The text has more than ${MOST} tokens, and all of them are read here, so the weights among the first ${MOST} differ from the model's. Trace a shorter text.`,
    ),
  );
}

/** Return a table of numbers with two decimals below a title. */
export function numberTable(title, note, head, names, rows, shaded = false) {
  const number = (value) =>
    value === -Infinity
      ? "−∞"
      : Number.isFinite(value)
        ? value.toFixed(2).replace("-0.00", "0.00")
        : "";
  return el(
    "figure",
    {},
    el("figcaption", {}, title, note && el("span", { class: "help" }, ` ${note}`)),
    el(
      "table",
      { class: "numbers" },
      head &&
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", {}),
            head.map((name) => el("th", { scope: "col" }, name)),
          ),
        ),
      el(
        "tbody",
        {},
        rows.map((row, i) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, names[i]),
            row.map((value) =>
              el(
                "td",
                { class: shaded ? "shaded" : "", vars: { "--share": value } },
                number(value),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
