/** Stores conversations in the browser's IndexedDB, and only there. */

import type { Conversation } from "./types";

const DATABASE = "osaurus";
const STORE = "conversations";
export const MAX_CONVERSATIONS = 200;
export const MAX_CHARACTERS = 64 * 1024 * 1024;

export interface Storage {
  all(): Promise<Conversation[]>;
  save(conversation: Conversation): Promise<void>;
  remove(id: string): Promise<void>;
}

/** Open the database, or keep conversations in memory if the browser does not permit one. */
export async function openStorage(): Promise<Storage> {
  try {
    return new DatabaseStorage(await open());
  } catch {
    return new MemoryStorage();
  }
}

/** Return the oldest conversations beyond the limits on their number and total size. */
export function surplus(conversations: Conversation[]): Conversation[] {
  const newestFirst = [...conversations].sort((a, b) => b.updated - a.updated);
  let characters = 0;
  return newestFirst.filter((conversation, index) => {
    characters += size(conversation);
    return index > 0 && (index >= MAX_CONVERSATIONS || characters > MAX_CHARACTERS);
  });
}

function size(conversation: Conversation): number {
  return conversation.messages.reduce(
    (sum, message) =>
      sum +
      message.text.length +
      (message.reasoning?.length ?? 0) +
      (message.images ?? []).reduce((total, image) => total + image.length, 0),
    conversation.system.length,
  );
}

class DatabaseStorage implements Storage {
  constructor(private readonly database: IDBDatabase) {}

  all(): Promise<Conversation[]> {
    return result(this.#store("readonly").getAll());
  }

  async save(conversation: Conversation): Promise<void> {
    await result(this.#store("readwrite").put(conversation));
  }

  async remove(id: string): Promise<void> {
    await result(this.#store("readwrite").delete(id));
  }

  #store(mode: IDBTransactionMode): IDBObjectStore {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }
}

class MemoryStorage implements Storage {
  #conversations = new Map<string, Conversation>();

  async all(): Promise<Conversation[]> {
    return [...this.#conversations.values()];
  }

  async save(conversation: Conversation): Promise<void> {
    this.#conversations.set(conversation.id, conversation);
  }

  async remove(id: string): Promise<void> {
    this.#conversations.delete(id);
  }
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  return result(request);
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the browser's storage failed"));
  });
}
