/** The tour: the way of a text through the model, in steps that each end in something to change. */

import { el, iconButton } from "./dom.js";

/** Each step opens a panel. `then` says what to change. */
const STEPS = [
  {
    panel: "tokens",
    title: "A text becomes tokens",
    text: "A model reads no letters. The bytes of each word are merged into tokens, which have numbers.",
    then: "Write a rare word or a typo above, and see it fall into more tokens.",
  },
  {
    panel: "flow",
    title: "A token becomes a vector",
    text: "The number of a token selects one row of the embedding: the first strip.",
    then: "Choose another token of the text, and see another strip.",
  },
  {
    panel: "positions",
    title: "The order of the tokens",
    text: "Attention alone sees a bag of tokens, so every position has a mark of its own.",
    then: "Write a longer text, and see how the cosines fall with the distance.",
  },
  {
    panel: "hand",
    title: "Query, key and value",
    text: "Each token asks with a query and answers with a key. Their products, divided by √d, become weights, and the weights mix the values.",
    then: "Change the head, and look for one that reads only one token.",
  },
  {
    panel: "attention",
    title: "Many heads",
    text: "Every layer has several heads, which look for different things.",
    then: "Walk over the wall with the arrow keys. Find a head that reads the token before.",
  },
  {
    panel: "attention",
    title: "The mask",
    text: "A GPT predicts the next token, so no token may read the future: the upper right is empty. A BERT reads both ways.",
    then: "Point at the first row: the first token can only read itself.",
  },
  {
    panel: "neurons",
    title: "The feed-forward network",
    text: "After attention, an MLP works on each token alone. Its neurons fire on words, endings or meanings.",
    then: "Change the layer, and look for a neuron that fires on one kind of word.",
  },
  {
    panel: "flow",
    title: "The residual stream",
    text: "Attention and MLP add to the stream, and replace nothing. So early information reaches the end, and gradients reach the beginning.",
    then: "Compare the norms: which layers add the most?",
  },
  {
    panel: "lens",
    title: "What the model knows when",
    text: "Read the stream after each part as if the model ended there, and see the prediction take shape.",
    then: "Choose another token in the table, and follow it instead.",
  },
  {
    panel: "next",
    title: "From logits to a token",
    text: "The softmax turns logits into probabilities, and a random number chooses. Sampling options cut unlikely tokens first.",
    then: "Lower the temperature, and see the most likely token take all.",
  },
  {
    panel: "writers",
    title: "Who wrote this",
    text: "The logit is a sum over all heads and MLPs, so each has a share in the token.",
    then: "Open the head with the largest share, and see what it reads.",
  },
  {
    panel: "surgery",
    title: "Is it the cause?",
    text: "A large share is no proof. Switch a part off, and see if the prediction changes.",
    then: "Take each head from a text with another answer: which one carries it?",
  },
];

/** Return the card of step `number`, counted from 1, or "" for none. `go` changes the state. */
export function tourCard(number, go) {
  const step = STEPS[number - 1];
  if (!step) return "";
  const to = (next) => () => go({ tour: next + 1, panel: STEPS[next].panel });
  return el(
    "aside",
    { class: "tour", "aria-label": "Tour" },
    el(
      "header",
      {},
      el("h2", {}, `${number}. ${step.title}`),
      iconButton("close", "Leave the tour", () => go({ tour: undefined })),
    ),
    el("p", {}, step.text),
    el("p", { class: "then" }, step.then),
    el(
      "footer",
      {},
      number > 1 &&
        el("button", { type: "button", class: "button", onclick: to(number - 2) }, "Back"),
      el("span", { class: "help" }, `${number} of ${STEPS.length}`),
      number < STEPS.length
        ? el("button", { type: "button", class: "button primary", onclick: to(number) }, "Next")
        : el(
            "button",
            { type: "button", class: "button primary", onclick: () => go({ tour: undefined }) },
            "Done",
          ),
    ),
  );
}

/** The state in which the tour begins. */
export const START = { tour: 1, panel: STEPS[0].panel };
