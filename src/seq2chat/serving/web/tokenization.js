/** Tokenization: from the bytes of a text to its tokens, merge by merge. */

import { CONTROL } from "./api.js";
import { el } from "./dom.js";
import { frame } from "./panel.js";
import { textOf, visible } from "./tokens.js";

const EXPLAIN =
  "The text is first split into pieces: words with the blank before them, digits, signs. Each piece " +
  "starts as its bytes. Then the pair of neighbors that was learned first is merged, again and again " +
  "(byte pair encoding, Sennrich et al. 2016). No merge crosses from one piece to the next.";
const LONGEST = 1000; // characters

export async function tokenization({ trace, model, api }) {
  if (trace.family === "bert")
    return el(
      "p",
      { class: "help" },
      "A BERT has WordPiece: each word is cut into the longest known pieces.",
    );
  const tokens = trace.tokens.filter(({ text, bytes }) => bytes || !CONTROL.test(text));
  const text = textOf(tokens).slice(0, LONGEST);
  const pieces = (await api.tokenize(model.id, { prompt: text, merges: true })).merges;
  const name = (bytes) => visible(new TextDecoder().decode(new Uint8Array(bytes)));
  const display = (bytes) => (name(bytes).includes("\ufffd") ? hex(bytes) : name(bytes));
  return frame(
    {
      title: "Tokenization",
      explain: EXPLAIN,
      data: () => pieces,
      rows: () => [
        ["Piece", "Bytes", "Merges", "Tokens"],
        ...pieces.map((steps) => [
          name(steps[0].flat()),
          steps[0].length,
          steps.length - 1,
          steps.at(-1).map(display).join(" "),
        ]),
      ],
    },
    el("p", { class: "told" }, `${pieces.length} pieces. Choose one to see its merges.`),
    el(
      "div",
      { class: "merges" },
      pieces.map((steps, i) =>
        el(
          "details",
          { open: i === 0 },
          el(
            "summary",
            {},
            steps.at(-1).map((bytes) => el("span", { class: "piece" }, display(bytes))),
          ),
          el(
            "ol",
            {},
            steps.map((step) =>
              el(
                "li",
                {},
                step.map((bytes) => el("span", { class: "piece" }, display(bytes))),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

const hex = (bytes) =>
  bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
