/** LSI: a matrix through a few topics, and why W^Q and W^K learn the same. No model is needed. */

import { chooser } from "./attention.js";
import { numberTable } from "./byhand.js";
import { Scatter } from "./scatter.js";
import { el } from "./dom.js";
import { EXAMPLES } from "./lsi_examples.js";
import { frame, short } from "./panel.js";
import { product, svd, transposed } from "./svd.js";

const EXPLAIN =
  "The singular value decomposition M = U S Vᵀ finds topics that nobody named: S is the strength of " +
  "each, V how much of it is in a column, and U how much in a row. With the k strongest alone, M is " +
  "reproduced as well as any k topics can (Eckart and Young 1936). Attention reads in the same way: " +
  "its score x W^Q (y W^K)ᵀ projects both sides into a small space and compares them there. Trained " +
  "to predict similarities, W^Q W^Kᵀ becomes V Vᵀ. Change any number of M.";
const LIMIT = 1e6; // size of a number

/** Return the matrix in the address, or that of the example. */
function matrixOf(state, example) {
  const values = [...example.values, ...example.freshValues];
  const cells = (state.cells ?? "").split(";").map((row) => row.split(",").map(Number));
  const fits =
    cells.length === values.length &&
    cells.every((row) => row.length === values[0].length && row.every(isUsable));
  return fits ? cells : values;
}

const isUsable = (value) => Number.isFinite(value) && Math.abs(value) <= LIMIT;

/**
 * Return all numbers of the panel for a matrix whose last rows are new: `{u, s, v, k, low, error,
 * query, scores, dots, weights}`. `query` has all rows by topics, `scores` their products.
 */
export function decomposed(all, nFresh, k) {
  const known = all.slice(0, all.length - nFresh);
  const { u, s, v } = svd(known);
  const cut = (rows) => rows.map((row) => row.slice(0, k));
  const vk = cut(v);
  const scaled = cut(u).map((row) => row.map((x, i) => x * s[i]));
  const query = product(all, vk);
  return {
    k,
    u: cut(u),
    s,
    v: vk,
    low: product(scaled, transposed(vk)),
    error: Math.hypot(...s.slice(k)),
    query,
    scores: product(query, transposed(query)),
    dots: product(all, transposed(all)),
    weights: product(vk, transposed(vk)),
  };
}

export async function lsi({ state, go }) {
  const example = EXAMPLES[state.example] ?? EXAMPLES.movies;
  const all = matrixOf(state, example);
  const names = [...example.rows, ...example.fresh];
  const rank = Math.min(example.rows.length, example.columns.length);
  const k = Math.max(1, Math.min(rank, state.k ?? 2));
  const result = decomposed(all, example.fresh.length, k);
  const topics = Array.from({ length: k }, (_, i) => `topic ${i + 1}`);
  const [first, second] = pair(state, names);
  return frame(
    {
      title: "LSI",
      explain: EXPLAIN,
      data: () => ({ rows: names, columns: example.columns, matrix: all, ...result }),
      rows: () => [
        ["", ...example.columns],
        ...result.low.map((row, i) => [names[i], ...row.map(short)]),
      ],
    },
    el(
      "div",
      { class: "choices" },
      el(
        "select",
        {
          "aria-label": "Example",
          onchange: ({ target }) =>
            go({ example: target.value, cells: undefined, first: undefined, second: undefined }),
        },
        Object.entries(EXAMPLES).map(([name, { label }]) =>
          el("option", { value: name, selected: EXAMPLES[name] === example }, label),
        ),
      ),
      chooser("Topics", k, rank + 1, (value) => go({ k: Math.max(1, value) })),
      el("span", { class: "help" }, example.source),
    ),
    el(
      "div",
      { class: "hand" },
      editor(all, names, example, go),
      numberTable("S", "the strength of each topic", null, ["strength"], [result.s]),
      numberTable("V", "of each column", topics, example.columns, result.v),
      numberTable("U", "of each row", topics, example.rows, result.u),
      numberTable(
        `U S Vᵀ with ${k} topic${k === 1 ? "" : "s"}`,
        `the distance from M is ${short(result.error)}`,
        example.columns,
        example.rows,
        result.low,
      ),
      scatter(result, names, example.rows.length),
    ),
    reading(result, names, [first, second], go),
    el(
      "div",
      { class: "hand" },
      numberTable("W^Q W^Kᵀ = V Vᵀ", "", example.columns, example.columns, result.weights),
    ),
  );
}

function pair(state, names) {
  const index = (value, otherwise) => (value >= 0 && value < names.length ? value : otherwise);
  return [index(state.first, names.length - 2), index(state.second, names.length - 1)];
}

/** Return the matrix as number fields. A changed one goes into the address. */
function editor(all, names, example, go) {
  const change = (i, j) => (event) => {
    const value = event.target.value.trim() === "" ? NaN : Number(event.target.value);
    if (!isUsable(value)) return (event.target.value = all[i][j]);
    const cells = all.map((row, r) => row.map((x, c) => (r === i && c === j ? value : x)));
    go({ cells: cells.map((row) => row.join(",")).join(";") });
  };
  const most = Math.max(...all.flat().map(Math.abs)) || 1;
  const cell = (value, i, j) =>
    el(
      "td",
      { class: "shaded", vars: { "--share": Math.abs(value) / most } },
      el("input", {
        type: "number",
        step: "any",
        value,
        "aria-label": `${names[i]}, ${example.columns[j]}`,
        onchange: change(i, j),
      }),
    );
  const isNew = (i) => i >= example.rows.length;
  return el(
    "figure",
    {},
    el("figcaption", {}, "M", el("span", { class: "help" }, " the last two rows are new: x V")),
    el(
      "table",
      { class: "numbers editable" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", {}),
          example.columns.map((name) => el("th", { scope: "col" }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        all.map((row, i) =>
          el(
            "tr",
            { class: isNew(i) && "fresh" },
            el("th", { scope: "row" }, names[i]),
            row.map((value, j) => cell(value, i, j)),
          ),
        ),
      ),
    ),
  );
}

function scatter({ query, k }, names, nKnown) {
  if (k < 2) return "";
  const points = query.map(([x, y], i) => ({ x, y, name: names[i], isNew: i >= nKnown }));
  return el(
    "figure",
    {},
    el("figcaption", {}, "Rows by the first two topics: M V"),
    new Scatter(points, "The rows by the first two topics").canvas,
  );
}

/** Return the similarity of two rows as a score of attention. */
function reading({ query, scores, dots }, names, [first, second], go) {
  const choose = (name, label, value) =>
    el(
      "select",
      { "aria-label": label, onchange: ({ target }) => go({ [name]: target.value }) },
      names.map((row, i) => el("option", { value: i, selected: i === value }, row)),
    );
  const cosine = (m) => {
    const size = Math.sqrt(m[first][first] * m[second][second]);
    return size ? (m[first][second] / size).toFixed(2) : "0";
  };
  const vector = (values) => `(${values.map((x) => x.toFixed(2)).join(", ")})`;
  return el(
    "div",
    { class: "choices" },
    el("b", {}, "As attention:"),
    choose("first", "Row that asks", first),
    "asks",
    choose("second", "Row that is read", second),
    el(
      "p",
      { class: "told" },
      `q = x W^Q = ${vector(query[first])}, k = y W^K = ${vector(query[second])}, so q·k = ` +
        `${scores[first][second].toFixed(2)} with cosine ${cosine(scores)}. Without topics, ` +
        `x·y = ${dots[first][second].toFixed(2)} with cosine ${cosine(dots)}.`,
    ),
  );
}
