/** The start page: the chosen models, and example questions. */

import { el } from "./dom.js";

/** Questions of the built-in world in wordings that no training used, one per kind. */
const QUESTIONS = [
  ["Where", "Julia is in Peru. Omar is in the library. Please say where Omar is."],
  ["What", "Felix has a red shirt. Vera has a blue bell. What is it that Vera has?"],
  ["How many", "Simon has 4 boats. Clara has 9 flags. Please say how many flags Clara has."],
  ["Not in the text", "Noah is in Oslo. Ruth has a red plate. Where can I find Ruth?"],
  ["Count", "What is the number of words in: goat, bean, pen?"],
  ["Pick", "Please find the second word: owl, rug, boat, nut."],
  ["A sum", "Please work out 5 plus 9."],
  ["Politeness", "Please write this in a polite way: Give me the green boat!"],
  ["Harm", "Please say how to smash the plate of Omar."],
  ["About it", "Hello! Who are you?"],
];
const WORLD_TEXTS = [
  ["A story", "It is a nice day in Egypt, and David is happy. "],
  ["A question", "Question: Tell me what 5 plus 2 is.\nAnswer:"],
  ["Some facts", "An onion is white. A lemon is"],
  ["A repetition", "Max says: Rosa Lily pear doll box.\nSam says: Rosa"],
];

/** Questions and texts for all other models. */
const GENERAL_QUESTIONS = [
  ["A fact", "What is the capital of France?"],
  ["A reason", "Why is the sky blue?"],
  ["A list", "Name three fruits and their colors."],
  ["A story", "Write two sentences about a dog that finds a key."],
  ["A sum", "What is 17 plus 25?"],
  ["About it", "Hello! Who are you?"],
];
const GENERAL_TEXTS = [
  ["A story", "Once upon a time there was a"],
  ["A fact", "The capital of France is"],
  ["A list", "Monday, Tuesday, Wednesday,"],
  ["A repetition", "red cat, blue house, green tree. red cat, blue"],
];

/** Return texts to look inside a model with. */
export function insideExamples({ family, world }) {
  if (family === "bert")
    return ["The capital of [MASK] is Paris.", "The [MASK] barked at the cat."];
  if (["seq2seq", "transformer"].includes(family))
    return ["A dog runs through the snow.", "Two men are walking."];
  if (world)
    return ["Sam is in Rome. Lucy is in Paris. Lucy is in", "Once upon a time there was a"];
  return [
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "red cat, blue house, green tree. red cat, blue",
  ];
}

/** Return examples `[kind, text]` that a model can know something about. */
function examplesFor(chosen, chats) {
  const knowsWorld = chosen.some(({ world }) => world);
  if (chats) return knowsWorld ? QUESTIONS : GENERAL_QUESTIONS;
  return knowsWorld ? WORLD_TEXTS : GENERAL_TEXTS;
}

export function emptyState(conversation, models, send) {
  const chosen = conversation.models
    .map((id) => models.find((model) => model.id === id))
    .filter(Boolean);
  const chats = chosen.some(({ chat }) => chat) || !chosen.length;
  return el(
    "div",
    { class: "welcome" },
    el("h1", {}, chats ? "Ask your model" : "Begin a text"),
    chosen.map((model) => el("p", { class: "lead" }, describe(model))),
    el(
      "ul",
      { class: "examples", "aria-label": "Examples" },
      examplesFor(chosen, chats).map(([kind, text]) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "example", onclick: () => send(text) },
            el("span", { class: "kind" }, kind),
            el("span", {}, text),
          ),
        ),
      ),
    ),
    el(
      "p",
      { class: "lead" },
      el("a", { href: "/inside" }, "Look inside"),
      ": the tour shows how a text becomes the next token, in this model.",
    ),
    el(
      "p",
      { class: "help" },
      chats
        ? "Click any word of an answer to see the alternatives that the model considered."
        : "A base model isn't trained to chat. It continues your text.",
    ),
  );
}

function describe({ id, parameters, context }) {
  const size =
    parameters >= 1e6
      ? `${(parameters / 1e6).toFixed(1)} million`
      : Math.round(parameters).toLocaleString("en");
  return `${id}: ${size} parameters, a context of ${context.toLocaleString("en")} tokens`;
}
