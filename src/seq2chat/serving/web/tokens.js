/** Tokens on the page: their text, their probability, and their elements. */

import { el } from "./dom.js";

/** @typedef {import("./api.js").Piece} Piece */

/**
 * Return the text that each token adds: whole characters only, so a token may complete the bytes of
 * earlier ones.
 */
export function texts(tokens) {
  let decoder = null;
  return tokens.map((token, index) => {
    if (!token.bytes) return token.adds ?? (token.control ? "" : token.text);
    decoder ??= new TextDecoder("utf-8", { ignoreBOM: true });
    const stream = tokens[index + 1]?.bytes !== undefined;
    const text = decoder.decode(new Uint8Array(token.bytes), { stream });
    if (!stream) decoder = null;
    return text;
  });
}

export const textOf = (tokens) => texts(tokens).join("");

/** Return a token's text with visible white space. */
export function visible(text) {
  return text === ""
    ? "(nothing)"
    : text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** Return a probability in percent, rounded for reading. */
export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share >= 9.995 ? 1 : 2)} %`;
}

/**
 * Return bounds on the entropy in bits: `{least, most, rest}`.
 *
 * The server sends only the most likely tokens, so of the others just the sum of their
 * probabilities, `rest`, is known. The entropy is least if one token has all of it, and greatest if
 * all other tokens share it equally.
 */
export function entropy(top, vocabulary) {
  const bits = (p) => (p > 0 ? -p * Math.log2(p) : 0);
  const shares = top.map(({ logprob }) => Math.exp(logprob));
  const rest = Math.max(0, 1 - shares.reduce((sum, p) => sum + p, 0));
  const known = shares.reduce((sum, p) => sum + bits(p), 0);
  const others = Math.max(1, vocabulary - top.length);
  return { least: known + bits(rest), most: known + bits(rest) + rest * Math.log2(others), rest };
}

/** The entropy in bits above which the tint has its full strength. */
export const FULL_ENTROPY = 4;

const strengths = new WeakMap();

/**
 * Return the strength of each tint of a token, between 0 and 1. It is computed once, as tokens are
 * drawn often.
 */
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

/** Return the span of token `index`, or of a part `text` of it. */
export function tokenSpan(token, index, text) {
  const kind = `token${token.control ? " control" : ""}${token.byHand ? " by-hand" : ""}`;
  return el(
    "span",
    { class: kind, "data-token": index, tabindex: -1, vars: strengthsOf(token) },
    text,
  );
}

/** Return a function from a range `[from, to)` of the text of `tokens` to its spans. */
export function spans(tokens) {
  let end = 0;
  const pieces = texts(tokens).map((text, index) => ({
    text,
    index,
    start: end,
    end: (end += text.length),
  }));
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
  const result = [];
  for (let i = low; i < pieces.length && pieces[i].start < to; i++)
    if (pieces[i].text) result.push(pieces[i]);
  return result;
}

/**
 * Make the tokens in `element` clickable: a click or Enter calls `open(index, span)`, arrow keys
 * move the focus.
 *
 * Only the token with the focus is announced as a button, so that screen readers read an answer as
 * text.
 */
export function makeDoors(element, tokens, open) {
  element.addEventListener("click", (event) => {
    const span = event.target.closest("[data-token]");
    if (span && (getSelection().isCollapsed || event.detail === 0))
      open(Number(span.dataset.token), span);
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
    for (const name of ["role", "aria-haspopup", "aria-label"])
      if (span.dataset.token) span.removeAttribute(name);
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
