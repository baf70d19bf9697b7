/** The frame of a panel: its title, its explanation, and its buttons. */

import { el, iconButton, toast } from "./dom.js";

/** Return a number with at most four significant digits. */
export const short = (value) =>
  value === 0
    ? "0"
    : Math.abs(value) >= 1e4
      ? value.toExponential(2)
      : String(+value.toPrecision(4));

/**
 * Return the element of a panel. It is the panel of the tabs unless `id` is another one. `data()` returns the numbers to copy as JSON, and `rows()` the
 * same as a table for screen readers: a heading row, then rows of cells.
 */
export function frame({ title, explain, data, rows, id = "tab" }, ...content) {
  const table = el("div", { class: "as-table", hidden: true });
  const fill = () => table.hidden || table.replaceChildren(toTable(rows()));
  const box = el(
    "article",
    { class: "panel" },
    el(
      "header",
      {},
      el("h2", { id }, title),
      el(
        "div",
        { class: "panel-tools" },
        iconButton("copy", "Copy the numbers", () => copy(data())),
        iconButton("save", "Save the picture", () => save(box, title)),
        iconButton("table", "Show as a table", () => {
          table.hidden = !table.hidden;
          fill();
        }),
        iconButton("full", "Full screen", () =>
          document.fullscreenElement ? document.exitFullscreen() : box.requestFullscreen(),
        ),
      ),
    ),
    el("details", { class: "explain" }, el("summary", {}, "What is this?"), el("p", {}, explain)),
    ...content,
    table,
  );
  box.addEventListener(CHANGED, fill);
  return box;
}

/** The event of a panel whose numbers have changed, so that an open table is written again. */
export const CHANGED = "seq2chat.changed";

/** Return a table of a heading row and rows of cells: texts, numbers or elements. */
export function toTable([head, ...rows], name) {
  return el(
    "table",
    { class: name },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        head.map((cell) => el("th", { scope: "col" }, cell)),
      ),
    ),
    el(
      "tbody",
      {},
      rows.map(([first, ...rest]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, first),
          rest.map((cell) => el("td", {}, cell)),
        ),
      ),
    ),
  );
}

async function copy(data) {
  try {
    await navigator.clipboard.writeText(JSON.stringify(data));
    toast("Copied.");
  } catch {
    toast("The browser does not allow this page to copy; use the table instead.");
  }
}

/** Save the panel's canvases one below the other as PNG, or its drawing as SVG. */
function save(box, title) {
  const canvases = [...box.querySelectorAll("canvas")];
  const svg = box.querySelector("svg.drawing");
  const name = `${title.toLowerCase().replaceAll(" ", "-")}`;
  if (!canvases.length && !svg) return toast("This panel is text; copy its numbers instead.");
  if (!canvases.length) {
    const text = new XMLSerializer().serializeToString(styled(svg));
    return download(
      URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })),
      `${name}.svg`,
    );
  }
  const sheet = el("canvas", {
    width: Math.max(...canvases.map(({ width }) => width)),
    height: canvases.reduce((sum, { height }) => sum + height + 8, -8),
  });
  let top = 0;
  for (const canvas of canvases) {
    sheet.getContext("2d").drawImage(canvas, 0, top);
    top += canvas.height + 8;
  }
  download(sheet.toDataURL("image/png"), `${name}.png`);
}

const STYLES = ["fill", "stroke", "stroke-width", "opacity", "font", "text-anchor"];

/** Return a copy of a drawing with the styles of the page, and with its background. */
function styled(svg) {
  const copy = svg.cloneNode(true);
  const copies = [...copy.querySelectorAll("*")];
  [...svg.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of STYLES) copies[i].style.setProperty(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", svg.namespaceURI);
  copy.style.background = getComputedStyle(document.body).backgroundColor;
  return copy;
}

function download(href, name) {
  el("a", { href, download: name }).click();
}
