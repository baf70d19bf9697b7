/** Attention: a wall of all layers and heads, and one head as a matrix and as arcs. */

import { el } from "./dom.js";
import { grid, image, paint } from "./heat.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const SVG = "http://www.w3.org/2000/svg";
const THUMB = 44; // pixels of a head on the wall
const WALL_BYTES = 120_000; // of all heads together, so that many heads are sent in fewer cells
const MAX_SIDE = 560; // pixels of the matrix
const MAX_CELL = 44; // pixels
const LABELED = 40; // tokens that can be labeled; of more, a window is drawn
const OVERVIEW = 288; // pixels of the whole map beside a window

const EXPLAIN =
  "Each row is a token that asks, each column a token that is read, and the color is the weight " +
  "softmax(q·k/√d) with which its value is mixed in. Every row adds up to 1. A GPT never reads " +
  "tokens to its right. In attention to a source, a row is the token that is predicted with its help. The wall shows all heads at once: choose one.";

/** Return the sites of attention maps: groups of `layer`, `head`, `query` and `key`. */
export const maps = (trace) => trace.sites.filter(({ axes }) => axes.includes("key"));

export async function attention({ trace, state, tensor, go }) {
  const groups = maps(trace);
  const group = groups.find(({ name }) => name === state.map) ?? groups[0];
  if (!group) return el("p", { class: "help" }, "This model has no attention.");
  const hasLayers = group.axes[0] === "layer";
  const [nLayer, nHead, nQuery, nKey] = hasLayers ? group.shape : [1, ...group.shape];
  const layer = Math.min(state.layer ?? 0, nLayer - 1);
  const head = Math.min(state.head ?? 0, nHead - 1);
  const one = { head, ...(hasLayers && { layer }) };
  const side = Math.max(12, Math.min(THUMB, Math.floor(Math.sqrt(WALL_BYTES / nLayer / nHead))));
  const [all, exact] = await Promise.all([
    tensor(group.name, {
      format: "u8sqrt",
      ...(Math.max(nQuery, nKey) > side && { pool: side }),
    }),
    tensor(group.name, { ...one, format: "f32" }),
  ]);
  const isSelf = group.name.includes("self_attn");
  const inEncoder = group.name.startsWith("encoder");
  const own = inEncoder ? trace.source : trace.tokens;
  // Attention to the source is named after the token that is predicted with its help.
  const asking = isSelf ? own : [...own.slice(1), { text: "…" }];
  const read = isSelf ? own : trace.source;
  const kinds = el(
    "select",
    {
      "aria-label": "Kind of attention",
      onchange: ({ target }) => go({ map: target.value, layer: 0, head: 0 }),
    },
    groups.map(({ name }) =>
      el("option", { value: name, selected: name === group.name }, kindOf(name)),
    ),
  );
  const part = windowOf(nQuery, nKey, state, inEncoder ? nQuery - 1 : trace.position);
  const [rows, columns] = [cut(asking, part.query), cut(read, part.key)];
  const cell = el("p", { class: "told", role: "status" });
  const weight = (query, key) => exact.values[query * nKey + key];
  const inWindow = (query, key) => weight(query + part.query.start, key + part.key.start);
  const tell = (query, key) =>
    (cell.textContent =
      query === null || query === undefined
        ? `Layer ${layer}, head ${head}. Point at a cell for its weight.`
        : `“${visible(rows[query].text)}” reads “${visible(columns[key].text)}” with weight ${short(inWindow(query, key))}.`);
  tell(null);
  const matrix = matrixOf(
    inWindow,
    rows.length,
    columns.length,
    `Attention of layer ${layer}, head ${head}`,
    (query, key) => {
      tell(query, key);
      if (query !== null) arcs.focus(query);
    },
  );
  const chosen = (inEncoder ? nQuery - 1 : trace.position) - part.query.start;
  const focus = Math.max(0, Math.min(rows.length - 1, chosen));
  const arcs = arcsOf(rows, columns, inWindow, focus, (query) =>
    inEncoder ? arcs.focus(query) : go({ position: query + part.query.start, target: undefined }),
  );
  return frame(
    {
      title: "Attention",
      explain: EXPLAIN,
      data: () => ({ site: group.name, ...one, weights: [...exact.values], shape: [nQuery, nKey] }),
      rows: () => [
        ["", ...columns.map(({ text }) => visible(text))],
        ...rows.map(({ text }, q) => [
          visible(text),
          ...columns.map((_, k) => short(inWindow(q, k))),
        ]),
      ],
    },
    el(
      "div",
      { class: "choices" },
      groups.length > 1 && kinds,
      chooser("Layer", layer, nLayer, (i) => go({ layer: i })),
      chooser("Head", head, nHead, (i) => go({ head: i })),
    ),
    el(
      "div",
      { class: "attention" },
      nLayer * nHead > 1 &&
        el(
          "figure",
          { vars: { "--layers": nLayer, "--heads": nHead } },
          wall(all, nLayer, nHead, layer, head, (l, h) => go({ layer: l, head: h })),
          el("figcaption", {}, `${nLayer} layers × ${nHead} heads`, pooling(all, nQuery, nKey)),
        ),
      el(
        "div",
        {},
        cell,
        part.isCut && overview(exact.values, nQuery, nKey, part, go),
        labeled(matrix, rows, columns),
        arcs.element,
      ),
    ),
  );
}

