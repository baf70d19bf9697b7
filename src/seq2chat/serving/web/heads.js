/** Heads, gradients and BLEU of the checkpoints of a run. */

import { Chart, lineColor } from "./chart.js";
import { el } from "./dom.js";
import { Measured, runChoice } from "./measured.js";
import { CHANGED, frame, short } from "./panel.js";

const HEADS =
  "Two scores per head, on random tokens that are repeated once. A previous-token head attends to " +
  "the token before. An induction head attends to the token that followed the same token earlier " +
  "(Olsson et al. 2022), which is how a model continues what it has seen. The color is the layer.";
const GRADIENTS =
  "The optimizer keeps a moving average of the gradients, and every checkpoint contains it: AdamW's " +
  "first moment or Muon's momentum, after clipping. These are its norms per layer. The norm of the " +
  "whole gradient of every step is among the curves.";
const BLEU =
  "Each checkpoint translates the first 100 pairs of the validation split by greedy search, and " +
  "sacrebleu compares with the references. The sample is small, so use it to compare checkpoints, " +
  "and `seq2chat translate --score` for a result to report.";

/** Return the previous-token and induction scores of one run. */
export function heads(context) {
  const titles = { previous: "Previous-token score", induction: "Induction score" };
  const lines = (kind) => (points) => {
    const own = points.filter((point) => point[kind]);
    const layers = own[0]?.[kind] ?? [];
    return layers.flatMap((row, layer) =>
      row.map((_, head) => ({
        name: `layer ${layer}, head ${head}`,
        color: lineColor(layer, layers.length),
        x: own.map(({ step }) => step),
        y: own.map((point) => point[kind][layer][head]),
      })),
    );
  };
  return ofOneRun(context, "heads", "Heads", HEADS, {
    legend: (points) => layerLegend(points[0]?.previous?.length ?? 0),
    empty: "This model has no heads that read one text, as those of a GPT or a BERT.",
    charts: Object.entries(titles).map(([kind, title]) => [title, "mean weight", lines(kind), {}]),
  });
}

/** Return the norms of the averaged gradients of one run. */
export function gradients(context) {
  const lines = (points) => {
    const names = [...new Set(points.flatMap(({ layers }) => Object.keys(layers)))];
    return names.map((name, i) => ({
      name,
      color: lineColor(i, names.length),
      dots: true,
      x: points.map(({ step }) => step),
      y: points.map(({ layers }) => layers[name] ?? null),
    }));
  };
  return ofOneRun(context, "gradients", "Gradients by layer", GRADIENTS, {
    legend: (points) => legend(Object.keys(points[0]?.layers ?? {})),
    charts: [["Averaged gradient", "norm", lines, { isLog: true }]],
  });
}

const MOST_NAMES = 12;

/** Return the names with their colors; of many, the first, the middle and the last. */
function legend(names) {
  const kept = names.length <= MOST_NAMES ? names : [0, names.length >> 1, names.length - 1];
  return kept.map((one) => {
    const at = typeof one === "number" ? one : names.indexOf(one);
    return el("span", { vars: { "--color": lineColor(at, names.length) } }, names[at]);
  });
}

const layerLegend = (n) => legend(Array.from({ length: n }, (_, layer) => `layer ${layer}`));

/** Return a panel of charts over the checkpoints of one run. */
function ofOneRun({ state, go, api, signal, runs }, kind, title, explain, options) {
  const { charts, empty, legend: write } = options;
  const run = runs.find(({ name }) => name === state.of) ?? runs[0];
  let points = [];
  const drawn = charts.map(([name, note, lines, options]) => ({
    chart: new Chart(name, note, "step"),
    name,
    lines,
    options,
  }));
  const message = el("p", { class: "help" });
  const names = el("p", { class: "legend help" });
  const measured = new Measured(api, signal, kind, {}, (newPoints) => {
    points = newPoints;
    const isEmpty = points.length > 0 && drawn.every(({ lines }) => !lines(points).length);
    message.textContent = isEmpty ? empty : "";
    names.replaceChildren(...write(points));
    for (const { chart, lines, options } of drawn) chart.update(lines(points), options);
    element.dispatchEvent(new Event(CHANGED));
  });
  const element = frame(
    {
      title,
      explain,
      data: () => points,
      rows: () => {
        const all = drawn.flatMap(({ name, lines }) =>
          lines(points).map((line) => ({ ...line, of: name })),
        );
        return [
          ["", ...points.map(({ step }) => `step ${step}`)],
          ...all.map(({ of, name, y }) => [
            `${of}: ${name}`,
            ...y.map((value) => (value === null ? "" : short(value))),
          ]),
        ];
      },
    },
    runChoice(runs, run.name, (of) => go({ of })),
    measured.note,
    message,
    names,
    el(
      "div",
      { class: "charts" },
      drawn.map(({ chart }) => chart.element),
    ),
  );
  const update = (newRuns) =>
    measured.measure(newRuns.find(({ name }) => name === run.name) ?? run);
  return { element, update };
}

/** Return the BLEU of all translation runs, measured after a click: it takes seconds each. */
export function bleu({ api, signal, runs: chosen }) {
  let runs = chosen;
  let isMeasuring = false;
  const chart = new Chart("BLEU", "greedy, 100 validation pairs", "step");
  const draw = () => {
    const lines = runs.map((run) => {
      const points = measured.points(run);
      return {
        name: run.name,
        color: run.color,
        dots: true,
        x: points.map(({ step }) => step),
        y: points.map((point) => point.bleu),
      };
    });
    chart.update(lines);
    element.dispatchEvent(new Event(CHANGED));
  };
  const measured = new Measured(api, signal, "bleu", {}, draw);
  const measureAll = async () => {
    for (const run of runs) await measured.measure(run);
  };
  const begin = () => {
    isMeasuring = true;
    measureAll();
  };
  const element = frame(
    {
      title: "BLEU",
      explain: BLEU,
      data: () => runs.map((run) => ({ run: run.name, points: measured.points(run) })),
      rows: () => [
        ["Run", "Step", "BLEU", "Pairs"],
        ...runs.flatMap((run) =>
          measured
            .points(run)
            .map(({ step, bleu: score, pairs }) => [run.name, step, short(score), pairs]),
        ),
      ],
    },
    el("button", { type: "button", class: "button", onclick: begin }, "Measure BLEU"),
    measured.note,
    chart.element,
  );
  const update = (newRuns) => {
    runs = newRuns.filter(({ name }) => chosen.some((one) => one.name === name));
    draw();
    if (isMeasuring) measureAll();
  };
  return { element, update };
}
