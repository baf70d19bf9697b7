/** The page Inside: one trace of one text, and a panel for each question about it. */

import { Api, sentence } from "./api.js";
import { nameTheme, switchTheme } from "./bar.js";
import { byId, el, icon, replaceChildren } from "./dom.js";
import { insideExamples } from "./examples.js";
import { askKey } from "./key.js";
import { slider } from "./steps.js";
import { showTabs } from "./tabs.js";
import { visible } from "./tokens.js";
import { START, tourCard } from "./tour.js";

/** The panels: their label, and their module, which is loaded when it is opened. */
const PANELS = {
  flow: ["Flow", async () => (await import("./flow.js")).flow],
  tokens: ["Tokenization", async () => (await import("./tokenization.js")).tokenization],
  attention: ["Attention", async () => (await import("./attention.js")).attention],
  lens: ["Logit lens", async () => (await import("./lens.js")).lens],
  next: ["Next token", async () => (await import("./next.js")).next],
  writers: ["Who wrote this", async () => (await import("./writers.js")).writers],
  surgery: ["Surgery", async () => (await import("./surgery.js")).surgery],
  neurons: ["Neurons", async () => (await import("./neurons.js")).neurons],
  hand: ["By hand", async () => (await import("./byhand.js")).hand],
  positions: ["Positions", async () => (await import("./positions.js")).positions],
  states: ["States", async () => (await import("./states.js")).states],
  beams: ["Beams", async () => (await import("./beams.js")).beams],
  training: ["Over training", async () => (await import("./checkpoints.js")).checkpoints],
  lsi: ["LSI", async () => (await import("./lsi.js")).lsi],
};
const FREE = ["lsi"]; // panels that need no trace
const FAMILIES = { states: ["seq2seq"], beams: ["seq2seq", "transformer"] };
const TABS = Object.fromEntries(Object.entries(PANELS).map(([name, [label]]) => [name, label]));
const ALTERNATIVES = 24; // tokens of the distribution that are named
const NUMBERS = [
  "layer",
  "head",
  "position",
  "target",
  "tour",
  "k",
  "first",
  "second",
  "query",
  "key",
];
// The parts of the state that belong to one text and one vocabulary.
const FRESH = Object.fromEntries(
  ["ids", "translation", "position", "target", "off", "map_of", "query", "key"].map((name) => [
    name,
    undefined,
  ]),
);

const api = new Api(askKey);
let models = [];
let trace = null;
let traced = ""; // the part of the state that the trace depends on
let drawn = 0; // numbers the drawings, so that a slow one never replaces a newer one
let leaving = new AbortController(); // ends the requests of the drawing before
const tensors = new Map();

/** Return the state of the page, which is in its address: `model`, `text` or `ids`, `panel`, ... */
export function read(hash) {
  const state = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  for (const name of NUMBERS) {
    if (name in state) state[name] = Number(state[name]);
    if (!Number.isInteger(state[name])) delete state[name];
  }
  if (!(state.panel in PANELS)) state.panel = "flow";
  return state;
}

/** Change the state. Undefined values are removed. */
function go(changes) {
  const state = { ...read(location.hash), ...changes };
  const entries = Object.entries(state).filter(([, value]) => value !== undefined);
  location.hash = new URLSearchParams(entries).toString();
}

/** Return the labels of the panels that fit the model: only an RNN has states, for example. */
function tabsFor({ family }) {
  const fits = ([name]) => !(name in FAMILIES) || FAMILIES[name].includes(family);
  return Object.fromEntries(Object.entries(TABS).filter(fits));
}

/** Return the request of the trace for a state. */
function specOf(state) {
  const source = state.ids
    ? { tokens: state.ids.split(".").map(Number) }
    : { text: state.text ?? "" };
  return {
    model: state.model,
    ...source,
    top: ALTERNATIVES,
    ...(state.translation && { translation: state.translation }),
    ...(state.position !== undefined && { position: state.position }),
    ...(state.target !== undefined && { target: state.target }),
  };
}

