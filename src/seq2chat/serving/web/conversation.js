/**
 * A conversation as a tree: nothing that was asked or answered is lost.
 *
 * A turn is a question and, for each model that was asked, a lane of answers of which one is chosen. A turn follows
 * another one, and the answers (`after`) that were chosen there when it was asked; it is shown while they are chosen
 * again. Of several turns at one place, the one that was picked last is shown. All is plain data, ready for JSON.
 *
 * @typedef {import("./api.js").Piece} Piece
 * @typedef {{id: string, tokens: Piece[], sent: object | null, promptIds: number[] | null, forgotten: number,
 *   finish: "stop" | "length" | "stopped" | null, error: string | null}} Answer
 * @typedef {{model: string, answers: Answer[], chosen: string}} Lane
 * @typedef {{id: string, parent: string | null, after: string[], picked: number, question: string, lanes: Lane[]}} Turn
 * @typedef {{version: 1, id: string, title: string, updated: number, system: string, models: string[], turns: Turn[]}}
 *   Conversation
 */

import { textOf } from "./tokens.js";

export const VERSION = 1;

export const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

/** @returns {Conversation} */
export function begin(models) {
  return { version: VERSION, id: newId(), title: "", updated: Date.now(), system: "", models, turns: [] };
}

/** Return the turns that are shown, in order. */
export function path(conversation) {
  const turns = [];
  for (let turn = shownAfter(conversation, null); turn; turn = shownAfter(conversation, turn)) turns.push(turn);
  return turns;
}

/** Return the turns that could be shown where `turn` is: other wordings of its question. */
export function versions(conversation, turn) {
  return candidates(conversation, conversation.turns.find(({ id }) => id === turn.parent) ?? null);
}

/** Show this turn where it has several versions. */
export function pick(conversation, turn) {
  turn.picked = 1 + Math.max(0, ...conversation.turns.map(({ picked }) => picked));
}

/** Ask `question` after the turn `parent`, or as the first if it is null; returns the new turn, without answers. */
export function ask(conversation, question, parent) {
  const after = parent ? parent.lanes.map((lane) => lane.chosen) : [];
  const turn = { id: newId(), parent: parent?.id ?? null, after, picked: 0, question, lanes: [] };
  pick(conversation, turn);
  conversation.turns.push(turn);
  conversation.title ||= question.trim().replace(/\s+/g, " ").slice(0, 60);
  return turn;
}

/** Return the lane of `model` in `turn`, made if there is none. */
export function laneOf(turn, model) {
  let lane = turn.lanes.find((other) => other.model === model);
  if (!lane) turn.lanes.push((lane = { model, answers: [], chosen: "" }));
  return lane;
}

/** Begin another answer in `lane` and choose it. With `like`, it shares that answer's prompt and begins with `tokens`. */
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

/** Return `[question, answer]` of each earlier turn that `model` has to know; turns without an answer are left out. */
export function historyOf(conversation, turn, model) {
  const before = [];
  for (let at = turn; at.parent;) {
    at = conversation.turns.find(({ id }) => id === at.parent);
    const lane = at.lanes.find((other) => other.model === model) ?? at.lanes[0];
    const text = lane ? textOf(chosen(lane).tokens) : "";
    if (text.trim()) before.unshift([at.question, text]);
  }
  return before;
}

/**
 * Take over into `ours` what another tab made of the same conversation, so that nothing is lost that either of them has.
 * `isRunning(answer)` tells which answers are being written here. Returns whether `theirs` lacks an answer that is not,
 * or a part of it: two tabs that store at one time do not see each other's.
 */
export function merge(ours, theirs, isRunning) {
  const known = new Map(answersOf(theirs).map((answer) => [answer.id, answer]));
  const lacks = answersOf(ours).some((answer) => !isRunning(answer) && isAhead(answer, known.get(answer.id)));
  Object.assign(ours, { title: theirs.title, system: theirs.system, updated: Math.max(ours.updated, theirs.updated) });
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

/** Whether `answer` holds more than `other`, an earlier or later state of it: its tokens, and how it ended. */
function isAhead(answer, other) {
  const end = ({ finish, error }) => (finish !== null ? 2 : error !== null ? 1 : 0);
  const more = answer.tokens.length - (other?.tokens.length ?? -1);
  return more > 0 || (more === 0 && end(answer) > end(other));
}

/** Return the conversation in parsed JSON, checked from top to bottom. Raises an Error that says it is none. */
export function checked(data) {
  const ok =
    isRecord(data, { id: "string", title: "string", updated: "number", system: "string" }) &&
    data.version === VERSION &&
    isList(data.models, (model) => typeof model === "string") &&
    isList(data.turns, isTurn) &&
    new Set(data.turns.map(({ id }) => id)).size === data.turns.length; // else a turn could follow itself
  if (!ok) throw new Error("This file is no conversation that was exported here.");
  return data;
}

function shownAfter(conversation, parent) {
  return candidates(conversation, parent).reduce((a, b) => (a && a.picked > b.picked ? a : b), undefined);
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
  isPiece(token) && Number.isInteger(token.id) && (token.top === undefined || isList(token.top, isPiece));
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
