/** Positions: the vectors that mark them, and how similar they are. */

import { el } from "./dom.js";
import { grid, image, paint } from "./heat.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const EXPLAIN =
  "Attention alone does not know the order of tokens, so positions are marked by vectors: learned " +
  "ones or sinusoids, which are added to the embeddings, or the cosines and sines by which rotary " +
  "positions turn queries and keys. The map on the right has their cosines: near positions are alike.";
const MAX_WIDTH = 560; // pixels
const MAX_CELL = 24; // pixels

/** Return the cosine of the angle between each two rows, in row-major order. */
export function cosines(values, rows, columns) {
  const row = (i) => values.subarray(i * columns, (i + 1) * columns);
  const dot = (a, b) => a.reduce((sum, x, c) => sum + x * b[c], 0);
  const norms = Array.from({ length: rows }, (_, i) => Math.sqrt(dot(row(i), row(i))) || 1);
  return Float32Array.from({ length: rows * rows }, (_, at) => {
    const [i, j] = [Math.floor(at / rows), at % rows];
    return dot(row(i), row(j)) / (norms[i] * norms[j]);
  });
}

export async function positions({ trace, tensor }) {
  if (trace.family === "seq2seq")
    return el(
      "p",
      { class: "help" },
      "An RNN reads one token after another and needs no positions.",
    );
  const { values, shape } = await tensor("positions", { format: "f32" });
  const [rows, columns] = shape;
  const similar = cosines(values, rows, columns);
  const name = (i) => `position ${i} (“${visible(trace.tokens[i].text)}”)`;
  const cell = el("p", { class: "told", role: "status" }, "Point at a cell for its number.");
  const matrix = picture(values, rows, columns, "The vectors of the positions", (i, c) => {
    if (i !== null) cell.textContent = `${name(i)}, number ${c}: ${short(values[i * columns + c])}`;
  });
  const map = picture(similar, rows, rows, "Cosines between positions", (i, j) => {
    if (i !== null) cell.textContent = `${name(i)} and ${name(j)}: ${short(similar[i * rows + j])}`;
  });
  return frame(
    {
      title: "Positions",
      explain: EXPLAIN,
      data: () => ({ shape, vectors: [...values], cosines: [...similar] }),
      rows: () => [
        ["", ...Array.from({ length: rows }, (_, i) => i)],
        ...Array.from({ length: rows }, (_, i) => [
          i,
          ...similar
            .subarray(i * rows, (i + 1) * rows)
            .values()
            .map(short),
        ]),
      ],
    },
    cell,
    el(
      "div",
      { class: "attention pair" },
      el("figure", {}, matrix, el("figcaption", {}, `${rows} positions × ${columns} numbers`)),
      el("figure", {}, map, el("figcaption", {}, "cosines")),
    ),
  );
}

/** Return a picture of numbers, the largest in full color. */
function picture(values, rows, columns, label, hover) {
  const width = Math.max(1, Math.min(MAX_CELL, MAX_WIDTH / columns));
  const cell = { width, height: Math.min(MAX_CELL, MAX_WIDTH / rows) };
  const canvas = grid(rows, columns, cell, label, hover);
  const reach = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  const bytes = Uint8ClampedArray.from(values, (value) => 127.5 + (127.5 * value) / reach);
  paint(canvas, image(bytes, rows, columns, true), 0, 0, canvas.width, canvas.height);
  canvas.className = "matrix";
  return canvas;
}