/** Draw the state in the address. The trace is requested again once if the server has dropped it. */
async function redraw(isRetry = false) {
  const mine = ++drawn;
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const state = read(location.hash);
  const model = state.model ? models.find(({ id }) => id === state.model) : models[0];
  if (!model) {
    byId("strip").replaceChildren();
    const here = models.map(({ id }) => id).join(", ") || "none";
    return show(
      el(
        "p",
        { class: "error", role: "alert" },
        `There is no model ${state.model ?? ""} here; there are: ${here}.`,
      ),
    );
  }
  byId("model").value = model.id;
  if (state.text !== undefined) byId("text").value = state.text;
  showTabs(tabsFor(model), state.panel, (panel) => go({ panel }));
  replaceChildren(byId("tour"), tourCard(state.tour, go));
  if (FREE.includes(state.panel)) {
    byId("strip").replaceChildren();
    const panel = PANELS[state.panel][1]().then((draw) => draw({ state, go }));
    return panel.then(show, (error) => show(alert(sentence(error))));
  }
  if (state.text === undefined && !state.ids) {
    byId("strip").replaceChildren();
    return show(welcome(model));
  }
  const spec = specOf({ ...state, model: model.id });
  const key = JSON.stringify(spec);
  byId("panel").setAttribute("aria-busy", "true");
  try {
    if (traced !== key) {
      const result = await api.trace(spec, signal);
      if (mine !== drawn) return;
      trace = result;
      traced = key;
      tensors.clear();
    }
    drawStrip(model);
    const panel = await PANELS[state.panel][1]();
    const element = await panel({
      trace,
      state,
      model,
      models,
      spec,
      api,
      tensor,
      go,
      signal,
    });
    if (mine === drawn) show(element);
  } catch (error) {
    if (mine !== drawn) return;
    if (error.code === "trace_not_found" && !isRetry) {
      traced = "";
      return redraw(true);
    }
    if (traced !== key) byId("strip").replaceChildren();
    show(alert(sentence(error)));
  }
}

const alert = (...content) => el("div", { class: "error", role: "alert" }, content);

/** Return the tensor of a site, fetched once. */
function tensor(site, options = {}) {
  const key = JSON.stringify([site, options]);
  if (!tensors.has(key)) {
    const fetched = api.tensor(trace.id, site, options);
    tensors.set(key, fetched);
    fetched.catch(() => tensors.get(key) === fetched && tensors.delete(key));
  }
  return tensors.get(key);
}

function show(element) {
  byId("panel").removeAttribute("aria-busy");
  replaceChildren(byId("panel"), element);
}

/** Draw the tokens of the text. A click selects the token whose prediction is followed. */
function drawStrip(model) {
  const { position } = trace;
  const tokens = trace.tokens.map((token, index) =>
    el(
      "button",
      {
        type: "button",
        class: "token piece",
        "aria-pressed": String(index === position),
        title: `id ${token.id}`,
        onclick: () => go({ position: index, target: undefined }),
      },
      visible(token.text),
    ),
  );
  const follows =
    trace.predicts === "this token" ? "the model fills it with" : "the model continues with";
  replaceChildren(
    byId("strip"),
    trace.source
      ? el("p", { class: "help" }, `Source: ${trace.source.map(({ text }) => text).join("")}`)
      : "",
    el("div", { class: "pieces" }, tokens),
    slider(models, model, go),
    el(
      "p",
      { class: "help" },
      `Of ${trace.tokens.length} tokens, the chosen one is number ${position + 1}: ${follows} “${visible(trace.target.text)}”.`,
      trace.message && ` ${trace.message}`,
    ),
  );
}

function welcome(model) {
  const examples = insideExamples(model);
  return el(
    "div",
    { class: "welcome" },
    el("h1", {}, "See the pass that predicts a token"),
    el(
      "p",
      {},
      "Write a text above, or begin with one of these. Every number on this page is from your model.",
    ),
    el(
      "button",
      {
        type: "button",
        class: "button primary",
        onclick: () => go({ text: examples[0], model: model.id, ...START }),
      },
      "Take the tour: twelve steps from text to token",
    ),
    examples.map((text) =>
      el(
        "button",
        { type: "button", class: "button", onclick: () => go({ text, model: model.id }) },
        text,
      ),
    ),
  );
}

/** Load the list of models, and the panel meanwhile, then draw. */
async function load() {
  PANELS[read(location.hash).panel][1]().catch(() => {}); // a failure is reported when it is drawn
  try {
    models = (await api.models()).filter(({ family }) => family !== "reward");
  } catch (error) {
    const retry = el("button", { type: "button", class: "button", onclick: load }, "Try again");
    return show(alert(el("p", {}, sentence(error)), retry));
  }
  byId("model").replaceChildren(...models.map(({ id }) => el("option", { value: id }, id)));
  redraw();
}

function submit(event) {
  event.preventDefault();
  go({ ...FRESH, model: byId("model").value, text: byId("text").value || undefined });
}

function recolor() {
  switchTheme();
  dispatchEvent(new Event("seq2chat.theme"));
  redraw();
}

byId("theme").append(icon("theme"));
byId("theme").addEventListener("click", recolor);
byId("ask").addEventListener("submit", submit);
byId("model").addEventListener("change", ({ target }) => go({ ...FRESH, model: target.value }));
addEventListener("hashchange", () => redraw());
nameTheme();
load();
