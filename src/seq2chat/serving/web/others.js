/**
 * The page when no model can chat: a description of each model, and a form for translation models.
 */

import { sentence } from "./api.js";
import { el } from "./dom.js";

/** Return the page for `models`. `translate(id, text)` resolves to a translation. */
export function otherModels(models, translate) {
  return el(
    "div",
    { class: "welcome" },
    el("h1", {}, "None of these models can chat"),
    models.map((model) =>
      model.family === "bert" ? encoder(model) : translator(model, translate),
    ),
  );
}

function encoder({ id }) {
  const help =
    "is a BERT. Fill masks with seq2chat fill-mask, or get text embeddings from " +
    "POST /v1/embeddings.";
  return el("p", { class: "lead" }, `${id} ${help}`);
}

function translator({ id }, translate) {
  const text = el("textarea", { rows: 4, "aria-label": `Text for ${id}`, required: true });
  const output = el("p", { class: "translation", role: "status" });
  const button = el("button", { class: "button primary" }, "Translate");
  const send = async (event) => {
    event.preventDefault();
    button.disabled = true;
    output.textContent = "…";
    try {
      output.textContent = await translate(id, text.value);
    } catch (error) {
      output.textContent = sentence(error);
    }
    button.disabled = false;
  };
  return el(
    "form",
    { class: "translator", onsubmit: send },
    el("p", { class: "lead" }, `${id} translates.`),
    text,
    button,
    output,
  );
}
