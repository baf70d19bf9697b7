/** The card of one lane: the chosen answer, token by token, and its buttons. */

import { chosen } from "./conversation.js";
import { el, iconButton } from "./dom.js";
import { blocks, render } from "./markdown.js";
import { makeDoors, spans, textOf, tokenSpan } from "./tokens.js";

export class Card {
  /** `actions` are the page's actions, called with the turn, the lane and the answer. */
  constructor(turn, lane, actions) {
    Object.assign(this, { turn, lane, actions, drawn: [] });
    this.body = el("div", { class: "text" });
    this.ending = el("p", { class: "ending" });
    this.doors = el("div", { class: "doors", role: "group", tabindex: 0 }, this.body, this.ending);
    this.doors.setAttribute(
      "aria-label",
      `Answer of ${lane.model}. Press Enter to walk through its tokens with the arrow keys.`,
    );
    makeDoors(
      this.doors,
      () => this.answer.tokens,
      (index, span) => actions.open(this.turn, this.lane, this.answer, index, span),
    );
    this.note = el("div", { class: "notes" });
    this.tools = el("div", {
      class: "tools",
      role: "group",
      "aria-label": `Answer of ${lane.model}`,
    });
    this.element = el(
      "section",
      { class: "card", "aria-label": lane.model },
      el("h2", { class: "who" }, lane.model),
      this.doors,
      this.note,
      this.tools,
    );
  }

  get answer() {
    return chosen(this.lane);
  }

  /** Draw the current answer. */
  update() {
    const running = this.actions.isRunning(this.answer);
    this.element.dataset.answer = this.answer.id;
    this.element.setAttribute("aria-busy", running);
    this.#drawText();
    this.ending.replaceChildren(...ending(this.answer, running));
    this.note.replaceChildren(...this.#notes(running));
    this.tools.replaceChildren(...this.#tools(running));
  }

  /**
   * Draw the blocks that are new or have changed. While an answer grows, these are only the last
   * ones.
   */
  #drawText() {
    const { tokens, id } = this.answer;
    const text = textOf(tokens);
    const leaf = spans(tokens);
    const items = blocks(text).map((block) => ({
      block,
      key: `${id} ${block.start} ${text.slice(block.start, block.end)}`,
    }));
    let same = 0;
    while (same < items.length && items[same].key === this.drawn[same]?.key) same++;
    for (const { node } of this.drawn.splice(same)) node.remove();
    for (const { block, key } of items.slice(same)) {
      const node = render(text, block, leaf);
      this.body.append(node);
      this.drawn.push({ key, node });
    }
  }

  #notes(running) {
    const { forgotten, error } = this.answer;
    const retry = el(
      "button",
      {
        type: "button",
        class: "button",
        "data-key": `${this.lane.chosen} retry`,
        onclick: () => this.actions.resume(this.turn, this.lane, this.answer),
      },
      "Try again",
    );
    return [
      forgotten
        ? el(
            "p",
            { class: "help" },
            forgotten === 1
              ? "The first question no longer fits the context of this model."
              : `The first ${forgotten} questions no longer fit the context of this model.`,
          )
        : null,
      error && !running
        ? el("div", { class: "error", role: "alert" }, el("p", {}, error), retry)
        : null,
    ].filter(Boolean);
  }

  #tools(running) {
    if (running) return [];
    const { turn, lane, answer, actions } = this;
    const key = (name) => ({ "data-key": `${turn.id} ${lane.model} ${name}` });
    const cutOff = answer.finish !== "stop" && !answer.error;
    return [
      lane.answers.length > 1 &&
        branches(
          lane.answers.indexOf(answer),
          lane.answers.length,
          "answer",
          (step) => actions.showAnswer(lane, step),
          key,
        ),
      cutOff &&
        iconButton(
          "continue",
          "Continue",
          () => actions.resume(turn, lane, answer),
          key("continue"),
        ),
      iconButton("retry", "Answer again", () => actions.regenerate(turn, lane), key("again")),
      iconButton("copy", "Copy the answer", () => actions.copy(textOf(answer.tokens)), key("copy")),
      answer.sent &&
        iconButton(
          "raw",
          "Show the exact tokens",
          () => actions.raw(turn, lane, answer),
          key("raw"),
        ),
    ].filter(Boolean);
  }
}

/** Return arrows between branches: ‹ 2/3 ›. */
export function branches(index, count, noun, go, key) {
  return el(
    "span",
    { class: "branches", role: "group", "aria-label": `Versions of the ${noun}` },
    iconButton("back", `Previous ${noun}`, () => go(-1), key("back")),
    el("span", { class: "count" }, `${index + 1}/${count}`),
    iconButton("forth", `Next ${noun}`, () => go(1), key("forth")),
  );
}

/** Return the reason why the answer ended. The end token opens a door like all other tokens. */
function ending({ tokens, finish, error }, running) {
  if (running) return [el("span", { class: "writing" }, tokens.length ? "writing" : "reading")];
  const count = `${tokens.length} token${tokens.length === 1 ? "" : "s"}`;
  const last = tokens.length - 1;
  if (error) return [];
  const reason = { stop: "ended", length: "cut off at the limit" }[finish] ?? "stopped";
  return [count, " · ", tokens[last]?.control ? tokenSpan(tokens[last], last, reason) : reason];
}
