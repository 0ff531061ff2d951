// Conversations as files: JSON Lines as `llmctl chat` reads and writes them, and Markdown. Imported files are untrusted.

import { messageText } from "./attachments.js";
import { newConversation } from "./conversations.js";

const SCHEMA = "llmctl.chat/1";
const MAX_MESSAGES = 10_000; // of the server, too
export const MAX_BYTES = 4_000_000;

/** Return a conversation in the file format of `llmctl chat`: a header, then one message per line. */
export function toJsonLines(conversation, model) {
  const header = { schema: SCHEMA, model, commit: null, system: conversation.system || null };
  const lines = conversation.messages.map((message) => ({
    role: message.role,
    content: messageText(message),
    ...(message.reasoning ? { reasoning: message.reasoning } : {}),
    ...(message.stopped ? { stopped: true } : {}),
  }));
  return [header, ...lines].map((line) => `${JSON.stringify(line)}\n`).join("");
}

/** Return a conversation as Markdown, without reasoning. */
export function toMarkdown(conversation, model) {
  const parts = [`# Conversation with ${model}`];
  if (conversation.system) parts.push(`## System\n\n${conversation.system}`);
  for (const message of conversation.messages) {
    const title = `${message.role === "user" ? "User" : "Assistant"}${message.stopped ? " (stopped)" : ""}`;
    parts.push(`## ${title}\n\n${messageText(message).trim()}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return the conversation in a file. Throw an Error that says what is wrong and in which line. */
export async function readConversation(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than ${MAX_BYTES / 1_000_000} MB.`);
  return fromJsonLines(await file.text(), file.name);
}

function fromJsonLines(text, name) {
  const wrong = (line, problem) => new Error(`${name}, line ${line}: ${problem}`);
  const lines = text.replace(/^\ufeff/, "").split("\n").map((line, index) => [line.trim(), index + 1]).filter(([line]) => line);
  if (lines.length > MAX_MESSAGES + 1) throw new Error(`${name} has more than ${MAX_MESSAGES} messages.`);
  const [header, ...rest] = lines.map(([line, number]) => [parseObject(line, () => wrong(number, notJson(number))), number]);
  if (header?.[0].schema !== SCHEMA) throw new Error(`${name} is not an exported conversation. ${EXPORT}`);
  const { system } = header[0];
  if (system !== undefined && system !== null && typeof system !== "string") throw wrong(header[1], "the system prompt is not a text.");
  if (!rest.length) throw new Error(`${name} has no messages.`);
  const messages = rest.map(([record, number]) => importedMessage(record, (problem) => wrong(number, problem)));
  return { ...newConversation(), system: system ?? "", messages };
}

const EXPORT = "Export one as JSON Lines, or use /save in llmctl chat.";

function notJson(number) {
  return `this is not a JSON object.${number === 1 ? ` ${EXPORT}` : ""}`;
}

function parseObject(line, error) {
  let value = null;
  try {
    value = JSON.parse(line);
  } catch { /* reported below */ }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw error();
  return value;
}

/** Return only the known fields of a record, each checked. */
function importedMessage({ role, content, reasoning, stopped, media }, wrong) {
  if (role !== "user" && role !== "assistant") throw wrong("the role is neither user nor assistant.");
  if (typeof content !== "string") throw wrong("the content is not a text.");
  if (reasoning !== undefined && typeof reasoning !== "string") throw wrong("the reasoning is not a text.");
  if (Array.isArray(media) ? media.length : media) throw wrong("the message has an image, which this page cannot send.");
  const message = { role, content };
  if (role === "assistant") message.reasoning = reasoning ?? "";
  if (stopped === true) message.stopped = true;
  return message;
}
