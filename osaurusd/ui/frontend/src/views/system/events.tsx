import { LogList } from "../../components/log_list";
import { bytes, clock, latency } from "../../format";
import { useLines } from "./follow";

interface ModelEvent {
  kind: string;
  time: number;
  model: string;
  cause?: string;
  reason?: string;
  seconds?: number;
  bytes?: number;
}

const FAILURES = new Set(["refused", "load_failed", "crashed", "pull_failed"]);

export function EventsView() {
  const { lines, error } = useLines<ModelEvent>("/v0/events?follow=1");
  return (
    <section class="section" aria-label="Events">
      <p class="muted">Loads, unloads, crashes and downloads of models since the daemon started.</p>
      {error && <p class="notice error">{error}</p>}
      <LogList label="Model events" count={lines.length}>
        {lines.map(({ number, value }) => (
          <li key={number}>
            <time class="muted">{clock(value.time)}</time>
            <strong>{value.model}</strong>{" "}
            <span class={FAILURES.has(value.kind) ? "danger-text" : undefined}>{value.kind.replaceAll("_", " ")}</span>{" "}
            <span class="muted small">{details(value)}</span>
          </li>
        ))}
        {lines.length === 0 && <li class="muted">No events so far.</li>}
      </LogList>
    </section>
  );
}

function details({ cause, reason, seconds, bytes: size }: ModelEvent): string {
  const parts = [
    cause && `cause: ${cause}`,
    seconds !== undefined && `in ${latency(seconds)}`,
    size !== undefined && bytes(size),
    reason,
  ];
  return parts.filter(Boolean).join(", ");
}