const cut = (tokens, { start, end }) => tokens.slice(start, end);

/** Return a sentence about the cells of the wall, if each is of several weights. */
function pooling({ shape }, nQuery, nKey) {
  const [rows, columns] = shape.slice(-2);
  if (rows === nQuery && columns === nKey) return "";
  const size = `${Math.ceil(nQuery / rows)} × ${Math.ceil(nKey / columns)}`;
  return `. A cell of the wall has the largest of up to ${size} weights.`;
}

/**
 * Return the part of a map whose tokens can be read: `{query, key, isCut}`, ranges of at most
 * LABELED tokens around the place in the address, or by default around `position`.
 */
function windowOf(nQuery, nKey, state, position) {
  const range = (count, middle) => {
    const start = Math.max(0, Math.min(count - LABELED, Math.round(middle - LABELED / 2)));
    return { start, end: Math.min(count, start + LABELED) };
  };
  const query = state.query ?? position;
  const key = state.key ?? (query * nKey) / nQuery;
  const isCut = Math.max(nQuery, nKey) > LABELED;
  return { query: range(nQuery, query), key: range(nKey, key), isCut };
}

/** Return the whole map of a long text, with the window marked. A click moves the window. */
function overview(values, nQuery, nKey, { query, key }, go) {
  const size = Math.max(1, Math.floor(OVERVIEW / Math.max(nQuery, nKey)));
  const canvas = grid(
    nQuery,
    nKey,
    { width: size, height: size },
    "The whole map. Use the arrow keys to move the window.",
    () => {},
    (q, k) => go({ query: q, key: k }),
  );
  const bytes = Uint8ClampedArray.from(values, (value) => 255 * Math.sqrt(Math.max(0, value)));
  paint(canvas, image(bytes, nQuery, nKey), 0, 0, canvas.width, canvas.height);
  const context = canvas.getContext("2d");
  context.strokeStyle = getComputedStyle(document.body).color;
  context.lineWidth = 2;
  const side = ({ start, end }) => [start * size, (end - start) * size];
  const [[left, width], [top, height]] = [side(key), side(query)];
  context.strokeRect(left + 1, top + 1, width - 2, height - 2);
  canvas.tabIndex = 0;
  canvas.className = "overview";
  const middle = ({ start, end }) => Math.round((start + end) / 2);
  canvas.addEventListener("keydown", (event) => {
    const [down, right] =
      { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ??
      [];
    if (down === undefined) return;
    event.preventDefault();
    const half = LABELED / 2;
    go({
      query: Math.max(0, Math.min(nQuery - 1, middle(query) + half * down)),
      key: Math.max(0, Math.min(nKey - 1, middle(key) + half * right)),
    });
  });
  const range = ({ start, end }) => `${start + 1} to ${end}`;
  return el(
    "figure",
    { class: "whole" },
    canvas,
    el(
      "figcaption",
      {},
      `The whole head: ${nQuery} × ${nKey} weights. Below is the marked window, where tokens ` +
        `${range(query)} read tokens ${range(key)}. Click to move it.`,
    ),
  );
}

/** Return the matrix with its tokens. */
function labeled(matrix, asking, read) {
  const names = (tokens) => tokens.map(({ text }) => el("span", { class: "piece" }, visible(text)));
  return el(
    "div",
    { class: "labeled" },
    el("div", { class: "across" }, names(read)),
    el("div", { class: "down" }, names(asking)),
    matrix,
  );
}

const kindOf = (name) =>
  name.includes("cross")
    ? "Target reads source"
    : name.startsWith("encoder")
      ? "Source reads source"
      : name === "decoder.attention"
        ? "Alignment of target and source"
        : "Self-attention";

/** Return a number field for an index. */
export function chooser(label, value, count, choose) {
  return el(
    "label",
    { class: "chooser" },
    label,
    el("input", {
      type: "number",
      min: 0,
      max: count - 1,
      value,
      onchange: ({ target }) =>
        choose(Math.max(0, Math.min(count - 1, Math.round(Number(target.value) || 0)))),
    }),
  );
}

/** Return one canvas with all heads. Arrow keys move the choice. */
function wall({ values: bytes, shape }, nLayer, nHead, layer, head, choose) {
  const [nQuery, nKey] = shape.slice(-2);
  const canvas = grid(
    nLayer,
    nHead,
    { width: THUMB, height: THUMB },
    "All heads. Use the arrow keys.",
    () => {},
    choose,
  );
  const size = nQuery * nKey;
  for (let l = 0; l < nLayer; l++)
    for (let h = 0; h < nHead; h++) {
      const at = (l * nHead + h) * size;
      paint(
        canvas,
        image(bytes.subarray(at, at + size), nQuery, nKey),
        h * THUMB + 2,
        l * THUMB + 2,
        THUMB - 4,
        THUMB - 4,
      );
    }
  const context = canvas.getContext("2d");
  context.strokeStyle = getComputedStyle(document.body).color;
  context.lineWidth = 2;
  context.strokeRect(head * THUMB + 1, layer * THUMB + 1, THUMB - 2, THUMB - 2);
  canvas.tabIndex = 0;
  canvas.className = "wall";
  canvas.addEventListener("keydown", (event) => {
    const [down, right] =
      { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ??
      [];
    if (down === undefined) return;
    event.preventDefault();
    choose(
      Math.max(0, Math.min(nLayer - 1, layer + down)),
      Math.max(0, Math.min(nHead - 1, head + right)),
    );
  });
  return canvas;
}

function matrixOf(weight, rows, columns, label, hover) {
  const side = Math.max(2, Math.min(MAX_CELL, Math.floor(MAX_SIDE / Math.max(rows, columns))));
  const canvas = grid(rows, columns, { width: side, height: side }, label, hover);
  const bytes = Uint8ClampedArray.from({ length: rows * columns }, (_, at) => {
    const value = weight(Math.floor(at / columns), at % columns);
    return 255 * Math.sqrt(Math.max(0, value));
  });
  paint(canvas, image(bytes, rows, columns), 0, 0, canvas.width, canvas.height);
  canvas.className = "matrix";
  return canvas;
}

/** Return two lines of tokens with arcs from one token to those that it reads. */
function arcsOf(asking, read, weight, position, choose) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "drawing arcs");
  const above = read.map(({ text }) => el("span", { class: "piece" }, visible(text)));
  const below = asking.map(({ text }, q) =>
    el("button", { type: "button", class: "piece", onclick: () => choose(q) }, visible(text)),
  );
  const element = el(
    "div",
    { class: "arcs-box" },
    el("div", { class: "pieces" }, above),
    drawing,
    el("div", { class: "pieces" }, below),
  );
  const middles = (spans) => spans.map((span) => span.offsetLeft + span.offsetWidth / 2);
  let places = null;
  const focus = (query) => {
    // Reading them while styles are written would lay the page out again for each token.
    places ??= { above: middles(above), below: middles(below), width: element.scrollWidth };
    drawing.replaceChildren();
    drawing.setAttribute("width", places.width);
    drawing.setAttribute("height", 90);
    below.forEach((span, q) => span.classList.toggle("chosen", q === query));
    above.forEach((span, key) => {
      const share = weight(query, key);
      span.style.setProperty("--share", share.toFixed(3));
      if (share < 0.01) return;
      const path = document.createElementNS(SVG, "path");
      const [from, to] = [places.below[query], places.above[key]];
      path.setAttribute("d", `M${from},90 C${from},45 ${to},45 ${to},0`);
      path.setAttribute("stroke-width", 1 + 5 * share);
      path.setAttribute("opacity", 0.25 + 0.75 * share);
      drawing.append(path);
    });
  };
  requestAnimationFrame(() => {
    focus(position);
    element.scrollLeft = places.below[position] - element.clientWidth / 2;
  });
  return { element, focus };
}
