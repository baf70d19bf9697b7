/** Beams: the search for a translation, step by step. */

import { chooser } from "./attention.js";
import { el } from "./dom.js";
import { frame, short, toTable } from "./panel.js";
import { percent, visible } from "./tokens.js";

const SVG = "http://www.w3.org/2000/svg";
const [CELL, ROW, HIGH, CHARACTER] = [92, 34, 24, 7.2]; // pixels
const LONGEST = 10; // characters of a token that are drawn
const MOST = 10; // hypotheses
const EXPLAIN =
  "Beam search extends every hypothesis by every token, and keeps the most probable ones at each " +
  "length. A column is a step, its cells are the hypotheses that live, best first, and a line leads " +
  "to the one that each extends. The color is the probability of the last token. A framed cell has " +
  "ended. Long translations are less probable, so the score divides by a length penalty (Wu et al. " +
  "2016). The strong line is the best one. Choose a hypothesis to see its attention.";

export async function beams({ trace, spec, state, api, go, signal }) {
  if (!["seq2seq", "transformer"].includes(trace.family))
    return el("p", { class: "help" }, "Only a translation model searches with beams.");
  const size = Math.max(1, Math.min(MOST, state.k ?? 5));
  const reply = await api.trace({ ...spec, translation: undefined, beams: size }, signal);
  const { steps, texts, hypotheses, n_steps: count } = reply.beams;
  const text = ([token, , , isEnd]) => (isEnd ? "end" : visible(texts[token]));
  const best = path(steps, hypotheses[0]?.tokens ?? []);
  return frame(
    {
      title: "Beams",
      explain: EXPLAIN,
      data: () => reply.beams,
      rows: () => [
        ["Step", "Rank", "Token", "Extends rank", "Log probability", "Ended"],
        ...steps.flatMap((nodes, step) =>
          nodes.map((node, rank) => [
            step + 1,
            rank + 1,
            text(node),
            step ? node[1] + 1 : "",
            short(node[2]),
            node[3] ? "yes" : "",
          ]),
        ),
      ],
    },
    el(
      "div",
      { class: "choices" },
      chooser("Beam", size, MOST + 1, (value) => go({ k: Math.max(1, value) })),
      count > steps.length &&
        el("span", { class: "help" }, `The first ${steps.length} of ${count} steps.`),
    ),
    el("div", { class: "scroll" }, drawing(steps, text, best)),
    el("div", { class: "scroll" }, results(hypotheses, go)),
  );
}

/** Return the rank of the hypothesis `tokens` at each step, or -1 where it has ended. */
export function path(steps, tokens) {
  const ranks = [];
  for (let step = 0; step < Math.min(steps.length, tokens.length); step++)
    ranks.push(
      steps[step].findIndex(
        ([token, parent]) => token === tokens[step] && (step === 0 || parent === ranks[step - 1]),
      ),
    );
  return ranks;
}

/** Return the log probability of a node's last token: what it adds to the total of its parent. */
export function added(steps, step, [, parent, total]) {
  return total - (step ? steps[step - 1][parent][2] : 0);
}

function make(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function drawing(steps, text, best) {
  const width = steps.length * CELL + 8;
  const height = Math.max(...steps.map((nodes) => nodes.length)) * ROW + 8;
  const middle = (rank) => rank * ROW + 4 + HIGH / 2;
  const lines = steps.flatMap((nodes, step) =>
    step === 0
      ? []
      : nodes.map(([, parent], rank) => {
          const [x, y] = [step * CELL + 4, middle(rank)];
          const [from, to] = [x - CELL + cellWidth(text(steps[step - 1][parent])), middle(parent)];
          const isBest = best[step] === rank && best[step - 1] === parent;
          const d = `M${from},${to} C${x - 8},${to} ${from + 8},${y} ${x},${y}`;
          return make("path", { d, class: isBest ? "best" : "" });
        }),
  );
  const cells = steps.flatMap((nodes, step) =>
    nodes.map((node, rank) => cell(steps, step, node, rank, text(node), best[step] === rank)),
  );
  return make(
    "svg",
    {
      class: "drawing beams",
      width,
      height,
      role: "img",
      "aria-label": "The beams; see the table",
    },
    ...lines,
    ...cells,
  );
}

const label = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
const cellWidth = (text) => label(text).length * CHARACTER + 12;

function cell(steps, step, node, rank, text, isBest) {
  const [x, y] = [step * CELL + 4, rank * ROW + 4];
  const logprob = added(steps, step, node);
  const rect = make("rect", { x, y, width: cellWidth(text), height: HIGH, rx: 6 });
  rect.style.setProperty("--share", Math.exp(logprob).toFixed(3));
  const kind = [node[3] && "ended", isBest && "best"].filter(Boolean).join(" ");
  return make(
    "g",
    { class: kind },
    make("title", {}, `“${text}”: ${percent(logprob)}, together ${short(node[2])} nats`),
    rect,
    make("text", { x: x + 6, y: y + HIGH / 2 + 4 }, label(text)),
  );
}

function results(hypotheses, go) {
  const open = (translation) => () => go({ panel: "attention", translation, position: undefined });
  const rows = hypotheses.map(({ text, total, score, finished }, rank) => [
    rank + 1,
    text ? el("button", { type: "button", class: "link", onclick: open(text) }, text) : "(nothing)",
    short(score),
    short(total),
    finished ? "" : "cut at the maximum length",
  ]);
  return toTable([["", "hypothesis", "score", "log probability", ""], ...rows], "effects");
}
