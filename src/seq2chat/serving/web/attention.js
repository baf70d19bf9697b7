/** Attention: a wall of all layers and heads, and one head as a matrix and as arcs. */

import { el } from "./dom.js";
import { grid, image, paint } from "./heat.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const SVG = "http://www.w3.org/2000/svg";
const THUMB = 44; // pixels of a head on the wall
const MAX_SIDE = 560; // pixels of the matrix
const MAX_CELL = 44; // pixels
const LABELED = 40; // tokens that can be labeled

const EXPLAIN =
  "Each row is a token that asks, each column a token that is read, and the color is the weight " +
  "softmax(q·k/√d) with which its value is mixed in. Every row adds up to 1. A GPT never reads " +
  "tokens to its right. In attention to a source, a row is the token that is predicted with its help. The wall shows all heads at once: choose one.";

/** Return the sites of attention maps: groups of `layer`, `head`, `query` and `key`. */
export const maps = (trace) => trace.sites.filter(({ axes }) => axes.includes("key"));

export async function attention({ trace, state, tensor, go }) {
  const found = maps(trace);
  const group = found.find(({ name }) => name === state.map) ?? found[0];
  if (!group) return el("p", { class: "help" }, "This model has no attention.");
  const hasLayers = group.axes[0] === "layer";
  const [nLayer, nHead, nQuery, nKey] = hasLayers ? group.shape : [1, ...group.shape];
  const layer = Math.min(state.layer ?? 0, nLayer - 1);
  const head = Math.min(state.head ?? 0, nHead - 1);
  const one = { head, ...(hasLayers && { layer }) };
  const [all, exact] = await Promise.all([
    tensor(group.name, {
      format: "u8sqrt",
      ...(Math.max(nQuery, nKey) > THUMB && { pool: THUMB }),
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
    found.map(({ name }) =>
      el("option", { value: name, selected: name === group.name }, kindOf(name)),
    ),
  );
  const told = el("p", { class: "told", role: "status" });
  const weight = (query, key) => exact.values[query * nKey + key];
  const tell = (query, key) =>
    (told.textContent =
      query === null || query === undefined
        ? `Layer ${layer}, head ${head}. Point at a cell for its weight.`
        : `“${visible(asking[query].text)}” reads “${visible(read[key].text)}” with weight ${short(weight(query, key))}.`);
  tell(null);
  const matrix = matrixOf(
    exact.values,
    nQuery,
    nKey,
    `Attention of layer ${layer}, head ${head}`,
    (query, key) => {
      tell(query, key);
      if (query !== null) arcs.focus(query);
    },
  );
  const arcs = arcsOf(asking, read, weight, inEncoder ? nQuery - 1 : trace.position, (query) =>
    inEncoder ? arcs.focus(query) : go({ position: query, target: undefined }),
  );
  return frame(
    {
      title: "Attention",
      explain: EXPLAIN,
      data: () => ({ site: group.name, ...one, weights: [...exact.values], shape: [nQuery, nKey] }),
      rows: () => [
        ["", ...read.map(({ text }) => visible(text))],
        ...asking.map(({ text }, q) => [visible(text), ...read.map((_, k) => short(weight(q, k)))]),
      ],
    },
    el(
      "div",
      { class: "choices" },
      found.length > 1 && kinds,
      chooser("Layer", layer, nLayer, (i) => go({ layer: i })),
      chooser("Head", head, nHead, (i) => go({ head: i })),
    ),
    el(
      "div",
      { class: "attention" },
      el(
        "figure",
        {},
        wall(all, nLayer, nHead, layer, head, (l, h) => go({ layer: l, head: h })),
        el("figcaption", {}, `${nLayer} layers × ${nHead} heads`),
      ),
      el("div", {}, told, labeled(matrix, asking, read), arcs.element),
    ),
  );
}

/** Return the matrix with its tokens, if they are legible. */
function labeled(matrix, asking, read) {
  const names = (tokens) => tokens.map(({ text }) => el("span", { class: "piece" }, visible(text)));
  const isLegible = Math.max(asking.length, read.length) <= LABELED;
  return el(
    "div",
    { class: "labeled" },
    isLegible && el("div", { class: "across" }, names(read)),
    isLegible && el("div", { class: "down" }, names(asking)),
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

function matrixOf(values, rows, columns, label, hover) {
  const side = Math.max(2, Math.min(MAX_CELL, Math.floor(MAX_SIDE / Math.max(rows, columns))));
  const canvas = grid(rows, columns, { width: side, height: side }, label, hover);
  const bytes = Uint8ClampedArray.from(values, (value) => 255 * Math.sqrt(Math.max(0, value)));
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
  const middle = (span) => span.offsetLeft + span.offsetWidth / 2;
  const focus = (query) => {
    drawing.replaceChildren();
    drawing.setAttribute("width", element.scrollWidth);
    drawing.setAttribute("height", 90);
    below.forEach((span, q) => span.classList.toggle("chosen", q === query));
    above.forEach((span, key) => {
      const share = weight(query, key);
      span.style.setProperty("--share", share.toFixed(3));
      if (share < 0.01) return;
      const path = document.createElementNS(SVG, "path");
      const [from, to] = [middle(below[query]), middle(span)];
      path.setAttribute("d", `M${from},90 C${from},45 ${to},45 ${to},0`);
      path.setAttribute("stroke-width", 1 + 5 * share);
      path.setAttribute("opacity", 0.25 + 0.75 * share);
      drawing.append(path);
    });
  };
  requestAnimationFrame(() => focus(position));
  return { element, focus };
}
