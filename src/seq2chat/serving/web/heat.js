/** Heat maps: one pixel per number on a canvas, and a sentence for the cell under the pointer. */

import { el } from "./dom.js";

const ramps = new Map();
addEventListener("seq2chat.theme", () => ramps.clear());

/**
 * Return 256 colors as RGB bytes, in the colors of the page: from no weight to full weight, or if
 * `signed` from the most negative number through 0 to the most positive one.
 */
function colors(signed) {
  if (ramps.has(signed)) return ramps.get(signed);
  const probe = document.body.appendChild(el("i", { class: "ramp" }));
  const { color, backgroundColor, outlineColor } = getComputedStyle(probe);
  const stops = signed ? [outlineColor, backgroundColor, color] : [backgroundColor, color];
  const context = new OffscreenCanvas(256, 1).getContext("2d");
  const gradient = context.createLinearGradient(0, 0, 255, 0);
  stops.forEach((stop, i) => gradient.addColorStop(i / (stops.length - 1), stop));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  probe.remove();
  ramps.set(signed, context.getImageData(0, 0, 256, 1).data);
  return ramps.get(signed);
}

/** Return the image of bytes, row by row. */
export function image(bytes, rows, columns, signed = false) {
  const lut = colors(signed);
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const at = 4 * bytes[i];
    pixels.data.set([lut[at], lut[at + 1], lut[at + 2], 255], 4 * i);
  }
  return pixels;
}

/**
 * Return a canvas with one cell per number of a vector. Numbers beyond the 98th percentile have the
 * full color, because single large numbers would hide all others.
 */
export function strip(values, width, height, label) {
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label });
  const sizes = Float32Array.from(values, Math.abs).sort();
  const reach = sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1;
  const bytes = Uint8ClampedArray.from(values, (value) => 127.5 + (127.5 * value) / reach);
  paint(canvas, image(bytes, 1, values.length, true), 0, 0, width, height);
  return canvas;
}

/** Draw an image into a rectangle of a canvas, with sharp cells. */
export function paint(canvas, pixels, x, y, width, height) {
  const small = new OffscreenCanvas(pixels.width, pixels.height);
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, x, y, width, height);
}

/**
 * Return a canvas of `rows` × `columns` cells that calls `hover(row, column)` for the cell under
 * the pointer, `hover(null)` outside, and `pick(row, column)` for a click.
 */
export function grid(rows, columns, cell, label, hover, pick) {
  const canvas = el("canvas", {
    width: Math.round(columns * cell.width),
    height: Math.round(rows * cell.height),
    role: "img",
    "aria-label": label,
  });
  const at = ({ offsetX, offsetY }) => [
    Math.min(rows - 1, Math.floor((offsetY / canvas.clientHeight) * rows)),
    Math.min(columns - 1, Math.floor((offsetX / canvas.clientWidth) * columns)),
  ];
  canvas.addEventListener("pointermove", (event) => hover(...at(event)));
  canvas.addEventListener("pointerleave", () => hover(null));
  if (pick) canvas.addEventListener("click", (event) => pick(...at(event)));
  return canvas;
}
