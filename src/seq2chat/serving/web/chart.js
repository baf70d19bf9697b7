/** A chart of lines on a canvas, which a pointer or the arrow keys read. */

import { isDark } from "./bar.js";
import { el } from "./dom.js";
import { short } from "./panel.js";
import { scale } from "./scale.js";

const HEIGHT = 220; // pixels
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 10, 24];
const FEW = 8; // lines that are all named under the pointer

/**
 * @typedef {{name: string, color: string, x: number[], y: (number|null)[], low?: (number|null)[],
 *   high?: (number|null)[], dots?: boolean}} Line
 * A line. `low` and `high` are the extremes of each point, and `dots` marks every point.
 */

const COLORS = [
  ["#17695c", "#6fc7b4"],
  ["#b8541a", "#f0a36b"],
  ["#5b4bb3", "#a99cf2"],
  ["#a6324f", "#f08fa6"],
  ["#2f6ea8", "#84bdf0"],
  ["#7a6a12", "#d3c25f"],
];

/** The most lines with a color of their own; more have a range of hues. */
export const MOST_COLORS = COLORS.length;

/** Return the color of line `index` of `count` on a light or a dark page. */
export function lineColor(index, count) {
  if (count <= MOST_COLORS) return COLORS[index][Number(isDark())];
  return `oklch(${isDark() ? 0.78 : 0.55} 0.11 ${175 + (230 * index) / (count - 1)})`;
}

