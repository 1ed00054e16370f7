import { manages } from "../api";
import { now } from "../clock";
import { Chart } from "../components/chart";
import { hueClass, MemoryBar } from "../components/memory_bar";
import { ResidentActions } from "../components/model_actions";
import { bytes, duration, integer, percent, plural, speed } from "../format";
import { connection, snapshot } from "../live";
import { fullness, isResident, reason } from "../memory";
import { href } from "../router";
import type { Snapshot, Worker } from "../wire";
import { RequestTable } from "./requests";

const RECENT = 5;

export function OverviewView() {
  const current = snapshot.value;
  if (!current) return <Waiting />;
  return (
    <>
      <Memory current={current} />
      <Residents current={current} />
      <Charts current={current} />
      <Recent current={current} />
    </>
  );
}

/** Shown until the first snapshot arrives. */
export function Waiting() {
  return connection.value === "unauthorized" ? null : <p class="muted">Waiting for the daemon …</p>;
}

function Memory({ current }: { current: Snapshot }) {
  const { memory, workers } = current;
  return (
    <section class="section" aria-labelledby="memory-title">
      <div class="section-head">
        <h1 id="memory-title">Memory</h1>
        <span class="muted small">
          osaurusd {current.version}, up {duration(now.value - current.started_at)}
        </span>
      </div>
      <div class="card stack">
        <div>
          <span class="figure">{bytes(memory.used_bytes)}</span>{" "}
          <span class="muted">of {bytes(memory.budget_bytes)} reserved for models</span>
        </div>
        <MemoryBar workers={workers} memory={memory} />
        <p>{fullness(workers, memory).join(" ")}</p>
      </div>
    </section>
  );
}

function Residents({ current }: { current: Snapshot }) {
  const { workers, models } = current;
  const resident = workers.filter(isResident);
  return (
    <section class="section" aria-labelledby="resident-title">
      <div class="section-head">
        <h2 id="resident-title">Models in memory</h2>
        <a href={href("models")}>{plural(models.length, "model")} on this machine</a>
      </div>
      {workers.length ? (
        <ul class="residents">
          {workers.map((worker) => (
            <Resident key={worker.model} worker={worker} hue={resident.indexOf(worker)} />
          ))}
        </ul>
      ) : (
        <Empty current={current} />
      )}
    </section>
  );
}

function Empty({ current }: { current: Snapshot }) {
  if (current.models.length) {
    return (
      <p class="empty">
        None. A model is loaded by its first request: <a href={href("chat")}>start a chat</a>.
      </p>
    );
  }
  return (
    <p class="empty">
      There is no model on this machine yet.{" "}
      {manages ? (
        <a href={href("models")}>Find one</a>
      ) : (
        <>
          Run <code>osaurusctl ui</code> to find one, or <code>osaurusctl pull llama-3.2-3b-instruct</code>.
        </>
      )}
    </p>
  );
}

function Resident({ worker, hue }: { worker: Worker; hue: number }) {
  const hitRate = worker.prompt_tokens ? percent(worker.cached_tokens / worker.prompt_tokens) : "–";
  return (
    <li class="card resident">
      <div class="resident-head">
        {hue >= 0 && <span class={`swatch ${hueClass(hue)}`} />}
        <h3>{worker.model}</h3>
        {worker.pinned && <span class="tag">pinned</span>}
        <span class={worker.state === "failed" ? "danger-text small" : "muted small"}>{reason(worker, now.value)}</span>
        {manages && <ResidentActions worker={worker} />}
      </div>
      <dl class="facts">
        <Fact term="Memory" value={bytes(worker.memory_bytes)} />
        <Fact term="Speed" value={worker.tokens_per_second ? speed(worker.tokens_per_second) : "–"} />
        <Fact term="Running" value={integer(worker.in_flight)} />
        <Fact term="Queued" value={integer(worker.waiting)} />
        <Fact term="Cache hit rate" value={hitRate} />
        <Fact term="Time left" value={timeLeft(worker)} />
      </dl>
    </li>
  );
}

function timeLeft({ pinned, in_flight, unloads_at }: Worker): string {
  if (pinned) return "stays";
  if (in_flight) return "in use";
  return unloads_at === null ? "–" : duration(Math.max(0, unloads_at - now.value));
}

function Fact({ term, value }: { term: string; value: string }) {
  return (
    <div>
      <dt>{term}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Charts({ current }: { current: Snapshot }) {
  const { history, memory } = current;
  const last = (values: number[]) => values.at(-1) ?? 0;
  const frame = { times: history.time, now: now.value, interval: history.interval_seconds };
  const running = last(history.in_flight);
  const waiting = last(history.waiting);
  return (
    <section class="section" aria-labelledby="charts-title">
      <h2 id="charts-title">Last hour</h2>
      <div class="charts">
        <Chart
          title="Generated tokens"
          current={speed(last(history.tokens_per_second))}
          series={[{ label: "Tokens per second", values: history.tokens_per_second }]}
          minTop={10}
          format={speed}
          {...frame}
        />
        <Chart
          title="Reserved memory"
          current={bytes(last(history.memory_bytes))}
          series={[{ label: "Memory", values: history.memory_bytes }]}
          minTop={memory.budget_bytes}
          exactTop
          format={bytes}
          {...frame}
        />
        <Chart
          title="Requests"
          current={waiting ? `${running} running, ${waiting} queued` : `${running} running`}
          series={[
            { label: "Running", values: history.in_flight },
            { label: "Queued", values: history.waiting },
          ]}
          minTop={5}
          format={integer}
          {...frame}
        />
      </div>
    </section>
  );
}

function Recent({ current }: { current: Snapshot }) {
  if (!current.requests.length) return null;
  return (
    <section class="section" aria-labelledby="recent-title">
      <div class="section-head">
        <h2 id="recent-title">Latest requests</h2>
        <a href={href("requests")}>All requests</a>
      </div>
      <RequestTable requests={current.requests.slice(0, RECENT)} />
    </section>
  );
}
