/** Measurements of the checkpoints of a run, one after another, each at most once. */

import { ApiError, sentence } from "./api.js";
import { el } from "./dom.js";

const MOST = 32; // checkpoints that are measured
const KEPT = 2000; // measurements
const kept = new Map();

/**
 * Return at most MOST of the steps: every second, fourth, ... one and the last. A run that writes
 * another checkpoint keeps those that are measured already.
 */
export function spread(steps) {
  let stride = 1;
  while (steps.length / stride > MOST - 1) stride *= 2;
  return steps.filter((_, i) => i % stride === 0 || i === steps.length - 1);
}

/**
 * Measures checkpoints. `draw(points, run)` is called with all points so far whenever there is a
 * new one, and `note` is an element with a sentence about what is missing.
 */
export class Measured {
  constructor(api, signal, kind, query, draw) {
    Object.assign(this, { api, signal, kind, query, draw });
    this.note = el("p", { class: "help", role: "status" });
    this.running = new Set();
  }

  #key(run, step) {
    return JSON.stringify([run.name, this.kind, this.query, step]);
  }

  /** Return the points of a run that are measured, by step, also of deleted checkpoints. */
  points(run) {
    const prefix = JSON.stringify([run.name, this.kind, this.query]).slice(0, -1);
    const own = [...kept].filter(([key]) => key.startsWith(`${prefix},`));
    return own.map(([, point]) => point).sort((a, b) => a.step - b.step);
  }

  /** Measure what is missing of a run. A run that is being measured is left alone. */
  async measure(run) {
    this.draw(this.points(run), run);
    if (this.running.has(run.name)) return;
    this.running.add(run.name);
    this.note.setAttribute("aria-busy", "true");
    const steps = spread(run.checkpoints);
    let message = explain(run, steps.length);
    for (const step of steps.filter((one) => !kept.has(this.#key(run, one)))) {
      this.note.textContent = `Measuring step ${step.toLocaleString("en")} of ${run.name} …`;
      try {
        const point = await this.api.probe(run.name, step, this.kind, this.query, this.signal);
        if (kept.size >= KEPT) kept.delete(kept.keys().next().value);
        kept.set(this.#key(run, step), point);
      } catch (error) {
        if (this.signal.aborted) return;
        message = sentence(error);
        // A checkpoint that was deleted meanwhile is no reason to stop.
        if (!(error instanceof ApiError && error.status === 404)) break;
        continue;
      }
      if (this.signal.aborted) return;
      this.draw(this.points(run), run);
    }
    this.note.textContent = message;
    this.note.removeAttribute("aria-busy");
    this.running.delete(run.name);
  }
}

function explain(run, count) {
  const all = run.checkpoints.length;
  if (!all)
    return `${run.name} has no checkpoint yet. The first one comes with its first milestone.`;
  if (count < all) return `${count} of ${all} checkpoints are measured.`;
  return all > 1
    ? ""
    : "There is one checkpoint. Keep more with --train.checkpoints and --train.keep.";
}

/** Return a select of one of the runs, or "" for a single one. `choose(name)` is called. */
export function runChoice(runs, current, choose) {
  if (runs.length < 2) return "";
  return el(
    "select",
    { "aria-label": "Run", onchange: ({ target }) => choose(target.value) },
    runs.map(({ name }) => el("option", { value: name, selected: name === current }, name)),
  );
}
