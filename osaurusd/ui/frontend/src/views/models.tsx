import { manages } from "../api";
import { ModelActions } from "../components/model_actions";
import { Outcome } from "../components/outcome";
import { Table, type Column } from "../components/table";
import { now } from "../clock";
import { bytes, compact, plural } from "../format";
import { snapshot } from "../live";
import { reason } from "../memory";
import type { Model, Worker } from "../wire";
import { GetModels } from "./get_models";
import { Waiting } from "./overview";

interface Row {
  model: Model;
  worker: Worker | undefined;
}

const TASKS = { generate: "Chat", embed: "Embeddings", rerank: "Reranking" };

const COLUMNS: Column<Row>[] = [
  { title: "Model", kind: "name", render: ({ model }) => <Name model={model} /> },
  { title: "Task", kind: "fixed", render: ({ model }) => task(model) },
  { title: "Size", kind: "number", render: ({ model }) => bytes(model.bytes) },
  { title: "Parameters", kind: "number", render: ({ model }) => (model.parameters ? compact(model.parameters) : "–") },
  { title: "Quantization", kind: "fixed", render: ({ model }) => model.quantization ?? "none" },
  {
    title: "Context",
    kind: "number",
    render: ({ model }) => (model.context_length ? compact(model.context_length) : "–"),
  },
  { title: "State", render: state },
];

const ACTIONS: Column<Row> = {
  title: "Actions",
  kind: "actions",
  render: ({ model, worker }) => <ModelActions model={model} worker={worker} />,
};

export function ModelsView() {
  const current = snapshot.value;
  if (!current) return <Waiting />;
  const rows = current.models.map((model) => ({
    model,
    worker: current.workers.find((worker) => worker.model === model.name),
  }));
  const total = current.models.reduce((sum, model) => sum + model.bytes, 0);
  return (
    <>
      {manages && <Outcome />}
      <section class="section" aria-labelledby="models-title">
        <div class="section-head">
          <h1 id="models-title">Models</h1>
          <span class="muted">
            {plural(rows.length, "model")}, {bytes(total)} on disk
          </span>
        </div>
        {rows.length ? (
          <Table
            label="Models on this machine"
            columns={manages ? [...COLUMNS, ACTIONS] : COLUMNS}
            rows={rows}
            rowKey={({ model }) => model.name}
          />
        ) : (
          <p class="empty">There is no model on this machine yet.</p>
        )}
        {!manages && (
          <p class="muted small">
            To download, load, pin or remove models, run <code>osaurusctl ui</code> on this machine.
          </p>
        )}
      </section>
      {manages && <GetModels />}
    </>
  );
}

function Name({ model }: { model: Model }) {
  const tags = [model.vision && "vision", model.tools && "tools", model.reasoning && "reasoning"].filter(Boolean);
  return (
    <>
      {model.name}
      {model.aliases.length > 0 && <div class="muted small">also {model.aliases.join(", ")}</div>}
      {tags.length > 0 && (
        <div class="tags">
          {tags.map((tag) => (
            <span key={String(tag)} class="tag">
              {tag}
            </span>
          ))}
        </div>
      )}
    </>
  );
}

function task(model: Model): string {
  return model.task === "generate" && !model.chat ? "Completion" : TASKS[model.task];
}

function state({ model, worker }: Row) {
  if (model.state === "partial") return <span class="warning-text">incomplete download</span>;
  if (model.state === "unusable") return <span class="warning-text">not supported</span>;
  if (worker) {
    return (
      <>
        {worker.state === "ready" ? "in memory" : worker.state}
        <div class="muted small">{reason(worker, now.value)}</div>
      </>
    );
  }
  if (model.fits === false) return <span class="danger-text">too large: needs {bytes(model.needs_bytes)}</span>;
  return model.fits ? (
    <>
      fits<div class="muted small">needs {bytes(model.needs_bytes)}</div>
    </>
  ) : (
    "on disk"
  );
}
