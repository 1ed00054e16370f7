/** Conversations as the browser keeps them. */

export interface Stats {
  promptTokens: number;
  cachedTokens: number;
  tokens: number;
  /** Time until the first token, as this page measured it. */
  firstTokenSeconds: number;
  tokensPerSecond: number;
}

export interface Message {
  role: "user" | "assistant";
  text: string;
  /** `data:` URLs. */
  images?: string[];
  reasoning?: string;
  model?: string;
  /** Why the answer ended: `stop`, `length`, `stopped` by the reader, or `error`. Absent while it streams. */
  finish?: string;
  error?: string;
  stats?: Stats;
}

/** Unset fields have the model's defaults. */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
}

export interface Conversation {
  id: string;
  title: string;
  /** Whether the reader chose the title. */
  named: boolean;
  model: string;
  system: string;
  sampling: Sampling;
  messages: Message[];
  updated: number;
}

const TITLE_LENGTH = 60;

export function newConversation(from?: Conversation): Conversation {
  return {
    id: newId(),
    title: "New chat",
    named: false,
    model: from?.model ?? "",
    system: from?.system ?? "",
    sampling: { ...from?.sampling },
    messages: [],
    updated: Date.now(),
  };
}

/** Return the beginning of the first message as a title. */
export function titleOf(messages: Message[]): string {
  const text = messages[0]?.text.replace(/\s+/g, " ").trim() || (messages[0]?.images ? "Image" : "New chat");
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : text;
}

// `crypto.randomUUID` exists in secure contexts only, and the page may be opened from another machine.
function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
