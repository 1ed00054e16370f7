/** The conversations of this browser, and the answer that streams. */

import { signal } from "@preact/signals";

import { errorText } from "../api";
import { snapshot } from "../live";
import { complete, type Piece } from "./completion";
import { openStorage, surplus, type Storage } from "./storage";
import { newConversation, titleOf, type Conversation, type Message } from "./types";

export const conversations = signal<Conversation[]>([]);
/** False until the stored conversations are read. */
export const opened = signal(false);
/** The id of the conversation whose answer streams. */
export const streaming = signal<string | null>(null);
/** For screen readers: that an answer begins, and what it says once it is complete. */
export const announcement = signal("");

const SAVE_MS = 1000;
const ANNOUNCED_CHARACTERS = 1000;

let storage: Storage | null = null;
let controller: AbortController | null = null;
const otherTabs = new BroadcastChannel("osaurus-chats");

export async function openConversations(): Promise<void> {
  storage = await openStorage();
  await read();
  opened.value = true;
  otherTabs.onmessage = () => {
    if (streaming.value === null) void read();
  };
}

async function read(): Promise<void> {
  const stored = (await storage?.all()) ?? [];
  // Empty ones are not stored. One may be open, with a message that is being written.
  const empty = conversations.value.filter(({ messages }) => messages.length === 0);
  conversations.value = [...empty, ...stored.sort((a, b) => b.updated - a.updated)];
}

export function find(id: string | undefined): Conversation | undefined {
  return conversations.value.find((conversation) => conversation.id === id);
}

/** Add an empty conversation with the settings of the latest one. */
export function create(): Conversation {
  const conversation = newConversation(conversations.value[0]);
  conversations.value = [conversation, ...conversations.value];
  return conversation;
}

/** Change a conversation, and store it unless it is empty. */
export function change(id: string, update: Partial<Conversation>, store = true): void {
  conversations.value = conversations.value.map((each) => (each.id === id ? { ...each, ...update } : each));
  if (store) void save(id);
}

export async function removeConversation(id: string): Promise<void> {
  if (streaming.value === id) stop();
  conversations.value = conversations.value.filter((each) => each.id !== id);
  await storage?.remove(id);
  otherTabs.postMessage(null);
}

async function save(id: string): Promise<void> {
  const conversation = find(id);
  if (!storage || !conversation?.messages.length) return;
  for (const old of surplus(conversations.value)) {
    await storage.remove(old.id);
    conversations.value = conversations.value.filter((each) => each.id !== old.id);
  }
  await storage.save(conversation).catch(() => undefined);
  otherTabs.postMessage(null);
}

/** Add a message of the reader, and stream the answer. */
export function send(id: string, text: string, images: string[]): void {
  const conversation = find(id);
  if (!conversation || streaming.value !== null) return;
  const message: Message = { role: "user", text, ...(images.length ? { images } : {}) };
  const messages = [...conversation.messages, message];
  change(id, { messages, updated: Date.now(), ...(conversation.named ? {} : { title: titleOf(messages) }) });
  void answer(id);
}

/** Replace the last answer. */
export function regenerate(id: string): void {
  const conversation = find(id);
  if (!conversation || streaming.value !== null) return;
  const messages = conversation.messages.at(-1)?.role === "assistant" ? conversation.messages.slice(0, -1) : undefined;
  change(id, { messages: messages ?? conversation.messages, updated: Date.now() });
  void answer(id);
}

export function stop(): void {
  controller?.abort();
}

async function answer(id: string): Promise<void> {
  const conversation = find(id);
  if (!conversation) return;
  controller = new AbortController();
  streaming.value = id;
  announcement.value = "The model answers.";
  const model = conversation.model || (snapshot.value?.default_model ?? "");
  const draft = new Draft(id, conversation.messages, { role: "assistant", text: "", model });
  try {
    for await (const piece of complete(conversation, controller.signal)) draft.add(piece);
    draft.end({ finish: "stop" });
  } catch (error) {
    draft.end(controller.signal.aborted ? { finish: "stopped" } : { finish: "error", error: errorText(error) });
  } finally {
    streaming.value = null;
    controller = null;
  }
}

/** An answer that grows. It is shown once per frame, and stored every second. */
class Draft {
  #frame = 0;
  #saved = performance.now();
  #finish: string | null = null;

  constructor(
    private readonly id: string,
    private readonly before: Message[],
    private message: Message,
  ) {
    this.#show();
  }

  add({ text, reasoning, finish, stats }: Piece): void {
    const next = { ...this.message };
    if (text) next.text += text;
    if (reasoning) next.reasoning = (next.reasoning ?? "") + reasoning;
    if (stats) next.stats = stats;
    // Shown as running until the stream ends, because the usage follows the finish reason.
    if (finish) this.#finish = finish;
    this.message = next;
    this.#frame ||= requestAnimationFrame(() => this.#show());
  }

  end(outcome: { finish: string; error?: string }): void {
    cancelAnimationFrame(this.#frame);
    const finish = outcome.finish === "stop" ? (this.#finish ?? "stop") : outcome.finish;
    this.message = { ...this.message, ...outcome, finish };
    change(this.id, { messages: [...this.before, this.message], updated: Date.now() });
    announcement.value = outcome.error ?? (this.message.text.slice(0, ANNOUNCED_CHARACTERS) || "The answer is empty.");
  }

  #show(): void {
    this.#frame = 0;
    const due = performance.now() - this.#saved > SAVE_MS;
    if (due) this.#saved = performance.now();
    change(this.id, { messages: [...this.before, this.message] }, due);
  }
}
