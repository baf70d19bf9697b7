/** The conversations in this browser, one entry of its local storage per conversation. */

import { answersOf, checked, newId, VERSION } from "./conversation.js";

const PREFIX = "seq2chat.conversation.";

export class History {
  /** `changed()` is called when this page or another tab has changed the list. */
  constructor(changed) {
    this.changed = changed;
    this.conversations = new Map();
    for (const key of Object.keys(localStorage)) this.#read(key, localStorage.getItem(key));
    addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(PREFIX)) (this.#read(key, newValue), changed());
    });
  }

  /** Return all conversations, the newest first. */
  list() {
    return [...this.conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.conversations.get(id);
  }

  /** Store the conversation. Return false if the browser has no room for it. */
  save(conversation) {
    this.conversations.set(conversation.id, conversation);
    const isStored = this.#write(conversation);
    this.changed();
    return isStored;
  }

  /**
   * Use this conversation instead of the one that another tab has stored. The next `save` stores
   * it.
   */
  adopt(conversation) {
    this.conversations.set(conversation.id, conversation);
  }

  remove(id) {
    this.conversations.delete(id);
    localStorage.removeItem(PREFIX + id);
    this.changed();
  }

  /**
   * Import an exported file, and return its number of conversations. Throws an Error if it is not
   * such a file.
   */
  async importFile(file) {
    let data;
    try {
      data = JSON.parse(await file.text());
    } catch {
      throw new Error("This file is not JSON, so it was not exported from this page.");
    }
    const conversations = (Array.isArray(data?.conversations) ? data.conversations : [data]).map(
      checked,
    );
    for (const conversation of conversations) {
      const isTaken = this.conversations.has(conversation.id);
      if (!this.save(isTaken ? { ...conversation, id: newId() } : conversation))
        throw new Error(FULL);
    }
    return conversations.length;
  }

  #read(key, text) {
    if (!key.startsWith(PREFIX)) return;
    try {
      this.conversations.set(key.slice(PREFIX.length), checked(JSON.parse(text)));
    } catch {
      this.conversations.delete(key.slice(PREFIX.length));
    }
  }

  /**
   * Store a conversation. When the storage is full, alternatives of tokens are dropped, the oldest
   * first.
   */
  #write(conversation) {
    const others = this.list().filter((other) => other !== conversation);
    while (!store(conversation)) {
      const oldest = others.pop();
      const tokens = tokensOf(oldest ?? conversation).filter(({ top }) => top);
      if (!oldest && !tokens.length) return false;
      for (const token of tokens) delete token.top;
      if (oldest) store(oldest);
    }
    return true;
  }
}

export const FULL = "This browser's storage is full. Export and delete old conversations.";

/** Let the user save conversations as a JSON file. */
export function download(name, conversations) {
  const text = JSON.stringify({ version: VERSION, conversations }, null, 1);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: `${name}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function store(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

const tokensOf = (conversation) => answersOf(conversation).flatMap(({ tokens }) => tokens);
