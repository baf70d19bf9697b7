/** Probe sentence: the loss of each of its tokens, checkpoint by checkpoint. */

import { Chart } from "./chart.js";
import { el, replaceChildren } from "./dom.js";
import { Measured, runChoice } from "./measured.js";
import { CHANGED, frame, short, toTable } from "./panel.js";
import { visible } from "./tokens.js";

const EXPLAIN =
  "A checkpoint reads the sentence, and each token has the loss −ln p with which it was predicted: " +
  "0 is certain, and the color is the probability p. A GPT predicts a token from those before it, a " +
  "translation model a token of the translation, and a BERT a masked token from all others.";
const SENTENCES = {
  seq2seq: ["A dog runs through the snow.", "Ein Hund läuft durch den Schnee."],
  transformer: ["A dog runs through the snow.", "Ein Hund läuft durch den Schnee."],
};
const SENTENCE = ["The cat sat on the mat, and the dog sat on the"];

/** Return the mean loss of a point, or null if it has none. */
export function meanLoss({ tokens }) {
  const losses = tokens.map(({ loss }) => loss).filter((loss) => loss !== null);
  return losses.length ? losses.reduce((a, b) => a + b, 0) / losses.length : null;
}

/** Return the panel, and a function that measures new checkpoints. */
export function probes({ state, go, api, signal, runs: chosen }) {
  const run = chosen.find(({ name }) => name === state.of) ?? chosen[0];
  const translates = run.family in SENTENCES;
  const [text, translation] = SENTENCES[run.family] ?? SENTENCE;
  const query = {
    text: state.text ?? text,
    ...(translates && { translation: state.translation ?? translation }),
  };
  let points = [];
  const chart = new Chart("Mean loss", "nats per token", "step");
  const table = el("div", { class: "scroll" });
  const measured = new Measured(api, signal, "tokens", query, (newPoints) => {
    points = newPoints;
    chart.update([
      {
        name: run.name,
        color: run.color,
        dots: true,
        x: points.map(({ step }) => step),
        y: points.map(meanLoss),
      },
    ]);
    replaceChildren(table, points.length ? toTable(rows(points, cell), "losses") : "");
    element.dispatchEvent(new Event(CHANGED));
  });
  const element = frame(
    {
      title: "Probe sentence",
      explain: EXPLAIN,
      data: () => points,
      rows: () => rows(points, ({ loss }) => (loss === null ? "" : short(loss))),
    },
    runChoice(chosen, run.name, (of) => go({ of })),
    form(query, translates, go),
    measured.note,
    table,
    chart.element,
  );
  const update = (runs) => measured.measure(runs.find(({ name }) => name === run.name) ?? run);
  return { element, update };
}

function form(query, translates, go) {
  const field = (name, label) =>
    el("input", { name, value: query[name], "aria-label": label, maxlength: 2000 });
  return el(
    "form",
    {
      class: "probe-form",
      onsubmit: (event) => {
        event.preventDefault();
        go(Object.fromEntries(new FormData(event.target)));
      },
    },
    field("text", translates ? "Source" : "Sentence"),
    translates && field("translation", "Translation"),
    el("button", { class: "button primary" }, "Measure"),
  );
}

function rows(points, write) {
  if (!points.length) return [["Step"]];
  return [
    ["step", ...points[0].tokens.map(({ text }) => visible(text)), "mean"],
    ...points.map((point) => [
      point.step.toLocaleString("en"),
      ...point.tokens.map(write),
      short(meanLoss(point) ?? NaN),
    ]),
  ];
}

function cell({ loss }) {
  if (loss === null) return "";
  const vars = { "--share": Math.exp(-loss).toFixed(3) };
  return el("div", { class: "loss", vars }, loss.toFixed(2));
}
