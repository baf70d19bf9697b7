/** Ctrl+K: find a command or a conversation by its words. */

import { byId, el, icon, openDialog } from "./dom.js";
import { textOf } from "./tokens.js";

const MOST = 12;

/** Open the palette over `commands`, each `{icon, label, run}`, and conversations, opened by `open(id)`. */
export function openPalette(commands, conversations, open) {
  const dialog = byId("palette");
  let found = [];
  let active = 0;

  const options = el("ul", { role: "listbox", id: "palette-options", "aria-label": "Results" });
  const field = el("input", {
    role: "combobox",
    "aria-label": "Find a command or a conversation",
    "aria-expanded": "true",
    "aria-controls": "palette-options",
    "aria-autocomplete": "list",
    placeholder: "Find a command or a conversation",
    autocomplete: "off",
    oninput: () => search(),
    onkeydown: onKey,
  });
  const searchable = [
    ...commands.map((command) => ({ ...command, words: command.label })),
    ...conversations.map((conversation) => ({
      icon: "search",
      label: conversation.title,
      words: `${conversation.title} ${wordsOf(conversation)}`,
      run: () => open(conversation.id),
    })),
  ];

  function search() {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = searchable.filter(({ words }) => wanted.every((word) => words.toLowerCase().includes(word))).slice(0, MOST);
    select(0);
  }

  function select(index) {
    active = found.length ? (index + found.length) % found.length : 0;
    const rows = found.map((entry, i) =>
      el(
        "li",
        { role: "option", id: `option-${i}`, "aria-selected": String(i === active), onclick: () => run(entry) },
        icon(entry.icon),
        el("span", {}, entry.label),
      ),
    );
    options.replaceChildren(...(rows.length ? rows : [el("li", { class: "help" }, "Nothing has these words.")]));
    field.setAttribute("aria-activedescendant", rows.length ? `option-${active}` : "");
    rows[active]?.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    if (event.key === "ArrowDown") select(active + 1);
    else if (event.key === "ArrowUp") select(active - 1);
    else if (event.key === "Enter" && found[active]) run(found[active]);
    else return;
    event.preventDefault();
  }

  function run(entry) {
    dialog.close();
    entry.run();
  }

  openDialog(dialog, field, options);
  search();
  field.focus();
}

function wordsOf(conversation) {
  return conversation.turns
    .map(
      ({ question, lanes }) =>
        `${question} ${lanes.map(({ answers }) => answers.map(({ tokens }) => textOf(tokens)).join(" ")).join(" ")}`,
    )
    .join(" ");
}
