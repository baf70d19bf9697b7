/**
 * A conversation as a tree, so that no question or answer is ever lost.
 *
 * A turn is a question with one lane per model. A lane has one or more answers, and one of them is
 * chosen. A turn follows a parent turn and the answers chosen there when the question was asked
 * (`after`), and it is shown while these answers are chosen. If several turns could be shown in one
 * place, the turn that was picked last is. All is plain data, ready for JSON.
 *
 * @typedef {import("./api.js").Piece} Piece
 * @typedef {{id: string, tokens: Piece[], sent: object | null, promptIds: number[] | null,
 *   forgotten: number, finish: "stop" | "length" | "stopped" | null, error: string | null}} Answer
 * @typedef {{model: string, answers: Answer[], chosen: string}} Lane
 * @typedef {{id: string, parent: string | null, after: string[], picked: number, question: string,
 *   lanes: Lane[]}} Turn
 * @typedef {{version: 1, id: string, title: string, updated: number, system: string,
 *   models: string[], turns: Turn[]}} Conversation
 */

import { textOf } from "./tokens.js";

export const VERSION = 1;

export const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

/** @returns {Conversation} */
export function begin(models) {
  return {
    version: VERSION,
    id: newId(),
    title: "",
    updated: Date.now(),
    system: "",
    models,
    turns: [],
  };
}

/** Return the turns that are shown, in order. */
export function path(conversation) {
  const turns = [];
  for (let turn = shownAfter(conversation, null); turn; turn = shownAfter(conversation, turn))
    turns.push(turn);
  return turns;
}

/** Return the turns that could be shown in place of `turn`: the versions of its question. */
export function versions(conversation, turn) {
  return candidates(conversation, conversation.turns.find(({ id }) => id === turn.parent) ?? null);
}

/** Show this version of a turn. */
export function pick(conversation, turn) {
  turn.picked = 1 + Math.max(0, ...conversation.turns.map(({ picked }) => picked));
}

/**
 * Add `question` after the turn `parent`, or as the first if it is null. Return the new turn,
 * without answers.
 */
export function ask(conversation, question, parent) {
  const after = parent ? parent.lanes.map((lane) => lane.chosen) : [];
  const turn = { id: newId(), parent: parent?.id ?? null, after, picked: 0, question, lanes: [] };
  pick(conversation, turn);
  conversation.turns.push(turn);
  conversation.title ||= question.trim().replace(/\s+/g, " ").slice(0, 60);
  return turn;
}

/** Return the lane of `model` in `turn`, and create it if there is none. */
export function laneOf(turn, model) {
  let lane = turn.lanes.find((other) => other.model === model);
  if (!lane) turn.lanes.push((lane = { model, answers: [], chosen: "" }));
  return lane;
}

/**
 * Add an answer to `lane` and choose it. With `like`, it has the prompt of that answer and begins
 * with `tokens`.
 */
export function addAnswer(lane, like = null, tokens = []) {
  const answer = {
    id: newId(),
    tokens,
    sent: like?.sent ?? null,
    promptIds: like?.promptIds ?? null,
    forgotten: like?.forgotten ?? 0,
    finish: null,
    error: null,
  };
  lane.answers.push(answer);
  lane.chosen = answer.id;
  return answer;
}

export const chosen = (lane) => lane.answers.find(({ id }) => id === lane.chosen);

/**
 * Return the `[question, answer]` pairs of earlier turns as `model` reads them. Turns without an
 * answer are skipped.
 */
export function historyOf(conversation, turn, model) {
  const pairs = [];
  for (let earlier = turn; earlier.parent;) {
    earlier = conversation.turns.find(({ id }) => id === earlier.parent);
    const lane = earlier.lanes.find((other) => other.model === model) ?? earlier.lanes[0];
    const text = lane ? textOf(chosen(lane).tokens) : "";
    if (text.trim()) pairs.unshift([earlier.question, text]);
  }
  return pairs;
}

/**
 * Merge `theirs`, the same conversation from another tab, into `ours` without losing anything of
 * either.
 *
 * `isRunning(answer)` returns true for an answer that is being written here. Return true if
 * `theirs` lacks all or part of an answer that is not running: two tabs that store at the same time
 * do not see each other's answers.
 */
