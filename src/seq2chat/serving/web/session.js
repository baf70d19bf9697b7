/**
 * The actions on a conversation: ask, stop, edit, regenerate, resume, branch at a token, compare
 * models.
 */

import { ApiError, sentence } from "./api.js";
import {
  addAnswer,
  answersOf,
  ask,
  begin,
  chosen,
  laneOf,
  merge,
  path,
  pick,
  versions,
} from "./conversation.js";
import { FULL } from "./history.js";
import { prepare, toAnswer } from "./prompt.js";

export class Session {
  /**
   * `events` has the callbacks `changed()`, to redraw everything, `progressed()`, to redraw running
   * answers, `finished(lane, answer)`, and `notify(sentence)`, for a message to the user.
   */
  constructor(api, history, settings, events) {
    Object.assign(this, { api, history, settings, events });
    this.models = [];
    this.running = new Map();
    this.conversation = begin([]);
  }

  /** Begin a new conversation with the models of this one. */
  fresh() {
    this.conversation = begin([...this.conversation.models]);
    this.events.changed();
  }

  open(id) {
    this.conversation = this.history.get(id);
    this.useServedModels();
    this.events.changed();
  }

  /** Merge the changes of another tab into this conversation. Return false if there are none. */
  follow() {
    const theirs = this.history.get(this.conversation.id);
    if (!theirs || theirs === this.conversation) return false;
    const lacks = merge(this.conversation, theirs, (answer) => this.isRunning(answer));
    this.history.adopt(this.conversation);
    if (lacks) this.#keep(this.conversation);
    this.events.changed();
    return true;
  }

  /** Choose a served model if none of the conversation's models is served. */
  useServedModels() {
    const served = this.conversation.models.filter((id) => this.model(id));
    const preferred = this.models.find(({ chat }) => chat) ?? this.models[0];
    this.conversation.models = served.length || !preferred ? served : [preferred.id];
  }

  model(id) {
    return this.models.find((model) => model.id === id);
  }

  isRunning(answer) {
    return this.running.has(answer.id);
  }

  /** True while an answer of this conversation is being written. */
  get busy() {
    return answersOf(this.conversation).some((answer) => this.isRunning(answer));
  }

  send(question) {
    this.#askAfter(path(this.conversation).at(-1) ?? null, question);
  }

  /** Ask a new version of the question of `turn`. The old one stays as a branch. */
  edit(turn, question) {
    this.#askAfter(this.conversation.turns.find(({ id }) => id === turn.parent) ?? null, question);
  }

  regenerate(turn, lane) {
    return this.#write(turn, lane, addAnswer(lane));
  }

  /** Resume an answer that was cut off, stopped or interrupted by an error. */
  resume(turn, lane, answer) {
    return this.#write(turn, lane, answer);
  }

