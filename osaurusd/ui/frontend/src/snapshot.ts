/** Applies the events of the stream to the last snapshot. */

import type { ServerEvent } from "./sse";
import type { ActivityRequest, History, Sample, Snapshot } from "./wire";

export const MAX_SAMPLES = 720;
export const MAX_FINISHED = 200;

const COLUMNS = ["time", "tokens_per_second", "memory_bytes", "in_flight", "waiting"] as const;

/** Return the snapshot after an event. Events of unknown types, and those before the first snapshot, have no effect. */
export function applyEvent(current: Snapshot | null, { event, data }: ServerEvent): Snapshot | null {
  if (event === "snapshot") return JSON.parse(data) as Snapshot;
  if (current === null) return null;
  switch (event) {
    case "workers":
    case "models":
      return { ...current, ...(JSON.parse(data) as Partial<Snapshot>) };
    case "requests": {
      const { requests } = JSON.parse(data) as Pick<Snapshot, "requests">;
      return { ...current, requests: mergeRequests(current.requests, requests) };
    }
    case "sample":
      return { ...current, history: addSample(current.history, JSON.parse(data) as Sample) };
    default:
      return current;
  }
}

function mergeRequests(current: ActivityRequest[], changed: ActivityRequest[]): ActivityRequest[] {
  const byId = new Map([...current, ...changed].map((request) => [request.id, request]));
  const newestFirst = [...byId.values()].sort((a, b) => b.time - a.time);
  let finished = 0;
  return newestFirst.filter((request) => request.state === "running" || (finished += 1) <= MAX_FINISHED);
}

function addSample(history: History, sample: Sample): History {
  const next = { ...history };
  for (const column of COLUMNS) next[column] = [...history[column], sample[column]].slice(-MAX_SAMPLES);
  return next;
}