export function merge(ours, theirs, isRunning) {
  const known = new Map(answersOf(theirs).map((answer) => [answer.id, answer]));
  const lacks = answersOf(ours).some(
    (answer) => !isRunning(answer) && isAhead(answer, known.get(answer.id)),
  );
  Object.assign(ours, {
    title: theirs.title,
    system: theirs.system,
    updated: Math.max(ours.updated, theirs.updated),
  });
  for (const turn of theirs.turns) {
    const mine = ours.turns.find(({ id }) => id === turn.id);
    if (mine) mergeTurn(mine, turn, isRunning);
    else ours.turns.push(turn);
  }
  return lacks;
}

function mergeTurn(ours, theirs, isRunning) {
  ours.picked = Math.max(ours.picked, theirs.picked);
  for (const lane of theirs.lanes) {
    const mine = ours.lanes.find(({ model }) => model === lane.model);
    if (!mine) {
      ours.lanes.push(lane);
      continue;
    }
    for (const answer of lane.answers) {
      const same = mine.answers.find(({ id }) => id === answer.id);
      if (!same) mine.answers.push(answer);
      else if (!isRunning(same) && isAhead(answer, same)) Object.assign(same, answer);
    }
    if (!mine.answers.some(isRunning)) mine.chosen = lane.chosen;
  }
}

export const answersOf = (conversation) =>
  conversation.turns.flatMap(({ lanes }) => lanes.flatMap(({ answers }) => answers));

/**
 * Return true if `answer` has more tokens than `other`, an earlier or later state of it, or has
 * ended and `other` not.
 */
function isAhead(answer, other) {
  const end = ({ finish, error }) => (finish !== null ? 2 : error !== null ? 1 : 0);
  const more = answer.tokens.length - (other?.tokens.length ?? -1);
  return more > 0 || (more === 0 && end(answer) > end(other));
}

/**
 * Return the conversation in parsed JSON after checking all of it. Throws an Error if it is not a
 * conversation.
 */
export function checked(data) {
  const ok =
    isRecord(data, { id: "string", title: "string", updated: "number", system: "string" }) &&
    data.version === VERSION &&
    isList(data.models, (model) => typeof model === "string") &&
    isList(data.turns, isTurn) &&
    // Otherwise a turn could follow itself.
    new Set(data.turns.map(({ id }) => id)).size === data.turns.length;
  if (!ok) throw new Error("This file is not a conversation that was exported from this page.");
  return data;
}

function shownAfter(conversation, parent) {
  return candidates(conversation, parent).reduce(
    (a, b) => (a && a.picked > b.picked ? a : b),
    undefined,
  );
}

function candidates(conversation, parent) {
  const current = new Set(parent?.lanes.map((lane) => lane.chosen));
  return conversation.turns.filter(
    (turn) => turn.parent === (parent?.id ?? null) && turn.after.every((id) => current.has(id)),
  );
}

const isRecord = (value, types) =>
  typeof value === "object" &&
  value !== null &&
  Object.entries(types).every(([key, type]) => typeof value[key] === type);
const isList = (value, test) => Array.isArray(value) && value.every(test);
const isPiece = (piece) => isRecord(piece, { text: "string", logprob: "number" });
const isToken = (token) =>
  isPiece(token) &&
  Number.isInteger(token.id) &&
  (token.top === undefined || isList(token.top, isPiece));
const isAnswer = (answer) =>
  isRecord(answer, { id: "string", forgotten: "number" }) &&
  isList(answer.tokens, isToken) &&
  (answer.promptIds === null || isList(answer.promptIds, Number.isInteger)) &&
  (answer.sent === null || isRecord(answer.sent, {})) &&
  [null, "stop", "length", "stopped"].includes(answer.finish) &&
  (answer.error === null || typeof answer.error === "string");
const isLane = (lane) =>
  isRecord(lane, { model: "string", chosen: "string" }) &&
  isList(lane.answers, isAnswer) &&
  lane.answers.some(({ id }) => id === lane.chosen);
const isTurn = (turn) =>
  isRecord(turn, { id: "string", question: "string", picked: "number" }) &&
  (turn.parent === null || typeof turn.parent === "string") &&
  isList(turn.after, (id) => typeof id === "string") &&
  isList(turn.lanes, isLane);
