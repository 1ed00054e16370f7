import { useState } from "preact/hooks";

import { LogList } from "../../components/log_list";
import { clock } from "../../format";
import { useLines } from "./follow";

const LEVELS = ["debug", "info", "warning", "error"];
const CLASSES: Record<string, string> = { warning: "warning-text", error: "danger-text", critical: "danger-text" };
const SHOWN = new Set(["timestamp", "level", "event"]);

type LogRecord = Record<string, unknown>;

export function LogsView() {
  const [level, setLevel] = useState("info");
  const { lines, error } = useLines<LogRecord>(`/manage/logs?lines=200&level=${level}&follow=1`);
  return (
    <section class="section" aria-label="Logs">
      <div class="row">
        <label class="row">
          Level
          <select value={level} onChange={(event) => setLevel(event.currentTarget.value)}>
            {LEVELS.map((each) => (
              <option key={each}>{each}</option>
            ))}
          </select>
        </label>
      </div>
      {error && <p class="notice error">{error}</p>}
      <LogList label="Log of the daemon" count={lines.length}>
        {lines.map(({ number, value }) => (
          <li key={number}>
            <time class="muted">{time(value.timestamp)}</time>
            <span class={CLASSES[String(value.level)]}>{String(value.event)}</span>{" "}
            <span class="muted small">{fields(value)}</span>
          </li>
        ))}
        {lines.length === 0 && <li class="muted">No records.</li>}
      </LogList>
    </section>
  );
}

function time(timestamp: unknown): string {
  const milliseconds = Date.parse(String(timestamp));
  return Number.isNaN(milliseconds) ? "" : clock(milliseconds / 1000);
}

function fields(record: LogRecord): string {
  return Object.entries(record)
    .filter(([name]) => !SHOWN.has(name))
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join("  ");
}
