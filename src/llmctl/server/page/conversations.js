// Conversations, kept in this browser.

const PLACE = "conversations/1";

/** What was remembered under a name; null where there is nothing that can be read. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`llmctl.${name}`));
  } catch {
    return null;
  }
}

/** Remember a value; false where the browser has no room for it, or lets nothing be stored. */
export function remember(name, value) {
  try {
    localStorage.setItem(`llmctl.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** All of them, the newest first: {id, title, system, messages: [{role, content, reasoning, stopped, figures}]}. */
export function all() {
  const found = recall(PLACE);
  return Array.isArray(found) ? found.filter((one) => one && Array.isArray(one.messages)) : [];
}

export function begun() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", system: "", messages: [] };
}

/** Keep one; false where the browser has no room for it. */
export function keep(conversation) {
  const said = conversation.messages.find((message) => message.role === "user");
  conversation.title = (said?.content ?? "").trim().split("\n")[0].slice(0, 80);
  return remember(PLACE, [conversation, ...all().filter((one) => one.id !== conversation.id)]);
}

export function remove(id) {
  remember(PLACE, all().filter((one) => one.id !== id));
}

/** As `llmctl chat` saves it: a header, then a message a line. */
export function asLines(conversation, model) {
  const header = { schema: "llmctl.chat/1", model, commit: null, system: conversation.system || null };
  const lines = conversation.messages.map(({ role, content, reasoning, stopped }) => ({
    role,
    content,
    ...(reasoning ? { reasoning } : {}),
    ...(stopped ? { stopped: true } : {}),
  }));
  return [header, ...lines].map((line) => `${JSON.stringify(line)}\n`).join("");
}

/** To read; reasoning is left out. */
export function asMarkdown(conversation, model) {
  const parts = [`# Conversation with ${model}`];
  if (conversation.system) parts.push(`## System\n\n${conversation.system}`);
  for (const { role, content, stopped } of conversation.messages) {
    parts.push(`## ${role === "user" ? "User" : "Assistant"}${stopped ? " (stopped)" : ""}\n\n${content.trim()}`);
  }
  return `${parts.join("\n\n")}\n`;
}
