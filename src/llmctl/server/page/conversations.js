// Conversations, stored in this browser.

const STORAGE_KEY = "conversations/1";

/** Return a stored value, or null if there is none or it cannot be read. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`llmctl.${name}`));
  } catch {
    return null;
  }
}

/** Store a value. Return false if the browser has no space for it or forbids storage. */
export function remember(name, value) {
  try {
    localStorage.setItem(`llmctl.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Return all conversations, newest first: {id, title, system, messages: [{role, content, reasoning, stopped, figures}]}. */
export function allConversations() {
  const stored = recall(STORAGE_KEY);
  return Array.isArray(stored) ? stored.filter((one) => one && Array.isArray(one.messages)) : [];
}

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", system: "", messages: [] };
}

/** Store a conversation. Return false if the browser has no space for it. */
export function saveConversation(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  conversation.title = (first?.content ?? "").trim().split("\n")[0].slice(0, 80);
  return remember(STORAGE_KEY, [conversation, ...allConversations().filter((one) => one.id !== conversation.id)]);
}

export function deleteConversation(id) {
  remember(STORAGE_KEY, allConversations().filter((one) => one.id !== id));
}

/** Return a conversation in the file format of `llmctl chat`: a header, then one message per line. */
export function toJsonLines(conversation, model) {
  const header = { schema: "llmctl.chat/1", model, commit: null, system: conversation.system || null };
  const lines = conversation.messages.map(({ role, content, reasoning, stopped }) => ({
    role,
    content,
    ...(reasoning ? { reasoning } : {}),
    ...(stopped ? { stopped: true } : {}),
  }));
  return [header, ...lines].map((line) => `${JSON.stringify(line)}\n`).join("");
}

/** Return a conversation as Markdown, without reasoning. */
export function toMarkdown(conversation, model) {
  const parts = [`# Conversation with ${model}`];
  if (conversation.system) parts.push(`## System\n\n${conversation.system}`);
  for (const { role, content, stopped } of conversation.messages) {
    parts.push(`## ${role === "user" ? "User" : "Assistant"}${stopped ? " (stopped)" : ""}\n\n${content.trim()}`);
  }
  return `${parts.join("\n\n")}\n`;
}
