/** Samples: the texts that a run generates while it trains. */

import { sentence } from "./api.js";
import { el } from "./dom.js";
import { CHANGED, frame } from "./panel.js";

const EXPLAIN =
  "A run generates a text at several moments of its training (train.samples), from the same prompt. " +
  "Move the slider to see the text change.";

/** Return the panel, and a function that draws the samples of other runs. */
export function samples({ state, go, api, signal }) {
  const texts = new Map();
  let runs = [];
  const box = el("div", { class: "samples" });
  const control = el("div", {});
  const element = frame(
    {
      title: "Samples",
      explain: EXPLAIN,
      data: () => [...texts.values()],
      rows: () => [["Run", "Step", "Text"], ...[...texts.values()].map(Object.values)],
    },
    control,
    box,
  );
  const steps = () => [...new Set(runs.flatMap((run) => run.samples))].sort((a, b) => a - b);

  async function update(newRuns) {
    runs = newRuns;
    const all = steps();
    if (!all.length) {
      control.replaceChildren(el("p", { class: "help" }, "No run has written a sample yet."));
      return;
    }
    const wanted = all.includes(state.step) ? state.step : all.at(-1);
    drawSlider(all, wanted);
    const cards = await Promise.all(runs.map((run) => card(run, wanted)));
    if (signal.aborted || all.length !== steps().length) return;
    box.replaceChildren(...cards);
    element.dispatchEvent(new Event(CHANGED));
  }

  function drawSlider(all, wanted) {
    if (control.dataset.key === `${all} ${wanted}`) return;
    control.dataset.key = `${all} ${wanted}`;
    control.replaceChildren(
      el(
        "label",
        { class: "steps-slider" },
        `Step ${wanted.toLocaleString("en")}`,
        el("input", {
          type: "range",
          min: 0,
          max: all.length - 1,
          value: all.indexOf(wanted),
          "aria-label": "Step of the sample",
          "aria-valuetext": `step ${wanted}`,
          onchange: ({ target }) => go({ step: all[target.value] }),
        }),
      ),
    );
  }

  /** Return the newest sample of a run up to a step. */
  async function card(run, step) {
    const own = run.samples.filter((one) => one <= step).at(-1);
    const title = el("figcaption", {}, own === undefined ? run.name : `${run.name}, step ${own}`);
    if (own === undefined)
      return el(
        "figure",
        {},
        title,
        el("p", { class: "help" }, "It has written no sample so far."),
      );
    const key = `${run.name} ${own}`;
    try {
      if (!texts.has(key))
        texts.set(key, {
          run: run.name,
          step: own,
          text: await api.sample(run.name, own, signal),
        });
      const pre = el("pre", { vars: { "--color": run.color } }, texts.get(key).text);
      return el("figure", {}, title, pre);
    } catch (error) {
      return el("figure", {}, title, el("p", { class: "error" }, sentence(error)));
    }
  }

  return { element, update };
}
