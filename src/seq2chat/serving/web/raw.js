/** The raw view: the exact tokens that the model read and wrote, control tokens among them. */

import { CONTROL } from "./api.js";
import { byId, el, iconButton, openDialog } from "./dom.js";
import { makeDoors, tokenSpan, visible } from "./tokens.js";

/**
 * Show the tokens of `answer`. `read` are those of what was sent, as the server splits it now: `{tokens, token_strs,
 * roles}`; `open(index, span)` opens the door of a token of the answer.
 */
export function openRaw(answer, read, open) {
  const dialog = byId("raw");
  const same = read && answer.promptIds?.join() === read.tokens.join();
  const written = el("div", {
    class: "raw-tokens",
    role: "group",
    tabindex: 0,
    "aria-label": "Tokens of the answer. Enter walks through them by arrow keys.",
  });
  written.append(
    ...answer.tokens.map((token, index) => withId(tokenSpan(token, index, visible(token.text)), token.id)),
  );
  makeDoors(written, () => answer.tokens, open);
  openDialog(
    dialog,
    el(
      "header",
      {},
      el("h2", { id: "raw-title" }, "The exact tokens"),
      iconButton("close", "Close", () => dialog.close()),
    ),
    el("section", {}, el("h3", {}, `Read: ${count(answer.promptIds ?? [])}`), same ? prompt(read) : ids(answer)),
    el("section", {}, el("h3", {}, `Written: ${count(answer.tokens)}`), written),
    el(
      "p",
      { class: "help" },
      "Below each token is its number in the vocabulary. · is a space, ↵ a line break; control tokens are framed. No message can write one: text that looks like one is split into ordinary tokens.",
    ),
  );
}

const count = ({ length }) => `${length} token${length === 1 ? "" : "s"}`;

function prompt({ tokens, token_strs, roles }) {
  const spans = tokens.map((id, i) => {
    const kind = `token${CONTROL.test(token_strs[i]) ? " control" : ""}`;
    return withId(el("span", { class: kind, "data-role": roles?.[i] }, visible(token_strs[i])), id);
  });
  return el("div", { class: "raw-tokens" }, spans);
}

/** Where the server splits the text in another way than it did, only the numbers of then can be told. */
function ids(answer) {
  const why =
    "The server no longer splits this text as it did then, so that only the numbers of the tokens can be shown.";
  return el(
    "div",
    {},
    el("p", { class: "help" }, why),
    el("p", { class: "numbers" }, (answer.promptIds ?? []).join(" ")),
  );
}

function withId(span, id) {
  return el("span", { class: "numbered" }, span, el("span", { class: "id" }, String(id)));
}
