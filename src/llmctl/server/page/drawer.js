// The list of conversations: search, open, rename and delete. On narrow screens it is a drawer over the page.

import { announce, byId } from "./browser.js";
import { allConversations, deleteConversation, renameConversation } from "./conversations.js";
import { askForTitle, askToDelete } from "./dialogs.js";
import { button, element, replaceChildren } from "./elements.js";
import { plain } from "./markdown.js";

let handlers = null; // {current, open, opened, deleted, renamed}

/**
 * Connect the list. Handlers: `current()` returns the open conversation's id, `open(conversation)` opens one,
 * `deleted(id)` and `renamed(id, title)` follow a change.
 */
export function setUpDrawer(given) {
  handlers = given;
  byId("drawer-open").addEventListener("click", () => showDrawer(true));
  byId("drawer-close").addEventListener("click", () => showDrawer(false));
  byId("shade").addEventListener("click", () => showDrawer(false));
  byId("search").addEventListener("input", () => {
    showList();
    const count = byId("conversations").children.length;
    announce(byId("search").value.trim() ? `${count} conversation${count === 1 ? "" : "s"}` : "");
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !byId("search").value) return;
    event.stopPropagation(); // it empties the field, and does not stop an answer or close the drawer
    event.preventDefault();
    byId("search").value = "";
    showList();
  });
  window.addEventListener("storage", showList); // changed by another tab
}

export function showDrawer(isShown) {
  byId("drawer").classList.toggle("shown", isShown);
  byId("shade").hidden = !isShown;
  byId("app").inert = isShown; // elements under the open drawer cannot be reached
  byId("drawer-open").setAttribute("aria-expanded", String(isShown));
  byId(isShown ? "drawer-close" : "drawer-open").focus();
}

export function drawerIsShown() {
  return byId("drawer").classList.contains("shown");
}

/** Show the conversations that match the search field. */
export function showList() {
  const all = allConversations();
  const wanted = byId("search").value.trim().toLowerCase();
  const shown = wanted ? all.filter((one) => searchedText(one).includes(wanted)) : all;
  replaceChildren(byId("conversations"), shown.map(entryElement), byId("new"));
  byId("search-field").hidden = !all.length;
  byId("no-match").hidden = shown.length > 0 || !all.length;
}

function searchedText({ title, messages }) {
  const texts = messages.flatMap((one) => [one.content, ...(one.attachments ?? []).map(({ name }) => name)]);
  return [title, ...texts].join("\n").toLowerCase();
}

function titleOf(one) {
  return plain(String(one.title ?? "")) || "Untitled";
}

function entryElement(one) {
  const title = titleOf(one);
  const isCurrent = one.id === handlers.current();
  const open = element("button", { className: "open", text: title, attributes: { type: "button", title } });
  if (isCurrent) open.setAttribute("aria-current", "true");
  open.addEventListener("click", () => handlers.open(stored(one)));
  const tools = [button(`Rename: ${title}`, "edit", () => rename(one)), button(`Delete: ${title}`, "remove", () => remove(one))];
  tools.forEach((tool) => tool.classList.add("icon", "row-tool"));
  return element("li", { className: isCurrent ? "current" : "" }, open, ...tools);
}

/** Return the newest stored form of a conversation. */
function stored(one) {
  return allConversations().find(({ id }) => id === one.id) ?? one;
}

async function rename(one) {
  const title = await askForTitle(titleOf(one));
  if (title === null) return;
  handlers.renamed(one.id, title);
  renameConversation(one.id, title);
  showList();
  const renamed = [...byId("conversations").querySelectorAll("button")].find((each) => each.getAttribute("aria-label") === `Rename: ${plain(title)}`);
  (renamed ?? byId("new")).focus();
  announce("Renamed");
}

async function remove(one) {
  if (!await askToDelete(titleOf(one))) return;
  deleteConversation(one.id);
  handlers.deleted(one.id);
  showList();
  announce("Deleted");
}
