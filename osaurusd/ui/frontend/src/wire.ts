/** What the daemon sends; see `osaurusd/ui/types.py`. */

export interface Memory {
  budget_bytes: number;
  used_bytes: number;
}

export interface Model {
  name: string;
  aliases: string[];
  task: "generate" | "embed" | "rerank";
  state: "available" | "partial" | "unusable";
  bytes: number;
  parameters: number | null;
  quantization: string | null;
  context_length: number | null;
  needs_bytes: number;
  fits: boolean | null;
  chat: boolean;
  tools: boolean;
  reasoning: boolean;
  vision: boolean;
}

export interface Worker {
  model: string;
  state: "queued" | "starting" | "ready" | "stopping" | "failed";
  device: string | null;
  memory_bytes: number;
  needs_bytes: number;
  limit_bytes: number;
  reserved_bytes: number;
  in_flight: number;
  waiting: number;
  tokens_per_second: number;
  pinned: boolean;
  unloads_at: number | null;
  prompt_tokens: number;
  cached_tokens: number;
}

export interface ActivityRequest {
  id: string;
  time: number;
  protocol: string;
  endpoint: string;
  model: string | null;
  state: "running" | "completed" | "failed" | "cancelled";
  status: number | null;
  code: string | null;
  prompt_tokens: number | null;
  cached_tokens: number | null;
  output_tokens: number | null;
  first_token_seconds: number | null;
  seconds: number;
  tokens_per_second: number | null;
}

/** Columns of equal length, oldest first. */
export interface History {
  interval_seconds: number;
  time: number[];
  tokens_per_second: number[];
  memory_bytes: number[];
  in_flight: number[];
  waiting: number[];
}

export type Sample = Record<"time" | "tokens_per_second" | "memory_bytes" | "in_flight" | "waiting", number>;

export interface Snapshot {
  instance: string;
  version: string;
  time: number;
  started_at: number;
  default_model: string | null;
  memory: Memory;
  models: Model[];
  workers: Worker[];
  requests: ActivityRequest[];
  history: History;
}
