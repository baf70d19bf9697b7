/** The page: creates its parts and connects them. */

import { Api, sentence } from "./api.js";
import { nameTheme, showModels, showTint, switchTheme } from "./bar.js";
import { Composer } from "./composer.js";
import { path } from "./conversation.js";
import { openDoor } from "./door.js";
import { announce, byId, el, icon, toast } from "./dom.js";
import { download, History } from "./history.js";
import { askKey } from "./key.js";
import { openPalette } from "./palette.js";
import { toTokenize } from "./prompt.js";
import { openRaw } from "./raw.js";
import { Session } from "./session.js";
import { openSettings, Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { textOf } from "./tokens.js";
import { View } from "./view.js";

const CURRENT = "seq2chat.current";

/** The served models that can neither chat nor continue a text. */
let others = [];

const settings = new Settings();
const history = new History(() => session.follow() || showHistory());
const api = new Api(askKey);
const session = new Session(api, history, settings, {
  changed: redraw,
  progressed: () => view.progress(),
  finished: (lane, answer) =>
    answer.error || announce(`${lane.model} answered: ${textOf(answer.tokens)}`),
  notify: toast,
});

const view = new View({
  send,
  redraw,
  copy,
  translate: (model, text) => api.translate(model, text),
  open: openToken,
  raw: openTokens,
  isRunning: (answer) => session.isRunning(answer),
  edit: (turn, question) => session.edit(turn, question),
  resume: (turn, lane, answer) => session.resume(turn, lane, answer),
  regenerate: (turn, lane) => session.regenerate(turn, lane),
  showAnswer: (lane, step) => session.showAnswer(lane, step),
  showVersion: (turn, step) => session.showVersion(turn, step),
});

const sidebar = new Sidebar({
  fresh,
  open,
  redraw: showHistory,
  rename: (conversation, title) => session.rename(conversation, title),
  remove,
  exportOne: (conversation) =>
    download(conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation", [
      conversation,
    ]),
  exportAll: () => download("seq2chat-conversations", history.list()),
  importFile,
  search: openSearch,
});

const composer = new Composer({
  send,
  stop: () => session.stop(),
  editLast: () => {
    const last = path(session.conversation).at(-1);
    if (last && !session.busy) view.edit(last);
  },
});

/** Draw the current state. */
function redraw() {
  const { conversation, models, busy } = session;
  const chosen = conversation.models.map((id) => session.model(id)).filter(Boolean);
  showModels(models, conversation.models, (ids) => session.useModels(ids));
  view.show(conversation, models, others);
  byId("composer").hidden = !models.length && others.length > 0;
  composer.show(busy, chosen.length > 0 && chosen.every(({ chat }) => !chat));
  showHistory();
  document.title = conversation.title ? `${conversation.title} · seq2chat` : "seq2chat";
  sessionStorage.setItem(CURRENT, conversation.id);
}

function showHistory() {
  sidebar.show(history.list(), session.conversation.id);
}

/** Send a question to the models. Return false if there are none. */
function send(question) {
  const { models } = session.conversation;
  if (models.length) {
    session.send(question);
    view.toEnd();
  } else toast("The server hasn't listed any models yet.");
  byId("composer-text").focus();
  return models.length > 0;
}

function fresh() {
  if (sidebar.isOpen) sidebar.toggle(false);
  session.fresh();
  byId("composer-text").focus();
}

function open(id) {
  if (sidebar.isOpen) sidebar.toggle(false);
  session.open(id);
}

function remove(conversation) {
  session.remove(conversation);
  toast(`“${conversation.title}” deleted.`, () => history.save(conversation));
}

async function importFile(file) {
  try {
    const count = await history.importFile(file);
    toast(`${count} conversation${count === 1 ? "" : "s"} imported.`);
  } catch (error) {
    toast(error.message);
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    toast("The browser does not allow this page to copy; select the text instead.");
  }
}

