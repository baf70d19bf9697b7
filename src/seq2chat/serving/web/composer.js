/** The field for messages. Its button sends a message, or stops the running answers. */

import { byId, icon } from "./dom.js";
import { isSend } from "./view.js";

export class Composer {
  /** `send(text)` returns true if the text was sent. */
  constructor({ send, stop, editLast }) {
    this.field = byId("composer-text");
    this.button = byId("send");
    this.busy = false;
    const submit = () => {
      if (this.busy || !this.field.value.trim() || !send(this.field.value)) return;
      this.field.value = "";
      this.fit();
    };
    byId("composer").addEventListener(
      "submit",
      (event) => (event.preventDefault(), this.busy ? stop() : submit()),
    );
    this.field.addEventListener("input", () => this.fit());
    this.field.addEventListener("keydown", (event) => {
      if (isSend(event)) (event.preventDefault(), submit());
      if (event.key === "ArrowUp" && !this.field.value) (event.preventDefault(), editLast());
    });
  }

  /** Make the field as high as its text, up to the limit of the style sheet. */
  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  show(busy, completes) {
    this.busy = busy;
    this.button.classList.toggle("stop", busy);
    this.button.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.button.title = busy ? "Stop (Esc)" : "Send (Enter)";
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.field.placeholder = completes ? "Write the beginning of a text" : "Write a message";
    byId("hint").textContent = busy
      ? "Esc to stop"
      : "Enter to send, Shift+Enter for a new line, Ctrl+K to search";
  }
}
