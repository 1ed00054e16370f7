/** Requests to the daemon, with the API key or the session of the management page. */

import { signal } from "@preact/signals";

const KEY_ITEM = "osaurus-key";
const SESSION_ITEM = "osaurus-session";

/** `manage` on the page of `osaurusctl ui`, which can change things; `public` on the daemon's own. */
export const mode =
  document.querySelector<HTMLMetaElement>('meta[name="osaurus-mode"]')?.content === "manage" ? "manage" : "public";
export const manages = mode === "manage";

export type Credential = "unknown" | "needed" | "rejected";

/** Whether the daemon has asked for a credential, or rejected the one that was sent. */
export const credential = signal<Credential>("unknown");

const waiters: (() => void)[] = [];

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null,
  ) {
    super(message);
  }
}

/** Store the API key or the session until the tab is closed, and repeat what has failed without it. */
export function setCredential(value: string): void {
  sessionStorage.setItem(manages ? SESSION_ITEM : KEY_ITEM, value);
  credential.value = "unknown";
  waiters.splice(0).forEach((resume) => resume());
}

export function clearCredential(): void {
  sessionStorage.removeItem(manages ? SESSION_ITEM : KEY_ITEM);
}

export function credentialChanged(): Promise<void> {
  return new Promise((resolve) => waiters.push(resolve));
}

/** Send a request, and throw an `ApiError` with the daemon's message unless it succeeds. */
export async function request(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  const secret = sessionStorage.getItem(manages ? SESSION_ITEM : KEY_ITEM);
  if (secret) headers.set("Authorization", `Bearer ${secret}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    const program = manages ? "`osaurusctl ui`" : "the daemon";
    throw new ApiError(`${program} does not respond`, 0, null);
  }
  if (response.ok) return response;
  const error = await failure(response);
  if (error.code === "invalid_api_key") credential.value = secret ? "rejected" : "needed";
  throw error;
}

export async function getJson<T>(path: string): Promise<T> {
  return (await (await request(path)).json()) as T;
}

export async function postJson<T>(path: string, body: object = {}): Promise<T> {
  return (await (await post(path, body)).json()) as T;
}

export function post(path: string, body: object, signal: AbortSignal | null = null): Promise<Response> {
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Read one JSON document per line of a response. */
export async function* readLines<T>(response: Response): AsyncGenerator<T> {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.trim()) yield JSON.parse(line) as T;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function failure(response: Response): Promise<ApiError> {
  try {
    const { error } = (await response.json()) as { error?: { message?: string; code?: string | null } };
    if (error?.message) return new ApiError(error.message, response.status, error.code ?? null);
  } catch {
    // The body is not JSON. The status says enough.
  }
  return new ApiError(`the daemon answered with status ${response.status}`, response.status, null);
}
