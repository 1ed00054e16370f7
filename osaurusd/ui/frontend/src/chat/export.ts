/** Conversations as files. */

import type { Conversation, Message } from "./types";

export function toJson(conversation: Conversation): string {
  const { title, model, system, sampling, messages } = conversation;
  return `${JSON.stringify({ title, model, system, sampling, messages }, null, 2)}\n`;
}

export function toMarkdown(conversation: Conversation): string {
  const head = [`# ${conversation.title}`, ...(conversation.system ? [section("System", conversation.system)] : [])];
  return `${[...head, ...conversation.messages.map(message)].join("\n\n")}\n`;
}

function message({ role, text, images, model, error }: Message): string {
  const name = role === "user" ? "User" : model ? `Assistant (${model})` : "Assistant";
  const parts = [...(images ?? []).map((_, index) => `(image ${index + 1})`), text, ...(error ? [`> ${error}`] : [])];
  return section(name, parts.filter(Boolean).join("\n\n"));
}

function section(name: string, text: string): string {
  return `## ${name}\n\n${text}`;
}

/** Offer a text as a download. */
export function download(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  // The browser reads the file after the click.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function fileName(title: string): string {
  return (
    title
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-+|-+$/g, "")
      .slice(0, 60) || "chat"
  );
}
