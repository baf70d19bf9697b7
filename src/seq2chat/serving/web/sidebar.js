/** The list of conversations, with buttons to rename, export and delete each. */

import { byId, el, icon, iconButton } from "./dom.js";

export class Sidebar {
  /** `actions`: fresh, open, rename, remove, exportOne, exportAll, importFile, search. */
  constructor(actions) {
    this.actions = actions;
    this.renaming = null;
    this.root = byId("sidebar");
    this.list = el("ul", { class: "history" });
    const file = el("input", {
      type: "file",
      accept: ".json,application/json",
      class: "hidden",
      "aria-label": "Import conversations",
      tabindex: -1,
      onchange: () => this.#import(file),
    });
    this.root.append(
      el(
        "div",
        { class: "brand" },
        el("img", { src: "/web/icon.svg", alt: "", width: 26, height: 26 }),
        el("span", {}, "seq2chat"),
        iconButton("search", "Search (Ctrl+K)", actions.search),
      ),
      el(
        "button",
        { type: "button", class: "button new", onclick: actions.fresh },
        icon("new"),
        "New conversation",
      ),
      el("nav", { "aria-label": "History" }, this.list),
      el(
        "footer",
        {},
        iconButton("save", "Export all conversations", actions.exportAll),
        iconButton("open", "Import conversations", () => file.click()),
        file,
        el("a", { href: "/inside" }, "Inside"),
        el("a", { href: "/training" }, "Training"),
        el("a", { href: "/docs", target: "_blank", rel: "noopener" }, "API"),
      ),
    );
    byId("scrim").addEventListener("click", () => this.toggle(false));
    this.root.addEventListener(
      "keydown",
      (event) =>
        event.key === "Escape" && this.isOpen && (event.stopPropagation(), this.toggle(false)),
    );
  }

  get isOpen() {
    return document.body.classList.contains("drawer-open");
  }

  /** Open or close the list, which is a drawer on a narrow page. */
  toggle(open = !this.isOpen) {
    document.body.classList.toggle("drawer-open", open);
    byId("menu").setAttribute("aria-expanded", open);
    byId("page").inert = open;
    (open ? this.root.querySelector(".new") : byId("menu")).focus();
  }

  show(conversations, current) {
    const key = document.activeElement?.dataset.key;
    const items = conversations.map((conversation) =>
      this.#item(conversation, conversation.id === current),
    );
    this.list.replaceChildren(...items);
    if (key) this.list.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  }

  #item(conversation, current) {
    if (this.renaming === conversation.id) return el("li", {}, this.#renamer(conversation));
    const { title, id } = conversation;
    return el(
      "li",
      { class: current ? "current" : "" },
      el(
        "button",
        {
          type: "button",
          class: "title",
          "aria-current": current && "true",
          "data-key": `open ${id}`,
          onclick: () => this.actions.open(id),
        },
        title,
      ),
      el(
        "span",
        { class: "item-tools" },
        iconButton("edit", `Rename ${title}`, () => this.#rename(conversation)),
        iconButton("save", `Export ${title}`, () => this.actions.exportOne(conversation)),
        iconButton("delete", `Delete ${title}`, () => this.actions.remove(conversation)),
      ),
    );
  }

  #rename(conversation) {
    this.renaming = conversation.id;
    this.actions.redraw();
    this.list.querySelector("input").select();
  }

  #renamer(conversation) {
    const end = (title) => {
      if (!this.renaming) return;
      this.renaming = null;
      if (title?.trim()) this.actions.rename(conversation, title.trim());
      this.actions.redraw();
      this.list.querySelector(`[data-key="open ${conversation.id}"]`)?.focus();
    };
    const onkeydown = (event) => {
      if (event.key === "Enter") end(event.target.value);
      if (event.key === "Escape") (event.stopPropagation(), end(null));
    };
    return el("input", {
      class: "rename",
      "aria-label": "Name of the conversation",
      value: conversation.title,
      onkeydown,
      onblur: ({ target }) => end(target.value),
    });
  }

  #import(input) {
    const [file] = input.files;
    input.value = "";
    if (file) this.actions.importFile(file);
  }
}
