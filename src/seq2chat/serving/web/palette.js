/** Ctrl+K: search commands and conversations. */

import { byId, el, icon, openDialog } from "./dom.js";
import { textOf } from "./tokens.js";

const MAX_RESULTS = 12;

/**
 * Open the palette with `commands`, each `{icon, label, run}`, and conversations, which `open(id)`
 * opens.
 */
export function openPalette(commands, conversations, open) {
  const dialog = byId("palette");
  let results = [];
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
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    results = searchable
      .filter((entry) => words.every((word) => entry.words.toLowerCase().includes(word)))
      .slice(0, MAX_RESULTS);
    select(0);
  }

  function select(index) {
    active = results.length ? (index + results.length) % results.length : 0;
    const rows = results.map((entry, i) =>
      el(
        "li",
        {
          role: "option",
          id: `option-${i}`,
          "aria-selected": String(i === active),
          onclick: () => run(entry),
        },
        icon(entry.icon),
        el("span", {}, entry.label),
      ),
    );
    options.replaceChildren(...(rows.length ? rows : [el("li", { class: "help" }, "No results.")]));
    field.setAttribute("aria-activedescendant", rows.length ? `option-${active}` : "");
    rows[active]?.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    if (event.key === "ArrowDown") select(active + 1);
    else if (event.key === "ArrowUp") select(active - 1);
    else if (event.key === "Enter" && results[active]) run(results[active]);
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
  const answers = (turn) => turn.lanes.flatMap((lane) => lane.answers);
  return conversation.turns
    .flatMap((turn) => [turn.question, ...answers(turn).map(({ tokens }) => textOf(tokens))])
    .join(" ");
}
