/**
 * Markdown as elements: paragraphs, headings, lists, quotes, code, emphasis and links. No markup is
 * ever parsed.
 *
 * All functions work with positions in the text, and `leaf(from, to)` creates the nodes of the text
 * itself. So the tokens of an answer stay clickable inside headings and lists.
 */

import { el } from "./dom.js";

/**
 * Return the blocks of `text`, each `{start, end, lines, kind}` with lines `{start, end, text}`.
 */
export function blocks(text) {
  const result = [];
  let block = null;
  for (const line of linesOf(text)) {
    const fenced = block?.kind === "code" && !block.closed;
    const kind = fenced ? "code" : kindOf(line.text);
    if (fenced) block.closed = line.text.startsWith(block.fence) && /^[`~]+\s*$/.test(line.text);
    const isSameBlock =
      fenced || (block && kind === block.kind && ["paragraph", "list", "quote"].includes(kind));
    const isContinued =
      !isSameBlock && block?.kind === "list" && kind === "paragraph" && /^\s{2,}\S/.test(line.text);
    if (kind === "blank" && !fenced) block = null;
    else if (isSameBlock || isContinued) block.lines.push(line);
    else
      result.push(
        (block = {
          kind,
          lines: [line],
          fence: line.text.match(/^(`{3,}|~{3,})/)?.[1],
          closed: false,
        }),
      );
  }
  return result.map((one) => ({ ...one, start: one.lines[0].start, end: one.lines.at(-1).end }));
}

/** Return the element of one block of `text`. */
export function render(text, block, leaf = (from, to) => [text.slice(from, to)]) {
  const inside = (line, skip = 0) => inline(text, line.start + skip, line.end, leaf);
  const [first] = block.lines;
  switch (block.kind) {
    case "heading": {
      const [marks, { length }] = first.text.match(/^(#{1,6})\s+/);
      return el(`h${Math.min(6, length + 2)}`, {}, inside(first, marks.length));
    }
    case "code": {
      const last = block.lines.at(-1);
      const from = Math.min(first.end + 1, block.end);
      const to = block.closed ? Math.max(from, last.start - 1) : block.end;
      return el("pre", { tabindex: 0 }, el("code", {}, leaf(from, to)));
    }
    case "list":
      return list(block.lines, inside);
    case "quote":
      return el(
        "blockquote",
        {},
        block.lines.map((line) => el("p", {}, inside(line, line.text.match(/^\s*>\s?/)[0].length))),
      );
    case "rule":
      return el("hr");
    default:
      return el("p", {}, inline(text, block.start, block.end, leaf));
  }
}

function linesOf(text) {
  let start = 0;
  return text.split("\n").map((line) => {
    const at = start;
    start += line.length + 1;
    return { start: at, end: at + line.length, text: line };
  });
}

const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+/;

function kindOf(line) {
  if (!line.trim()) return "blank";
  if (/^(`{3,}|~{3,})/.test(line)) return "code";
  if (/^#{1,6}\s+\S/.test(line)) return "heading";
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  return /^\s*>/.test(line) ? "quote" : "paragraph";
}

/** Return nested lists. The depth of an item is the indentation of its line. */
function list(lines, inside) {
  const open = [];
  for (const line of lines) {
    const item = line.text.match(ITEM);
    if (!item) {
      open
        .at(-1)
        .list.lastChild.append(el("br"), ...inside(line, line.text.match(/^\s*/)[0].length));
      continue;
    }
    const depth = item[1].length;
    while (open.length > 1 && open.at(-1).depth > depth) open.pop();
    if (!open.length || depth >= open.at(-1).depth + 2) {
      const nested = item[2] ? el("ol", { start: item[2] }) : el("ul");
      open.at(-1)?.list.lastChild.append(nested);
      open.push({ depth, list: nested });
    }
    open.at(-1).list.append(el("li", {}, inside(line, item[0].length)));
  }
  return open[0].list;
}

const INLINE = new RegExp(
  [
    /\\(?<escaped>[\\`*_~[\]()#>!.-])/,
    /(?<ticks>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<ticks>(?!`)/,
    /(?<![\w*])(?<strong>\*\*|__)(?=\S)(?<strongText>[\s\S]*?\S)\k<strong>/,
    /(?<![\w*])(?<em>[*_])(?=[^\s*_])(?<emText>[\s\S]*?\S)\k<em>(?!\w)/,
    /\[(?<label>[^\]\n]+)\]\((?<target>https?:\/\/[^()\s]+)\)/,
    /(?<url>https?:\/\/[^\s<>"')\]]+)/,
  ]
    .map((pattern) => pattern.source)
    .join("|"),
  "g",
);

/** Return the nodes of `[from, to)` of `text`. */
function inline(text, from, to, leaf) {
  const nodes = [];
  const source = text.slice(from, to);
  let done = from;
  for (const match of source.matchAll(INLINE)) {
    const at = from + match.index;
    const end = at + match[0].length;
    const { escaped, ticks, code, strong, strongText, em, emText, label, target, url } =
      match.groups;
    if (at > done) nodes.push(...leaf(done, at));
    if (escaped) nodes.push(...leaf(at + 1, end));
    else if (code) nodes.push(el("code", {}, leaf(at + ticks.length, end - ticks.length)));
    else if (strongText)
      nodes.push(el("strong", {}, inline(text, at + strong.length, end - strong.length, leaf)));
    else if (emText) nodes.push(el("em", {}, inline(text, at + em.length, end - em.length, leaf)));
    else if (label) nodes.push(link(target, leaf(at + 1, at + 1 + label.length)));
    else nodes.push(link(url, leaf(at, end)));
    done = end;
  }
  if (done < to) nodes.push(...leaf(done, to));
  return nodes;
}

function link(target, content) {
  return el("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" }, content);
}
