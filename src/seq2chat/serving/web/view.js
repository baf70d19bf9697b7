/** The conversation on the page: its questions, and the answers of its models side by side. */

import { branches, Card } from "./card.js";
import { path, versions } from "./conversation.js";
import { byId, el, iconButton } from "./dom.js";
import { emptyState } from "./examples.js";
import { otherModels } from "./others.js";

const NEAR_END = 80; // pixels
const FRAME = 16; // milliseconds

export class View {
  constructor(actions) {
    this.actions = actions;
    this.root = byId("conversation");
    this.main = byId("main");
    this.cards = new Map();
    this.editing = null;
    this.took = 0;
  }

  /** Draw everything, and restore the focus. */
  show(conversation, models, others) {
    const key = document.activeElement?.dataset.key;
    const isNew = this.shown !== conversation.id;
    const turns = path(conversation);
    if (isNew) this.cards.clear();
    this.shown = conversation.id;
    this.#keepingEnd(() =>
      this.root.replaceChildren(
        ...(turns.length
          ? turns.map((turn) => this.#turn(conversation, turn))
          : [
              models.length || !others.length
                ? emptyState(conversation, models, this.actions.send)
                : otherModels(others, this.actions.translate),
            ]),
      ),
    );
    this.root.classList.toggle("empty", !turns.length);
    if (isNew) this.main.scrollTop = turns.length ? this.main.scrollHeight : 0;
    if (key)
      this.root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
  }

  /**
   * Draw the running answers soon. The delay grows with the drawing time, so drawing takes at most
   * a fifth of the time.
   */
  progress() {
    this.due ??= setTimeout(
      () => {
        this.due = null;
        const start = performance.now();
        this.#keepingEnd(() =>
          this.cards.forEach((card) => this.actions.isRunning(card.answer) && card.update()),
        );
        this.took = performance.now() - start;
      },
      FRAME + 4 * this.took,
    );
  }

  /** Scroll to the end of the conversation. */
  toEnd() {
    this.main.scrollTop = this.main.scrollHeight;
  }

  /**
   * Run `change`, and then stay at the end if the page was scrolled there, or else keep the
   * position.
   */
  #keepingEnd(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.main;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) this.toEnd();
    else this.main.scrollTop = scrollTop;
  }

  #turn(conversation, turn) {
    const cards = turn.lanes.map((lane) => this.#card(turn, lane));
    return el(
      "article",
      { class: "turn", "data-turn": turn.id },
      this.editing === turn ? this.#editor(turn) : this.#question(conversation, turn),
      el("div", { class: "lanes", "data-lanes": turn.lanes.length }, cards),
    );
  }

  #card(turn, lane) {
    const key = `${turn.id} ${lane.model}`;
    if (!this.cards.has(key)) this.cards.set(key, new Card(turn, lane, this.actions));
    const card = this.cards.get(key);
    card.update();
    return card.element;
  }

  #question(conversation, turn) {
    const all = versions(conversation, turn);
    const key = (name) => ({ "data-key": `${turn.parent} question ${name}` });
    return el(
      "div",
      { class: "question" },
      el("h2", { class: "hidden" }, "You"),
      el("div", { class: "bubble" }, turn.question),
      el(
        "div",
        { class: "tools", role: "group", "aria-label": "Question" },
        iconButton(
          "copy",
          "Copy the question",
          () => this.actions.copy(turn.question),
          key("copy"),
        ),
        iconButton("edit", "Edit and ask again", () => this.edit(turn), key("edit")),
        all.length > 1 &&
          branches(
            all.indexOf(turn),
            all.length,
            "question",
            (step) => this.actions.showVersion(turn, step),
            key,
          ),
      ),
    );
  }

  /** Show an editor for the question. */
  edit(turn) {
    this.editing = turn;
    this.actions.redraw();
    const field = this.root.querySelector(".editor textarea");
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  #editor(turn) {
    const field = el(
      "textarea",
      {
        "aria-label": "Edit the question",
        rows: Math.min(8, turn.question.split("\n").length + 1),
      },
      turn.question,
    );
    const end = () => {
      this.editing = null;
      this.actions.redraw();
      byId("composer-text").focus();
    };
    const send = (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      this.editing = null;
      this.actions.edit(turn, field.value);
      byId("composer-text").focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") (event.stopPropagation(), end());
      else if (isSend(event)) send(event);
    });
    return el(
      "form",
      { class: "editor", onsubmit: send },
      field,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "button", onclick: end }, "Cancel"),
        el("button", { class: "button primary" }, "Ask again"),
      ),
    );
  }
}

/**
 * Return true for Enter, but not for Shift+Enter, nor for the Enter that completes a word in a
 * Japanese input method.
 */
export const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
