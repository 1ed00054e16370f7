import { expect, test } from "vitest";

import { niceTop, runs } from "../src/chart_scale";
import { fullness, reason, segments } from "../src/memory";
import { applyEvent, MAX_FINISHED, MAX_SAMPLES } from "../src/snapshot";
import type { ActivityRequest, Snapshot, Worker } from "../src/wire";

const GB = 1e9;

function worker(fields: Partial<Worker>): Worker {
  return {
    model: "a",
    state: "ready",
    device: "gpu",
    memory_bytes: 2 * GB,
    needs_bytes: GB,
    limit_bytes: 4 * GB,
    reserved_bytes: 3 * GB,
    in_flight: 0,
    waiting: 0,
    tokens_per_second: 0,
    pinned: false,
    unloads_at: null,
    prompt_tokens: 0,
    cached_tokens: 0,
    ...fields,
  };
}

const request = (id: string, time: number, state: ActivityRequest["state"]) => ({ id, time, state }) as ActivityRequest;

function snapshot(fields: Partial<Snapshot> = {}): Snapshot {
  const history = {
    interval_seconds: 5,
    time: [],
    tokens_per_second: [],
    memory_bytes: [],
    in_flight: [],
    waiting: [],
  };
  return { instance: "1", models: [], workers: [], requests: [], history, ...fields } as unknown as Snapshot;
}

const event = (name: string, data: object) => ({ event: name, data: JSON.stringify(data), id: null });

test("a snapshot replaces everything, and other events need one", () => {
  expect(applyEvent(null, event("workers", { workers: [] }))).toBeNull();
  expect(applyEvent(snapshot(), event("snapshot", { instance: "2" }))).toEqual({ instance: "2" });
  expect(applyEvent(snapshot(), event("later", {}))).toEqual(snapshot());
});

test("requests are merged by id, newest first, and only finished ones are dropped", () => {
  const finished = Array.from({ length: MAX_FINISHED }, (_, index) => request(`f${index}`, 1000 - index, "completed"));
  const old = request("old", 1, "running");
  const before = snapshot({ requests: [...finished, old] });

  const after = applyEvent(before, event("requests", { requests: [request("new", 2000, "failed")] }));

  expect(after?.requests.length).toBe(MAX_FINISHED + 1);
  expect([after?.requests.at(0)?.id, after?.requests.at(-1)?.id]).toEqual(["new", "old"]);
  const done = applyEvent(after, event("requests", { requests: [request("new", 2000, "completed")] }));
  expect(done?.requests.filter(({ id }) => id === "new")).toEqual([request("new", 2000, "completed")]);
});

test("the history is bounded", () => {
  let current: Snapshot | null = snapshot();
  for (let time = 0; time < MAX_SAMPLES + 5; time += 1) {
    const sample = { time, tokens_per_second: 1, memory_bytes: 2, in_flight: 3, waiting: 4 };
    current = applyEvent(current, event("sample", sample));
  }
  expect(current?.history.time.length).toBe(MAX_SAMPLES);
  expect(current?.history.time[0]).toBe(5);
});

test("segments cover the memory that is reserved for models", () => {
  const workers = [worker({}), worker({ model: "b", memory_bytes: 5 * GB }), worker({ model: "c", state: "queued" })];
  expect(segments(workers, { budget_bytes: 10 * GB, used_bytes: 8 * GB })).toEqual([
    { model: "a", start: 0, width: 0.2 },
    { model: "b", start: 0.2, width: 0.5 },
  ]);
});

test("full memory is explained", () => {
  const workers = [
    worker({ model: "pinned", pinned: true }),
    worker({ model: "idle" }),
    worker({ model: "busy", in_flight: 1 }),
    worker({ model: "next", state: "queued" }),
  ];
  const text = fullness(workers, { budget_bytes: 10 * GB, used_bytes: 9 * GB });
  expect(text).toEqual([
    "Nearly full: 1.0 GB left for further models.",
    "Waiting for memory: next.",
    "Idle, and unloaded as soon as another model needs the memory: idle.",
    "Pinned, and never unloaded: pinned.",
  ]);
  expect(fullness([], { budget_bytes: 10 * GB, used_bytes: 0 })).toEqual(["10.0 GB free for further models."]);
  expect(reason(worker({ unloads_at: 1060 }), 1000)).toBe("idle, unloads in 1 min");
});

test("charts have round limits, and gaps where the daemon did not run", () => {
  expect([0, 0.3, 1, 7, 41, 120].map(niceTop)).toEqual([1, 0.5, 1, 10, 50, 200]);
  const frame = { now: 3600, top: 10, interval: 5, width: 360, height: 100 };
  expect(runs([-100, 0, 5, 1800, 3600], [1, 10, 5, 0, 10], frame)).toEqual([
    [
      [0, 0],
      [0.5, 50],
    ],
    [[180, 100]],
    [[360, 0]],
  ]);
});
