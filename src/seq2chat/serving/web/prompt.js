/** What a model reads before it answers. */

import { historyOf } from "./conversation.js";

/**
 * Return `{sent, forgotten}`: what is sent for an answer to `turn`, and how many earlier turns no longer fit.
 *
 * A model that chats reads messages; a base model reads one text. The oldest is left out until an answer of
 * `maxTokens`, or of half the context where that is less, fits behind. What still does not fit is the server's to refuse.
 */
export async function prepare(api, model, conversation, turn, { maxTokens, frame }, signal) {
  const room = model.context - Math.min(maxTokens, Math.floor(model.context / 2));
  const before = historyOf(conversation, turn, model.id);
  const without = (forgotten) => {
    const pairs = before.slice(forgotten);
    return model.chat
      ? { messages: messages(conversation.system, pairs, turn.question) }
      : { text: text(pairs, turn.question, frame) };
  };
  // To try a number is to send the conversation: that of a long one is found by bisection, once 0 is too little.
  let [least, most] = [0, before.length];
  for (let forgotten = 0; least < most; forgotten = (least + most) >> 1) {
    if (await fits(api, model, without(forgotten), room, signal)) most = forgotten;
    else least = forgotten + 1;
  }
  return { sent: without(least), forgotten: least };
}

/** Return whether `sent` has at most `room` tokens. A text far beyond the context is refused before it is counted. */
async function fits(api, model, sent, room, signal) {
  try {
    return (await api.tokenize(model.id, toTokenize(sent), signal)).tokens.length <= room;
  } catch (error) {
    if (error.code === "context_length_exceeded") return false;
    throw error;
  }
}

/** Return how `/tokenize` is asked for the tokens of what was sent. */
export function toTokenize({ messages, text }) {
  return messages ? { messages, add_generation_prompt: true } : { prompt: text };
}

/** Return the fields of a request that ask for `answer` to go on from where it stands. */
export function toAnswer({ sent, promptIds, tokens }) {
  const begun = tokens.map(({ id }) => id);
  if (sent.messages) return { messages: sent.messages, ...(begun.length && { prefix_token_ids: begun }) };
  return { prompt: begun.length ? [...promptIds, ...begun] : sent.text };
}

function messages(system, pairs, question) {
  const instructions = system.trim() ? [{ role: "system", content: system }] : [];
  const before = pairs.flatMap(([asked, answered]) => [
    { role: "user", content: asked },
    { role: "assistant", content: answered },
  ]);
  return [...instructions, ...before, { role: "user", content: question }];
}

/** A base model goes on with a text: that which was written, or questions and answers, of which one is to come. */
function text(pairs, question, frame) {
  if (frame === "text") return [...pairs.flat(), question].join("");
  const before = pairs.map(([asked, answered]) => `Question: ${asked}\nAnswer:${answered.trimEnd()}\n`);
  return `${before.join("")}Question: ${question}\nAnswer:`;
}