  /** Add an answer that replaces token `index` by `alternative` and continues from it. */
  async branch(turn, lane, answer, index, alternative) {
    const { top, logprob } = answer.tokens[index];
    const id = alternative.id ?? (await this.#idOf(lane.model, alternative.text));
    if (id === null)
      return this.events.notify(
        `No single token has the text “${alternative.text}”; choose another one.`,
      );
    const token = { ...alternative, id, top, byHand: true };
    if (token.logprob === undefined) token.logprob = logprob;
    const next = addAnswer(lane, answer, [...answer.tokens.slice(0, index), token]);
    if (!token.control) return this.#write(turn, lane, next);
    next.finish = "stop";
    this.#keep(this.conversation);
    this.events.changed();
  }

  stop() {
    for (const answer of answersOf(this.conversation)) this.running.get(answer.id)?.abort();
  }

  remove(conversation) {
    const isOpen = conversation === this.conversation;
    if (isOpen) this.stop();
    this.history.remove(conversation.id);
    if (isOpen) this.fresh();
  }

  /** Show the answer `step` places further in its lane. */
  showAnswer(lane, step) {
    const index = lane.answers.indexOf(chosen(lane)) + step;
    lane.chosen = lane.answers[(index + lane.answers.length) % lane.answers.length].id;
    this.#keep(this.conversation);
    this.events.changed();
  }

  /** Show the version of the question `step` places further. */
  showVersion(turn, step) {
    const all = versions(this.conversation, turn);
    pick(this.conversation, all[(all.indexOf(turn) + step + all.length) % all.length]);
    this.#keep(this.conversation);
    this.events.changed();
  }

  /** Use the models `ids` from now on. An added model answers the last question at once. */
  useModels(ids) {
    const order = (id) => this.models.findIndex((model) => model.id === id);
    ids.sort((a, b) => order(a) - order(b));
    const added =
      ids.length > this.conversation.models.length
        ? ids.filter((id) => !this.conversation.models.includes(id))
        : [];
    this.conversation.models = ids;
    const last = path(this.conversation).at(-1);
    const missing = last ? added.filter((id) => !last.lanes.some((lane) => lane.model === id)) : [];
    for (const id of missing) this.regenerate(last, laneOf(last, id));
    if (missing.length) last.lanes.sort((a, b) => order(a.model) - order(b.model));
    if (last) this.#keep(this.conversation);
    this.events.changed();
  }

  /** Set the instructions (the system prompt) of this conversation. */
  instruct(system) {
    this.conversation.system = system;
    if (this.conversation.turns.length) this.#keep(this.conversation);
  }

  rename(conversation, title) {
    conversation.title = title;
    this.#keep(conversation);
  }

  #askAfter(parent, question) {
    const turn = ask(this.conversation, question, parent);
    for (const model of this.conversation.models) this.regenerate(turn, laneOf(turn, model));
  }

  /** Append to `answer` until it ends, is stopped or fails. */
  async #write(turn, lane, answer) {
    const { conversation } = this;
    const controller = new AbortController();
    this.running.set(answer.id, controller);
    Object.assign(answer, { finish: null, error: null });
    conversation.updated = Date.now();
    this.#keep(conversation);
    this.events.changed();
    try {
      await this.#stream(conversation, turn, lane, answer, controller.signal);
    } catch (error) {
      if (controller.signal.aborted) answer.finish = "stopped";
      else answer.error = sentence(error);
    }
    this.running.delete(answer.id);
    // Otherwise it was deleted in the meantime.
    if (this.history.get(conversation.id)) this.#keep(conversation);
    this.events.changed();
    this.events.finished(lane, answer);
  }

  async #stream(conversation, turn, lane, answer, signal) {
    const model = this.model(lane.model);
    if (!model)
      throw new ApiError(404, `The server does not have ${lane.model}. Choose another model.`);
    const { maxTokens, frame } = this.settings.values;
    if (!answer.sent)
      Object.assign(
        answer,
        await prepare(this.api, model, conversation, turn, { maxTokens, frame }, signal),
      );
    const used = answer.promptIds && answer.promptIds.length + answer.tokens.length;
    if (used >= model.context)
      throw new ApiError(400, `The model's context of ${model.context} tokens is full.`);
    const sampling = this.settings.sampling(
      used === null ? maxTokens : Math.min(maxTokens, model.context - used),
    );
    // If an answer was cut off in the middle of a character, the continuation begins with all of
    // it.
    const last = answer.tokens.at(-1);
    if (last?.adds) last.adds = last.adds.replace(/\uFFFD$/, "");
    for await (const { prompt, tokens, finish } of this.api.answer(
      model.id,
      toAnswer(answer),
      sampling,
      signal,
    )) {
      // Those of later requests also contain the beginning of the answer.
      answer.promptIds ??= prompt ?? null;
      answer.tokens.push(...tokens);
      answer.finish = finish ?? answer.finish;
      this.events.progressed();
    }
  }

  /** Return the id of the token with this text, or null if the text is several tokens. */
  async #idOf(model, text) {
    const { tokens } = await this.api.tokenize(model, { prompt: text });
    return tokens.length === 1 ? tokens[0] : null;
  }

  #keep(conversation) {
    if (!this.history.save(conversation)) this.events.notify(FULL);
  }
}
