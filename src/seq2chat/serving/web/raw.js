/** The raw view: the exact tokens that the model read and wrote, including control tokens. */

import { CONTROL } from "./api.js";
import { byId, el, iconButton, openDialog } from "./dom.js";
import { makeDoors, tokenSpan, visible } from "./tokens.js";

/**
 * Show the tokens of `answer`. `prompt` has the tokens of its prompt as the server splits it now:
 * `{tokens, token_strs, roles}`. `open(index, span)` opens the door of a token of the answer.
 */
export function openRaw(answer, prompt, open) {
  const dialog = byId("raw");
  const isSame = prompt && answer.promptIds?.join() === prompt.tokens.join();
  const written = el("div", {
    class: "raw-tokens",
    role: "group",
    tabindex: 0,
    "aria-label": "Tokens of the answer. Press Enter to walk through them with the arrow keys.",
  });
  written.append(
    ...answer.tokens.map((token, index) =>
      withId(tokenSpan(token, index, visible(token.text)), token.id),
    ),
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
    el(
      "section",
      {},
      el("h3", {}, `Read: ${count(answer.promptIds ?? [])}`),
      isSame ? promptTokens(prompt) : promptIds(answer),
    ),
    el("section", {}, el("h3", {}, `Written: ${count(answer.tokens)}`), written),
    el(
      "p",
      { class: "help" },
      "Below each token is its id in the vocabulary. · is a space, ↵ is a line break, and control " +
        "tokens are framed. No message can contain a control token: text that looks like one is " +
        "split into ordinary tokens.",
    ),
  );
}

const count = ({ length }) => `${length} token${length === 1 ? "" : "s"}`;

function promptTokens({ tokens, token_strs, roles }) {
  const spans = tokens.map((id, i) => {
    const kind = `token${CONTROL.test(token_strs[i]) ? " control" : ""}`;
    return withId(el("span", { class: kind, "data-role": roles?.[i] }, visible(token_strs[i])), id);
  });
  return el("div", { class: "raw-tokens" }, spans);
}

/** Return the ids alone, for when the server now splits the prompt differently. */
function promptIds(answer) {
  const reason =
    "The server now splits this text differently, so only the ids of the tokens can be shown.";
  return el(
    "div",
    {},
    el("p", { class: "help" }, reason),
    el("p", { class: "numbers" }, (answer.promptIds ?? []).join(" ")),
  );
}

function withId(span, id) {
  return el("span", { class: "numbered" }, span, el("span", { class: "id" }, String(id)));
}
