import { Table, type Column } from "../components/table";
import { clock, integer, latency, plural, speed } from "../format";
import { snapshot } from "../live";
import type { ActivityRequest } from "../wire";
import { Waiting } from "./overview";

const COLUMNS: Column<ActivityRequest>[] = [
  { title: "Time", kind: "fixed", render: (request) => clock(request.time) },
  { title: "Model", kind: "name", render: (request) => request.model ?? "–" },
  {
    title: "API",
    render: (request) => (
      <div>
        {request.protocol}
        <div class="muted small">{request.endpoint}</div>
      </div>
    ),
  },
  { title: "Prompt", kind: "number", render: prompt },
  { title: "Answer", kind: "number", render: (request) => optional(request.output_tokens || null, integer) },
  { title: "First token", kind: "number", render: (request) => optional(request.first_token_seconds, latency) },
  { title: "Speed", kind: "number", render: (request) => optional(request.tokens_per_second, speed) },
  { title: "Duration", kind: "number", render: (request) => latency(request.seconds) },
  { title: "Status", kind: "fixed", render: status },
];

export function RequestsView() {
  const current = snapshot.value;
  if (!current) return <Waiting />;
  const running = current.requests.filter((request) => request.state === "running").length;
  return (
    <section class="section" aria-labelledby="requests-title">
      <div class="section-head">
        <h1 id="requests-title">Requests</h1>
        <span class="muted">{plural(running, "request")} running</span>
      </div>
      <p class="muted">
        The latest requests since the daemon started. It keeps counts and times in memory, never contents.
      </p>
      {current.requests.length ? <RequestTable requests={current.requests} /> : <p class="empty">No request so far.</p>}
    </section>
  );
}

export function RequestTable({ requests }: { requests: ActivityRequest[] }) {
  return <Table label="Requests" columns={COLUMNS} rows={requests} rowKey={(request) => request.id} />;
}

function prompt(request: ActivityRequest) {
  if (request.prompt_tokens === null) return "–";
  return (
    <>
      {integer(request.prompt_tokens)}
      {request.cached_tokens ? <span class="muted small"> ({integer(request.cached_tokens)} cached)</span> : null}
    </>
  );
}

function status({ state, status: code, code: error }: ActivityRequest) {
  if (state === "running") return "running";
  if (state === "cancelled") return <span class="muted">cancelled</span>;
  if (state === "completed") return <span class="muted">{code ?? "ok"}</span>;
  return (
    <span class="danger-text">
      {code ?? "failed"}
      {error ? ` ${error}` : ""}
    </span>
  );
}

function optional(value: number | null, format: (value: number) => string): string {
  return value === null ? "–" : format(value);
}
