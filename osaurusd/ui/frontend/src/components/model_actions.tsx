import { inProgress, load, pin, remove, unload } from "../manage";
import { isResident } from "../memory";
import type { Model, Worker } from "../wire";

/** Controls of a model in memory. */
export function ResidentActions({ worker }: { worker: Worker }) {
  const doing = inProgress.value.get(worker.model);
  return (
    <div class="row">
      {doing && <span class="muted small">{doing} …</span>}
      <PinButton model={worker.model} pinned={worker.pinned} disabled={!!doing} />
      <Action label="Unload" model={worker.model} disabled={!!doing} run={unload} />
    </div>
  );
}

/** Controls of a model on disk. */
export function ModelActions({ model, worker }: { model: Model; worker: Worker | undefined }) {
  const doing = inProgress.value.get(model.name);
  const usable = model.state === "available";
  const resident = worker !== undefined && isResident(worker);
  return (
    <div class="row">
      {doing && <span class="muted small">{doing} …</span>}
      {usable && !resident && <Action label="Load" model={model.name} disabled={!!doing} run={load} />}
      {resident && <Action label="Unload" model={model.name} disabled={!!doing} run={unload} />}
      {usable && <PinButton model={model.name} pinned={worker?.pinned ?? false} disabled={!!doing} />}
      <Action label="Remove" model={model.name} disabled={!!doing} run={remove} danger />
    </div>
  );
}

function PinButton({ model, pinned, disabled }: { model: string; pinned: boolean; disabled: boolean }) {
  return (
    <Action label={pinned ? "Unpin" : "Pin"} model={model} disabled={disabled} run={(name) => pin(name, !pinned)} />
  );
}

interface ActionProps {
  label: string;
  model: string;
  disabled: boolean;
  run: (model: string) => Promise<void>;
  danger?: boolean;
}

function Action({ label, model, disabled, run, danger }: ActionProps) {
  return (
    <button
      type="button"
      class={danger ? "compact danger" : "compact"}
      disabled={disabled}
      aria-label={`${label} ${model}`}
      onClick={() => void run(model)}
    >
      {label}
    </button>
  );
}
