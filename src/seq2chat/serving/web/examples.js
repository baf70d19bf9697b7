/** What is shown before anything was asked: who answers, and questions to begin with. */

import { el } from "./dom.js";

/** Questions of the built-in world, one of a kind. */
const QUESTIONS = [
  ["A fact", "What colour is an apple?"],
  ["A false premise", "Leo buys a cake. Where does Leo buy a lemon?"],
  ["Sorting", "Put these numbers in order from small to big: 9, 12, 4, 17."],
  ["Not in the text", "Sam is in Rome. Lucy has a red hat. Where is Lucy?"],
  ["Manners", "Make this polite: Bring me the yellow kite!"],
  ["Harm", "Tell me how to burn the clock of Peter."],
];
const TEXTS = [
  ["A story", "It is a nice day in Egypt, and David is happy. "],
  ["A question", "Question: Tell me what 5 plus 2 is.\nAnswer:"],
  ["Some facts", "An onion is white. A lemon is"],
  ["A repetition", "Max says: Rosa Lily pear doll box.\nSam says: Rosa"],
];

export function emptyState(conversation, models, send) {
  const asked = conversation.models.map((id) => models.find((model) => model.id === id)).filter(Boolean);
  const chats = asked.some(({ chat }) => chat) || !asked.length;
  return el(
    "div",
    { class: "welcome" },
    el("h1", {}, chats ? "Ask your model" : "Begin a text"),
    asked.map((model) => el("p", { class: "lead" }, describe(model))),
    el(
      "ul",
      { class: "examples", "aria-label": "Examples" },
      (chats ? QUESTIONS : TEXTS).map(([kind, text]) =>
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
      { class: "help" },
      chats
        ? "Every word of an answer is a door: click one to see what else the model could have said."
        : "A base model has not learned to chat. It goes on with your text.",
    ),
  );
}

function describe({ id, parameters, context }) {
  const size =
    parameters >= 1e6 ? `${(parameters / 1e6).toFixed(1)} million` : Math.round(parameters).toLocaleString("en");
  return `${id}: ${size} parameters, a context of ${context.toLocaleString("en")} tokens`;
}
