/** The prompts of answers, within the context of the model. */

import { historyOf } from "./conversation.js";

/**
 * Return `{sent, forgotten}`: the prompt for an answer to `turn`, and the number of earlier turns
 * that do not fit.
 *
 * A chat model reads messages, and a base model reads one text. The oldest turns are left out until
 * there is room for an answer of `maxTokens` tokens, or of half the context if that is less. If the
 * question alone is too long, the server refuses the request.
 */
export async function prepare(api, model, conversation, turn, { maxTokens, frame }, signal) {
  const room = model.context - Math.min(maxTokens, Math.floor(model.context / 2));
  const earlier = historyOf(conversation, turn, model.id);
  const without = (forgotten) => {
    const pairs = earlier.slice(forgotten);
    return model.chat
      ? { messages: messages(conversation.system, pairs, turn.question) }
      : { text: text(pairs, turn.question, frame) };
  };
  // Each try sends the conversation to the server, so search by bisection if forgetting nothing is
  // not enough.
  let [low, high] = [0, earlier.length];
  for (let forgotten = 0; low < high; forgotten = (low + high) >> 1) {
    if (await fits(api, model, without(forgotten), room, signal)) high = forgotten;
    else low = forgotten + 1;
  }
  return { sent: without(low), forgotten: low };
}

/**
 * Return true if `sent` has at most `room` tokens. The server refuses to count a text far beyond
 * the context.
 */
async function fits(api, model, sent, room, signal) {
  try {
    return (await api.tokenize(model.id, toTokenize(sent), signal)).tokens.length <= room;
  } catch (error) {
    if (error.code === "context_length_exceeded") return false;
    throw error;
  }
}

/** Return the fields of a `/tokenize` request for a prompt. */
export function toTokenize({ messages, text }) {
  return messages ? { messages, add_generation_prompt: true } : { prompt: text };
}

/** Return the fields of a request that continues `answer` after its tokens so far. */
export function toAnswer({ sent, promptIds, tokens }) {
  const prefix = tokens.map(({ id }) => id);
  if (sent.messages)
    return { messages: sent.messages, ...(prefix.length && { prefix_token_ids: prefix }) };
  return { prompt: prefix.length ? [...promptIds, ...prefix] : sent.text };
}

function messages(system, pairs, question) {
  const instructions = system.trim() ? [{ role: "system", content: system }] : [];
  const earlier = pairs.flatMap(([question, answer]) => [
    { role: "user", content: question },
    { role: "assistant", content: answer },
  ]);
  return [...instructions, ...earlier, { role: "user", content: question }];
}

/**
 * Return the text that a base model continues: the plain text, or a list of questions and answers.
 */
function text(pairs, question, frame) {
  if (frame === "text") return [...pairs.flat(), question].join("");
  const earlier = pairs.map(
    ([earlierQuestion, answer]) => `Question: ${earlierQuestion}\nAnswer:${answer.trimEnd()}\n`,
  );
  return `${earlier.join("")}Question: ${question}\nAnswer:`;
}
