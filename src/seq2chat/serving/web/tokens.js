/** What tokens say: their text, how sure the model was, and the spans in which they are drawn. */

import { el } from "./dom.js";

/** @typedef {import("./api.js").Piece} Piece */

/** Return the text that each token adds: whole characters only, so a token may complete what others began. */
export function texts(tokens) {
  let decoder = null;
  return tokens.map((token, index) => {
    if (!token.bytes) return token.adds ?? (token.control ? "" : token.text);
    decoder ??= new TextDecoder("utf-8", { ignoreBOM: true });
    const goesOn = tokens[index + 1]?.bytes !== undefined;
    const text = decoder.decode(new Uint8Array(token.bytes), { stream: goesOn });
    if (!goesOn) decoder = null;
    return text;
  });
}

export const textOf = (tokens) => texts(tokens).join("");

/** Return a token's text with its white space made visible. */
export function visible(text) {
  return text === "" ? "(nothing)" : text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** Return a probability in per cent, with as many digits as are worth reading. */
export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share >= 9.995 ? 1 : 2)} %`;
}

/**
 * Return between which bounds the entropy lies, in bits: `{least, most, rest}`.
 *
 * The server sends the likeliest tokens; of the others only the sum of their probabilities, `rest`, is known. The
 * entropy is least where one token has it all, and most where all `others` share it equally.
 */
export function entropy(top, vocabulary) {
  const bits = (p) => (p > 0 ? -p * Math.log2(p) : 0);
  const shares = top.map(({ logprob }) => Math.exp(logprob));
  const rest = Math.max(0, 1 - shares.reduce((sum, p) => sum + p, 0));
  const known = shares.reduce((sum, p) => sum + bits(p), 0);
  const others = Math.max(1, vocabulary - top.length);
  return { least: known + bits(rest), most: known + bits(rest) + rest * Math.log2(others), rest };
}

/** The entropy, in bits, from which on the tint is at its full strength. */
export const FULL_ENTROPY = 4;

const strengths = new WeakMap();

/** Return how strongly a token is tinted by each measure, between 0 and 1. It is drawn often and computed once. */
function strengthsOf(token) {
  if (!strengths.has(token)) {
    const bits = token.top?.length ? entropy(token.top, 1).least : 0;
    const unlikely = 1 - Math.exp(token.logprob);
    strengths.set(token, {
      "--unlikely": unlikely.toFixed(3),
      "--unsure": Math.min(1, bits / FULL_ENTROPY).toFixed(3),
    });
  }
  return strengths.get(token);
}

/** Return the span of the token `index`, or of the part `text` of it. */
export function tokenSpan(token, index, text) {
  const kind = `token${token.control ? " control" : ""}${token.byHand ? " by-hand" : ""}`;
  return el("span", { class: kind, "data-token": index, tabindex: -1, vars: strengthsOf(token) }, text);
}

/** Return a function that makes the spans of `[from, to)` of the text of `tokens`. */
export function spans(tokens) {
  let end = 0;
  const pieces = texts(tokens).map((text, index) => ({ text, index, start: end, end: (end += text.length) }));
  return (from, to) =>
    overlapping(pieces, from, to).map(({ text, index, start }) =>
      tokenSpan(tokens[index], index, text.slice(Math.max(0, from - start), to - start)),
    );
}

function overlapping(pieces, from, to) {
  let [low, high] = [0, pieces.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pieces[middle].end <= from) low = middle + 1;
    else high = middle;
  }
  const found = [];
  for (let i = low; i < pieces.length && pieces[i].start < to; i++) if (pieces[i].text) found.push(pieces[i]);
  return found;
}

/**
 * Make the tokens inside `element` doors: a click or Enter calls `open(index, span)`, arrow keys walk.
 *
 * Only the token that has the focus is announced as a button, so that a screen reader reads an answer as text.
 */
export function makeDoors(element, tokens, open) {
  element.addEventListener("click", (event) => {
    const span = event.target.closest("[data-token]");
    if (span && (getSelection().isCollapsed || event.detail === 0)) open(Number(span.dataset.token), span);
  });
  element.addEventListener("focusin", ({ target: span }) => {
    if (span === element) return element.querySelector("[data-token]")?.focus();
    if (!span.dataset.token) return;
    const token = tokens()[span.dataset.token];
    span.setAttribute("role", "button");
    span.setAttribute("aria-haspopup", "dialog");
    span.setAttribute("aria-label", `${visible(token.text)}, ${percent(token.logprob)}`);
    element.tabIndex = -1; // Shift+Tab leaves
  });
  element.addEventListener("focusout", ({ target: span }) => {
    for (const name of ["role", "aria-haspopup", "aria-label"]) if (span.dataset.token) span.removeAttribute(name);
    element.tabIndex = 0;
  });
  element.addEventListener("keydown", (event) => {
    const span = event.target.closest("[data-token]");
    if (!span) return;
    const all = [...element.querySelectorAll("[data-token]")];
    const next = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter" || event.key === " ") open(Number(span.dataset.token), span);
    else if (next) all[Math.max(0, Math.min(all.length - 1, all.indexOf(span) + next))].focus();
    else return;
    event.preventDefault();
  });
}
