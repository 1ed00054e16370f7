/** Requests an answer as a stream. */

import { ApiError, post } from "../api";
import { readEvents } from "../sse";
import { requestBody } from "./request";
import type { Conversation, Stats } from "./types";

const INTERRUPTED = "the connection to the daemon ended before the answer was complete";

export interface Piece {
  text?: string;
  reasoning?: string;
  finish?: string;
  stats?: Stats;
}

interface Chunk {
  choices?: { delta?: { content?: string | null; reasoning_content?: string | null }; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  error?: { message: string; code?: string | null };
}

/** Yield the answer to the messages of a conversation piece by piece. */
export async function* complete(conversation: Conversation, signal: AbortSignal): AsyncGenerator<Piece> {
  const watch = new Stopwatch();
  const response = await post("/v1/chat/completions", requestBody(conversation), signal);
  for await (const data of readData(response, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) throw new ApiError(chunk.error.message, 500, chunk.error.code ?? null);
    const choice = chunk.choices?.[0];
    const piece: Piece = {};
    if (choice?.delta?.content) piece.text = choice.delta.content;
    if (choice?.delta?.reasoning_content) piece.reasoning = choice.delta.reasoning_content;
    if (choice?.finish_reason) piece.finish = choice.finish_reason;
    if (piece.text || piece.reasoning) watch.token();
    if (chunk.usage) piece.stats = watch.stats(chunk.usage);
    yield piece;
  }
  throw new ApiError(INTERRUPTED, 0, null);
}

async function* readData(response: Response, signal: AbortSignal): AsyncGenerator<string> {
  if (!response.body) return;
  try {
    for await (const { data } of readEvents(response.body)) yield data;
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError(INTERRUPTED, 0, null);
  }
}

class Stopwatch {
  #begin = performance.now();
  #first: number | null = null;
  #last = 0;

  token(): void {
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  stats(usage: NonNullable<Chunk["usage"]>): Stats {
    const first = this.#first ?? performance.now();
    const seconds = (this.#last - first) / 1000;
    // The first token is part of the time until it.
    const following = usage.completion_tokens - 1;
    return {
      promptTokens: usage.prompt_tokens,
      cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
      tokens: usage.completion_tokens,
      firstTokenSeconds: (first - this.#begin) / 1000,
      tokensPerSecond: seconds > 0 && following > 0 ? following / seconds : 0,
    };
  }
}
