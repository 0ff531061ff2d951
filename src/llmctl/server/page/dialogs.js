// Dialogs that ask something.

import { byId } from "./browser.js";

/** Show a dialog. Return the value of the button that closed it; empty if it was cancelled. */
export function ask(id) {
  const dialog = byId(id);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

byId("rename-cancel").addEventListener("click", () => byId("renaming").close("")); // Enter in the field takes the other button

/** Ask for a conversation's new title. Return it; null if the dialog was cancelled or the title is empty. */
export async function askForTitle(title) {
  byId("rename-value").value = title;
  const answer = ask("renaming");
  byId("rename-value").select();
  return (await answer) === "rename" && byId("rename-value").value.trim() ? byId("rename-value").value.trim() : null;
}

/** Ask whether a conversation is to be deleted. */
export async function askToDelete(title) {
  byId("deleting-name").textContent = title;
  return (await ask("deleting")) === "delete";
}
