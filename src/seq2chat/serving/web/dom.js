/** Helpers that create elements. Text stays text: no markup is ever parsed. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element. Properties that begin with `on` are listeners, and `vars` are CSS custom
 * properties. `true` writes an empty attribute, while `false`, `null` and `undefined` write none.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "vars")
      for (const [key, number] of Object.entries(value)) element.style.setProperty(key, number);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Return the drawing `name` of icons.svg. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/web/icons.svg#${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Return a button that shows only an icon. `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return el(
    "button",
    {
      type: "button",
      class: "icon-button",
      "aria-label": label,
      title: label,
      onclick,
      ...properties,
    },
    icon(name),
  );
}

export const byId = (id) => document.getElementById(id);

/** Announce `text` to screen readers. */
export function announce(text) {
  byId("live").textContent = text;
}

let toastTimer;

/** Show a short message at the edge of the page, with a button if there is something to undo. */
export function toast(text, undo) {
  const box = byId("toast");
  const hide = () => box.replaceChildren();
  const button =
    undo &&
    el("button", { type: "button", class: "link", onclick: () => (hide(), undo()) }, "Undo");
  box.replaceChildren(el("div", { class: "toast" }, el("span", {}, text), button));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, 8000);
}

/** Open a dialog with this content. A click outside closes it, as does Esc. */
export function openDialog(dialog, ...content) {
  dialog.replaceChildren(...content);
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close();
  };
  if (!dialog.open) dialog.showModal();
}

const FOCUSABLE = "a, button, input, select, summary, [tabindex]";

/**
 * Replace the children of an element. If one of them had the focus, the new element with the same
 * name gets it, or else `box` itself.
 */
export function replaceChildren(box, ...children) {
  const name = (node) => `${node.tagName} ${node.getAttribute("aria-label") ?? node.textContent}`;
  const named = (wanted) =>
    [...box.querySelectorAll(FOCUSABLE)].filter((node) => name(node) === wanted);
  const current = box.contains(document.activeElement) && document.activeElement;
  const wanted = current && name(current);
  const rank = current && named(wanted).indexOf(current);
  box.replaceChildren(...children);
  if (current) (named(wanted)[rank] ?? box).focus({ preventScroll: true });
}

/**
 * Move the focus from `current` to a neighbor in `items` if the key is an arrow. Return true if it
 * is.
 */
export function moveFocus(event, items, current, backward, forward) {
  const step = event.key === forward ? 1 : event.key === backward ? -1 : 0;
  if (!step) return false;
  event.preventDefault();
  items[(items.indexOf(current) + step + items.length) % items.length]?.focus();
  return true;
}
