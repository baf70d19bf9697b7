/** Curves: every metric that the runs record, training and validation in one chart. */

import { Chart } from "./chart.js";
import { el } from "./dom.js";
import { CHANGED, frame, short } from "./panel.js";

const EXPLAIN =
  "Lines are training, dots are validation. The numbers are those of metrics.jsonl in the run " +
  "folder. Of a long run, the mean of 2, 4, 8, ... consecutive steps is drawn, so that there are at " +
  "most 512 points, and for losses and gradients the shade reaches from the lowest to the highest. " +
  "Losses of different tokenizers have different units; compare bits per byte instead.";

/** Titles and units of the metrics, in the order of the page. */
const CHARTS = {
  loss: ["Loss", "nats per label"],
  bpb: ["Bits per byte", "comparable between tokenizers"],
  score: ["Score", "of the reward"],
  kl: ["KL", "from the starting model, nats per answer"],
  accuracy: ["Ranked right", "share of pairs"],
  induction: ["Induction", "share of repeated random tokens that are predicted"],
  pairs: ["Facts told apart", "share of pairs"],
  lr: ["Learning rate", "of the matrices"],
  grad_norm: ["Gradient norm", "before clipping"],
  tokens_per_second: ["Speed", "tokens per second"],
};
const OMITTED = ["tokens"]; // the size of the validation
const X = { step: "step", tokens: "tokens", elapsed_seconds: "seconds" };

/** Return the names of all charts of the runs: the known ones first, then the others. */
export function metricNames(runs) {
  const names = runs.flatMap(({ train, validation }) => [
    ...Object.keys(train.metrics),
    ...Object.keys(validation.metrics).map((name) => name.replace(/^val_/, "")),
  ]);
  const all = new Set(names.filter((name) => !OMITTED.includes(name)));
  const known = Object.keys(CHARTS).filter((name) => all.has(name));
  return { known, others: [...all].filter((name) => !(name in CHARTS)).sort() };
}

/** Return the lines of one metric: of each run its training, and its validation as dots. */
export function linesOf(name, runs, x) {
  return runs.flatMap(({ name: run, color, train, validation }) => {
    const line = (table, metric, options) =>
      table.metrics[metric] && table.axes[x]
        ? [{ color, x: table.axes[x], y: table.metrics[metric], ...options }]
        : [];
    const label = (kind) => (runs.length > 1 ? `${run} ${kind}` : kind);
    return [
      ...line(train, name, {
        name: label("training"),
        low: train.low[name],
        high: train.high[name],
      }),
      ...line(validation, `val_${name}`, { name: label("validation"), dots: true }),
      ...line(validation, name, { name: label(name), dots: true }),
    ];
  });
}

/** Return the panel, and a function that draws other numbers in it. */
export function curves({ state, go }) {
  let runs = [];
  let drawn = "";
  const charts = new Map();
  const main = el("div", { class: "charts" });
  const others = el("div", { class: "charts" });
  const more = el("details", { class: "more" }, el("summary", {}, "More metrics"), others);
  const x = state.x in X ? state.x : "step";
  const choice = el(
    "select",
    { "aria-label": "Axis", onchange: ({ target }) => go({ x: target.value }) },
    Object.entries(X).map(([value, label]) =>
      el("option", { value, selected: value === x }, `by ${label}`),
    ),
  );
  const log = el("input", {
    type: "checkbox",
    checked: Boolean(state.log),
    onchange: ({ target }) => go({ log: target.checked ? 1 : undefined }),
  });
  const element = frame(
    {
      title: "Curves",
      explain: EXPLAIN,
      data: () => runs.map(({ name, train, validation }) => ({ name, train, validation })),
      rows: () => rows(runs, x),
    },
    el(
      "div",
      { class: "choices" },
      choice,
      el("label", { class: "chooser" }, log, "logarithmic scale"),
    ),
    main,
    more,
  );

  function update(newRuns) {
    runs = newRuns;
    const { known, others: rest } = metricNames(runs);
    const names = JSON.stringify([known, rest]);
    if (names !== drawn) {
      drawn = names;
      for (const name of [...known, ...rest]) {
        const [title, note] = CHARTS[name] ?? [name.replaceAll("_", " "), ""];
        if (!charts.has(name)) charts.set(name, new Chart(title, note, X[x]));
      }
      main.replaceChildren(...known.map((name) => charts.get(name).element));
      others.replaceChildren(...rest.map((name) => charts.get(name).element));
      more.hidden = !rest.length;
    }
    for (const name of [...known, ...rest])
      charts.get(name).update(linesOf(name, runs, x), { isLog: Boolean(state.log) });
    element.dispatchEvent(new Event(CHANGED));
  }

  return { element, update };
}

/** Return a table of all points, run after run. */
function rows(runs, x) {
  const names = [
    ...new Set(
      runs.flatMap(({ train, validation }) => [
        ...Object.keys(train.metrics),
        ...Object.keys(validation.metrics),
      ]),
    ),
  ];
  const cell = (value) => (value === null || value === undefined ? "" : short(value));
  const points = runs.flatMap(({ name, train, validation }) =>
    [train, validation].flatMap((table) =>
      (table.axes[x] ?? []).map((at, i) => ({ name, at, i, table })),
    ),
  );
  points.sort((a, b) => (a.name === b.name ? a.at - b.at : 0));
  return [
    ["Run", X[x], ...names.map((name) => name.replaceAll("_", " "))],
    ...points.map(({ name, at, i, table }) => [
      name,
      at,
      ...names.map((metric) => cell(table.metrics[metric]?.[i])),
    ]),
  ];
}
