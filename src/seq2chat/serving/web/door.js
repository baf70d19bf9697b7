/** The door of a token: a popover with the alternatives in its place, and their probabilities. */

import { byId, el, icon, moveFocus } from "./dom.js";
import { entropy, percent, visible } from "./tokens.js";

/**
 * Open the door of `tokens[index]` next to `anchor`. `choose(alternative)` is called with the token
 * to continue from. Without it the alternatives are only shown. `vocabulary` is the size of the
 * model's vocabulary. `inside` is the address of the pass that predicted the token, or null.
 */
export function openDoor(anchor, tokens, index, vocabulary, choose, inside) {
  const door = byId("door");
  const token = tokens[index];
  const rows = alternatives(token);
  const act = (other) => () => (door.hidePopover(), choose(other));
  const buttons = rows.map((other) =>
    row(other, isSame(other, token), choose && hasId(other) && act(other)),
  );
  door.replaceChildren(
    el(
      "header",
      {},
      el(
        "h2",
        { id: "door-title" },
        el("span", { class: "piece" }, visible(token.text)),
        " ",
        percent(token.logprob),
      ),
      el("p", { class: "help" }, place(token, tokens, index)),
    ),
    rows.length > 1
      ? el(
          "ul",
          { class: "alternatives" },
          buttons.map((button) => el("li", {}, button)),
        )
      : el("p", {}, "The alternatives of this token are no longer stored."),
    el(
      "footer",
      { class: "help" },
      certainty(token, vocabulary),
      el(
        "p",
        {},
        "These are the model's own probabilities, at temperature 1.",
        choose && " Choose another token to continue the answer from it.",
      ),
      inside && el("a", { href: inside, class: "inside" }, "Look inside the pass that wrote it"),
    ),
  );
  door.onkeydown = (event) =>
    void moveFocus(event, buttons, document.activeElement, "ArrowUp", "ArrowDown");
  door.ontoggle = ({ newState }) => {
    anchor.classList.toggle("open", newState === "open");
    if (newState === "closed" && anchor.isConnected) anchor.focus();
  };
  door.showPopover();
  placeNextTo(door, anchor);
  // The sheet of a phone may hide it.
  if (door.getBoundingClientRect().width === innerWidth) anchor.scrollIntoView();
  buttons[rows.findIndex((other) => isSame(other, token))].focus();
}

/** Return the most likely tokens, and the drawn token if it is not one of them. */
function alternatives(token) {
  const top = token.top ?? [];
  return top.some((other) => isSame(other, token)) ? top : [...top, token];
}

/** A base model's alternatives have only a text, which identifies no control token. */
const hasId = ({ id, control }) => id !== undefined || !control;
const isSame = (other, token) =>
  other.id === undefined ? other.text === token.text : other.id === token.id;

function row(other, current, choose) {
  const share = percent(other.logprob);
  return el(
    "button",
    {
      type: "button",
      class: "alternative",
      "data-current": current,
      "aria-current": current && "true",
      "aria-disabled": (!choose || current) && "true",
      "aria-label": `${visible(other.text)}, ${share}${current ? ", in the answer" : ""}`,
      onclick: () => !current && choose?.(),
    },
    el("span", { class: other.control ? "piece control" : "piece" }, visible(other.text)),
    el("span", { class: "gauge", vars: { "--share": Math.exp(other.logprob) } }),
    el("span", { class: "share" }, share),
    current && icon("check"),
  );
}

function place(token, tokens, index) {
  const drawn = token.byHand ? "chosen by you" : "drawn by the model";
  return `Token ${index + 1} of ${tokens.length}, ${drawn}.`;
}

/** Return a sentence with bounds on the entropy, because only the most likely tokens are known. */
function certainty(token, vocabulary) {
  if (!token.top?.length) return null;
  const { least, most, rest } = entropy(token.top, vocabulary);
  const bits =
    least.toFixed(2) === most.toFixed(2)
      ? least.toFixed(2)
      : `between ${least.toFixed(2)} and ${most.toFixed(2)}`;
  return el(
    "p",
    {},
    `Entropy: ${bits} bits. The ${token.top.length} most likely tokens are known. ` +
      `All others together have ${percent(Math.log(rest))}.`,
  );
}

/**
 * Place the door below, above or next to its anchor, where there is room. On a phone its style
 * makes it a sheet.
 */
function placeNextTo(door, anchor) {
  const at = anchor.getBoundingClientRect();
  const { width, height } = door.getBoundingClientRect();
  const [margin, gap] = [12, 8];
  const within = (start, size, space) => Math.max(margin, Math.min(start, space - size - margin));
  const isBelow = at.bottom + gap + height + margin <= innerHeight;
  const isAbove = at.top - gap - height >= margin;
  const top = isBelow
    ? at.bottom + gap
    : isAbove
      ? at.top - gap - height
      : within(at.top - height / 2, height, innerHeight);
  const middle = at.left + at.width / 2 - width / 2;
  const left = within(isBelow || isAbove ? middle : at.right + gap, width, innerWidth);
  door.style.setProperty("--top", `${top}px`);
  door.style.setProperty("--left", `${left}px`);
}
