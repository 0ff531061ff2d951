// Rendering of Markdown to elements. Text only becomes text nodes, links must be http or https, and nothing is fetched.

import { highlight } from "./highlight.js";

const INLINE = /\\([\\`*_#~|>])|(`+)([^`]|[^`][\s\S]*?[^`])\2(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|__(?=\S)([\s\S]*?\S)__(?!\w)|\*(?=\S)([^*\n]*?\S)\*|(?<!\w)_(?=\S)([^_\n]*?\S)_(?!\w)|~~(?=\S)([\s\S]*?\S)~~|!?\[([^\]\n]*)\]\(([^)\s]+)(?:\s+"[^"]*")?\)|(https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]])/;
const LIST = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`]*)$/;

/** Make control characters visible, because they can control terminals and reorder text. */
export function plain(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\u2426");
}

/** Return text as a fragment of elements. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  blocks(plain(text.replace(/\r\n?/g, "\n")).split("\n"), fragment, 0);
  return fragment;
}

function blocks(lines, to, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      at = code(lines, at, fence, to);
    } else if (/^#{1,6}\s/.test(line)) {
      const [, marks, title] = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line) ?? [, "#", line];
      to.append(inlineElement(`h${Math.min(marks.length + 1, 4)}`, title));
      at += 1;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      to.append(document.createElement("hr"));
      at += 1;
    } else if (/^\s{0,3}>/.test(line) && depth < 8) {
      const end = until(lines, at, (one) => !/^\s{0,3}>/.test(one));
      const quote = to.appendChild(document.createElement("blockquote"));
      blocks(lines.slice(at, end).map((one) => one.replace(/^\s{0,3}>\s?/, "")), quote, depth + 1);
      at = end;
    } else if (LIST.test(line) && depth < 8) {
      at = list(lines, at, to, depth);
    } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      at = table(lines, at, to);
    } else {
      const end = until(lines, at + 1, (one) => !one.trim() || FENCE.test(one) || /^#{1,6}\s/.test(one) || LIST.test(one) || /^\s{0,3}>/.test(one));
      const paragraph = to.appendChild(document.createElement("p"));
      lines.slice(at, end).forEach((one, number) => {
        if (number) paragraph.append(document.createElement("br"));
        inline(one.trim(), paragraph);
      });
      at = end;
    }
  }
}

function until(lines, at, ends) {
  while (at < lines.length && !ends(lines[at])) at += 1;
  return at;
}

function code(lines, at, [, indent, mark, info], to) {
  const end = until(lines, at + 1, (one) => one.trim().startsWith(mark) && !one.trim().replaceAll(mark[0], ""));
  const text = lines.slice(at + 1, end).map((one) => (one.startsWith(indent) ? one.slice(indent.length) : one)).join("\n");
  const box = to.appendChild(document.createElement("div"));
  box.className = "code";
  const head = box.appendChild(document.createElement("div"));
  head.className = "code-head";
  const language = info.trim().split(/\s/)[0];
  head.append(textElement("span", language || "text"));
  const copy = head.appendChild(textElement("button", "Copy"));
  copy.type = "button";
  copy.dataset.copy = "";
  copy.setAttribute("aria-label", "Copy the code");
  const pre = box.appendChild(document.createElement("pre"));
  pre.tabIndex = 0;
  pre.appendChild(document.createElement("code")).append(...highlight(text, language));
  return end + 1;
}

function list(lines, at, to, depth) {
  const [, indent, mark] = LIST.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const element = to.appendChild(document.createElement(ordered ? "ol" : "ul"));
  if (ordered && parseInt(mark, 10) !== 1) element.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = LIST.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    at += 1;
    while (at < lines.length) {
      const next = LIST.exec(lines[at]);
      const isInner = /^\s/.test(lines[at]) && lines[at].search(/\S/) > indent.length;
      const isGap = !lines[at].trim() && /^\s+\S/.test(lines[at + 1] ?? "") && (lines[at + 1] ?? "").search(/\S/) > indent.length;
      if (next && next[1].length <= indent.length + 1) break;
      if (!isInner && !isGap) break;
      inner.push(lines[at].slice(Math.min(indent.length + 2, Math.max(lines[at].search(/\S|$/), 0))));
      at += 1;
    }
    const entry = element.appendChild(document.createElement("li"));
    if (inner.length === 1) inline(inner[0], entry);
    else blocks(inner, entry, depth + 1);
    const after = until(lines, at, (one) => one.trim());
    if (after > at && LIST.test(lines[after] ?? "")) at = after;
  }
  return at;
}

function table(lines, at, to) {
  const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const end = until(lines, at + 2, (one) => !one.includes("|"));
  const alignments = cells(lines[at + 1]).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : ""));
  const box = to.appendChild(document.createElement("div"));
  box.className = "table";
  box.tabIndex = 0; // so that it can be scrolled with the keyboard
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Table");
  const element = box.appendChild(document.createElement("table"));
  const row = (section, kind, values) => {
    const line = section.appendChild(document.createElement("tr"));
    values.forEach((value, column) => {
      const cell = line.appendChild(inlineElement(kind, value));
      if (alignments[column]) cell.className = `align-${alignments[column]}`;
      if (kind === "th") cell.scope = "col";
    });
  };
  const head = cells(lines[at]);
  row(element.appendChild(document.createElement("thead")), "th", head);
  const body = element.appendChild(document.createElement("tbody"));
  lines.slice(at + 2, end).forEach((line) => {
    const values = cells(line);
    row(body, "td", [...values, ...Array(Math.max(0, Math.min(head.length, 100) - values.length)).fill("")]);
  });
  return end;
}

function inline(text, to, depth = 0) {
  let rest = text;
  while (rest) {
    const match = depth < 6 ? INLINE.exec(rest) : null;
    if (!match) {
      to.append(rest);
      return;
    }
    if (match.index) to.append(rest.slice(0, match.index));
    rest = rest.slice(match.index + match[0].length);
    const [whole, escaped, , codeText, bold, bolder, italic, slanted, struck, label, target, bare] = match;
    if (escaped) to.append(escaped);
    else if (codeText !== undefined) to.append(textElement("code", codeText.trim() || codeText));
    else if (bold ?? bolder) inline(bold ?? bolder, to.appendChild(document.createElement("strong")), depth + 1);
    else if (italic ?? slanted) inline(italic ?? slanted, to.appendChild(document.createElement("em")), depth + 1);
    else if (struck) inline(struck, to.appendChild(document.createElement("s")), depth + 1);
    else if (bare) link(bare, bare, to, depth);
    else if (target && !whole.startsWith("!")) link(label || target, target, to, depth);
    else to.append(whole);
  }
}

function link(label, target, to, depth) {
  let address = null;
  try {
    address = new URL(target);
  } catch { /* shown as text */ }
  if (!address || !["http:", "https:"].includes(address.protocol)) {
    to.append(label === target ? label : `${label} (${target})`);
    return;
  }
  const element = to.appendChild(document.createElement("a"));
  element.href = address.href;
  element.rel = "noopener noreferrer nofollow";
  element.target = "_blank";
  if (label === target) element.append(label);
  else inline(label.replace(/https?:\/\//g, ""), element, depth + 5);
}

function inlineElement(name, text) {
  const element = document.createElement(name);
  inline(text, element);
  return element;
}

function textElement(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}
