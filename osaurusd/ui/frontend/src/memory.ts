/** Why memory is as full as it is. */

import { bytes, duration, plural } from "./format";
import type { Memory, Worker } from "./wire";

const NEARLY_FULL = 0.85;

export interface Segment {
  model: string;
  /** Shares of the budget. */
  start: number;
  width: number;
}

/** Lay out what is reserved for each model along the budget. */
export function segments(workers: Worker[], memory: Memory): Segment[] {
  const resident = workers.filter(isResident);
  const total = Math.max(memory.budget_bytes, sum(resident.map((worker) => worker.memory_bytes)), 1);
  let start = 0;
  return resident.map((worker) => {
    const segment = { model: worker.model, start, width: worker.memory_bytes / total };
    start += segment.width;
    return segment;
  });
}

/** Whether a process of the model exists or starts. */
export function isResident(worker: Worker): boolean {
  return worker.state !== "failed" && worker.state !== "queued";
}

/** Say how full memory is, and what could make room. */
export function fullness(workers: Worker[], memory: Memory): string[] {
  const free = Math.max(0, memory.budget_bytes - memory.used_bytes);
  const full = memory.used_bytes >= NEARLY_FULL * memory.budget_bytes;
  const names = (select: (worker: Worker) => boolean) => list(workers.filter(select).map((worker) => worker.model));
  const queued = names((worker) => worker.state === "queued");
  const idle = names((worker) => worker.state === "ready" && !worker.pinned && !worker.in_flight);
  const pinned = names((worker) => worker.pinned && isResident(worker));
  const tight = full || queued !== "";
  return [
    `${full ? "Nearly full: " : ""}${bytes(free)} ${full ? "left" : "free"} for further models.`,
    ...(queued ? [`Waiting for memory: ${queued}.`] : []),
    ...(tight && idle ? [`Idle, and unloaded as soon as another model needs the memory: ${idle}.`] : []),
    ...(tight && pinned ? [`Pinned, and never unloaded: ${pinned}.`] : []),
  ];
}

/** Say why a model is in memory, and when it leaves. */
export function reason(worker: Worker, now: number): string {
  if (worker.state === "queued") return "waits for memory";
  if (worker.state === "starting") return "loads";
  if (worker.state === "stopping") return "unloads";
  if (worker.state === "failed") return "crashed; the next request starts it again";
  if (worker.in_flight) return `answers ${plural(worker.in_flight, "request")}`;
  if (worker.pinned) return "stays in memory";
  if (worker.unloads_at === null) return "idle";
  const left = worker.unloads_at - now;
  return left > 0 ? `idle, unloads in ${duration(left)}` : "unloads";
}

function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function list(names: string[]): string {
  return names.join(", ");
}