function openToken(turn, lane, answer, index, span) {
  const choose = session.isRunning(answer)
    ? null
    : (other) => (byId("raw").close(), session.branch(turn, lane, answer, index, other));
  const model = session.model(lane.model);
  openDoor(
    span,
    answer.tokens,
    index,
    model?.vocab_size ?? 1,
    choose,
    insideOf(lane.model, answer, index),
  );
}

/** Return the address of the pass that predicted a token, or null if its prompt is unknown. */
function insideOf(model, { promptIds, tokens }, index) {
  if (!promptIds?.length) return null;
  const ids = [...promptIds, ...tokens.slice(0, index).map(({ id }) => id)];
  return `/inside#${new URLSearchParams({ model, ids: ids.join("."), target: tokens[index].id })}`;
}

async function openTokens(turn, lane, answer) {
  try {
    const prompt = await api.tokenize(lane.model, toTokenize(answer.sent));
    const start = answer.promptIds.slice(0, answer.promptIds.length - prompt.tokens.length);
    if (start.length) {
      // A text begins after the end token of the previous text.
      prompt.tokens.unshift(...start);
      prompt.token_strs.unshift(await api.detokenize(lane.model, start));
    }
    openRaw(answer, prompt, (index, span) => openToken(turn, lane, answer, index, span));
  } catch (error) {
    toast(sentence(error));
  }
}

function openSearch() {
  const command = (name, label, run) => ({ icon: name, label, run });
  const commands = [
    command("new", "New conversation", fresh),
    command("settings", "Settings and instructions", changeSettings),
    command("theme", "Switch between light and dark", switchTheme),
    ...["none", "probability", "entropy"].map((name) =>
      command("raw", `Tint tokens by ${name}`.replace("by none", "no more"), () => tint(name)),
    ),
    command("save", "Export all conversations", () =>
      download("seq2chat-conversations", history.list()),
    ),
  ];
  openPalette(commands, history.list(), open);
}

function changeSettings() {
  const [id] = session.conversation.models;
  const own = session.model(id)?.instructions || "None";
  openSettings(byId("settings"), settings, session.conversation.system, own, (text) =>
    session.instruct(text),
  );
}

function tint(name, focus = false) {
  settings.set("tint", name);
  showTint(name, tint);
  if (focus) byId("tint").querySelector("[aria-checked=true]").focus();
}

function onKey(event) {
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "k") (event.preventDefault(), openSearch());
  if (control && event.shiftKey && event.key.toLowerCase() === "o")
    (event.preventDefault(), fresh());
  const isLayered = document.querySelector("dialog[open], :popover-open");
  if (event.key === "Escape" && !isLayered) session.stop();
}

/** Load the list of models. If that fails, show the error with a button to try again. */
async function start() {
  try {
    const served = await api.models();
    session.models = served.filter(({ family }) => family === "gpt");
    others = served.filter(({ family }) => family !== "gpt");
    byId("toast").replaceChildren();
  } catch (error) {
    const retry = el("button", { type: "button", class: "button", onclick: start }, "Try again");
    byId("conversation").replaceChildren(
      el("div", { class: "error", role: "alert" }, el("p", {}, sentence(error)), retry),
    );
    return;
  }
  session.conversation = history.get(sessionStorage.getItem(CURRENT)) ?? session.conversation;
  session.useServedModels();
  redraw();
  byId("composer-text").focus();
}

for (const [id, name] of [
  ["menu", "menu"],
  ["theme", "theme"],
  ["open-settings", "settings"],
])
  byId(id).append(icon(name));
byId("menu").addEventListener("click", () => sidebar.toggle());
byId("theme").addEventListener("click", switchTheme);
byId("open-settings").addEventListener("click", changeSettings);
document.addEventListener("keydown", onKey);
// Only running answers: all else is stored, and another tab may have stored a newer state.
addEventListener("pagehide", () => session.busy && history.save(session.conversation));
nameTheme();
showTint(settings.values.tint, tint);
showHistory();
composer.show(false, false);
start();
