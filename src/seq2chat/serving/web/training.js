/** The page Training: the curves, samples and checkpoints of runs, while they go on. */

import { Api, sentence } from "./api.js";
import { nameTheme, switchTheme } from "./bar.js";
import { compact, lineColor, MOST_COLORS } from "./chart.js";
import { curves } from "./curves.js";
import { byId, el, icon, replaceChildren } from "./dom.js";
import { bleu, gradients, heads } from "./heads.js";
import { askKey } from "./key.js";
import { short } from "./panel.js";
import { probes } from "./probes.js";
import { samples } from "./samples.js";
import { showTabs } from "./tabs.js";

const VIEWS = {
  curves: ["Curves", curves],
  samples: ["Samples", samples],
  probe: ["Probe sentence", probes],
  heads: ["Heads", heads],
  gradients: ["Gradients by layer", gradients],
  bleu: ["BLEU", bleu],
};
const TRANSLATORS = ["seq2seq", "transformer"];
const POLL = 2000; // milliseconds
const LIVE = 60; // seconds since the last line of a run that still trains

const api = new Api(askKey);
let cards = [];
let view = null; // the panel: its element and its update
let leaving = new AbortController();
let timer = null;

/** Return the state of the page, which is in its address: `runs`, `view`, `x`, `log`, ... */
export function read(hash) {
  const state = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  if (!(state.view in VIEWS)) state.view = "curves";
  state.step = /^\d+$/.test(state.step ?? "") ? Number(state.step) : undefined;
  return state;
}

/** Change the state. Undefined values are removed. */
function go(changes) {
  const state = { ...read(location.hash), ...changes };
  const entries = Object.entries(state).filter(([, value]) => value !== undefined);
  location.hash = new URLSearchParams(entries).toString();
}

/** Return the names of the runs in the address, or by default those that are like the first. */
function chosenNames(state) {
  if (state.runs) {
    const names = state.runs.split(",").filter((name) => cards.some((card) => card.name === name));
    if (names.length) return names.slice(0, MOST_COLORS);
  }
  const [first] = cards;
  const alike = cards.filter((c) => c.family === first.family && c.method === first.method);
  return alike.slice(0, MOST_COLORS).map(({ name }) => name);
}

/** Draw the view in the address, with runs that are read anew. */
async function redraw() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  clearTimeout(timer);
  view = null;
  const state = read(location.hash);
  const names = chosenNames(state);
  drawRuns(names);
  const translates = cards.some(({ family }) => TRANSLATORS.includes(family));
  const tabs = Object.entries(VIEWS).filter(([name]) => name !== "bleu" || translates);
  const labels = Object.fromEntries(tabs.map(([name, [label]]) => [name, label]));
  showTabs(labels, state.view, (name) => go({ view: name }));
  byId("panel").setAttribute("aria-busy", "true");
  await refresh(names, state, signal);
}

/** Read the runs, draw what is new, and come again. */
async function refresh(names, state, signal) {
  try {
    if (!view || !document.hidden) {
      const runs = await Promise.all(names.map((name) => api.run(name, signal)));
      if (signal.aborted) return;
      update(runs, state, signal);
    }
  } catch (error) {
    if (signal.aborted) return;
    byId("status").textContent = sentence(error);
    if (!view) showError(error);
  }
  timer = setTimeout(() => refresh(names, state, signal), POLL);
}

function update(newRuns, state, signal) {
  const runs = newRuns.map((run, i) => ({ ...run, color: lineColor(i, newRuns.length) }));
  byId("status").textContent = runs.map(describe).join("   ");
  const news = JSON.stringify(
    runs.map(({ modified, checkpoints, samples: s }) => [modified, checkpoints, s]),
  );
  if (!view) {
    view = VIEWS[state.view][1]({ state, go, api, signal, runs });
    view.news = news;
    byId("panel").removeAttribute("aria-busy");
    replaceChildren(byId("panel"), view.element);
    view.update(runs);
  } else if (view.news !== news) {
    view.news = news;
    view.update(runs);
  }
}

/** Return one sentence about the state of a run. */
export function describe({ name, last, modified, n_unreadable: broken, win_rate: wins }) {
  if (last.step === undefined) return `${name} has recorded nothing yet.`;
  const seconds = Date.now() / 1000 - modified;
  const parts = [`${name}: step ${last.step.toLocaleString("en")}`];
  if (last.loss !== undefined) parts.push(`loss ${short(last.loss)}`);
  if (last.val_loss !== undefined) parts.push(`validation ${short(last.val_loss)}`);
  if (last.score !== undefined) parts.push(`score ${short(last.score)}`);
  parts.push(seconds < LIVE ? "live" : `last line ${ago(seconds)} ago`);
  for (const [pair, { rate, low, high }] of Object.entries(wins ?? {}))
    parts.push(`${pair}: wins ${percent(rate)} (${percent(low)} to ${percent(high)})`);
  if (broken) parts.push(`${compact(broken)} lines of metrics.jsonl can't be read`);
  return `${parts.join(", ")}.`;
}

const percent = (share) => `${Math.round(100 * share)} %`;

function ago(seconds) {
  const [size, unit] = [
    [86400, "days"],
    [3600, "hours"],
    [60, "minutes"],
  ].find(([size]) => seconds >= 2 * size) ?? [1, "seconds"];
  return `${Math.round(seconds / size)} ${unit}`;
}

function drawRuns(names) {
  const toggle = (name) => {
    const left = names.includes(name) ? names.filter((one) => one !== name) : [...names, name];
    if (left.length && left.length <= MOST_COLORS) go({ runs: left.join(",") });
    else drawRuns(names);
  };
  const labels = cards.map(({ name, method, family }) => {
    const at = names.indexOf(name);
    const input = el("input", {
      type: "checkbox",
      checked: at >= 0,
      onchange: () => toggle(name),
    });
    const color = lineColor(Math.max(0, at), names.length);
    const kind = method === "pretraining" ? family : method;
    return el("label", { vars: { "--color": color } }, input, name, el("small", {}, kind));
  });
  replaceChildren(byId("runs"), el("legend", { class: "hidden" }, "Runs"), ...labels);
}

function showError(error) {
  byId("panel").removeAttribute("aria-busy");
  const message = el("p", {}, sentence(error));
  replaceChildren(byId("panel"), el("div", { class: "error", role: "alert" }, message));
}

/** Load the list of runs, then draw. */
async function load() {
  try {
    const [runs, models] = await Promise.all([api.runs(), api.models()]);
    cards = runs;
    for (const link of document.querySelectorAll(".of-models")) link.hidden = !models.length;
  } catch (error) {
    return showError(error);
  }
  if (cards.length) return redraw();
  const message =
    "None of the served models has a run folder here. Train one with seq2chat train, and watch it " +
    "with seq2chat watch runs/NAME.";
  replaceChildren(byId("panel"), el("p", { class: "welcome" }, message));
}

function recolor() {
  switchTheme();
  redraw();
}

byId("theme").append(icon("theme"));
byId("theme").addEventListener("click", recolor);
addEventListener("hashchange", () => cards.length && redraw());
nameTheme();
load();