export class Chart {
  /** `note` follows the title, and `xName` is below the axis. */
  constructor(title, note, xName) {
    this.xName = xName;
    this.lines = [];
    this.canvas = el("canvas", { class: "lines", tabindex: 0, role: "img" });
    this.status = el("p", { class: "told help", role: "status" });
    this.title = title;
    this.element = el(
      "figure",
      { class: "chart-box" },
      el("figcaption", {}, el("b", {}, title), note && ` ${note}`),
      this.canvas,
      this.status,
    );
    this.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) =>
      this.#point(offsetX, offsetY),
    );
    this.canvas.addEventListener("pointerleave", () => this.#leave());
    this.canvas.addEventListener("blur", () => this.#leave());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Draw these lines, on a logarithmic scale if `isLog` and no number forbids it. */
  update(lines, { isLog = false, xName = this.xName } = {}) {
    this.lines = lines.filter(({ y }) => y.some((value) => value !== null));
    this.isLog = isLog;
    this.xName = xName;
    this.xs = [...new Set(this.lines.flatMap(({ x }) => x))].sort((a, b) => a - b);
    const names = this.lines.length > FEW ? `${this.lines.length} lines` : this.#latest();
    this.canvas.setAttribute("aria-label", `${this.title} by ${this.xName}: ${names}`);
    this.draw();
  }

  #latest() {
    const last = ({ name, y }) => `${name} ${short(y.findLast((value) => value !== null))}`;
    return this.lines.map(last).join(", ");
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return; // hidden; a ResizeObserver draws it later
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(HEIGHT * ratio);
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    this.ink = { paper: style.backgroundColor, text: style.color, line: style.borderTopColor };
    context.fillStyle = this.ink.paper;
    context.fillRect(0, 0, width, HEIGHT);
    context.font = `11px ${style.fontFamily}`;
    this.#scales(width);
    if (!this.xs?.length) {
      context.fillStyle = this.ink.text;
      context.fillText("Nothing has been recorded yet.", LEFT, HEIGHT / 2);
    } else {
      this.#axes(context, width);
      for (const line of this.lines) this.#line(context, line);
    }
    this.base = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    this.base.getContext("2d").drawImage(this.canvas, 0, 0);
    if (this.cursor) this.#read(this.cursor.x, this.cursor.line);
  }

  #scales(width) {
    if (!this.xs?.length) return;
    const numbers = this.lines.flatMap(({ y, low = [], high = [] }) => [...y, ...low, ...high]);
    const usable = numbers.filter((v) => v !== null && (!this.isLog || v > 0));
    const isLog = this.isLog && usable.length > 0;
    const least = usable.reduce((a, b) => Math.min(a, b), Infinity);
    const most = usable.reduce((a, b) => Math.max(a, b), -Infinity);
    this.y = scale(least, most, HEIGHT - BOTTOM, TOP, isLog);
    this.x = scale(this.xs[0], this.xs.at(-1), LEFT, width - RIGHT);
    this.isDrawable = (value) => value !== null && (!isLog || value > 0);
  }

  #axes(context, width) {
    context.strokeStyle = this.ink.line;
    context.fillStyle = this.ink.text;
    context.lineWidth = 1;
    context.textAlign = "right";
    for (const value of this.y.ticks) {
      const y = Math.round(this.y.at(value)) + 0.5;
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(width - RIGHT, y);
      context.stroke();
      context.fillText(short(value), LEFT - 6, y + 4);
    }
    const names = this.x.ticks.map((value) => ({ value, x: this.x.at(value) }));
    for (const { value, x } of names) {
      context.textAlign = x > width - 40 ? "right" : "center";
      context.fillText(compact(value), x > width - 40 ? width - RIGHT : x, HEIGHT - 6);
    }
  }

  #line(context, { color, x, y, low, high, dots }, lineWidth = dots ? 2 : 1.5) {
    const place = (values, i) => [this.x.at(x[i]), this.y.at(values[i])];
    context.strokeStyle = context.fillStyle = color;
    if (low) {
      const inside = y
        .map((_, i) => i)
        .filter((i) => [low, high].every((v) => this.isDrawable(v[i])));
      context.globalAlpha = 0.18;
      context.beginPath();
      for (const i of inside) context.lineTo(...place(high, i));
      for (const i of inside.reverse()) context.lineTo(...place(low, i));
      context.fill();
      context.globalAlpha = 1;
    }
    context.lineWidth = lineWidth;
    context.lineJoin = "round";
    context.beginPath();
    y.forEach((value, i) => this.isDrawable(value) && context.lineTo(...place(y, i)));
    context.stroke();
    const isSingle = y.filter(this.isDrawable).length === 1;
    if (!dots && !isSingle) return;
    y.forEach((value, i) => {
      if (!this.isDrawable(value)) return;
      context.beginPath();
      context.arc(...place(y, i), lineWidth + 1.2, 0, 2 * Math.PI);
      context.fill();
    });
  }

  #point(left, top) {
    if (!this.xs?.length) return;
    const x = this.xs.reduce((best, value) =>
      Math.abs(this.x.at(value) - left) < Math.abs(this.x.at(best) - left) ? value : best,
    );
    const distance = (line) => {
      const value = line.y[line.x.indexOf(x)];
      return this.isDrawable(value ?? null) ? Math.abs(this.y.at(value) - top) : Infinity;
    };
    const nearest = this.lines.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    this.#read(x, this.lines.length > FEW ? nearest : null);
  }

  #key(event) {
    if (!this.xs?.length) return;
    const at = this.cursor ? this.xs.indexOf(this.cursor.x) : -1;
    const line = this.lines.indexOf(this.cursor?.line);
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const other = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined && (other === undefined || this.lines.length <= FEW)) return;
    event.preventDefault();
    const clamp = (index, length) => Math.max(0, Math.min(length - 1, index));
    const x = this.xs[clamp(step === undefined ? at : at + step, this.xs.length)];
    const next = this.lines[clamp(line + (other ?? 0), this.lines.length)];
    this.#read(x, this.lines.length > FEW ? next : null);
  }

  #leave() {
    if (!this.cursor) return;
    this.cursor = null;
    this.status.textContent = "";
    this.canvas.getContext("2d").setTransform(1, 0, 0, 1, 0, 0);
    this.canvas.getContext("2d").drawImage(this.base, 0, 0);
  }

  /** Mark `x`, and say the numbers of all lines there, or of one line. */
  #read(x, only) {
    this.cursor = { x, line: only };
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.base, 0, 0);
    const ratio = devicePixelRatio || 1;
    context.scale(ratio, ratio);
    const at = this.x.at(x);
    context.strokeStyle = this.ink.text;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(at, TOP);
    context.lineTo(at, HEIGHT - BOTTOM);
    context.stroke();
    if (only) this.#line(context, only, 3);
    const parts = (only ? [only] : this.lines).flatMap((line) => {
      const value = line.y[line.x.indexOf(x)] ?? null;
      return value === null ? [] : [`${line.name} ${short(value)}`];
    });
    this.status.textContent = `${this.xName} ${compact(x)}: ${parts.join(" · ")}`;
  }
}

/** Return a number of steps, tokens or seconds in few characters, for example 12k or 1.5M. */
export function compact(value) {
  const unit = [
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ].find(([size]) => Math.abs(value) >= size * 10);
  if (!unit) return Number(value.toPrecision(4)).toLocaleString("en");
  return `${+(value / unit[0]).toPrecision(4)}${unit[1]}`;
}
