/** Named points of two numbers each, on a canvas. */

import { isDark } from "./bar.js";
import { el } from "./dom.js";
import { short } from "./panel.js";
import { scale } from "./scale.js";

const [WIDTH, HEIGHT, MARGIN] = [400, 260, 34];

export class Scatter {
  /** `points` are `{x, y, name, isNew}`; new ones are drawn as squares in another color. */
  constructor(points, label) {
    this.points = points;
    const all = points.map(({ name, x, y }) => `${name} (${short(x)}, ${short(y)})`);
    this.canvas = el("canvas", {
      class: "lines scatter",
      role: "img",
      "aria-label": `${label}: ${all.join(", ")}`,
    });
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = WIDTH * ratio;
    this.canvas.height = HEIGHT * ratio;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    const style = getComputedStyle(this.canvas);
    context.scale(ratio, ratio);
    context.fillStyle = style.backgroundColor;
    context.fillRect(0, 0, WIDTH, HEIGHT);
    context.font = `11px ${style.fontFamily}`;
    const range = (name) => {
      const values = [0, ...this.points.map((point) => point[name])];
      return [Math.min(...values), Math.max(...values)];
    };
    const x = scale(...range("x"), MARGIN, WIDTH - 60);
    const y = scale(...range("y"), HEIGHT - MARGIN, 16);
    this.#axes(context, style, x, y);
    const [own, fresh] = isDark() ? ["#6fc7b4", "#f0a36b"] : ["#17695c", "#b8541a"];
    const used = [];
    for (const point of this.points) {
      const [left, top] = [x.at(point.x), y.at(point.y)];
      context.fillStyle = point.isNew ? fresh : own;
      if (point.isNew) context.fillRect(left - 4, top - 4, 8, 8);
      else {
        context.beginPath();
        context.arc(left, top, 4, 0, 2 * Math.PI);
        context.fill();
      }
      // A name that would cover another one goes below it.
      let line = top - 6;
      while (used.some((one) => Math.abs(one.left - left) < 40 && Math.abs(one.line - line) < 12))
        line += 12;
      used.push({ left, line });
      context.fillText(point.name, left + 7, line);
    }
  }

  #axes(context, style, x, y) {
    context.strokeStyle = style.borderTopColor;
    context.fillStyle = style.color;
    context.beginPath();
    context.moveTo(MARGIN, y.at(0));
    context.lineTo(WIDTH - 10, y.at(0));
    context.moveTo(x.at(0), 10);
    context.lineTo(x.at(0), HEIGHT - MARGIN);
    context.stroke();
    context.textAlign = "right";
    for (const value of y.ticks) context.fillText(short(value), MARGIN - 6, y.at(value) + 4);
    context.textAlign = "center";
    for (const value of x.ticks) context.fillText(short(value), x.at(value), HEIGHT - 8);
    context.textAlign = "left";
  }
}
